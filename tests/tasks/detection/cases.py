"""The cases of settings of `detect`: one a setting, by its name."""

from collections.abc import Callable
from typing import Any

from mgd_ssl.settings import Settings
from mgd_ssl.tasks.detection.config import DetectConfig
from tests.tasks.detection.watched import Runs

Case = Callable[[Runs], None]
CASES: dict[str, Case] = {}


def is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def case(function: Case) -> Case:
    """Register the case of a setting: `optim_lr` is of `optim.lr`."""
    key = function.__name__.strip("_")
    group = DetectConfig.model_fields.get(key.partition("_")[0])
    CASES[key.replace("_", ".", 1) if group is not None and is_group(group.annotation) else key] = function
    return function


def leaves(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        found += leaves(info.annotation, f"{prefix}{name}.") if is_group(info.annotation) else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found
