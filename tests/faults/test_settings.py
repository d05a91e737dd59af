"""Settings, launcher words and files of runs as nobody should write them: a sentence or the right thing."""

import contextlib
import io
import json
import logging
import math
import os
import random
import shlex
import string
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import annotated_types
import pytest

from benchmarks.linear import BenchConfig as LinearBenchConfig
from launchers import runs as runs_command
from launchers.config import LocalConfig, SlurmConfig
from launchers.launch import main as launch
from launchers.slurm import batch_script
from launchers.sweep import read_sweep
from linear_eval.command import LinearConfig
from linear_eval.protocols import Protocol, load_protocol
from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.command_line import CONFIGS, load_toml
from mgd_ssl.commands.report import ReportConfig
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.config import PackConfig
from mgd_ssl.demo.config import DemoConfig
from mgd_ssl.errors import UserError, exit_code
from mgd_ssl.evaluation.config import KNNEvaluationConfig
from mgd_ssl.report.figures import curves
from mgd_ssl.report.matching_figures import matching_pictures
from mgd_ssl.report.sizes import size_rows
from mgd_ssl.report.tables import rows
from mgd_ssl.report.verdict import verdicts
from mgd_ssl.run.log import RunLog, logger
from mgd_ssl.run.read import read_runs
from mgd_ssl.settings import Settings

PROTOCOL = load_protocol("moco").model_dump()
MODELS: dict[type[Settings], dict[str, Any]] = {  # with what is required
    PretrainConfig: {"out": "run", "data": {"train": "photos"}},
    KNNEvaluationConfig: {"checkpoint": "run", "data": "photos"},
    LinearConfig: {"checkpoint": "run", "data": "photos"},
    PackConfig: {"images": "photos", "out": "shards"},
    **{model: {} for model in (BenchConfig, LinearBenchConfig, DemoConfig, ReportConfig, LocalConfig, SlurmConfig)},
    Protocol: PROTOCOL,
}  # fmt: skip
CONTROL = "\x00\x01\x07\x08\t\n\x0b\r\x1b\x7f\x85\x9b\u2028\u202e"
NASTY: list[Any] = [
    math.nan, math.inf, -math.inf, -1, 0, 1, 0.5, 1e308, 5e-324, 2**31, 2**63, -(2**63) - 1, 10**400, True, False, None,
    "", "x", "nan", "1e3", "\x00", "a\nb", "\x1b[31m", "é", "\ud800", "../..", "x" * 5000, [], [1], [0.2, 1.0],
    [1.0, 0.2], [math.nan] * 4, [0, 0, 0, 0], [-1, 1, 1, 1], [[1]], [1, 1], {}, {"a": 1}, b"bytes", ["a", "b"],
    [True, 1.0], [""],
]  # fmt: skip


def groups(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """`(dotted prefix, name, field)` of every setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from groups(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix, name, field


def made(model: type[Settings], key: str, value: Any) -> Settings:
    """The model with one setting changed, nested as a TOML file would have it."""
    values: dict[str, Any] = json.loads(json.dumps(MODELS[model]))
    *above, last = key.split(".")
    inner = values
    for part in above:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return model(**values)


def kinds(annotation: Any) -> set[Any]:
    """The types a setting may have, those inside lists too."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union, tuple, Annotated):
        return set().union(*(kinds(part) for part in typing.get_args(annotation) if part is not Ellipsis))
    return {annotation} if isinstance(annotation, type) else set()


ALL = [(model, prefix, name, field) for model in MODELS for prefix, name, field in groups(model)]
IDS = [f"{model.__name__}.{prefix}{name}" for model, prefix, name, _ in ALL]


def one_sentence(error: ValueError, key: str) -> None:
    text = str(error)
    assert text.startswith(key), text
    assert ": " in text and "\n" not in text and len(text) < 400, text


@pytest.mark.parametrize(("model", "prefix", "name", "field"), ALL, ids=IDS)
def test_every_setting_takes_any_value_or_says_why_not(
    model: type[Settings], prefix: str, name: str, field: Any
) -> None:
    key = f"{prefix}{name}"
    for value in NASTY:
        try:
            config = made(model, key, value)
        except ValueError as error:
            one_sentence(error, "" if model is Protocol else key)  # in a protocol, another setting may no longer fit
        else:
            json.dumps(config.model_dump(mode="json"), allow_nan=False)  # config.json can be written


@pytest.mark.parametrize(("model", "prefix", "name", "field"), ALL, ids=IDS)
def test_every_number_has_a_range(model: type[Settings], prefix: str, name: str, field: Any) -> None:
    """Not a number, infinities and what no machine holds are refused for every number, also inside lists."""
    numeric = kinds(field.annotation) & {int, float}
    if not numeric:
        return
    length = len([part for part in typing.get_args(field.annotation) if part is not Ellipsis])
    many = typing.get_origin(field.annotation) is tuple or any(
        typing.get_origin(part) is tuple for part in typing.get_args(field.annotation)
    )
    key = f"{prefix}{name}"
    for bad in (math.nan, math.inf, -math.inf, -(10**30), 10**400, True):
        value = [bad] * (length if typing.get_origin(field.annotation) is tuple and length > 1 else 1) if many else bad
        with pytest.raises(ValueError, match=name) as error:
            made(model, key, value)
        one_sentence(error.value, key)


@pytest.mark.parametrize(("model", "prefix", "name", "field"), ALL, ids=IDS)
def test_borders_belong_to_the_range(model: type[Settings], prefix: str, name: str, field: Any) -> None:
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            border, beyond = cast(Any, bound.ge), -1
        elif isinstance(bound, annotated_types.Le):
            border, beyond = cast(Any, bound.le), 1
        else:
            continue
        outside = border + beyond if int in kinds(field.annotation) else math.nextafter(border, beyond * math.inf)
        with pytest.raises(ValueError, match=name) as error:
            made(model, f"{prefix}{name}", outside)
        one_sentence(error.value, f"{prefix}{name} is ")
        if model is not Protocol:  # whose settings depend on one another
            made(model, f"{prefix}{name}", border)


@pytest.mark.parametrize(
    ("model", "key", "value", "said"),
    [
        (PretrainConfig, "data.crop_scale", [0.0, 1.0], "data.crop_scale is [0.0, 1.0]: give a smaller and a larger"),
        (PretrainConfig, "data.crop_scale", [0.2, 1.1], "data.crop_scale is [0.2, 1.1]: give a smaller and a larger"),
        (PretrainConfig, "data.crop_scale", [1.0, 0.2], "data.crop_scale is [1.0, 0.2]: give a smaller and a larger"),
        (PretrainConfig, "data.blur_sigma", [-0.1, 2.0], "data.blur_sigma is [-0.1, 2.0]: give a weaker"),
        (PretrainConfig, "data.blur_sigma", [2.0, 0.1], "data.blur_sigma is [2.0, 0.1]: give a weaker"),
        (PretrainConfig, "data.blur_sigma", [1.0, 1e9], "data.blur_sigma is [1.0, 1000000000.0]: give a weaker"),
        (PretrainConfig, "mgd.stage_weights", [1, 1, 1, -1], "mgd.stage_weights.3 is -1: set it to 0 or more"),
        (PretrainConfig, "mgd.stage_weights", [0, 0, 0, 0], "mgd.stage_weights is [0, 0, 0, 0]: give one"),
        (PretrainConfig, "mgd.matching_epochs", [0], "mgd.matching_epochs.0 is 0: set it to 1 or more"),
        (PretrainConfig, "mgd.matching_epochs", [3, 3], "mgd.matching_epochs is [3, 3]: give each value once"),
        (PretrainConfig, "optim.lr", True, "optim.lr is True: true and false are for switches"),
        (PretrainConfig, "teacher", "a\0b", r"teacher is 'a\x00b': take the zero character out"),
        (LinearConfig, "seeds", [1, 1], "seeds is [1, 1]: give each value once"),
        (LinearConfig, "seeds", [-1], "seeds.0 is -1: set it to 0 or more"),
        (KNNEvaluationConfig, "temperature", [0.07, 0.07000001], "temperature is [0.07, 0.07000001]: give values that"),
        (KNNEvaluationConfig, "k", [5, 5], "k is [5, 5]: give each value once"),
        (DemoConfig, "device", "gpu", "device is 'gpu': choose 'auto', 'cpu' or 'cuda'"),
        (PackConfig, "quality", 101, "quality is 101: set it to 100 or less"),
        (Protocol, "lrs", [0.0], "lrs.0 is 0.0: set it above 0"),
        (Protocol, "milestones", [60, 101], "milestones has 101: give epochs up to 100"),
        (SlurmConfig, "comment", "a\n#SBATCH --wrap=x", r"comment is 'a\n#SBATCH --wrap=x': take line breaks and"),
        (SlurmConfig, "env", ["A=\r"], r"env is 'A=\r': take line breaks"),
        (SlurmConfig, "env", ["UID=0"], "env is ['UID=0']: UID is set by the shell itself"),
        (SlurmConfig, "time", "soon", "time is 'soon': write 72h"),
    ],
)  # fmt: skip
def test_values_that_fit_no_range_have_their_own_sentence(
    model: type[Settings], key: str, value: Any, said: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its whole text is looked at
        made(model, key, value)
    assert str(error.value).startswith(said)


def refusal(work: Callable[[], object]) -> str:
    """The sentence of a UserError, empty where there was none."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


# TOML


def test_fuzzed_toml(rounds: int, tmp_path: Path) -> None:
    whole = (CONFIGS / "imagenet_r50_r18_mgd.toml").read_bytes()
    path = tmp_path / "run.toml"
    pieces = [b"[", b"]", b"{", b"}", b"=", b'"', b"'''", b"\n", b"\0", b"\xff", b"nan", b"-inf", b"9" * 30, b"1e999",
              b".", b"true", b"2020-01-01", b"[[data]]", b"\xef\xbb\xbf", b"\r", b"#", b"\\u0000",
              b"optim.lr = 1\n"]  # fmt: skip
    for case in range(150 * rounds):
        generator = random.Random(case)
        text = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            start = generator.randrange(len(text))
            end = start + generator.choice((0, 0, 1, 5, 200))
            text[start:end] = generator.choice(pieces) * generator.choice((1, 1, 1, 3))
        path.write_bytes(text)
        if told := refusal(lambda: load_toml(PretrainConfig, path)):
            assert told.startswith(str(path)) and len(told) < 600, case


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"seed = {'[' * 5000}{']' * 5000}", "is nested more than"),
        (f"{'a.' * 400}a = 1", "is nested more than"),
        (f"seed = {'9' * 5000}", "is not valid TOML"),
        (f"seed = {'9' * 4000}", "seed is 999"),
        ("optim.lr = nan", "optim.lr is nan: give a finite number"),
        ("[optim]\nlr = 2020-01-01", "optim.lr is datetime.date(2020, 1, 1): "),
        ('"a\\u001b[31mb" = 1', "is no setting"),
    ],
)
def test_hostile_toml(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.toml") as error:
        load_toml(PretrainConfig, path)
    assert said in str(error.value)
    with pytest.raises(UserError):
        read_sweep(path)


def test_a_toml_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_toml(PretrainConfig, tmp_path)
    bom = tmp_path / "bom.toml"
    bom.write_bytes(b"\xef\xbb\xbfseed = 4\r\nout = 'run'\r\n[data]\r\ntrain = 'photos'\r\n")  # as Windows writes it
    assert load_toml(PretrainConfig, bom).seed == 4


# sweeps


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('student = ["a/b", "a_b"]', "share the folder student=a_b"),
        ('student = ["ResNet18", "resnet18"]', "share the folder"),
        ('student = ["caf\\u00e9", "cafe\\u0301"]', "share the folder"),
        ('x = [["a", "b"], ["a-b"]]', "share the folder"),
        ('student = ["a,seed=1", "a"]\nseed = ["1,seed=1", "1"]', "share the folder"),
        ('student = ["--help"]', "without control characters or a first -"),
        ("help = [true]", "leave it out"),
        ('student = ["a\\nb"]', "without control characters"),
        ('"a\\u001b" = [1]', "take line breaks and control characters out"),
        ("seed = [{a = 1}]", "write numbers, words, or lists of them"),
        (f"student = ['{'x' * 300}']", "write shorter values"),
        ("\n".join(f"a{i} = [1, 2, 3, 4, 5, 6, 7, 8, 9]" for i in range(9)), "describes 387420489 runs"),
    ],
)
def test_two_runs_never_share_a_folder(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"sweep\.toml") as error:
        read_sweep(path)
    assert said in str(error.value)


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


# what is shown

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\nmgd-ssl: all is well\u202e\x9b"


def calm(text: str) -> bool:
    """Whether nothing in a text acts on a terminal."""
    return not set(text) & (set(CONTROL) - {"\n"})


def test_messages_do_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError(f"{HOSTILE} is no folder")

    assert exit_code(fail) == 2
    told = capsys.readouterr().err
    assert calm(told) and told.count("\n") == 1
    assert r"a\x1b[2J\x1b]0;title\x07b\r\nmgd-ssl: all is well\u202e\x9b is no folder" in told


def test_the_log_does_not_act_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, 1, 0):
        logger.warning("%s is unreadable, %d %%", HOSTILE, 100)
        logger.log(logging.INFO, "100 % sure")
    for told in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert calm(told) and r"all is well\u202e\x9b is unreadable, 100 %" in told
        assert "100 % sure" in told and len(told.splitlines()) == 2


# damaged files of runs


def write_run(folder: Path) -> None:
    """A small finished run as its files tell of it."""
    folder.mkdir(parents=True)
    train = {"kind": "train", "step": 2, "epoch": 1.0, "loss": 1.0, "contrastive": 1.0, "mgd": 0.0,
             "accuracy": 0.5, "lr": 0.03, "images_per_second": 9.0, "data_wait": 0.1}  # fmt: skip
    knn = {"kind": "knn", "step": 2, "epoch": 1.0, "top1": 50.0, "top5": 90.0, "random_top1": 9.0, "random_top5": 20.0,
           "protocol": "k-NN k=1"}  # fmt: skip
    matching = {"kind": "matching", "step": 0, "epoch": 0, "stage1_cost_before": None, "stage1_cost_after": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (matching, train, knn)))
    saved = {
        "config": PretrainConfig(out=folder, data={"train": "photos"}, optim={"epochs": 1, "batch_size": 4}).model_dump(
            mode="json"
        ),
        "data": {"num_images": 8, "fingerprint": "f" * 64},
        "teacher": {"arch": "thin_resnet14", "sha256": "0" * 64, "prefix": ""},
        "environment": {"torch": "2"},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    (folder / "result.json").write_text(json.dumps({"out": str(folder), "steps": 2, "epochs": 1, "knn": {}}))
    evaluation = {"format": 1, "kind": "linear", "name": "moco", "protocol": "p", "checkpoint": "encoder.pt",
                  "arch": "resnet18", "values": {"top1": [50.0], "top5": [75.0]}}  # fmt: skip
    (folder / "evaluation_linear_moco.json").write_text(json.dumps(evaluation))


def places(content: Any) -> list[tuple[Any, Any]]:
    """`(container, key)` of everything inside some JSON."""
    found: list[tuple[Any, Any]] = []
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        found.append((content, key))
        found += places(value) if isinstance(value, dict | list) else []
    return found


def damaged(text: str, generator: random.Random) -> bytes:
    """A file cut, with flipped bits, or with a value of another kind in it."""
    how = generator.randrange(4)
    if how == 0:
        return text.encode()[: generator.randrange(len(text))]
    if how == 1:
        content = bytearray(text.encode())
        for _ in range(3):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        return bytes(content)
    lines = text.strip().split("\n")
    number = generator.randrange(len(lines))
    row = json.loads(lines[number])
    container, key = generator.choice(places(row))
    if how == 2 and isinstance(container, dict):
        del container[key]
    else:
        strange: tuple[Any, ...] = (None, [], {}, "x", -1, 0, 1.5, True, 10**400, math.nan, [[]], {"a": 1}, HOSTILE)
        container[key] = generator.choice(strange)
    lines[number] = json.dumps(row)
    return ("\n".join(lines) + "\n").encode()


FILES = ["config.json", "result.json", "metrics.jsonl", "evaluation_linear_moco.json"]


@pytest.mark.parametrize("file", FILES)
def test_damaged_files_of_a_run_are_named(file: str, rounds: int, tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    text = (tmp_path / "whole" / file).read_text()
    write_run(tmp_path / "damaged")
    for case in range(60 * rounds):
        (tmp_path / "damaged" / file).write_bytes(damaged(text, random.Random(case)))
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            code = exit_code(lambda: runs_command.main([str(tmp_path), "--json-lines"]))
        assert code == 0, case  # the other run is told of
        told = {row["run"]: row for row in map(json.loads, out.getvalue().splitlines())}
        assert told["whole"]["state"] == "finished", case
        if told.get("damaged", {}).get("state") == "damaged":
            assert file in told["damaged"]["last_line"], case
        if said := refusal(partial(look, tmp_path / "damaged", pictures=case % 30 == 0)):
            named = str(tmp_path / "damaged" / file)
            assert named in said or "holds no run" in said or "without any measurement" in said, case


def look(folder: Path, pictures: bool) -> None:
    """Read a run as the report does."""
    runs = read_runs([folder])
    table = rows(runs)
    verdicts(table)
    size_rows(runs)
    if pictures:
        curves(runs)
        matching_pictures(runs[0])


@pytest.mark.parametrize("file", FILES[:3])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"null", b'{"a": 1}\n{}\n[]\n\n{"b'])
def test_damaged_files_do_not_end_in_a_traceback(file: str, content: bytes, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        assert exit_code(lambda: len(read_runs([tmp_path / "run"])) - 1) in (0, 2)
        exit_code(lambda: runs_command.main([str(tmp_path / "run")]))
    assert "Traceback" not in said.getvalue()
