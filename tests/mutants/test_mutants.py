"""The faults have their places, and the runner tells a fault that is noticed from one that is not."""

from pathlib import Path

import pytest

from tests.mutants.fault import Fault
from tests.mutants.faults import FAULTS
from tests.mutants.trial import ROOT, NotFound, spans, tried, with_fault

QUICK = ("EMA factor of the GPU path", "warm-up from zero", "linear: top-5 is top-6", "stretch: momentum forgotten")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_has_one_place(fault: Fault) -> None:
    path, source = with_fault(ROOT, fault)
    assert source != path.read_text()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_tests_of_a_fault_are_there(fault: Fault) -> None:
    paths = [word for word in fault.tests if word.startswith("tests/")]
    assert paths and all((ROOT / path.partition("::")[0]).exists() for path in paths)


def test_names_are_told_apart() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 75
    assert all(fault.old != fault.new for fault in FAULTS)


@pytest.mark.parametrize("name", QUICK)
def test_quick_faults_are_noticed(name: str) -> None:
    [fault] = [fault for fault in FAULTS if fault.name == name]
    assert tried(fault, fault.tests) == "killed"


def test_what_changes_nothing_survives() -> None:
    harmless = Fault("", "0.5 * (1 + math", "1 * 0.5 * (1 + math", ("tests/training/test_schedule.py",), "WarmupCosine")
    assert tried(harmless, harmless.tests) == "survived"


def test_tests_that_are_not_there_are_no_success() -> None:
    assert tried(None, ("tests/training/test_schedule.py", "-k", "nowhere")) == "broken"


def sources(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / "moco").mkdir(exist_ok=True)
        (root / "moco" / f"{name}.py").write_text(text)
    return root


def test_a_text_must_be_found_exactly_once(tmp_path: Path) -> None:
    root = sources(tmp_path, a="x = 1\n", b="def f():\n    x = 1\n\ndef g():\n    x = 1\n")
    with pytest.raises(NotFound, match=r"'x = 1' is found 3 times \(moco/a.py, moco/b.py, moco/b.py\)"):
        with_fault(root, Fault("twice", "x = 1", "x = 2", ()))
    with pytest.raises(NotFound, match=r"found 0 times \(nowhere\)"):
        with_fault(root, Fault("gone", "y = 1", "y = 2", ()))
    changed = "def f():\n    x = 1\n\ndef g():\n    x = 2\n"
    assert with_fault(root, Fault("one", "x = 1", "x = 2", (), "g")) == (root / "moco" / "b.py", changed)


def test_dotted_names_are_found_in_any_file() -> None:
    source = "class A:\n    def f(self):\n        pass\n\n\nclass B:\n    def f(self):\n        return 1\n"
    [(start, end)] = spans(source, "B.f")
    assert source[start:end] == "    def f(self):\n        return 1\n"
    assert spans(source, "C.f") == [] and len(spans(source, "f")) == 2
