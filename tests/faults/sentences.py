"""What is told in one sentence, and the control characters that must not be in it."""

from collections.abc import Callable

from mgd_ssl.errors import UserError

CONTROL = "\x00\x01\x07\x08\t\n\x0b\r\x1b\x7f\x85\x9b\u2028\u202e"


def refusal(work: Callable[[], object]) -> str:
    """The sentence of a UserError, empty where there was none."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""
