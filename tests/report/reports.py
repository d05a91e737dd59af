"""Reports written and read back by tests: the page's cells, the table, published runs."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from mgd_ssl.command_line import parse
from mgd_ssl.config import PretrainConfig
from mgd_ssl.report.page import write_report
from mgd_ssl.report.tables import full_frame, rows
from mgd_ssl.run.read import read_runs
from mgd_ssl.run.result import Evaluation

Make = Callable[..., Path]


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


# published numbers


# the MD5 sums of the official files; MoCo's README gives their first eight digits, 59fd9945 and a04e12f8
MOCO_200 = "59fd9945645e27d585be89338ce9232e"


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
