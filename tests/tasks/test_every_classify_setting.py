"""Every setting of `classify` reaches what it sets: seen in real runs, not in the objects that are handed around.

A setting without a case fails `test_settings_and_cases_are_the_same`: add a function named after it, below or in
classify_cases.py.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl.config import DEVIATION, MEAN
from mgd_ssl.errors import TrainingError, UserError
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.classify import classify
from tests.runs import rows, steps_saved
from tests.tasks.classify_cases import case
from tests.tasks.classify_watched import Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("settings"))


# the run


@case
def out(run: Runs) -> None:
    names = {path.name for path in run("odd").out.iterdir()}
    assert {"config.json", "metrics.jsonl", "encoder.pt", "result.json", "confusion.npz"} <= names


@case
def student(run: Runs) -> None:
    for name, arch in (("plain", "thin_resnet10"), ("wider", "thin_resnet14")):
        seen = run("plain") if name == "plain" else run.begun(name, student=arch)
        build_backbone(arch, 3).load_state_dict(seen.begun_with, strict=True)


@case
def student_weights(run: Runs) -> None:
    """The classifier of five classes is left out where there are three."""
    weights = torch.load(run.weights, weights_only=True)
    for key, value in run("odd").begun_with.items():
        assert key.startswith("fc.") or torch.equal(value, weights[key]), key
    assert not torch.equal(run("plain").begun_with["conv1.weight"], weights["conv1.weight"])


PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (PIXELS - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def agrees(run: Runs, maps: list[Tensor], images: Tensor) -> None:
    """Last maps of a teacher are those of its file's network for these images."""
    network = build_backbone("thin_resnet14", 3).eval()
    network.load_state_dict(torch.load(run.teacher, weights_only=True))
    found: list[Tensor] = []
    network.get_submodule("layer4").register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        network(images)
    torch.testing.assert_close(maps[-1].relu(), found[0], rtol=1e-3, atol=1e-4)


@case
def teacher(run: Runs) -> None:
    agrees(run, run("plain").task.teacher(normalised(MEAN, DEVIATION)), normalised(MEAN, DEVIATION))
    assert run.begun("untaught").task.teacher is None


@case
def teacher_mean(run: Runs) -> None:
    own = normalised((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    agrees(run, run("odd").task.teacher(normalised(MEAN, DEVIATION)), own)


@case
def teacher_std(run: Runs) -> None:
    seen = run.begun("std", teacher=run.teacher, teacher_mean=MEAN, teacher_std=(0.5, 0.6, 0.7))
    agrees(run, seen.task.teacher(normalised(MEAN, DEVIATION)), normalised(MEAN, (0.5, 0.6, 0.7)))


@case
def teacher_arch(run: Runs) -> None:
    with pytest.raises(UserError, match="does not fit resnet50"):
        classify(**run.plainly("arch", teacher=run.teacher, teacher_arch="resnet50"))


@case
def taps(run: Runs) -> None:
    assert run("other").task.module.guide.taps.names == ["layer2.0.relu", "layer3.0.relu"]
    assert run("plain").task.module.guide.taps.names == [f"layer{stage}.0.relu" for stage in range(1, 5)]


@case
def teacher_taps(run: Runs) -> None:
    maps, _, _ = run("other").reduced[0]
    assert [map_.shape[1] for map_ in maps] == [128, 256]


@case
def log(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.run.sinks.sink.find_spec", lambda name: None)
        with pytest.raises(UserError, match="--log wandb needs wandb"):
            classify(**run.plainly("log", log=("wandb",)))


@case
def num_classes(run: Runs) -> None:
    for name, wanted in (("five", 5), ("plain", 3)):
        seen = run("plain") if name == "plain" else run.begun(name, num_classes=wanted)
        assert len(seen.begun_with["fc.weight"]) == wanted


@case
def seed(run: Runs) -> None:
    first, again, other = run("plain"), run.begun("seed_0"), run.begun("seed_1", seed=1)
    for key, value in first.begun_with.items():
        assert torch.equal(value, again.begun_with[key]), key
    assert torch.equal(first.batches[0].images, again.batches[0].images)
    assert not torch.equal(first.batches[0].images, other.batches[0].images)
    assert not torch.equal(first.begun_with["conv1.weight"], other.begun_with["conv1.weight"])


# data


@case
def data_train(run: Runs) -> None:
    assert run("odd").task.parts.train.images.root == run.damaged / "train"


@case
def data_val(run: Runs) -> None:
    assert run("odd").task.parts.val.images.root == run.damaged / "val"


@case
def data_image_size(run: Runs) -> None:
    assert run.crops("odd").shape[2:] == (40, 40, 3) and run.crops("plain").shape[2:] == (32, 32, 3)


@case
def data_crop_scale(run: Runs) -> None:
    """The larger a crop, the more of the image's range of values is in it; images are smooth."""
    whole = {"train": run.images / "train", "val": run.images / "val", "image_size": 32, "workers": 0}
    large = run.begun("large", data={**whole, "crop_scale": (0.99, 1.0)}).batches[0].images
    small = run.begun("small", data={**whole, "crop_scale": (0.02, 0.03)}).batches[0].images
    ranges = [np.ptp(crops.numpy(), axis=(1, 2)).mean() for crops in (small, large)]
    assert ranges[0] < 0.6 * ranges[1]


@case
def data_share_of_labels(run: Runs) -> None:
    """Three quarters of twelve, in each of three classes."""
    task = run("odd").task
    assert np.bincount(task.parts.train.labels[task.parts.chosen]).tolist() == [9, 9, 9]
    assert len(run("plain").task.parts.chosen) == 24


@case
def data_workers(run: Runs) -> None:
    assert (run.two_of_each().children, run("plain").children) == (2, 0)


@case
def data_max_unreadable(run: Runs) -> None:
    assert run("odd").task.session.step == 12  # with two unreadable images of 36
    data = {"train": run.damaged / "train", "val": run.damaged / "val", "image_size": 32, "workers": 0}
    with pytest.raises(TrainingError, match="unreadable"):
        classify(**run.plainly("strict", data={**data, "max_unreadable": 0.01}))


@case
def data_background(run: Runs) -> None:
    parts = run("odd").task.parts
    assert {each.images.decoding.background for each in (parts.train, parts.val)} == {"#102030"}
    assert run("plain").task.parts.train.images.decoding.background == "white"


@case
def data_max_pixels(run: Runs) -> None:
    parts = run("odd").task.parts
    assert {each.images.decoding.max_pixels for each in (parts.train, parts.val)} == {12345}
    assert run("plain").task.parts.train.images.decoding.max_pixels == 100_000_000


# the program


@case
def checkpoint_every_steps(run: Runs) -> None:
    assert run("odd").saved == [2, 3, 4, 6, 8, 9, 10, 12]  # and at the end of every epoch of three steps


@case
def checkpoint_keep(run: Runs) -> None:
    assert steps_saved(run("odd").out) == [9, 10, 12]


@case
def runtime_device(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="torch sees no GPU"):
            classify(**run.plainly("gpu", runtime={"device": "cuda"}))
    assert run("plain").task.runtime.device.type == "cpu"


@case
def runtime_compile(run: Runs) -> None:
    task, found = run("other").task, {id(module) for module in run("other").compiled}
    wanted: list[nn.Module] = [task.module.student, task.teacher.backbone, task.mgd]
    assert found == {id(module) for module in wanted} and run("plain").compiled == []


@case
def runtime_threads(run: Runs) -> None:
    assert (run.two_of_each().threads, run("plain").threads) == (2, 1)


@case
def runtime_log_every(run: Runs) -> None:
    steps = [row["step"] for row in rows(run("odd").out) if row["kind"] == "train"]
    assert steps == [3, 6, 9, 12]


def test_settings_and_cases_are_the_same() -> None:
    assert sorted(case) == sorted(case.wanted()), "add a case for every new setting"


@pytest.mark.parametrize("key", case)
def test_setting_reaches_what_it_sets(key: str, run: Runs) -> None:
    case[key](run)
