"""Local crops: drawn by their address, alike in every backend, seen by the student alone, and means in the losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.config import DataConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import Backend, PretrainBatch, TwoViews, view_policy
from mgd_ssl.data.upload import Upload
from mgd_ssl.distillation.compress import CompRess
from mgd_ssl.distillation.disco import DisCo
from mgd_ssl.distillation.guide import Guide
from mgd_ssl.distillation.seed import Seed
from mgd_ssl.distillation.simreg import SimReg
from mgd_ssl.distillation.term import CROPS, Seen
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.run.runtime import Runtime
from mgd_ssl.tasks.views import local_crops
from moco import ViewKey, draw_view, render_view
from tests.distillation.test_formulas import (
    compress_by_loops,
    disco_by_loops,
    rows,
    seed_by_loops,
    simreg_by_loops,
)  # fmt: skip
from tests.runs import assert_same_end, stop_after, tiny, trained_teacher

KEYS = [(2, 5), (2, 9), (2, 11)]  # epoch and index
DATA = {"image_size": 48, "local_crops": 3, "local_size": 32, "local_scale": (0.1, 0.3), "blur_sigma": (0.1, 0.6)}
CPU = Runtime(torch.device("cpu"), None, torch.contiguous_format, 1)


def batch_of(folder: Path, backend: Backend, **changes: Any) -> PretrainBatch:
    config = DataConfig(train=folder, **{**DATA, **changes})
    dataset = TwoViews(ImageList.scan(folder), view_policy(config), 48, 7, backend)
    dataset.local = local_crops(config)
    return dataset.__getitems__(KEYS)


@pytest.mark.parametrize("backend", ["reference", "cpu", "device"])
def test_crops_follow_from_their_address_in_every_backend(backend: Backend, image_folder: Path) -> None:
    folder = image_folder / "train"
    batch, without = batch_of(folder, backend), batch_of(folder, backend, local_crops=0)
    assert torch.equal(batch.im_q, without.im_q) and torch.equal(batch.im_k, without.im_k) and without.crops is None
    config, images = DataConfig(train=folder, **DATA), ImageList.scan(folder)
    local = local_crops(config)
    assert local is not None and batch.crops is not None and batch.crops.shape == (9, 32, 32, 3)
    expected = []
    for epoch, index in KEYS:
        image = Image.open(folder / images.name(index)).convert("RGB")
        for number in range(3):
            view = draw_view(local.policy, *image.size, ViewKey(7, epoch, index, 4 + number))
            assert 0.05 < view.width * view.height / (image.width * image.height) < 0.4
            expected.append(np.asarray(render_view(image, view, 32)))
    table = np.stack(expected)
    if backend == "reference":
        assert np.array_equal(batch.crops.numpy(), table)
    upload = Upload(CPU, view_policy(config).max_sigma)
    mean, deviation = upload.mean, upload.deviation
    pixels = (upload.crops(batch) * deviation + mean).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels - table).mean() < (1e-3 if backend == "reference" else 1.0)  # levels of 255


class Next:
    """The image after it is of the same bag."""

    def member(self, epoch: int, index: int) -> int:
        return index + 1


def test_crops_are_of_the_image_itself_where_there_are_bags(image_folder: Path) -> None:
    config = DataConfig(train=image_folder / "train", **DATA)
    dataset = TwoViews(ImageList.scan(config.train), view_policy(config), 48, 7)
    dataset.local, dataset.bags = local_crops(config), Next()
    found, expected = dataset.__getitems__(KEYS).crops, batch_of(config.train, "reference").crops
    assert found is not None and expected is not None and torch.equal(found, expected)


# losses


@pytest.mark.parametrize(
    ("name", "loops"),
    [
        ("seed", seed_by_loops),
        ("compress", compress_by_loops),
        ("disco", disco_by_loops),
        ("simreg", simreg_by_loops),
    ],
)
def test_a_loss_is_the_mean_over_what_the_student_sees(
    name: str, loops: Callable[[Tensor, Tensor, Tensor], float]
) -> None:
    terms: dict[str, Any] = {
        "seed": Seed(6, 12, 0.2, 0.07, seed=4),
        "compress": CompRess(nn.Identity(), 6, 12, 0.04, seed=4),
        "disco": DisCo(both_views=False),
        "simreg": SimReg(nn.Identity()),
    }
    term, query, teacher, crops = terms[name], rows(1, 5, 6), rows(2, 5, 6), rows(3, 10, 6)
    queue = term.queue.rows.double() if hasattr(term, "queue") else rows(4, 12, 6)
    taught, student, small = (Seen(output=x.float(), feature=x.float()) for x in (teacher, query, crops))
    student.views[CROPS] = small
    seen = [query, crops[0::2], crops[1::2]]  # two crops of an image stand side by side
    expected = sum(loops(view, teacher, queue) for view in seen) / 3
    assert term.loss(student, term.prepare(taught, 0)).item() == pytest.approx(expected, rel=2e-6)


def test_the_other_view_of_disco_counts_as_before() -> None:
    term, query, key, crops, t, t_key = DisCo(), *(rows(i, 5, 6) for i in range(5))
    taught = Seen(output=t.float(), views={"key": Seen(output=t_key.float())})
    views = {"key": Seen(output=key.float()), CROPS: Seen(output=crops.float(), feature=crops.float())}
    found = term.loss(Seen(output=query.float(), views=views), term.prepare(taught, 0))
    of = [disco_by_loops(*pair, crops) for pair in ((query, t), (crops, t), (key, t_key))]
    assert found.item() == pytest.approx((of[0] + of[1]) / 2 + of[2], rel=2e-6)


# runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    encoder = trained_teacher(tmp_path_factory.mktemp("local"), image_folder)
    return max((encoder.parent / "checkpoints").glob("*.pt"))


def settings(images: Path, out: Path, weights: Path, **changes: Any) -> dict[str, Any]:
    queue = {"weight": 1.0, "queue_size": 48}
    terms = {"seed": queue, "disco": {"weight": 1.0}, "compress": queue, "simreg": {"weight": 1.0, "until_epoch": 2.0}}
    data = {"local_crops": 2, "local_size": 16} | changes.pop("data", {})
    return tiny(images, out, **{"teacher": weights, "terms": terms, "data": data, **changes})


def test_a_run_resumes_exactly_and_crops_are_seen_by_the_student_alone(
    image_folder: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, seen = set[int](), Teacher.seen

    def teaching(network: Teacher, images: Tensor) -> Any:
        sizes.add(images.shape[-1])
        return seen(network, images)

    looked, watch = list[int](), Guide.losses

    def losses(guide: Guide, student: Seen, targets: Any) -> Any:
        crops = student.views.get(CROPS)
        looked.append(0 if crops is None or crops.feature is None else len(crops.feature))
        return watch(guide, student, targets)

    monkeypatch.setattr(Teacher, "seen", teaching)
    monkeypatch.setattr(Guide, "losses", losses)
    pretrain(**settings(image_folder, tmp_path / "whole", teacher))
    assert sizes == {32} and looked == [2 * 16] * 9
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            pretrain(**settings(image_folder, tmp_path / "run", teacher))
    pretrain(**settings(image_folder, tmp_path / "run", teacher))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


NOBODY = (
    "data.local_crops is 2 and nothing looks at local crops, as MoCo, mgd and bingo compare whole views: give seed, "
    "disco, simreg or compress a weight, or leave it out"
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"terms": {}}, NOBODY),
        ({"terms": {}, "teacher": None}, NOBODY),
        (
            {"data": {"local_size": 48}},
            "data.local_size 48 is larger than data.image_size 32: local crops are to be the smaller ones",
        ),
        (
            {"student": "convnext_tiny", "mgd": {"weight": 0.0}, "terms": {"simreg": {"weight": 1.0}}},
            "data.local_size 16 is too small for convnext_tiny (Calculated padded input size per channel: (1 x 1). "
            "Kernel size: (2 x 2). Kernel size can't be greater than actual input size): raise it",
        ),
    ],
)
def test_crops_that_cannot_be_used_are_one_sentence(
    changes: dict[str, Any], told: str, image_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        pretrain(**settings(image_folder, tmp_path / "run", teacher, **changes))
    assert str(error.value) == told and not (tmp_path / "run" / "checkpoints").exists()


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"local_scale is \(0.4, 0.05\): give a smaller and a larger share, above 0"):
        DataConfig(train=Path("x"), local_scale=(0.4, 0.05))
