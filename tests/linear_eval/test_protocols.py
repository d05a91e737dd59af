"""Protocol files carry the published numbers; wrong ones are refused in one sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from linear_eval.protocols import FOLDER, Protocol, load_protocol
from mgd_ssl.data.random_crops import CROP_AND_FLIP
from mgd_ssl.errors import UserError
from tests.linear_eval.conftest import BASE, LIVE, write_protocol

PUBLISHED: dict[str, dict[str, Any]] = {
    # main_lincls.py of facebookresearch/moco
    "moco": {"epochs": 100, "lrs": (30.0,), "weight_decays": (0.0,), "milestones": (60, 80), "decay": 0.1,
             "init": "normal", "normalise": False, "standardise": False},
    # DisCo/main_lincls.py of Yuting-Gao/DisCo-pytorch, --learning-rate 3.0 in Reproduction.md
    "disco": {"epochs": 100, "lrs": (3.0,), "weight_decays": (0.0,), "decay": 0.5, "init": "normal",
              "milestones": (5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 80), "normalise": False, "standardise": False},
    # eval_linear.py of UCDvision/simreg
    "simreg": {"epochs": 40, "lrs": (0.01,), "weight_decays": (1e-4,), "milestones": (15, 30, 40), "decay": 0.1,
               "init": "uniform", "normalise": True, "standardise": True},
}  # fmt: skip


def by_sgd(name: str) -> Protocol:
    protocol = load_protocol(name)
    assert isinstance(protocol, Protocol)
    return protocol


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    protocol = load_protocol(name)
    common = {"name": name, "version": 1, "features": "live", "batch_size": 256, "momentum": 0.9, "rounds": ()}
    found = protocol.model_dump()
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert {key: found[key] for key in common} == common


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_file_loads_and_tells_its_source(path: Path) -> None:
    protocol = load_protocol(path.stem)
    assert protocol.name == path.stem
    assert path.read_text().startswith("# ")
    assert f"linear {path.stem} v{protocol.version}; " in str(protocol)


def test_searches_have_at_least_26_heads() -> None:
    for name in ("sweep", "sweep_full"):
        protocol = by_sgd(name)
        assert len(protocol.lrs) >= 13 and len(protocol.settings) >= 26
    assert str(load_protocol("sweep")).endswith(
        "chosen on 10% of the training set (26 for 0.5 epochs and at least 100 steps, then 8 for 1 epochs and at least "
        "200 steps, then 3 for 3 epochs and at least 500 steps; steps stretched to the whole length at curvature 0.1)"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_of_the_learning_rate_equal_torchs(name: str) -> None:
    protocol = by_sgd(name)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), protocol.lrs[0])
    scheduler = MultiStepLR(optimizer, list(protocol.milestones), protocol.decay)
    for epoch in range(protocol.epochs):
        for step in (0, 6):  # the first and the last of 7 steps
            progress = (7 * epoch + step) / (7 * protocol.epochs)
            expected = optimizer.param_groups[0]["lr"]
            assert protocol.lrs[0] * protocol.lr_factor(progress) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_cosine_goes_from_one_to_zero() -> None:
    protocol = by_sgd("sweep")
    assert [protocol.lr_factor(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_crops_are_torchvisions_defaults() -> None:
    assert CROP_AND_FLIP.scale == (0.08, 1.0) and CROP_AND_FLIP.ratio == (3 / 4, 4 / 3)
    assert CROP_AND_FLIP.flip_probability == 0.5
    assert CROP_AND_FLIP.jitter_probability == CROP_AND_FLIP.grey_probability == CROP_AND_FLIP.blur_probability == 0


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no protocol 'mocco', did you mean 'moco'.*: pass a path or one of"):
        load_protocol("mocco")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epoch": 3}, "epoch is no setting, did you mean 'epochs'?"),
        ({"epochs": 0}, "epochs is 0: set it to 1 or more"),
        ({"rounds": []}, "rounds is empty but 6 heads are described: add rounds that search them"),
        ({"rounds": [{"heads": 5, "epochs": 1}]}, "rounds.0.heads is 5: set it to 6, the lrs times the weight_decays"),
        ({"held_out": 0.0}, "held_out is 0: give the share of the training set that judges the rounds"),
        ({"rounds": [{"heads": 6, "epochs": 4}]}, "rounds.0.epochs is 4: set it to 3 or less, all of them"),
        ({"features": "live"}, "features is 'live': set it to 'cached', which a search with rounds needs"),
        ({"name": "moco"}, "is named 'moco' but differs from that protocol: give it a name of its own"),
        ({"name": "a/b"}, "name is 'a/b'"),
    ],
)
def test_wrong_files_are_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write_protocol(tmp_path / "p.toml", BASE | changes)
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        load_protocol(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_own_files_load(tmp_path: Path) -> None:
    for values in (BASE, LIVE):
        assert load_protocol(str(write_protocol(tmp_path / "p.toml", values))) == Protocol(**values)
