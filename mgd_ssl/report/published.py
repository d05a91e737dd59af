"""The published accuracies, and which runs follow the recipe they were reached with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mgd_ssl.command_line import find_config, load_toml
from mgd_ssl.config import PretrainConfig
from mgd_ssl.mgd.matching import chosen_matching_epochs
from mgd_ssl.run.read import TERM_TITLES, Run
from mgd_ssl.setting_keys import flattened
from mgd_ssl.settings import incomplete

SOURCE = "https://github.com/kaiyuyue/mgd (unsup/README.md)"
PROTOCOL = "linear evaluation, MoCo's protocol (100 epochs, lr 30), ImageNet-1k"
TEACHER = "resnet50"
# moco_v2_200ep_pretrain.pth.tar; the README of https://github.com/facebookresearch/moco gives the first eight digits
TEACHER_MD5 = "59fd9945645e27d585be89338ce9232e"
OTHER_TEACHERS = {"a04e12f8b0e44fdcac1fb4e06f33727b": "MoCo v2's of 800 epochs"}
IMAGENET_IMAGES = 1_281_167  # ILSVRC2012, training split
# Settings that make a recipe. Left out: `optim.lr_schedule` and `mgd.margin`, where our defaults mend the published
# program (docs/algorithm.md), `moco.bn_splits`, which counts with the processes, and all that concerns the machine.
RECIPE = ("data.image_size", "data.recipe", "data.crop_scale", "data.blur_sigma", "moco.dim", "moco.queue_size",
          "moco.weight", "moco.momentum", "moco.temperature", "moco.head_width", "optim.epochs", "optim.batch_size",
          "optim.lr", "optim.momentum", "optim.weight_decay", "optim.warmup_epochs", "optim.milestones")  # fmt: skip
GUIDED = ("mgd.weight", "mgd.stage_weights", "mgd.reducer", "mgd.matching_images", "mgd.matching_epochs",
          "mgd.schedule", "mgd.from_epoch", "mgd.until_epoch", "mgd.balance",
          *(f"terms.{name}.weight" for name in TERM_TITLES))  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One published result."""

    config: str  # the packaged file with its recipe
    top1: float
    top5: float
    kind = "linear"
    protocol = PROTOCOL
    source = SOURCE
    whole_recipe: bool = True  # whether all settings are published; else the missing ones are taken to be MGD's

    @property
    def recipe(self) -> PretrainConfig:
        """Its settings, without a folder and images."""
        with incomplete():
            return load_toml(PretrainConfig, find_config(self.config))

    @property
    def state(self) -> str:
        """What to bear in mind beside the number."""
        return "published, not measured here" + ("" if self.whole_recipe else "; its recipe is not published in full")


RESULTS = (
    Published("imagenet_r18_moco", 52.5, 77.0, whole_recipe=False),
    Published("imagenet_r50_r18_mgd", 53.6, 78.7),
    Published("imagenet_r34_moco", 57.2, 81.5, whole_recipe=False),
    Published("imagenet_r50_r34_mgd", 58.5, 82.7),
)


def published_for(run: Run) -> Published | None:
    """The published result of the recipe a run follows, None when it follows none."""
    result = nearest_result(run)
    return result if result is not None and not deviations(run, result) else None


def nearest_result(run: Run) -> Published | None:
    """The published result for a run's student, with a teacher or without, on ImageNet; None when there is none."""
    if run.task != "pretraining":
        return None
    if abs(run.data["num_images"] / IMAGENET_IMAGES - 1) > 0.01:  # copies with some files missing are ImageNet too
        return None
    for result in RESULTS:
        recipe = result.recipe
        if recipe.student == run.student and (recipe.teacher_arch is not None) == (run.teacher is not None):
            return result
    return None


def deviations(run: Run, result: Published) -> list[str]:
    """In what a run is not known to follow the recipe of a result; empty when the number may stand beside it."""
    try:
        settings = run.settings()
    except ValueError:
        return ["its settings are those of another version"]
    told = teacher_deviations(run.teacher) if run.teacher is not None else []
    own, wanted = (main_settings(config, run.teacher is not None) for config in (settings, result.recipe))
    told += [f"{key} is {own[key]}, published with {wanted[key]}" for key in wanted if own[key] != wanted[key]]
    processes = run.environment.get("processes")
    if processes is None:
        told.append("its number of processes is not recorded")
    elif processes * settings.moco.bn_splits == 1:
        told.append("BatchNorm is not shuffled in one process with moco.bn_splits 1")
    return told


def teacher_deviations(teacher: dict[str, Any]) -> list[str]:
    """In what a teacher, as saved in `config.json`, is not known to be the published one."""
    if teacher["arch"] != TEACHER:
        return [f"its teacher is a {teacher['arch']}, published with a {TEACHER}"]
    md5 = teacher.get("md5")
    if md5 == TEACHER_MD5:
        return []
    what = OTHER_TEACHERS.get(str(md5), "another file" if md5 else "not recorded by its MD5")
    return [f"its teacher is {what}, published with moco_v2_200ep_pretrain.pth.tar"]


def notes(runs: Sequence[Run]) -> list[str]:
    """Why no published number stands beside runs that are near one of the recipes."""
    told = []
    for run in runs:
        result = nearest_result(run)
        if result is not None and (missed := deviations(run, result)):
            told.append(f"{run.name} has no published number beside it: {'; '.join(missed)}")
    return told


def main_settings(config: PretrainConfig, guided: bool) -> dict[str, Any]:
    """The settings of `RECIPE`, of a guided run those of `GUIDED` too."""
    flat = flattened(config.model_dump(mode="json"))
    chosen = {key: flat[key] for key in RECIPE + (GUIDED if guided else ())}
    if guided:
        chosen["mgd.matching_epochs"] = list(chosen_matching_epochs(config.mgd.matching_epochs, config.optim.epochs))
    return chosen
