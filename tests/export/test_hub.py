"""A folder goes up to a hub as it is, or one sentence says why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.stand_in_hub import stand_in_hub

CODE = """
import sys
from mgd_ssl.errors import exit_code
from mgd_ssl.export.hub import push
from pathlib import Path
sys.exit(exit_code(lambda: print(push(Path(sys.argv[1]), "me/it", "a student"))))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\n# It\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


def pushed(folder: Path, address: str, token: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "home")}
    words = [sys.executable, "-c", CODE, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, **own})


def test_the_files_arrive_as_they_are(folder: Path) -> None:
    with stand_in_hub("hf_secret") as hub:
        answer = pushed(folder, hub.address, "hf_secret")
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip() == f"{hub.address}/me/it"
        assert hub.created == ["me/it"] and hub.message == "a student"
        assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refusal_is_one_sentence(folder: Path) -> None:
    with stand_in_hub("hf_secret") as hub:
        answer = pushed(folder, hub.address, "hf_wrong")
    assert answer.returncode == 2 and not hub.files
    assert answer.stderr.startswith(f"mgd-ssl: me/it could not be uploaded to {hub.address} (")
    assert "hf auth login" in answer.stderr and len(answer.stderr.splitlines()) == 1
