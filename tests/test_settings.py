"""Every setting reaches what it sets: seen in real runs, not in the objects that are handed around.

A setting without a case fails `test_settings_and_cases_are_the_same`: add a function named after it to
tests/setting_cases.
"""

from pathlib import Path

import pytest

from tests.setting_cases import load
from tests.setting_cases.runs import Runs, case
from tests.term_cases import CASES as TERM_CASES
from tests.term_cases import TermRuns, term_runs

load()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("settings"), image_folder)


@pytest.fixture(scope="module")
def by_terms(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, run: Runs) -> TermRuns:
    checkpoint = max((run.teacher.parent / "checkpoints").glob("*.pt"))
    return term_runs(tmp_path_factory.mktemp("terms"), image_folder, checkpoint)


@pytest.mark.parametrize("key", TERM_CASES)
def test_setting_of_a_term_reaches_what_it_sets(key: str, by_terms: TermRuns) -> None:
    TERM_CASES[key](by_terms)


def test_settings_and_cases_are_the_same() -> None:
    assert sorted([*case, *TERM_CASES]) == sorted(case.wanted()), "add a case for every new setting"


@pytest.mark.parametrize("key", case)
def test_setting_reaches_what_it_sets(key: str, run: Runs) -> None:
    case[key](run)
