from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.core.checks import CheckMessage, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.http import HttpRequest, HttpResponse
from django.urls import clear_script_prefix, include, path, re_path, set_script_prefix

from run_abort import checks, conf, health, publish_run_abort
from run_abort._runtime.runtime import Runtime
from run_abort.checks import check_deployment, check_settings, check_urls
from tests.conftest import Configure
from tests.support import wait_until

DJANGOS = "django.core.cache.backends.redis.RedisCache"
REDIS = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
SHARDS = {"CLIENT_CLASS": "django_redis.client.ShardClient"}  # which is not one Redis
FAR = "rediss://:secret@redis.example:6380/0"
SENTINEL = REDIS | {
    "LOCATION": "redis://primary/0",
    "OPTIONS": {
        "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
        "CLIENT_CLASS": "django_redis.client.SentinelClient",
        "SENTINELS": [("127.0.0.1", 1)],
    },
}
BAD: list[tuple[object, str, str]] = [
    (None, "E001", "must be a dict"),
    ([("CHANNEL", "x")], "E001", "must be a dict"),
    ({"CHANEL": "x"}, "E002", "Did you mean 'CHANNEL'?"),
    ({"channel": "x"}, "E002", "Did you mean 'CHANNEL'?"),
    ({"MAY_ABORT": 5}, "E003", "must be a function or its dotted path"),
    ({"XYZ": 1}, "E002", "The keys are REDIS_URL, CACHE_ALIAS"),
    ({1: 1}, "E002", "The keys are"),
    ({"REDIS_URL": 1}, "E003", "a string"),
    ({"REDIS_URL": ""}, "E004", "not empty"),
    ({"REDIS_URL": "localhost:6379"}, "E004", "redis://"),
    ({"REDIS_URL": "http://localhost"}, "E004", "redis://"),
    ({"REDIS_URL": "redis://["}, "E004", "redis://"),
    ({"REDIS_URL": "redis://:a/b@localhost"}, "E004", "%2F"),
    ({"SIGNING_KEY": 7}, "E003", "a list of strings"),
    ({"SIGNING_KEY": []}, "E003", "a list of strings"),
    ({"SIGNING_KEY": ["x" * 32, None]}, "E003", "a list of strings"),
    ({"SIGNING_KEY": ["x" * 32, "x" * 31]}, "E004", "32 characters"),
    # os.environ has such characters for bytes that are not UTF-8.
    ({"SIGNING_KEY": ["x" * 32, "\udcff" * 32]}, "E004", "UTF-8"),
    ({"CHANNEL": "\udcff"}, "E004", "UTF-8"),
    ({"UNSIGNED": True}, "E004", '"accept" or "refuse"'),
    ({"CACHE_ALIAS": None}, "E003", "a string"),
    ({"CHANNEL": b"x"}, "E003", "a string"),
    ({"CHANNEL": ""}, "E004", "not empty"),
    ({"REQUESTS": 1}, "E004", "True or False"),
    ({"REQUEST_TTL": 0}, "E004", "between 1 and"),
    ({"LEASE": 10**400}, "E004", "between 1 and 86400 seconds"),  # too large for a float
    ({"LEASE": 10**5000}, "E004", "between 1 and 86400 seconds"),  # too large to be shown
    ({"REQUEST_TTL": "7 days"}, "E003", "number of seconds or a timedelta"),
    ({"RECONCILE_INTERVAL": float("nan")}, "E004", "between 0.1 and"),
    ({"POLL_INTERVAL": True}, "E003", "number of seconds"),
    ({"PUBLISH_TIMEOUT": float("inf")}, "E004", "between 0.05 and 60"),
    ({"PUBLISH_TIMEOUT": 0}, "E004", "between 0.05 and 60"),
    ({"HEARTBEAT": timedelta(days=-1)}, "E004", "between 0.1 and 3600"),
    ({"HEARTBEAT": None}, "E003", "number of seconds"),
    ({"PROCESS_DIR": 7}, "E003", "a string"),
    ({"PROCESS_DIR": ""}, "E004", "not empty"),
    ({"PROCESS_DIR": "relative/path"}, "E004", "an absolute path"),
    ({"PROCESS_DIR": "/run/\0"}, "E004", "an absolute path"),
    ({"PROCESS_DIR": Path("/run/\ud800")}, "E004", "an absolute path"),
    ({"PROCESS_DIR": Path("relative")}, "E004", "an absolute path"),
    ({"LISTEN": "yes"}, "E004", '"auto", True or False'),
    ({"LISTEN": None}, "E004", '"auto", True or False'),
    ({"LISTEN": 1}, "E004", '"auto", True or False'),
]


def ids() -> list[str]:
    return [str(message.id).removeprefix("run_abort.") for message in check_settings()]


@pytest.mark.parametrize(("raw", "expected", "hint"), BAD)
def test_each_bad_setting_has_its_id(settings: Any, raw: object, expected: str, hint: str) -> None:
    settings.RUN_ABORT = raw
    (message,) = check_settings()
    assert message.id == f"run_abort.{expected}"
    assert hint in str(message.hint)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"LEASE": 15}, ["W008"]),
        ({"LEASE": 15.1}, []),
        ({"LEASE": 2, "RECONCILE_INTERVAL": 1}, []),
        ({"LEASE": 2, "RECONCILE_INTERVAL": 1, "POLL_INTERVAL": 2}, ["W008"]),
    ],
)
def test_a_lease_is_longer_than_the_time_between_two_signs_of_life(
    configure: Configure, options: dict[str, float], expected: list[str]
) -> None:
    configure(**options)
    assert ids() == expected


def test_tests_are_not_warned_of_their_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    local = replace(conf.settings(), **conf.LOCAL)
    monkeypatch.setattr(conf, "settings", lambda: local)
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
        ({"default": REDIS | {"OPTIONS": None}}, {}, ["E007"]),
        ({"default": LOCMEM}, {"REDIS_URL": "redis://localhost:port"}, ["E007"]),
        ({"default": LOCMEM}, {"REDIS_URL": "redis://localhost?ssl_cert_req=none"}, ["E007"]),
        ({"default": LOCMEM}, {"REDIS_URL": "rediss://localhost?ssl_cert_reqs=x"}, ["E007"]),
        ({"default": LOCMEM}, {"CACHE_ALIAS": "default"}, ["E008"]),
        ({"default": REDIS | {"OPTIONS": SHARDS}}, {"CACHE_ALIAS": "default"}, ["E008"]),
        ({"default": LOCMEM}, {}, ["W001"]),
        ({"default": LOCMEM}, {"LISTEN": False}, ["W001"]),
        ({"default": LOCMEM}, {"REDIS_URL": False}, []),
        ({"default": LOCMEM}, {"PUSH": "none"}, []),
        ({"default": LOCMEM}, {"PUSH": "none", "CACHE_ALIAS": "default"}, []),
        ({"default": LOCMEM}, {"REQUESTS": False}, ["W002"]),
        ({"default": LOCMEM}, {"PUSH": "none", "REQUESTS": False}, ["W002"]),
        ({"default": LOCMEM}, {"REDIS_URL": False, "REQUESTS": False}, ["W002"]),
        ({"default": LOCMEM}, {"REDIS_URL": "unix:///tmp/redis.sock"}, []),
    ],
)
def test_where_redis_is(
    settings: Any, caches: dict[str, Any], run_abort: dict[str, Any], expected: list[str]
) -> None:
    settings.CACHES = caches
    settings.RUN_ABORT = run_abort
    assert ids() == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda user, run_id, action: False, []),
        ("tests.web.test_permissions.allow_all", []),
        ("tests.web.nothing.may_abort", ["E009"]),
        ("tests.settings.nothing", ["E009"]),
        ("tests.settings.SECRET_KEY", ["E009"]),
    ],
)
def test_the_rule_is_a_function(configure: Configure, rule: object, expected: list[str]) -> None:
    configure(MAY_ABORT=rule)
    assert ids() == expected


@pytest.mark.parametrize(
    ("apps_of_tenants", "expected"),
    [
        (["jobs", "run_abort"], ["run_abort.W010"]),
        (["run_abort.apps.RunAbortConfig"], ["run_abort.W010"]),
        (["jobs", "run_aborts"], []),
        (None, []),
    ],
)
def test_the_rows_are_in_no_tenants_schema(
    configure: Configure, settings: Any, apps_of_tenants: list[str] | None, expected: list[str]
) -> None:
    configure(REDIS_URL=False, REQUESTS=True)
    settings.TENANT_APPS = apps_of_tenants  # of django-tenants
    assert [message.id for message in check_settings()] == expected


class TestUsers:
    def test_apps_that_are_missing(self, configure: Configure, settings: Any) -> None:
        settings.INSTALLED_APPS = ["run_abort"]
        (message,) = check_settings()
        assert message.id == "run_abort.E010"
        assert "django.contrib.auth and django.contrib.contenttypes" in message.msg

    def test_a_middleware_that_is_missing(self, configure: Configure, settings: Any) -> None:
        with_it = settings.MIDDLEWARE
        without = [each for each in with_it if "Authentication" not in each]
        for middleware, urls, expected in (
            (without, "tests.urls", ["E011"]),
            ([*without, "tests.app.test_checks.OurMiddleware"], "tests.urls", []),
            ([*without, "tests.nothing"], "tests.urls", ["E011"]),
            (without, "django.contrib.auth.urls", []),
            (without, "tests.no_urls", []),
        ):
            settings.MIDDLEWARE, settings.ROOT_URLCONF = middleware, urls
            assert ids() == expected

    def test_the_urls_are_loaded_only_if_the_middleware_is_missing(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load() -> None:
            pytest.fail("they may take seconds, and our commands check this, too")

        monkeypatch.setattr(checks, "get_resolver", load)
        assert ids() == []


def nothing(request: HttpRequest) -> HttpResponse:
    """A view of a project that answers every path, as a front end of one page has."""
    raise NotImplementedError


def urls(patterns: list[Any]) -> ModuleType:
    module = ModuleType("urls")
    module.urlpatterns = patterns  # type: ignore[attr-defined]
    return module


class TestUrls:
    EVERYTHING = re_path("", nothing)
    OURS = path("runs/", include("run_abort.urls"))

    @pytest.mark.parametrize(
        ("patterns", "expected"),
        [
            ([EVERYTHING, OURS], ["run_abort.W009"]),
            ([OURS, EVERYTHING], []),
            ([EVERYTHING], []),
            ([path("outer/", include([OURS]))], []),
        ],
    )
    def test_another_pattern_hides_them(
        self, settings: Any, patterns: list[Any], expected: list[str]
    ) -> None:
        settings.ROOT_URLCONF = urls(patterns)
        found = check_urls()
        assert [message.id for message in found] == expected
        where = "/runs/1/abort/ leads to tests.app.test_checks.nothing"
        assert all(where in message.msg for message in found)
        set_script_prefix("/app/")
        try:
            assert [message.id for message in check_urls()] == expected
        finally:
            clear_script_prefix()


class OurMiddleware(AuthenticationMiddleware):
    """A project's own."""


@pytest.mark.parametrize(
    ("url", "wrong"),
    [("h:99999", "port"), ("h?db=zero", "options"), ("h?password=a&b=c", "options")],
)
def test_what_may_be_wrong_in_a_url_is_named(settings: Any, url: str, wrong: str) -> None:
    settings.RUN_ABORT = {"REDIS_URL": f"redis://{url}"}
    (message,) = check_settings()
    assert f"valid {wrong}" in message.msg


@pytest.mark.parametrize(
    "cache",
    [
        {"BACKEND": DJANGOS, "OPTIONS": {"ssl_cert_req": "none"}},
        REDIS | {"OPTIONS": {"CONNECTION_POOL_KWARGS": {"ssl_cert_req": "none"}}},
    ],
)
def test_an_option_that_is_not_of_a_url_is_named(settings: Any, cache: dict[str, Any]) -> None:
    settings.CACHES = {"default": cache | {"LOCATION": "redis://localhost?db=1"}}
    settings.RUN_ABORT = {}
    (message,) = check_settings()
    assert "'ssl_cert_req'" in message.msg


def test_the_environment_names_one_too(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CACHES = {"default": LOCMEM}
    settings.RUN_ABORT = {}
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    assert ids() == []
    monkeypatch.setenv("REDIS_URL", "localhost")
    assert ids() == ["E007"]


PASSWORD = "hunter2{}s3cret"


@pytest.mark.parametrize("character", "/#?@:%[")
@pytest.mark.parametrize(
    ("run_abort", "caches", "environment"),
    [
        ({"REDIS_URL": "redis://:{}@localhost"}, LOCMEM, None),
        ({"REDIS_URL": "redis://:12?{}=34@localhost"}, LOCMEM, None),
        ({"REDIS_URL": "unix://user:12?{}=34@/run/redis.sock"}, LOCMEM, None),
        ({"REDIS_URL": "redis://localhost?password=12&{}=34"}, LOCMEM, None),
        ({"REDIS_URL": "http://:{}@localhost"}, LOCMEM, None),
        ({"REDIS_URL": ("redis://:{}@localhost",)}, LOCMEM, None),
        ({"REDIS_URL": {"password": "{}"}}, LOCMEM, None),
        ({"PROCESS_DIR": ["redis://:{}@localhost"]}, LOCMEM, None),
        ({"SIGNING_KEY": "{}"}, LOCMEM, None),
        ("redis://:{}@localhost", LOCMEM, None),
        ({}, LOCMEM, "redis://:{}@localhost"),
        ({}, LOCMEM, "redis://user:{}@localhost"),
        ({}, LOCMEM, "redis://12:{}@localhost"),
        ({}, LOCMEM, "redis://localhost?password=12&{}=34"),
        ({}, REDIS | {"LOCATION": "redis://:{}@localhost"}, None),
        ({}, REDIS | {"LOCATION": ["redis://:{}@localhost"], "BACKEND": DJANGOS}, None),
        ({}, REDIS | {"LOCATION": "redis://localhost?password=12&{}=34"}, None),
        ({}, {"LOCATION": "redis://localhost?password=12&{}=34", "BACKEND": DJANGOS}, None),
    ],
)
def test_no_password_is_shown_however_it_is_written(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    runtime: Runtime,
    run_abort: Any,
    caches: dict[str, Any],
    environment: str | None,
    character: str,
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{}", PASSWORD.format(character))
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return type(value)(map(filled, value))

    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: [])
    monkeypatch.setenv("REDIS_URL", filled(environment or ""))
    settings.CACHES = {"default": filled(caches)}
    settings.RUN_ABORT = filled(run_abort)
    found = run_checks(tags=["run_abort"], include_deployment_checks=True)
    shown = [repr(each) for each in found]
    for step in (runtime.listener.ensure_started, lambda: publish_run_abort("a"), conf.settings):
        try:
            shown.append(repr(step()))
        except ImproperlyConfigured as error:
            shown.extend(traceback.format_exception(error))
    runtime.listener.start()
    wait_until(lambda: runtime.listener.status().state not in {"starting", "listening"})
    shown += [repr(health()), repr(runtime.push._found), caplog.text]
    assert "hunter" not in "".join(shown)
    assert "s3cret" not in "".join(shown)


def test_no_check_uses_the_network(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a check opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    for cache in (REDIS, SENTINEL):
        settings.CACHES = {"default": cache}
        settings.RUN_ABORT = {}
        assert ids() == []
        check_deployment()


def run_ours(**options: Any) -> list[CheckMessage]:
    """As ``manage.py check run_abort``: without the database, which other apps ask for."""
    return run_checks(app_configs=[apps.get_app_config("run_abort")], **options)


def test_the_check_is_registered(settings: Any) -> None:
    settings.RUN_ABORT = {"CHANEL": "x"}
    assert "run_abort.E002" in [message.id for message in run_ours()]
    for arguments in (["run_abort"], ["--tag", "run_abort"]):
        with pytest.raises(SystemCheckError, match=r"Did you mean 'CHANNEL'\?"):
            call_command("check", *arguments)


class TestDeployment:
    def test_rows_of_two_tenants_can_have_the_same_key(
        self, configure: Configure, settings: Any
    ) -> None:
        configure(REDIS_URL=False)
        assert check_deployment() == []
        settings.TENANT_MODEL = "customers.Client"  # of django-tenants
        (warning,) = check_deployment()
        assert warning.id == "run_abort.W007"
        assert "an instance names the runs of all of them" in warning.msg

    @pytest.mark.parametrize(
        ("run_abort", "expected"),
        [
            ({"REDIS_URL": FAR}, []),
            ({"REDIS_URL": FAR, "LISTEN": True}, []),
            ({"REDIS_URL": FAR, "LISTEN": False}, ["W003"]),
            ({"REDIS_URL": FAR, "REQUESTS": False}, ["W004"]),
            ({"REDIS_URL": FAR, "LISTEN": False, "REQUESTS": False}, ["W003", "W004"]),
            ({"REDIS_URL": FAR, "UNSIGNED": "accept"}, ["W006"]),
            ({"REDIS_URL": "redis://redis.example"}, ["W005"]),
            ({"REDIS_URL": "redis://:secret@redis.example"}, ["W005"]),
            ({"REDIS_URL": "rediss://redis.example"}, ["W005"]),
            ({"REDIS_URL": "rediss://redis.example?ssl_certfile=client.pem"}, []),
            ({"REDIS_URL": "redis://10.0.0.7"}, ["W005"]),
            ({"REDIS_URL": "redis://127.0.0.1:6380"}, []),
            ({"REDIS_URL": "redis://127.1.2.3"}, []),
            ({"REDIS_URL": "redis://[::1]:6379"}, []),
            ({"REDIS_URL": "redis://localhost"}, []),
            ({"REDIS_URL": "unix:///tmp/redis.sock"}, []),
            # What the other check says is not said again.
            ({"LISTEN": False, "REQUESTS": False}, []),
            ({"REDIS_URL": "redis://redis.example:port", "REQUESTS": False}, []),
            ({"CHANEL": "x"}, []),
        ],
    )
    def test_tells_what_only_matters_there(
        self, settings: Any, run_abort: dict[str, Any], expected: list[str]
    ) -> None:
        settings.CACHES = {"default": LOCMEM}
        settings.RUN_ABORT = {"UNSIGNED": "refuse", **run_abort}
        found = check_deployment()
        assert [str(each.id).removeprefix("run_abort.") for each in found] == expected
        assert all(each.hint for each in found)
        assert "secret" not in "".join(each.msg for each in found)

    @pytest.mark.parametrize(
        ("cache", "lacks"),
        [
            (REDIS, None),
            (REDIS | {"LOCATION": "redis://redis.example"}, "a password and without TLS"),
            (SENTINEL, "a password and without TLS"),
        ],
    )
    def test_looks_at_the_cache_alias_too(
        self, settings: Any, cache: Any, lacks: str | None
    ) -> None:
        settings.CACHES = {"default": cache}
        settings.RUN_ABORT = {"UNSIGNED": "refuse"}
        found = check_deployment()
        assert len(found) == (0 if lacks is None else 1)
        if lacks is not None:
            assert f"CACHES['default'] is reached over the network without {lacks}:" in found[0].msg

    def test_is_asked_for_by_its_option_only(self, settings: Any) -> None:
        settings.RUN_ABORT = {"REDIS_URL": FAR, "REQUESTS": False}
        assert "run_abort.W004" not in [message.id for message in run_ours()]
        found = run_ours(include_deployment_checks=True)
        assert "run_abort.W004" in [message.id for message in found]
