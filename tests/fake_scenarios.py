"""What the program would do on a GPU: steps, a matching pass, features, validation, a probe, on `tests.fake_cuda`.

`python -m tests.fake_scenarios` prints it as JSON, in a process of its own: what it pretends cannot be taken back.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import moco.builder
import moco.shuffle
from linear_eval.feature_batches import CachedSource, LiveSource, Transform
from linear_eval.heads import Heads
from linear_eval.protocols import Setting
from mgd_ssl.config import DataConfig, MoCoConfig, OptimConfig, PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import ONCE
from mgd_ssl.data.samples import EvalBatch, PretrainBatch
from mgd_ssl.data.sources import Labelled
from mgd_ssl.distillation.rematch import rematch
from mgd_ssl.evaluation import features, validation
from mgd_ssl.evaluation.features import Features
from mgd_ssl.mgd.matching import MatchingStatistics
from mgd_ssl.networks import fused
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import build_backbone, trunk
from mgd_ssl.networks.frozen import FrozenBackbone
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import GuidedMoCo, build_method
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.training.meter import Meter
from tests.fake_cuda import BATCH, CLASSES, GPU, SIZE, Watch, moved, on_gpu, pinned, prepare, run

Scenario = Callable[[Watch, FakeTensorMode], None]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
IMAGES = ImageList(Path("none"), [f"{i}.jpg" for i in range(8 * BATCH)])
LABELLED = Labelled(IMAGES, np.arange(8 * BATCH) % CLASSES)


class Done(Exception):
    """The part that is watched is over."""


def networks(mode: FakeTensorMode, config: PretrainConfig, guided: bool) -> tuple[GuidedMoCo, Teacher | None]:
    """Student and teacher as a run has them before its first step, on the GPU."""
    with unset_fake_temporarily():
        teacher = Teacher(build_backbone("thin_resnet14")) if guided else None
        method = build_method(config, teacher)
        if teacher is not None:
            teacher.fold()
            (mgd,) = (term.mgd for _, term in method.guide.named_terms())  # type: ignore[attr-defined]
            mgd.set_assignments([torch.randperm(a.numel()).view(a.shape) for a in mgd.assignments])
            moved_teacher = teacher
    moved(method, mode)
    if teacher is not None:
        moved(moved_teacher, mode)
    return method, teacher


def settings(batch_size: int = BATCH) -> PretrainConfig:
    return PretrainConfig(
        student="thin_resnet10",
        out=Path("none"),
        data=DataConfig(train=Path("none"), image_size=SIZE),
        moco=MoCoConfig(queue_size=64),
        optim=OptimConfig(batch_size=batch_size, epochs=1),
    )


def step(precision: str, guided: bool, ranks: int = 1) -> Scenario:
    """A step of pretraining, from bytes in pinned memory to the meter."""

    def scenario(watch: Watch, mode: FakeTensorMode) -> None:
        config = settings(BATCH * ranks)
        runtime = Runtime(GPU, HALF[precision], torch.channels_last, ranks)
        with several(ranks, mode), tempfile.TemporaryDirectory() as folder:
            method, teacher = networks(mode, config, guided)
            task = Pretraining(config, method, teacher, IMAGES, Session(Path(folder), 1, runtime))
            update, meter = update_of(config, task), Meter(GPU)
            method.train()
            views = [pinned(torch.zeros(BATCH, SIZE, SIZE, 3, dtype=torch.uint8)) for _ in range(2)]
            batch = PretrainBatch(views[0], views[1], [], pinned(torch.zeros(2, BATCH, 15)))
            right = patch.multiple(fused, close=lambda *_: True, layout=lambda _: ())  # as far as can be seen here
            with patch.object(Tensor, "backward", gradients_for(method)), right:
                for number in range(2):
                    with watch if number else nullcontext():
                        output = update(task.inputs(batch, number), number)
                        task.after_step(output.carried)
                        meter.update(output, number)

    return scenario


def gradients_for(module: nn.Module) -> Callable[..., None]:
    """In place of the backward pass."""

    def backward(*args: Any, **kwargs: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    return backward


@contextmanager
def several(ranks: int, mode: FakeTensorMode) -> Iterator[None]:
    """A group of processes that are not there; which rows they exchange is computed with real numbers."""
    if ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    real = moco.shuffle.routes

    def routes(order: Tensor, n: int, count: int, me: int) -> moco.shuffle.Routes:
        with unset_fake_temporarily():
            way = real(torch.randperm(n * count), n, count, me)
        return way._replace(sent=mode.from_tensor(way.sent), place=mode.from_tensor(way.place))

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        with patch.object(moco.shuffle, "routes", routes):
            yield
    finally:
        dist.destroy_process_group()


def matching(watch: Watch, mode: FakeTensorMode) -> None:
    """A matching pass, up to the costs that are then read."""
    config, runtime = settings(), Runtime(GPU, torch.bfloat16, torch.channels_last, 1)
    with tempfile.TemporaryDirectory() as folder:
        method, teacher = networks(mode, config, True)
        task = Pretraining(config, method, teacher, IMAGES, Session(Path(folder), 1, runtime))
        assert task.mgd is not None and teacher is not None
        method.eval()

        def over(statistics: MatchingStatistics) -> None:
            raise Done

        with patch.object(MatchingStatistics, "mean_costs", over), watch, suppress(Done):
            seen = (task.upload.images(each.images) for each in crops())
            rematch(task.mgd, method.student_maps, teacher, seen, True)


def crops() -> list[EvalBatch]:
    """Two batches as a loader that pins them gives them."""
    made = (torch.zeros(BATCH, SIZE, SIZE, 3, dtype=torch.uint8) for _ in range(2))
    return [EvalBatch(pinned(images), torch.arange(BATCH), []) for images in made]


@contextmanager
def one_pass(*args: Any) -> Iterator[list[EvalBatch]]:
    """In place of the loader."""
    yield crops()


def knn_features(watch: Watch, mode: FakeTensorMode) -> None:
    """Features of two batches, up to the one copy of them."""
    runtime = Runtime(GPU, torch.bfloat16, torch.channels_last, 1)
    method, _ = networks(mode, settings(), False)

    def over(*args: object) -> None:
        raise Done

    with patch.multiple(features, one_pass=one_pass, _check_finite=over), watch:
        network = trunk(method.moco.encoder_q)
        with suppress(Done):
            features.FeatureExtractor(network, runtime, SIZE)(LABELLED, np.arange(2 * BATCH), ONCE)


def validating(watch: Watch, mode: FakeTensorMode) -> None:
    """Validation of two batches, up to the counts that are then read."""
    runtime = Runtime(GPU, torch.bfloat16, torch.channels_last, 1)
    with unset_fake_temporarily():
        network = build_backbone("thin_resnet10", CLASSES)
    moved(network, mode)

    def over(counts: Tensor) -> Tensor:
        raise Done

    with patch.multiple(validation, one_pass=one_pass, sum_over_ranks=over), watch, suppress(Done):
        validation.validate(network, LABELLED, runtime, image_size=SIZE, reading=ONCE)


def probe(live: bool) -> Scenario:
    """A step of the linear probe, on features from a table or from the backbone."""

    def scenario(watch: Watch, mode: FakeTensorMode) -> None:
        runtime = Runtime(GPU, torch.bfloat16, torch.channels_last, 1)
        dim = 16
        if live:
            with unset_fake_temporarily():
                backbone = FrozenBackbone(trunk(build_backbone("thin_resnet10")), cast(LoadReport, None))
                dim = 128
            moved(backbone, mode)
            source: Any = LiveSource(
                backbone, IMAGES, LABELLED.labels, Transform(), SIZE, 0, runtime, 0, account=Unheard()
            )
        else:
            table = Features(np.zeros((8 * BATCH, dim), np.float32), LABELLED.labels)
            with patch.object(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30)):
                source = CachedSource(table, Transform(), GPU)
        weight, bias = on_gpu(torch.zeros(CLASSES, dim), mode), on_gpu(torch.zeros(CLASSES), mode)
        heads = Heads(weight, bias, [Setting(0.1, 0.0), Setting(1.0, 0.0)], 0.9)
        with watch:
            for batch in crops():
                x, y = source._features(batch) if live else source.take(np.arange(BATCH))
                heads.step(x, y, 1.0, BATCH)

    return scenario


class Unheard:
    """An account of unreadable files that nobody reads."""

    def note(self, unreadable: Any) -> None: ...


SCENARIOS: dict[str, Scenario] = {
    "bfloat16": step("bfloat16", False),
    "bfloat16, guided": step("bfloat16", True),
    "float16, guided": step("float16", True),
    "eight ranks": step("bfloat16", True, 8),
    "matching": matching,
    "k-NN features": knn_features,
    "validation": validating,
    "probe, cached": probe(False),
    "probe, live": probe(True),
}


if __name__ == "__main__":
    prepare()
    print(json.dumps({name: run(SCENARIOS[name]) for name in sys.argv[1:] or SCENARIOS}))
