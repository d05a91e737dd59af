"""Teachers of other origin in whole runs, and students that begin with weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import Tensor

from mgd_ssl import UserError, pretrain
from mgd_ssl.config import PretrainConfig
from mgd_ssl.networks.vit import TokenMaps
from mgd_ssl.tasks.beginning import begin
from mgd_ssl.tasks.pretraining import Pretraining
from tests.networks.foreign import backbone, moco_v2, moco_v3, randomised, swav
from tests.runs import rows, tiny


@pytest.fixture(scope="module")
def hub_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as timm saves it, whose network has another input than ours."""
    folder = tmp_path_factory.mktemp("hub")
    save_file(backbone().state_dict(), folder / "model.safetensors")
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "apache-2.0"}
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": said}))
    return folder


def seen_of_teachers(monkeypatch: pytest.MonkeyPatch) -> list[Pretraining]:
    seen: list[Pretraining] = []
    inputs = Pretraining.inputs

    def noting(self: Pretraining, batch: Any, step: int) -> tuple[Any, ...]:
        seen.append(self)
        return inputs(self, batch, step)

    monkeypatch.setattr(Pretraining, "inputs", noting)
    return seen


def test_a_run_says_whose_its_teacher_is(image_folder: Path, hub_teacher: Path, tmp_path: Path) -> None:
    settings = tiny(image_folder, tmp_path / "run", teacher=hub_teacher, optim={"epochs": 1})
    pretrain(**settings)
    told = (tmp_path / "run" / "log.txt").read_text()
    assert "its input has mean 0.5 0.5 0.5, deviation 0.5 0.5 0.5 (as the files beside it say), and gets it" in told
    assert "licence of its weights: apache-2.0" in told
    result = json.loads((tmp_path / "run" / "result.json").read_text())["teacher"]
    assert result["licence"] == "apache-2.0" and result["file"] == "model.safetensors"
    assert result["known_as"] is None and result["arch"] == "thin_resnet10" and len(result["sha256"]) == 64
    again = pretrain(**settings)  # finished: at once, with the same account
    assert again.teacher == result


def test_a_result_of_before_there_were_credits_is_whole(image_folder: Path, tmp_path: Path) -> None:
    from mgd_ssl.run.result import HASH, SEAL, seal

    settings = tiny(image_folder, tmp_path / "run", optim={"epochs": 1})
    pretrain(**settings)
    path = tmp_path / "run" / "result.json"
    content = json.loads(path.read_text())
    before = {key: value for key, value in content.items() if key not in (SEAL, "teacher")}
    assert HASH in before
    path.write_text(json.dumps(before | {SEAL: seal(before)}))
    assert pretrain(**settings).teacher is None


def test_a_vit_teaches_a_thin_student(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of 4 pixels at 32: 8 x 8, the student's second stage; its third is met by averaging."""
    network = randomised(
        VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=2, num_heads=2, num_classes=0)
    )
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    seen = seen_of_teachers(monkeypatch)
    taught = tiny(image_folder, tmp_path / "run", teacher=tmp_path / "vit.pth", optim={"epochs": 1})
    with pytest.raises(UserError, match=r"set mgd\.margin to 'measured'"):
        pretrain(**taught)
    pretrain(**taught | {"mgd": {**taught["mgd"], "margin": "measured"}})
    task = seen[0]
    assert task.teacher is not None and isinstance(task.teacher.backbone, TokenMaps) and task.mgd is not None
    assert [stage.stage for stage in task.teacher.stages] == [2, 3]
    assert task.mgd.student_channels == [32, 64] and task.mgd.teacher_channels == [128, 128]
    assert all((margin <= 0).all() and margin.std() > 0 for margin in task.mgd.margins)  # measured
    losses = [row["mgd"] for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert losses and all(0 < loss < 1e6 for loss in losses)
    lonely = tiny(image_folder, tmp_path / "far", teacher=tmp_path / "vit.pth", data={"image_size": 16})
    stages = {"stage_weights": (0.0, 0.0, 0.0, 1.0), "margin": "measured"}
    with pytest.raises(UserError, match=r"are a grid of 4 x 4 at data\.image_size 16, .*1 x 1, none of which is near"):
        pretrain(**lonely | {"mgd": {**lonely["mgd"], **stages}})


# students that begin with weights


def config_of(image_folder: Path, folder: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(**tiny(image_folder, folder / "run", **changes))


@pytest.mark.parametrize(("dim", "width", "kept"), [(16, None, True), (8, None, False), (16, 32, False)])
def test_a_student_begins_with_the_weights_of_a_file(
    image_folder: Path, tmp_path: Path, dim: int, width: int | None, kept: bool
) -> None:
    foreign = moco_v2()
    torch.save(foreign.checkpoint, tmp_path / "moco.pth.tar")
    moco = {"dim": dim, "head_width": width}
    begun = begin(config_of(image_folder, tmp_path, student_weights=tmp_path / "moco.pth.tar", moco=moco))
    fresh = begin(config_of(image_folder, tmp_path, moco=moco))
    state, random = begun.encoder.state_dict(), fresh.encoder.state_dict()
    in_file: dict[str, Tensor] = foreign.checkpoint["state_dict"]
    for name, value in state.items():
        theirs = not name.startswith("fc.") or kept
        assert torch.equal(value, in_file[f"module.encoder_q.{name}"] if theirs else random[name]), name
    assert begun.head_kept == kept and fresh.report is None


def test_a_head_of_another_kind_is_drawn_anew(image_folder: Path, tmp_path: Path) -> None:
    torch.save(moco_v3().checkpoint, tmp_path / "moco.pth.tar")
    begun = begin(config_of(image_folder, tmp_path, student_weights=tmp_path / "moco.pth.tar"))
    assert begun.report is not None and begun.report.layout == "MoCo v3" and not begun.head_kept


def test_a_run_tells_what_its_student_began_with(image_folder: Path, tmp_path: Path) -> None:
    torch.save(backbone(1).state_dict(), tmp_path / "one.pth")
    torch.save(backbone(2).state_dict(), tmp_path / "two.pth")
    settings = tiny(image_folder, tmp_path / "run", student_weights=tmp_path / "one.pth", optim={"epochs": 1})
    pretrain(**settings)
    assert "its projection head is drawn anew" in (tmp_path / "run" / "log.txt").read_text()
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["student_weights"]
    assert saved["arch"] == "thin_resnet10"
    (tmp_path / "moved.pth").write_bytes((tmp_path / "one.pth").read_bytes())
    pretrain(**settings | {"student_weights": tmp_path / "moved.pth"})  # the same weights elsewhere
    with pytest.raises(UserError, match=r"student_weights: thin_resnet10 \w{12} -> thin_resnet10 \w{12}"):
        pretrain(**settings | {"student_weights": tmp_path / "two.pth"})
    with pytest.raises(UserError, match=r"student_weights: thin_resnet10 \w{12} -> None"):
        pretrain(**settings | {"student_weights": None})


def test_weights_that_do_not_fit_the_student_are_a_sentence(
    image_folder: Path, hub_teacher: Path, tmp_path: Path
) -> None:
    torch.save(backbone().state_dict(), tmp_path / "one.pth")
    with pytest.raises(UserError, match=r"one\.pth does not fit resnet18"):
        begin(config_of(image_folder, tmp_path, student="resnet18", student_weights=tmp_path / "one.pth"))
    with pytest.raises(UserError, match=r"trained on input with mean 0\.5 .* student's has mean 0\.485"):
        begin(config_of(image_folder, tmp_path, student_weights=hub_teacher))
    with pytest.raises(UserError, match="does not exist"):
        begin(config_of(image_folder, tmp_path, student_weights=tmp_path / "none.pth"))


# terms and such teachers


def test_seed_takes_the_head_of_swav(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(swav().checkpoint, tmp_path / "swav.pth.tar")
    seen = seen_of_teachers(monkeypatch)
    terms = {"seed": {"weight": 1.0, "queue_size": 32}}
    settings = tiny(image_folder, tmp_path / "run", teacher=tmp_path / "swav.pth.tar", terms=terms, optim={"epochs": 1})
    with pytest.raises(UserError, match=r"set moco\.dim to 8"):
        pretrain(**settings)
    pretrain(**settings | {"moco": {**settings["moco"], "dim": 8}})
    teacher = seen[0].teacher
    assert teacher is not None and teacher.head is not None and teacher.report is not None
    assert teacher.report.head == (128, 24, 8) and teacher.report.layout == "SwAV"
    torch.save(backbone().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"plain\.pth holds no projection head that is known"):
        pretrain(**settings | {"teacher": tmp_path / "plain.pth", "out": tmp_path / "other"})


def test_a_vit_teaches_its_feature_alone(image_folder: Path, tmp_path: Path) -> None:
    """A grid of 2 x 2 meets no stage, and need not: no maps are looked at."""
    network = VisionTransformer(img_size=32, patch_size=16, embed_dim=64, depth=1, num_heads=1, num_classes=0)
    torch.save(randomised(network).state_dict(), tmp_path / "vit.pth")
    terms = {"simreg": {"weight": 1.0}}
    settings = tiny(image_folder, tmp_path / "run", teacher=tmp_path / "vit.pth", terms=terms, optim={"epochs": 1})
    pretrain(**settings | {"mgd": {**settings["mgd"], "weight": 0.0}})
    losses = [row["simreg"] for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert losses and all(0 < loss < 4 for loss in losses)
