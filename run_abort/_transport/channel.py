"""The pub/sub channel: which Redis it is on, this process's ID there, publishing, subscribing."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from run_abort import conf
from run_abort._concurrency.forks import at_fork, catch_up

from . import codec
from .codec import AbortMessage, Question

if TYPE_CHECKING:
    from redis import ConnectionPool

    from .redis.connections import Publisher, Subscription

__all__ = [
    "Endpoint",
    "answer",
    "ask",
    "endpoint",
    "inbox",
    "is_configured",
    "may_be_configured",
    "only_named",
    "origin",
    "publish",
    "publish_all",
    "publish_run_abort",
    "subscription",
]

logger = logging.getLogger("run_abort")

# Whether a Redis counts only if RUN_ABORT["REDIS_URL"] names it. Tests of projects say so.
only_named = False


class Endpoint(NamedTuple):
    """The Redis of this installation.

    :ivar source: which setting named it.
    :ivar pool: says how to connect. It is ours and never hands out a connection, but Sentinel's
        connections ask it for the master's address.
    :ivar publisher: this process's.
    """

    source: str
    pool: ConnectionPool
    publisher: Publisher


def may_be_configured() -> bool:
    """Whether :func:`endpoint` may find a Redis. Cheap, for ``ready()``: imports nothing."""
    options = conf.settings()
    if options.REDIS_URL or _environment_url():
        return True
    configured: Mapping[str, Any] = django_settings.CACHES.get(options.CACHE_ALIAS, {})
    backend: str = configured.get("BACKEND", "")
    # Any backend but Django's own may turn out to be made on django-redis.
    is_djangos = backend.startswith("django.core.cache.") and not backend.endswith(".RedisCache")
    return bool(backend) and not is_djangos


class _Found(NamedTuple):
    """What was found, and in which environment that holds.

    :ivar url: what the environment's ``REDIS_URL`` was; not looked at where the settings decide.
    :ivar only_named: what that was.
    """

    url: str | None
    endpoint: Endpoint | None
    by_settings: bool
    only_named: bool = False

    def holds(self) -> bool:
        is_same = self.by_settings or self.url == _environment_url()
        return is_same and self.only_named == only_named


# Forgotten when the settings change. Two threads may look it up at once: they find the same.
_found: _Found | None = None


def endpoint() -> Endpoint | None:
    """The Redis of this installation; None if none is configured. No network.

    :raises Exception: if the settings name one, but not in a way that can be used.
    """
    global _found
    catch_up()
    if _found is None or not _found.holds():
        _found = _find()
    return _found.endpoint


def is_configured() -> bool:
    """Whether there is a Redis to publish to, well or not. Raises nothing."""
    try:
        return endpoint() is not None
    except Exception:
        return False


def subscription() -> Subscription | None:
    """A new link to the channel, not yet open; None if no Redis is configured.

    :raises Exception: as :func:`endpoint`.
    """
    found = endpoint()
    if found is None:
        return None

    from .redis.connections import Subscription

    options = conf.settings()
    return Subscription(
        found.pool,
        options.CHANNEL,
        heartbeat=options.HEARTBEAT,
        limit=codec.MAX_MESSAGE_BYTES,
        on_silence=found.publisher.rest,
    )


_origin = ""


def origin() -> str:
    """This process's ID on the wire: ``inst_`` and 32 hex digits, new after every fork."""
    global _origin
    catch_up()
    if not _origin:
        _origin = codec.new_origin()
    return _origin


def publish_run_abort(run_id: str) -> bool:
    """Tell every other process that listens to abort ``run_id``: the bare channel.

    Nothing is recorded and nothing is aborted in this process: that is ``abort_run``.
    Blocks for at most ``PUBLISH_TIMEOUT`` seconds.

    :return: True when Redis took the message. False, and nothing is raised, when the ID is empty
        or not a string, when Redis is not configured or not reachable, or when publishing failed;
        a failure is logged as a warning.
    """
    if not isinstance(run_id, str) or not run_id:  # type: ignore[redundant-expr]  # untyped callers
        return False
    return publish(AbortMessage(run_id, origin())) is not None


def publish(message: AbortMessage) -> int | None:
    """Publish ``message``; blocks for at most ``PUBLISH_TIMEOUT`` seconds and raises nothing.

    :return: how many subscribers the server that took it had, a hint only (in a cluster it counts
        one node); None if no Redis is configured or, with a warning in the log, if it failed.
    """
    return publish_all([message])[0]


def publish_all(some: Sequence[AbortMessage], *, quiet: bool = False) -> list[int | None]:
    """:func:`publish` for several messages, in one pipeline.

    :param quiet: whether a failure is known already, and not worth another warning.
    """
    listeners: list[int | None] = [None] * len(some)
    try:
        found = endpoint()
        if found is not None:
            encoded = [codec.encode(message) for message in some]
            listeners[:] = found.publisher.publish(encoded, conf.settings().CHANNEL)
    except Exception as error:
        runs = repr(some[0].run_id) if len(some) == 1 else f"{some[0].run_id!r} and others"
        level = logging.DEBUG if quiet else logging.WARNING
        logger.log(level, "The abort of run %s was not published: %s", runs, error)
    return listeners


def ask(question: Question) -> int | None:
    """Publish a question, as :func:`publish` does a message; a failure is not logged.

    :return: how many subscribers there were; None if no Redis took it.
    """
    try:
        found = endpoint()
        if found is None:
            return None
        encoded = codec.encode_question(question)
        return found.publisher.publish([encoded], conf.settings().CHANNEL)[0]
    except Exception as error:
        logger.debug("The question %s was not published: %s", question, error)
        return None


def answer(question_id: str, answers: Sequence[bytes]) -> bool:
    """Publish answers at the address of the question; blocks for ``PUBLISH_TIMEOUT`` at most.

    :return: whether Redis took them. A failure is logged for debugging only: who asked counts
        this process among those that do not answer.
    """
    try:
        found = endpoint()
        if found is None:
            return False
        found.publisher.publish(answers, _reply_channel(question_id))
    except Exception as error:
        logger.debug("The question %s was not answered: %s", question_id, error)
        return False
    return True


def inbox(question_ids: Sequence[str], *, limit: int) -> Subscription | None:
    """A new link to the addresses of the answers, not yet open; None if there is no Redis.

    :param question_ids: UUIDs as text.
    :param limit: bytes that an answer may have.
    :raises Exception: as :func:`endpoint`.
    """
    found = endpoint()
    if found is None:
        return None

    from .redis.connections import Subscription

    channels = map(_reply_channel, question_ids)
    return Subscription(found.pool, *channels, heartbeat=conf.settings().HEARTBEAT, limit=limit)


def _reply_channel(question_id: str) -> str:
    # It follows from the ID alone, so that no message can have answers sent elsewhere.
    return f"{conf.settings().CHANNEL}:{uuid.UUID(question_id)}"


def _environment_url() -> str | None:
    return os.environ.get("REDIS_URL")


def _find() -> _Found:
    options = conf.settings()
    url = _environment_url()
    is_only = only_named
    if options.REDIS_URL:
        named = _endpoint("RUN_ABORT['REDIS_URL']", _url_pool(options.REDIS_URL))
        return _Found(None, named, by_settings=True, only_named=is_only)
    if is_only:
        return _Found(None, None, by_settings=True, only_named=True)
    alias_pool = _alias_pool(options.CACHE_ALIAS)
    if alias_pool is not None:
        source = f"CACHES[{options.CACHE_ALIAS!r}]"
        return _Found(None, _endpoint(source, alias_pool), by_settings=True)
    found = _endpoint("the environment's REDIS_URL", _url_pool(url)) if url else None
    return _Found(url, found, by_settings=False)


def _endpoint(source: str, pool: ConnectionPool) -> Endpoint:
    from .redis.connections import Publisher

    options = conf.settings()
    publisher = Publisher(pool, timeout=options.PUBLISH_TIMEOUT)
    return Endpoint(source, pool, publisher)


def _url_pool(url: str) -> ConnectionPool:
    from redis import ConnectionPool

    try:
        return ConnectionPool.from_url(url)
    except ValueError as error:
        raise ImproperlyConfigured(f"The Redis URL is not valid: {error}") from error


def _alias_pool(alias: str) -> ConnectionPool | None:
    """A pool with all options of the alias; None if the alias is not Redis-backed."""
    configured = django_settings.CACHES.get(alias)
    if configured is None:
        return None
    cache: Any = caches[alias]
    if hasattr(cache, "client"):
        return _django_redis_pool(alias, configured)
    if hasattr(getattr(cache, "_cache", None), "get_client"):  # Django's own RedisCache
        pool: ConnectionPool = cache._cache.get_client(None, write=True).connection_pool
        return pool
    return None


def _django_redis_pool(alias: str, configured: Mapping[str, Any]) -> ConnectionPool | None:
    from django_redis import get_redis_connection

    try:
        shared: ConnectionPool = get_redis_connection(alias, write=True).connection_pool
    except NotImplementedError:  # a sharded client, or a backend that only looks alike
        return None
    cache: Any = caches[alias]
    if not hasattr(cache.client, "connection_factory"):
        return shared
    factory = cache.client.connection_factory
    # A pool of our own, because django-redis shares its pools by URL alone: of two aliases with
    # one URL, the options of whichever was used first would win.
    location = configured.get("LOCATION", "")
    first = location.split(",")[0] if isinstance(location, str) else location[0]
    pool: ConnectionPool = factory.get_connection_pool(factory.make_connection_params(first))
    return pool


def _forget(*, setting: str, **kwargs: object) -> None:
    global _found
    if setting in {"RUN_ABORT", "CACHES"}:
        _close_kept()
        _found = None


def _close_kept() -> None:
    """Before a fork: a child shall inherit no idle socket of ours."""
    if _found is not None and _found.endpoint is not None:
        _found.endpoint.publisher.close()


def _renew() -> None:
    """In a child: another process has another origin, and connections of its own."""
    global _found, _origin
    _found = None
    _origin = ""


setting_changed.connect(_forget, dispatch_uid="run_abort.channel")
at_fork(before=_close_kept, after_in_child=_renew)
