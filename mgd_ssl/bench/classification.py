"""A training step of a guided classifier, and the bare networks in it."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from mgd_ssl.bench.config import StepConfig
from mgd_ssl.bench.timing import Work
from mgd_ssl.config import ClassifyConfig, LabelledDataConfig, SupervisedOptimConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.labelled_crops import LabelledBatch
from mgd_ssl.data.sources import Labelled
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.run.session import Session
from mgd_ssl.tasks.classification import Classification, Parts, update_of
from mgd_ssl.tasks.guided_classifier import build

NUM_CLASSES = 1000


def classification_step(config: StepConfig, runtime: Runtime) -> Work:
    """A step of a run guided by MGD, from the uint8 batch to the updated weights."""
    classify_config = ClassifyConfig(
        student=config.student,
        out=Path("none"),
        data=LabelledDataConfig(train=Path("none"), val=Path("none"), image_size=config.image_size),
        optim=SupervisedOptimConfig(batch_size=config.batch_size, epochs=1),
        runtime=config.runtime,
    )
    torch.manual_seed(0)
    teacher = Teacher(build_backbone(config.teacher))
    module = build(classify_config, build_backbone(config.student, NUM_CLASSES), teacher)
    teacher.fold()
    for network in (module, teacher):
        network.to(runtime.device).to(memory_format=runtime.memory_format)
    labels = torch.randint(NUM_CLASSES, (config.batch_size,))
    with tempfile.TemporaryDirectory() as folder:
        images = ImageList(Path(folder), [str(i) for i in range(config.batch_size)])
        labelled = Labelled(images, labels.numpy())
        parts = Parts(labelled, labelled, np.arange(config.batch_size))
        task = Classification(classify_config, module, teacher, parts, Session(Path(folder), 1, runtime))
    assert task.mgd is not None
    task.mgd.set_assignments([torch.randperm(a.numel()).view(a.shape) for a in task.mgd.assignments])
    update = update_of(classify_config, task)
    module.train()
    size = (config.batch_size, config.image_size, config.image_size, 3)
    batch = LabelledBatch(torch.randint(256, size, dtype=torch.uint8), labels, [])

    def step() -> None:
        task.after_step(update(task.inputs(batch, 0), 0).carried)

    return step


def bare_classifiers(config: StepConfig, runtime: Runtime) -> Work:
    """Teacher forward, student forward and backward, and nothing around them."""
    teacher, student = build_backbone(config.teacher).eval(), build_backbone(config.student, NUM_CLASSES)
    for network in (teacher, student):
        network.to(runtime.device).to(memory_format=runtime.memory_format)
        if config.runtime.compile:
            network.compile()
    size = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.randn(size, device=runtime.device).to(memory_format=runtime.memory_format)

    def bare() -> None:
        with runtime.autocast():
            with torch.no_grad():
                teacher(images)
            loss = student(images).float().sum()
        loss.backward()
        student.zero_grad(set_to_none=True)

    return bare
