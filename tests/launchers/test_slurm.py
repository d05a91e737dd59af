"""Jobs on a real Slurm: whatever happens to them, they end as one that was left alone."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchers.launch import main
from launchers.records import Records
from mgd_ssl.errors import UserError
from tests.launchers.conftest import Cluster, Launch, slurm
from tests.launchers.interruptions import (
    node_down,
    open_files,
    preempt,
    requeue,
    state,
    time_limit,
    user_signal,
    user_signal_to_all,
)
from tests.runs import DEADLINE, assert_same_end, checkpoint, flags, rows, steps_saved, wait_for

pytestmark = pytest.mark.usefixtures("cluster")


LONG: dict[str, Any] = {"optim": {"epochs": 6}}  # 18 steps


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., dict[str, Any]]
) -> Callable[..., Path]:
    """Folder of a finished run of so many local processes with the given changes, trained once for each."""
    folder, known = tmp_path_factory.mktemp("uninterrupted"), dict[str, Path]()

    def run(procs: int = 2, **changes: Any) -> Path:
        key = repr((procs, changes))
        if key not in known:
            out = folder / str(len(known))
            words = ["local", "--procs", str(procs), "--", "pretrain", *flags(settings(out, **changes))]
            assert main(words) == 0
            known[key] = out
        return known[key]

    return run


# surviving


def test_two_nodes_with_two_tasks_each(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), "--tasks-per-node", "2", hold="2")
    pids = job.held(2, ranks=4)
    places = [dict(pair.split(b"=", 1) for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if pair)
              for pid in pids]  # fmt: skip
    assert [place[b"SLURMD_NODENAME"] for place in places] == [b"node1", b"node1", b"node2", b"node2"]
    assert [place[b"SLURM_LOCALID"] for place in places] == [b"0", b"1", b"0", b"1"]
    writers = [pid for pid in pids if any("metrics.jsonl" in os.readlink(file) for file in open_files(pid))]
    assert writers == [pids[0]]
    job.go()
    assert job.ended() == 0, job.told
    assert_same_end(job.run, uninterrupted(4))
    assert job.starts == 1


def test_a_job_goes_on_after_every_kind_of_interruption(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    plan = {
        2: user_signal,
        4: user_signal_to_all,
        6: requeue,
        8: time_limit,
        10: time_limit,
        12: node_down,
        15: preempt,
    }
    job = launch(settings(tmp_path / "run", **LONG), "--partition", "low", hold=",".join(map(str, plan)))
    for starts, (step, interrupt) in enumerate(plan.items(), start=1):
        job.held(step)
        assert job.starts == starts, f"at step {step}"
        interrupt(job)
    assert job.ended() == 0, job.told
    assert job.starts == len(plan) + 1
    assert_same_end(job.run, uninterrupted(**LONG), step=18)
    assert f"job {job.job_id}: finished" in job.told
    assert "start 3" in job.told  # followed all along


def test_a_failed_node(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), hold="4")
    job.held(4)
    node_down(job)
    assert job.ended() == 0, job.told
    assert job.starts == 2
    assert_same_end(job.run, uninterrupted())


def test_preemption_with_the_user_signal(
    launch: Launch,
    cluster: Cluster,
    settings: Callable[..., Any],
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    cluster.start("--accounting", "--send-user-signal")
    job = launch(settings(tmp_path / "run"), "--partition", "low", hold="4")
    job.held(4)
    preempt(job)
    assert job.ended() == 0, job.told
    assert job.starts == 2
    assert_same_end(job.run, uninterrupted())


def test_a_cancelled_job_stays_cancelled_and_the_same_launch_continues(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), hold="4")
    job.held(4)
    slurm("scancel", job.job_id)
    assert job.ended() == 75, job.told
    assert "was cancelled; the same launch continues" in job.told
    assert job.starts == 1
    assert state(job.job_id) == "CANCELLED"
    saved = steps_saved(job.run)[-1]
    assert saved in (4, 5) and checkpoint(job.run, saved)["step"] == saved
    again = launch(settings(tmp_path / "run"))
    assert again.ended() == 0, again.told
    assert_same_end(job.run, uninterrupted())


def test_a_run_that_is_finished_when_it_is_requeued_is_left_alone(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), hold="end")
    job.held("end")
    files = {path: path.stat().st_mtime_ns for path in job.run.glob("*.*") if path.name != ".lock" and path.is_file()}
    requeue(job)
    assert job.ended() == 0, job.told
    assert job.starts == 2
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert_same_end(job.run, uninterrupted())


def test_a_killed_rank_ends_the_job_and_is_named(launch: Launch, settings: Callable[..., Any], tmp_path: Path) -> None:
    job = launch(settings(tmp_path / "run"), hold="4")
    pids = job.held(4)
    killed = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), None)
    assert time.monotonic() - killed < 30  # KillWait is 5 s
    job.go()
    assert job.ended() == 1, job.told
    assert "rank 1 on node2 was killed" in job.told


def test_the_traceback_of_the_rank_that_failed_is_shown(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), fail="5:1")
    assert job.ended() == 1, job.told
    told = job.told[job.told.rindex(f"job {job.job_id}: ") :]
    assert "rank 1 of 2 on node2 failed" in told
    assert "ArithmeticError: rank 1 was told to fail" in told
    assert steps_saved(job.run) == [3]
    again = launch(settings(tmp_path / "run"))
    assert again.ended() == 0, again.told
    assert_same_end(job.run, uninterrupted())


def test_a_run_continues_with_fewer_processes(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), "--tasks-per-node", "2", hold="4")
    job.held(4, ranks=4)
    slurm("scancel", job.job_id)
    assert job.ended() == 75, job.told
    again = launch(settings(tmp_path / "run"), nodes=1)
    assert again.ended() == 0, again.told
    assert steps_saved(job.run)[-1] == 9
    found, reference = rows(job.run), rows(uninterrupted(4))
    assert [(row["kind"], row["step"]) for row in found] == [(row["kind"], row["step"]) for row in reference]


def test_two_jobs_on_one_node_do_not_collide(
    launch: Launch, settings: Callable[..., Any], uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--tasks-per-node", "2", "--nodelist", "node1")
    jobs = [launch(settings(tmp_path / f"run{i}"), *options, hold="4", nodes=1) for i in range(2)]
    for job in jobs:
        job.held(4)
    for job in jobs:
        job.go()
    for job in jobs:
        assert job.ended() == 0, job.told
        assert_same_end(job.run, uninterrupted())


def test_without_accounting_nothing_hangs(
    launch: Launch,
    cluster: Cluster,
    settings: Callable[..., Any],
    uninterrupted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    cluster.start()
    job = launch(settings(tmp_path / "run"), hold="4")
    job.held(4)
    user_signal(job)
    assert job.ended() == 0, job.told
    assert_same_end(job.run, uninterrupted())
    failing = launch(settings(tmp_path / "failing"), fail="2:0")
    assert failing.ended() == 1, failing.told
    assert "rank 0 of 2 on node1 failed" in failing.told


# refusing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--partition", "nope"], r"invalid partition.*sinfo"),
        (["--account", "nobody"], r"account.*sacctmgr"),
        (["--qos", "nope"], r"qos.*sacctmgr"),
        (["--constraint", "nope"], r"feature.*sinfo"),
        (["--nodes", "5"], r"node configuration is not available.*sinfo"),
        (["--gpus-per-node", "9"], r"node configuration is not available.*sinfo"),
        (["--mem", "9000G"], r"sinfo"),
    ],
)
def test_what_slurm_cannot_run_is_refused_at_submission(
    options: list[str], words: str, settings: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=f"(?is){words}"):
        main(["slurm", *options, "--", "pretrain", *flags(settings(run))])
    assert not run.exists()


def test_a_run_whose_job_waits_is_not_launched_twice(settings: Callable[..., Any], tmp_path: Path) -> None:
    words = ["slurm", "--", "pretrain", *flags(settings(tmp_path / "run"))]
    slurm("scontrol", "update", "PartitionName=debug", "State=DOWN")
    try:
        assert main(words) == 0
        with pytest.raises(UserError, match=r"job \d+ of .*run is pending: wait for it, or `scancel \d+` first"):
            main(words)
    finally:
        slurm("scontrol", "update", "PartitionName=debug", "State=UP")


# many at once


def test_an_array_trains_a_run_an_element_and_evaluations_follow(
    settings: Callable[..., Any], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "seeds.toml"
    sweep.write_text("seed = [0, 1]\n")
    short = settings(tmp_path / "unused", optim={"epochs": 1})
    del short["out"]
    words = ["slurm", "--out", str(tmp_path / "runs"), "--array", str(sweep), "--wait", "--then"]
    words += [f"knn --data {image_folder} --k 1 5", "--", "pretrain", *flags(short)]
    assert main(words) == 0
    runs = [tmp_path / "runs" / f"seed={seed}" for seed in (0, 1)]
    from mgd_ssl.commands.report import main as report

    assert report([*map(str, runs), "--out", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 10_000
    for seed, run in enumerate(runs):
        assert json.loads((run / "config.json").read_text())["config"]["seed"] == seed
        assert (run / "evaluation_knn_k5_T0.07.json").is_file()
        command = Records.of_run(run)[-1].submission().command
        assert command[0] == "knn"
    capsys.readouterr()
    from launchers.runs import main as table

    assert table([str(tmp_path / "runs"), "--json-lines"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["state"] for row in found] == ["finished"] * 2 and all(row["epoch"] == 1 for row in found)


def test_evaluation_of_a_run_that_failed_does_not_wait_for_ever(
    launch: Launch, settings: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    job = launch(settings(tmp_path / "run"), "--then", f"knn --data {image_folder}", fail="2:0")
    started = time.monotonic()
    assert job.ended() == 1, job.told
    assert time.monotonic() - started < DEADLINE
