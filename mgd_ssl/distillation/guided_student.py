"""Any student beside any teacher, matched by MGD: the short way for a network and a loss of one's own."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mgd_ssl.distillation.rematch import rematch
from mgd_ssl.mgd.mgd import MGD, StageMatch
from mgd_ssl.networks.taps import FeatureTaps


class GuidedStudent(nn.Module):
    """A student whose maps are drawn towards those of a frozen teacher.

    Args:
        student: is trained; its state dict stays as it is.
        teacher: is put into eval mode and never changes.
        stages: ReLU of the student -> ReLU of the teacher, by their module names; maps are read before them.
        reducer: see `MGD`.

    Margins are measured on the images of `rematch`. Parameters are the student's and one BatchNorm's a stage.

    Raises:
        ValueError: when a name is no ReLU-like module of its network.
    """

    mgd: MGD

    def __init__(self, student: nn.Module, teacher: nn.Module, stages: Mapping[str, str], reducer: str = "amp") -> None:
        super().__init__()
        self.student, self._reducer = student, reducer
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list: no part of the state dict
        self._taps = FeatureTaps(student, list(stages)), FeatureTaps(teacher, list(stages.values()))

    def rematch(self, batches: Iterable[Tensor]) -> list[StageMatch]:
        """Match the channels by what both networks see in some images; call it before training, and now and then.

        Args:
            batches: images [N, 3, H, W], on the networks' device.

        Returns:
            How every stage changed.

        Raises:
            ValueError: when two maps differ in size, or a student's stage is wider than the teacher's.
        """
        batches = list(batches)
        if not hasattr(self, "mgd"):
            channels = [[m.shape[1] for m in maps] for maps in (self._student_maps(batches[0]), self._maps(batches[0]))]
            student_channels, teacher_channels = channels
            self.mgd = MGD(student_channels, teacher_channels, reducer=self._reducer).to(batches[0].device)
        changes, _ = rematch(self.mgd, self._student_maps, self._maps, batches, measure_margins=True)
        return changes

    def forward(self, images: Tensor, *args: Any) -> tuple[Any, Tensor]:
        """What the student returns, and the distillation loss (a scalar, before its weight)."""
        with self._taps[0].record() as maps:
            output = self.student(images, *args)
        return output, self.mgd(maps, self._maps(images))

    @torch.no_grad()
    def _maps(self, images: Tensor) -> list[Tensor]:
        with self._taps[1].record() as maps:
            self._teacher[0](images)
        return maps

    @torch.no_grad()
    def _student_maps(self, images: Tensor) -> list[Tensor]:
        with _in_eval_mode(self.student), self._taps[0].record() as maps:
            self.student(images)
        return maps


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
