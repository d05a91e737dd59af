"""The notebook of the docs runs from its first cell to its last, and what it stores is small and says no paths."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "first_student.ipynb"
SMALL = {"PER_CLASS": "4", "TEACHER_EPOCHS, STUDENT_EPOCHS": "1, 1"}


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in SMALL.items():
        parameters.source, count = re.subn(rf"^{name} = [\d, ]+", f"{name} = {value}  ", parameters.source, flags=re.M)
        assert count == 1, f"{name} is no parameter"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    work = tmp_path / "first_student"
    printed = "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stdout")
    for name, words in (("teacher", "teacher"), ("alone", "student alone"), ("guided", "student with MGD")):
        rows = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
        top1 = [row["top1"] for row in rows if row["kind"] == "knn"][-1]
        assert re.search(rf"^{words} +{top1:.1f}$", printed, re.M), printed
    exported, encoder = load_file(work / "student.safetensors"), torch.load(work / "guided" / "encoder.pt")
    assert all(torch.equal(exported[name], value) for name, value in encoder.items())


def test_what_is_stored_is_small_and_says_no_paths() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 400_000
    assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text and '"stderr"' not in text
