"""System checks, with the tag ``run_abort``. They use neither the network nor the database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from django.apps import AppConfig, apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.urls import Resolver404, get_resolver, get_script_prefix, resolve, reverse
from django.utils.module_loading import import_string

from . import conf
from ._runtime.runtime import current
from ._transport.base import Transport

__all__ = ["check_deployment", "check_settings", "check_urls"]

_IDS: Final = {
    "dict": "run_abort.E001",
    "key": "run_abort.E002",
    "type": "run_abort.E003",
    "range": "run_abort.E004",
}

_APPS: Final = ("django.contrib.auth", "django.contrib.contenttypes")
_MIDDLEWARE: Final = "django.contrib.auth.middleware.AuthenticationMiddleware"

# Options of a django-redis alias that are dotted paths.
_PATHS: Final = (
    "CLIENT_CLASS",
    "COMPRESSOR",
    "CONNECTION_FACTORY",
    "CONNECTION_POOL_CLASS",
    "PARSER_CLASS",
    "REDIS_CLIENT_CLASS",
    "SERIALIZER",
)

_ALONE: Final = CheckWarning(
    "Neither Redis nor the database is used: aborts reach only the calling process.",
    hint="Use Redis, or remove RUN_ABORT['REQUESTS'].",
    id="run_abort.W002",
)


def check_settings(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report every problem of ``RUN_ABORT`` and of the cache alias that it names."""
    raw = getattr(django_settings, "RUN_ABORT", {})
    found: list[CheckMessage] = [
        Error(problem.message, hint=problem.hint, id=_IDS[problem.kind])
        for problem in conf.problems(raw)
    ]
    if found:
        return found
    redis = _check_redis(explicit="CACHE_ALIAS" in raw)
    return [*_check_lease(), *_check_rule(), *_check_users(), *_check_schemas(), *redis]


def _check_lease() -> Iterator[CheckMessage]:
    options = conf.settings()
    if options.lease <= (least := options.longest_interval):
        yield CheckWarning(
            f"RUN_ABORT['LEASE'] is {options.lease:g} s, and a process that works on runs gives a "
            f"sign of life each {least:g} s: one that is well counts as lost in between.",
            hint="Remove it, so that it is three times as long, or shorten RECONCILE_INTERVAL and "
            "POLL_INTERVAL.",
            id="run_abort.W008",
        )


def _check_rule() -> Iterator[CheckMessage]:
    rule = conf.settings().MAY_ABORT
    try:
        found = import_string(rule) if isinstance(rule, str) else rule
        problem = "" if found is None or callable(found) else "which is not a function"
    except Exception as error:
        problem = f"which cannot be imported: {error}"
    if problem:
        yield Error(
            f"RUN_ABORT['MAY_ABORT'] is {rule!r}, {problem}.",
            hint="Name a function that takes the user, the run ID and the action. Until then users "
            "may do nothing.",
            id="run_abort.E009",
        )


def _check_users() -> Iterator[CheckMessage]:
    if missing := [app for app in _APPS if not apps.is_installed(app)]:
        yield Error(
            f"INSTALLED_APPS lacks {' and '.join(missing)}.",
            hint="Add it: an abort request refers to a user, and permissions decide who may make "
            "one.",
            id="run_abort.E010",
        )
    # In this order: to load the project's URLs may take seconds, and our commands check this, too.
    elif not any(map(_sets_user, django_settings.MIDDLEWARE)) and _serves_our_urls():
        yield Error(
            "The URLs include run_abort.urls, but MIDDLEWARE lacks AuthenticationMiddleware.",
            hint=f"Add {_MIDDLEWARE!r}, after the one for sessions. Without it every visitor is "
            "anonymous, and may abort nothing.",
            id="run_abort.E011",
        )


def _check_schemas() -> Iterator[CheckMessage]:
    tenant_apps = getattr(django_settings, "TENANT_APPS", None)  # of django-tenants
    if any(app.partition(".")[0] == "run_abort" for app in tenant_apps or ()):
        yield CheckWarning(
            "TENANT_APPS lists run_abort, whose rows are in the public schema: the tables in the "
            "schemas of the tenants stay empty, and so do the pages about them in the admin.",
            hint="List it in SHARED_APPS alone. Without tables in the public schema, nothing is "
            "recorded.",
            id="run_abort.W010",
        )


def _serves_our_urls() -> bool:
    try:
        return "run_abort" in get_resolver().app_dict
    except Exception:  # Django's own check reports it
        return False


def _sets_user(middleware: str) -> bool:
    try:
        found = import_string(middleware)
    except ImportError:  # Django reports it
        return False
    # By its name, because importing it needs django.contrib.auth in INSTALLED_APPS.
    bases = getattr(found, "__mro__", ())
    return any(f"{base.__module__}.{base.__qualname__}" == _MIDDLEWARE for base in bases)


def _check_redis(*, explicit: bool) -> Iterator[CheckMessage]:
    options = conf.settings()
    if options.REDIS_URL is False or options.PUSH == "none":
        if not options.REQUESTS and options.is_real:  # tests are cut off on purpose
            yield _ALONE
        return
    alias = options.CACHE_ALIAS
    if not options.REDIS_URL:
        if alias not in django_settings.CACHES:
            yield Error(
                "RUN_ABORT['CACHE_ALIAS'] names no alias of CACHES.",
                hint=f"The aliases are {', '.join(sorted(django_settings.CACHES)) or 'none'}.",
                id="run_abort.E005",
            )
            return
        if unimportable := list(_unimportable_paths(alias)):
            yield from unimportable
            return
    try:
        transport = current().push.transport()
    except Exception as error:
        yield Error(
            f"The Redis that the settings name cannot be used: {error}",
            hint="Correct RUN_ABORT['REDIS_URL'], CACHES, or the environment variable REDIS_URL, "
            "or install the package that is missing.",
            id="run_abort.E007",
        )
        return
    if transport is None:
        yield from _check_without_redis(explicit=explicit)


def _check_without_redis(*, explicit: bool) -> Iterator[CheckMessage]:
    options = conf.settings()
    if explicit:
        yield Error(
            f"RUN_ABORT['CACHE_ALIAS'] is {options.CACHE_ALIAS!r}, which is not Redis-backed.",
            hint="Name an alias of django-redis or of Django's RedisCache, or set "
            "RUN_ABORT['REDIS_URL'].",
            id="run_abort.E008",
        )
    elif not options.REQUESTS:
        yield _ALONE
    else:
        yield CheckWarning(
            "No Redis is configured: running processes receive aborts of other processes only "
            f"through the database, within {options.POLL_INTERVAL:g} s.",
            hint="Set RUN_ABORT['REDIS_URL'] or the environment variable REDIS_URL, or use Redis "
            f"for the cache alias {options.CACHE_ALIAS!r}. If this is intended, set "
            "RUN_ABORT['PUSH'] to \"none\".",
            id="run_abort.W001",
        )


def check_urls(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Report that another URL pattern hides those of the app."""
    try:
        url = reverse("run_abort:abort", args=["1"])
    except Exception:  # they are not included, or Django's own check reports it
        return []
    try:
        match = resolve(f"/{url.removeprefix(get_script_prefix())}")
    except Resolver404:  # such as of a path that only one host has
        return []
    if "run_abort" in match.app_names:
        return []
    return [
        CheckWarning(
            f"The URLs include run_abort.urls, but {url} leads to {match.view_name}.",
            hint="Include them before the pattern that matches everything.",
            id="run_abort.W009",
        )
    ]


def check_deployment(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report settings that suit development but may be wrong in production."""
    try:
        options = conf.settings()
        transport = current().push.transport()
    except Exception:  # check_settings reports it
        return []
    found = list(_check_tenants())
    return found if transport is None else [*found, *_check_production(options, transport)]


def _check_tenants() -> Iterator[CheckMessage]:
    if hasattr(django_settings, "TENANT_MODEL"):  # of django-tenants
        yield CheckWarning(
            "Rows of two tenants can have the same primary key, and then an instance names the "
            "runs of all of them: one tenant's abort stops the other's run.",
            hint="Name runs by a text with the tenant's schema in it, as in the how-to 'Stop all "
            "runs of a tenant', and silence this check.",
            id="run_abort.W007",
        )


def _check_production(options: conf.Settings, transport: Transport) -> Iterator[CheckMessage]:
    if options.LISTEN is False:
        yield CheckWarning(
            f"RUN_ABORT['LISTEN'] is False: no process receives aborts through {transport.source}.",
            hint='Remove it, or set it to "auto".',
            id="run_abort.W003",
        )
    if not options.REQUESTS:
        yield CheckWarning(
            "RUN_ABORT['REQUESTS'] is False: a process that restarts, starts later, or is cut off "
            "from Redis while an abort is requested never receives it.",
            hint="Remove it, so that aborts are recorded in the database.",
            id="run_abort.W004",
        )
    if lacks := transport.lacks():
        yield CheckWarning(
            f"The Redis of {transport.source} is reached over the network without "
            f"{' and without '.join(lacks)}: everyone with access to it can abort every run.",
            hint="Use a rediss:// URL with a password. If the network is private, silence this "
            "check.",
            id="run_abort.W005",
        )
    if options.UNSIGNED == "accept":
        yield CheckWarning(
            "RUN_ABORT['UNSIGNED'] is \"accept\": every client that may publish on the channel of "
            f"{transport.source} can abort every run.",
            hint='Set it to "refuse". If other programs publish unsigned aborts, silence this.',
            id="run_abort.W006",
        )


def _unimportable_paths(alias: str) -> Iterator[CheckMessage]:
    configured = django_settings.CACHES[alias]
    options = configured.get("OPTIONS") or {}
    named = {f"CACHES[{alias!r}]['BACKEND']": configured.get("BACKEND", "")}
    named |= {f"CACHES[{alias!r}]['OPTIONS'][{key!r}]": options.get(key) for key in _PATHS}
    for setting, path in named.items():
        if not isinstance(path, str):
            continue
        try:
            import_string(path)
        except ImportError as error:
            yield Error(
                f"{setting} is {path!r}, which cannot be imported: {error}",
                hint="Correct the path, or install the package that it belongs to.",
                id="run_abort.E006",
            )
