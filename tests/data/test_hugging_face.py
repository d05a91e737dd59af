"""Hugging Face data sets on disk, against the `datasets` library."""

import builtins
import io
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image

from mgd_ssl import UserError, pretrain
from mgd_ssl.data import hugging_face
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.pack import pack
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images, scan_labelled
from tests.conftest import write_images
from tests.data.arrow import CLASSES, encoded, structs, write_rows
from tests.data.reading import contents, names
from tests.data.tars import read_in_child
from tests.runs import assert_same_end, processes, tiny

pytestmark = pytest.mark.usefixtures("cache")


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
