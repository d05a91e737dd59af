"""The account of how a file's weights became a network's."""

from pathlib import Path
from typing import NamedTuple

from mgd_ssl.networks.known import Recognised
from mgd_ssl.networks.layouts import told_unused
from mgd_ssl.networks.normalisation import USUAL, Normalisation
from mgd_ssl.run.folder import run_of


class LoadReport(NamedTuple):
    """How the keys of a file were mapped to a backbone."""

    path: Path
    sha256: str
    arch: str
    prefix: str  # stripped from the file's keys
    num_loaded: int  # tensors of the backbone
    unused: dict[str, int]  # what else the file holds: first part of the key -> number of tensors
    cast: tuple[tuple[str, int], ...] = ()  # types that became float32, and how many tensors
    untrained_seed: int | None = None  # of weights drawn at random; None: they are the file's
    classes: int | None = None  # of the classifier that was loaded with it
    layout: str = "plain"  # whose names they were
    head: tuple[int, ...] = ()  # widths of the projection head that was loaded with it
    normalisation: Normalisation = USUAL  # of its input
    normalised_by: str = "usual"  # who says so
    recognised: Recognised | None = None  # as a published file
    licence: str | None = None  # of the weights, as far as it is known
    md5: str = ""
    doubt: str | None = None  # about its normalisation

    def __str__(self) -> str:
        if self.untrained_seed is not None:
            return f"{self.path}: an untrained {self.arch}, weights of seed {self.untrained_seed}"
        cast = "".join(f"; {count} of them cast from {kind} to float32" for kind, count in self.cast)
        head = f" and its projection head {'-'.join(map(str, self.head))}" if self.head else ""
        layout = f"{self.layout} layout, " if self.layout != "plain" else ""
        return (
            f"{self.path}: {self.num_loaded} tensors -> {self.arch}{cast}{head} "
            f"({layout}prefix {self.prefix!r} stripped; not used: {told_unused(self.unused)}; "
            f"sha256 {self.sha256[:12]})"
        )

    def notes(self) -> list[str]:
        """Sentences on whose weights these are, under which licence, and what input they take."""
        told = []
        if self.recognised is not None:
            known, proven, _ = self.recognised
            top1 = f", published top-1 {known.top1:g}" if known.top1 else ""
            told.append(f"by its {'hash' if proven else 'name'} it is {known.name}{top1} ({known.source})")
        if run_of(self.path) is None:
            told.append(f"licence of its weights: {self.licence or 'not known here, see where it comes from'}")
        if self.normalisation != USUAL or self.normalised_by != "usual":
            told.append(f"its input has {self.normalisation} ({self.normalised_by}), and gets it")
        return told

    def warnings(self) -> list[str]:
        """What follows `the teacher PATH`."""
        told = [self.doubt] if self.doubt else []
        if self.recognised is not None and self.recognised.other:
            known, _, other = self.recognised
            told.append(
                f"has the name of {known.name} and another hash than published ({other}...): it is another file"
            )
        return told
