"""A case for every setting of `pretrain`: what a run with an odd value of it was seen to do."""

from importlib import import_module

import pytest

FILES = ("beginning", "local", "method", "running")


def load() -> None:
    """Have every file here add its cases to the list in `runs`."""
    for name in FILES:
        pytest.register_assert_rewrite(f"{__name__}.{name}")
        import_module(f"{__name__}.{name}")
