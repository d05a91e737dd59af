"""The page: one file that needs nothing else, says what is missing and opens in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgd_ssl.report.channels import read_assignments
from mgd_ssl.run.checkpoint import read_checkpoint
from mgd_ssl.run.read import read_runs
from tests.report.reports import Cells, Make, report

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
    for kind in ("mgd", "moco"):
        folder = copied(kind, kind)
        weight = json.loads((folder / "config.json").read_text())["config"]["mgd"]["weight"] if kind == "mgd" else 0.0
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
