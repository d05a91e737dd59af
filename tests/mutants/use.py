"""Faults of what a user meets: the command line, settings that nobody gives, tables."""

from tests.mutants.fault import Fault

WORDS = ("tests/test_refused_words.py",)

USE = [
    Fault("words: any word is like any other", "cutoff=ALIKE)\n    return f\", did", "cutoff=0.1)\n    return f\", did", WORDS),
    Fault("words: the parser's fault without its value", "return str(error)", "continue", WORDS, "wrong_value"),
    Fault("words: unknown options pass", "if unknown:\n        raise UserError(unknown_word", "if False:\n        raise UserError(unknown_word", WORDS),
    Fault("words: an option by the name of its field", "own[0] if own else name", "name", WORDS),
]  # fmt: skip
