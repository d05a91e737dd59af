"""Whether the records of a torch file are those that were written: `torch.load` does not look at their checksums."""

import io
import zipfile

DIRECTORY = 0x10  # attribute of a record that torch's reader takes for a folder and leaves unread, memory as it was


class CompressedError(ValueError):
    """A record is compressed, which torch.save never does: a few bytes may stand for more than the memory holds."""


def check_records(content: bytes) -> None:
    """Hold every record of a zip against its CRC-32, which finds any single flipped bit.

    A file whose checksums are all 0 was written without them (`torch.serialization.set_crc32_options(False)`) and
    passes, as do files from before torch 1.6, which are no zips and have none.

    Args:
        content: of the whole file.

    Raises:
        CompressedError: for a record that is not stored as it is.
        ValueError: naming the record that is damaged, or saying what is wrong with the zip.
    """
    if not content.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = archive.infolist()
            packed = next((record.filename for record in records if record.compress_type != zipfile.ZIP_STORED), None)
            damaged = next((record.filename for record in records if record.external_attr & DIRECTORY), None)
            if packed is None and damaged is None and any(record.CRC for record in records):
                damaged = archive.testzip()
    except (
        Exception
    ) as error:  # a damaged directory makes the reader raise anything: NotImplementedError, EOFError, ...
        raise ValueError(f"no zip that can be read ({error})") from error
    if packed is not None:
        raise CompressedError(packed)
    if damaged is not None:
        raise ValueError(f"record {damaged} does not match its checksum")
