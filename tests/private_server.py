"""What the private database servers have in common."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

START_TIMEOUT = 30.0  # seconds


class PrivateServer:
    """A server that listens on a unix socket alone; what it holds is lost when it stops.

    :param name: of its kind, for its directory.
    :param user: whom it runs as if we are root, which it refuses; ``nobody`` if there is none.
    """

    end_signal = signal.SIGKILL  # at once, without asking the clients

    def __init__(self, name: str, *, user: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix=f"run_abort-{name}-")
        self.directory = Path(self._temporary.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._user = pwd.getpwnam(user if has_user(user) else "nobody")
        if os.getuid() == 0:
            shutil.chown(self.directory, self._user.pw_uid)

    @property
    def database(self) -> dict[str, Any]:
        """What Django's ``DATABASES`` needs to reach it."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        raise NotImplementedError

    def connect(self) -> Any:
        """A connection of the administrator, in autocommit."""
        raise NotImplementedError

    def crash(self) -> None:
        """Kill all of its processes, as when the machine loses its power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def start_again(self) -> Self:
        """Start it, with what it has stored."""
        raise NotImplementedError

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, **self._as_user())

    def _serve(self, *command: str, refusal: type[Exception]) -> Self:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self._as_user(),
        )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.connect().close()
                return self
            except refusal:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _as_user(self) -> dict[str, Any]:
        if os.getuid() != 0:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def close(self) -> None:
        if self._process is not None:
            self._process.send_signal(self.end_signal)
            self._process.wait()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
