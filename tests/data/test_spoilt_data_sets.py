"""Arrow and Parquet files that cannot be read: told in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mgd_ssl import UserError
from mgd_ssl.data.sources import open_images
from tests.conftest import write_images
from tests.data.arrow import structs, write_rows

pytestmark = pytest.mark.usefixtures("cache")


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
