"""The report's table: numbers equal to the files they come from, means over seeds, sizes."""

import html
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torchvision

from mgd_ssl import cli
from mgd_ssl.printable import cell
from mgd_ssl.report import page
from mgd_ssl.report.side_by_side import differing
from mgd_ssl.report.sizes import savings, size_of
from mgd_ssl.run.read import read_runs
from mgd_ssl.run.result import Evaluation
from tests.linear_eval.conftest import BASE, write_protocol
from tests.report.reports import Cells, Make, evaluate, report, table


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
