"""The settings: one dict ``RUN_ABORT`` in the project's settings, every key optional.

While a test environment of Django is set up, the app is local: the values of ``LOCAL`` count in
place of those with which the process was started. A test gets the others back if it overrides
``RUN_ABORT`` with another value for them, or by ``run_abort.testing``.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from django.conf import UserSettingsHolder
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

__all__ = [
    "LOCAL",
    "URL_RULE",
    "Problem",
    "Settings",
    "is_plain_url",
    "problems",
    "replace",
    "restore",
    "settings",
]


@dataclass(frozen=True)
class Settings:
    """``RUN_ABORT`` with its defaults. ``docs/reference/settings.md`` describes the keys.

    Durations are in seconds.

    :ivar is_real: whether task queues are notified, and processes are ended by force; False while
        a test has cut the app off. Not a key.
    """

    REDIS_URL: str | Literal[False] | None = field(default=None, repr=False)
    CACHE_ALIAS: str = "default"
    PUSH: Literal["auto", "redis", "none"] = "auto"
    CHANNEL: str = "sentri:run-abort"
    REQUESTS: bool = True
    HOLDS: bool = True
    REQUEST_TTL: float = timedelta(days=7).total_seconds()
    RECONCILE_INTERVAL: float = 15.0
    POLL_INTERVAL: float = 1.0
    LEASE: float | None = None
    PUBLISH_TIMEOUT: float = 1.0
    DATABASE_TIMEOUT: float = 1.0
    HEARTBEAT: float = 10.0
    MAY_ABORT: Callable[..., Any] | str | None = None
    PROCESS_DIR: str | None = None
    SIGNING_KEY: str | Sequence[str] | None = field(default=None, repr=False)
    UNSIGNED: Literal["accept", "refuse"] = "accept"
    LISTEN: Literal["auto"] | bool = "auto"
    is_real: bool = True

    @property
    def longest_interval(self) -> float:
        """Seconds between two signs of life of a process that holds runs, at most."""
        return max(self.RECONCILE_INTERVAL, self.POLL_INTERVAL)

    @property
    def lease(self) -> float:
        """``LEASE``, or its default, in seconds."""
        return 3 * self.longest_interval if self.LEASE is None else self.LEASE


class Problem(NamedTuple):
    """A problem with one setting, and its remedy as ``hint``."""

    kind: Literal["dict", "key", "type", "range"]
    message: str
    hint: str


KEYS: Final = tuple(each.name for each in fields(Settings) if each.name.isupper())

# The app cut off from everything outside of this process.
LOCAL: Final[Mapping[str, Any]] = {
    "REDIS_URL": False,
    "REQUESTS": False,
    "HOLDS": False,
    "LISTEN": False,
    "PROCESS_DIR": None,
    "is_real": False,
}

# Seconds. A value below the lower bound would cause a busy loop. A value above the upper bound
# would in effect mean "never".
_DURATIONS: Final[Mapping[str, tuple[float, float]]] = {
    "REQUEST_TTL": (1, timedelta(days=36_500).total_seconds()),
    "RECONCILE_INTERVAL": (0.1, 3600),
    "POLL_INTERVAL": (0.05, 3600),
    "LEASE": (1, timedelta(days=1).total_seconds()),
    "PUBLISH_TIMEOUT": (0.05, 60),
    "DATABASE_TIMEOUT": (0.05, 60),
    "HEARTBEAT": (0.1, 3600),
}
_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "PUSH": ("auto", "redis", "none"),
    "REQUESTS": (True, False),
    "HOLDS": (True, False),
    "UNSIGNED": ("accept", "refuse"),
    "LISTEN": ("auto", True, False),
}
_SECRET: Final = ("REDIS_URL", "SIGNING_KEY")  # their values are not shown
_UTF8_RULE: Final = "text that UTF-8 can encode, without lone surrogates"
_MIN_KEY_LENGTH: Final = 32  # characters
_URL_SCHEMES: Final = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")
URL_RULE: Final = (
    "a URL that begins with redis://, rediss://, valkey://, valkeys:// or unix://, with a valid "
    "port and valid options, in whose password special characters are percent-encoded, such as "
    "%2F for /"
)


# What counts now, by whether a test environment is set up. A change replaces the dict, so that what
# a thread has read before the change does not count after it.
_made: Final[list[dict[bool, Settings]]] = [{}]
# The arguments of replace(), each with RUN_ABORT as it was at the call.
_replaced: Final[list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = []


def settings() -> Settings:
    """The current settings: the same object until they change. Cheap.

    :raises ImproperlyConfigured: if a setting is invalid. The message names the first invalid
        setting and its valid values. The system checks report all of them.
    """
    is_test = "django.test.utils" in sys.modules and _is_test_environment()
    made = _made[0]
    return made.get(is_test) or made.setdefault(is_test, _make(is_test))


def replace(values: Mapping[str, Any]) -> None:
    """Let these values count in place of those of ``RUN_ABORT``, until :func:`restore`. For tests.

    If a test overrides ``RUN_ABORT`` meanwhile, keys to which that gives another value count.
    """
    _replaced.append((_raw_dict(django_settings), values))
    _tell(enter=True)


def restore(number: int = 1) -> None:
    """Undo the last calls of :func:`replace`."""
    del _replaced[-number:]
    _tell(enter=False)


def _tell(*, enter: bool) -> None:
    value = getattr(django_settings, "RUN_ABORT", {})
    setting_changed.send(type(django_settings), setting="RUN_ABORT", value=value, enter=enter)


def _make(is_test: bool) -> Settings:
    raw = getattr(django_settings, "RUN_ABORT", {})
    for problem in problems(raw):
        raise ImproperlyConfigured(f"{problem.message} {problem.hint}")
    values: dict[str, Any] = {**raw, **_replacements(raw, is_test)}
    for key in _DURATIONS.keys() & values.keys():
        if values[key] is not None:
            values[key] = float(_seconds(values[key]))
    if values.get("PROCESS_DIR") is not None:
        values["PROCESS_DIR"] = os.fspath(values["PROCESS_DIR"])
    return Settings(**values)


def _replacements(raw: Mapping[str, Any], is_test: bool) -> Mapping[str, Any]:
    """What counts in place of the values in ``raw``."""
    if _replaced:
        before, values = _replaced[-1]
    elif is_test:
        before, values = _raw_at_start(), LOCAL
    else:
        return {}
    asked = {k for k, value in raw.items() if value is not None and value != before.get(k)}
    if any(raw[key] for key in asked & {"REDIS_URL", "CACHE_ALIAS"}):
        # Who names a server for a test wants to see the whole of it.
        asked |= {"REQUESTS", "HOLDS", "LISTEN"}
    kept = {key: value for key, value in values.items() if key not in asked}
    if "CACHE_ALIAS" in asked and kept.get("REDIS_URL") is False:
        kept["REDIS_URL"] = ""  # the alias counts, the environment does not
    return kept


def _raw_at_start() -> Mapping[str, Any]:
    """``RUN_ABORT`` of the settings that the process was started with, without overrides."""
    holder: Any = django_settings._wrapped  # type: ignore[misc]
    while isinstance(holder, UserSettingsHolder):
        if isinstance(holder.default_settings, ModuleType):  # by settings.configure()
            break
        holder = holder.default_settings
    return _raw_dict(holder)


def _raw_dict(holder: object) -> Mapping[str, Any]:
    raw = getattr(holder, "RUN_ABORT", {})
    return raw if isinstance(raw, dict) else {}


def _is_test_environment() -> bool:
    """Whether ``setup_test_environment`` was called, and its counterpart was not.

    ``mail.outbox`` would not tell: the e-mail backend locmem makes it in any process.
    """
    state = getattr(sys.modules["django.test.utils"], "_TestState", None)
    return "saved_data" in getattr(state, "__dict__", {})


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "RUN_ABORT":
        _made[0] = {}


setting_changed.connect(_forget, dispatch_uid="run_abort.conf")


def problems(raw: object) -> Iterator[Problem]:
    """Yield every problem of ``raw``, the value of the setting ``RUN_ABORT``."""
    if not isinstance(raw, dict):
        yield Problem(
            "dict", f"RUN_ABORT is {_shown(raw)}.", "It must be a dict; {} uses all defaults."
        )
        return
    for key, value in raw.items():
        if key not in KEYS:
            name = key.upper() if isinstance(key, str) else ""
            close = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"The keys are {', '.join(KEYS)}."
            yield Problem("key", f"RUN_ABORT has an unknown key {_shown(key)}.", hint)
        elif value is not None or getattr(Settings, key) is not None:
            yield from _value_problems(key, value)


def _value_problems(key: str, value: object) -> Iterator[Problem]:
    if key in _DURATIONS:
        yield from _duration_problems(key, value)
    elif key in _CHOICES:
        yield from _choice_problems(key, value)
    elif key == "MAY_ABORT":
        if not value or not (callable(value) or isinstance(value, str)):
            yield _wrong("type", key, value, "a function or its dotted path")
    elif key == "SIGNING_KEY":
        yield from _key_problems(value)
    elif key != "REDIS_URL" or value is not False:
        yield from _text_problems(key, value)


def _duration_problems(key: str, value: object) -> Iterator[Problem]:
    low, high = _DURATIONS[key]
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        yield _wrong("type", key, value, "a number of seconds or a timedelta")
    elif not low <= _seconds(value) <= high:
        yield _wrong("range", key, value, f"between {low:g} and {high:.10g} seconds")


def _choice_problems(key: str, value: object) -> Iterator[Problem]:
    choices = _CHOICES[key]
    # By type as well, because 1 equals True.
    if not any(type(value) is type(each) and value == each for each in choices):
        names = [f'"{each}"' if isinstance(each, str) else repr(each) for each in choices]
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        yield _wrong("range", key, value, expected)


def _text_problems(key: str, value: object) -> Iterator[Problem]:
    if key == "PROCESS_DIR" and isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        yield _wrong("type", key, value, "a string")
    elif not value:
        yield _wrong("range", key, value, "a string that is not empty")
    elif key == "CHANNEL" and not _is_utf8(value):
        yield _wrong("range", key, value, _UTF8_RULE)
    elif key == "PROCESS_DIR" and not _is_absolute_path(value):
        yield _wrong("range", key, value, "an absolute path")
    elif key == "REDIS_URL" and not (value.startswith(_URL_SCHEMES) and is_plain_url(value)):
        yield _wrong("range", key, value, URL_RULE)


def _is_absolute_path(text: str) -> bool:
    try:
        return Path(text).is_absolute() and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def is_plain_url(url: str) -> bool:
    """Whether the URL can be parsed as its author meant it, and UTF-8 can encode it.

    Of a password with an unescaped ``/``, ``#`` or ``?``, a part would be taken for a host, a port
    or a path, and be shown in errors.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_path = parts.scheme == "unix"  # in which a plain @ is valid
    is_meant = "@" not in parts.query and (is_path or "@" not in parts.path + parts.fragment)
    return is_meant and _is_utf8(url)


def _key_problems(value: object) -> Iterator[Problem]:
    keys = value if isinstance(value, (list, tuple)) else [value]
    if not keys or not all(isinstance(each, str) for each in keys):
        yield _wrong("type", "SIGNING_KEY", value, "a string, or a list of strings")
    elif min(map(len, keys)) < _MIN_KEY_LENGTH:
        expected = f"{_MIN_KEY_LENGTH} characters long or longer, each of them"
        yield _wrong("range", "SIGNING_KEY", value, expected)
    elif not all(map(_is_utf8, keys)):
        yield _wrong("range", "SIGNING_KEY", value, _UTF8_RULE)


def _is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode the text. It cannot encode a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(kind: Literal["type", "range"], key: str, value: object, expected: str) -> Problem:
    shown = "wrong; its value is not shown" if key in _SECRET else _shown(value)
    return Problem(kind, f"RUN_ABORT[{key!r}] is {shown}.", f"It must be {expected}.")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # such as for an int with thousands of digits
        text = ""
    if not text or "://" in text:  # a URL may contain a password
        return f"a {type(value).__name__} that is not shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _seconds(value: float | timedelta) -> float:
    # Not float(value): that fails for a huge int, which is to be reported as out of range.
    return value.total_seconds() if isinstance(value, timedelta) else value
