"""Cases of settings: one a setting, by its name."""

from collections.abc import Callable
from typing import Any

from mgd_ssl.settings import Settings

Case = Callable[[Any], None]  # takes the runs that it looks at


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


class Cases(dict[str, Case]):
    """The cases of a command's settings; a function named `optim_lr` is the case of `optim.lr`.

    Args:
        model: all settings.
    """

    def __init__(self, model: type[Settings]) -> None:
        super().__init__()
        self.model = model

    def __call__(self, function: Case) -> Case:
        """Register a case; a decorator."""
        key = function.__name__.strip("_")
        group = self.model.model_fields.get(key.partition("_")[0])
        self[key.replace("_", ".", 1) if group is not None and _is_group(group.annotation) else key] = function
        return function

    def wanted(self) -> list[str]:
        """Dotted names of all settings."""
        return leaves(self.model)


def leaves(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings of a model."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        group: Any = info.annotation
        found += leaves(group, f"{prefix}{name}.") if _is_group(group) else [f"{prefix}{name}"]
    return found
