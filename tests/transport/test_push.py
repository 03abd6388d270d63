from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished
from django_redis.pool import ConnectionFactory

from example.redis_server import RedisServer, find_executable, free_port
from run_abort._core.ids import new_origin
from run_abort._core.types import Request
from run_abort._transport.codec import decode
from run_abort._transport.push import Push
from run_abort._transport.redis import connections, endpoint
from run_abort._transport.redis.connections import MAX_CONNECTING, RedisTransport
from run_abort.conf import problems
from tests.conftest import Configure
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.support import (
    CERTIFICATE,
    NO_REDIS,
    ROOT,
    TIMEOUT,
    Foreign,
    Proxy,
    TlsProxy,
    in_threads,
    raised_by_a_signal_handler,
    wait_until,
)
from tests.transport.conftest import Node, Trickling

LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


class CacheWithClient(LocMemCache):
    """A cache that is not Redis, but has the attribute by which django-redis is known."""

    client = object()


def django_redis(location: object, **options: Any) -> dict[str, Any]:
    return {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": location,
        "OPTIONS": options,
    }


def of_sentinels(*ports: int, **options: Any) -> dict[str, Any]:
    return django_redis(
        "redis://primary/0",
        CONNECTION_FACTORY="django_redis.pool.SentinelConnectionFactory",
        SENTINELS=[("127.0.0.1", port) for port in ports],
        **options,
    )


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def sentinel(server: RedisServer, directory: Path) -> Iterator[int]:
    """The port of a Sentinel that watches the server."""
    port = free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {directory}",
        f"sentinel monitor primary 127.0.0.1 {server.port} 1",
    ]
    path = directory / "sentinel.conf"
    path.write_text("\n".join(lines))
    with subprocess.Popen(
        [find_executable(), str(path), "--sentinel"], stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: is_open(port))
            yield port
        finally:
            process.kill()


def publish(push: Push, run_id: str = "run-1") -> bool:
    """Whether the server took a request."""
    return push.publish([Request(run_id)]) != [None]


class TestWhichRedis:
    def source(self, push: Push) -> str | None:
        found = push.transport()
        return found.source if found else None

    def test_the_setting_comes_first(
        self, push: Push, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://localhost")
        settings.CACHES = {"default": django_redis("redis://localhost")}
        settings.RUN_ABORT = {"REDIS_URL": "redis://localhost"}
        assert self.source(push) == "RUN_ABORT['REDIS_URL']"

    @pytest.mark.parametrize("backend", ["django_redis.cache", "django.core.cache.backends.redis"])
    def test_then_the_alias(
        self, push: Push, settings: Any, monkeypatch: pytest.MonkeyPatch, backend: str
    ) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://localhost")
        settings.CACHES = {
            "default": LOCMEM,
            "other": {"BACKEND": f"{backend}.RedisCache", "LOCATION": "redis://localhost:7/0"},
        }
        settings.RUN_ABORT = {"CACHE_ALIAS": "other"}
        assert self.source(push) == "CACHES['other']"
        assert push.may_be_configured()

    @pytest.mark.parametrize(
        ("backend", "may_be_redis"),
        [
            (None, False),
            ("django.core.cache.backends.locmem.LocMemCache", False),
            ("django.core.cache.backends.filebased.FileBasedCache", False),
            (f"{__name__}.CacheWithClient", True),
        ],
    )
    def test_then_the_environment(
        self,
        push: Push,
        settings: Any,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        backend: str | None,
        may_be_redis: bool,
    ) -> None:
        cache = {"BACKEND": backend, "LOCATION": tmp_path}
        settings.CACHES = {"default": cache} if backend else {}
        settings.RUN_ABORT = {}
        assert self.source(push) is None
        assert push.may_be_configured() is may_be_redis
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "django_redis", None)  # not installed
            push.forget()
            assert self.source(push) is None
        push.forget()
        monkeypatch.setenv("REDIS_URL", "redis://localhost")
        assert self.source(push) == "the environment's REDIS_URL"
        assert push.may_be_configured()
        monkeypatch.delenv("REDIS_URL")
        assert self.source(push) is None

    @pytest.mark.parametrize(("scheme", "of_redis"), [("valkey", "redis"), ("valkeys", "rediss")])
    def test_valkeys_urls_name_the_same(
        self, push: Push, settings: Any, monkeypatch: pytest.MonkeyPatch, scheme: str, of_redis: str
    ) -> None:
        url = "://ann:secret@localhost:7/0"

        def pool() -> redis.ConnectionPool:
            transport = push.transport()
            assert isinstance(transport, RedisTransport)
            return transport.pool

        settings.CACHES = {"default": LOCMEM}
        settings.RUN_ABORT = {"REDIS_URL": of_redis + url}
        expected = pool()
        settings.RUN_ABORT = {"REDIS_URL": scheme + url}
        assert not list(problems(settings.RUN_ABORT))
        found = [pool()]
        settings.RUN_ABORT = {}
        monkeypatch.setenv("REDIS_URL", scheme + url)
        found.append(pool())
        options = {"USERNAME": "ann", "PASSWORD": "secret"}
        settings.CACHES = {
            "default": LOCMEM | {"LOCATION": f"{scheme}://localhost:7/0", "OPTIONS": options}
        }
        found.append(pool())
        for each in found:
            assert each.connection_class is expected.connection_class
            for key in ("host", "port", "db", "username", "password"):
                assert each.connection_kwargs.get(key) == expected.connection_kwargs.get(key), key

    def test_is_found_once_and_again_after_a_change(self, push: Push, settings: Any) -> None:
        settings.RUN_ABORT = {"REDIS_URL": "redis://localhost:1"}
        first = push.transport()
        assert push.transport() is first
        settings.RUN_ABORT = {"REDIS_URL": "redis://localhost:2"}
        assert push.transport() is not first

    def test_one_that_cannot_be_used(self, push: Push, settings: Any) -> None:
        settings.RUN_ABORT = {"REDIS_URL": "redis://localhost:port"}
        with pytest.raises(ImproperlyConfigured, match="is not a URL"):
            push.transport()
        assert not push.is_configured()
        settings.RUN_ABORT = {"REDIS_URL": "redis://localhost"}
        assert push.is_configured()

    def test_what_another_thread_found_before_a_change_does_not_stay(
        self, push: Push, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = endpoint.find

        def amid_a_change() -> endpoint.Found:
            found = find()
            monkeypatch.setattr(endpoint, "find", find)
            settings.CACHES = {"default": LOCMEM}
            push.forget()
            return found

        settings.CACHES = {"default": django_redis("redis://localhost")}
        monkeypatch.setattr(endpoint, "find", amid_a_change)
        assert self.source(push) == "CACHES['default']"
        assert self.source(push) is None


class TestPublish:
    def test_says_how_many_listened(
        self, push: Push, configure: Configure, foreign: Foreign
    ) -> None:
        request = Request("run-1", str(uuid.uuid4()), "because", "ann", new_origin())
        assert push.publish([request]) == [0]
        with foreign.subscribed() as hear:
            assert push.publish([request]) == [1]
            message = decode(hear())
        assert message is not None
        assert message.request._replace(made_at=None) == request

    def test_fills_in_the_origin_where_there_is_none(
        self, configure: Configure, node: Node, foreign: Foreign
    ) -> None:
        requests = [Request("run-1"), Request("run-2", origin="theirs")]
        with foreign.subscribed() as hear:
            assert node.push.publish(requests) == [1, 1]
            received = [json.loads(hear()) for _ in requests]
        expected = [("run-1", node.origin), ("run-2", "theirs")]
        assert [(each["runId"], each["origin"]) for each in received] == expected

    def test_in_a_signal_handler_at_each_step_of_a_push_of_its_thread(
        self, push: Push, configure: Configure, foreign: Foreign
    ) -> None:
        def attempt(steps: Steps) -> None:
            push.close()  # so that both make a new connection
            with steps.taken():
                published.append(publish(push))

        published: list[bool] = []
        handle = lambda: published.append(publish(push))  # noqa: E731
        steps = at_each_step(handle, attempt, also=(threading.__file__,))
        assert published == [True] * (2 * steps + 1)

    def test_a_signal_handler_that_raises_takes_no_place_of_later_pushes(
        self, push: Push, configure: Configure
    ) -> None:
        def attempt(steps: Steps) -> None:
            push.close()  # so that it makes a new connection
            with suppress(HandlerError), steps.taken():
                publish(push)
            transport = push.transport()
            assert isinstance(transport, RedisTransport)
            wait_until(lambda: len(transport._tokens) == MAX_CONNECTING)

        assert at_each_step(fail, attempt) > 50

    def test_one_that_waits_for_a_place_waits_no_longer_than_the_time_out(
        self, push: Push, configure: Configure
    ) -> None:
        """Forced: another takes the place that became free just as the time of this one is up."""
        configure(PUBLISH_TIMEOUT=0.5)
        transport = push.transport()
        assert isinstance(transport, RedisTransport)
        places: list[list[None]] = [[] for _ in range(MAX_CONNECTING)]
        for place in places:
            transport._take(place, time.monotonic())
        published: list[bool] = []
        waiting = threading.Thread(target=lambda: published.append(publish(push)))
        waiting.start()
        time.sleep(0.2)  # it waits now
        previous = sys.getswitchinterval()
        sys.setswitchinterval(60)
        try:
            transport._give_back(places[0])
            transport._take(places[0], time.monotonic())
            busy_until = time.monotonic() + 0.6
            while time.monotonic() < busy_until:
                pass
        finally:
            sys.setswitchinterval(previous)
        waiting.join(TIMEOUT)
        for place in places:
            transport._give_back(place)
        assert published == [False]

    def test_nothing(
        self, push: Push, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL="redis://localhost:port")
        assert push.publish([]) == []
        assert caplog.text == ""

    def test_without_a_transport(self, push: Push, configure: Configure) -> None:
        configure(REDIS_URL=None)
        assert push.publish([Request("run-1"), Request("run-2")]) == [None, None]
        assert push.subscription() is None

    def test_keeps_one_connection(
        self, push: Push, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url)
        with own_redis.client() as client:
            publish(push)
            before = client.info("stats")["total_connections_received"]
            in_threads(*[lambda: publish(push)] * 20)
            assert publish(push)
            used = client.info("stats")["total_connections_received"] - before
            assert used <= 20
            wait_until(lambda: len(client.client_list()) <= 2)  # with the client's

    @pytest.mark.parametrize("close", [Push.close, Push.forget])
    def test_closes_it(
        self,
        push: Push,
        configure: Configure,
        own_redis: RedisServer,
        close: Callable[[Push], None],
    ) -> None:
        configure(REDIS_URL=own_redis.url)
        with own_redis.client() as client:
            assert publish(push)
            assert len(client.client_list()) == 2
            close(push)
            wait_until(lambda: len(client.client_list()) == 1)
            assert publish(push)

    def test_a_child_does_not_close_the_parents(
        self, push: Push, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url)
        assert publish(push)
        parents = push.transport()
        push.after_fork_in_child()
        assert push.transport() is not parents
        with own_redis.client() as client:
            assert len(client.client_list()) == 2

    def test_survives_the_end_of_the_kept_connection(
        self, push: Push, configure: Configure, shared_redis: RedisServer
    ) -> None:
        with shared_redis.client() as client:
            for _ in range(5):
                assert publish(push)
                client.client_kill_filter(_type="normal", skipme=True)

    def test_survives_a_kept_connection_that_was_cut_without_a_word(
        self, push: Push, configure: Configure, proxy: Proxy
    ) -> None:
        configure(REDIS_URL=proxy.url, PUBLISH_TIMEOUT=8)
        assert publish(push)
        proxy.freeze()
        with proxy._lock:
            proxy._links.clear()  # those that are frozen stay so
        threading.Timer(0.1, proxy.thaw).start()
        assert publish(push)

    def test_what_is_too_large_is_refused_with_a_warning(
        self, push: Push, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert not publish(push, "x" * 20_000)
        assert "must not be larger" in caplog.text

    def test_refused_it_says_so_at_once(
        self, push: Push, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL=NO_REDIS)
        with caplog.at_level(logging.WARNING, "run_abort"):
            assert not publish(push)
        assert "The abort of run 'run-1' was not published: " in caplog.text
        assert push.publish([Request("run-1"), Request("run-2")]) == [None, None]
        assert "The aborts of 2 runs, 'run-1' among them, were not published: " in caplog.text
        caplog.clear()
        assert push.publish([Request("run-1")], quiet=True) == [None]
        assert caplog.text == ""

    @pytest.mark.parametrize("answer", [b":1\r\n:1\r\n", b":1\r\n:", b":\r\n", b"$1\r\n1\r\n"])
    def test_what_is_no_answer_to_it_counts_as_none(
        self,
        push: Push,
        configure: Configure,
        trickling: Trickling,
        answer: bytes,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        configure(REDIS_URL=trickling.url)
        trickling.good, trickling.answer = 1, answer
        assert not publish(push)
        assert "was not published" in caplog.text
        wait_until(lambda: not trickling.links)

    def test_what_the_projects_own_code_raises_is_a_failure_like_another(
        self, push: Push, settings: Any, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Provider(redis.CredentialProvider):
            def get_credentials(self) -> tuple[str, str]:
                raise KeyError("vault")

        settings.CACHES = {
            "default": django_redis(
                own_redis.url, CONNECTION_POOL_KWARGS={"credential_provider": Provider()}
            )
        }
        settings.RUN_ABORT = {}
        assert not publish(push)
        assert "was not published: KeyError: 'vault'" in caplog.text

    def test_a_database_that_does_not_exist_does_not_matter(
        self, push: Push, configure: Configure, shared_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=shared_redis.url.replace("/0", "/9999"))
        assert publish(push)


class TestBlackHole:
    """A Redis that takes connections, or not even that, and never answers.

    :cvar BOUND: seconds; to wait for the answer would take longer.
    """

    BOUND = TIMEOUT / 2

    @pytest.fixture
    def silent_port(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def seconds(self, fn: Callable[[], object]) -> float:
        started = time.monotonic()
        fn()
        return time.monotonic() - started

    @pytest.mark.parametrize("options", ["", "?retry_on_timeout=yes&socket_timeout=60"])
    def test_publishing_takes_no_longer_than_its_bound(
        self, push: Push, configure: Configure, silent_port: int, options: str
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{silent_port}/0{options}", PUBLISH_TIMEOUT=0.2)
        results = []
        assert self.seconds(lambda: results.append(publish(push))) < self.BOUND
        assert results == [False]

    @pytest.mark.parametrize("is_kept", [False, True])
    def test_a_signal_handler_that_raises_ends_the_wait(
        self, push: Push, configure: Configure, own_redis: RedisServer, is_kept: bool
    ) -> None:
        configure(REDIS_URL=own_redis.url, PUBLISH_TIMEOUT=20)
        if is_kept:
            assert publish(push)
        own_redis.freeze()
        with raised_by_a_signal_handler() as error, pytest.raises(error):
            publish(push)
        own_redis.thaw()
        assert publish(push)

    def test_also_if_it_answers_byte_by_byte_without_end(
        self, push: Push, configure: Configure, trickling: Trickling
    ) -> None:
        configure(REDIS_URL=trickling.url, PUBLISH_TIMEOUT=2)
        trickling.good = 1
        assert publish(push)
        results = []
        for _ in ("over the kept link", "over a new one"):
            assert self.seconds(lambda: results.append(publish(push))) < self.BOUND
        assert results == [False, False]
        wait_until(lambda: not trickling.links)  # no thread waits any more

    def test_also_where_names_are_looked_up_in_vain(
        self, push: Push, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(TIMEOUT))
        configure(REDIS_URL="redis://redis.example/0", PUBLISH_TIMEOUT=0.2)
        assert self.seconds(lambda: publish(push)) < self.BOUND
        release.set()

    def test_also_behind_sentinels_that_do_not_answer(
        self, push: Push, settings: Any, silent_port: int
    ) -> None:
        settings.CACHES = {
            "default": of_sentinels(silent_port, SENTINEL_KWARGS={"socket_timeout": TIMEOUT})
        }
        settings.RUN_ABORT = {"PUBLISH_TIMEOUT": 0.2}
        assert self.seconds(lambda: publish(push)) < self.BOUND

    @pytest.mark.parametrize("options", [{}, {"SENTINEL_KWARGS": {"socket_timeout": 0.5}}])
    def test_a_sentinel_that_does_not_answer_leaves_time_for_the_next(
        self,
        push: Push,
        settings: Any,
        silent_port: int,
        own_redis: RedisServer,
        tmp_path: Path,
        options: dict[str, Any],
    ) -> None:
        with sentinel(own_redis, tmp_path) as port:
            settings.CACHES = {
                "default": of_sentinels(silent_port, port, SOCKET_TIMEOUT=TIMEOUT, **options)
            }
            settings.RUN_ABORT = {"PUBLISH_TIMEOUT": 6}
            assert publish(push)

    def test_many_at_once_take_few_threads(
        self, push: Push, configure: Configure, silent_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{silent_port}/0", PUBLISH_TIMEOUT=0.5)
        number = 40
        all_look = threading.Barrier(number)
        find, connect = endpoint.find, redis.Connection.connect
        connecting: list[None] = []
        counts: list[int] = []

        def find_at_once() -> endpoint.Found:
            found = find()
            all_look.wait(TIMEOUT)
            return found

        def counted(connection: redis.Connection) -> None:
            connecting.append(None)
            counts.append(len(connecting))
            try:
                connect(connection)
            finally:
                connecting.pop()

        monkeypatch.setattr(endpoint, "find", find_at_once)
        monkeypatch.setattr(redis.Connection, "connect", counted)
        assert in_threads(*[lambda: publish(push)] * number) == [False] * number
        assert max(counts) == MAX_CONNECTING

    def test_a_frozen_server_is_waited_for_no_longer_either(
        self, push: Push, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url, PUBLISH_TIMEOUT=2)
        assert publish(push)
        own_redis.freeze()
        assert self.seconds(lambda: publish(push)) < self.BOUND
        own_redis.thaw()
        assert publish(push)


class TestAliasTraps:
    """What breaks a listener that borrows the cache's connections."""

    @pytest.fixture(autouse=True)
    def new_pools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # django-redis keeps its pools by URL alone, with the options of whoever came first.
        monkeypatch.setattr(ConnectionFactory, "_pools", {})

    def hears(self, node: Node, foreign: Foreign, settings: Any, *, use_cache: bool = True) -> None:
        settings.RUN_ABORT = {"CHANNEL": foreign.channel, "REQUESTS": False, "HEARTBEAT": 0.2}
        node.listen()
        assert foreign.publish("before") == 1
        wait_until(lambda: node.heard == ["before"])
        if use_cache:
            cache = caches["default"]
            cache.set("key", "value")
            assert cache.get("key") == "value"
            request_finished.send(sender=None)
            cache.clear()
        time.sleep(0.5)  # longer than the time-outs under test
        assert node.listener.status().reconnects == 0
        assert foreign.publish("after") == 1
        wait_until(lambda: node.heard == ["before", "after"])
        assert publish(node.push)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"SOCKET_TIMEOUT": 0.1, "SOCKET_CONNECT_TIMEOUT": 0.1},
            {"CLOSE_CONNECTION": True},
            {"CONNECTION_POOL_KWARGS": {"protocol": 3, "health_check_interval": 1}},
            {"CONNECTION_POOL_KWARGS": {"retry_on_timeout": True, "retry_on_error": [OSError]}},
            {
                "CONNECTION_POOL_CLASS": "redis.BlockingConnectionPool",
                "CONNECTION_POOL_KWARGS": {"max_connections": 2, "timeout": 0.1},
            },
            {"PARSER_CLASS": "redis.connection._RESP2Parser"},
            {"COMPRESSOR": "django_redis.compressors.zlib.ZlibCompressor"},
            {"CONNECTION_POOL_KWARGS": {"decode_responses": True}},
        ],
    )
    def test_of_django_redis(
        self,
        node: Node,
        settings: Any,
        shared_redis: RedisServer,
        foreign: Foreign,
        options: dict[str, Any],
    ) -> None:
        if options.get("CLOSE_CONNECTION"):
            settings.DJANGO_REDIS_CLOSE_CONNECTION = True
        settings.CACHES = {"default": django_redis(shared_redis.url, **options)}
        # One that decodes can hold no pickled values.
        decodes = "decode_responses" in options.get("CONNECTION_POOL_KWARGS", {})
        self.hears(node, foreign, settings, use_cache=not decodes)

    @pytest.mark.parametrize("options", [{}, {"decode_responses": False, "socket_timeout": 0.1}])
    def test_of_djangos_own_cache(
        self,
        node: Node,
        settings: Any,
        shared_redis: RedisServer,
        foreign: Foreign,
        options: dict[str, Any],
    ) -> None:
        backend = "django.core.cache.backends.redis.RedisCache"
        settings.CACHES = {
            "default": {"BACKEND": backend, "LOCATION": shared_redis.url, "OPTIONS": options}
        }
        self.hears(node, foreign, settings)

    def test_several_locations_the_first_is_written_to(
        self, push: Push, settings: Any, shared_redis: RedisServer, foreign: Foreign
    ) -> None:
        for location in ([shared_redis.url, NO_REDIS], f"{shared_redis.url},{NO_REDIS}"):
            settings.CACHES = {"default": django_redis(location)}
            settings.RUN_ABORT = {"CHANNEL": foreign.channel}
            assert publish(push)

    @pytest.mark.parametrize("separator", [",", ";"])
    def test_djangos_own_cache_separates_them_in_two_ways(
        self, push: Push, settings: Any, shared_redis: RedisServer, foreign: Foreign, separator: str
    ) -> None:
        url = shared_redis.url.replace("://", "://default:@")
        location = separator.join([url, url.replace(":@", ":secret@")])
        backend = "django.core.cache.backends.redis.RedisCache"
        settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": location}}
        settings.RUN_ABORT = {"CHANNEL": foreign.channel}
        assert publish(push)

    def test_two_aliases_with_one_url_each_keep_their_options(
        self, push: Push, settings: Any, own_redis: RedisServer
    ) -> None:
        with own_redis.client() as client:
            client.config_set("requirepass", "secret")
        settings.CACHES = {
            "default": django_redis(own_redis.url, PASSWORD="wrong"),
            "aborts": django_redis(own_redis.url, PASSWORD="secret"),
        }
        with pytest.raises(Exception, match="invalid|WRONGPASS"):
            caches["default"].get("key")
        settings.RUN_ABORT = {"CACHE_ALIAS": "aborts", "REQUESTS": False}
        assert publish(push)

    def test_a_unix_socket(
        self, node: Node, settings: Any, shared_redis: RedisServer, foreign: Foreign
    ) -> None:
        settings.CACHES = {"default": django_redis(f"unix://{shared_redis.socket_path}?db=3")}
        self.hears(node, foreign, settings)

    def test_a_user_and_a_password(
        self, push: Push, node: Node, settings: Any, own_redis: RedisServer, channel_name: str
    ) -> None:
        with own_redis.client() as client:
            # The least that is needed: docs/deploy.md names it.
            client.execute_command(
                f"ACL SETUSER app on >secret resetchannels &{channel_name} "
                "+subscribe +publish +ping"
            )
        url = f"redis://127.0.0.1:{own_redis.port}/5"
        settings.CACHES = {"default": django_redis(url, USERNAME="app", PASSWORD="secret")}
        settings.RUN_ABORT = {"CHANNEL": channel_name, "REQUESTS": False}
        node.listen()
        assert publish(push)
        wait_until(lambda: node.listener.status().messages == 1)

    def test_an_error_does_not_list_the_options_of_the_sentinels(
        self, push: Push, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        # redis-py 6.4 and 7.0 write the password, too.
        options = {"password": "secret", "socket_timeout": 0.5}
        ports = [free_port(), free_port()]
        settings.CACHES = {"default": of_sentinels(*ports, SENTINEL_KWARGS=options)}
        settings.RUN_ABORT = {"REQUESTS": False}
        assert not publish(push)
        assert "No master found for 'primary': " in caplog.text
        assert "ConnectionError" in caplog.text
        assert "secret" not in caplog.text
        assert "password" not in caplog.text


class TestAccessRules:
    """Those of docs/security.md."""

    @pytest.mark.parametrize(
        ("user", "listens", "publishes", "counts"),
        [
            ("app", True, True, True),
            ("worker", True, False, False),
            ("monitor", False, False, True),
        ],
    )
    def test_let_each_role_do_what_it_needs(
        self,
        node: Node,
        configure: Configure,
        own_redis: RedisServer,
        channel_name: str,
        user: str,
        listens: bool,
        publishes: bool,
        counts: bool,
    ) -> None:
        text = (ROOT / "docs" / "security.md").read_text()
        (rule,) = re.findall(rf"^ *ACL SETUSER {user} on >(\w+) (.*)$", text, re.MULTILINE)
        password, rights = rule[0], rule[1].replace("&app", f"&{channel_name}")
        with own_redis.client() as client:
            client.execute_command(f"ACL SETUSER {user} on >{password} {rights}")
        configure(REDIS_URL=f"redis://{user}:{password}@127.0.0.1:{own_redis.port}/0")
        node.listener.ensure_started()
        state = "listening" if listens else "reconnecting"
        wait_until(lambda: node.listener.status().state == state)
        assert publish(node.push) is publishes
        assert (node.push.subscribers() is not None) is counts


class TestTls:
    def test_is_spoken(
        self, push: Push, node: Node, settings: Any, shared_redis: RedisServer, channel_name: str
    ) -> None:
        with TlsProxy(shared_redis.port) as proxy:
            settings.CACHES = {
                "default": django_redis(
                    f"rediss://127.0.0.1:{proxy.port}/0",
                    CONNECTION_POOL_KWARGS={"ssl_ca_certs": str(CERTIFICATE)},
                )
            }
            settings.RUN_ABORT = {"CHANNEL": channel_name, "REQUESTS": False, "HEARTBEAT": 0.1}
            node.listen()
            for number in range(1, 4):
                assert publish(push)
                wait_until(lambda number=number: node.listener.status().messages == number)
                time.sleep(0.3)  # several PINGs
            assert node.listener.status().reconnects == 0
            assert node.listener.stop()

    def test_a_certificate_that_nobody_vouches_for_is_refused(
        self,
        push: Push,
        configure: Configure,
        shared_redis: RedisServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with TlsProxy(shared_redis.port) as proxy:
            configure(REDIS_URL=f"rediss://127.0.0.1:{proxy.port}/0")
            assert not publish(push)
            assert "CERTIFICATE_VERIFY_FAILED" in caplog.text

    def test_so_is_one_of_another_host(
        self,
        push: Push,
        configure: Configure,
        shared_redis: RedisServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with TlsProxy(shared_redis.port) as proxy:
            url = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={CERTIFICATE}"
            configure(REDIS_URL=url)
            assert not publish(push)
            assert "ostname mismatch" in caplog.text
            for unchecked in ("ssl_check_hostname=False", "ssl_cert_reqs=none"):
                configure(REDIS_URL=f"{url}&{unchecked}")
                assert publish(push)

    def test_a_frozen_server_is_noticed(
        self,
        node: Node,
        configure: Configure,
        own_redis: RedisServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(connections, "PONG_TIMEOUT", 0.3)
        with TlsProxy(own_redis.port) as proxy:
            configure(REDIS_URL=trusting(proxy), HEARTBEAT=0.1)
            node.listen()
            own_redis.freeze()
            wait_until(lambda: node.listener.status().state == "reconnecting")
            assert "PING" in node.listener.status().last_error
            own_redis.thaw()

    def test_publishing_to_a_frozen_server_takes_no_longer_than_its_bound(
        self, push: Push, configure: Configure, own_redis: RedisServer
    ) -> None:
        with TlsProxy(own_redis.port) as proxy:
            configure(REDIS_URL=trusting(proxy), PUBLISH_TIMEOUT=2)
            assert publish(push)
            own_redis.freeze()
            assert in_threads(lambda: publish(push)) == [False]
            own_redis.thaw()
            assert publish(push)

    def test_a_wait_for_a_notification_ends_in_time(
        self, push: Push, configure: Configure, shared_redis: RedisServer
    ) -> None:
        with TlsProxy(shared_redis.port) as proxy:
            configure(REDIS_URL=trusting(proxy))
            watch = push.watch([str(uuid.uuid4())])
            assert watch is not None
            with closing(watch):
                assert watch.wait(TIMEOUT)
                assert in_threads(lambda: watch.wait(0.05)) == [False]


def trusting(proxy: TlsProxy) -> str:
    """The URL of a proxy, for a client that trusts its certificate."""
    return f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={CERTIFICATE}"
