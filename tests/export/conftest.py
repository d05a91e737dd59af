"""Networks and a run that tests of the exports only read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from tests.export.written import saved, trained


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[nn.Module, Path]]:
    """A trained network and its file; made once for each architecture."""
    made: dict[tuple[str, int | None], tuple[nn.Module, Path]] = {}
    folder = tmp_path_factory.mktemp("weights")

    def get(arch: str, classes: int | None = None) -> tuple[nn.Module, Path]:
        if (arch, classes) not in made:
            network = trained(arch, classes)
            path = saved(network, folder / f"{arch}_{classes}.pt", classes is not None)
            if classes is None:
                setattr(network, "fc" if hasattr(network, "fc") else "classifier", nn.Identity())
            made[arch, classes] = network, path
        return made[arch, classes]

    return get
