"""Randomness with an address: a generator that is a function of what it is for, not of what was drawn before.

Whatever is random about a sample is drawn from (seed, purpose, epoch, index, view), so a run can stop in the
middle of an epoch and go on with another number of workers or processes without replaying anything.
"""

import zlib

import numpy as np


def keyed_generator(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """Counter-based generator (Philox) for one address.

    Args:
        seed: of the run, at least 0.
        purpose: what is drawn; draws for different purposes are independent.
        address: up to three non-negative integers, for instance (epoch, index, view).
    """
    counter = [0, *address, *(0,) * (3 - len(address))]  # word 0 counts the numbers drawn
    key = _Key([seed, zlib.crc32(purpose.encode())])
    return np.random.Generator(np.random.Philox(key, counter=counter))  # type: ignore[arg-type]


class _Key(np.random.bit_generator.ISeedSequence):
    """Philox's key in the place of a seed; with `key=` it would first ask the system for a seed, at twice the time."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> np.ndarray:
        """The key, which is all that Philox asks for."""
        return self.words


def keyed_seed(seed: int, purpose: str, *address: int) -> int:
    """Integer in [0, 2**63) for one address, to seed a `torch.Generator`."""
    return int(keyed_generator(seed, purpose, *address).integers(2**63))
