"""``python -m benchmarks [NAME ...] [--quick]``, from the root of the repository."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from example.redis_server import RedisServer

from . import boot, busy, holds, idle, latency, local, reconcile, scale, throughput
from .table import show

BENCHMARKS: Final[dict[str, Callable[[bool], None]]] = {
    "latency": latency.main,
    "local": local.main,
    "holds": holds.main,
    "throughput": throughput.main,
    "busy": busy.main,
    "scale": scale.main,
    "reconcile": reconcile.main,
    "idle": idle.main,
    "boot": boot.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare the cost of the app with the cost of the same work without it. Both "
        "take turns within one run: trust the ratios, not the times.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; default: all, which takes six minutes",
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples: two minutes")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")

    # SIGTERM, like Ctrl-C, must end the processes that the benchmarks have started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in dict.fromkeys(options.names) or BENCHMARKS:
        BENCHMARKS[name](options.quick)
    show_machine()


def show_machine() -> None:
    with RedisServer() as server, server.client() as client:
        facts = client.info("server")
    server_name = facts.get("server_name", "redis")
    server_version = facts.get(f"{server_name}_version", facts["redis_version"])
    show(
        "machine",
        ["processor", f"{processor()}, {os.cpu_count()} cores"],
        [
            ["kernel", f"{platform.system()} {platform.release()}"],
            ["Python", f"{platform.python_implementation()} {platform.python_version()}"],
            *([name, version_of(name)] for name in ("Django", "redis", "hiredis", "psycopg")),
            ["server", f"{server_name} {server_version}"],
            ["date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
        ],
        texts=2,
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
