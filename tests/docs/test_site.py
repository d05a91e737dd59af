"""The site is built without a warning, holds every page and every public name, and fetches nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mgd_ssl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dead links and anchors, pages without a place and unknown names are warnings, which `--strict` forbids."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return out


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]}
    assert {"install", "algorithm", "api"} < pages
    assert pages | {"CONTRIBUTING", "CHANGELOG"} <= {path.parent.name for path in site.glob("*/index.html")}
    assert "Matching Guided Distillation" in (site / "index.html").read_text()


def test_the_reference_has_every_public_name(site: Path) -> None:
    anchors = set(re.findall(r'id="(mgd_ssl\.\w+)"', (site / "api" / "index.html").read_text()))
    assert anchors == {f"mgd_ssl.{name}" for name in mgd_ssl.__all__}


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in [site / "index.html", site / "api" / "index.html"]:
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)', page.read_text())
        assert not fetched, f"{page}: {fetched}"
