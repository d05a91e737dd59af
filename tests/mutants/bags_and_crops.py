"""Faults of bags and of local crops."""

from tests.mutants.fault import Fault

BAGS = ("tests/evaluation/test_bags.py",)

BAGS_AND_CROPS = [
    Fault("neighbours with the image itself", "itself = found == rows[:, None]", "itself = np.zeros(found.shape, bool)", BAGS),
    Fault("neighbours of the last shard alone", "both = np.concatenate([scores[here], new_scores], axis=1)", "both = np.concatenate([-1 + 0 * scores[here], new_scores], axis=1)", BAGS),
    Fault("neighbours of other rows", "mine = rows[rank() :: world_size()]", "mine = rows[rank() :] [: -(-len(rows) // world_size())]", BAGS, "Neighbours.part"),
    Fault("bags begin anew after a stop", "done, size = on_rank_zero(lambda: self.rows.done), work.least", "done, size = 0, work.least", BAGS),
    Fault("bags of other settings taken for these", 'about_bags(out).get("key") != self.key', "False", BAGS),
    Fault("bags with gaps", "config, gaps=False", "config, gaps=True", BAGS),
]  # fmt: skip
