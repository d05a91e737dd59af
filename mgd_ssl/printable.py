"""Text of others (names of files, classes and runs, words of a command line) made safe to show."""

import re

# Control characters, which move the cursor, clear the screen or end a line; marks that reverse the direction of what
# is read; separators of lines; bytes that are no text.
HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = re.compile(r"\s*[=+\-@]|[\t\r]")  # how a cell begins that a spreadsheet takes for a formula


def printable(text: object) -> str:
    r"""Text on one line: what HIDDEN finds is written as Python would write it, `\x1b`, `\n`, `\u202e`."""
    return HIDDEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def printable_lines(text: str) -> str:
    """`printable` of every line of a text of several, a traceback for one."""
    return "\n".join(map(printable, text.split("\n")))


def is_printable(text: object) -> bool:
    """Whether `printable` would leave it as it is."""
    return HIDDEN.search(str(text)) is None


def cell(value: object) -> object:
    """A value of a CSV file; text that a spreadsheet would calculate gets an apostrophe in front, numbers do not."""
    if not isinstance(value, str) or len(value) < 2 or not FORMULA.match(value) or NUMBER.fullmatch(value):
        return value
    return f"'{value}"


LONGEST = 80  # characters of a name that are shown


def shown(name: object) -> str:
    """A name from a file as it may stand in a sentence: short, one line, no control characters."""
    text = name if isinstance(name, str) and name.isprintable() else repr(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
