"""Terms that do not fit teacher, batch or images: the whole sentence of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgd_ssl import UserError, pretrain
from mgd_ssl.data.bags import save_bags
from mgd_ssl.data.folder import ImageList
from mgd_ssl.networks.backbones import build_backbone, stage_taps
from mgd_ssl.networks.teacher import Teacher, let_meet
from tests.networks.test_vit import saved, tiny_vit
from tests.runs import tiny, trained_teacher


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return trained_teacher(tmp_path_factory.mktemp("refused"), image_folder)


def told(settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        pretrain(**settings)
    assert not (Path(settings["out"]) / "checkpoints").exists()
    return str(error.value)


def seed(**changes: Any) -> dict[str, Any]:
    return {"terms": {"seed": {"weight": 1.0, "queue_size": 48, **changes}}}


def test_a_teacher_file_without_the_head_a_term_needs(image_folder: Path, encoder: Path, tmp_path: Path) -> None:
    assert told(tiny(image_folder, tmp_path / "run", teacher=encoder, **seed())) == (
        f"{encoder} holds no projection head that is known, which terms on embeddings need: pass the whole checkpoint "
        "(of our runs checkpoints/step_*.pt instead of encoder.pt), or leave those terms out"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"moco": {"dim": 24}, **seed()},
            "the teacher's embeddings have 16 numbers and moco.dim is 24: set moco.dim to 16",
        ),
        (
            seed(queue_size=40),
            "terms.seed.queue_size 40 is not a multiple of optim.batch_size 16: set it to 32, say",
        ),
        (
            {"mgd": {"weight": 0.0}},
            "mgd.weight and the weights of all terms are 0, so the teacher has nothing to say: set one above 0, or "
            "leave the teacher out",
        ),
        (
            {"mgd": {"weight": 0.0}, "moco": {"weight": 0.0}},
            "mgd.weight and the weights of all terms are 0, so the teacher has nothing to say: set one above 0, or "
            "leave the teacher out",
        ),
        (
            {"moco": {"weight": 0.0}, "teacher": None},
            "moco.weight is 0 and there is no teacher, so nothing is learnt: set it above 0",
        ),
        (
            {"terms": {"bingo": {"weight": 1.0, "queue_size": 48}}},
            "terms.bingo.bags is not set: make them with `mgd-ssl bags`, and pass its file",
        ),
    ],
)
def test_sizes_and_weights(
    changes: dict[str, Any], sentence: str, image_folder: Path, encoder: Path, tmp_path: Path
) -> None:
    checkpoint = max((encoder.parent / "checkpoints").glob("*.pt"))
    assert told(tiny(image_folder, tmp_path / "run", **{"teacher": checkpoint, **changes})) == sentence


def test_bags_of_another_data_set(image_folder: Path, encoder: Path, tmp_path: Path) -> None:
    path, others = tmp_path / "bags.npz", ImageList.scan(image_folder / "val")
    save_bags(path, np.zeros((len(others), 5), np.int32), {"fingerprint": others.fingerprint()})
    checkpoint = max((encoder.parent / "checkpoints").glob("*.pt"))
    terms = {"bingo": {"weight": 1.0, "queue_size": 48, "bags": path}}
    assert told(tiny(image_folder, tmp_path / "run", teacher=checkpoint, terms=terms)) == (
        f"the bags in {path} are of other images (12) than data.train (48), or of others by name: make bags of these "
        "with `mgd-ssl bags`"
    )


def test_a_vit_whose_grid_meets_no_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Teacher.load(saved(tmp_path, tiny_vit().state_dict())), build_backbone("thin_resnet10")
    with pytest.raises(UserError) as error:
        let_meet(teacher, student, stage_taps(student)[3:], 64)
    assert str(error.value) == (
        "the teacher's 8-pixel patches are a grid of 8 x 8 at data.image_size 64, and the student's stages have maps "
        "of 4 x 4, none of which is near: choose another image size, student or teacher, or leave MGD out"
    )
