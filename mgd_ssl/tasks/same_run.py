"""Whether a folder's run is the one that is asked for: its settings, images and weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mgd_ssl.errors import UserError
from mgd_ssl.run.folder import PRECISIONS, as_begun, check_same, damaged_description, nothing_trained, saved_description
from mgd_ssl.run.lock import in_use
from mgd_ssl.setting_keys import defaults, differences, flattened, free_keys
from mgd_ssl.settings import Settings

WEIGHTS = ("student_weights", "backbone", "teacher")  # keys of a description: whose weights a run has


class RunSettings(Protocol):
    """Settings of a run that are saved with it."""

    @property
    def out(self) -> Path: ...  # noqa: D102

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True)
class SameRun:
    """Holds what a folder's `config.json` says against what is asked for.

    Args:
        model: class of the settings.
        images: what is said of other images, with the two numbers to fill in.
    """

    model: type[Settings]
    images: str

    def check(self, out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raise UserError when a folder's run had other settings, images, weights to begin with or another teacher."""
        if old.get("task") != new.get("task"):
            raise UserError(f"{out} holds a run of another command: choose another --out")
        changed = differences(self.completed(old["config"]), new["config"], free_keys(self.model))
        for whose in WEIGHTS:
            before, now = old.get(whose), new.get(whose)
            if identity(before) != identity(now):
                told = [each and f"{each['arch']} {each['sha256'][:12]}" for each in (before, now)]
                changed.append(f"{whose}: {told[0]} -> {told[1]}")
        if old.get("bags") != new.get("bags"):
            changed.append("the bags of terms.bingo.bags: others by their SHA-256")
        if old["data"] != new["data"]:
            changed.append(self.images.format(*(run["data"]["num_images"] for run in (old, new))))
        check_same(out, changed)

    def check_settings(self, config: Settings, out: Path) -> None:
        """Raise UserError when the folder holds a run with other settings, without looking at images or weights."""
        config = as_begun(config, out)
        if not (out / "config.json").is_file() or (nothing_trained(out) and not in_use(out)):
            return
        try:
            saved = self.completed(saved_description(out)["config"])
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        new = config.model_dump(mode="json")
        asked = new | {"student": new["student"] or saved["student"]}  # where none is given the weights tell
        left_open = [key for key in PRECISIONS if flattened(new).get(key) == "auto"]  # then it is as the run began
        check_same(out, differences(saved, asked, [*free_keys(self.model), *left_open]))

    def completed(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Saved settings, with the defaults of those which the version that saved them did not have.

        Before there was a background transparency was dropped, which no setting does any more, so it gets none.
        """
        known = flattened(defaults(self.model))
        known.pop("data.background", None)
        return known | flattened(saved)


def identity(weights: dict[str, Any] | None) -> list[Any] | None:
    """What has to stay the same of saved weights; earlier versions saved no more of it."""
    return [weights[key] for key in ("arch", "sha256", "prefix")] if weights else None
