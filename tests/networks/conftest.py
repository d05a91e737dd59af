"""A thin network that tests only read."""

import pytest

from mgd_ssl.networks.backbones import build_backbone
from tests.networks.saved import State, randomised


@pytest.fixture(scope="session")
def thin() -> State:
    """State dict of a trained thin_resnet10 with its classifier."""
    return randomised(build_backbone("thin_resnet10")).state_dict()
