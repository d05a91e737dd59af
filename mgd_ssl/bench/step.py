"""A training step, and the bare networks in it."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.timing import Work
from mgd_ssl.config import DataConfig, MGDConfig, MoCoConfig, OptimConfig, PretrainConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import PretrainBatch, chosen_backend
from mgd_ssl.distillation.bingo import Bingo
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.matched_maps import MatchedMaps
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import Needs
from mgd_ssl.networks.backbones import build_backbone, build_encoder, feature_width, set_head
from mgd_ssl.networks.placing import placed
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import WORTH_COMPILING, Runtime, settled
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.moco import build_method
from mgd_ssl.tasks.pretraining import Pretraining, update_of
from mgd_ssl.term_settings import TermsConfig
from mgd_ssl.training.task import StepOutput
from mgd_ssl.view_settings import local_size
from moco import ViewKey, ViewPolicy, draw_view, projection_head

NEEDS = {
    "mgd": MatchedMaps.needs, "seed": Seed.needs, "disco": DisCo().needs, "simreg": SimReg.needs,
    "compress": CompRess.needs, "bingo": Bingo.needs,
}  # fmt: skip


class Step:
    """A step of a run, from the uint8 batch to the updated queue; matched at random.

    Args:
        config: sizes and networks.
        runtime: where it is taken.
    """

    def __init__(self, config: StepConfig, runtime: Runtime) -> None:
        self.config = settings_of(config, runtime)
        torch.manual_seed(0)
        backbone = build_backbone(config.teacher)
        width = feature_width(backbone)
        set_head(backbone, nn.Identity())
        teacher = Teacher(backbone, head=projection_head(width, self.config.moco.dim))
        method = build_method(self.config, teacher)
        teacher.fold()
        for module in (method, teacher):
            placed(module, runtime.device, runtime.memory_format)
        with tempfile.TemporaryDirectory() as folder:
            images = ImageList(Path(folder), [str(i) for i in range(config.batch_size)])
            self.task = Pretraining(self.config, method, teacher, images, Session(Path(folder), 1, runtime))
        if (mgd := self.task.mgd) is not None:
            mgd.set_assignments([torch.randperm(a.numel()).view(a.shape) for a in mgd.assignments])
        if self.task.sight.int8:
            self.task.sight.calibrate([torch.randn(size_of(config)).to(runtime.device)])
        self.update = update_of(self.config, self.task)
        method.train()
        self.batch = random_batch(config, runtime.device)
        if config.local_crops:
            self.batch = with_crops(self.batch, config)

    def __call__(self) -> StepOutput:
        """Take it."""
        output = self.update(self.task.inputs(self.batch, 0), 0)
        self.task.after_step(output.carried)
        return output


def random_batch(config: StepConfig, device: torch.device) -> PretrainBatch:
    """Views of noise, two or with bags four, as the workers hand them over to a training on this device."""
    size = (config.batch_size, config.image_size, config.image_size, 3)
    count = 4 if "bingo" in config.terms else 2
    im_q, im_k, *others = [torch.randint(256, size, dtype=torch.uint8) for _ in range(count)]
    if chosen_backend("auto", device) != "device":
        return PretrainBatch(im_q, im_k, [], None, tuple(others))
    rows = view_rows(config.batch_size, count).pin_memory()  # finishing the views is a part of the step
    pinned = tuple(view.pin_memory() for view in others)
    return PretrainBatch(im_q.pin_memory(), im_k.pin_memory(), [], rows, pinned)


def with_crops(batch: PretrainBatch, config: StepConfig) -> PretrainBatch:
    """The batch with local crops of noise."""
    count, size = config.batch_size * config.local_crops, local_size(config.image_size)
    crops = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    if batch.rows is None:
        return batch._replace(crops=crops)
    return batch._replace(crops=crops.pin_memory(), crop_rows=view_rows(count, 1)[0].pin_memory())


def training_step(config: StepConfig, runtime: Runtime) -> Work:
    """`Step`, as a function that can be sent to another process by its name."""
    return Step(config, runtime)


def settings_of(config: StepConfig, runtime: Runtime) -> PretrainConfig:
    """Of a run whose step it is."""
    terms = TermsConfig(**{name: {"weight": 1.0} for name in config.terms if name != "mgd"})
    return PretrainConfig(
        student=config.student,
        teacher_precision=config.teacher_precision,
        out=Path("none"),
        data=DataConfig(
            train=Path("none"),
            image_size=config.image_size,
            local_crops=config.local_crops,
            local_size=local_size(config.image_size),
        ),
        moco=MoCoConfig(queue_size=config.queue_size, weight=float(config.contrast)),
        mgd=MGDConfig(weight=1e-4 if "mgd" in config.terms else 0.0),
        terms=terms,
        optim=OptimConfig(batch_size=config.batch_size, epochs=1),
        runtime=settled(config.runtime, runtime, WORTH_COMPILING),
    )


def bare_networks(config: StepConfig, runtime: Runtime) -> Work:
    """Teacher forward, key forward, query forward and backward, nothing around them; of as many views as terms want."""
    config = config.model_copy(update={"runtime": settled(config.runtime, runtime, WORTH_COMPILING)})
    teacher = build_backbone(config.teacher).eval()
    query, key = (build_encoder(config.student, 128) for _ in range(2))
    for network in (teacher, query, key):
        network.to(runtime.device).to(memory_format=runtime.memory_format)
        if config.runtime.compile:
            network.compile(dynamic=False)
    needs = Needs.union(NEEDS[name] for name in config.terms)
    images = torch.randn(size_of(config), device=runtime.device).to(memory_format=runtime.memory_format)
    small = (config.batch_size * config.local_crops, 3, local_size(config.image_size), local_size(config.image_size))
    crops = torch.randn(small, device=runtime.device).to(memory_format=runtime.memory_format)

    def bare() -> None:
        with runtime.autocast():
            with torch.no_grad():
                for _ in needs.teacher:
                    teacher(images)
                if config.contrast:
                    key(images)
            loss = query(images).float().sum()
            for _ in needs.student:
                loss = loss + query(images).float().sum()
            if config.local_crops:
                loss = loss + query(crops).float().sum()
        loss.backward()
        query.zero_grad(set_to_none=True)

    return bare


def size_of(config: StepConfig) -> tuple[int, int, int, int]:
    """Of a batch of one view."""
    return (config.batch_size, 3, config.image_size, config.image_size)


def view_rows(num_images: int, views: int = 2) -> Tensor:
    """Parameters of the views of a batch, [V, N, 15]."""
    return torch.tensor(
        [
            [draw_view(ViewPolicy(), 500, 375, ViewKey(seed=0, epoch=0, image=i, view=v)) for i in range(num_images)]
            for v in range(views)
        ]
    )
