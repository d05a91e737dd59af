"""Damaged results and states of runs: made anew, passed over, or named."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from linear_eval import linear
from mgd_ssl import UserError, pretrain
from mgd_ssl.run.checkpoint import serialised
from tests.faults.damage import emptied, flip, sentence, truncated
from tests.runs import assert_same_end

# finished runs


def damages(rounds: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What may happen to a file."""
    draw = random.Random(5)
    for damage in [flip, flip, truncated, emptied] * rounds:
        yield damage.__name__, lambda path, damage=damage: path.write_bytes(damage(path.read_bytes(), draw))  # type: ignore[misc]
    yield "missing", lambda path: path.unlink()


@pytest.mark.parametrize("name", ["encoder.pt", "result.json"])
def test_what_a_finished_run_leaves_is_made_anew(
    name: str, settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    for kind, damage in damages(rounds):
        again = settings("run")
        damage(again["out"] / name)
        result = pretrain(**again)
        assert_same_end(again["out"], folder / "run")
        assert (result.epochs, result.steps, result.knn) == (3, 9, {})
        saved = [json.loads((path / "result.json").read_text()) for path in (again["out"], folder / "run")]
        assert saved[0] == saved[1]
        log = (again["out"] / "log.txt").read_text()
        if kind in ("truncated", "emptied") or (kind, name) == ("missing", "encoder.pt"):
            assert f"{again['out'] / name}" in log and "made anew from the last checkpoint" in log


@pytest.mark.parametrize("name", ["encoder.pt", "result.json"])
def test_without_a_checkpoint_a_damaged_run_is_named_and_not_trained_anew(
    name: str, settings: Callable[[str], dict[str, Any]], rounds: int
) -> None:
    for kind, damage in damages(rounds):
        again = settings("run")
        shutil.rmtree(again["out"] / "checkpoints")
        before = (again["out"] / name).read_bytes()
        damage(again["out"] / name)
        try:
            pretrain(**again)
            assert kind == "flip"
            assert name == "result.json" and json.loads((again["out"] / name).read_text()) == json.loads(before)
        except UserError as error:
            told = sentence(error, again["out"] / name)
            assert "no checkpoint is left to make it anew from: restore it, or choose another --out" in told


def test_a_damaged_description_is_named_or_without_effect(
    settings: Callable[[str], dict[str, Any]], folder: Path, rounds: int
) -> None:
    for kind, damage in damages(4 * rounds):
        again = settings("run")
        damage(again["out"] / "config.json")
        try:
            result = pretrain(**again)
        except UserError as error:
            told = sentence(error, again["out"])
            assert "restore" in told or "holds no run" in told
            continue
        assert kind == "flip" and result.steps == 9
        assert_same_end(again["out"], folder / "run")


@pytest.mark.parametrize("name", ["head.pt", "result.json"])
def test_what_a_finished_evaluation_leaves_is_made_anew(
    name: str, evaluated: dict[str, Any], tmp_path: Path, rounds: int
) -> None:
    evaluation, _ = linear(**evaluated)
    for _, damage in damages(rounds):
        out = tmp_path / "linear"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(evaluated["out"], out)
        damage(out / "linear_small_seed0" / name)
        assert linear(**evaluated | {"out": out})[0].values == evaluation.values
        for file in ("head.pt", "result.json"):
            original = evaluated["out"] / "linear_small_seed0" / file
            found = (out / "linear_small_seed0" / file).read_bytes()
            assert found == original.read_bytes() or json.loads(found) == json.loads(original.read_bytes())


def test_a_moved_run_tells_where_it_is_now(settings: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    again = settings("run")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(again["out"], moved)
    shutil.rmtree(again["out"])
    result = pretrain(**again | {"out": moved})
    assert (result.out, result.encoder) == (str(moved), str(moved / "encoder.pt"))
    assert str(tmp_path) not in (moved / "result.json").read_text()


def test_results_from_before_there_were_checksums_are_read(
    settings: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    again = settings("run")
    out = again["out"]
    old = {"out": "/gone", "encoder": "/gone/encoder.pt", "epochs": 3, "steps": 9, "knn": {}}
    (out / "result.json").write_text(json.dumps(old))
    before = (out / "log.txt").read_text()
    assert pretrain(**again).encoder == str(out / "encoder.pt")
    assert (out / "log.txt").read_text() == before
    os.truncate(out / "encoder.pt", 1000)
    pretrain(**again)
    assert "made anew" in (out / "log.txt").read_text()


# states that are whole and not what they should be


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state in a checkpoint, as its writer would have written it."""
    state = torch.load(path, weights_only=True)
    change(state)
    path.write_bytes(serialised(state))


def test_a_renamed_checkpoint_is_passed_over(settings: Callable[[str], dict[str, Any]], folder: Path) -> None:
    again = settings("stopped")
    checkpoints = again["out"] / "checkpoints"
    shutil.copy(checkpoints / "step_00000003.pt", checkpoints / "step_00000008.pt")
    pretrain(**again)
    assert_same_end(again["out"], folder / "run")
    log = (again["out"] / "log.txt").read_text()
    assert "step_00000008.pt holds step 3 and not that of its name; going back" in log
    assert "continuing after step 5 of 9" in log


def test_a_state_of_another_version_is_refused_and_nothing_is_gone_back_from(
    settings: Callable[[str], dict[str, Any]],
) -> None:
    again = settings("stopped")
    newest = again["out"] / "checkpoints" / "step_00000005.pt"
    reseal(newest, lambda state: state.update(format=1))
    with pytest.raises(UserError, match=r"has format 1, and this version reads 2: use the version of mgd_ssl") as error:
        pretrain(**again)
    sentence(error, newest)
    assert len(list(newest.parent.iterdir())) == 2


MISFITS: list[Callable[[dict[str, Any]], object]] = [
    lambda state: state.pop("optimizer"),
    lambda state: state.pop("metrics_bytes"),
    lambda state: state.update(metrics_bytes="many"),
    lambda state: state.update(meter=[1, 2]),
    lambda state: state["meter"].update(sums=torch.zeros(77)),
    lambda state: state["state_dict"].pop("module.queue"),
    lambda state: state["state_dict"].update({3: torch.zeros(3)}),
    lambda state: state["state_dict"].update({"module.queue": torch.zeros(2, 3)}),
    lambda state: state["state_dict"].update({"module.queue": "a queue"}),
    lambda state: state.update(state_dict=None),
    lambda state: state.update(guide={}),
    lambda state: state["optimizer"].update(param_groups=[]),
    lambda state: state["optimizer"].pop("state"),
    lambda state: state["guide"]["terms.mgd.mgd.assignment2"].fill_(10_000),
]


@pytest.mark.parametrize("number", range(len(MISFITS)))
def test_a_state_that_does_not_fit_is_one_sentence(number: int, settings: Callable[[str], dict[str, Any]]) -> None:
    again = settings("stopped")
    newest = again["out"] / "checkpoints" / "step_00000005.pt"
    reseal(newest, MISFITS[number])
    with pytest.raises(UserError, match="restore it, or start a new --out") as error:
        pretrain(**again)
    sentence(error, newest)
