"""Damaged and hostile weights, states and results: refused in one sentence, gone back from, or without any effect."""

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linear_eval import linear
from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.weights import load_backbone
from mgd_ssl.run.checkpoint import parsed, read_checkpoint, serialised
from mgd_ssl.run.zip_records import check_records
from tests.linear_eval.conftest import BASE, write_protocol
from tests.runs import assert_same_end, differing, stop_after, tiny, trained_teacher

Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, draw: random.Random, places: range | list[int] | None = None) -> bytes:
    """One bit the other way, anywhere or at one of these places."""
    changed = bytearray(content)
    place = draw.randrange(len(content)) if places is None else draw.choice(places)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """A page that a power cut has left without its data."""
    start = draw.randrange(len(content))
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


def bookkeeping(content: bytes) -> list[int]:
    """Places of a zip that are no record's: headers, padding, directory."""
    inside = bytearray(len(content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for record in archive.infolist():
            at = record.header_offset
            names = int.from_bytes(content[at + 26 : at + 28], "little")
            extra = int.from_bytes(content[at + 28 : at + 30], "little")
            start = at + 30 + names + extra
            inside[start : start + record.file_size] = b"\1" * record.file_size
    return [place for place, taken in enumerate(inside) if not taken]


def sentence(error: pytest.ExceptionInfo[UserError] | UserError, path: Path) -> str:
    """What is told, which is one line that names the file."""
    told = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert str(path) in told and "\n" not in told
    return told


# files that are read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A finished guided run in `run`, its teacher in `teacher`, and the same run stopped at step 5 in `stopped`."""
    base = tmp_path_factory.mktemp("weights")
    teacher = trained_teacher(base, image_folder)
    pretrain(**tiny(image_folder, base / "run", teacher=teacher))
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, 5)
        with pytest.raises(Interrupted):
            pretrain(**tiny(image_folder, base / "stopped", teacher=teacher))
    return base


@pytest.fixture(scope="module")
def evaluated(folder: Path, image_folder: Path) -> dict[str, Any]:
    """Settings of a finished evaluation, which has saved its state after every epoch."""
    settings: dict[str, Any] = {
        "checkpoint": folder / "run" / "encoder.pt", "data": image_folder, "out": folder / "linear",
        "protocol": str(write_protocol(folder / "small.toml", BASE)), "image_size": 32, "workers": 0,
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("linear_eval.probe.SAVE_SECONDS", -1)
        linear(**settings)
    return settings


@pytest.fixture
def settings(folder: Path, image_folder: Path, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Settings of a copy of one of the runs, which the test may damage."""

    def copy(name: str) -> dict[str, Any]:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(folder / name, tmp_path / name)
        return tiny(image_folder, tmp_path / name, teacher=folder / "teacher" / "encoder.pt")

    return copy


def files(folder: Path) -> Iterator[Path]:
    """One of every kind of file that torch.save has written."""
    yield folder / "run" / "encoder.pt"
    yield folder / "run" / "checkpoints" / "step_00000009.pt"
    yield folder / "linear" / "linear_small_seed0" / "head.pt"
    yield max((folder / "linear" / "linear_small_seed0" / "checkpoints").iterdir())


@pytest.mark.usefixtures("evaluated")
def test_a_flipped_bit_is_refused_or_changes_nothing(folder: Path, tmp_path: Path, rounds: int) -> None:
    draw = random.Random(0)
    for original in files(folder):
        content, whole = original.read_bytes(), read_checkpoint(original)
        outside = bookkeeping(content)
        path = tmp_path / "damaged.pt"
        refused = 0
        for number in range(60 * rounds):
            path.write_bytes(flip(content, draw, outside if number % 3 == 0 else None))
            try:
                assert differing(read_checkpoint(path), whole) == []
            except UserError as error:
                sentence(error, path)
                refused += 1
        assert refused >= 30 * rounds  # the rest are flips in padding, dates and versions


def test_every_flip_in_the_bookkeeping_of_a_small_file_is_refused_or_changes_nothing() -> None:
    """Python's reader and torch's do not look at the same fields: one attribute makes a record a folder for one."""
    content = serialised({"a": torch.arange(10.0), "b": torch.full((16,), 3.0)})
    path, whole, passed = Path("weights.pt"), {"a": torch.arange(10.0), "b": torch.full((16,), 3.0)}, 0
    for place in bookkeeping(content):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                check_records(bytes(changed))
                found = parsed(bytes(changed), path)
            except (ValueError, UserError):
                continue
            passed += 1
            assert differing(found, whole) == [], (place, bit)
    assert passed > 1000  # padding, dates, versions


@pytest.mark.usefixtures("evaluated")
@pytest.mark.parametrize("damage", [truncated, zeroed])
def test_lost_parts_are_refused_or_change_nothing(damage: Damage, folder: Path, tmp_path: Path, rounds: int) -> None:
    draw = random.Random(1)
    for original in files(folder):
        content, whole = original.read_bytes(), read_checkpoint(original)
        path = tmp_path / "damaged.pt"
        for _ in range(20 * rounds):
            path.write_bytes(damage(content, draw))
            try:
                assert differing(read_checkpoint(path), whole) == []
                assert damage is zeroed  # where there were zeros before
            except UserError as error:
                sentence(error, path)


def test_every_flip_inside_a_record_of_a_teacher_is_refused(folder: Path, tmp_path: Path, rounds: int) -> None:
    """torch.load alone takes most of them."""
    content = (folder / "run" / "encoder.pt").read_bytes()
    outside = set(bookkeeping(content))
    inside = [place for place in range(len(content)) if place not in outside]
    draw, path, taken = random.Random(2), tmp_path / "teacher.pt", 0
    for _ in range(40 * rounds):
        path.write_bytes(flip(content, draw, inside))
        try:
            torch.load(path, weights_only=True)
            taken += 1
        except Exception:
            pass
        with pytest.raises(UserError, match=r"is truncated or damaged: copy or download it again") as error:
            load_backbone(path)
        sentence(error, path)
    assert taken > 30 * rounds


# runs that go on


def test_a_run_goes_back_from_a_flipped_bit(
    settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    draw = random.Random(3)
    for damage in [flip, flip, flip, truncated, emptied, zeroed] * rounds:
        again = settings("stopped")
        newest = again["out"] / "checkpoints" / "step_00000005.pt"
        newest.write_bytes(damage(newest.read_bytes(), draw))
        pretrain(**again)
        assert_same_end(again["out"], folder / "run")
        log = (again["out"] / "log.txt").read_text()
        assert ("going back to the checkpoint before it" in log) == ("continuing after step 3 of 9" in log)


def test_damaged_states_of_an_evaluation_are_gone_back_from(
    evaluated: dict[str, Any], tmp_path: Path, rounds: int
) -> None:
    """The newest of two is damaged, and the result is taken away."""
    draw = random.Random(4)
    for damage in [flip, truncated] * rounds:
        out = tmp_path / "linear"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(evaluated["out"], out)
        results = [out / "linear_small_seed0" / name for name in ("result.json", "head.pt")]
        before = [path.read_bytes() for path in results]
        for path in results:
            path.unlink()
        newest = max((out / "linear_small_seed0" / "checkpoints").iterdir())
        newest.write_bytes(damage(newest.read_bytes(), draw))
        linear(**evaluated | {"out": out})
        assert [path.read_bytes() for path in results] == before
        assert "continuing after step" in (out / "linear_small_seed0" / "log.txt").read_text()


# finished runs


def damages(rounds: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What may happen to a file."""
    draw = random.Random(5)
    for damage in [flip, flip, truncated, emptied] * rounds:
        yield damage.__name__, lambda path, damage=damage: path.write_bytes(damage(path.read_bytes(), draw))  # type: ignore[misc]
    yield "missing", lambda path: path.unlink()


@pytest.mark.parametrize("name", ["encoder.pt", "result.json"])
def test_what_a_finished_run_leaves_is_made_anew(
    name: str, settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    for kind, damage in damages(rounds):
        again = settings("run")
        damage(again["out"] / name)
        result = pretrain(**again)
        assert_same_end(again["out"], folder / "run")
        assert (result.epochs, result.steps, result.knn) == (3, 9, {})
        saved = [json.loads((path / "result.json").read_text()) for path in (again["out"], folder / "run")]
        assert saved[0] == saved[1]
        log = (again["out"] / "log.txt").read_text()
        if kind in ("truncated", "emptied") or (kind, name) == ("missing", "encoder.pt"):
            assert f"{again['out'] / name}" in log and "made anew from the last checkpoint" in log


@pytest.mark.parametrize("name", ["encoder.pt", "result.json"])
def test_without_a_checkpoint_a_damaged_run_is_named_and_not_trained_anew(
    name: str, settings: Callable[[str], dict[str, Any]], rounds: int
) -> None:
    for kind, damage in damages(rounds):
        again = settings("run")
        shutil.rmtree(again["out"] / "checkpoints")
        before = (again["out"] / name).read_bytes()
        damage(again["out"] / name)
        try:
            pretrain(**again)
            assert kind == "flip"
            assert name == "result.json" and json.loads((again["out"] / name).read_text()) == json.loads(before)
        except UserError as error:
            told = sentence(error, again["out"] / name)
            assert "no checkpoint is left to make it anew from: restore it, or choose another --out" in told


def test_a_damaged_description_is_named_or_without_effect(
    settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    for kind, damage in damages(4 * rounds):
        again = settings("run")
        damage(again["out"] / "config.json")
        try:
            result = pretrain(**again)
        except UserError as error:
            told = sentence(error, again["out"])
            assert "restore" in told or "holds no run" in told
            continue
        assert kind == "flip" and result.steps == 9
        assert_same_end(again["out"], folder / "run")


@pytest.mark.parametrize("name", ["head.pt", "result.json"])
def test_what_a_finished_evaluation_leaves_is_made_anew(
    name: str, evaluated: dict[str, Any], tmp_path: Path, rounds: int
) -> None:
    evaluation, _ = linear(**evaluated)
    for _, damage in damages(rounds):
        out = tmp_path / "linear"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(evaluated["out"], out)
        damage(out / "linear_small_seed0" / name)
        assert linear(**evaluated | {"out": out})[0].values == evaluation.values
        for file in ("head.pt", "result.json"):
            original = evaluated["out"] / "linear_small_seed0" / file
            found = (out / "linear_small_seed0" / file).read_bytes()
            assert found == original.read_bytes() or json.loads(found) == json.loads(original.read_bytes())


def test_a_moved_run_tells_where_it_is_now(settings: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    again = settings("run")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(again["out"], moved)
    shutil.rmtree(again["out"])
    result = pretrain(**again | {"out": moved})
    assert (result.out, result.encoder) == (str(moved), str(moved / "encoder.pt"))
    assert str(tmp_path) not in (moved / "result.json").read_text()


def test_results_from_before_there_were_checksums_are_read(
    settings: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    again = settings("run")
    out = again["out"]
    old = {"out": "/gone", "encoder": "/gone/encoder.pt", "epochs": 3, "steps": 9, "knn": {}}
    (out / "result.json").write_text(json.dumps(old))
    before = (out / "log.txt").read_text()
    assert pretrain(**again).encoder == str(out / "encoder.pt")
    assert (out / "log.txt").read_text() == before
    os.truncate(out / "encoder.pt", 1000)
    pretrain(**again)
    assert "made anew" in (out / "log.txt").read_text()


# states that are whole and not what they should be


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state in a checkpoint, as its writer would have written it."""
    state = torch.load(path, weights_only=True)
    change(state)
    path.write_bytes(serialised(state))


def test_a_renamed_checkpoint_is_passed_over(settings: Callable[[str], dict[str, Any]], folder: Path) -> None:
    again = settings("stopped")
    checkpoints = again["out"] / "checkpoints"
    shutil.copy(checkpoints / "step_00000003.pt", checkpoints / "step_00000008.pt")
    pretrain(**again)
    assert_same_end(again["out"], folder / "run")
    log = (again["out"] / "log.txt").read_text()
    assert "step_00000008.pt holds step 3 and not that of its name; going back" in log
    assert "continuing after step 5 of 9" in log


def test_a_state_of_another_version_is_refused_and_nothing_is_gone_back_from(
    settings: Callable[[str], dict[str, Any]],
) -> None:
    again = settings("stopped")
    newest = again["out"] / "checkpoints" / "step_00000005.pt"
    reseal(newest, lambda state: state.update(format=1))
    with pytest.raises(UserError, match=r"has format 1, and this version reads 2: use the version of mgd_ssl") as error:
        pretrain(**again)
    sentence(error, newest)
    assert len(list(newest.parent.iterdir())) == 2


MISFITS: list[Callable[[dict[str, Any]], object]] = [
    lambda state: state.pop("optimizer"),
    lambda state: state.pop("metrics_bytes"),
    lambda state: state.update(metrics_bytes="many"),
    lambda state: state.update(meter=[1, 2]),
    lambda state: state["meter"].update(sums=torch.zeros(77)),
    lambda state: state["state_dict"].pop("module.queue"),
    lambda state: state["state_dict"].update({3: torch.zeros(3)}),
    lambda state: state["state_dict"].update({"module.queue": torch.zeros(2, 3)}),
    lambda state: state["state_dict"].update({"module.queue": "a queue"}),
    lambda state: state.update(state_dict=None),
    lambda state: state.update(guide={}),
    lambda state: state["optimizer"].update(param_groups=[]),
    lambda state: state["optimizer"].pop("state"),
    lambda state: state["guide"]["terms.mgd.mgd.assignment2"].fill_(10_000),
]


@pytest.mark.parametrize("number", range(len(MISFITS)))
def test_a_state_that_does_not_fit_is_one_sentence(number: int, settings: Callable[[str], dict[str, Any]]) -> None:
    again = settings("stopped")
    newest = again["out"] / "checkpoints" / "step_00000005.pt"
    reseal(newest, MISFITS[number])
    with pytest.raises(UserError, match="restore it, or start a new --out") as error:
        pretrain(**again)
    sentence(error, newest)


# hostile files


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """State dict of a network that could be a teacher."""
    generator = torch.Generator().manual_seed(0)
    state = build_backbone("thin_resnet10").state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1 + 0.01)
        assert name
    return state


def test_hostile_pickles_are_refused_in_one_sentence(weights: dict[str, Tensor], tmp_path: Path, rounds: int) -> None:
    """The pickle of a whole file changed, its checksum made right again."""
    draw, path = random.Random(6), tmp_path / "hostile.pt"
    with zipfile.ZipFile(io.BytesIO(serialised(dict(weights)))) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    refused = 0
    for _ in range(60 * rounds):
        pickled = bytearray(records[name])
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(len(pickled))
            how = draw.randrange(3)
            if how == 0:
                pickled[place] = draw.randrange(256)
            elif how == 1:
                del pickled[place : place + draw.randrange(1, 5)]
            else:
                pickled[place:place] = draw.randbytes(draw.randrange(1, 5))
        with zipfile.ZipFile(path, "w") as archive:
            for other, content in records.items():
                archive.writestr(other, bytes(pickled) if other == name else content)
        try:
            load_backbone(path)
        except UserError as error:
            sentence(error, path)
            refused += 1
    assert refused > 30 * rounds


def test_compressed_records_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """A file of kilobytes could stand for gigabytes."""
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(io.BytesIO(serialised(dict(weights)))) as archive, zipfile.ZipFile(path, "w") as packed:
        for record in archive.infolist():
            packed.writestr(record.filename, archive.read(record), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="holds compressed records") as error:
        load_backbone(path)
    sentence(error, path)


def test_a_file_written_without_checksums_is_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_backbone(path)[1].num_loaded == len(weights) - 2


KEY = "layer2.0.bn1.running_var"
HOSTILE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda t: t.to_sparse(), r"not dense \(sparse_coo\)"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), r"quantised \(qint8\)"),
    "meta": (lambda t: t.to("meta"), "a meta tensor, a shape without values"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t]), "a nested tensor"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "of type float8_e4m3fn"),
    "complex": (lambda t: t.to(torch.complex64), "of type complex64"),
    "bool": (lambda t: t > 0, "of type bool"),
    "integer": (lambda t: t.int(), "of type int32"),
    "no elements": (lambda t: t[:0], r"is \[0\], not \[32\]"),
    "no end": (lambda t: torch.zeros(1).expand(10**15), r"is \[1000000000000000\], not \[32\]"),
    "negative": (lambda t: t - 1, r"holds negative values \(-0\.9\d*\), which no variance has"),
    "not finite": (lambda t: t / 0, "holds values that are not finite"),
    "overflowing": (lambda t: t.double() * 1e300, r"beyond the range of float32 \(largest \d\.\d+e\+299\)"),
}


@pytest.mark.filterwarnings("ignore")  # of torch, while such tensors are made
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tensors_are_refused_in_one_sentence(kind: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    make, told = HOSTILE[kind]
    path = tmp_path / "weights.pt"
    torch.save({**weights, KEY: make(weights[KEY])}, path)
    for arch in (None, "thin_resnet10"):
        with pytest.raises(UserError, match=told) as error:
            load_backbone(path, arch)
        assert KEY in sentence(error, path)


@pytest.mark.parametrize("key", ["layer1.0.bn2.running_mean", "bn1.running_var", "layer4.0.conv2.weight", "bn1.bias"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf"), 1e39], ids=str)
def test_a_single_value_is_found(key: str, value: float, weights: dict[str, Tensor], tmp_path: Path) -> None:
    broken = weights[key].double()
    broken.view(-1)[-1] = value
    path = tmp_path / "weights.pt"
    torch.save({**weights, key: broken}, path)
    with pytest.raises(UserError, match=f"{key} holds values (that are not finite|beyond the range)"):
        load_backbone(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_and_told(kind: torch.dtype, weights: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}
    path = tmp_path / "weights.pt"
    torch.save(other, path)
    backbone, report = load_backbone(path)
    count = sum(value.is_floating_point() for name, value in weights.items() if not name.startswith("fc."))
    assert f"{count} of them cast from {str(kind).removeprefix('torch.')} to float32" in str(report)
    for name, value in backbone.state_dict().items():
        assert value.dtype == weights[name].dtype and torch.equal(value, other[name].to(value.dtype))
    torch.save(weights, path)
    assert "cast from" not in str(load_backbone(path)[1])


@pytest.mark.parametrize("key", [7, ("conv1", "weight"), None, 1.5, True])
def test_a_name_that_is_no_text_is_refused(key: Any, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content in ({**weights, key: torch.ones(3)}, {"state_dict": {key: torch.ones(3), **weights}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="which is no text: save a state dict") as error:
            load_backbone(path)
        assert repr(key) in sentence(error, path)


def test_names_from_a_file_cannot_write_on_the_terminal(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for name in ("layer9.\x1b[2Jgone", "layer9.\nmgd-ssl: all is well", "layer9." + "x" * 100_000):
        torch.save({**weights, name: torch.ones(1)}, path)
        with pytest.raises(UserError) as error:
            load_backbone(path)
        assert sentence(error, path).isprintable() and len(str(error.value)) < 600
    prefixed = {f"encoder_q.{name}": value for name, value in weights.items()}
    torch.save({**prefixed, **{f"\x1b[2J{i}.weight": torch.ones(1) for i in range(50)}}, path)
    told = str(load_backbone(path)[1])
    assert told.isprintable() and "and 41 more" in told


def test_a_run_says_what_it_cannot_learn_from(weights: dict[str, Tensor], image_folder: Path, tmp_path: Path) -> None:
    """Found before anything is made."""
    path = tmp_path / "teacher.pt"
    torch.save({**weights, KEY: -weights[KEY]}, path)
    with pytest.raises(UserError, match="which no variance has"):
        pretrain(**tiny(image_folder, tmp_path / "run", teacher=path))
    with pytest.raises(UserError, match="which no variance has"):
        linear(checkpoint=path, data=image_folder, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
