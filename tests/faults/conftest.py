"""How long the faults are looked for."""

import os

import pytest


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many times the usual number of random cases a test tries: 1, or what `MGD_FAULTS` says."""
    return int(os.environ.get("MGD_FAULTS", "1"))
