"""The lists in a large JSON file, element by element: memory is that of one element, not of the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

CHUNK = 2**20  # characters read at a time
LONGEST = 2**26  # characters of an element, or of a value outside lists
SPACE = " \t\n\r"


class StreamedJSON:
    """A JSON file whose value is an object.

    Args:
        file: opened as text.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._buffer, self._at, self._ended = file, "", 0, False
        self._decoder = json.JSONDecoder()

    def elements(self) -> Iterator[tuple[str, Any]]:
        """The key and an element of every list in the object, in the order of the file; other values come whole.

        Raises:
            ValueError: for what is no JSON object, or holds an element that is too long.
        """
        self._expect("{")
        if self._peek() == "}":
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise ValueError("a key is no text")
            self._expect(":")
            if self._peek() == "[":
                yield from ((key, element) for element in self._list())
            else:
                yield key, self._value()
            if self._next() == "}":
                return

    def _list(self) -> Iterator[Any]:
        self._expect("[")
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._next() == "]":
                return

    def _next(self) -> str:
        """What follows a value: a comma, or the end of the list or object."""
        mark = self._peek()
        if mark not in (",", "]", "}"):
            raise ValueError(f"{mark!r} where a comma should be")
        self._at += 1
        return mark

    def _expect(self, mark: str) -> None:
        if (found := self._peek()) != mark:
            raise ValueError(f"{found!r} where {mark!r} should be")
        self._at += 1

    def _peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(CHUNK):
                raise ValueError("it ends too early")

    def _value(self) -> Any:
        """The value at hand; it is whole only when something follows it, as a number may go on."""
        self._peek()
        wanted = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except ValueError:
                if len(self._buffer) - self._at > LONGEST:
                    raise ValueError(f"an element is longer than {LONGEST} characters, or damaged") from None
                if not self._more(wanted):
                    raise
            else:
                if end < len(self._buffer) or not self._more(wanted):
                    self._at = end
                    return value
            wanted *= 2  # of a long value no part is looked at more than twice on average

    def _more(self, count: int) -> bool:
        """Read on; what was used is forgotten."""
        chunk = "" if self._ended else self._file.read(count)
        self._ended = self._ended or not chunk
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)


def elements_of(path: Path) -> Iterator[tuple[str, Any]]:
    """`StreamedJSON.elements` of a file.

    Raises:
        ValueError: when it is no JSON object.
        OSError: as the file system says.
    """
    with path.open(encoding="utf-8-sig") as file:
        yield from StreamedJSON(file).elements()
