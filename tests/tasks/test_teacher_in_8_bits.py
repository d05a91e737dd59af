"""A run whose teacher is in 8 bits: calibrated once, continued exactly, matched and evaluated in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.networks import int8
from mgd_ssl.networks.int8 import Int8Conv2d, eighths
from tests.runs import assert_same_end, checkpoint, rows, stepper_for, stop_after, tiny, trained_teacher


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor that says it multiplies in 8 bits: any computes it, if more slowly."""
    (tmp_path / "cpuinfo").write_text("flags: avx512_vnni\n")
    monkeypatch.setattr(int8, "ABOUT", tmp_path / "cpuinfo")


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return trained_teacher(tmp_path_factory.getbasetemp(), image_folder)


def settings(image_folder: Path, out: Path, teacher: Path) -> dict[str, Any]:
    return tiny(image_folder, out, teacher=teacher, teacher_precision="int8")


def test_a_continued_run_keeps_its_ranges_and_ends_the_same(
    image_folder: Path, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings(image_folder, tmp_path / "whole", teacher_file)
    pretrain(**whole)
    part = settings(image_folder, tmp_path / "part", teacher_file)
    with monkeypatch.context() as stopping:
        stop_after(stopping, 5)
        with pytest.raises(Interrupted):
            pretrain(**part)
    saved = checkpoint(tmp_path / "part", 5)["teacher_ranges"]
    assert saved and saved == checkpoint(tmp_path / "whole", 9)["teacher_ranges"]
    monkeypatch.setattr(int8, "seen_ranges", None)  # nothing is calibrated anew
    pretrain(**part | {"teacher_precision": "auto"})  # as the run began
    assert_same_end(tmp_path / "part", tmp_path / "whole")
    calibrated = [row for row in rows(tmp_path / "whole") if row["kind"] == "calibration"]
    assert [(row["step"], row["images"]) for row in calibrated] == [(0, len(list(image_folder.rglob("train/*/*"))))]


def test_another_precision_is_another_run(image_folder: Path, tmp_path: Path, teacher_file: Path) -> None:
    out = tmp_path / "run"
    pretrain(**settings(image_folder, out, teacher_file))
    with pytest.raises(UserError, match="teacher_precision"):
        pretrain(**tiny(image_folder, out, teacher=teacher_file, teacher_precision="float32"))


def test_a_step_asks_8_bits_and_matching_does_not(image_folder: Path, tmp_path: Path, teacher_file: Path) -> None:
    stepper, batches = stepper_for(settings(image_folder, tmp_path / "run", teacher_file), 1)
    sight, images = stepper.task.sight, stepper.images
    assert sight.whole is stepper.task.teacher is not sight.teacher is not None
    assert not eighths(sight.teacher.backbone)
    assert sum(isinstance(module, Int8Conv2d) for module in sight.teacher.modules()) == len(sight.ranges)
    crops = CentreCrops(images, 32, 0).__getitems__(list(range(len(images)))).images
    whole = stepper.task.upload.images(crops)
    assert sight.ranges["conv1"] == pytest.approx((float(whole.min()), float(whole.max())))
    (_, _, targets, *_) = stepper.task.inputs(batches[0], 0)
    assert {target.map.dtype for target in targets["mgd"]} == {torch.float32}
    assert torch.isfinite(stepper.step(batches[0]).total)
