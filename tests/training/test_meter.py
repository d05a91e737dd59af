"""Averages and speed between two rows, by hand."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from mgd_ssl.data.samples import PretrainBatch
from mgd_ssl.errors import TrainingError
from mgd_ssl.training import meter as meter_module
from mgd_ssl.training.meter import Clock, Meter
from mgd_ssl.training.task import StepOutput


def output(contrastive: float, mgd: float, accuracy: float) -> StepOutput:
    losses = {"contrastive": torch.tensor(contrastive), "mgd": torch.tensor(mgd)}
    return StepOutput(losses, {"accuracy": torch.tensor(accuracy)})


def test_means_are_those_since_the_last_reset() -> None:
    meter = Meter(torch.device("cpu"))
    meter.update(output(9.0, 9.0, 1.0), 0)
    meter.reset()
    meter.update(output(1.0, 0.5, 0.25), 1)
    meter.update(output(2.0, 0.75, 0.75), 2)
    assert meter.means() == {"loss": 2.125, "contrastive": 1.5, "mgd": 0.625, "accuracy": 0.5}
    meter.check_finite(str)


def test_the_first_loss_that_is_not_finite_is_named() -> None:
    meter = Meter(torch.device("cpu"))
    for step, total in enumerate((1.0, math.nan, 1.0, math.inf)):
        meter.update(output(total, 1.0, 0.0), step)
    meter.reset()
    with pytest.raises(TrainingError, match="the loss of step 1 is not finite"):
        meter.check_finite(str)


def test_speed_leaves_out_pauses_and_waiting_is_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def batches() -> Iterator[PretrainBatch]:
        nonlocal now
        while True:
            now += 1.5  # to come
            yield PretrainBatch(torch.empty(0), torch.empty(0), [])

    monkeypatch.setattr(meter_module, "time", SimpleNamespace(monotonic=lambda: now))
    clock, loader = Clock(), batches()
    for seconds, speed, share in ((0.5, 8.0, 0.75), (1.5, 16 / 3, 0.5)):  # the second time from the first reading on
        for _ in range(3):
            clock.next_batch(loader)
            now += seconds  # a step
            with clock.paused():
                now += 1000.0
        assert clock.read(16) == {"images_per_second": pytest.approx(speed), "data_wait": pytest.approx(share)}


class Behind:
    """Batches for which a device was waited for, beside the data."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock, self.device_wait = clock, 0.0

    def __iter__(self) -> Iterator[None]:
        return self

    def __next__(self) -> None:
        self.clock.now += 4.0
        self.device_wait += 3.0


def test_waiting_for_the_device_is_no_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter_module, "time", SimpleNamespace(monotonic=lambda: state.now))
    clock, loader = Clock(), Behind(state)
    for _ in range(2):
        clock.next_batch(loader)
    assert clock.read(8) == {"images_per_second": 2.0, "data_wait": 0.25}
