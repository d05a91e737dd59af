"""Errors for the user: one sentence that names the value and the remedy, shown without a traceback."""


class UserError(Exception):
    """Something the user can mend: a path, a setting, a full disk."""


class TrainingError(UserError):
    """Training had to stop; what was saved before stays."""


def nearest(word: str, known: list[str]) -> str:
    """`, did you mean 'x'?` for the closest of the known words, or an empty string."""
    import difflib

    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""
