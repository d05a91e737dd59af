"""Pipes, devices, paths that lead out and files of gigabytes in place of images: nothing waits for them."""

import os
import tarfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.hugging_face import ArrowImages
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.data.sources import open_images
from mgd_ssl.errors import UserError
from tests.conftest import write_images
from tests.faults.mutations import survived

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.usefixtures("alarm")
def test_pipes_devices_and_sockets_among_images_are_unreadable(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, target in {"random": "/dev/urandom", "pipe_too": "pipe.jpg", "loop": "loop.jpg"}.items():
        (tmp_path / f"{name}.jpg").symlink_to(target)
    images = ImageList.scan(tmp_path)
    files = [images.name(i) for i in range(len(images))]
    assert {"pipe.jpg", "pipe_too.jpg", "random.jpg", "loop.jpg"} < set(files)
    images.state()
    crops = CentreCrops(images, 16, seed=0).__getitems__(range(len(images)))
    assert {failure.name for failure in crops.unreadable} == {name for name in files if not name.startswith("0")}
    assert sum("it is no regular file" in failure.why for failure in crops.unreadable) >= 3


@pytest.mark.usefixtures("alarm")
def test_paths_in_rows_stay_in_the_folder_of_the_data_set(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data" / "photos", tmp_path / "outside"
    paths = write_images(inside, 2), write_images(outside, 1)
    os.mkfifo(inside / "pipe.jpg")
    (inside / "link.jpg").symlink_to(paths[1][0])  # the owner of the folder put it there
    for i, where in enumerate(("photos/0000.jpg", str(paths[0][1]), "photos/link.jpg", "./photos/../photos/0001.jpg")):
        images = rows_at(tmp_path / "data", [where])
        assert images.read(0) == (tmp_path / "data" / where).read_bytes(), i
    for where in (
        str(paths[1][0]),
        "../outside/0000.jpg",
        "photos/../../outside/0000.jpg",
        "/etc/hostname",
        "",
        ".",
        "/",
    ):
        with pytest.raises(OSError, match="leads out of the data set's folder"):
            rows_at(tmp_path / "data", [where]).read(0)
    with pytest.raises(OSError, match="it is no regular file"):
        rows_at(tmp_path / "data", ["photos/pipe.jpg"]).read(0)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "data")
    rows_at(link, [str(paths[0][1])]).read(0)


def rows_at(folder: Path, where: list[str]) -> Images:
    """A data set whose rows hold paths alone."""
    table = pyarrow.table({"image": [{"bytes": None, "path": path} for path in where]}, schema=ROWS)
    path = folder / f"{len(list(folder.glob('*.parquet')))}.parquet"
    parquet.write_table(table, path)
    return ArrowImages([path])


ROWS = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))])


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["shards.index", "state.json", "dataset_dict.json", "x.tar", "x.arrow", "x.txt"])
def test_pipes_in_place_of_other_files_are_told(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / name)
    if name == "state.json":
        (folder / "dataset_info.json").write_text("{}")
    for path in (folder, folder / name):
        with pytest.raises(UserError):
            open_images(path)


def read_large(folder: Path) -> list[str]:
    """Images whose files have gigabytes, in all kinds of sources."""
    found = []
    for images in (
        ImageList.scan(folder / "photos"),
        rows_at(folder, ["photos/large.jpg"]),
        open_images(folder / "x.tar"),
    ):
        try:
            images.read(len(images) - 1)
        except OSError as error:
            found.append(str(error))
    return found


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.jpg").touch()
    os.truncate(tmp_path / "photos" / "large.jpg", 5 * 10**9)  # sparse: it takes no room
    member = tarfile.TarInfo("large.jpg")
    member.size = 5 * 10**9
    (tmp_path / "x.tar").write_bytes(member.tobuf())
    os.truncate(tmp_path / "x.tar", 512 + -(-member.size // 512) * 512 + 1024)
    told = survived(read_large, tmp_path)
    assert len(told) == 3
    assert all("it has 5000000000 bytes, and no image of max_pixels has more than " in line for line in told)
