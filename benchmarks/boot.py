"""Time that the app adds to the start of a process, with a configured Redis that is down."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from example.redis_server import free_port

from .processes import undisturbed
from .table import at_most, show

ROOT = Path(__file__).resolve().parent.parent

READY_LIMIT = 5.0  # milliseconds

SETUP = """
import time
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", *{apps}],
    RUN_ABORT={options},
)
start = time.perf_counter()
django.setup()
print(time.perf_counter() - start)
"""
READY = """
import time
import django
{before}
from django.conf import settings
from run_abort.apps import RunAbortConfig
def timed(config):
    start = time.perf_counter()
    ready(config)
    print(time.perf_counter() - start)
ready, RunAbortConfig.ready = RunAbortConfig.ready, timed
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "run_abort"],
    RUN_ABORT={options},
)
django.setup()
"""
IMPORT = """
import time
{before}
start = time.perf_counter()
import run_abort
print(time.perf_counter() - start)
"""


def main(quick: bool) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    programs = {
        "django.setup() without the app": SETUP.format(apps=[], options={}),
        "with the app, no Redis": SETUP.format(apps=["run_abort"], options={}),
        "with the app, Redis is down": SETUP.format(apps=["run_abort"], options={"REDIS_URL": url}),
        "of it: ready()": READY.format(options={"REDIS_URL": url}, before=""),
        "of it, redis-py apart": READY.format(options={"REDIS_URL": url}, before="import redis"),
        "import run_abort": IMPORT.format(before=""),
        "import run_abort, after django": IMPORT.format(before="import django"),
    }
    rounds = 5 if quick else 25
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name in random.sample(list(programs), len(programs)):
            taken = run(programs[name])
            if number:  # the first round warms up and writes the bytecode
                times[name].append(taken)
    report(times, rounds)


def report(times: Mapping[str, list[float]], rounds: int) -> None:
    base = median(next(iter(times.values())))
    rows = []
    for name, taken in times.items():
        middle = median(taken)
        added = f"{middle - base:+.1f}" if name.startswith("with") else ""
        goal = at_most(middle, READY_LIMIT) if "apart" in name else ""
        rows.append([name, f"{middle:.1f}", f"{max(taken):.1f}", added, goal])
    show(
        f"boot: fresh processes, ms ({rounds} each)",
        ["", "median", "slowest", "the app adds", "goal"],
        rows,
    )


def run(program: str) -> float:
    """Run ``program``, which prints seconds, in a new interpreter.

    :return: milliseconds.
    """
    # Without its bytecode the app is compiled at each start, which no installed one is.
    left_out = {"REDIS_URL", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    with undisturbed():  # otherwise it prints a traceback on Ctrl-C
        result = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    return float(result.stdout) * 1000
