"""The published errors of classification, and which runs follow the recipe they were reached with."""

from dataclasses import dataclass
from typing import Any

from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.command_line import find_config, load_toml
from mgd_ssl.run.read import Run
from mgd_ssl.setting_keys import flattened
from mgd_ssl.settings import incomplete

IMAGES = {"imagenet": 1_281_167, "cub200": 5_994}  # to learn from, by the beginning of a config's name
# Left out: what is corrected by default (docs/supervised.md) and all that concerns the machine.
RECIPE = ("student", "data.image_size", "data.crop_scale", "data.share_of_labels", "optim")
GUIDED = ("teacher_arch", "mgd.weight", "mgd.stage_weights", "mgd.reducer", "mgd.matching_every", "kd")


@dataclass(frozen=True)
class PublishedErrors:
    """One published result, as accuracies."""

    config: str  # the packaged file with its recipe
    top1_error: float
    top5_error: float
    kind = "classification"
    protocol = "validation images, centre crops, best epoch, chosen on the same images"
    source = "https://github.com/kaiyuyue/mgd (cls/README.md) and https://arxiv.org/abs/2008.09958"

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 - self.top1_error

    @property
    def top5(self) -> float:
        """In percent."""
        return 100 - self.top5_error

    @property
    def state(self) -> str:
        """What to bear in mind beside the number."""
        told = f"published errors {self.top1_error} / {self.top5_error}, not measured here"
        return told + ("; of another schedule" if self.config.endswith("_alone") else "")

    @property
    def recipe(self) -> ClassifyConfig:
        """Its settings, without a folder and images."""
        with incomplete():
            return load_toml(ClassifyConfig, find_config(self.config))


RESULTS = (
    PublishedErrors("imagenet_r152_r50_sparse", 22.02, 5.68),
    PublishedErrors("imagenet_r50_alone", 23.85, 7.13),
    PublishedErrors("imagenet_r50_mobilenet_v1_amp", 28.53, 9.65),
    PublishedErrors("imagenet_mobilenet_v1_alone", 31.13, 11.24),
    PublishedErrors("cub200_r50_teacher", 20.02, 6.06),
    PublishedErrors("cub200_r50_mobilenet_v2_amp", 20.47, 5.23),
    PublishedErrors("cub200_mobilenet_v2_alone", 24.61, 7.56),
    PublishedErrors("cub200_r50_shufflenet_v2_amp", 25.95, 7.46),
    PublishedErrors("cub200_r50_shufflenet_v2_amp_kd", 25.18, 7.87),
    PublishedErrors("cub200_shufflenet_v2_alone", 31.39, 10.9),
)


def published_for(run: Run) -> PublishedErrors | None:
    """The published result of the recipe a run follows, None when it follows none."""
    if run.task != "classification":
        return None
    return next((result for result in RESULTS if follows(run, result)), None)


def follows(run: Run, result: PublishedErrors) -> bool:
    """Whether a run has the settings of a recipe, as many images and such a teacher."""
    if abs(run.data["num_images"] / IMAGES[result.config.partition("_")[0]] - 1) > 0.01:
        return False
    recipe = result.recipe
    if (recipe.teacher_arch is not None) != (run.teacher is not None):
        return False
    try:
        own = ClassifyConfig(**run.config)
    except ValueError:  # settings of another version
        return False
    if run.teacher is not None:
        own = own.model_copy(update={"teacher_arch": run.teacher["arch"]})
    keys = RECIPE + (GUIDED if run.teacher is not None else ())
    return chosen(own, keys) == chosen(recipe, keys)


def chosen(config: ClassifyConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those settings, and all of a group."""
    flat = flattened(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if key in keys or key.partition(".")[0] in keys}
