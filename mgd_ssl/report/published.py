"""The published accuracies, and which runs follow the recipe they were reached with."""

from dataclasses import dataclass
from typing import Any

from mgd_ssl.config import PretrainConfig, find_config, flattened, load_toml
from mgd_ssl.report.runs import Run
from mgd_ssl.schedule import chosen_matching_epochs

SOURCE = "https://github.com/kaiyuyue/mgd (unsup/README.md)"
PROTOCOL = "linear evaluation, MoCo's protocol (100 epochs, lr 30), ImageNet-1k"
TEACHER = "resnet50"
IMAGENET_IMAGES = 1_281_167  # ILSVRC2012, training split
# Settings that make a recipe. Left out: `optim.lr_schedule` and `mgd.margin`, where our defaults mend the published
# program (docs/algorithm.md), and all that concerns the machine.
RECIPE = ("student", "data.image_size", "data.recipe", "data.crop_scale", "data.blur_sigma", "moco.",
          "optim.epochs", "optim.batch_size", "optim.lr", "optim.momentum", "optim.weight_decay")  # fmt: skip
GUIDED = ("mgd.weight", "mgd.stage_weights", "mgd.reducer", "mgd.matching_images", "mgd.matching_epochs")


@dataclass(frozen=True)
class Published:
    """One published result."""

    config: str  # the packaged file with its recipe
    top1: float
    top5: float


RESULTS = (
    Published("imagenet_r18_moco", 52.5, 77.0),
    Published("imagenet_r50_r18_mgd", 53.6, 78.7),
    Published("imagenet_r34_moco", 57.2, 81.5),
    Published("imagenet_r50_r34_mgd", 58.5, 82.7),
)


def published_for(run: Run) -> Published | None:
    """The published result of the recipe a run follows, None when it follows none."""
    return next((result for result in RESULTS if follows(run, result)), None)


def follows(run: Run, result: Published) -> bool:
    """Whether student, teacher's architecture, main settings and number of images are those of a published result."""
    recipe = load_toml(PretrainConfig, find_config(result.config))
    guided = recipe.teacher_arch is not None
    if guided != (run.teacher is not None) or (run.teacher is not None and run.teacher["arch"] != TEACHER):
        return False
    if abs(run.data["num_images"] / IMAGENET_IMAGES - 1) > 0.01:  # copies with some files missing are ImageNet too
        return False
    try:
        return main_settings(run.settings(), guided) == main_settings(recipe, guided)
    except ValueError:  # settings of another version
        return False


def main_settings(config: PretrainConfig, guided: bool) -> dict[str, Any]:
    """The settings of `RECIPE`, of a guided run those of `GUIDED` too."""
    wanted = RECIPE + (GUIDED if guided else ())
    chosen = {
        key: value
        for key, value in flattened(config.model_dump(mode="json")).items()
        if key in wanted or f"{key.partition('.')[0]}." in wanted
    }
    if guided:
        chosen["mgd.matching_epochs"] = list(chosen_matching_epochs(config.mgd.matching_epochs, config.optim.epochs))
    return chosen
