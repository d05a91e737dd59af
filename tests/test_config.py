"""Settings: where they come from, and what is said about a wrong one."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mgd_ssl import classify_settings, term_settings
from mgd_ssl import config as config_module
from mgd_ssl.classify_settings import ClassifyConfig
from mgd_ssl.command_line import load_toml, parse
from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.setting_keys import defaults, differences, flattened, free_keys
from mgd_ssl.settings import Settings, keys_of
from mgd_ssl.tasks.detection import config as detection_config
from mgd_ssl.tasks.detection.config import DetectConfig
from tests.given import parsed

SETTINGS_OF = (config_module, classify_settings, term_settings, detection_config)


SETTINGS = [
    name
    for module in SETTINGS_OF
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Settings)
]  # classes of settings of whole runs


def toml(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def complete(**settings: Any) -> PretrainConfig:
    """Settings of a Python caller who gives what is required."""
    return PretrainConfig(**{"out": "run", **settings, "data": {"train": "photos", **settings.get("data", {})}})


def given(**settings: Any) -> PretrainConfig:
    """Settings of a Python caller who may forget some."""
    return PretrainConfig(**settings)


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, "seed = 3\n[optim]\nlr = 0.5\nepochs = 7\n[data]\ntrain = 'photos'")
    config = parsed("--optim.lr", "0.25", "--config", str(file), "--moco.dim", "64")
    assert config.optim.lr == 0.25
    assert (config.optim.epochs, config.seed, config.data.train) == (7, 3, Path("photos"))
    assert config.moco.dim == 64
    assert config.optim.batch_size == complete().optim.batch_size


def test_config_flag_works_anywhere_and_with_an_equals_sign(tmp_path: Path) -> None:
    file = toml(tmp_path, "seed = 3")
    assert parsed(f"--config={file}", "--moco.dim", "8") == parsed("--moco.dim", "8", "--config", str(file))
    with pytest.raises(UserError, match="--config needs a value"):
        parsed("--moco.dim", "8", "--config")


def test_no_source_gives_the_defaults() -> None:
    assert parsed() == complete()


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("sed = 1", "sed", "seed"),
        ("lr = 1", "lr", "optim.lr"),
        ("[optims]\nlr = 1", "optims", "optim"),
        ("[moco]\nqueue_sise = 1", "moco.queue_sise", "moco.queue_size"),
        ("[optim]\nqueue_size = 1", "optim.queue_size", "moco.queue_size"),
        ("[data]\nlr = 1", "data.lr", "optim.lr"),
        ("[mgd]\nteacher = 'x'", "mgd.teacher", "teacher"),
        ("[knn]\nmomentums = 0.5", "knn.momentums", "moco.momentum"),
        ("[optim]\nmomentums = 0.5", "optim.momentums", "optim.momentum"),
    ],
)
def test_unknown_key_names_the_file_and_the_nearest_key(tmp_path: Path, text: str, key: str, near: str) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_toml(PretrainConfig, path)
    assert str(error.value) == f"{path}: {key} is no setting, did you mean {near!r}?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optim]\nlr = 'fast'", "optim.lr is 'fast': give a number"),
        ("[optim]\nlr = -1", "optim.lr is -1: set it above 0"),
        ("[moco]\nmomentum = 1.0", "moco.momentum is 1.0: set it below 1"),
        ("[runtime]\nprecision = 'half'", "runtime.precision is 'half': choose 'auto'"),
        ("[data]\nimage_size = 3.5", "data.image_size is 3.5: give a whole number"),
        ("data = 3", "data is 3: write its settings below a line with its name in brackets"),
        ("student = 18", "student is 18: write text, in quotes"),
    ],
)
def test_wrong_values_are_named_with_their_key(tmp_path: Path, text: str, expected: str) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_toml(PretrainConfig, path)
    assert str(error.value).startswith(f"{path}: {expected}") and "\n" not in str(error.value)


def test_invalid_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 1\n[optim\n")
    with pytest.raises(UserError, match=r"run.toml is not valid TOML \(.*line 2"):
        load_toml(PretrainConfig, path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"run.toml is not valid TOML"):
        load_toml(PretrainConfig, path)


def test_python_callers_get_the_same_sentences() -> None:
    with pytest.raises(ValueError, match=r"data.queue_size is no setting, did you mean 'moco.queue_size'\?"):
        given(data={"queue_size": 3})
    with pytest.raises(ValueError, match=r"optim.epochs is 0: set it to 1 or more"):
        given(optim={"epochs": 0})


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (("--optim.lr", "-1"), "optim.lr is -1.0: set it above 0"),
        (("--seed", "-1"), "seed is -1: set it to 0 or more"),
        (("--mgd.weight", "nan"), "mgd.weight is nan: give a finite number"),
    ],
)
def test_flags_out_of_range_are_told_as_in_a_file(flag: tuple[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(*flag)
    assert str(error.value) == said
    with pytest.raises(ValueError, match="set it above 0"):  # and outside the parser it is a ValueError again
        given(optim={"lr": -1})


def test_settings_are_frozen() -> None:
    config = complete()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]


def documented_fields() -> dict[str, dict[str, str]]:
    """The strings below the fields of every class of settings of whole runs, by class and field."""
    found: dict[str, dict[str, str]] = {}
    sources = "".join(inspect.getsource(module) for module in SETTINGS_OF)
    for node in ast.parse(sources).body:
        if not isinstance(node, ast.ClassDef) or node.name not in SETTINGS:
            continue
        fields = found[node.name] = {}
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                fields[field.target.id] = str(text)
    return found


def fields_of(model: type[Settings]) -> dict[str, str]:
    """Every `Group.field` of a command with the string that stands below it, those of base classes too."""
    found: dict[str, str] = {}
    documented = documented_fields()
    groups = {name: field.annotation for name, field in model.model_fields.items()}
    inner = [kind for kind in groups.values() if isinstance(kind, type) and issubclass(kind, Settings)]
    for kind in inner:
        found |= fields_of(kind)
    for base in reversed(model.__mro__):
        for name, text in documented.get(base.__name__, {}).items():
            if groups.get(name) not in inner:
                found[f"{model.__name__}.{name}"] = text
    return found


@pytest.mark.parametrize("model", [PretrainConfig, ClassifyConfig, DetectConfig])
def test_every_field_has_its_line_in_the_help(
    model: type[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        parse(model, ["--help"], "mgd-ssl")
    assert stop.value.code == 0
    letters = "".join(character for character in capsys.readouterr().out if character.isalnum())
    fields = fields_of(model)
    assert len(fields) > 40
    for name, text in fields.items():
        assert text, f"{name} has no line of documentation"
        first_words = "".join(character for character in " ".join(text.split()[:5]) if character.isalnum())
        assert first_words in letters, name
    assert "configNAMEFILEtoml" in letters


def test_differences_name_only_what_must_not_change() -> None:
    old, free = complete(out=Path("a")).model_dump(mode="json"), free_keys(PretrainConfig)
    new = complete(out="b", teacher="t", knn={"k": 5}, checkpoint={"keep": 9}, data={"workers": 3})
    assert differences(old, new.model_dump(mode="json"), free) == []
    changed = complete(seed=4, optim={"lr": 1}).model_dump(mode="json")
    assert differences(old, changed, free) == ["optim.lr: 0.03 -> 1.0", "seed: 0 -> 4"]


def test_keys_that_only_one_side_has_are_differences() -> None:
    assert differences({"a": {"b": 1}}, {"a": {"c": 2}}) == ["a.b: 1 -> None", "a.c: not yet a setting -> 2"]
    assert differences({"out": "x"}, {"out": "y", "outer": 1}, ["out"]) == ["outer: not yet a setting -> 1"]


def test_what_is_free_to_change_is_what_changes_neither_weights_nor_matching() -> None:
    assert free_keys(PretrainConfig) == [
        "out", "student_weights", "teacher", "log", "data.train", "data.backend", "data.workers", "data.max_unreadable",
        "terms.bingo.bags", "knn", "checkpoint",
        "runtime.device", "runtime.compile", "runtime.deterministic", "runtime.threads", "runtime.log_every",
    ]  # fmt: skip


def test_what_is_required_is_told_with_the_flag_that_gives_it() -> None:
    with pytest.raises(ValueError, match=r"^out is not set: pass --out, the folder this run may write to$"):
        given(data={"train": "photos"})
    with pytest.raises(ValueError, match=r"^data\.train is not set: pass --data\.train, "):
        given(out="run")
    with pytest.raises(UserError, match=r"^out is not set"):
        parse(PretrainConfig, ["--data.train", "photos"], "mgd-ssl pretrain")
    with pytest.raises(ValueError, match=r"^optim\.lr is -1: "):  # what is wrong goes before what is missing
        given(optim={"lr": -1})
    assert set(flattened(defaults(PretrainConfig))) <= set(keys_of(PretrainConfig))


@pytest.mark.parametrize(
    ("file", "flags", "epochs"),
    [
        ("", [], None),
        ("[mgd]\nmatching_epochs = []", [], ()),
        ("[mgd]\nmatching_epochs = [2, 4]", [], (2, 4)),
        ("", ["--mgd.matching-epochs"], ()),
        ("[mgd]\nmatching_epochs = [2, 4]", ["--mgd.matching-epochs"], ()),
        ("[mgd]\nmatching_epochs = []", ["--mgd.matching-epochs", "None"], None),
        ("[mgd]\nmatching_epochs = []", ["--mgd.matching-epochs", "3"], (3,)),
        ("", ["--mgd.matching-epochs", "--seed", "1"], ()),
    ],
)
def test_no_matching_epoch_is_not_the_default(
    file: str, flags: list[str], epochs: tuple[int, ...] | None, tmp_path: Path
) -> None:
    config = parsed("--config", str(toml(tmp_path, file)), *flags)
    assert config.mgd.matching_epochs == epochs
    assert PretrainConfig(**config.model_dump(mode="json")).mgd.matching_epochs == epochs
