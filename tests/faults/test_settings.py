"""Settings as nobody should write them: every value is taken or refused in one sentence."""

import json
import math
import random
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import annotated_types
import pytest

from benchmarks.linear import BenchConfig as LinearBenchConfig
from launchers.config import LocalConfig, SlurmConfig
from launchers.sweep import read_sweep
from linear_eval.command import LinearConfig
from linear_eval.protocols import Protocol, load_protocol
from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.command_line import CONFIGS, load_toml
from mgd_ssl.commands.report import ReportConfig
from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.config import PackConfig
from mgd_ssl.demo.config import DemoConfig
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.config import KNNEvaluationConfig
from mgd_ssl.settings import Settings
from tests.faults.sentences import refusal

PROTOCOL = load_protocol("moco").model_dump()


MODELS: dict[type[Settings], dict[str, Any]] = {  # with what is required
    PretrainConfig: {"out": "run", "data": {"train": "photos"}},
    KNNEvaluationConfig: {"checkpoint": "run", "data": "photos"},
    LinearConfig: {"checkpoint": "run", "data": "photos"},
    PackConfig: {"images": "photos", "out": "shards"},
    **{model: {} for model in (BenchConfig, LinearBenchConfig, DemoConfig, ReportConfig, LocalConfig, SlurmConfig)},
    Protocol: PROTOCOL,
}  # fmt: skip


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
