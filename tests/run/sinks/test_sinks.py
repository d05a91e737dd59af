"""--log: what the services themselves say they got, and that none of them stops a run.

wandb and MLflow are the real ones, in their modes without a server. Trackio wants an older Pillow than the decoders are
tested with, so a stand-in with its signatures takes its place.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mgd_ssl import UserError
from mgd_ssl.config import PretrainConfig
from mgd_ssl.run.log import RunLog
from mgd_ssl.run.sinks.sink import numbers_of
from mgd_ssl.settings import SettingError

FIRST = {"loss": 2.5, "lr": 0.03, "protocol": "k=20", "cost": None}
SECOND = {"loss": 1.25, "lr": 0.02}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "some_run"
    run.mkdir()
    settings = {"seed": 3, "optim": {"lr": 0.03, "milestones": [1, 2]}}
    (run / "config.json").write_text(json.dumps({"config": settings}))
    return run


def two_parts(folder: Path, name: str) -> str:
    """A run that is stopped after a row and goes on; its name with the service."""
    known = []
    for first_step, row in ((0, FIRST), (4, SECOND)):
        num_bytes = (folder / "metrics.jsonl").stat().st_size if first_step else 0
        with RunLog(folder, 9, first_step, num_bytes, (name,)) as log:
            log.write("train", first_step + 4, row)
        known.append(json.loads((folder / "sinks.json").read_text())[name])
    assert known[0] == known[1]
    return str(known[0])


def test_mlflow(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'kept'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_id = two_parts(folder, "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]
    assert sorted(losses) == [(4, 2.5), (8, 1.25)]
    run = client.get_run(run_id)
    assert run.data.params == {"seed": "3", "optim.lr": "0.03", "optim.milestones": "[1, 2]"}
    assert set(run.data.metrics) == {"train/loss", "train/lr"}
    assert (run.info.run_name, run.info.status) == ("some_run", "FINISHED")


def test_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_id = two_parts(folder, "wandb")
    kept = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert kept
    content = b"".join(path.read_bytes() for path in kept)  # records in wandb's own format
    assert b"train/loss" in content and b"some_run" in content and b"optim.lr" in content
    assert b"2.5" in content and b"1.25" in content


class StandIn(ModuleType):
    """Keeps what Trackio would."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.kept: dict[str, list[tuple[int | None, dict[str, float]]]] = {}

    def init(
        self, project: str, name: str | None = None, config: dict[str, Any] | None = None,
        resume: str = "never", embed: bool = True,
    ) -> Any:  # fmt: skip
        assert (project, resume, embed) == ("mgd_ssl", "allow", False) and config and name
        rows = self.kept.setdefault(name, [])

        class Run:
            def log(self, metrics: dict[str, float], step: int | None = None) -> None:
                rows.append((step, metrics))

            def finish(self) -> None:
                rows.append((None, {}))

        return Run()


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.delitem(sys.modules, "mgd_ssl.run.sinks.trackio", raising=False)
    return module


def test_trackio(folder: Path, trackio: StandIn) -> None:
    name = two_parts(folder, "trackio")
    assert name.startswith("some_run-")
    ended: tuple[None, dict[str, float]] = (None, {})
    first, second = {"train/loss": 2.5, "train/lr": 0.03}, {"train/loss": 1.25, "train/lr": 0.02}
    assert trackio.kept == {name: [(4, first), ended, (8, second), ended]}


def test_a_sink_that_fails_is_told_of_once_and_left_alone(
    folder: Path, trackio: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Broken:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            asked.append(step)
            raise ConnectionError("the server\n went away")

    monkeypatch.setattr(trackio, "init", lambda **_: Broken())
    with RunLog(folder, 9, 0, 0, ("trackio",)) as log:
        for step in (1, 2, 3):
            log.write("train", step, SECOND)
    assert asked == [1]
    told = (folder / "log.txt").read_text()
    assert told.count("--log trackio does not take this run's numbers (ConnectionError: the server went away)") == 1
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_sink_that_does_not_open_stops_nothing(folder: Path, trackio: StandIn, monkeypatch: Any) -> None:
    def refused(**_: Any) -> None:
        raise PermissionError("not logged in")

    monkeypatch.setattr(trackio, "init", refused)
    with RunLog(folder, 9, 0, 0, ("trackio",)) as log:
        log.write("train", 1, SECOND)
    assert "PermissionError: not logged in" in (folder / "log.txt").read_text()
    assert not (folder / "sinks.json").exists()


def test_other_ranks_open_nothing(folder: Path, trackio: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgd_ssl.run.log.rank", lambda: 1)
    monkeypatch.setattr("mgd_ssl.run.runtime.rank", lambda: 1)
    with RunLog(folder, 9, 0, 0, ("trackio",)) as log:
        log.write("train", 1, SECOND)
    assert not trackio.kept


def test_a_missing_package_is_told_with_the_line_that_installs_it(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("mgd_ssl.run.sinks.sink.find_spec", lambda name: None)
    with pytest.raises(UserError) as error, RunLog(folder, 9, 0, 0, ("wandb",)):
        pass
    assert str(error.value) == "--log wandb needs wandb: pip install 'mgd_ssl[wandb]', or leave it out"


def test_names_that_are_none_are_refused() -> None:
    assert numbers_of({"kind": "knn", "step": 3, "top1": 5, "protocol": "x", "y": None}) == {"knn/top1": 5}
    for wrong in (("comet",), ("wandb", "wandb")):
        with pytest.raises(SettingError, match=r"^log"):
            PretrainConfig(out=Path("run"), data={"train": "photos"}, log=wrong)
