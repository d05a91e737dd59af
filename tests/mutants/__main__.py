"""`python -m tests.mutants [--jobs N] [WORD ...]`: try all faults, or those whose name contains a word.

Ends with 1 when a fault survives, or when its text is not found exactly once.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.mutants.faults import FAULTS
from tests.mutants.trial import ROOT, NotFound, Outcome, tried, with_fault


def main(argv: list[str]) -> int:
    """Try, tell, and count."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time")
    parser.add_argument("words", nargs="*", help="of the names of the faults")
    options = parser.parse_args(argv)
    faults = [fault for fault in FAULTS if not options.words or any(word in fault.name for word in options.words)]
    started = time.monotonic()

    lost = 0
    for fault in faults:  # all of them, before the long work
        try:
            with_fault(ROOT, fault)
        except NotFound as error:
            print(error)
            lost += 1
    if lost or not faults:
        print(f"{lost} faults have no place" if lost else "no fault has such a name")
        return 1

    with ThreadPoolExecutor(options.jobs) as pool:
        # tests that fail without a fault would notice anything
        selections = list({fault.tests: None for fault in faults})
        sound = list(pool.map(lambda tests: tried(None, tests), selections))
        if unsound := [tests for tests, outcome in zip(selections, sound, strict=True) if outcome != "survived"]:
            print(f"without a fault these fail already: {'; '.join(' '.join(tests) for tests in unsound)}")
            return 1
        outcomes: dict[str, Outcome] = {}
        for fault, outcome in zip(faults, pool.map(lambda fault: tried(fault, fault.tests), faults), strict=True):
            outcomes[fault.name] = outcome
            print(f"{outcome:9}{fault.name}", flush=True)

    killed = sum(outcome == "killed" for outcome in outcomes.values())
    print(f"{killed} of {len(faults)} killed in {(time.monotonic() - started) / 60:.0f} minutes")
    return 0 if killed == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
