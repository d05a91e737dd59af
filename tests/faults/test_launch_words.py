"""Hostile words and folders in a launch: they reach the program as given, or no script."""

import os
import random
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launchers.config import SlurmConfig
from launchers.launch import main as launch
from launchers.slurm import batch_script
from mgd_ssl.errors import UserError
from tests.faults.sentences import CONTROL

# the words of a launcher

SRUN = """#!/bin/sh
printf '%s\\0' "$@" > "$CAUGHT/argv"
env -0 > "$CAUGHT/env"
"""


def word(generator: random.Random, hostile: bool) -> str:
    """A few characters that shells, sbatch or terminals care about, with a control character in it where hostile."""
    shell = " '\"`$\\&|;<>(){}[]*?!#~%=^-+,:@é名/." + string.ascii_letters + string.digits
    letters = [generator.choice(shell) for _ in range(generator.randint(1, 20))]
    if hostile:
        letters.insert(generator.randrange(len(letters) + 1), generator.choice(CONTROL))
    return "".join(letters)


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with an `srun` that notes what it was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    return folder


def executed(script: str, stub: Path) -> tuple[list[str], dict[str, str], str]:
    """argv and environment of srun in a batch script, and all that the script printed."""
    caught = stub.parent / "caught"
    caught.mkdir(exist_ok=True)
    env = {"PATH": f"{stub}:{os.environ['PATH']}", "CAUGHT": str(caught), "HOME": "/", "LC_ALL": "C.UTF-8"}
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, env=env).stderr == ""
    answer = subprocess.run(["bash"], input=script, capture_output=True, text=True, env=env, cwd=stub)
    argv = (caught / "argv").read_text().split("\0")[:-1]
    pairs = (entry.partition("=") for entry in (caught / "env").read_text().split("\0")[:-1])
    return argv, {name: value for name, _, value in pairs}, answer.stdout + answer.stderr


def test_the_batch_script_passes_exactly_the_given_words(rounds: int, stub: Path) -> None:
    names = ("comment", "partition", "account", "qos", "constraint", "mail_user", "gres", "reservation", "name", "mem")
    for case in range(25 * rounds):
        generator = random.Random(case)
        options: dict[str, Any] = {name: word(generator, False) for name in names if generator.random() < 0.7}
        value = word(generator, False)
        setup = f"export FROM_SETUP={shlex.quote(value)}"
        folder = Path("/") / word(generator, False).replace("%", "_").replace("\\", "_") / "jobs"
        config = SlurmConfig(env=(f"A={value}", f"B={value[::-1]}"), setup=(setup,), **options)
        script = batch_script(config, "name", folder)
        argv, env, printed = executed(script, stub)
        assert (env["A"], env["B"], env["FROM_SETUP"]) == (value, value[::-1], value), case
        assert argv[argv.index("--output") + 1] == f"{folder}/%j_%t_log.out", case
        assert argv[argv.index("--error") + 1] == f"{folder}/%j_%t_log.err", case
        assert argv[-5:] == [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)], case
        assert printed == "", case
        directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        found = {
            key.lstrip("-"): text for line in directives for key, _, text in [line.split(" ", 1)[1].partition("=")]
        }
        for name, text in options.items():
            key = {"name": "job-name"}.get(name, name.replace("_", "-"))
            assert shlex.split(found[key]) == [text], case


def test_words_with_control_characters_reach_no_script(rounds: int, tmp_path: Path) -> None:
    names = ("comment", "partition", "account", "qos", "constraint", "mail_user", "mail_type", "exclude", "nodelist",
             "gres", "reservation", "name", "mem", "env", "setup", "then", "out", "array")  # fmt: skip
    for case in range(100 * rounds):
        generator = random.Random(case)
        name, text = generator.choice(names), word(generator, True)
        value: Any = (f"A={text}",) if name == "env" else (text,) if name in ("setup", "then") else text
        with pytest.raises(ValueError, match=name):
            SlurmConfig(**{name: value})
        with pytest.raises(UserError, match="control characters"):
            batch_script(SlurmConfig(), "name", Path("/runs") / text)
        with pytest.raises(UserError, match="by --name"):
            batch_script(SlurmConfig(), text, Path("/runs"))
        with pytest.raises(UserError, match="the launcher got"):
            launch(["slurm", "--out", str(tmp_path / "x"), "--", "pretrain", "--data.train", text])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["echo 'x", "cat <<END", "true \\", "if true; then", 'echo "', "f() {", "$(", "`"])
def test_a_setup_line_cannot_swallow_the_rest_of_the_script(line: str) -> None:
    with pytest.raises(UserError, match="--setup"):
        batch_script(SlurmConfig(setup=("true", line)), "name", Path("/runs"))


def test_a_folder_whose_name_slurm_would_replace_is_refused() -> None:
    for name in ("a%j", "100%", "a\\b"):
        with pytest.raises(UserError, match="which Slurm replaces"):
            batch_script(SlurmConfig(), "name", Path("/runs") / name)


def test_a_working_folder_with_a_line_break_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a\ntouch gotcha #"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for out in ("run", "."):
        with pytest.raises(UserError, match=r"control characters|by --name"):
            launch(["slurm", "--dry-run", "--out", out, "--", "pretrain", "--data.train", "x"])
