"""``python -m tests.e2e.site``: the example, with users, until SIGTERM or until its parent ends.

Prints one line of JSON once every process is ready: ``url``, ``passwords`` by user name, and
``database``, the path of its file.
A process of its own, because the tests have settings and an event loop of their own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from example import interruption, project
from example.fleet import Fleet
from example.redis_server import RedisServer, free_port


def add_users() -> dict[str, str]:
    """Somebody who may abort, somebody who may only look, and an admin; their passwords."""
    from django.contrib.auth.models import User

    passwords = {
        "ada": project.add_user("ada", "runs.add_run", "run_abort.abort_run"),
        "vera": project.add_user("vera", "runs.view_run", "run_abort.view_abortrequest"),
        "admin": project.renew_admin("admin"),
    }
    User.objects.filter(username="vera").update(is_staff=True)
    return passwords


def main() -> None:
    parent = os.getppid()
    interruption.install()
    os.nice(10)  # the runs would take the processors from the browser
    with (
        tempfile.TemporaryDirectory(prefix="run_abort-e2e-") as directory,
        RedisServer() as redis,
    ):
        database = Path(directory, "e2e.sqlite3")
        env = project.set_up(database, redis.url)
        passwords = add_users()
        with Fleet(Path(directory), env) as fleet:
            port = free_port()
            fleet.start(port)
            url = f"http://127.0.0.1:{port}"
            facts = {"url": url, "passwords": passwords, "database": str(database)}
            print(json.dumps(facts), flush=True)
            with suppress(interruption.Interrupted):
                interruption.wait_until(lambda: fleet.check() or os.getppid() != parent)
            if killed := fleet.stop():
                sys.exit(f"had to be killed: {', '.join(killed)}")


if __name__ == "__main__":
    main()
