"""``python -m tests.faults.chaos --seconds N --seed S``, from the root of the repository."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from .checker import CHECKS, Violation, violations
from .figures import totals
from .history import History
from .proof import Options, prove

SHOWN: Final = 3  # violations of each kind


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.chaos",
        description="Lead a fleet of processes through faults, and count the aborts that are lost.",
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", help="what happens; default: something new")
    parser.add_argument("--database", choices=["sqlite", "postgresql", "mysql"], default="sqlite")
    parser.add_argument("--redis", choices=["single", "cluster"], default="single")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave journals and logs there")
    given = parser.parse_args()
    seed = given.seed or secrets.token_hex(3)
    options = Options(given.seconds, seed, given.database, given.redis, given.keep)
    # Ended from outside, it stops what it started, as after a Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(command(options), "...", flush=True)
    try:
        history = prove(options)
    except KeyboardInterrupt:
        return 130
    found = violations(history)
    show(history, found)
    if found:
        print(f"Again: {command(options)}", file=sys.stderr)
    return int(bool(found) or not history.requests)


def command(options: Options) -> str:
    return (
        f"python -m tests.faults.chaos --seconds {options.seconds:g} --seed {options.seed} "
        f"--database {options.database} --redis {options.redis}"
    )


def show(history: History, found: list[Violation]) -> None:
    n = totals(history)
    print(
        f"{n['runs']} runs in {n['blocks']} blocks: {n['aborted']} aborted, {n['refused']} refused "
        f"at their start\n"
        f"{n['requests']} aborts requested: {n['recorded']} recorded, {n['cut short']} cut short "
        f"by a kill; {n['heard']} times heard\n"
        f"{n['waited']} waited for, {n['stopped']} of them stopped; {n['cleared']} cleared, "
        f"{n['again']} runs started again\n"
        f"{n['decisive']} blocks would have shown it had they not been aborted\n"
        f"{n['strangers']} by a stranger: {n['delivered']} delivered, {n['by strangers']} blocks "
        f"aborted\n"
    )
    for kind, times in sorted(Counter(window.kind for window in history.windows).items()):
        print(f"{kind}: {times} times")
    counts = Counter(violation.kind for violation in found)
    print("\n" + " · ".join(f"{kind} {counts[kind]}" for kind in CHECKS))
    for kind in counts:
        for violation in [v for v in found if v.kind == kind][:SHOWN]:
            facts = (str(fact).replace("\\n", "\n        ") for fact in violation.facts)
            print(f"\n{kind}:", *facts, sep="\n    ")


if __name__ == "__main__":
    sys.exit(main())
