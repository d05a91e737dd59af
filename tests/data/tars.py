"""Tar shards written and read by tests."""

import tarfile
from io import BytesIO
from pathlib import Path

from mgd_ssl.data.images import Images
from tests.conftest import write_images
from tests.data.reading import contents, names
from tests.runs import processes


def jpegs(folder: Path, count: int, seed: int = 0) -> list[bytes]:
    return [path.read_bytes() for path in write_images(folder / "jpegs", count, seed)]


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


# processes


def read_in_child(images: Images, queue: "processes.Queue[object]") -> None:  # type: ignore[name-defined]
    queue.put((contents(images), names(images), images.labels()[0].tolist()))
