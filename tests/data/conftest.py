"""Photographs, packs and shards of a few images."""

from pathlib import Path

import pytest
import webdataset
from datasets.table import embed_table_storage
from pyarrow import parquet

from mgd_ssl.data.pack import pack
from tests.conftest import write_images
from tests.data.arrow import as_dataset
from tests.data.packs import left_by, settings
from tests.data.tars import jpegs


@pytest.fixture(scope="module")
def packed(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `val` of the image folder, packed into several shards each."""
    root = tmp_path_factory.mktemp("packed")
    for split, count in (("train", 10), ("val", 5)):
        pack(images=image_folder / split, out=root / split, shard_images=count, workers=0)
    return root


# other people's shards


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two shards of ten samples as webdataset writes them."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    images = jpegs(tmp_path, 20)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"part{shard}.tar")) as writer:
            for i in range(10 * shard, 10 * shard + 10):
                writer.write({"__key__": f"{i:04d}", "jpg": images[i], "cls": 2 - i % 3, "json": {"i": i}})
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """22 images of two classes, two of which are no image, and a note."""
    for name, count in (("cat", 12), ("dog", 10)):
        write_images(tmp_path / "photos" / name, count, seed=count)
    (tmp_path / "photos" / "cat" / "0004.jpg").write_text("<html>404</html>")
    (tmp_path / "photos" / "dog" / "0009.jpg").write_bytes(b"")
    (tmp_path / "photos" / "notes.txt").write_text("?")
    return tmp_path / "photos"


# interruptions


@pytest.fixture
def reference(photos: Path, tmp_path: Path) -> dict[str, bytes]:
    pack(**settings(photos, tmp_path / "reference"))
    return left_by(tmp_path / "reference")


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
