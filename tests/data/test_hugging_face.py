"""Hugging Face data sets on disk, against the `datasets` library."""

import builtins
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from datasets.table import embed_table_storage
from PIL import Image
from pyarrow import parquet

from mgd_ssl import UserError, pretrain
from mgd_ssl.data import hugging_face
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.pack import pack
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images, scan_labelled
from tests.conftest import write_images
from tests.data.test_shards import contents, names, read_in_child
from tests.runs import assert_same_end, processes, tiny

pytestmark = pytest.mark.usefixtures("cache")

CLASSES = ["squares", "circles"]  # not in alphabetical order


def as_dataset(folder: Path) -> datasets.Dataset:
    """The images of a class folder in its own order, with labels."""
    images = ImageList.scan(folder)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {
        "image": [str(folder / images.name(i)) for i in range(len(images))],
        "label": [CLASSES.index(images.name(i).partition("/")[0]) for i in range(len(images))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> dict[str, Path]:
    """The image folder as a saved data set in three files, and as Parquet in two with row groups of 7 rows."""
    root = tmp_path_factory.mktemp("saved")
    for split in ("train", "val"):
        dataset = as_dataset(image_folder / split)
        dataset.save_to_disk(root / "arrow" / split, num_shards=3)
        (root / "parquet" / split).mkdir(parents=True)
        half = len(dataset) // 2
        for part, rows in enumerate((range(half), range(half, len(dataset)))):
            table = embed_table_storage(dataset.select(rows).with_format("arrow")[:])  # their files are elsewhere
            path = root / "parquet" / split / f"part-{part}.parquet"
            parquet.write_table(
                table.replace_schema_metadata(dataset.features.arrow_schema.metadata), path, row_group_size=7
            )
    return {"arrow": root / "arrow", "parquet": root / "parquet"}


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_rows_are_those_of_datasets(saved: dict[str, Path], image_folder: Path, kind: str) -> None:
    images = open_images(saved[kind] / "train")
    if kind == "arrow":
        expected = datasets.load_from_disk(saved[kind] / "train")
    else:
        files = sorted(str(path) for path in (saved[kind] / "train").glob("*.parquet"))
        expected = datasets.Dataset.from_parquet(files, cache_dir=str(saved[kind] / "cache"))
    assert len(images) == len(expected) == 48
    for index in np.random.default_rng(0).permutation(48).tolist():
        assert np.array_equal(np.asarray(images.open(index)), np.asarray(expected[index]["image"].convert("RGB")))
    assert contents(images) == contents(ImageList.scan(image_folder / "train"))
    labels, classes = images.labels()
    assert labels.tolist() == expected["label"][:] and classes == CLASSES
    assert len(set(names(images))) == 48


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_run_is_that_on_the_folder(saved: dict[str, Path], image_folder: Path, tmp_path: Path, kind: str) -> None:
    pretrain(**tiny(image_folder, tmp_path / "folder", optim={"epochs": 1}))
    pretrain(**tiny(saved[kind], tmp_path / "rows", optim={"epochs": 1}))
    assert_same_end(tmp_path / "rows", tmp_path / "folder", step=3)


def test_labels_agree_with_a_folder_by_name(saved: dict[str, Path], image_folder: Path) -> None:
    train, val = scan_labelled(image_folder / "train", saved["arrow"] / "val")
    assert train.labels.tolist() == [0] * 24 + [1] * 24 and val.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_other_processes_read_the_same(saved: dict[str, Path], kind: str) -> None:
    images = open_images(saved[kind] / "train")
    expected = contents(images)
    queue = processes.Queue()
    child = processes.Process(target=read_in_child, args=(images, queue))  # pickled
    child.start()
    assert queue.get(timeout=60) == (expected, names(images), images.labels()[0].tolist())
    child.join()
    crops, order = CentreCrops(images, 24, seed=0), chunks(np.arange(48), 9)
    alone = [crops.__getitems__(part).images for part in order]
    with batches(crops, order, 2, pin=False) as loader:  # forked
        for batch, other in zip(loader, alone, strict=True):
            assert torch.equal(batch.images, other)
            assert contents(images) == expected


def test_the_cache_of_datasets_is_a_folder_of_arrow_files(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["arrow"] / "train", tmp_path / "cache")
    (tmp_path / "cache" / "state.json").unlink()
    assert contents(open_images(tmp_path / "cache")) == contents(open_images(saved["arrow"] / "train"))


def test_a_parquet_file_is_not_held_in_memory(saved: dict[str, Path]) -> None:
    images = open_images(saved["parquet"] / "train")
    hugging_face._row_group.cache_clear()
    contents(images)
    info = hugging_face._row_group.cache_info()
    assert info.currsize == hugging_face.ROW_GROUPS and info.misses == 8  # row groups of 7 in 24 + 24 rows, each once


def test_every_way_to_name_files_opens_them(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = saved["parquet"] / "train"
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in sorted(folder.glob("*.parquet"))))
    ways = [open_images(path) for path in (folder, folder / "part-*.parquet", tmp_path / "list.txt")]
    assert len({way.fingerprint() for way in ways}) == 1
    assert len(open_images(folder / "part-1.parquet")) == 24
    assert len(open_images(next((saved["arrow"] / "train").glob("*.arrow")))) == 16


def test_a_data_set_can_be_packed(saved: dict[str, Path], tmp_path: Path) -> None:
    result = pack(images=saved["parquet"] / "train", out=tmp_path / "out", workers=0)
    packed, source = open_images(tmp_path / "out"), open_images(saved["parquet"] / "train")
    assert result.classes == 2 and contents(packed) == contents(source)
    assert packed.name(30) == "shard-000000.tar/squares/000000030.jpeg"
    assert packed.labels()[1] == CLASSES and np.array_equal(packed.labels()[0], source.labels()[0])


def test_packed_rows_have_an_extension_by_which_they_are_found_again(tmp_path: Path) -> None:
    telephone = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(2)]
    images[0].save(telephone, "MPO", save_all=True, append_images=images[1:])
    rows = [{"bytes": content, "path": None} for content in (telephone.getvalue(), *encoded(1))]
    pack(images=write_rows(tmp_path / "a.parquet", image=rows), out=tmp_path / "out", workers=0)
    packed = open_images(tmp_path / "out")
    assert [packed.name(i).partition("/")[2] for i in range(2)] == ["000000000.jpg", "000000001.png"]
    assert contents(open_images(tmp_path / "out" / "*.tar")) == contents(packed) == [row["bytes"] for row in rows]


# data sets that were not made by `datasets`, and what can be wrong


def encoded(count: int = 3) -> list[bytes]:
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (i, 0, 0)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def write_rows(path: Path, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def structs(count: int = 3) -> list[dict[str, bytes | None]]:
    return [{"bytes": content, "path": None} for content in encoded(count)]


def test_columns_are_found_without_the_words_of_datasets(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "a.parquet", picture=structs(), label=[7, 3, 7])
    images = open_images(plain)
    assert contents(images) == encoded()
    assert images.labels()[0].tolist() == [1, 0, 1] and images.labels()[1] == ["3", "7"]
    named = write_rows(tmp_path / "b.parquet", depth=structs(), image=structs(), label=["zebra", "ant", "zebra"])
    assert open_images(named).labels()[1] == ["ant", "zebra"]
    table = pyarrow.table({"image": structs()})
    with pyarrow.ipc.new_file(str(tmp_path / "c.arrow"), table.schema) as file:
        file.write_table(table)
    assert contents(open_images(tmp_path / "c.arrow")) == encoded()


def test_images_outside_the_file_are_read_and_missing_ones_replaced(tmp_path: Path) -> None:
    path = write_images(tmp_path / "photos", 1)[0]
    rows = [{"bytes": None, "path": str(path)}, {"bytes": None, "path": str(tmp_path / "gone")}, None, *structs(1)]
    images = open_images(write_rows(tmp_path / "a.parquet", image=rows))
    assert images.read(0) == path.read_bytes()
    with pytest.raises(FileNotFoundError):
        images.read(1)
    with pytest.raises(OSError, match="the row holds no image"):
        images.read(2)
    assert len(CentreCrops(images, 16, seed=0).__getitems__([0, 1, 2, 3]).unreadable) >= 2


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no image column": (lambda d: write_rows(d / "a.parquet", text=["a"]), "a.parquet has no image column among text"),
    "several": (
        lambda d: write_rows(d / "a.parquet", left=structs(), right=structs()),
        "a.parquet has the image columns left, right: pass a data set with one",
    ),
    "no rows": (lambda d: write_rows(d / "a.parquet", image=pyarrow.array([], pyarrow.struct(
        [("bytes", pyarrow.binary()), ("path", pyarrow.string())]))), "holds no rows"),
    "no parquet": (lambda d: written(d / "a.parquet", b"?" * 100), "a.parquet is damaged ("),
    "no arrow": (lambda d: written(d / "a.arrow", b"?" * 100), "a.arrow is damaged ("),
    "empty arrow": (lambda d: written(d / "a.arrow", b""), "a.arrow is damaged ("),
    "splits": (lambda d: dictionary(d), "dict holds the splits train, test: pass one of them, as "),
    "missing file": (lambda d: without_a_file(d), "data-00001-of-00002.arrow is missing: restore it"),
    "cut off": (lambda d: cut_off(d), "data-00000-of-00002.arrow is damaged ("),
    "no file": (lambda d: without_files(d), "state.json lists no file"),
    "no json": (lambda d: without_files(d, "{"), "state.json is damaged ("),
    "no dictionary": (lambda d: without_files(d, "[1]"), "state.json is damaged (it holds no object): save"),
    "file elsewhere": (lambda d: without_files(d, '{"_data_files": [{"filename": "../x"}]}'), "lists '../x', no file"),
    "split without a name": (lambda d: written(d / "dataset_dict.json", b'{"splits": []}').parent, "lists no split"),
    "no splits": (lambda d: written(d / "dataset_dict.json", b"{").parent, "dataset_dict.json is damaged ("),
    "no metadata": (lambda d: described(d, b"{"), "a.parquet has damaged metadata (JSONDecodeError): copy or write it"),
    "odd metadata": (lambda d: described(d, b'{"info": []}'), "a.parquet has damaged metadata (TypeError): copy"),
    "odd classes": (lambda d: described(d, b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1]}}}}'),
                    "a.parquet has damaged metadata (names of label): copy"),
    "mixed": (lambda d: mixed(d), "b.parquet cannot be read together with"),
    "unlike": (lambda d: unlike(d), "b.parquet has no column 'image', as "),
}  # fmt: skip


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def described(folder: Path, metadata: bytes) -> Path:
    table = pyarrow.table({"image": structs(), "label": [0, 1, 1]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), folder / "a.parquet")
    return folder / "a.parquet"


def small(folder: Path) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [str(p) for p in write_images(folder / "p", 4)]}, features=features)


def dictionary(folder: Path) -> Path:
    datasets.DatasetDict({"train": small(folder), "test": small(folder)}).save_to_disk(folder / "dict")
    return folder / "dict"


def without_a_file(folder: Path) -> Path:
    small(folder).save_to_disk(folder / "saved", num_shards=2)
    (folder / "saved" / "data-00001-of-00002.arrow").unlink()
    return folder / "saved"


def without_files(folder: Path, state: str = "{}") -> Path:
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(state)
    return folder


def cut_off(folder: Path) -> Path:
    small(folder).save_to_disk(folder / "saved", num_shards=2)
    file = folder / "saved" / "data-00000-of-00002.arrow"
    return written(file, file.read_bytes()[:-800])


def mixed(folder: Path) -> Path:
    (folder / "mixed").mkdir()
    written(folder / "mixed" / "a.arrow", b"")
    return write_rows(folder / "mixed" / "b.parquet", image=structs()).parent


def unlike(folder: Path) -> Path:
    (folder / "unlike").mkdir()
    write_rows(folder / "unlike" / "a.parquet", image=structs())
    return write_rows(folder / "unlike" / "b.parquet", other=structs()).parent


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str) -> None:
    make, told = WRONG[kind]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        open_images(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_labels_that_are_missing_are_told(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "has no column with labels: pass one with a ClassLabel"),
        ({"label": [0, -1, 1]}, r"a1.parquet/000000001 has no label \(-1\): pass a labelled split"),
        ({"label": [0, None, 1]}, r"a2.parquet/000000001 has no label \(None\)"),
        ({"label": [4, 4, 4]}, "holds the single class 4"),
        ({"label": [[1], [2], [3]]}, r"has labels that are no classes \(column label\): pass numbers or names"),
        ({"label": [{"a": 1}] * 3}, "has labels that are no classes"),
    ]
    for number, (columns, told) in enumerate(cases):
        with pytest.raises(UserError, match=told):
            open_images(write_rows(tmp_path / f"a{number}.parquet", image=structs(), **columns)).labels()


def test_a_label_beyond_the_classes_is_told(tmp_path: Path) -> None:
    metadata = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a"]}}}}'
    with pytest.raises(UserError, match=r"has the label 1 of 1 classes: write it again"):
        open_images(described(tmp_path, metadata)).labels()


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.parquet", image=structs())
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"reading .*a.parquet needs pyarrow: pip install 'mgd_ssl\[hf\]'"):
        open_images(path)
