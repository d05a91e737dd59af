"""What a run's folder tells of its run."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mgd_ssl.errors import UserError
from mgd_ssl.files import ELSEWHERE, read_json, sweep, write_whole, writing
from mgd_ssl.run.checkpoint import PATTERN, Checkpoints, logger, number
from mgd_ssl.run.lock import JOBS, UNTRAINED, take
from mgd_ssl.run.log_file import is_free
from mgd_ssl.run.result import read_plain
from mgd_ssl.run.runtime import AUTOCAST, on_rank_zero
from mgd_ssl.run.sinks.sink import KNOWN
from mgd_ssl.setting_keys import automatic_keys, changed, flattened, given_keys, value_of
from mgd_ssl.settings import S, SettingError

OF_A_START = ("config.json", "log.txt", "tensorboard", "checkpoints", JOBS, KNOWN, "wandb", ".lock", ".*.tmp")
BEFORE_TRAINING = ("metrics.jsonl", "skipped_*.jsonl", "matching_costs.npz")  # said of settings that may change


def nothing_trained(out: Path) -> bool:
    """Whether no step is left of what was started in a folder, so that other settings may take its place.

    There is no checkpoint, no row of metrics.jsonl after step 0, and no file that a start would not have made.
    """
    names = os.listdir(out)
    if any(not any(fnmatch(name, known) for known in (*OF_A_START, *BEFORE_TRAINING)) for name in names):
        return False
    if Checkpoints(out / "checkpoints").paths():
        return False
    metrics = out / "metrics.jsonl"
    lines = metrics.read_text(errors="replace").splitlines() if metrics.is_file() else []
    return all(_before_training(line) for line in lines)


def _before_training(line: str) -> bool:
    try:
        return bool(json.loads(line)["step"] == 0)  # matching and k-NN of the untrained student
    except (ValueError, KeyError, TypeError):
        return False


def forget_start(out: Path) -> None:
    """Remove what a start with other settings has said before its first step."""
    for pattern in BEFORE_TRAINING:
        for path in out.glob(pattern):
            path.unlink()


def saved_description(out: Path) -> dict[str, Any]:
    """A run's `config.json`.

    Raises:
        UserError: when it is damaged.
    """
    try:
        return read_json(out / "config.json")
    except UserError as error:
        raise damaged_description(out, str(error)) from error


PRECISIONS = {  # settings that may be "auto", and what they may have been saved as
    "runtime.precision": (*AUTOCAST,),
    "teacher_precision": (*AUTOCAST, "int8"),
}


def as_begun(config: S, out: Path) -> S:
    """The settings with what the run in a folder began with, where they leave it open.

    That is the precision, and the automatic settings that were not given. A damaged description is told of later.
    """
    try:
        saved = flattened(read_json(out / "config.json")["config"])
        begun = {key: saved[key] for key, known in PRECISIONS.items() if saved.get(key) in known}
        found = {key: value for key, value in begun.items() if value_of(config, key) == "auto"}
        if not nothing_trained(out):
            missing = set(automatic_keys(type(config))) - given_keys(config)
            found |= {key: saved[key] for key in missing & saved.keys()}
        return changed(config, found)
    except (UserError, SettingError, OSError, LookupError, TypeError, AttributeError):
        return config


def damaged_description(out: Path, told: str | None = None) -> UserError:
    """What to tell of a `config.json` that is not what was written."""
    return UserError(f"{told or str(out / 'config.json') + ' is damaged'}: restore it, or choose another --out")


def no_run(out: Path) -> UserError:
    """What to tell of a folder that is not empty and has no `config.json`."""
    if Checkpoints(out / "checkpoints").paths():
        return UserError(
            f"{out / 'config.json'} is missing beside a run's checkpoints: restore it, or choose another --out"
        )
    return UserError(f"{out} is not empty and holds no run: choose another --out")


def unfinished(weights: Path) -> str | None:
    """`step 40 of 100` of the run whose checkpoint a file of weights is, None unless it stopped before its end.

    Args:
        weights: `RUN/checkpoints/step_*.pt`, or any other file.
    """
    if weights.parent.name != "checkpoints" or not PATTERN.fullmatch(weights.name):
        return None
    step = number(weights)
    try:
        saved = json.loads((weights.parents[1] / "config.json").read_text())
        optim = saved["config"]["optim"]
        total = optim["epochs"] * (saved["data"]["num_images"] // optim["batch_size"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
        return f"step {step}"
    return f"step {step} of {total}" if step < total else None


def find_weights(path: Path) -> Path:
    """The file with the weights to evaluate: `path` itself, or of a run's folder `encoder.pt`, which a finished run
    has, else its newest whole checkpoint.

    Args:
        path: a file, or the folder of a run; checkpoints that are passed over are told by a warning.

    Raises:
        UserError: when there is nothing there, or the folder holds no weights.
    """
    if os.path.isfile(path):  # not Path.is_file, which raises for some names
        return path
    if not os.path.isdir(path):
        raise UserError(f"{path} does not exist: pass a checkpoint or the folder of a run")
    if (path / "encoder.pt").is_file():
        return path / "encoder.pt"
    if (hub := _hub_weights(path)) is not None:
        return hub
    newest = Checkpoints(path / "checkpoints").newest_whole(logger.warning)
    if newest is None:
        raise UserError(
            f"{path} holds neither encoder.pt nor checkpoints/step_*.pt: "
            "pass the folder of a run that has saved a checkpoint, or a file"
        )
    if (path / "result.json").is_file():
        logger.warning("encoder.pt of the finished run %s is missing, so %s is taken", path, newest)
    return newest


HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as transformers and timm save them beside a config.json
HUB_KEYS = frozenset({"model_type", "architectures", "architecture"})  # one of them stands in their config.json


def _hub_weights(folder: Path) -> Path | None:
    """The weights in a folder from the Hugging Face hub, None in another.

    Raises:
        UserError: without a config.json, which says what network they are, and for weights in several files.
    """
    if (shards := next(folder.glob("*.index.json"), None)) is not None:
        raise UserError(f"{folder} holds weights in several files ({shards.name}): save them as one model.safetensors")
    weights = next((folder / name for name in HUB_WEIGHTS if (folder / name).is_file()), None)
    if weights is not None and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds {weights.name} but no config.json, which says what network it is: download the whole "
            "folder, or pass the file itself"
        )
    return weights


def is_run(folder: Path) -> bool:
    """Whether a folder's config.json is that of a run, be it damaged, and not one from the Hugging Face hub."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return not HUB_KEYS & json.loads((folder / "config.json").read_bytes()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return True


@contextmanager
def run_folder(
    out: Path,
    run: dict[str, Any],
    check: Callable[[Path, dict[str, Any], dict[str, Any]], None],
    read: Callable[[Path], dict[str, Any] | None] = read_plain,
) -> Iterator[dict[str, Any] | None]:
    """Open a run's folder for this run alone; yields the saved result if the run is finished.

    A start that failed before its first step holds nothing, so other settings may take its place.

    Args:
        out: the folder, made if need be.
        run: what the run is, saved as its `config.json`.
        check: raises UserError when the saved description (second argument) is of another run than the third.
        read: the saved result, None where there is none.

    Raises:
        UserError: when the folder cannot be, is in use, is damaged, holds something else, or another run.
        DiskError: when the disk does not take it.
    """
    locks: list[Any] = []  # open while the block runs

    def enter() -> dict[str, Any] | None:
        with writing(out, ELSEWHERE, at_start=True):
            out.mkdir(parents=True, exist_ok=True)
            if not is_free(out, frozenset({JOBS})):
                raise no_run(out)
            locks.append((out / ".lock").open("w"))
            if not take(locks[0]):
                raise UserError(f"{out} is in use by another process: wait for it, or choose another --out")
            for folder in (out, out / "checkpoints", *(out / JOBS).glob("*/")):
                sweep(folder)
            # asked under the lock: nobody can be about to train
            if not (out / "config.json").exists() or nothing_trained(out):
                forget_start(out)
                write_whole(out / "config.json", json.dumps(run, indent=2).encode())
        try:
            check(out, saved_description(out), run)
        except (LookupError, TypeError, AttributeError) as error:
            raise damaged_description(out) from error
        return read(out)

    try:
        yield on_rank_zero(enter)
    finally:
        for lock in locks:
            lock.close()


def check_same(out: Path, changed: list[str]) -> None:
    """Raise UserError when anything changed."""
    if changed:
        raise UserError(
            f"{out} holds a run with other settings ({'; '.join(changed)}): restore them, or choose another --out"
        )


DEFAULT_SIZE = 224  # of crops where the weights do not lie in a run's folder


def run_of(path: Path) -> Path | None:
    """The folder of the run a weights file belongs to, None for others and for an untrained encoder."""
    if str(path).startswith(UNTRAINED):
        return None
    folders = [path.parent, path.parent.parent] if path.parent.name == "checkpoints" else [path.parent]
    return next((folder for folder in folders if is_run(folder)), None)


def run_in(folder: Path) -> Path | None:
    """The path itself when it is a run's folder."""
    return folder if is_run(folder) else None


def run_image_size(run: Path | None) -> int:
    """Edge of the views a run was trained on; 224 without one.

    Raises:
        UserError: when its config.json cannot be read.
    """
    if run is None:
        return DEFAULT_SIZE
    try:
        return int(json.loads((run / "config.json").read_text())["config"]["data"]["image_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run / 'config.json'} does not tell data.image_size: pass --image-size") from error
