from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core import mail

from run_abort import conf
from tests import settings as started_with


class TestSettings:
    def test_invalid_ones_keep_nothing_from_booting_although_the_log_raises(
        self, settings: Any, break_log: Callable[[], None]
    ) -> None:
        settings.RUN_ABORT = {"LISTEN": 3}
        break_log()
        apps.get_app_config("run_abort").ready()

    def test_defaults_are_those_of_the_design(self, settings: Any) -> None:
        settings.RUN_ABORT = {}  # which is signalled; pytest-django signals no deletion
        del settings.RUN_ABORT
        assert conf.settings() == conf.Settings(
            REDIS_URL=None,
            CACHE_ALIAS="default",
            CHANNEL="sentri:run-abort",
            REQUESTS=True,
            REQUEST_TTL=7 * 24 * 3600,
            RECONCILE_INTERVAL=15,
            POLL_INTERVAL=1,
            PUBLISH_TIMEOUT=1,
            HEARTBEAT=10,
            PROCESS_DIR=None,
            LISTEN="auto",
        )

    def test_durations_are_seconds_or_timedeltas(self, settings: Any) -> None:
        settings.RUN_ABORT = {"HEARTBEAT": timedelta(seconds=3), "POLL_INTERVAL": 2}
        assert conf.settings().HEARTBEAT == 3.0
        assert conf.settings().POLL_INTERVAL == 2.0

    def test_are_read_once(self, settings: Any) -> None:
        settings.RUN_ABORT = {}
        assert conf.settings() is conf.settings()

    def test_those_of_a_thread_that_read_before_a_change_do_not_stay(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = conf._make

        def changed_by_another_thread(is_test: bool) -> conf.Settings:
            made = make(is_test)
            monkeypatch.setattr(conf, "_make", make)
            settings.RUN_ABORT = {"CHANNEL": "two"}
            return made

        settings.RUN_ABORT = {"CHANNEL": "one"}
        monkeypatch.setattr(conf, "_make", changed_by_another_thread)
        conf.settings()
        assert conf.settings().CHANNEL == "two"


SERVER = {"REDIS_URL": "redis://real", "HOLDS": True, "LISTEN": "auto"}
BASE = SERVER | {"PROCESS_DIR": "/run/real"}
CUT_OFF = dict.fromkeys(["REDIS_URL", "REQUESTS", "HOLDS", "LISTEN"], False) | {"PROCESS_DIR": None}


class TestInTestsOfAProject:
    @pytest.fixture(autouse=True)
    def project(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Its tests have asked for nothing."""
        with monkeypatch.context() as patch:
            patch.setattr(conf, "_replaced", [])
            patch.setattr(conf, "_made", [{}])
            for key, value in BASE.items():
                patch.setitem(started_with.RUN_ABORT, key, value)
            yield

    def counts(self) -> dict[str, object]:
        now = conf.settings()
        return {key: getattr(now, key) for key in CUT_OFF}

    @pytest.mark.parametrize(
        ("override", "asked"),
        [
            (BASE, {}),
            (BASE | {"HEARTBEAT": 5}, {}),
            ({}, {}),
            ({"REDIS_URL": None, "PUSH": "redis"}, {}),
            (
                {"REDIS_URL": "redis://test"},
                SERVER | {"REQUESTS": True, "REDIS_URL": "redis://test"},
            ),
            (
                {"REDIS_URL": "redis://test", "REQUESTS": False},
                {"REDIS_URL": "redis://test", "HOLDS": True, "LISTEN": "auto"},
            ),
            ({"REQUESTS": True, "HOLDS": True}, {"REQUESTS": True}),
            ({"LISTEN": True}, {"LISTEN": True}),
            # The alias counts. Neither the URL of the settings nor the environment does.
            (
                BASE | {"CACHE_ALIAS": "other"},
                SERVER | {"REQUESTS": True, "REDIS_URL": ""},
            ),
            ({"PROCESS_DIR": "/run/test"}, {"PROCESS_DIR": "/run/test"}),
        ],
    )
    def test_what_an_override_gives_another_value_counts(
        self, settings: Any, override: dict[str, Any], asked: dict[str, Any]
    ) -> None:
        assert self.counts() == CUT_OFF
        settings.RUN_ABORT = {"HEARTBEAT": 6}
        settings.RUN_ABORT = override
        assert self.counts() == CUT_OFF | asked
        assert override.get("HEARTBEAT", 10) == conf.settings().HEARTBEAT

    def test_ends_with_the_test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.counts() == CUT_OFF
        with monkeypatch.context() as patch:
            patch.delattr("django.test.utils._TestState.saved_data")
            assert mail.outbox == []  # as where messages are kept in memory
            assert self.counts() == BASE | {"REQUESTS": True}
        assert self.counts() == CUT_OFF


class TestProblems:
    def test_several_are_told_at_once(self) -> None:
        assert len(list(conf.problems({"A": 1, "CHANNEL": 1, "HEARTBEAT": 0}))) == 3

    def test_a_long_value_is_cut(self) -> None:
        (problem,) = conf.problems({"LISTEN": "x" * 1000})
        assert problem.message.startswith("RUN_ABORT['LISTEN'] is 'xxx")
        assert len(problem.message) < 100

    @pytest.mark.parametrize("key", ["x" * 5000, 10**5000, None], ids=["long", "huge", "none"])
    def test_a_key_that_is_none_is_told_in_a_line(self, key: object) -> None:
        (problem,) = conf.problems({key: 1})
        assert problem.message.startswith("RUN_ABORT has an unknown key ")
        assert len(problem.message) < 100

    def test_a_url_that_utf8_cannot_encode_is_refused(self) -> None:
        (problem,) = conf.problems({"REDIS_URL": "redis://:x\udcff@127.0.0.1"})
        assert "not shown" in problem.message

    def test_the_defaults_are_valid(self) -> None:
        assert list(conf.problems({key: getattr(conf.Settings(), key) for key in conf.KEYS})) == []
