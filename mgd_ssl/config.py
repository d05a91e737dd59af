"""Settings of a run: frozen models, from defaults < TOML file < command line.

The line under a field is its documentation, in `--help` too.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tyro
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mgd_ssl.data.decode import PILLOWS_LIMIT, USUAL
from mgd_ssl.errors import UserError, nearest

MAX_SIZE = 8192  # pixels of an edge: what still fits in memory
MAX_SEED = 2**63 - 1
MAX_SIGMA = 100  # pixels
MAX_WORKERS = 1024  # processes of one host, and threads of one process
MAX_NESTING = 8  # of a TOML file; settings have two levels
SHOWN = 80  # characters of a wrong value in a message


class SettingError(ValueError):
    """One sentence on one setting, which starts with its key."""


class _RefusedFlag(Exception):
    """A `SettingError` while tyro makes settings of flags: it would print a ValueError in a box of its own words."""

    def __init__(self, group: "type[Settings]", sentence: str) -> None:
        super().__init__(sentence)
        self.group = group


_parsing = ContextVar("parsing", default=False)  # whether tyro is at work


class Settings(BaseModel):
    """Base of all groups: frozen, and an unknown key is an error.

    A field validator raises ValueError with the remedy alone, a model validator with the whole sentence.

    Raises:
        SettingError: one sentence that names the first setting at fault by its dotted key, its value and a remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        if unknown := _unknown_key(type(self), values):
            raise SettingError(f"{shortened(unknown)} is no setting{_nearest_key(unknown, keys_of(type(self)))}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            if _parsing.get():
                raise _RefusedFlag(type(self), _sentence(error)) from error
            raise SettingError(_sentence(error)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """`lr = true` would be taken for 1."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        if wanted is not bool and any(isinstance(leaf, bool) for leaf in _leaves(value)):
            raise ValueError("true and false are for switches, give what its help text asks for")
        return value

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        """Numbers fit 64 bits, and no path or word holds a character that the system does not take."""
        for name in type(self).model_fields:
            for leaf in _leaves(getattr(self, name)):
                if isinstance(leaf, int) and abs(leaf) > MAX_SEED:
                    raise ValueError(f"{name} is {brief(leaf)}: set it below 2**63")
                if isinstance(leaf, str | Path) and "\0" in str(leaf):
                    raise ValueError(f"{name} is {brief(leaf)}: take the zero character out")
        return self


def _leaves(value: Any) -> Iterator[Any]:
    """A value, or all values in its lists."""
    if isinstance(value, list | tuple):
        for element in value:
            yield from _leaves(element)
    else:
        yield value


def _unknown_key(model: type[Settings], values: dict[str, Any]) -> str:
    """Dotted name of the first key that is no field of the model or of its groups, or an empty string."""
    for name, value in values.items():
        if name not in model.model_fields:
            return name
        group = model.model_fields[name].annotation
        if not (isinstance(group, type) and issubclass(group, Settings) and isinstance(value, dict)):
            continue
        if unknown := _unknown_key(group, value):
            return f"{name}.{unknown}"
    return ""


def _nearest_key(key: str, known: list[str]) -> str:
    """`, did you mean 'moco.queue_size'?`: the closest last part, in the same group where there are several."""
    group, _, last = key.rpartition(".")
    by_last: dict[str, str] = {}
    for other in sorted(known, key=lambda other: other.rpartition(".")[0] != group):
        by_last.setdefault(other.rpartition(".")[2], other)
    matches = difflib.get_close_matches(last, by_last, n=1)
    return f", did you mean {by_last[matches[0]]!r}?" if matches else ""


REMEDIES = {
    "greater_than": "set it above {gt}",
    "greater_than_equal": "set it to {ge} or more",
    "less_than": "set it below {lt}",
    "less_than_equal": "set it to {le} or less",
    "finite_number": "give a finite number",
    "literal_error": "choose {expected}",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_parsing_size": "give a smaller number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes",
    "string_unicode": "write text without broken characters",
    "string_pattern_mismatch": "write what matches {pattern}",
    "string_too_long": "write {max_length} characters at most",
    "path_type": "write a path, in quotes",
    "tuple_type": "write a list",
    "too_short": "give {min_length} values or more",
    "too_long": "give {max_length} values at most",
    "missing": "give it too",
    "model_type": "write its settings below a line with its name in brackets",
    "dict_type": "write its settings below a line with its name in brackets",
}  # pydantic's kinds of errors -> what to do; of the others its own words are shown


def _sentence(error: ValidationError) -> str:
    """`optim.lr is -1: set it above 0`, of the first setting at fault."""
    first = error.errors()[0]
    key, context = ".".join(str(part) for part in first["loc"]), first.get("ctx", {})
    bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
    known = REMEDIES.get(first["type"])
    remedy = known.format_map(bounds) if known else f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    if first["type"] == "value_error":
        cause = context["error"]
        if not key:  # of a whole group
            return str(cause)
        if isinstance(cause, SettingError):  # raised by a group, in which the key begins
            return f"{key}.{cause}"
        remedy = str(cause)
    return f"{key} is {'missing' if first['type'] == 'missing' else brief(first['input'])}: {remedy}"


def brief(value: object) -> str:
    """A value as a message shows it: as Python writes it, and not all of it where it is long."""
    try:
        return shortened(repr(str(value) if isinstance(value, Path) else value))
    except (ValueError, RecursionError):  # more digits than Python writes
        return "too long to be shown"


def shortened(text: str) -> str:
    """At most `SHOWN` characters."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _colour(value: Any) -> str:
    """`white`, `black` or `#rrggbb`, one word for every colour, of what a user may write."""
    if isinstance(value, list | tuple) and all(type(level) is int and 0 <= level <= 255 for level in value):
        value = "#" + "".join(f"{level:02x}" for level in value)
    word = {"#ffffff": "white", "#000000": "black"}.get(str(value).lower(), str(value).lower())
    if word not in ("white", "black") and not re.fullmatch("#[0-9a-f]{6}", word):
        raise PydanticCustomError("colour", "pass white, black, #rrggbb or three levels from 0 to 255")
    return word


Background = Annotated[str, BeforeValidator(_colour)]
MaxPixels = Annotated[int, Field(ge=1, le=PILLOWS_LIMIT)]


class DataConfig(Settings):
    """Images and their views."""

    train: Path | None = None
    """Training images: a folder, nested as you like, tar shards or a Hugging Face data set (docs/data.md); labels are
    not used. Required."""
    image_size: int = Field(224, ge=16, le=MAX_SIZE)
    """Edge of a view in pixels."""
    recipe: Literal["v2", "v1"] = "v2"
    """Augmentation of MoCo v2 or v1."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Range of a crop's share of the image area, within 0 to 1."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur in pixels of the view (published for 224)."""
    backend: Literal["auto", "reference", "cpu", "device"] = "auto"
    """What renders the views: PIL (slow), the data workers (cpu), or the workers and for the colours the training
    device; auto: device on a GPU, else cpu. The views are the same up to rounding."""
    workers: int | None = Field(None, ge=0, le=MAX_WORKERS)
    """Data processes for each training process; None: 1 on a CPU, its share of the cores with a GPU. Results do
    not depend on it."""
    max_unreadable: float = Field(0.01, ge=0, le=1)
    """Share of unreadable images above which a run stops."""
    background: Background = USUAL.background
    """Behind transparent parts of images, those of k-NN too: white, black, #rrggbb, or in a file [r, g, b]."""
    max_pixels: MaxPixels = USUAL.max_pixels
    """Images with more pixels are unreadable; they are not decoded."""

    @field_validator("crop_scale")
    @classmethod
    def _crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("give a smaller and a larger share, above 0 and up to 1, as 0.2 1.0")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _blur_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= MAX_SIGMA:
            raise ValueError(f"give a weaker and a stronger blur, from 0 up to {MAX_SIGMA} pixels, as 0.1 2.0")
        return value


class MoCoConfig(Settings):
    """Momentum contrast."""

    dim: int = Field(128, ge=1, le=2**16)
    """Size of the embedding."""
    queue_size: int = Field(65536, ge=1, le=2**26)
    """Negative keys; a multiple of the batch size."""
    momentum: float = Field(0.999, ge=0, lt=1)
    """EMA momentum of the key encoder."""
    temperature: float = Field(0.2, ge=1e-4, le=1e4)
    """Softmax temperature."""
    bn_splits: int = Field(1, ge=1)
    """Parts of each process's batch that BatchNorm looks at one by one, keys shuffled over them: 8 in one process are
    as 8 processes with a part each. With 1 in a single process BatchNorm is not shuffled at all."""
    head_width: int | None = Field(None, ge=1, le=2**16)
    """Hidden width of the projection head; None: that of the backbone, as published."""


StageWeight = Annotated[float, Field(ge=0, le=1e6)]


class MGDConfig(Settings):
    """Matching Guided Distillation; used when there is a teacher."""

    weight: float = Field(1e-4, ge=0, le=1e6)
    """Factor of the distillation loss, which is summed over elements and divided by the batch."""
    stage_weights: tuple[StageWeight, StageWeight, StageWeight, StageWeight] = (0.125, 0.25, 0.5, 1.0)
    """Factor of each of the four stages; 0 leaves one out."""
    reducer: Literal["amp", "max", "mean", "random_drop", "sparse"] = "amp"
    """How the teacher channels of a student channel become one."""
    margin: Literal["teacher", "measured", "initial"] = "teacher"
    """Margins from the teacher's BatchNorm, measured on images, or the constant the published program used."""
    matching_images: int = Field(20000, ge=1)
    """Training images a matching update looks at; the same ones at every update."""
    matching_epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Matching is updated before training and after these epochs; no epoch at all (`[]` in a file, the flag without a
    value): before training only; None: the published ones, rescaled."""

    @field_validator("stage_weights")
    @classmethod
    def _some_stage(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not any(value):
            raise ValueError("give one stage a weight above 0, or set mgd.weight to 0")
        return value

    @field_validator("matching_epochs")
    @classmethod
    def _each_once(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return value if value is None else each_once(value)


class OptimConfig(Settings):
    """SGD and its schedule."""

    epochs: int = Field(200, ge=1, le=10**6)
    """Passes over the training images."""
    batch_size: int = Field(256, ge=2, le=2**24)
    """Images in a step over all processes."""
    lr: float = Field(0.03, gt=0, le=1e6)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0, le=1e6)
    """Weight decay."""
    warmup_epochs: float = Field(3, ge=0, le=1e6)
    """Length of the linear warm-up from a thousandth of the peak."""
    lr_schedule: Literal["step", "epoch"] = "step"
    """Warm-up and cosine by step, or by epoch as published."""


class KNNConfig(Settings):
    """k-NN monitoring on labelled images: folders <class>/*, tar shards or Hugging Face data sets."""

    train: Path | None = None
    """Labelled images that vote."""
    val: Path | None = None
    """Labelled images that are classified."""
    every_epochs: int = Field(5, ge=1)
    """Distance between two evaluations; the first and the last state are always evaluated."""
    k: int = Field(20, ge=1)
    """Neighbours."""
    temperature: float = Field(0.07, ge=1e-4, le=1e4)
    """A neighbour votes with exp(similarity / temperature)."""
    max_bank: int = Field(100_000, ge=1)
    """Voting images at most, drawn evenly from the folder by the run's seed."""


class CheckpointConfig(Settings):
    """Saving."""

    every_steps: int = Field(1000, ge=1)
    """Steps between checkpoints; one is also written at the end of every epoch and on a signal."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept."""


class RuntimeConfig(Settings):
    """Device and speed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU when there is one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of training and k-NN; matching is in float32 always. float16 trains with a gradient scaler."""
    channels_last: bool = True
    """Memory format of images and weights."""
    compile: bool = False
    """Compile encoders and teacher with torch.compile."""
    threads: int | None = Field(None, ge=1, le=MAX_WORKERS)
    """CPU threads of each process; None: cores divided by processes."""
    log_every: int = Field(10, ge=1)
    """Steps between two rows of metrics.jsonl."""


class PretrainConfig(Settings):
    """Pretrain a student with MoCo v2, guided by a frozen teacher through MGD where one is given."""

    out: Path | None = None
    """Folder of the run; the same command again continues it. Required."""
    student: str = "resnet18"
    """Architecture to train: resnet18/34/50/101/152, resnext*, wide_resnet*, thin_resnet10/14."""
    teacher: Path | None = None
    """Checkpoint of the teacher (MoCo's, ours or its run folder, torchvision's); None: plain MoCo."""
    teacher_arch: str | None = None
    """Architecture of the teacher; None: told from the shapes in the file."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything random in the run."""
    data: DataConfig = DataConfig()
    moco: MoCoConfig = MoCoConfig()
    mgd: MGDConfig = MGDConfig()
    optim: OptimConfig = OptimConfig()
    knn: KNNConfig = KNNConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runtime: RuntimeConfig = RuntimeConfig()


# What may differ between the parts of one run: it changes neither weights nor matching, or by rounding alone as the
# device, compilation and the backend of the views do.
FREE_TO_CHANGE = ("out", "teacher", "data.train", "data.backend", "data.workers", "data.max_unreadable", "knn",
                  "checkpoint", "runtime.threads", "runtime.log_every", "runtime.compile",
                  "runtime.device")  # fmt: skip

Model = TypeVar("Model", bound=Settings)
Values = TypeVar("Values", bound=Sequence[Any])


def each_once(values: Values) -> Values:
    """The values of a setting, for a field validator.

    Raises:
        ValueError: when one is there twice.
    """
    if len(set(values)) < len(values):
        raise ValueError("give each value once")
    return values


CONFIGS = Path(str(resources.files("mgd_ssl"))) / "configs"


def find_config(name: str, folder: Path = CONFIGS, what: str = "config file") -> Path:
    """A TOML file by path, or by the name of one in a folder that comes with the package (`imagenet_r50_r18_mgd`)."""
    path = Path(name)
    if os.path.isfile(path):  # not Path.is_file, which raises for some names
        return path
    packaged = folder / f"{path.stem}.toml"
    if path.parent.name in ("", folder.name) and packaged.is_file():
        return packaged
    known = sorted(file.stem for file in folder.glob("*.toml"))
    raise UserError(f"no {what} {name!r}{nearest(name, known)}: pass a path or one of {', '.join(known)}")


def load_toml(model: type[Model], path: Path) -> Model:
    """Settings from a TOML file over the defaults.

    Raises:
        UserError: naming the file and the key at fault.
    """
    try:
        return model(**read_toml(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UserError: when it cannot be read, is no TOML, or is nested more deeply than any settings are.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a TOML file") from error
    except RecursionError as error:
        raise UserError(_too_deep(path)) from error
    except ValueError as error:  # of the parser, the decoder, or for numbers of thousands of digits
        raise UserError(f"{path} is not valid TOML ({error}): mend that line") from error
    level: list[Any] = [content]
    for _ in range(MAX_NESTING):  # a loop: recursion would end where the nesting does not
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise UserError(_too_deep(path))
    return content


def _too_deep(path: Path) -> str:
    return f"{path} is nested more than {MAX_NESTING} levels deep: settings have two, [group] and key"


def keys_of(model: type[Settings], prefix: str = "") -> list[str]:
    """Dotted names of all fields of a model and of its groups."""
    keys = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            keys += keys_of(field.annotation, f"{prefix}{name}.")
        keys.append(f"{prefix}{name}")
    return keys


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every setting that must not change within a run but did."""
    old, new = flattened(old), flattened(new)
    return [
        f"{key}: {old.get(key, 'not yet a setting')} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == f or key.startswith(f"{f}.") for f in FREE_TO_CHANGE)
    ]


def parse(model: type[Model], argv: Sequence[str], prog: str, configs: Path = CONFIGS) -> Model:
    """Settings from a command line; `--config FILE` (anywhere in it) is read first, flags override it.

    Args:
        model: the settings.
        argv: the arguments.
        prog: name of the program, for its help.
        configs: folder whose TOML files --config finds by name.

    Raises:
        UserError: naming the setting at fault by its dotted key.
        SystemExit: for words that are no flags, or not of a flag's type; the parser has told why.
    """
    args, file = _take_config(list(argv))
    default = load_toml(model, find_config(file, configs)) if file else model()
    description = f"{model.__doc__}\n\n--config NAME|FILE.toml reads settings from a file; flags override it."
    token = _parsing.set(True)
    try:
        return tyro.cli(model, args=args, default=default, prog=prog, description=description)
    except _RefusedFlag as refused:
        raise UserError(f"{_key_of_group(model, refused.group)}{refused}") from refused
    finally:
        _parsing.reset(token)


def _key_of_group(model: type[Settings], group: type[Settings], prefix: str = "") -> str:
    """`optim.` for OptimConfig; empty for the model itself."""
    for name, field in model.model_fields.items():
        if field.annotation is group:
            return f"{prefix}{name}."
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            continue
        if found := _key_of_group(inner, group, f"{prefix}{name}."):
            return found
    return ""


def _take_config(args: list[str]) -> tuple[list[str], str | None]:
    for i, arg in enumerate(args):
        if arg == "--config":
            if i + 1 == len(args):
                raise UserError("--config needs a value: the path or the name of a TOML file")
            return args[:i] + args[i + 2 :], args[i + 1]
        if arg.startswith("--config="):
            return args[:i] + args[i + 1 :], arg.removeprefix("--config=")
    return args, None
