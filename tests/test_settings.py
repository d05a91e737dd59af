"""Every setting reaches what it sets: seen in real runs, not in the objects that are handed around.

A setting without a case fails `test_settings_and_cases_are_the_same`: add a function named after it to
tests/setting_cases.
"""

from pathlib import Path

import pytest

from mgd_ssl.config import PretrainConfig
from mgd_ssl.settings import Settings
from tests.setting_cases import load
from tests.setting_cases.runs import CASES, Runs
from tests.term_cases import CASES as TERM_CASES
from tests.term_cases import TermRuns, term_runs

load()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("settings"), image_folder)


def leaves(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        is_group = isinstance(info.annotation, type) and issubclass(info.annotation, Settings)
        found += leaves(info.annotation, f"{prefix}{name}.") if is_group else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found


@pytest.fixture(scope="module")
def by_terms(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, run: Runs) -> TermRuns:
    checkpoint = max((run.teacher.parent / "checkpoints").glob("*.pt"))
    return term_runs(tmp_path_factory.mktemp("terms"), image_folder, checkpoint)


@pytest.mark.parametrize("key", TERM_CASES)
def test_setting_of_a_term_reaches_what_it_sets(key: str, by_terms: TermRuns) -> None:
    TERM_CASES[key](by_terms)


def test_settings_and_cases_are_the_same() -> None:
    assert sorted([*CASES, *TERM_CASES]) == sorted(leaves(PretrainConfig)), "add a case for every new setting"


@pytest.mark.parametrize("key", CASES)
def test_setting_reaches_what_it_sets(key: str, run: Runs) -> None:
    CASES[key](run)
