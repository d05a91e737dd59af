"""The report: numbers equal to the files they come from, published ones apart, one file that needs nothing else."""

import dataclasses
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mgd_ssl import cli
from mgd_ssl.command_line import parse
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.pack import pack
from mgd_ssl.errors import UserError
from mgd_ssl.printable import cell
from mgd_ssl.report import figures, matching_figures, page, published
from mgd_ssl.report.channels import binned, read_assignments
from mgd_ssl.report.figures import POINTS, Picture, thinned
from mgd_ssl.report.page import write_report
from mgd_ssl.report.pictures import principal_components
from mgd_ssl.report.side_by_side import differing
from mgd_ssl.report.sizes import savings, size_of
from mgd_ssl.report.tables import Row, full_frame, rows
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.checkpoint import read_checkpoint
from mgd_ssl.run.read import read_runs
from mgd_ssl.run.result import Evaluation
from mgd_ssl.tasks.student import pretrain
from tests.linear_eval.conftest import BASE, write_protocol

Make = Callable[..., Path]


@pytest.fixture(scope="module")
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


def evaluate(folder: Path, kind: str, name: str, values: dict[str, list[float]], arch: str = "thin_resnet10") -> None:
    Evaluation(kind, name, f"protocol {name}", str(folder / "encoder.pt"), arch, values).save(folder)


def report(runs: list[Path], folder: Path) -> tuple[str, pd.DataFrame]:
    """HTML and CSV of a report."""
    page, csv, markdown = write_report(runs, folder / "out" / "report.html")
    assert [page.name, csv.name, markdown.name] == ["report.html", "report_table.csv", "report_table.md"]
    return page.read_text(), pd.read_csv(csv, keep_default_na=False, na_values={"top1_deviation": "", "top1": ""})


def table(runs: list[Path]) -> pd.DataFrame:
    """The table alone."""
    return full_frame(rows(read_runs(runs)))


class Cells(HTMLParser):
    """Text of the cells of every table row, and all tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def last_knn(folder: Path) -> dict[str, Any]:
    """The newest k-NN row, read without the report's help."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"knn"' in line][-1]


# numbers


def test_the_table_holds_the_numbers_of_the_files(trained: Path, copied: Make, tmp_path: Path) -> None:
    moco, mgd = copied("moco", "moco"), copied("mgd", "mgd")
    evaluate(mgd, "linear", "probe", {"top1": [61.26], "top5": [91.0]})
    page, csv = report([trained / "teacher", moco, mgd], tmp_path)
    shown = Cells(page).rows

    for folder in (trained / "teacher", moco, mgd):
        row, expected = csv[(csv["runs"] == folder.name) & (csv["evaluation"] == "k-NN")].iloc[-1], last_knn(folder)
        assert (row["top1"], row["top5"]) == pytest.approx((expected["top1"], expected["top5"]))
        assert row["protocol"] == expected["protocol"]
        assert expected["protocol"] in page
        cells = next(
            r for r in shown if len(r) == 10 and r[7] == folder.name and r[9] == "metrics.jsonl" and r[1] != "random"
        )
        assert cells[4:6] == [f"{expected['top1']:.1f}", f"{expected['top5']:.1f}"]
    random = csv[(csv["method"] == "random") & (csv["model"] == "thin_resnet10")]
    assert random["top1"].tolist() == [last_knn(moco)["random_top1"]]
    linear = csv[csv["evaluation"] == "linear evaluation"].iloc[0]
    assert (linear["top1"], linear["method"], linear["teacher"]) == (61.26, "MoCo v2 + MGD", "thin_resnet14")
    assert linear["source"] == "evaluation_linear_probe.json"
    assert set(csv["origin"]) == {"measured"}
    markdown = (tmp_path / "out" / "report_table.md").read_text().splitlines()
    assert len(markdown) == len(csv) + 2
    assert any("| protocol probe | 61.3 | 91.0 |" in line for line in markdown)


def test_a_teacher_that_is_no_run_of_the_report_has_a_row(trained: Path, tmp_path: Path) -> None:
    csv = table([trained / "mgd"])
    teacher = csv[csv["method"] == "teacher"].iloc[0]
    assert (teacher["model"], teacher["top1"]) == ("thin_resnet14", last_knn(trained / "mgd")["teacher_top1"])
    csv = table([trained / "mgd", trained / "teacher"])
    assert "teacher" not in set(csv["method"])


def test_mean_and_deviation_over_seeds(copied: Make, tmp_path: Path) -> None:
    values = [50.0, 53.0, 57.5]
    runs = [copied("moco", f"seed{seed}", top1=value, seed=seed) for seed, value in enumerate(values)]
    probes = np.array([[60.0, 61.0], [62.0, 64.0], [63.0, 63.5]])
    for folder, probe in zip(runs, probes, strict=True):
        evaluate(folder, "linear", "probe", {"top1": probe.tolist()})
    page, csv = report(runs, tmp_path)
    knn = csv[(csv["evaluation"] == "k-NN") & (csv["method"] == "MoCo v2")]
    assert len(knn) == 1
    assert knn["top1"].item() == pytest.approx(np.mean(values))
    assert knn["top1_deviation"].item() == pytest.approx(np.std(values, ddof=1))
    assert knn["over"].item() == "3 runs"
    linear = csv[csv["evaluation"] == "linear evaluation"]
    assert linear["top1"].item() == pytest.approx(probes.mean())
    assert linear["top1_deviation"].item() == pytest.approx(probes.mean(axis=1).std(ddof=1))
    assert linear["over"].item() == "3 runs × 2 values"
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in (tmp_path / "out/report_table.md").read_text()
    assert any(row[4:5] == [f"{np.mean(values):.1f}± {np.std(values, ddof=1):.1f}"] for row in Cells(page).rows)


def test_mean_and_deviation_of_one_evaluation(copied: Make, tmp_path: Path) -> None:
    run, values = copied("moco", "moco"), [40.0, 41.5, 44.0, 40.5]
    evaluate(run, "linear", "probe", {"top1": values, "top5": values})
    csv = table([run])
    row = csv[csv["evaluation"] == "linear evaluation"].iloc[0]
    assert row["top1"] == pytest.approx(np.mean(values))
    assert row["top1_deviation"] == pytest.approx(np.std(values, ddof=1))


def test_seeds_of_the_linear_command_are_shown_with_their_protocol(
    copied: Make, image_folder: Path, tmp_path: Path
) -> None:
    """Both commands on a run's folder, against the files the first one leaves there."""
    run, protocol = copied("mgd", "student"), write_protocol(tmp_path / "small.toml", BASE)
    flags = ["--checkpoint", run, "--data", image_folder, "--protocol", protocol, "--seeds", 0, 2, 4]
    flags += ["--workers", 0, "--runtime.device", "cpu", "--runtime.threads", 1]
    assert cli.main(["linear", *map(str, flags)]) == 0
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0

    results = [json.loads((run / f"linear_small_seed{seed}" / "result.json").read_text()) for seed in (0, 2, 4)]
    assert len({result["top1"] for result in results}) > 1  # else the deviation says nothing
    mean, deviation = (statistic([result["top1"] for result in results]) for statistic in (fmean, stdev))
    csv = pd.read_csv(tmp_path / "report_table.csv")
    row = csv[csv["evaluation"] == "linear evaluation"].iloc[0]
    assert (row["top1"], row["top1_deviation"]) == pytest.approx((mean, deviation))
    assert row["over"] == "1 run × 3 values"
    protocol_string = Evaluation.load(run / "evaluation_linear_small.json").protocol
    assert row["protocol"] == protocol_string
    assert "linear small v1; " in protocol_string and protocol_string.endswith("seeds 0 2 4")
    page = (tmp_path / "report.html").read_text()
    cells = next(row for row in Cells(page).rows if "evaluation_linear_small.json" in row)
    assert f"{mean:.1f}± {deviation:.1f}" in cells
    assert protocol_string in html.unescape(page)
    assert f"{mean:.1f} ± {deviation:.1f}" in (tmp_path / "report_table.md").read_text()


def test_seeds_may_have_teachers_of_their_own(trained: Path, copied: Make, tmp_path: Path) -> None:
    """Students are seeds of one thing when their teachers are."""
    teacher = copied("teacher", "teacher1", seed=1)
    (teacher / "encoder.pt").write_bytes((trained / "moco" / "encoder.pt").read_bytes())
    student = copied("mgd", "mgd1", seed=1)
    saved = json.loads((student / "config.json").read_text())
    saved["teacher"]["sha256"] = read_runs([teacher])[0].encoder_hash
    (student / "config.json").write_text(json.dumps(saved))
    csv = table([trained / "teacher", trained / "mgd", student, teacher])
    assert csv[csv["method"] == "MoCo v2 + MGD"]["over"].tolist() == ["2 runs"]
    csv = table([trained / "mgd", student])
    assert csv[csv["method"] == "MoCo v2 + MGD"]["over"].tolist() == ["1 run", "1 run"]


@pytest.mark.parametrize(
    "change", [{"optim__lr": 0.01, "seed": 1}, {"seed": 0}, {"seed": 1, "finished": False}, {"mgd__weight": 1e-3}]
)
def test_what_differs_in_more_than_the_seed_is_not_averaged(
    trained: Path, copied: Make, tmp_path: Path, change: dict[str, Any]
) -> None:
    csv = table([trained / "mgd", copied("mgd", "other", **change)])
    assert csv[csv["method"] == "MoCo v2 + MGD"]["runs"].tolist() == ["mgd", "other"]


# published numbers


# the MD5 sums of the official files; MoCo's README gives their first eight digits, 59fd9945 and a04e12f8
MOCO_200 = "59fd9945645e27d585be89338ce9232e"
MOCO_800 = "a04e12f8b0e44fdcac1fb4e06f33727b"


def published_run(
    folder: Path,
    config: str,
    images: int = 1_281_167,
    teacher: str = "resnet50",
    md5: str | None = MOCO_200,
    processes: int = 8,
    **changes: Any,
) -> Path:
    """A run folder that says it follows a packaged recipe."""
    settings = parse(PretrainConfig, ["--config", config, "--out", "run", "--data.train", "photos"], "").model_dump(
        mode="json"
    )
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        (settings[group] if group else settings)[name] = value
    guided = settings["teacher_arch"] is not None
    row = {"kind": "train", "step": 9, "epoch": 0.1, "loss": 5.0, "contrastive": 5.0, "mgd": 0.0,
           "accuracy": 0.1, "lr": 0.03, "images_per_second": 99.0, "data_wait": 0.1}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    saved = {
        "config": {**settings, "out": str(folder)},
        "data": {"num_images": images, "fingerprint": "f" * 64},
        "teacher": {"arch": teacher, "sha256": "0" * 64, "prefix": "", "md5": md5} if guided else None,
        "environment": {"torch": "2", "processes": processes},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize(
    ("config", "top1", "top5"),
    [
        ("imagenet_r18_moco", 52.5, 77.0),
        ("imagenet_r34_moco", 57.2, 81.5),
        ("imagenet_r50_r18_mgd", 53.6, 78.7),
        ("imagenet_r50_r34_mgd", 58.5, 82.7),
    ],
)
def test_published_numbers_stand_apart(tmp_path: Path, config: str, top1: float, top5: float) -> None:
    run = published_run(tmp_path / "run", config, optim__lr_schedule="epoch", mgd__margin="initial")
    evaluate(run, "linear", "moco", {"top1": [50.0], "top5": [75.0]}, arch=config.split("_")[-2].replace("r", "resnet"))
    page, csv = report([run], tmp_path)
    row = csv[csv["origin"] == "published"].iloc[0]
    assert (row["top1"], row["top5"]) == (top1, top5)
    assert row["source"].startswith("https://github.com/kaiyuyue/mgd")
    assert csv[csv["origin"] == "measured"]["top1"].tolist() == [50.0]
    assert csv["origin"].tolist() == ["measured", "published"]
    cells = next(row for row in Cells(page).rows if f"{top1}" in row)
    assert "published, not measured here" in cells[-1]
    assert ("its recipe is not published in full" in cells[-1]) == config.endswith("moco")
    assert "Published for the same recipe" in page


@pytest.mark.parametrize(
    ("config", "change", "why"),
    [
        ("imagenet_r18_moco", {"optim__epochs": 100}, "optim.epochs is 100, published with 200"),
        ("imagenet_r18_moco", {"optim__warmup_epochs": 5.0}, "optim.warmup_epochs is 5.0, published with 3.0"),
        ("imagenet_r18_moco", {"student": "resnet50"}, ""),
        ("imagenet_r18_moco", {"moco__queue_size": 4096}, "moco.queue_size is 4096"),
        ("imagenet_r18_moco", {"moco__head_width": 64}, "moco.head_width is 64, published with None"),
        ("imagenet_r18_moco", {"data__image_size": 112}, "data.image_size is 112"),
        ("imagenet_r18_moco", {"images": 100_000}, ""),
        ("imagenet_r18_moco", {"processes": 1}, "BatchNorm is not shuffled in one process"),
        ("imagenet_r18_moco", {"processes": None}, "number of processes is not recorded"),
        ("imagenet_r50_r18_mgd", {"teacher": "resnet101"}, "its teacher is a resnet101"),
        (
            "imagenet_r50_r18_mgd",
            {"md5": MOCO_800},
            "its teacher is MoCo v2's of 800 epochs, published with moco_v2_200ep",
        ),
        ("imagenet_r50_r34_mgd", {"md5": "0" * 32}, "its teacher is another file"),
        ("imagenet_r50_r34_mgd", {"md5": None}, "its teacher is not recorded by its MD5"),
        ("imagenet_r50_r18_mgd", {"mgd__weight": 1e-3}, "mgd.weight is 0.001, published with 0.0001"),
        ("imagenet_r50_r18_mgd", {"mgd__matching_epochs": [1]}, "mgd.matching_epochs is [1]"),
        ("imagenet_r50_r18_mgd", {"mgd__matching_epochs": []}, "mgd.matching_epochs is []"),
        ("imagenet_r50_r18_mgd", {"optim__lr": 0.06}, "optim.lr is 0.06, published with 0.03"),
    ],
)
def test_no_published_numbers_for_another_recipe(tmp_path: Path, config: str, change: dict[str, Any], why: str) -> None:
    run = published_run(tmp_path / "run", config, **change)
    assert "published" not in set(table([run])["origin"])
    told = published.notes(read_runs([run]))
    assert len(told) == (1 if why else 0) and all(why in note for note in told)


def test_one_process_with_split_norms_follows_the_recipe_and_the_page_says_why_others_do_not(tmp_path: Path) -> None:
    split = published_run(tmp_path / "split", "imagenet_r50_r18_mgd", processes=1, moco__bn_splits=8)
    other = published_run(tmp_path / "other", "imagenet_r50_r18_mgd", md5=MOCO_800)
    page, csv = report([split, other], tmp_path)
    assert csv[csv["origin"] == "published"]["runs"].tolist() == ["split"]
    assert "other has no published number beside it: its teacher is MoCo v2's of 800 epochs" in html.unescape(page)


def test_a_run_records_the_md5_of_its_teacher(trained: Path) -> None:
    saved = json.loads((trained / "mgd" / "config.json").read_text())["teacher"]
    assert saved["md5"] == hashlib.md5((trained / "teacher" / "encoder.pt").read_bytes()).hexdigest()


def test_the_unguided_recipe_does_not_ask_for_settings_of_the_matching(tmp_path: Path) -> None:
    csv = table([published_run(tmp_path / "run", "imagenet_r18_moco", mgd__weight=0.5)])
    assert set(csv["origin"]) == {"published"}


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


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_sizes_are_torchvisions(arch: str) -> None:
    """Its documented numbers are with the classifier, and in units of 10^9 multiply-adds."""
    meta = torchvision.models.get_model_weights(arch).DEFAULT.meta
    size = size_of(arch, 224)
    width = 512 if arch == "resnet18" else 2048
    assert size.parameters == meta["num_params"] - 1000 * (width + 1)
    assert (size.multiply_adds + 1000 * width) / 1e9 == pytest.approx(meta["_ops"], abs=2e-3)


def test_megabytes_are_those_of_the_file(trained: Path) -> None:
    assert size_of("thin_resnet10", 48).megabytes == pytest.approx(
        (trained / "mgd" / "encoder.pt").stat().st_size / 1e6, rel=0.03
    )
    [smaller] = savings(read_runs([trained / "mgd"]))
    assert smaller.startswith("thin_resnet10 has ") and smaller.endswith("of its teacher, thin_resnet14.")


# pictures


def figures_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], object]) -> list[Figure]:
    """The figures that `draw` makes, laid out and drawn."""
    found: list[Figure] = []

    def keep(figure: Figure, *words: Any, **options: Any) -> Picture:
        FigureCanvasAgg(figure).draw()
        found.append(figure)
        return Picture("data:", "")

    for module in (figures, matching_figures):
        monkeypatch.setattr(module, "picture", keep)
    draw()
    return found


def test_no_legend_is_cut(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["short", "W" * 60, "seed=0,mgd.weight=0.0001,data.crop_scale=0.2-1.0,optim.lr=0.03", *"abcd"]
    runs = read_runs([copied("mgd", name, seed=i) for i, name in enumerate(names)])
    drawn = figures_of(monkeypatch, lambda: (figures.curves(runs), matching_figures.matching_pictures(runs[0])))
    assert len(drawn) > 8
    for figure in drawn:
        [legend] = figure.legends
        box, whole = legend.get_window_extent(), figure.bbox
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
        axes = figure.axes[0].get_window_extent()
        assert box.y1 < axes.y0 and axes.height > 120  # it takes no room from the curves
    assert [line.get_text() for line in drawn[-1].legends[0].get_texts()] == [f"stage {i}" for i in (1, 2, 3, 4)]


def test_axes_fit_what_is_drawn(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_runs([copied("moco", "run")])
    knn = runs[0].rows("knn")
    for i, row in enumerate(knn):
        row |= {"top1": 30.0 + i, "random_top1": 28.0}
    [figure] = figures_of(monkeypatch, lambda: figures.knn_picture(runs, knn[0]["protocol"]))
    low, high = figure.axes[0].get_ylim()
    assert 25 < low < 28 and 30 + len(knn) - 1 < high < 40
    for extreme in (0.0, 100.0):
        knn[0]["top1"] = extreme
        [figure] = figures_of(monkeypatch, lambda: figures.knn_picture(runs, knn[0]["protocol"]))
        low, high = figure.axes[0].get_ylim()
        assert 0 <= low <= extreme <= high <= 100


def test_a_single_point_stands_on_the_axis_of_the_others(copied: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    [run] = read_runs([copied("mgd", "run")])
    protocol = run.rows("knn")[0]["protocol"]
    single = dataclasses.replace(run, metrics=[row for row in run.metrics if row["kind"] == "train"]
                                 + run.rows("knn")[:1] + run.rows("matching")[:1])  # fmt: skip
    knn, matching = figures_of(
        monkeypatch, lambda: (figures.knn_picture([single], protocol), matching_figures.matching_pictures(single))
    )
    low, high = knn.axes[0].get_xlim()
    assert low <= 0 and high == pytest.approx(2, abs=0.1)  # epochs
    assert [text.get_text() for text in knn.axes[0].texts] == [f"{run.rows('knn')[0]['top1']:.1f}"]
    bars = [cast(Rectangle, bar).get_height() for bar in matching.axes[0].patches]
    assert bars == [run.rows("matching")[0][f"stage{stage}_cost_after"] for stage in (1, 2, 3, 4)]


# the page


def test_the_page_needs_nothing_but_itself(trained: Path, tmp_path: Path) -> None:
    page, _ = report([trained / "moco", trained / "mgd"], tmp_path)
    tags = Cells(page).tags
    for tag, attributes in tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "data"):
            value = attributes.get(name) or "data:"
            assert value.startswith("data:") or (tag == "a" and value.startswith(("#", "https://github.com/")))
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) > 15
    assert all(image["alt"] for image in images)
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1 and "url(" not in style[0] and "@import" not in style[0]
    targets = {attributes.get("id") for _, attributes in tags}
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert all(str(link)[1:] in targets for link in links if str(link).startswith("#"))
    assert re.search(r"<title>[^<]*mgd[^<]*</title>", page)


def test_matching_costs_are_those_of_the_newest_update(trained: Path) -> None:
    with np.load(trained / "mgd" / "matching_costs.npz") as file:
        costs = {name: file[name] for name in file.files}
    assert costs.pop("epoch") == 1
    assert [cost.shape for cost in costs.values()] == [(16, 64), (32, 128), (64, 256), (128, 512)]
    assert {cost.dtype for cost in costs.values()} == {np.dtype(np.float16)}
    lines = (trained / "mgd" / "metrics.jsonl").read_text().splitlines()
    row = [json.loads(line) for line in lines if '"matching"' in line][-1]
    state = read_checkpoint(max((trained / "mgd" / "checkpoints").glob("*.pt")))["guide"]
    for i, cost in enumerate(costs.values(), start=1):
        assignment = state[f"terms.mgd.mgd.assignment{i}"].tolist()
        pairs = [cost[s, t] for s, feeding in enumerate(assignment) for t in feeding]
        assert np.mean(pairs, dtype=np.float64) == pytest.approx(row[f"stage{i}_cost_after"], abs=1e-3)


def test_losses_of_earlier_versions_are_those_of_this_one(copied: Make) -> None:
    """Once the distillation loss was logged before its weight, and as 0 where there was none."""
    for kind, weight in (("mgd", 1e-4), ("moco", 0.0)):
        folder = copied(kind, kind)
        [run] = read_runs([folder])
        now = [row for row in run.metrics if row["kind"] == "train"]
        assert [("mgd" in row) for row in now] == [kind == "mgd"] * len(now)
        then = [{k: v for k, v in row.items() if k != "mgd"} | {"distillation": row.get("mgd", 0.0) / (weight or 1)}
                for row in now]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in then))
        [run] = read_runs([folder])
        assert run.rows("train") == [pytest.approx(row) for row in now]


def test_assignments_are_those_of_the_newest_checkpoint(trained: Path) -> None:
    [run], notes = read_runs([trained / "mgd"]), list[str]()
    newest = max((trained / "mgd" / "checkpoints").glob("*.pt"))
    saved = torch.load(newest, weights_only=True)["guide"]
    found = read_assignments(run, notes)
    assert notes == [f"Assignments as of {newest.name}."] and sorted(found) == [1, 2, 3, 4]
    for stage, assignment in found.items():
        assert assignment.tolist() == saved[f"terms.mgd.mgd.assignment{stage}"].tolist()


def test_what_is_missing_is_said(copied: Make, tmp_path: Path) -> None:
    run = copied("mgd", "run", data__train=str(tmp_path / "gone"), knn__val=None)
    (run / "matching_costs.npz").unlink()
    shutil.rmtree(run / "checkpoints")
    page = html.unescape(report([run], tmp_path)[0])
    assert "kept no matching costs" in page
    assert "No checkpoint is left" in page
    assert f"No views of run: {tmp_path / 'gone'} is no longer there" in page
    assert "No embedding of run: it ran without labelled images" in page
    (run / "matching_costs.npz").write_bytes(b"PK\x03\x04 cut off")
    assert "matching_costs.npz is damaged" in report([run], tmp_path)[0]


def test_an_unfinished_run_says_so(copied: Make, tmp_path: Path) -> None:
    run = copied("mgd", "run", finished=False)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    cut = next(i for i, line in enumerate(lines) if '"train"' in line and '"step": 4' in line)
    (run / "metrics.jsonl").write_text("\n".join(lines[: cut + 1]) + "\n" + lines[cut + 1][:25])  # still being written
    page, csv = report([run], tmp_path)
    assert "unfinished, step 4 of 6" in page
    assert csv[csv["method"] == "MoCo v2 + MGD"]["state"].item() == "unfinished, step 4 of 6; k-NN at step 3"


def test_odd_names_are_escaped(copied: Make, tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>".replace("/", "|"), '_a&b "$x^$|\\', "名前\nline"]
    page, csv = report([copied("moco", name, seed=i) for i, name in enumerate(names)], tmp_path)
    assert "script" not in {tag for tag, _ in Cells(page).tags}
    assert html.escape(names[0], quote=False) in page
    assert csv[csv["method"] == "MoCo v2"]["runs"].item() == ", ".join(names)
    markdown = (tmp_path / "out" / "report_table.md").read_text().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown}) == 1


def test_runs_without_any_accuracy_or_finite_loss(copied: Make, tmp_path: Path) -> None:
    run = copied("mgd", "run", mgd__weight=0.0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "loss": float("nan")} if "loss" in row else row for row in rows if row["kind"] != "knn"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, csv = report([run], tmp_path)
    assert len(csv) == 0
    assert "hold neither k-NN rows" in page


def test_the_table_holds_no_formulas(copied: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    names = ["=HYPERLINK(A1)", "+1+1", "-2+3", "@SUM(1)", "-0.5", "a-b"]
    _, csv = report([copied("moco", name, optim__lr=0.01 * (i + 1)) for i, name in enumerate(names)], tmp_path)
    assert [name for name in csv["runs"] if name in names] == ["-0.5", "a-b"]
    assert set(csv[csv["method"] == "MoCo v2"]["runs"]) == {*(f"'{name}" for name in names[:4]), *names[4:]}
    assert csv["top1"].dtype == float
    for value in (-0.5, 3, None, "-0.5", "+1e-3", "-", ""):
        assert cell(value) is value
    assert (cell("\tx"), cell(" =x"), cell("\r1")) == ("'\tx", "' =x", "'\r1")


def test_names_do_not_act_on_a_terminal(
    copied: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    run = copied("moco", "a\x1b[2Jb")
    assert cli.main(["report", str(run), "--out", str(tmp_path / "c\x1b[31m.html")]) == 0
    assert cli.main(["runs", str(run)]) == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and r"a\x1b[2Jb" in told.out
    assert "\x1b" not in next(tmp_path.glob("c*.md")).read_text()


def test_runs_of_one_name_are_told_apart(trained: Path, copied: Make, tmp_path: Path) -> None:
    csv = table([trained / "mgd", copied("mgd", "mgd", seed=1), trained / "mgd"])
    assert csv[csv["method"] == "MoCo v2 + MGD"]["runs"].item() == f"{trained.name}/mgd, {tmp_path.name}/mgd"


def test_only_settings_that_differ_are_listed() -> None:
    columns = [{"a": 1, "b": {"c": 2, "d": [1, 2]}}, {"a": 1, "b": {"c": 3, "d": [1, 2]}, "e": None}]
    assert differing(columns) == [("b.c", ["2", "3"]), ("e", ["absent", "–"])]


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, _: folder / "nowhere", "is not a folder"),
        (lambda folder, _: folder, "holds no run"),
    ],
)
def test_no_run(trained: Path, tmp_path: Path, make: Callable[[Path, Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_report([trained / "moco", make(tmp_path, trained)], tmp_path / "out" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_runs_are_taken_as_by_the_runs_command(
    trained: Path, copied: Make, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `pack` and `linear` leave beside them is no run, and one that has not begun is left out."""
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("moco", "mgd"):
        shutil.copytree(trained / name, folder / name)
    pack(images=image_folder / "val", out=folder / "packed", workers=0)
    (folder / "linear_moco_seed0").mkdir()
    (folder / "linear_moco_seed0" / "config.json").write_text('{"config": {"protocol": {}, "seed": 0}}')
    (folder / "notes.txt").touch()
    assert [run.name for run in read_runs([folder])] == ["mgd", "moco"]
    assert [run.name for run in read_runs([folder / "moco", folder])] == ["moco", "mgd"]
    capsys.readouterr()
    assert cli.main(["runs", str(folder), "--json-lines"]) == 0
    assert [json.loads(line)["run"] for line in capsys.readouterr().out.splitlines()] == ["mgd", "moco"]

    shutil.copytree(trained / "moco", folder / "begun")
    (folder / "begun" / "metrics.jsonl").unlink()
    told: list[str] = []
    assert [run.name for run in read_runs([folder], told.append)] == ["mgd", "moco"]
    assert told == [f"{folder / 'begun'} holds a run without any measurement yet: it is left out"]
    with pytest.raises(UserError, match=r"begun holds a run without any measurement yet: wait"):
        read_runs([folder / "begun", folder])
    with pytest.raises(UserError, match=r"packed holds no run"):
        read_runs([folder / "packed"])


def damage(folder: Path, file: str, content: str) -> Path:
    (folder / file).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", "", "without any measurement yet"),
        ("metrics.jsonl", '{"kind": "train"}\n{"kind": "knn"}\n', "line 1 of .*metrics.jsonl is damaged"),
        ("metrics.jsonl", 'nonsense\n{"kind": "x", "step": 1}\n', "line 1 of .*metrics.jsonl is damaged"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("evaluation_linear_x.json", "{}", "evaluation_linear_x.json is no evaluation"),
        ("result.json", "", "result.json is damaged"),
        ("result.json", "{}", "result.json is damaged or no run's: remove it, the same command writes it anew"),
    ],
)
def test_damaged_runs(copied: Make, tmp_path: Path, file: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_report([damage(copied("moco", "run"), file, content)], tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/report.html", "cannot be written"),
        ("folder.html", "is a folder"),
        ("report.md", "ends in .html"),
        ("x" * 300 + ".html", "cannot be written"),
    ],
)
def test_an_out_that_cannot_be_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        write_report([trained / "moco"], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing_half_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_report([trained / "moco"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "render", lambda runs, table: "a page")
    out = tmp_path / "report.html"
    assert cli.main(["report", str(trained / "moco"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.is_file()
    assert cli.main(["report"]) == 2
    assert "no run is given" in capsys.readouterr().err


# small functions, against naive ones


def test_binned_matrices_are_means_of_blocks() -> None:
    matrix = np.random.default_rng(0).normal(size=(512, 1025)).astype(np.float32)
    small = binned(matrix)
    assert small.shape == (256, 512)
    ends = [1025 * i // 512 for i in range(513)]
    for row, column in ((0, 0), (3, 100), (255, 511)):
        block = matrix[2 * row : 2 * row + 2, ends[column] : ends[column + 1]]
        assert small[row, column] == pytest.approx(block.mean(), abs=1e-6)
    assert binned(matrix[:5, :7]).shape == (5, 7)


def test_thinned_curves_keep_their_mean() -> None:
    x, y = list(range(POINTS * 3)), np.random.default_rng(0).normal(size=POINTS * 3).tolist()
    few_x, few_y = thinned(x, y)
    assert len(few_x) == len(few_y) == POINTS
    assert few_y[1] == pytest.approx(np.mean(y[3:6]))
    assert thinned([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_principal_components_are_eigenvectors_of_the_covariance() -> None:
    values = np.random.default_rng(0).normal(size=(50, 6)) * [5, 1, 3, 1, 1, 1]
    points, shares = principal_components(values.astype(np.float32))
    eigenvalues = np.linalg.eigvalsh(np.cov(values.T))[::-1]
    assert points.var(axis=0, ddof=1) == pytest.approx(eigenvalues[:2], rel=1e-4)
    assert shares == pytest.approx(eigenvalues[:2] / eigenvalues.sum(), rel=1e-4)


# in a browser

PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  document.querySelectorAll("details").forEach(d => { d.open = true; });
  const sizes = [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width]);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = JSON.stringify({sizes, wide});
}, 0));</script>"""


def opened(page: Path, width: int, profile: Path) -> dict[str, Any]:
    """What `PROBE` finds in the page in a headless Chromium; nothing may be said on the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
             f"--window-size={width},1000", "--virtual-time-budget=10000", "--enable-logging=stderr",
             "--v=0"]  # fmt: skip
    command = ["chromium", *flags, "--dump-dom", f"file://{page}"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "CONSOLE" not in answer.stderr
    title = re.search(r"<title>(.*?)</title>", answer.stdout)
    assert title is not None
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


def test_the_page_opens_in_a_browser(trained: Path, copied: Make, tmp_path: Path) -> None:
    """Every picture has a size, and nothing sticks out on the right, in a wide and in a narrow window."""
    if shutil.which("chromium") is None:
        print("no `chromium` on this machine: the page was not opened in a browser", file=sys.stderr)
        pytest.skip("no chromium on this machine: apt-get install chromium")
    runs = [trained / "moco", trained / "mgd", copied("moco", "a_rather_long_name_of_a_run_" * 4, finished=False)]
    page, _ = report(runs, tmp_path)
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", PROBE + "</body>"))
    for width in (1280, 500):
        found = opened(probed, width, tmp_path / f"profile{width}")
        assert len(found["sizes"]) == page.count("<img ") > 15
        assert all(min(size) > 100 for size in found["sizes"])
        assert found["wide"] <= 0
