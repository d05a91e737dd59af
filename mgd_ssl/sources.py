"""Opens images wherever they are: a folder, tar shards, a Hugging Face data set."""

import glob
from pathlib import Path

from mgd_ssl.errors import UserError
from mgd_ssl.images import ImageList, Images, is_image
from mgd_ssl.shards import INDEX_NAME, open_packed, open_shards

KINDS = "a folder of images, tar shards (a folder, a file, a pattern, a list) or a Hugging Face data set"


def open_images(path: Path) -> Images:
    """The images at a path.

    Args:
        path: a folder of images; tar shards as the folder they lie in, one .tar file, a pattern like `dir/*.tar`, or
            a text file with a path a line, relative to it.

    Raises:
        UserError: when there is no image, or a file is missing or damaged.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return open_shards([path] if path.suffix == ".tar" else listed(path))
    if found := matching(path):
        return open_shards(found)
    raise UserError(f"{path} is not there: pass {KINDS}")


def is_there(path: Path) -> bool:
    """Whether `open_images` has something to open."""
    return path.exists() or bool(matching(path))


def matching(pattern: Path) -> list[Path]:
    """Paths that match a pattern with *, ? or [...], sorted."""
    return [Path(name) for name in sorted(glob.glob(str(pattern)))] if glob.has_magic(str(pattern)) else []


def _open_folder(folder: Path) -> Images:
    """Shards where there is an index of them, or nothing else than shards; else images."""
    if (folder / INDEX_NAME).exists():
        return open_packed(folder)
    shards = sorted(folder.glob("*.tar"))
    if shards and not any(entry.is_dir() or is_image(entry.name) for entry in folder.iterdir()):
        return open_shards(shards)
    return ImageList.scan(folder)


def listed(path: Path) -> list[Path]:
    """The paths in a text file, one a line, relative to the file's folder; empty lines and # lines do not count.

    Raises:
        UserError: when it is no text, or lists nothing.
    """
    if is_image(path.name):
        raise UserError(f"{path} is a single image: pass {KINDS}")
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is neither a .tar file nor a list of them: pass {KINDS}") from error
    found = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} lists no shard: write one path a line")
    if odd := [shard for shard in found if shard.suffix != ".tar"]:
        raise UserError(f"{path} lists {odd[0].name}, which is no .tar file: write one shard a line")
    return found
