"""What a run begins with: its folder, its networks, its seed and its images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgd_ssl import TrainingError, UserError, pretrain
from mgd_ssl.config import DEVIATION, MEAN, DataConfig, PretrainConfig
from mgd_ssl.data.samples import view_policy
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.tasks.beginning import begin
from mgd_ssl.tasks.teachers import load_teacher
from moco import View, ViewKey, ViewPolicy, draw_view
from tests.runs import tiny
from tests.setting_cases.runs import Runs, Seen, case, watch

# the run


@case
def out(run: Runs) -> None:
    seen = run("odd")
    assert {"config.json", "metrics.jsonl", "encoder.pt", "result.json"} <= {path.name for path in seen.out.iterdir()}


@case
def student(run: Runs) -> None:
    for name, arch in (("odd", "thin_resnet10"), ("plain", "thin_resnet14")):
        backbone = build_backbone(arch)
        backbone.fc = nn.Identity()
        backbone.load_state_dict(torch.load(run(name).out / "encoder.pt", weights_only=True), strict=True)


@case
def teacher(run: Runs) -> None:
    network = run("plain").first.teacher
    assert network is not None
    weights = torch.load(run.teacher, weights_only=True)
    pixels = torch.randn(2, 3, 32, 32)
    backbone = build_backbone("thin_resnet14").eval()
    backbone.fc = nn.Identity()
    backbone.load_state_dict(weights)
    before_relu: list[Tensor] = []
    last = list(backbone.get_submodule("layer4").children())[-1]
    last.register_forward_hook(lambda module, inputs, output: before_relu.append(output))
    with torch.no_grad():
        backbone(pixels)
        torch.testing.assert_close(network(pixels)[3].relu(), before_relu[0], rtol=1e-3, atol=1e-4)


@case
def teacher_arch(run: Runs) -> None:
    with pytest.raises(UserError, match="does not fit resnet50"):
        pretrain(**tiny(run.images, run.folder / "arch", teacher=run.teacher, teacher_arch="resnet50"))


@case
def taps(run: Runs) -> None:
    assert run("other").first.module.guide.taps.names == ["layer2.0.relu", "layer3.0.relu"]
    assert run("plain").first.module.guide.taps.names == [f"layer{stage}.0.relu" for stage in range(1, 5)]


@case
def teacher_taps(run: Runs) -> None:
    network = run("other").first.teacher
    assert network is not None
    assert [tuple(map_.shape[1:]) for map_ in network(torch.zeros(1, 3, 32, 32))] == [(128, 8, 8), (256, 4, 4)]
    (maps, _, _), *_ = run("other").reduced
    assert [map_.shape[1] for map_ in maps] == [128, 256]


@case
def teacher_mean(run: Runs) -> None:
    """The teacher sees what it would see if its pixels were normalised so."""
    _teacher_input(run, (0.2, 0.3, 0.4), DEVIATION)
    with pytest.raises(ValueError, match="teacher_mean and teacher_std belong together"):
        PretrainConfig(**tiny(run.images, run.folder / "x", teacher=run.teacher, teacher_mean=(0.5, 0.5, 0.5)))


@case
def teacher_std(run: Runs) -> None:
    _teacher_input(run, MEAN, (0.5, 0.6, 0.7))
    with pytest.raises(ValueError, match="those of a teacher: give one, or leave them out"):
        PretrainConfig(**tiny(run.images, run.folder / "x", teacher_mean=MEAN, teacher_std=DEVIATION))


def _teacher_input(run: Runs, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = PretrainConfig(
        **tiny(run.images, run.folder / "x", teacher=run.teacher, teacher_mean=mean, teacher_std=std)
    )
    network, pixels = load_teacher(config), torch.rand(2, 3, 32, 32)
    usual = run("plain").first.teacher
    assert network is not None and usual is not None

    def normalised(by: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(by).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)

    found, expected = network(normalised(MEAN, DEVIATION)), usual(normalised(mean, std))
    torch.testing.assert_close(found[3], expected[3], rtol=1e-2, atol=1e-3)
    assert (found[3] - usual(normalised(MEAN, DEVIATION))[3]).abs().max() > 0.01


@case
def log(run: Runs) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("mgd_ssl.run.sinks.sink.find_spec", lambda name: None)
        with pytest.raises(UserError, match="--log wandb needs wandb"):
            pretrain(**tiny(run.images, run.folder / "log", log=("wandb",)))


@case
def student_weights(run: Runs) -> None:
    state = build_backbone("thin_resnet10", 1).state_dict()
    own = {name: value + 0.25 for name, value in state.items() if value.is_floating_point()}
    torch.save(own, run.folder / "begin.pth")
    config = PretrainConfig(**tiny(run.images, run.folder / "x", student_weights=run.folder / "begin.pth"))
    begun = begin(config).encoder.state_dict()
    assert all(torch.equal(begun[name], own[name]) for name in own if not name.startswith("fc."))


@case
def seed(run: Runs) -> None:
    """The weights, the queue and the views of two seeds differ; those of one seed do not."""
    states = []
    for name, number in (("a", 5), ("b", 5), ("c", 6)):
        seen = Seen(run.folder / f"seed_{name}")
        with pytest.MonkeyPatch.context() as monkeypatch:
            watch(seen, monkeypatch)
            settings = tiny(run.images, seen.out, seed=number, optim={"epochs": 1, "lr": 1e-12})
            pretrain(**settings)
        moco = seen.first.module.moco
        states.append([next(moco.encoder_q.parameters()).detach(), moco.queue[:, -8:], seen.batches[0].im_q])
    assert all(torch.equal(*pair) for pair in zip(states[0], states[1], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(states[0], states[2], strict=True))


# data


def view_rows(seen: Seen) -> dict[str, np.ndarray]:
    """Columns of `View` of all views of a run."""
    table = torch.cat([batch.rows.flatten(0, 1) for batch in seen.batches if batch.rows is not None])
    return dict(zip(View._fields, table.numpy().T, strict=True))


@case
def data_train(run: Runs) -> None:
    assert run("odd").first.images.root == run.damaged
    assert len(run("odd").first.images) == 50


@case
def data_image_size(run: Runs) -> None:
    assert run("odd").shapes == {(40, 40, 3)}  # of views and of all crops
    assert run("plain").shapes == {(32, 32, 3)}


@case
def data_recipe(run: Runs) -> None:
    v1, v2 = view_rows(run("other")), view_rows(run("odd"))
    assert set(v1["grey"]) == {0, 2} and not v1["sigma"].any() and np.abs(v1["hue"]).max() > 0.2
    assert set(v2["grey"]) == {0, 1} and v2["sigma"].any() and np.abs(v2["hue"]).max() < 0.101
    weak = draw_view(ViewPolicy.weak(), 40, 36, ViewKey(0, 0, 0, 0))
    assert (weak.brightness, weak.contrast, weak.saturation, weak.hue, weak.grey, weak.sigma) == (1, 1, 1, 0, 0, 0)
    assert view_policy(DataConfig(train=Path("x"), recipe="weak")) == replace(ViewPolicy.weak(), scale=(0.2, 1.0))


@case
def data_crop_scale(run: Runs) -> None:
    views = view_rows(run("odd"))
    share = views["width"] * views["height"] / (40 * 36)
    assert share.min() > 0.45 and share.max() < 0.65  # sides are whole pixels
    assert view_rows(run("other"))["width"].min() < 20


@case
def data_blur_sigma(run: Runs) -> None:
    sigma = view_rows(run("odd"))["sigma"]
    assert sigma[sigma > 0].min() >= 0.7 and sigma.max() <= 1.1


@case
def data_backend(run: Runs) -> None:
    assert all(batch.rows is not None for batch in run("odd").batches)
    assert all(batch.rows is None for batch in run("plain").batches)


@case
def data_workers(run: Runs) -> None:
    assert (run("odd").children, run("plain").children) == (2, 0)


@case
def data_max_unreadable(run: Runs) -> None:
    assert run("odd").first.session.step == 8  # with one unreadable image of 50
    with pytest.raises(TrainingError, match="unreadable"):
        pretrain(**tiny(run.images, run.folder / "strict", data={"train": run.damaged, "max_unreadable": 0.01}))


# contrast


@case
def data_background(run: Runs) -> None:
    assert run("odd").first.images.decoding.background == "#102030"
    assert run("plain").first.images.decoding.background == "white"
    monitor = run("odd").first.monitor
    assert monitor is not None and monitor.bank.decoding.background == "#102030"


@case
def data_max_pixels(run: Runs) -> None:
    assert run("odd").first.images.decoding.max_pixels == 12345
    assert run("plain").first.images.decoding.max_pixels == 100_000_000
