"""Features of all images of a source as rows that are computed part by part."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mgd_ssl.data.images import Images, Unreadable
from mgd_ssl.data.loader import Reading
from mgd_ssl.data.sources import Labelled
from mgd_ssl.data.unreadable import over_ranks
from mgd_ssl.errors import UserError
from mgd_ssl.evaluation.features import FeatureExtractor
from mgd_ssl.evaluation.partwise import Part, Progress, Work
from mgd_ssl.run.stop import StopRequest
from moco.dist import world_size


class Asked(Protocol):
    """Settings of a command that goes through images once."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def workers(self) -> int | None: ...  # noqa: D102

    @property
    def max_unreadable(self) -> float: ...  # noqa: D102


class FeatureRows(NamedTuple):
    """One row an image, in the order of the source."""

    images: Images
    extract: FeatureExtractor
    asked: Asked
    shape: Callable[[np.ndarray], tuple[int, ...]] = lambda values: values.shape[1:]  # of a row
    gaps: bool = True  # an image that cannot be read is a row of nan; else the row of the one that takes its place

    def work(self) -> Work:
        """For `Partwise.fill`; a part is held by every process.

        Raises (while it is done):
            UserError: when a feature is not finite, or too many images cannot be read.
        """
        least = self.asked.batch_size * world_size()
        return Work("features", len(self.images), least, len(self.images), self.part, self.check)

    def part(self, rows: np.ndarray, stop: StopRequest, progress: Progress) -> Part:
        """Features of some images."""
        runtime, noted = self.extract.runtime, Notes()
        workers, pin = runtime.data_workers(self.asked.workers), runtime.device.type == "cuda"
        reading = Reading(self.asked.batch_size, workers, pin, noted, stop, progress)
        found = self.extract(Labelled(self.images, np.arange(len(self.images))), rows, reading)
        if self.gaps:
            found.values[found.labels != rows] = np.nan
        return Part(found.values, self.shape(found.values), over_ranks(noted.files))

    def check(self, unreadable: dict[str, str]) -> None:
        """Raise UserError when too many images cannot be read."""
        share, most = len(unreadable) / len(self.images), self.asked.max_unreadable
        if share > most:
            raise UserError(
                f"{len(unreadable)} of {len(self.images)} images in {self.images.root} ({share:.1%}) are unreadable, "
                f"first {next(iter(unreadable))}: mend them, or raise --max-unreadable above {most:g}"
            )


class Notes:
    """What could not be read in one part."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def note(self, unreadable: Sequence[Unreadable]) -> None:
        """Remember them."""
        self.files.update(unreadable)
