"""requirements-lock.txt has a version of everything that is asked for, within what is asked for."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
APART = {"trackio"}  # extras that cannot be installed beside the tested versions of the rest
TESTED = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11", "extra": ""}


def requirements(lines: list[str]) -> list[Requirement]:
    bare = [line.partition(" #")[0].strip() for line in lines]
    return [Requirement(line) for line in bare if line and not line.startswith(("#", "-"))]


def asked_for() -> list[Requirement]:
    extras: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return requirements([*lines, *(line for name in extras.keys() - APART for line in extras[name])])


def test_the_lock_satisfies_what_is_asked_for() -> None:
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    locked = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements(lines)}
    for wanted in asked_for():
        if wanted.marker is None or wanted.marker.evaluate(TESTED):
            version = locked.get(canonicalize_name(wanted.name))
            assert version is not None, f"{wanted.name} is not in the lock: make lock"
            assert wanted.specifier.contains(version), f"{wanted} is not met by {version}: make lock"


def test_every_extra_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    for extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]:
        assert f"| `{extra}` |" in page, f"docs/install.md does not tell of the extra {extra}"
