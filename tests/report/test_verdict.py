"""The verdict: what a difference may be owed to, and its interval over seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from mgd_ssl.report.tables import Row, rows
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.read import read_runs
from tests.report.reports import published_run

# the verdict


def verdict_table(folder: Path, guided: list[float], plain: list[float], **changes: Any) -> list[Row]:
    """The table of runs with these k-NN accuracies, a seed each."""
    folders = []
    for name, config, values in (("mgd", "imagenet_r50_r18_mgd", guided), ("moco", "imagenet_r18_moco", plain)):
        for seed, value in enumerate(values):
            run = published_run(folder / f"{name}{seed}", config, images=500, seed=seed, **changes)
            knn = {"kind": "knn", "step": 9, "top1": value, "top5": value, "random_top1": 5.0, "random_top5": 9.0,
                   "protocol": "k-NN p"}  # fmt: skip
            if name == "mgd":
                knn |= {"teacher_top1": 60.0, "teacher_top5": 80.0}
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(knn) + "\n")
            (run / "result.json").write_text('{"steps": 9}')
            folders.append(run)
    return rows(read_runs(folders))


def test_a_verdict_from_one_seed_leaves_chance_open(tmp_path: Path) -> None:
    [verdict] = verdicts(verdict_table(tmp_path, [29.7], [26.4]))
    assert verdict.startswith("resnet18 reaches 29.7 % top-1 (k-NN) with MGD (mgd0) and 26.4 % without (moco0): 3.3 ")
    assert "points more, but one seed on a side cannot tell that from chance: repeat both with other seeds" in verdict
    assert "a random encoder reaches 5.0 %" in verdict and "the teacher reaches 60.0 %" in verdict
    [worse] = verdicts(verdict_table(tmp_path / "worse", [20.0], [26.4, 26.6]))
    assert "6.5 points less, but one seed on a side" in worse


@pytest.mark.parametrize(
    ("guided", "plain", "words"),
    [
        ([30.0, 31.0, 32.0], [20.0, 21.0, 22.0], "so more than seeds explain"),
        ([30.0, 31.0, 32.0], [28.0, 31.0, 31.0], "so seeds alone may explain it"),
        ([20.0, 21.0, 22.0], [30.0, 31.0, 32.0], "10.0 points less"),
    ],
)
def test_a_verdict_over_seeds_has_welchs_interval(
    tmp_path: Path, guided: list[float], plain: list[float], words: str
) -> None:
    [verdict] = verdicts(verdict_table(tmp_path, guided, plain))
    interval = scipy.stats.ttest_ind(guided, plain, equal_var=False).confidence_interval(0.95)
    assert f"95 % interval {interval.low:.1f} to {interval.high:.1f} over 3 and 3 seeds" in verdict
    assert words in verdict


def test_a_verdict_names_what_else_differs(tmp_path: Path, trained: Path) -> None:
    table = verdict_table(tmp_path, [29.7], [26.4])
    [verdict] = verdicts(table)
    assert "too." not in verdict
    changed = json.loads((tmp_path / "moco0" / "config.json").read_text())
    changed["config"]["optim"]["lr"] = 0.5
    (tmp_path / "moco0" / "config.json").write_text(json.dumps(changed))
    [verdict] = verdicts(rows(read_runs([tmp_path / "mgd0", tmp_path / "moco0"])))
    assert verdict.endswith("They differ in optim.lr too.")
    for alone in ([tmp_path / "mgd0"], [tmp_path / "moco0"], [tmp_path / "mgd0", trained / "moco"]):
        [verdict] = verdicts(rows(read_runs(alone)))
        assert verdict.startswith("No verdict")
    (tmp_path / "mgd0" / "result.json").unlink()
    assert verdicts(rows(read_runs([tmp_path])))[0].startswith("No verdict")
