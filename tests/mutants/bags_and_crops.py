"""Faults of bags and of local crops."""

from tests.mutants.fault import Fault

BAGS = ("tests/evaluation/test_bags.py",)

CROPS = ("tests/tasks/test_local_crops.py",)

BAGS_AND_CROPS = [
    Fault("neighbours with the image itself", "itself = found == rows[:, None]", "itself = np.zeros(found.shape, bool)", BAGS),
    Fault("neighbours of the last shard alone", "both = np.concatenate([scores[here], new_scores], axis=1)", "both = np.concatenate([-1 + 0 * scores[here], new_scores], axis=1)", BAGS),
    Fault("neighbours of other rows", "mine = rows[rank() :: world_size()]", "mine = rows[rank() :] [: -(-len(rows) // world_size())]", BAGS, "Neighbours.part"),
    Fault("bags begin anew after a stop", "done, size = on_rank_zero(lambda: self.rows.done), work.least", "done, size = 0, work.least", BAGS),
    Fault("bags of other settings taken for these", 'about_bags(out).get("key") != self.key', "False", BAGS),
    Fault("bags with gaps", "config, gaps=False", "config, gaps=True", BAGS),
    Fault("crops of one image at another's", "target.repeat_interleave(len(pooled(crops)) // len(target), dim=0)", "target.repeat(len(pooled(crops)) // len(target), *[1] * (target.ndim - 1))", CROPS),
    Fault("crops unseen by SEED", "s, t = student.with_crops(Seen.embedding), target", "s, t = student.embedding(), target", CROPS),
    Fault("crops drawn as the query view", "FIRST_CROP + n", "n", CROPS),
    Fault("crops in the boxes of views", "scale=config.local_scale", "scale=config.crop_scale", CROPS),
    Fault("crops drawn anew for one another", "out in zip(crops, space.crops[i].numpy()", "out in zip([crops[0]] * len(crops), space.crops[i].numpy()", CROPS),
    Fault("crops of the other image of a bag", "if not placed and self.local is not None", "if self.local is not None", ("tests/tasks/test_local_crops.py", "-k", "bag")),
    Fault("crops of any size", "check_local_size(encoder, config)", "pass", CROPS),
    Fault("crops that nobody looks at", "LOCAL.isdisjoint(terms)", "False", CROPS),
    Fault("crops not passed on", "student=term.needs.student | {CROPS}", "student=term.needs.student", ("tests/tasks/test_local_crops.py", "-k", "seen")),
]  # fmt: skip
