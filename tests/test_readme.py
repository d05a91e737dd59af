"""What the README and the config files show is true."""

import re
import shlex
from importlib import resources
from pathlib import Path

import pytest

from mgd_ssl import GuidedStudent
from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.command_line import parse
from mgd_ssl.commands import COMMANDS
from mgd_ssl.config import PretrainConfig
from mgd_ssl.settings import keys_of
from mgd_ssl.tasks.detection.config import DetectConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RUNS: dict[str, type[PretrainConfig | ClassifyConfig | DetectConfig]] = {
    "pretrain": PretrainConfig,
    "classify": ClassifyConfig,
    "detect": DetectConfig,
}
CONFIGS = sorted((ROOT / "mgd_ssl" / "configs").glob("*.toml"))


def test_python_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        network = names["network"]
        assert isinstance(network, GuidedStudent)
        missing = [name for name, p in network.named_parameters() if p.grad is None]
        assert not missing


def commands(text: str) -> list[list[str]]:
    """Every `mgd-ssl pretrain`, `classify` and `detect` line of a config, continued lines joined."""
    joined = re.sub(r"\\\n[ #]*", " ", text)
    lines = re.findall(r"^[ #$]*mgd-ssl ((?:pretrain|classify|detect) --config .*)", joined, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "docs" / "reproduce.md", *CONFIGS], ids=lambda path: path.name
)
def test_commands_are_accepted(path: Path) -> None:
    found = commands(path.read_text())
    assert found
    for command, *args in found:
        config = parse(RUNS[command], args, f"mgd-ssl {command}")
        assert config.out.parent == Path("runs")
        if path in CONFIGS:
            assert args[1] == path.stem
        if command == "pretrain":
            assert isinstance(config, PretrainConfig) and config.optim.epochs in (130, 200)


def test_links_lead_to_files() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_flags_in_the_docs_exist() -> None:
    keys = [key for model in RUNS.values() for key in keys_of(model)]
    known = {f"--{key.replace('_', '-')}" for key in keys}
    groups = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *CONFIGS]:
        for flag in re.findall(rf"(?<![\w-])--(?:{groups})\.[\w-]+", page.read_text()):
            assert flag.replace(".no-", ".") in known, f"{page.name}: {flag}"  # a switch can be off too


def test_configs_are_part_of_the_package() -> None:
    packaged = {entry.name for entry in (resources.files("mgd_ssl") / "configs").iterdir()}
    assert {path.name for path in CONFIGS} <= packaged


def test_every_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    from mgd_ssl.cli import main

    assert main([]) == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert command in overview
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"mgd-ssl {command}" in capsys.readouterr().out
