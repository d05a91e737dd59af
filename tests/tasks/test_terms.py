"""Runs with terms beside MGD: what is built and looked at, exact resume, weights over a run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.cli import main
from mgd_ssl.data.bags import load_bags
from mgd_ssl.data.folder import ImageList
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.tasks.pretraining import Pretraining
from mgd_ssl.training.update import Update
from moco import MoCo
from tests.runs import assert_same_end, checkpoint, rows, stop_after, tiny, trained_teacher

Settings = Callable[..., dict[str, Any]]


QUEUE = {"queue_size": 48}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Folder of a run that taught itself: encoder.pt without a head, and a checkpoint with one."""
    encoder = trained_teacher(tmp_path_factory.mktemp("terms"), image_folder)
    return encoder.parent


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, teachers: Path) -> Path:
    path = tmp_path_factory.mktemp("bags") / "bags.npz"
    flags = ["--teacher", str(teachers), "--images", str(image_folder / "train"), "--out", str(path)]
    more = ["--image-size", "32", "--shard-images", "20", "--workers", "0", "--runtime.device", "cpu"]
    assert main(["bags", *flags, *more]) == 0
    return path


@pytest.fixture(scope="module")
def settings(image_folder: Path, teachers: Path, bags: Path) -> Settings:
    """Settings of a run with some of the terms, alone or beside MoCo and MGD."""
    groups: dict[str, Any] = {
        "seed": {"weight": 1.0, **QUEUE},
        "disco": {"weight": 1.0},
        "simreg": {"weight": 1.0},
        "compress": {"weight": 1.0, **QUEUE},
        "bingo": {"weight": 1.0, "bags": bags, "warm_epochs": 1.5, **QUEUE},
    }

    def chosen(out: Path, *names: str, alone: bool = True, **changes: Any) -> dict[str, Any]:
        terms = {name: groups[name] | changes.pop(name, {}) for name in names} | changes.pop("terms", {})
        teacher = sorted((teachers / "checkpoints").glob("*.pt"))[-1]
        weights = {"moco": {"weight": 0.0}, "mgd": {"weight": 0.0}} if alone else {}
        whole = tiny(image_folder, out, **{"teacher": teacher, "terms": terms, **weights})
        for key, value in changes.items():
            whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
        return whole

    return chosen


ALL = ("seed", "disco", "simreg", "compress", "bingo")


def interrupted(settings: dict[str, Any], step: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, step)
        with pytest.raises(Interrupted):
            pretrain(**settings)


@pytest.mark.parametrize("name", ALL)
def test_a_run_by_one_term_alone_resumes_exactly(name: str, settings: Settings, tmp_path: Path) -> None:
    pretrain(**settings(tmp_path / "whole", name))
    interrupted(settings(tmp_path / "run", name), 5)
    pretrain(**settings(tmp_path / "run", name))
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert {"encoder_q"} == {key.split(".")[1] for key in checkpoint(tmp_path / "run", 9)["state_dict"]}
    losses = [row[name] for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_a_run_by_all_terms_resumes_exactly(settings: Settings, tmp_path: Path) -> None:
    weights = {
        "seed": {"schedule": "cosine", "balance": 0.5},
        "disco": {"until_epoch": 1.5},
        "simreg": {"from_epoch": 1.0},
        "terms": {"measure_every": 2},
    }
    pretrain(**settings(tmp_path / "whole", *ALL, alone=False, **weights))
    interrupted(settings(tmp_path / "run", *ALL, alone=False, **weights), 4)
    pretrain(**settings(tmp_path / "run", *ALL, alone=False, **weights))
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    guide = checkpoint(tmp_path / "run", 9)["guide"]
    assert {"factor_seed", "terms.seed.queue.rows", "terms.bingo.queue.ptr", "terms.simreg.head.0.weight"} <= set(guide)
    measured = [row for row in rows(tmp_path / "run") if row["kind"] == "spread"]
    assert [row["step"] for row in measured] == [0, 2, 4, 6, 8]
    for row in measured:
        gone = row["step"] / 9
        share = 0.5 * 0.5 * (1 + math.cos(math.pi * gone))
        assert row["gradient_seed"] == pytest.approx(share * row["gradient_contrastive"], rel=1e-4)
        assert (row["gradient_disco"] > 0) == (row["step"] / 3 < 1.5)
        assert (row["gradient_simreg"] > 0) == (row["step"] / 3 >= 1.0)


# what is built and looked at


class Watched:
    """Passes of the networks in each step of a run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.student: list[int] = []
        self.teacher: list[int] = []
        self.views: set[int] = set()
        seen, ask, update = Teacher.seen, Pretraining.inputs, Update.__call__

        def teaching(network: Teacher, images: Tensor) -> Any:
            self.teacher[-1:] = [self.teacher[-1] + 1] if self.teacher else []
            return seen(network, images)

        def asking(task: Pretraining, batch: Any, step: int) -> Any:
            if not self.student:
                self.task = task
                task.module.moco.encoder_q.register_forward_hook(self.count)
            self.student.append(0)
            self.teacher.append(0)
            self.views.add(len(batch.views))
            return ask(task, batch, step)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(Teacher, "seen", teaching)
            monkeypatch.setattr(Pretraining, "inputs", asking)
            monkeypatch.setattr(Update, "__call__", update)
            pretrain(**settings)

    def count(self, *_: Any) -> None:
        self.student[-1] += 1


@pytest.mark.parametrize(
    ("names", "alone", "views", "student", "teacher"),
    [
        (("simreg",), True, 1, 1, 1),
        (("seed", "compress", "simreg"), True, 1, 1, 1),
        (("seed", "compress", "simreg"), False, 2, 1, 1),
        (("disco",), True, 2, 2, 2),
        (("bingo",), True, 4, 3, 2),
        (ALL, False, 4, 4, 3),
    ],
)
def test_each_view_is_drawn_and_seen_once_and_only_when_asked_for(
    names: tuple[str, ...], alone: bool, views: int, student: int, teacher: int, settings: Settings, tmp_path: Path
) -> None:
    run = Watched(settings(tmp_path / "run", *names, alone=alone, optim={"epochs": 1}))
    assert run.views == {views}
    assert run.student[:-1] == [student] * 2  # k-NN and the like may follow the last step
    assert run.teacher == [teacher] * 3
    module = run.task.module
    assert set(module.guide.terms) == set(names) | (set() if alone else {"mgd"})
    assert module.contrasts == (not alone) == isinstance(module.moco, MoCo)
    assert [name for name, _ in module.moco.named_children()] == ["encoder_q", *(() if alone else ("encoder_k",))]


def test_nothing_is_looked_at_for_a_term_that_rests(settings: Settings, tmp_path: Path) -> None:
    weights = {"disco": {"until_epoch": 1.0}, "simreg": {"until_epoch": 2.0}}
    run = Watched(settings(tmp_path / "run", "disco", "simreg", alone=True, moco={"weight": 1.0}, **weights))
    assert run.teacher == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert run.student[:8] == [2, 2, 2, 1, 1, 1, 1, 1]
    losses = [(row["step"], row["disco"], row["simreg"]) for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert [(step, disco > 0, simreg > 0) for step, disco, simreg in losses] == [
        (2, True, True), (4, True, True), (6, False, True), (8, False, False), (9, False, False),
    ]  # fmt: skip


def test_matching_follows_the_epochs_in_which_mgd_acts(settings: Settings, tmp_path: Path) -> None:
    mgd = {"from_epoch": 1.0, "until_epoch": 2.0, "matching_epochs": (1, 2)}
    pretrain(**settings(tmp_path / "run", alone=False, mgd=mgd))
    told = [(row["kind"], row["step"]) for row in rows(tmp_path / "run") if row["kind"] == "matching"]
    assert told == [("matching", 3)]
    losses = {row["step"]: row["mgd"] for row in rows(tmp_path / "run") if row["kind"] == "train"}
    assert [losses[step] > 0 for step in (2, 4, 6, 8, 9)] == [False, True, True, False, False]


# bags


def test_bags_are_the_nearest_of_all_features(bags: Path, teachers: Path, image_folder: Path) -> None:
    found = load_bags(bags, ImageList.scan(image_folder / "train"), seed=3)
    assert found.neighbours.shape == (48, 5) and found.neighbours.dtype == np.int32
    members = [found.member(epoch, 7) for epoch in range(200)]
    assert set(members) == set(found.neighbours[7].tolist())
    assert members == [found.member(epoch, 7) for epoch in range(200)]
    about = json.loads(str(np.load(bags)["about"]))
    assert (about["num_images"], about["teacher"]["arch"]) == (48, "thin_resnet14")


def test_neighbours_are_those_recorded_of_the_published_code(tmp_path: Path) -> None:
    from mgd_ssl.evaluation.neighbours import Neighbours
    from tests.test_term_reference import FOLDER

    file = np.load(FOLDER / "bingo_bags.npz")
    features = file["features"] / np.linalg.norm(file["features"], axis=1, keepdims=True)
    for shard in (7, 160):
        assert np.array_equal(Neighbours(features, 5, shard).of(np.arange(len(features))), file["neighbours"])
    twins = np.repeat(features[:4], 9, axis=0)  # each row is there nine times
    nearest = Neighbours(twins, 5, 10).of(np.arange(36))
    assert (nearest // 9 == np.arange(36)[:, None] // 9).all()
    assert not (nearest == np.arange(36)[:, None]).any()


# bad input


@pytest.mark.parametrize(
    ("names", "changes", "told"),
    [
        (("seed",), {"teacher": None}, "terms.seed.weight is 1 and there is no teacher"),
        ((), {}, "mgd.weight and the weights of all terms are 0"),
        ((), {"teacher": None}, "moco.weight is 0 and there is no teacher"),
        (("seed",), {"seed": {"queue_size": 40}}, "terms.seed.queue_size 40 is not a multiple of optim.batch_size 16"),
        (("compress",), {"compress": {"queue_size": 40}}, "terms.compress.queue_size 40 is not a multiple"),
        (("disco",), {"moco": {"dim": 24}}, "the teacher's embeddings have 16 numbers and moco.dim is 24"),
        (("bingo",), {"bingo": {"bags": None}}, "terms.bingo.bags is not set: make them with `mgd-ssl bags`"),
        (("simreg",), {"simreg": {"balance": 0.5}}, "terms.simreg.balance is 0.5, a share of the contrastive loss"),
        (
            ("simreg",),
            {"simreg": {"balance": 0.5}, "moco": {"weight": 1.0}, "runtime": {"compile": True}},
            "gradients are not measured with runtime.compile",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    names: tuple[str, ...], changes: dict[str, Any], told: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        pretrain(**settings(tmp_path / "run", *names, **changes))
    assert told in str(error.value) and not (tmp_path / "run" / "checkpoints").exists()


def test_a_teacher_without_a_head_is_refused_where_one_is_needed(
    settings: Settings, teachers: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"encoder.pt holds no projection head .*: pass the whole checkpoint"):
        pretrain(**settings(tmp_path / "run", "seed", teacher=teachers / "encoder.pt"))
    pretrain(**settings(tmp_path / "run", "simreg", teacher=teachers / "encoder.pt", optim={"epochs": 1}))


def test_bags_of_other_images_are_refused(settings: Settings, bags: Path, image_folder: Path, tmp_path: Path) -> None:
    other = settings(tmp_path / "run", "bingo", data={"train": image_folder / "val"}, optim={"batch_size": 4})
    with pytest.raises(UserError, match=r"bags.npz are of other images \(48\) than data.train \(12\)"):
        pretrain(**other)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(bags.read_bytes()[:200])
    with pytest.raises(UserError, match=r"damaged.npz is no whole file of bags .*: make it anew"):
        pretrain(**settings(tmp_path / "run", "bingo", bingo={"bags": damaged}))
    with pytest.raises(UserError, match=r"nowhere.npz is not there: make it with `mgd-ssl bags`"):
        pretrain(**settings(tmp_path / "run", "bingo", bingo={"bags": tmp_path / "nowhere.npz"}))


def test_a_run_goes_on_with_the_bags_it_began_with(settings: Settings, bags: Path, tmp_path: Path) -> None:
    own = tmp_path / "bags.npz"
    own.write_bytes(bags.read_bytes())
    began = settings(tmp_path / "run", "bingo", bingo={"bags": own})
    interrupted(began, 4)
    file = dict(np.load(bags))
    np.savez(own, neighbours=file["neighbours"][:, ::-1], about=file["about"])
    with pytest.raises(UserError, match=r"other settings \(the bags of terms.bingo.bags: others by their SHA-256\)"):
        pretrain(**began)
