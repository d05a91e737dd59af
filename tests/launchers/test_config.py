"""Settings of the launchers, and the batch script made of them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.config import SlurmConfig, minutes
from launchers.launch import CONFIGS, evaluation, main, with_out
from launchers.slurm import batch_script
from launchers.sweep import read_sweep
from mgd_ssl.command_line import load_toml, parse
from mgd_ssl.errors import UserError


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90m", 90), ("72h", 4320), ("3d", 4320), ("15", 15), ("10:30", 11), ("1:30:00", 90), ("1-12", 2160),
        ("1-12:30", 2190), ("2-00:00:30", 2881),
    ],
)  # fmt: skip
def test_time_limits_read_as_slurm_reads_them(time: str, expected: int) -> None:
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "0", "soon", "1h30", "-5", "1:2:3:4"])
def test_what_is_no_time_limit_is_refused(time: str) -> None:
    with pytest.raises(ValueError, match=rf"time is '{time}': write 72h"):
        SlurmConfig(time=time)


def options(script: str) -> dict[str, str]:
    """The #SBATCH lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))


def test_every_option_reaches_sbatch(tmp_path: Path) -> None:
    words = {
        "partition": "p", "qos": "q", "account": "a", "constraint": "c", "exclude": "n3", "nodelist": "n[1-2]",
        "gres": "gpu:h100:8", "reservation": "r", "comment": "it is", "mail-user": "a@b.c", "mail-type": "END",
        "mem": "200G", "nodes": "2", "gpus-per-node": "8", "cpus-per-task": "12",
    }  # fmt: skip
    argv = [word for name, value in words.items() for word in (f"--{name}", value)]
    argv += ["--time", "3d", "--signal-delay", "77", "--name", "n", "--exclusive"]
    argv += ["--setup", "module load x", "--setup", "ulimit -n 9999", "--env", "A=1 2", "--env", "B=$HOME"]
    script = batch_script(parse(SlurmConfig, argv, "test"), "unused", tmp_path)
    found = {name: value.strip("'") for name, value in options(script).items()}
    expected = words | {"time": "4320", "signal": "USR2@77", "job-name": "n", "exclusive": "", "requeue": "",
                        "ntasks-per-node": "8"}  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    lines = script.splitlines()
    assert lines.index("set -e") < lines.index("module load x") < lines.index("ulimit -n 9999") < lines.index("set +e")
    assert "export A='1 2'" in lines and "export B='$HOME'" in lines
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in script
    assert any(line.startswith("srun ") and "--kill-on-bad-exit=1" in line for line in lines)


def test_the_setup_ends_the_job_when_a_line_of_it_fails(tmp_path: Path) -> None:
    script = batch_script(SlurmConfig(setup=("false",)), "name", tmp_path)
    before, _, _ = script.partition("# command")
    assert subprocess.run(["bash", "-c", f"{before}\nexit 0"], capture_output=True).returncode == 1


def test_options_not_given_are_not_passed_on(tmp_path: Path) -> None:
    assert options(batch_script(SlurmConfig(), "name", tmp_path)).keys() == {
        "error", "output", "open-mode", "wckey", "signal", "requeue", "time", "nodes", "ntasks-per-node", "job-name",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_config_files_are_valid_and_their_command_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_toml(SlurmConfig, path)
    assert config.gpus_per_node == 8 and config.nodes in (1, 4)
    comment = re.sub(r"\\\n#", " ", path.read_text())
    [line] = re.findall(r"mgd-ssl launch slurm (.*)", comment)
    assert main(["slurm", "--dry-run", *line.split()]) == 0
    assert options(capsys.readouterr().out)["nodes"] == str(config.nodes)


# the command behind the --

PRETRAIN = ["pretrain", "--data.train", "imagenet/train"]


def test_out_may_stand_on_either_side() -> None:
    assert with_out(PRETRAIN, Path("a/run"))[0] == [*PRETRAIN, "--out", "a/run"]
    assert with_out([*PRETRAIN, "--out", "run"], None) == ([*PRETRAIN, "--out", "run"], Path("run"))
    assert with_out([*PRETRAIN, "--out=run"], Path("run"))[1] == Path("run")
    with pytest.raises(UserError, match="--out is other before the -- and run after it"):
        with_out([*PRETRAIN, "--out", "run"], Path("other"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["slurm", "--out", "run"], "there is no command: write it after --"),
        (["slurm", "--out", "run", "pretrain", "--config", "tiny.toml"], "there is no command: write it after --"),
        (["slurm", "--then", "", "--out", "run", "--", *PRETRAIN], "--then is empty: choose linear or knn"),
        (["slurm", "--then", "knn '", "--out", "run", "--", *PRETRAIN], "No closing quotation.*: close the quotes"),
        (
            ["slurm", "--", "report", "run"],
            "no command 'report'.*choose pretrain, classify, detect, linear, knn, embed, bags$",
        ),
        (["slurm", "--", "pretrian"], "no command 'pretrian', did you mean 'pretrain'"),
        (["slrum", "--", "pretrain"], "no launcher 'slrum', did you mean 'slurm'"),
        (["local", "--", "pretrain", "--data.train", "x"], "out is not set"),
        (["slurm", "--out", "run", "--", "pretrain"], "data.train is not set"),
        (["slurm", "--out", "run", "--", "linear", "--checkpoint", "x.pt"], "data is not set"),
        (["slurm", "--then", "bench", "--out", "run", "--", *PRETRAIN], "--then has 'bench': choose linear or knn"),
        (["slurm", "--then", "knn", "--out", "run", "--", *PRETRAIN], "--then knn needs labelled images.*--data DIR"),
        (["slurm", "--array", "nowhere.toml", "--out", "runs", "--", *PRETRAIN], "nowhere.toml cannot be read"),
    ],
)
def test_a_wrong_line_is_refused_before_anything_is_made(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(argv)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    from mgd_ssl.config import PretrainConfig

    old = PretrainConfig(out=run, data={"train": "photos"}, seed=3).model_dump_json()
    (run / "config.json").write_text(f'{{"config": {old}}}')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000003.pt").touch()  # else it never began, and may take other settings
    with pytest.raises(UserError, match=r"holds a run with other settings \(seed: 3 -> 0\): restore them, or choose"):
        main(["slurm", "--out", str(run), "--", *PRETRAIN])
    assert {path.name for path in run.iterdir()} == {"config.json", "checkpoints"}


def test_an_evaluation_finds_its_images(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir(parents=True)
    run = tmp_path / "run"
    command = ["pretrain", "--out", str(run), "--data.train", str(tmp_path / "train")]
    expected = ["--checkpoint", str(run), "--out", str(run), "--data", str(tmp_path)]
    assert evaluation(["linear"], command, run) == ["linear", *expected]
    knn = [*command[:3], "--data.train", "x", "--knn.train", f"{tmp_path}/train", "--knn.val", f"{tmp_path}/val"]
    assert evaluation(["knn", "--k", "5"], knn, run) == ["knn", "--k", "5", *expected]
    assert evaluation(["knn", "--data", "elsewhere"], command, run)[-1] == str(run)


# sweeps


def test_every_combination_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('seed = [0, 1]\n[mgd]\nreducer = ["amp", "mean"]\n[data]\ncrop_scale = [[0.2, 1.0]]\n')
    assert [element.name for element in read_sweep(path)] == [
        f"seed={seed},mgd.reducer={reducer},data.crop_scale=0.2-1.0" for seed in (0, 1) for reducer in ("amp", "mean")
    ]
    flags = ["--seed", "1", "--mgd.reducer", "mean", "--data.crop-scale", "0.2", "1.0"]
    assert read_sweep(path)[-1].flags == flags
    path.write_text("[runtime]\nchannels_last = [true, false]\n")
    words = [element.flags for element in read_sweep(path)]
    assert words == [["--runtime.channels-last"], ["--runtime.no-channels-last"]]
    for flags in words:
        with_out([*PRETRAIN, "--out", "run", *flags], None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no setting"),
        ("seed = 3", "seed in .* is 3: write a list"),
        ("seed = []", r"seed in .* is \[\]: write a list"),
        ("seed = [1, 1]", "has a value twice"),
        ("seed = [1,", "is not valid TOML"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_sweep(path)


def test_an_array_needs_a_setting_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text("sede = [1, 2]\n")
    with pytest.raises(UserError, match=r"--sede is no option of mgd-ssl pretrain, did you mean --seed\?"):
        main(["slurm", "--array", str(path), "--out", str(tmp_path / "runs"), "--", *PRETRAIN])


def test_a_dry_run_shows_the_array_and_what_follows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # it needs no Slurm
    path, runs = tmp_path / "sweep.toml", tmp_path / "runs"
    path.write_text("seed = [0, 1]\n")
    words = ["slurm", "--dry-run", "--nodes", "2", "--nodelist", "n1,n2", "--array", str(path), "--out", str(runs)]
    assert main([*words, "--then", "knn --data images", "--", *PRETRAIN]) == 0
    first, second = map(options, capsys.readouterr().out.split("#!/bin/bash")[1:])
    assert first["error"] == f"{runs}/.array/jobs/%A_%a_0_log.err"
    assert (first["array"], first["nodes"], first["nodelist"]) == ("0-1%2", "2", "n1,n2")
    assert (second["array"], second["nodes"], second["dependency"]) == ("0-1%2", "1", "aftercorr:JOB")
    assert "nodelist" not in second and "dependency" not in first
    assert not runs.exists()


def test_the_script_runs_this_python(tmp_path: Path) -> None:
    assert f"{sys.executable} -u -m submitit.core._submit {tmp_path}" in batch_script(SlurmConfig(), "n", tmp_path)


def test_the_commands_in_the_docs_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "cluster.md"
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = re.findall(r"^    mgd-ssl launch (slurm .*)$", text, re.MULTILINE)
    assert len(lines) == 2
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    (tmp_path / "seeds.toml").write_text("seed = [0, 1, 2]\n")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line)
        assert main([words[0], "--dry-run", *words[1:]]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash") == 1 + 3 and printed.count("# mgd-ssl pretrain") == 1 + 3
