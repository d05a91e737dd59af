"""A fault is put into a copy of the packages, and the tests that should notice are run against the copy."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.mutants.fault import Fault

ROOT = Path(__file__).parents[2]
PACKAGES = ("moco", "mgd_ssl", "linear_eval", "launchers")
COPIED = (*PACKAGES, "tests", "docs", "pyproject.toml", "README.md", "requirements.txt")
SECONDS = 300  # after which a trial counts as noticed: the fault made something hang

Outcome = Literal["killed", "survived", "broken"]


class NotFound(Exception):
    """The text of a fault is not in the sources exactly once."""


def places(root: Path, fault: Fault) -> list[tuple[Path, int]]:
    """Files and positions of the text a fault replaces."""
    found = []
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        source = path.read_text()
        if fault.old not in source:
            continue
        for start, end in spans(source, fault.inside):
            position = source.find(fault.old, start, end)
            while position >= 0:
                found.append((path, position))
                position = source.find(fault.old, position + 1, end)
    return found


def spans(source: str, inside: str) -> list[tuple[int, int]]:
    """Beginning and end of the classes or functions of a dotted name in a source; all of it for no name."""
    if not inside:
        return [(0, len(source))]
    nodes: list[ast.AST] = [ast.parse(source)]
    for name in inside.split("."):
        kinds = ast.ClassDef | ast.FunctionDef
        nodes = [child for node in nodes for child in ast.walk(node) if isinstance(child, kinds) and child.name == name]
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return [(starts[node.lineno - 1], starts[node.end_lineno]) for node in nodes]  # type: ignore[attr-defined]


def with_fault(root: Path, fault: Fault) -> tuple[Path, str]:
    """The file below a folder that has a fault, and what stands in it then.

    Raises:
        NotFound: unless the fault's text is there exactly once.
    """
    found = places(root, fault)
    if len(found) != 1:
        where = ", ".join(str(path.relative_to(root)) for path, _ in found) or "nowhere"
        raise NotFound(
            f"{fault.name}: {fault.old!r} is found {len(found)} times ({where}): name one place in faults.py"
        )
    [(path, position)] = found
    source = path.read_text()
    source = source[:position] + fault.new + source[position + len(fault.old) :]
    ast.parse(source)
    return path, source


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the packages and their tests."""
    with tempfile.TemporaryDirectory(prefix="mutant_") as folder:
        root = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, root / name)
        yield root


def tested(root: Path, tests: Sequence[str]) -> Outcome:
    """What the tests say of the packages below a folder."""
    own = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MGD_SSL_CORES": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={root}/temporary"]
    with subprocess.Popen(
        [*command, *tests], cwd=root, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return "killed"
    return {0: "survived", 1: "killed"}.get(code, "broken")  # type: ignore[return-value]


def tried(fault: Fault | None, tests: Sequence[str]) -> Outcome:
    """What the tests say of the packages with a fault; None: as they are."""
    with copied() as root:
        if fault is not None:
            path, source = with_fault(root, fault)
            path.write_text(source)
        return tested(root, tests)
