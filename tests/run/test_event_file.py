"""What TensorBoard shows of a run, read with TensorBoard's own readers."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from mgd_ssl import Interrupted, pretrain
from mgd_ssl.run.event_file import EventFile
from tests.runs import stop_after, tiny, trained_teacher

Points = dict[str, list[tuple[int, float]]]


def shown(folder: Path) -> Points:
    """Steps and values of all tags as a reader of the files sees them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return points(reader)


def points(reader: EventAccumulator) -> Points:
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def shown_by_the_server(folder: Path) -> Points:
    """The same through what the server uses, which keeps scalars as tensors and knows first starts from later ones."""
    reader = EventMultiplexer(tensor_size_guidance={"scalars": 0})
    reader.AddRun(str(folder), "run")
    reader.Reload()

    def values(tag: str) -> list[tuple[int, float]]:
        return [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in reader.Tensors("run", tag)]

    return {tag: values(tag) for tag in reader.Runs()["run"]["tensors"]}


def written(run: Path) -> Points:
    """The numbers of metrics.jsonl, as float32."""
    found: Points = {}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in row.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                found.setdefault(f"{row['kind']}/{name}", []).append((row["step"], float(np.float32(value))))
    return found


def row(step: int, loss: float, kind: str = "train") -> dict[str, Any]:
    return {"kind": kind, "step": step, "loss": loss, "protocol": "text is left out"}


def test_a_run_shows_the_numbers_of_its_rows_after_every_stop(
    image_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Stopped at the end of an epoch, where a row of training, and after it one of k-NN and one of matching have the
    step of the checkpoint, and in the middle of one."""
    teacher = trained_teacher(tmp_path_factory.getbasetemp(), image_folder)
    knn = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 1, "k": 3}
    settings = tiny(image_folder, tmp_path / "run", teacher=teacher, knn=knn, runtime={"log_every": 1})
    for step in (3, 5, 6):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted):
                pretrain(**settings)
    pretrain(**settings)
    numbers = written(tmp_path / "run")
    assert [step for step, _ in numbers["train/loss"]] == list(range(1, 10))
    assert [step for step, _ in numbers["knn/top1"]] == [0, 3, 6, 9] and "matching/stage1_cost_after" in numbers
    assert shown(tmp_path / "run" / "tensorboard") == numbers
    assert shown_by_the_server(tmp_path / "run" / "tensorboard") == numbers


def crashed(folder: Path) -> None:
    """Files of a run that logged steps 1 to 5 and had its last checkpoint at step 3."""
    events = EventFile(folder, 0)
    for step in range(1, 6):
        events.add(row(step, step / 2))
    events.close()


CONTINUED = {"train/loss": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 40.0), (5, 50.0)]}


@pytest.mark.parametrize("clock", [time.time(), 1.5e9, 86400.0], ids=["right", "years back", "1970"])
def test_a_clock_set_back_hides_nothing(clock: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(tmp_path)
    live = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})  # open since before
    live.Reload()
    monkeypatch.setattr(time, "time", lambda: clock)
    events = EventFile(tmp_path, 3, [row(3, 1.5)])
    for step in (4, 5):
        events.add(row(step, 10.0 * step))
    events.close()
    monkeypatch.undo()
    live.Reload()
    assert points(live) == shown(tmp_path) == shown_by_the_server(tmp_path) == CONTINUED


def test_two_starts_in_a_second_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    for start in range(12):
        events = EventFile(tmp_path, start, [row(start, start)] if start else [])
        events.add(row(start + 1, 100.0))  # not in a checkpoint
        events.add(row(start + 2, 200.0))
        events.close()
    expected = [(step, float(step)) for step in range(1, 12)] + [(12, 100.0), (13, 200.0)]
    assert shown(tmp_path)["train/loss"] == shown_by_the_server(tmp_path)["train/loss"] == expected


def test_what_was_logged_before_the_first_checkpoint_is_forgotten(tmp_path: Path) -> None:
    crashed(tmp_path)
    events = EventFile(tmp_path, 0)
    events.add(row(1, 7.0))
    events.close()
    assert shown(tmp_path) == shown_by_the_server(tmp_path) == {"train/loss": [(1, 7.0)]}


def test_a_run_that_torchs_writer_began_goes_on(tmp_path: Path) -> None:
    """As before this file was written by ourselves."""
    torchs = SummaryWriter(str(tmp_path), purge_step=0)
    for step in range(1, 6):
        torchs.add_scalar("train/loss", step / 2, step)
    torchs.close()
    events = EventFile(tmp_path, 3, [row(3, 1.5)])
    for step in (4, 5):
        events.add(row(step, 10.0 * step))
    events.close()
    assert shown(tmp_path) == shown_by_the_server(tmp_path) == CONTINUED


def test_a_file_that_was_cut_off_costs_only_its_end(tmp_path: Path) -> None:
    """As a power cut leaves it."""
    crashed(tmp_path)
    [path] = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 7)
    events = EventFile(tmp_path, 5, [row(5, 2.5)])
    events.add(row(6, 3.0))
    events.close()
    assert shown(tmp_path)["train/loss"] == [(step, step / 2) for step in range(1, 7)]


def test_every_row_can_be_read_at_once(tmp_path: Path) -> None:
    events = EventFile(tmp_path, 0)
    for step in range(1, 4):
        events.add(row(step, float(step)))
        assert shown(tmp_path)["train/loss"][-1] == (step, float(step))
    events.close()
