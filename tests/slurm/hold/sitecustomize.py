"""On the PYTHONPATH of a job: has its run wait at chosen steps until a signal reaches it, or fail at one.

HOLD is `FOLDER:STEP,STEP,...` (steps counted from 1, `end` for after the last): at each of them every rank leaves
`FOLDER/held_<step>_<rank>` with its pid and waits for a stop signal, or for `FOLDER/go`, once. FAIL is `STEP:RANK`:
that rank raises there.
"""

import os
import signal
import time
from pathlib import Path

FAR = 300  # seconds after which a test has gone wrong


def _hold(folder: Path, step: str, signalled: list[int]) -> None:
    rank = os.environ.get("RANK", "0")
    held = folder / f"held_{step}_{rank}"
    if held.exists():
        return
    signalled.clear()
    temporary = folder / f".{held.name}"
    temporary.write_text(str(os.getpid()))
    temporary.rename(held)
    deadline = time.monotonic() + FAR
    while not signalled and not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _install() -> None:
    from mgd_ssl.run.stop import StopRequest
    from mgd_ssl.tasks import student
    from mgd_ssl.training.update import Update

    name, _, steps = os.environ.get("HOLD", ":").partition(":")
    fail_step, _, fail_rank = os.environ.get("FAIL", ":").partition(":")
    signalled: list[int] = []
    note, update, finish = StopRequest._note, Update.__call__, student.finish

    def noted(self, number, frame):  # type: ignore[no-untyped-def]
        signalled.append(number)
        note(self, number, frame)

    def step(self, inputs, finished):  # type: ignore[no-untyped-def]
        number = str(finished + 1)
        if number in steps.split(","):
            _hold(Path(name), number, signalled)
        if number == fail_step and os.environ["RANK"] == fail_rank:
            raise ArithmeticError(f"rank {fail_rank} was told to fail")
        return update(self, inputs, finished)

    def finished(*args):  # type: ignore[no-untyped-def]
        result = finish(*args)
        if "end" in steps.split(","):
            signal.signal(signal.SIGTERM, lambda number, frame: signalled.append(number))
            _hold(Path(name), "end", signalled)
        return result

    StopRequest._note = noted  # type: ignore[method-assign]
    Update.__call__ = step  # type: ignore[method-assign]
    student.finish = finished


if "HOLD" in os.environ or "FAIL" in os.environ:
    _install()
