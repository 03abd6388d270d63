from __future__ import annotations

import re
import threading
from typing import Any

from run_abort import subscribe_to_run_aborts
from run_abort._runtime.runtime import Runtime, current
from run_abort.signals import run_abort_received
from tests.conftest import Configure
from tests.support import Foreign, wait_until


def state() -> str:
    return current().listener.status().state


def is_listening() -> bool:
    return current().listener.is_listening()


class TestOrigin:
    def test_it_has_its_shape_and_stays(self, runtime: Runtime) -> None:
        assert re.fullmatch("inst_[0-9a-f]{32}", runtime.origin())
        assert runtime.origin() == runtime.origin()

    def test_threads_that_ask_at_once_get_the_same(self) -> None:
        for _ in range(50):
            runtime = Runtime()
            start = threading.Barrier(4)
            found: list[str] = []

            def ask(start: threading.Barrier = start, runtime: Runtime = runtime) -> None:
                start.wait()
                found.append(runtime.origin())  # noqa: B023  joined below

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 1


class TestLife:
    def test_where_the_settings_forbid_it_it_is_off(self, configure: Configure) -> None:
        configure(LISTEN=False)
        assert current().listener.ensure_started() is False
        assert subscribe_to_run_aborts(print) is False
        assert state() == "off"

    def test_a_change_of_the_settings_ends_it(self, configure: Configure, foreign: Foreign) -> None:
        assert current().listener.ensure_started()
        wait_until(is_listening)
        configure(CHANNEL="tests:elsewhere")
        assert state() == "stopped"
        assert current().listener.ensure_started()
        wait_until(is_listening)
        assert foreign.publish("run-1") == 0


class TestReceivers:
    def test_the_database_connections_that_receivers_open_are_closed(
        self, configure: Configure, foreign: Foreign, transactional_db: None
    ) -> None:
        from django.contrib.auth.models import User
        from django.db import connection

        seen: list[Any] = []

        def receiver(**kwargs: Any) -> None:
            User.objects.count()
            seen.append(connection._connections["default"])  # type: ignore[attr-defined]

        current().listener.ensure_started()
        wait_until(is_listening)
        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            wait_until(lambda: seen and seen[0].connection is None)
        finally:
            run_abort_received.disconnect(receiver)
