from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from run_abort import checks
from run_abort.checks import check_settings
from tests.conftest import Configure
from tests.test_conf import BAD

REDIS = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
IDS = {"dict": "E001", "key": "E002", "type": "E003", "range": "E004"}


def ids() -> list[str]:
    return [str(message.id).removeprefix("run_abort.") for message in check_settings()]


@pytest.mark.parametrize(("raw", "kind", "hint"), BAD)
def test_each_bad_setting_has_its_id(settings: Any, raw: object, kind: str, hint: str) -> None:
    settings.RUN_ABORT = raw
    (message,) = check_settings()
    assert message.id == f"run_abort.{IDS[kind]}"
    assert hint in str(message.hint)


def test_all_is_well(configure: Configure) -> None:
    assert ids() == []


@pytest.mark.parametrize(
    ("caches", "run_abort", "expected"),
    [
        ({"default": REDIS}, {}, []),
        ({"default": LOCMEM, "redis": REDIS}, {"CACHE_ALIAS": "redis"}, []),
        ({"default": REDIS | {"BACKEND": "django.core.cache.backends.redis.RedisCache"}}, {}, []),
        ({"default": LOCMEM}, {"CACHE_ALIAS": "redis"}, ["E005"]),
        ({}, {}, ["E005"]),
        ({"default": REDIS | {"BACKEND": "django_redis.cash.RedisCache"}}, {}, ["E006"]),
        ({"default": REDIS | {"OPTIONS": {"PARSER_CLASS": "no.such.Parser"}}}, {}, ["E006"]),
        ({"default": REDIS | {"OPTIONS": {"CONNECTION_POOL_CLASS": "redis"}}}, {}, ["E006"]),
        ({"default": REDIS | {"LOCATION": "no://url"}}, {}, ["E007"]),
        ({"default": LOCMEM}, {"REDIS_URL": "redis://localhost:port"}, ["E007"]),
        ({"default": LOCMEM}, {"CACHE_ALIAS": "default"}, ["E008"]),
        ({"default": LOCMEM}, {}, ["W001"]),
        ({"default": LOCMEM}, {"LISTEN": False}, []),
        ({"default": LOCMEM}, {"INTENTS": False}, ["W002"]),
        ({"default": LOCMEM}, {"INTENTS": False, "LISTEN": False}, ["W002"]),
        ({"default": LOCMEM}, {"REDIS_URL": "unix:///tmp/redis.sock"}, []),
    ],
)
def test_where_redis_is(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caches: dict[str, Any],
    run_abort: dict[str, Any],
    expected: list[str],
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    settings.CACHES = caches
    settings.RUN_ABORT = run_abort
    assert ids() == expected


def test_a_sharded_client_is_not_one_redis(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    options = {"CLIENT_CLASS": "django_redis.client.ShardClient"}
    settings.CACHES = {"default": REDIS | {"OPTIONS": options}}
    settings.RUN_ABORT = {"CACHE_ALIAS": "default"}
    assert ids() == ["E008"]


def test_the_environment_names_one_too(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CACHES = {"default": LOCMEM}
    settings.RUN_ABORT = {}
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    assert ids() == []
    monkeypatch.setenv("REDIS_URL", "localhost")
    assert ids() == ["E007"]


def test_no_check_uses_the_network(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a check opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    sentinel = {
        "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
        "CLIENT_CLASS": "django_redis.client.SentinelClient",
        "SENTINELS": [("127.0.0.1", 1)],
    }
    for cache in (REDIS, REDIS | {"LOCATION": "redis://primary/0", "OPTIONS": sentinel}):
        settings.CACHES = {"default": cache}
        settings.RUN_ABORT = {}
        assert ids() == []


def test_the_check_is_registered(settings: Any) -> None:
    settings.RUN_ABORT = {"CHANEL": "x"}
    assert "run_abort.E002" in [message.id for message in run_checks()]
    with pytest.raises(SystemCheckError, match=r"Did you mean 'CHANNEL'\?"):
        call_command("check")


def test_each_id_is_used_for_one_thing() -> None:
    used = re.findall(r"run_abort\.[EW]\d{3}", inspect.getsource(checks))
    assert sorted(used) == sorted(set(used))
