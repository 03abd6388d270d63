"""Run suites again and again beside busy loops: ``python -m tests.soak SUITE ...``."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "var" / "soak"
# A loop ends by itself when the process that started it is gone, even if that was killed.
BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    command = [sys.executable, "-c", BUSY_LOOP, str(os.getpid())]
    loops = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def run_suite(tests: Sequence[str], log: Path) -> tuple[int, list[str]]:
    """Run the tests once; the exit code of pytest, and its lines about what failed."""
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses", "auto"]
    command += ["--maxprocesses", "8", *tests]
    with log.open("w") as file:
        code = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    lines = log.read_text(errors="replace").splitlines()
    return code, [line for line in lines if line.startswith(("FAILED ", "ERROR "))]


def soak(suites: Sequence[str], runs: int) -> int:
    """Run each suite ``runs`` times; how many of the runs failed."""
    failed = 0
    for suite in suites:
        for number in range(1, runs + 1):
            failed += not passes(suite, f"run {number} of {runs}")
    return failed


def passes(suite: str, title: str) -> bool:
    seed = random.SystemRandom().randrange(2**32)
    log = LOGS / f"{seed}.log"
    started = time.monotonic()
    code, failures = run_suite([*shlex.split(suite), f"--randomly-seed={seed}"], log)
    took = time.monotonic() - started
    verdict = f"failed with exit code {code}" if code else "passed"
    print(f"{suite}: {title} {verdict} in {took:.0f} s", flush=True)
    if not code:
        log.unlink()
        return True
    print(f"  --randomly-seed={seed}, output in {log.relative_to(ROOT)}")
    for line in failures:
        print(f"  {line}", flush=True)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "suites", nargs="+", metavar="SUITE", help="what to give to pytest, as one argument"
    )
    parser.add_argument("--runs", type=int, default=10, help="of each suite (default: 10)")
    parser.add_argument("--loops", type=int, default=4, help="busy loops (default: 4)")
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with busy_loops(options.loops):
        failed = soak(options.suites, options.runs)
    print(f"{failed} of {options.runs * len(options.suites)} runs failed.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
