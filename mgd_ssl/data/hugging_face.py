"""Images in Hugging Face data sets on disk: Arrow files (`save_to_disk`) or Parquet files, read by row with pyarrow.

Only the files are read, so the `datasets` library is not needed. An image column holds structs {bytes, path}.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgd_ssl.data.images import Images, check_bytes, hash_of_files, read_regular
from mgd_ssl.data.labels import numbered
from mgd_ssl.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".arrow", ".parquet")
OPEN_FILES = 64  # mapped Arrow files, or Parquet footers, that a process holds at most
LONGEST_JSON = 2**26  # bytes of a data set's own files
ROW_GROUPS = 2  # of Parquet files that a process holds in memory


@dataclass(frozen=True)
class Columns:
    """Where images and labels are."""

    image: str
    label: str | None
    classes: list[str] | None  # names of the ClassLabel, None for other columns


class ArrowImages(Images):
    """Rows of Arrow or Parquet files.

    A row of an Arrow file is read where it lies. In a Parquet file its whole row group is read and kept until two
    others were needed, which suits reading in order.

    Args:
        paths: the files, in the order of the rows.

    Raises:
        UserError: without pyarrow, when a file is missing, damaged or has no image column, or there are no rows.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing: restore it, or leave it out")
        self.paths, self.ignored = list(paths), []
        self.root = Path(os.path.commonpath([path.parent for path in paths]))
        with _told(paths[0]):
            self.columns = find_columns(paths[0], _schema(paths[0]))
        counts = []
        for path in paths:
            with _told(path):
                _check_rows(path, self.columns.image)
                if self.columns.image not in _schema(path).names:
                    raise UserError(f"{path} has no column {self.columns.image!r}, as {paths[0]} has: pass files alike")
                counts.append(_num_rows(path))
        self.ends = np.cumsum(counts)  # [files] rows up to the last of each file
        if self.ends[-1] == 0:
            raise UserError(f"{self.root} holds no rows: pass a data set with images")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, index: int) -> tuple[Path, int]:
        """File of an image, and its row in it."""
        file = int(np.searchsorted(self.ends, index, side="right"))
        return self.paths[file], index - (int(self.ends[file - 1]) if file else 0)

    def name(self, index: int) -> str:
        """`train-00000.arrow/000000000`: the file and the row."""
        path, row = self._place(index)
        return f"{os.path.relpath(path, self.root)}/{row:09d}"

    def read(self, index: int) -> bytes:
        """The encoded image, or that at the path which the row holds instead, relative to the data set's folder.

        Raises:
            OSError: when the row holds no image, a path that leads out of the data set's folder, or too many bytes, or
                the file is no longer the one that was opened.
        """
        path, row = self._place(index)
        value, most = _value(path, self.columns.image, row), self.decoding.max_bytes
        content, where = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is None and isinstance(where, str):
            return read_regular(below(self.root, where), most)
        if not isinstance(content, bytes):
            raise OSError("the row holds no image")
        check_bytes(len(content), most)
        return content

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """Class index [n] of every image and the class names: the ClassLabel's, else the values of `label`."""
        column, classes = self.columns.label, self.columns.classes
        if column is None:
            raise UserError(f"{self.root} has no column with labels: pass one with a ClassLabel, or with `label`")
        values = []
        for path in self.paths:
            with _told(path):
                values += _column(path, column)
        odd = next((value for value in values if value is not None and not isinstance(value, int | str | float)), None)
        if odd is not None:
            raise UserError(f"{self.root} has labels that are no classes (column {column}): pass numbers or names")
        wrong = next((i for i, value in enumerate(values) if value is None or value == -1), None)
        if wrong is not None:
            raise UserError(f"{self.root / self.name(wrong)} has no label ({values[wrong]}): pass a labelled split")
        if len(found := set(values)) == 1:
            raise UserError(f"{self.root} holds the single class {found.pop()!r}: labels need at least two")
        if classes is not None:
            if outside := found - set(range(len(classes))):
                raise UserError(
                    f"{self.root} has the label {outside.pop()!r} of {len(classes)} classes: write it again"
                )
            return np.array(values), classes
        index_of = numbered(str(value) for value in found)
        return np.array([index_of[str(value)] for value in values]), list(index_of)

    def fingerprint(self) -> str:
        """Hash of the names, sizes and rows of the files, and of their order."""
        files = [(os.path.relpath(path, self.root), path.stat().st_size) for path in self.paths]
        return hashlib.sha256(json.dumps([files, self.ends.tolist()]).encode()).hexdigest()

    def state(self) -> str:
        """Hash of the place, and of the names, sizes and times of all files."""
        return hash_of_files(self, (os.path.relpath(path, self.root) for path in self.paths))


def below(root: Path, where: str) -> Path:
    """A path of a row, relative to the data set's folder or absolute; links in that folder are its owner's.

    Raises:
        OSError: when it leads out of the folder.
    """
    path = os.path.normpath(root.absolute() / where)
    if not any(path.startswith(f"{folder}{os.sep}") for folder in (os.path.abspath(root), os.path.realpath(root))):
        raise OSError(errno.EPERM, "the row's path leads out of the data set's folder", where)
    return Path(path)


def is_saved(folder: Path) -> bool:
    """Whether a folder was made by `save_to_disk`, of one split or of several."""
    return (folder / "dataset_dict.json").exists() or all(
        (folder / name).exists() for name in ("state.json", "dataset_info.json")
    )


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder made by `save_to_disk`, in their order.

    Raises:
        UserError: when the folder holds several splits, no file, or rows that are to be looked up elsewhere.
    """
    if (folder / "dataset_dict.json").exists():
        splits = _json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
            raise UserError(f"{folder / 'dataset_dict.json'} lists no split: pass the folder of one, or save it again")
        raise UserError(f"{folder} holds the splits {', '.join(splits)}: pass one of them, as {folder / splits[0]}")
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} was saved with a selection of rows: call flatten_indices() and save it again")
    files = state.get("_data_files")
    if not isinstance(files, list) or not files:
        raise UserError(f"{folder / 'state.json'} lists no file: save the data set again")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    if odd := [name for name in names if not isinstance(name, str) or name != os.path.basename(name) or "\0" in name]:
        raise UserError(f"{folder / 'state.json'} lists {odd[0]!r}, no file of that folder: save the data set again")
    return [folder / str(name) for name in names]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that `datasets` wrote."""
    try:
        found = json.loads(read_regular(path, LONGEST_JSON))
        if isinstance(found, dict):
            return found
        raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): save the data set again") from error


def find_columns(path: Path, schema: "pyarrow.Schema") -> Columns:
    """The image column and the labels', by what `datasets` wrote about them, else by types and names.

    Raises:
        UserError: when there is no image column, or several and none is called `image`.
    """
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(metadata)["info"]["features"] if metadata else {}
        features = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has damaged metadata ({type(error).__name__}): copy or write it again") from error
    types = {field.name: str(field.type) for field in schema}
    images = [name for name, feature in features.items() if feature.get("_type") == "Image" and name in types]
    images = images or [name for name, kind in types.items() if kind.startswith("struct<bytes: ")]
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(images) != 1:
        found = f"the image columns {', '.join(images)}" if images else f"no image column among {', '.join(types)}"
        raise UserError(f"{path} has {found}: pass a data set with one, or one called image")
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = "label" if "label" in types else labels[0] if len(labels) == 1 else None
    classes = features.get(label or "", {}).get("names")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if classes is not None and (not named or len(set(classes)) < len(classes)):
        raise UserError(f"{path} has damaged metadata (names of {label}): copy or write it again")
    return Columns(images[0], label, classes)


# files; everything is opened once in every process that needs it


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What pyarrow says of a damaged file, and that it is missing itself, as an error for the user."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow: pip install 'mgd_ssl[hf]'") from error
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged ({first}): copy or write it again") from error


def _table(path: Path) -> "pyarrow.Table":
    return _mapped(path, os.getpid())


@lru_cache(maxsize=OPEN_FILES)
def _mapped(path: Path, process: int) -> "pyarrow.Table":
    """The rows of an Arrow file, which stay in it; of the stream format, as `datasets` writes, or the file format."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    opened: Callable[[Any], Any] = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    return opened(source).read_all()


@lru_cache(maxsize=OPEN_FILES)
def _parquet(path: Path, process: int) -> Any:
    """A Parquet file, and the row at which each of its row groups ends."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    return file, np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], dtype=np.int64)


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(path: Path, column: str, group: int, process: int) -> Any:
    file, _ = _parquet(path, process)
    return file.read_row_group(group, columns=[column], use_threads=False)[column]


def _schema(path: Path) -> "pyarrow.Schema":
    return _parquet(path, os.getpid())[0].schema_arrow if path.suffix == ".parquet" else _table(path).schema


def _num_rows(path: Path) -> int:
    return int(_parquet(path, os.getpid())[0].metadata.num_rows if path.suffix == ".parquet" else _table(path).num_rows)


def _check_rows(path: Path, column: str) -> None:
    """Raise pyarrow's error when an Arrow file is damaged: it is mapped, so wrong positions of rows would end the
    process, not raise an error. Parquet is checked while it is decoded."""
    if path.suffix != ".parquet" and column in _table(path).column_names:
        _table(path)[column].validate(full=True)


def _value(path: Path, column: str, row: int) -> Any:
    if path.suffix != ".parquet":
        return _table(path)[column][row].as_py()
    process = os.getpid()
    ends = _parquet(path, process)[1]
    group = int(np.searchsorted(ends, row, side="right"))
    return _row_group(path, column, group, process)[row - (int(ends[group - 1]) if group else 0)].as_py()


def _column(path: Path, column: str) -> list[Any]:
    """All values of a small column."""
    if path.suffix != ".parquet":
        _check_rows(path, column)
        return list(_table(path)[column].to_pylist())
    return list(_parquet(path, os.getpid())[0].read(columns=[column], use_threads=False)[column].to_pylist())
