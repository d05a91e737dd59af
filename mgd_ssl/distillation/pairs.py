"""Which map of the student is matched with which of the teacher: by the number of the stage, or by module names."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from mgd_ssl.errors import UserError, nearest
from mgd_ssl.networks.activations import maps_before_activations, norm_before
from mgd_ssl.networks.backbones import stage_taps
from mgd_ssl.networks.stages import StageTap
from mgd_ssl.networks.taps import map_shapes, map_sizes
from mgd_ssl.networks.teacher import Teacher

Size = list[int]  # [H, W]
NUM_STAGES = 4
MOST_TOLD = 12  # names of modules


class Named(NamedTuple):
    """Modules whose inputs are matched; empty: the usual ones of the network."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


def pair(
    student: nn.Module, teacher: Teacher, named: Named, image_size: int, weights: Sequence[float] = ()
) -> list[StageTap]:
    """The student's taps; the teacher reads their partners afterwards.

    Without names, stages of one number are partners. Where one network's modules are named, each takes the other's
    usual stage of the same size; where both are, the first is paired with the first, and the last ones get the weight
    of stage 4.

    Args:
        student: on the CPU.
        teacher: likewise.
        named: modules.
        image_size: edge of the images in pixels.
        weights: of the four stages; those of weight 0 are left out.

    Raises:
        UserError: for names that are no modules, and maps that differ in size or have one position.
    """
    theirs = _named_taps(teacher.backbone, named.teacher, "teacher", image_size)
    ours = _named_taps(student, named.student, "student", image_size)
    if named.student and named.teacher:
        pairs = _in_order(ours, theirs)
    elif named.student or named.teacher:
        pairs = _by_size(student, teacher.backbone, ours, theirs, image_size)
    else:
        by_number = {tap.stage: tap for tap in stage_taps(teacher.backbone)}
        pairs = [(tap, by_number[tap.stage]) for tap in stage_taps(student) if tap.stage in by_number]
    pairs = [both for both in pairs if not weights or weights[both[0].stage - 1] > 0]
    if not pairs:
        raise UserError("mgd.stage_weights leave out every stage that both networks have: give one a weight above 0")
    _check_sizes(student, teacher.backbone, pairs, image_size)
    teacher.read([their for _, their in pairs])
    return [our for our, _ in pairs]


def _named_taps(network: nn.Module, names: Sequence[str], whose: str, image_size: int) -> list[StageTap]:
    modules = dict(network.named_modules())
    called = list(maps_before_activations(network, image_size)) if names else []
    for name in names:
        if not name or name not in modules:
            some = ", ".join(called[:MOST_TOLD]) + (", ..." if len(called) > MOST_TOLD else "")
            raise UserError(f"{name!r} is no module of the {whose}{nearest(name, called)}: its activations are {some}")
    try:
        usual = {tap.relu: tap for tap in stage_taps(network)} if names else {}
    except UserError:  # it has none, which is why modules are named
        usual = {}
    taps = []
    for name, shape in zip(names, _shapes(network, names, whose, image_size), strict=True):
        norm = usual[name].norm if name in usual else norm_before(network, name)
        taps.append(StageTap(name, norm, shape[1], 0))
    return taps


def _shapes(network: nn.Module, names: Sequence[str], whose: str, image_size: int) -> list[list[int]]:
    if not names:
        return []
    shapes = map_shapes(network, names, image_size)
    for name, shape in zip(names, shapes, strict=True):
        if len(shape) != 4:
            raise UserError(
                f"what enters {name} of the {whose} is no map [N, C, H, W] but {shape}: name another module"
            )
    return shapes


def _in_order(ours: list[StageTap], theirs: list[StageTap]) -> list[tuple[StageTap, StageTap]]:
    if len(ours) != len(theirs) or len(ours) > NUM_STAGES:
        raise UserError(
            f"taps names {len(ours)} modules and teacher_taps {len(theirs)}: name as many, and at most {NUM_STAGES}"
        )
    first = NUM_STAGES - len(ours) + 1
    numbered = zip(range(first, NUM_STAGES + 1), ours, theirs, strict=True)
    return [(our._replace(stage=stage), their._replace(stage=stage)) for stage, our, their in numbered]


def _by_size(
    student: nn.Module, teacher: nn.Module, ours: list[StageTap], theirs: list[StageTap], image_size: int
) -> list[tuple[StageTap, StageTap]]:
    """Partners of the named modules of one network among the usual stages of the other."""
    named, network, other, whose = (
        (ours, student, teacher, "teacher") if ours else (theirs, teacher, student, "student")
    )
    usual = stage_taps(other)
    sizes = map_sizes(other, [tap.relu for tap in usual], image_size)
    pairs = []
    for tap, size in zip(named, map_sizes(network, [tap.relu for tap in named], image_size), strict=True):
        partners = [partner for partner, its in zip(usual, sizes, strict=True) if its == size]
        if not partners:
            told = ", ".join(f"{partner.relu} ({_told(its)})" for partner, its in zip(usual, sizes, strict=True))
            raise UserError(
                f"{tap.relu} is given a map of {_told(size)} at data.image_size {image_size}, and no stage of the "
                f"{whose} has that size: {told}{_would_fit(other, whose, size, image_size)}: name modules of both "
                "networks"
            )
        partner = partners[-1]
        mine = tap._replace(stage=partner.stage)
        pairs.append((mine, partner) if ours else (partner, mine))
    if len({our.stage for our, _ in pairs}) < len(pairs):
        raise UserError(
            "two of the named modules have maps of one size: name one of each size, or both networks' modules"
        )
    return pairs


def _check_sizes(
    student: nn.Module, teacher: nn.Module, pairs: list[tuple[StageTap, StageTap]], image_size: int
) -> None:
    ours = map_sizes(student, [our.relu for our, _ in pairs], image_size)
    theirs = map_sizes(teacher, [their.relu for _, their in pairs], image_size)
    all_sizes = [(our.stage, s, t) for (our, _), s, t in zip(pairs, ours, theirs, strict=True)]
    odd = [
        f"{stage} ({_told(s)} and {_told(t)}{_would_fit(teacher, 'teacher', s, image_size)})"
        for stage, s, t in all_sizes
        if s != t
    ]
    if odd:
        fitting = ", ".join(str(stage) for stage, s, t in all_sizes if s == t)
        raise UserError(
            f"maps of student and teacher differ at data.image_size {image_size} in stage {', '.join(odd)}; stages "
            f"that fit: {fitting or 'none'}: name modules with --taps and --teacher-taps, or choose networks "
            "whose strides agree"
        )
    if flat := [str(stage) for stage, s, _ in all_sizes if s == [1, 1]]:
        raise UserError(
            f"the maps of stage {', '.join(flat)} are 1 x 1 at data.image_size {image_size}, which leaves nothing to "
            "match: choose larger images"
        )


def _would_fit(network: nn.Module, whose: str, size: Size, image_size: int) -> str:
    called = maps_before_activations(network, image_size)
    fitting = [name for name, map_ in called.items() if list(map_.shape[2:]) == size]
    return (
        f"; in the {whose} {fitting[-1]} has {_told(size)}"
        if fitting
        else f"; nothing in the {whose} has {_told(size)}"
    )


def _told(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
