"""``python -m example.serve``: the same fleet as the demo's, for a person to play with."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from . import interruption, project
from .fleet import ROOT, WEB_PROCESSES, WORKERS, Fleet, FleetError
from .redis_server import redis_server, without_password

USER = "admin"


def main() -> int:
    """Serve until a signal comes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m example.serve", description=__doc__)
    parser.add_argument("--port", type=port, default=8000, help="default: %(default)d")
    number: int = parser.parse_args().port
    interruption.install()
    try:
        _require_free(number)
        _serve(number, ROOT / "var")
    except interruption.Interrupted as interrupted:
        print(f"\n{interrupted}: everything was stopped.")
    except (FleetError, OSError, RuntimeError) as error:
        print(f"Not served: {error}", file=sys.stderr)
        return 1
    return 0


def port(text: str) -> int:
    """An argument: the number of a TCP port."""
    number = int(text)
    if not 0 < number < 65_536:
        raise ValueError(text)
    return number


def _require_free(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            raise RuntimeError(
                f"port {port} cannot be used: {error.strerror}. Choose another one: "
                "make serve PORT=8001"
            ) from error


def _serve(port: int, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    with redis_server() as (redis_url, is_shared):
        database = directory / "runs.sqlite3"
        env = project.set_up(database, redis_url, shares_redis=is_shared)
        password = project.renew_admin(USER)
        _hand_back_parts()
        with Fleet(directory, env) as fleet:
            fleet.start(port)
            print(
                f"{WEB_PROCESSES} web processes, {WORKERS} workers and a listener are running.\n"
                f"  Pages  http://127.0.0.1:{port}/\n"
                f"  Admin  http://127.0.0.1:{port}/admin/\n"
                f"  Login  {USER} / {password}\n"
                f"  Redis  {without_password(redis_url)}\n"
                f"  Logs   {directory.relative_to(ROOT)}/*.log\n"
                "Ctrl-C ends them all.",
                flush=True,
            )
            interruption.wait_until(fleet.check)


def _hand_back_parts() -> None:
    """Let workers claim the parts that were being worked on when the fleet was killed."""
    from .runs.models import Part

    Part.objects.filter(state=Part.State.RUNNING).update(state=Part.State.WAITING)


if __name__ == "__main__":
    sys.exit(main())
