from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pytest
from django.db import connection
from django.test import Client
from django.urls import resolve, reverse

from run_abort import abortable_run, health
from run_abort._runtime.runtime import current
from tests.conftest import Configure
from tests.support import Child, Proxy, unmigrated, wait_until

URL = "/health/"


def state() -> tuple[bool, str]:
    now = health()
    return now.ok, now.state


class TestHealth:
    def test_of_one_that_listens(self, listening: None) -> None:
        now = health()
        assert (now.ok, now.state, now.redis, now.database) == (True, "listening", True, False)
        assert (now.reconnects, now.last_error, now.held) == (0, "", 0)
        assert now.since <= datetime.now(UTC)
        assert now.origin == current().listener.status().origin

    def test_counts_what_is_held(self, listening: None) -> None:
        with abortable_run("run-1", groups=["group"]), abortable_run("run-1"):
            assert health().held == 2
        assert health().held == 0

    def test_before_the_first_connection(self, configure: Configure) -> None:
        current().listener.start(rest=20)
        assert state() == (False, "starting")

    def test_when_it_was_stopped(self, listening: None) -> None:
        current().listener.stop()
        assert state() == (False, "stopped")

    @pytest.mark.parametrize(
        ("run_abort", "expected"),
        [
            ({}, False),  # it could listen, and does not
            ({"LISTEN": True, "REQUESTS": True}, False),
            ({"LISTEN": False, "REQUESTS": True}, True),
            ({"LISTEN": False}, False),
            ({"REDIS_URL": None, "REQUESTS": True}, True),
            ({"REDIS_URL": None, "REQUESTS": True, "LISTEN": True}, True),
            ({"REDIS_URL": None}, False),
            ({"REDIS_URL": "redis://localhost:port", "REQUESTS": True}, False),
        ],
    )
    def test_of_one_that_never_listens(
        self, configure: Configure, run_abort: dict[str, Any], expected: bool
    ) -> None:
        configure(**run_abort)
        assert state() == (expected, "off")

    def test_of_one_that_was_to_listen_where_there_is_no_redis(self, configure: Configure) -> None:
        configure(REDIS_URL=None, REQUESTS=True)
        current().listener.start()
        wait_until(lambda: state() == (True, "off"))

    @pytest.mark.usefixtures("transactional_db")
    def test_of_one_that_cannot_read_the_database_it_depends_on(self, configure: Configure) -> None:
        configure(REDIS_URL=None, REQUESTS=True, POLL_INTERVAL=0.05)
        with abortable_run("run-1"):
            with unmigrated():
                wait_until(lambda: state() == (False, "off"))
                assert health().last_error.startswith("DatabaseError: ")
            wait_until(lambda: state() == (True, "off"))
        assert health().last_error == ""

    def test_of_invalid_settings(self, settings: Any) -> None:
        settings.RUN_ABORT = {"CHANEL": "x"}
        now = health()
        assert not now.ok
        assert now.last_error.startswith("ImproperlyConfigured: RUN_ABORT has an unknown key")

    def test_opens_no_connection(self, listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object) -> None:
            raise AssertionError("it opened a connection")

        monkeypatch.setattr("socket.socket.connect", refuse)
        monkeypatch.setattr("socket.socket.sendall", refuse)
        assert health().ok

    def test_the_name_is_the_function_whatever_was_imported_first(self) -> None:
        code = "import run_abort._runtime.health, run_abort; print(run_abort.health.__name__)"
        with Child("-c", code) as child:
            assert child.wait() == 0
        assert child.output == ["health"]


class TestView:
    """No test here has a database, nor does the view need one."""

    def test_of_one_that_listens(self, listening: None) -> None:
        response = Client().get(URL)
        assert response.status_code == 200
        data = response.json()
        assert datetime.fromisoformat(data.pop("since")).tzinfo
        assert data == {"ok": True, "state": "listening", "reconnects": 0, "lastError": None}
        assert "no-store" in response["Cache-Control"]

    def test_of_one_that_does_not(self, configure: Configure, proxy: Proxy) -> None:
        proxy.refusing = True
        configure(REDIS_URL=proxy.url)
        current().listener.ensure_started()
        wait_until(lambda: state() == (False, "reconnecting"))
        response = Client().get(URL)
        assert response.status_code == 503
        data = response.json()
        assert (data["ok"], data["state"]) == (False, "reconnecting")
        # Its class, and nothing of hosts and ports.
        assert data["lastError"] == health().last_error.partition(":")[0]
        assert data["lastError"].isidentifier()
        assert str(proxy.port) not in response.content.decode()
        assert "no-store" in response["Cache-Control"]

    def test_with_a_transaction_for_each_request(
        self, listening: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
        assert Client().get(URL).status_code == 200

    def test_a_bad_setting_shows_nothing_of_itself(self, settings: Any) -> None:
        settings.RUN_ABORT = {"CHANNEL": ["secret"]}
        response = Client().get(URL)
        assert response.status_code == 503
        assert response.json()["lastError"] == "ImproperlyConfigured"
        assert "secret" not in response.content.decode()

    def test_head(self, listening: None) -> None:
        response = Client().head(URL)
        assert response.status_code == 200
        assert response.content == b""

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
    def test_other_methods(self, listening: None, method: str) -> None:
        response = getattr(Client(), method)(URL)
        assert response.status_code == 405
        assert response["Allow"] == "GET, HEAD"

    def test_is_served_only_where_the_project_says(self) -> None:
        assert Client().get("/runs/health/").status_code == 404
        for run_id in ("health", "health/", "a/health"):
            url = reverse("run_abort:abort", kwargs={"run_id": run_id})
            match = resolve(unquote(url))  # as a server does
            assert (match.url_name, match.kwargs) == ("abort", {"run_id": run_id})
