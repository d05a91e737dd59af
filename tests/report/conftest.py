"""Three short runs, trained once a process, and copies of them under other names."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mgd_ssl.tasks.student import pretrain
from tests.report.reports import Make


@pytest.fixture(scope="session")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three short runs: `teacher`, `moco` and `mgd`."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str, **settings: Any) -> None:
        base: dict[str, Any] = {
            "out": root / name,
            "student": "thin_resnet10",
            "data": {"train": image_folder / "train", "image_size": 48, "workers": 0},
            "moco": {"queue_size": 64, "dim": 16},
            "mgd": {"matching_images": 16, "matching_epochs": (1,)},
            "optim": {"epochs": 2, "batch_size": 16, "warmup_epochs": 1},
            "knn": {"train": image_folder / "train", "val": image_folder / "val", "k": 3, "every_epochs": 1},
            "runtime": {"log_every": 1, "threads": 1, "device": "cpu"},
        }
        pretrain(**{**base, **settings})

    run("teacher", student="thin_resnet14")
    run("moco")
    run("mgd", teacher=root / "teacher" / "encoder.pt")
    return root


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Make:
    """Copies a run under another name, with other settings, k-NN values, and perhaps not finished."""

    def copy(source: str, name: str, finished: bool = True, top1: float | None = None, **settings: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(trained / source, folder)
        saved = json.loads((folder / "config.json").read_text())
        for key, value in settings.items():
            group = saved["config"]
            *above, last = key.split("__")
            for part in above:
                group = group[part]
            group[last] = value
        (folder / "config.json").write_text(json.dumps(saved))
        if top1 is not None:
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            [row for row in rows if row["kind"] == "knn"][-1].update(top1=top1, top5=top1 + 1)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not finished:
            (folder / "result.json").unlink()
            (folder / "encoder.pt").unlink()
        return folder

    return copy
