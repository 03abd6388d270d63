"""Finds the configured Redis and makes the transport over it.

redis-py is imported when it is needed, so processes that neither listen nor publish do not import
it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from run_abort import conf

if TYPE_CHECKING:
    from redis import ConnectionPool

    from .connections import Connection, RedisTransport

_CREDENTIALS: Final = ("username", "password")


@dataclass(frozen=True, slots=True)
class Found:
    """A result of :func:`find`, with what it was made from.

    :ivar transport: None if no Redis is configured.
    :ivar options: the settings.
    :ivar by_settings: whether the settings decided, so that the environment does not matter.
    :ivar url: the environment's ``REDIS_URL`` if it matters.
    """

    transport: RedisTransport | None
    options: conf.Settings
    by_settings: bool = True
    url: str | None = field(default=None, repr=False)

    def is_valid(self) -> bool:
        """Whether :func:`find` would return the same."""
        is_same = self.by_settings or self.url == os.environ.get("REDIS_URL")
        return is_same and self.options is conf.settings()


def may_be_configured() -> bool:
    """Whether :func:`find` may find a Redis. Cheap: imports neither redis-py nor a cache."""
    options = conf.settings()
    if _is_forbidden(options):
        return False
    if options.REDIS_URL or _environment_url(options):
        return True
    configured: Mapping[str, Any] = django_settings.CACHES.get(options.CACHE_ALIAS, {})
    backend: str = configured.get("BACKEND", "")
    # A backend that is not one of Django's own may be based on django-redis.
    is_djangos = backend.startswith("django.core.cache.") and not backend.endswith(".RedisCache")
    return bool(backend) and not is_djangos


def load_driver() -> None:
    """Import redis-py, if it is installed."""
    with suppress(Exception):
        import_module("redis")


def find() -> Found:
    """Make a transport over the configured Redis. Opens no connection.

    :raises Exception: if the configured Redis cannot be used. Its text contains no part of a URL.
    """
    options = conf.settings()
    if _is_forbidden(options):
        return Found(None, options)
    if options.REDIS_URL:
        url = options.REDIS_URL
        return Found(_transport("RUN_ABORT['REDIS_URL']", _url_pool, url, [url]), options)
    alias = options.CACHE_ALIAS
    transport = _transport(f"CACHES[{alias!r}]", _alias_pool, alias, _locations(alias))
    if transport is not None:
        return Found(transport, options)
    given = _environment_url(options)
    found = _transport("the environment's REDIS_URL", _url_pool, given, [given]) if given else None
    return Found(found, options, by_settings=options.REDIS_URL is not None, url=given)


def _is_forbidden(options: conf.Settings) -> bool:
    return options.PUSH == "none" or options.REDIS_URL is False


def _transport(
    source: str, pool_of: Callable[[str], ConnectionPool | None], name: str, urls: Sequence[str]
) -> RedisTransport | None:
    wrong = f"{source} is not {conf.URL_RULE}"
    try:
        pool = pool_of(name)
    except ValueError:  # its text may contain a part of the password
        raise ImproperlyConfigured(wrong) from None
    except ModuleNotFoundError as error:
        missing = f"{source} names a Redis, but the package {error.name} is not installed"
        raise ImproperlyConfigured(missing) from error
    if pool is None:
        return None
    from .connections import RedisTransport, new_connection

    timeout = conf.settings().PUBLISH_TIMEOUT
    try:
        new_connection(pool, timeout=timeout)
    except TypeError as error:  # redis-py does not know one of the options, which it names
        if not _names_option_of(urls, str(error)):
            raise
        # After an unescaped & in a password, the rest of it is such a name.
        raise ImproperlyConfigured(wrong) from None
    return RedisTransport(source, pool, timeout=timeout)


def _names_option_of(urls: Sequence[str], text: str) -> bool:
    if not all(map(conf.is_plain_url, urls)):
        return True  # it may
    return any(name in text for url in urls for name in parse_qs(urlsplit(url).query))


def _environment_url(options: conf.Settings) -> str | None:
    return os.environ.get("REDIS_URL") if options.REDIS_URL is None else None


def _url_pool(url: str, **options: str) -> ConnectionPool:
    from redis import ConnectionPool

    url = _checked(url)
    if _is_of_valkey(url):
        url = url.replace("valkey", "redis", 1)
    return ConnectionPool.from_url(url, **options)


def _is_of_valkey(url: str) -> bool:
    return url.startswith(("valkey://", "valkeys://"))


def _checked(url: str) -> str:
    """:raises ValueError: if the URL would be misunderstood."""
    if not conf.is_plain_url(url):
        raise ValueError
    return url


def _locations(alias: str) -> list[str]:
    """The URLs of the alias; of a cache that is not Redis, this may be a path."""
    location = django_settings.CACHES.get(alias, {}).get("LOCATION", "")
    is_list = isinstance(location, (list, tuple))
    return list(map(str, location)) if is_list else str(location).split(",")


def _alias_pool(alias: str) -> ConnectionPool | None:
    """A pool with all options of the alias; None if the alias is not Redis-backed."""
    configured = django_settings.CACHES.get(alias)
    if configured is None:
        return None
    cache: Any = caches[alias]
    urls = _locations(alias)
    if urls and _is_of_valkey(urls[0]):  # of django-valkey, whose pools are not redis-py's
        options = configured.get("OPTIONS", {})
        given = {key: options[key.upper()] for key in _CREDENTIALS if options.get(key.upper())}
        return _url_pool(urls[0], **given)
    # Other caches have a client, too, and need no django-redis.
    if hasattr(cache, "client") and sys.modules.get("django_redis"):
        return _django_redis_pool(alias, [_checked(url) for url in urls])
    if hasattr(getattr(cache, "_cache", None), "get_client"):  # Django's own RedisCache
        for url in cache._cache._servers:
            _checked(url)
        pool: ConnectionPool = cache._cache.get_client(None, write=True).connection_pool
        return pool
    return None


def _django_redis_pool(alias: str, urls: Sequence[str]) -> ConnectionPool | None:
    from django_redis import get_redis_connection

    try:
        shared: ConnectionPool = get_redis_connection(alias, write=True).connection_pool
    except NotImplementedError:  # a sharded client, or a backend that is not django-redis
        return None
    cache: Any = caches[alias]
    if not hasattr(cache.client, "connection_factory"):
        return shared
    factory = _asking_in_time(cache.client.connection_factory)
    # A new pool, because django-redis keeps one pool per URL: two aliases with the same URL get the
    # options of the alias that was used first.
    pool: ConnectionPool = factory.get_connection_pool(factory.make_connection_params(urls[0]))
    return pool


def _asking_in_time(factory: Any) -> Any:
    """The factory; if it asks Sentinels, one that leaves time for the next if one is silent.

    Explicit ``SENTINEL_KWARGS`` count. Without, redis-py would use the time-outs of the cache.
    """
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = getattr(factory, "options", {})
    sentinels = options.get("SENTINELS")
    if not sentinels:
        return factory
    timeout = conf.settings().PUBLISH_TIMEOUT / (len(sentinels) + 1)
    given = options.get("SENTINEL_KWARGS") or {}
    limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    kwargs = {**limits, "retry": Retry(NoBackoff(), 0), **given}
    return type(factory)({**options, "SENTINEL_KWARGS": kwargs})


def is_local(host: str) -> bool:
    """Whether the host, a name or an address, is this machine by its loopback interface."""
    with suppress(ValueError):  # a name
        return ip_address(host).is_loopback
    return host == "localhost"


def connect(connection: Connection) -> None:
    """Connect, through Sentinels if the project has them.

    :raises Exception: if that is not possible now. Its text contains no password.
    """
    from redis.sentinel import MasterNotFoundError

    try:
        connection.connect()
    except MasterNotFoundError as error:
        # redis-py lists the options of each Sentinel in it, in some versions with the passwords.
        text, _, asked = str(error).partition(" : ")
        _, has_error, last = asked.rpartition(")> - ")
        raise MasterNotFoundError(f"{text}: {last}" if has_error else text) from None
