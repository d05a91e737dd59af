"""Which views of a batch there are, and what the teacher sees of them."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mgd_ssl.config import DataConfig
from mgd_ssl.data.samples import LocalCrops, view_policy
from mgd_ssl.distillation.mixing import drawn_box, mixed
from mgd_ssl.distillation.term import Needs, Seen
from mgd_ssl.networks.teacher import Teacher

VIEWS = ("query", "key", "member", "member_key")  # in the order they are drawn; the last two of another image of a bag


def views_drawn(contrasts: bool, needs: Needs) -> tuple[str, ...]:
    """Names of the views that a run has to draw of every image."""
    looked_at = needs.teacher | needs.student | ({"key"} if contrasts else set())
    return VIEWS if "member" in looked_at else VIEWS[:2] if "key" in looked_at else VIEWS[:1]


def local_crops(config: DataConfig) -> LocalCrops | None:
    """The local crops a configuration asks for, if any: colours and blur of the other views, in other boxes."""
    if config.local_crops == 0:
        return None
    return LocalCrops(replace(view_policy(config), scale=config.local_scale), config.local_size, config.local_crops)


def pixels_drawn(config: DataConfig, views: int) -> int:
    """Of all views and local crops of an image."""
    return views * config.image_size**2 + config.local_crops * config.local_size**2


def mix(views: dict[str, Tensor], seed: int, step: int) -> float:
    """Add the view `mixed`, the query with a box of the other image of its bag; the share of the query in it."""
    query = views["query"]
    height, width = query.shape[2:]
    box = drawn_box(seed, step, height)
    views["mixed"] = mixed(query, views["member"], box)
    return box.kept(height, width)


def taught(teacher: Teacher, views: Mapping[str, Tensor], needs: Needs) -> Seen:
    """What a teacher sees of the views that somebody asks it about, each in one pass."""
    seen = Seen(*teacher.seen(views["query"])) if "query" in needs.teacher else Seen()
    seen.views = {name: Seen(*teacher.seen(views[name])) for name in sorted(needs.teacher - {"query"})}
    return seen
