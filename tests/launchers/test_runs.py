"""The table of runs, and what is told of a job's end."""

import fcntl
import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchers import process as task
from launchers import slurm_queue as states
from launchers.outcome import killed_ranks, outcome
from launchers.records import Attempt, End, Failure, Records, Submission
from launchers.runs import main, read_rows, row
from launchers.slurm_queue import UNKNOWN, State
from mgd_ssl import pretrain
from mgd_ssl.errors import UserError

# as srun 22.05 wrote them
KILLED = """submitit INFO - Starting
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=13.0
srun: error: node1: task 0: Killed
"""
EXITED = """srun: error: node2: task 1: Exited with exit code 1
srun: launch/slurm: _step_signal: Terminating StepId=13.0
srun: error: node1: task 0: Killed
"""


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Of a job of two tasks that was started once."""
    records = Records.new(tmp_path)
    log = tmp_path / "log.err"
    log.write_text("")
    records.write(Submission("slurm", ["pretrain"], "13", 2, [str(log)]))
    records.write(Attempt(0, ["node1"], [0]))
    return records


def failure(rank: int, told: str, ended: float, connection: bool = False, after: tuple[int, ...] = ()) -> Failure:
    trace = f"Traceback (most recent call last)\n{told}"
    return Failure(0, rank, f"node{rank + 1}", 1, trace, connection, list(after), ended)


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ([failure(1, "ValueError: first", 10.0), failure(0, "RuntimeError: gloo", 10.1, True, (1,))], "rank 1.*first"),
        ([failure(0, "RuntimeError: gloo", 9.9, True), failure(1, "ValueError: clock", 10.0)], "rank 1.*clock"),
        ([failure(0, "ValueError: late", 9.0, after=(1,)), failure(1, "ValueError: early", 9.5)], "rank 1.*early"),
        ([failure(0, "ValueError: zero", 8.0), failure(1, "ValueError: one", 9.0)], "rank 0.*zero"),
    ],
)
def test_the_first_failure_is_told(records: Records, failures: list[Failure], words: str) -> None:
    for one in failures:
        records.write(one)
    found = outcome(records, State("FAILED"))
    assert found.code == 1
    assert re.search(words, found.told, re.DOTALL)


def test_a_killed_rank_is_told_instead_of_those_that_missed_it(records: Records) -> None:
    records.write(failure(0, "RuntimeError: Connection closed by peer", 10.0, connection=True))
    (Path(records.submission().logs[0])).write_text(KILLED)
    assert "rank 1 on node2 was killed" in outcome(records, State("FAILED")).told


def test_those_that_srun_kills_afterwards_are_not_the_cause(records: Records) -> None:
    (Path(records.submission().logs[0])).write_text(EXITED)
    assert killed_ranks(records) == ""


def test_lines_of_an_earlier_start_are_not_looked_at(records: Records) -> None:
    Path(records.submission().logs[0]).write_text(KILLED)
    records.write(Attempt(1, ["node1"], [len(KILLED)]))
    assert killed_ranks(records) == ""


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("CANCELLED", 75, "was cancelled; the same launch continues"),
        ("TIMEOUT", 3, "raise --signal-delay"),
        ("OUT_OF_MEMORY", 1, "raise --mem"),
        ("NODE_FAIL", 3, "launch it again"),
        ("FAILED", 1, "ended as FAILED without a word from the command: see .*log.err"),
        ("UNKNOWN", 1, "ended as UNKNOWN without a word"),
    ],
)
def test_ends_that_only_slurm_knows(records: Records, name: str, code: int, words: str) -> None:
    found = outcome(records, State(name))
    assert found.code == code
    assert re.search(words, found.told)


def test_a_finished_job_is_finished_whatever_slurm_calls_it(records: Records) -> None:
    records.write(End(0, 0, requeued=False))
    for name in ("COMPLETED", "UNKNOWN", "PREEMPTED"):
        assert outcome(records, State(name)) == (0, "finished")


def test_a_start_that_never_reached_the_command_is_not_told_as_the_end_before_it(records: Records) -> None:
    records.write(End(0, 75, requeued=True, told="stopped by SIGUSR2"))
    assert "without a word" in outcome(records, State("FAILED")).told  # a setup line, the second time
    assert "stopped by SIGUSR2" in outcome(records, UNKNOWN).told


def test_a_job_that_never_started(tmp_path: Path) -> None:
    records = Records.new(tmp_path)
    records.write(Submission("slurm", ["knn"], "14", 1, [str(tmp_path / "log.err")]))
    assert outcome(records, State("CANCELLED")) == (75, "mgd-ssl: job 14 was cancelled before it started")
    assert re.search("before the command started: see .*log.err, and --setup", outcome(records, State("FAILED")).told)


def test_a_failure_that_cannot_be_recorded_is_printed(
    records: Records, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, args: list[str]) -> int:
        shutil.rmtree(records.folder)
        raise ArithmeticError("of the command")

    monkeypatch.setattr(task, "run", fail)
    assert task.execute(["knn"], records, task.Place(3, 4, 1, 2, "n2", 0)).code == 1
    assert re.search("rank 3: Traceback.*ArithmeticError: of the command", capsys.readouterr().err, re.DOTALL)


def test_records_survive_a_round_trip(records: Records) -> None:
    written = Failure(0, 7, "n", 3, "told", connection=True, after=[1, 2])
    records.write(written)
    records.write(End(0, 75, requeued=True, told="stopped"))
    assert records.failures() == [written]
    assert records.failed_ranks(0) == [7]
    end = records.end()
    assert end is not None and (end.code, end.requeued, end.told) == (75, True, "stopped")
    records.write(Attempt(1, ["n"], []))
    assert records.end() is None and records.failures() == []  # of the newest start


def test_a_damaged_record_is_told(records: Records) -> None:
    (records.folder / "submission.json").write_text('{"launcher": ')
    with pytest.raises(UserError, match=r"submission.json is damaged: remove its folder"):
        records.submission()


# Slurm's answers


def answers(monkeypatch: pytest.MonkeyPatch, **lines: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def ask(command: list[str]) -> str:
        asked.append(list(command))
        return lines.get(command[0], "")

    monkeypatch.setattr(states, "ask", ask)
    return asked


def test_squeue_is_believed_before_sacct(monkeypatch: pytest.MonkeyPatch) -> None:
    # as squeue 22.05 answered for an array whose second element waits, and sacct for a job it has forgotten
    asked = answers(
        monkeypatch,
        squeue="33_0|RUNNING|None|node1\n33_1|PENDING|PartitionNodeLimit|\n",
        sacct="12|CANCELLED by 0|None|node[1-2]\n",
    )
    found = states.states(["33_0", "33_1", "12"])
    assert found == {
        "33_0": State("RUNNING", "", "node1"),
        "33_1": State("PENDING", "PartitionNodeLimit", ""),
        "12": State("CANCELLED", "", "node[1-2]"),
    }
    assert [state.alive for state in found.values()] == [True, True, False]
    assert asked[-1][-1] == "--jobs=12"


def test_a_forgotten_job_without_accounting_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(command: list[str]) -> str:
        if command[0] == "sacct":
            raise UserError("sacct failed (Slurm accounting storage is disabled): is this cluster up?")
        return ""

    monkeypatch.setattr(states, "ask", ask)
    assert states.states(["7"]) == {"7": UNKNOWN}


# the table


def test_the_table_needs_no_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    Records.new(run).write(Submission("slurm", ["pretrain"], "14", 1, []))
    monkeypatch.setenv("PATH", "")
    assert read_rows([run])[0].state == "did not start"
    assert "squeue is not on the PATH" in capsys.readouterr().err


def test_the_table_tells_of_runs_with_and_without_jobs(
    small_settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, waiting = tmp_path / "runs" / "finished", tmp_path / "runs" / "waiting"
    pretrain(**small_settings(out=finished))
    Records.new(waiting).write(Submission("local", ["pretrain"], "", 2, []))
    capsys.readouterr()
    assert main([str(tmp_path / "runs"), "--json-lines"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert (first["run"], first["state"], first["epoch"], first["loss"]) == ("finished", "finished", 2, last["loss"])
    assert "student's backbone" in first["last_line"]
    assert (second["run"], second["state"], second["epoch"]) == ("waiting", "did not start", None)
    assert main([str(finished), str(waiting)]) == 0
    assert "finished" in capsys.readouterr().out


def test_the_table_tells_of_evaluations(tmp_path: Path) -> None:
    known = {"1": State("COMPLETED"), "2": State("FAILED"), "3": State("PENDING", "Priority")}
    knn, linear = Records.new(tmp_path, "_knn"), Records.new(tmp_path, "_linear")
    newest = {"knn": knn, "linear": linear}
    for job_id, (command, records) in enumerate(newest.items(), start=1):
        records.write(Submission("slurm", [command], str(job_id), 1, []))
        records.write(Attempt(0, ["n"], []))
    knn.write(End(0, 0, requeued=False))
    linear.write(failure(0, "ValueError", 1.0))
    assert row(tmp_path, "x", newest, known).state == "linear failed, code 1"
    (tmp_path / "config.json").write_text("{}")  # and there is a run, which no launcher started
    assert row(tmp_path, "x", newest, known).state == "stopped; linear failed, code 1"
    (tmp_path / "config.json").unlink()
    assert row(tmp_path, "x", {"knn": knn}, known).state == "finished"
    linear.write(Submission("slurm", ["linear"], "3", 1, []))
    assert row(tmp_path, "x", newest, known).state == "linear pending (Priority)"


def hold_lock(path: Path, ready: Any, leave: Any) -> None:
    with path.open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        ready.set()
        leave.wait()


def test_a_run_in_use_is_running(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / ".lock").touch()
    assert read_rows([run])[0].state == "stopped"
    context = multiprocessing.get_context("forkserver")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(run / ".lock", ready, leave))
    process.start()
    try:
        assert ready.wait(60)
        assert read_rows([run])[0].state == "running"
    finally:
        leave.set()
        process.join()


@pytest.mark.parametrize(
    ("words", "message"), [([], "no run is named"), (["nowhere"], "nowhere is not a folder"), (["."], ". holds no run")]
)
def test_wrong_folders(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(words)
