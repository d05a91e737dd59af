"""Files of features in the order of their images: written piece by piece, read piece by piece."""

import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mgd_ssl.data.images import Images
from mgd_ssl.errors import UserError
from mgd_ssl.files import write_whole

CHUNK = 8192  # rows at a time


class Table(NamedTuple):
    """Features and what they are of."""

    values: np.ndarray  # [n, d] float32, mapped; rows of images that could not be read are not a number
    shape: tuple[int, ...]  # of a row: d, or channels and positions
    images: Images
    labels: np.ndarray | None  # [n] class index, None where there are no classes
    classes: list[str]  # their names

    def label(self, row: int) -> str:
        """Name of an image's class, empty without classes."""
        return "" if self.labels is None else self.classes[int(self.labels[row])]

    def chunks(self) -> Iterator[tuple[range, np.ndarray]]:
        """Rows and their features [m, d]."""
        for start in range(0, len(self.values), CHUNK):
            rows = range(start, min(start + CHUNK, len(self.values)))
            yield rows, np.asarray(self.values[rows.start : rows.stop])


def write(table: Table, file: BinaryIO, path: Path) -> None:
    """Write a table as the ending of `path` says; for .npy names and labels go to a file beside it."""
    {".npy": _write_npy, ".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}[path.suffix](table, file)
    if path.suffix == ".npy":
        write_whole(names_beside(path), _names(table))


def names_beside(path: Path) -> Path:
    """`features.npy` -> `features_names.csv`."""
    return path.with_name(f"{path.stem}_names.csv")


def check_library(path: Path) -> None:
    """Raise UserError when a library is missing that the file's kind needs."""
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(f"{path} needs pyarrow: pip install 'mgd_ssl[hf]', or write .npy or .csv") from error


def read(path: Path) -> Iterator[np.ndarray]:
    """Features [m, d] of a file, in order, piece by piece."""
    if path.suffix == ".npy":
        values = np.load(path, mmap_mode="r")
        yield from (np.asarray(values[i : i + CHUNK]).reshape(-1, _width(values)) for i in range(0, len(values), CHUNK))
    elif path.suffix == ".npz":
        with np.load(path) as content:
            values = content["features"]
        yield from (values[i : i + CHUNK].reshape(-1, _width(values)) for i in range(0, len(values), CHUNK))
    elif path.suffix == ".csv":
        yield from _read_csv(path)
    else:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK, columns=["features"]):
                column = batch.column(0)
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _width(values: np.ndarray) -> int:
    return int(np.prod(values.shape[1:]))


def _read_csv(path: Path) -> Iterator[np.ndarray]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = csv.reader(file)
        next(lines)
        rows: list[list[float]] = []
        for line in lines:
            rows.append([float(value) for value in line[2:]])
            if len(rows) == CHUNK:
                yield np.array(rows, np.float32)
                rows = []
        if rows:
            yield np.array(rows, np.float32)


def _write_npy(table: Table, file: BinaryIO) -> None:
    shape = (len(table.values), *table.shape)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for _, values in table.chunks():
        file.write(values.astype("<f4", copy=False).tobytes())


def _write_npz(table: Table, file: BinaryIO) -> None:
    arrays: dict[str, Any] = {"names": np.array([table.images.name(i) for i in range(len(table.values))])}
    if table.labels is not None:
        arrays |= {"labels": table.labels, "classes": np.array(table.classes)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as content:
        with content.open("features.npy", "w", force_zip64=True) as member:
            _write_npy(table, member)  # type: ignore[arg-type]
        for name, array in arrays.items():
            with content.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_csv(table: Table, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["name", "label", *(f"f{i}" for i in range(table.values.shape[1]))])
    for rows, values in table.chunks():
        for row, feature in zip(rows, values.tolist(), strict=True):
            lines.writerow([table.images.name(row), table.label(row), *(f"{value:.9g}" for value in feature)])
    text.flush()
    text.detach()


def _names(table: Table) -> bytes:
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["name", "label"])
    lines.writerows([table.images.name(row), table.label(row)] for row in range(len(table.values)))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _write_parquet(table: Table, file: BinaryIO) -> None:
    import pyarrow
    import pyarrow.parquet

    width = table.values.shape[1]
    schema = pyarrow.schema(
        [("name", pyarrow.string()), ("label", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32(), width))]
    )
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for rows, values in table.chunks():
            features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), width)
            names = [table.images.name(row).encode("utf-8", "replace").decode() for row in rows]
            labels = [table.label(row) if table.labels is not None else None for row in rows]
            columns = [pyarrow.array(names), pyarrow.array(labels, pyarrow.string()), features]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
