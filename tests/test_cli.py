"""The command line itself, in a process of its own."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_reader_who_has_seen_enough_is_no_error(flag: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "mgd_ssl.cli", flag]
    with os.fdopen(writing, "wb") as closed:
        answer = subprocess.run(words, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")
