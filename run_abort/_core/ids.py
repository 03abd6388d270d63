"""The IDs of runs and of processes."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol, TypeAlias

MAX_ID_LENGTH = 255  # characters; every database that Django supports can index as many

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Instance(Protocol):
    """An instance of a Django model."""

    _meta: ClassVar[Any]

    @property
    def pk(self) -> Any: ...


# What names a run or a group.
RunID: TypeAlias = str | uuid.UUID | Instance


def clean_id(run_id: object) -> str:
    """The run ID as text.

    :param run_id: a ``str``; a ``uuid.UUID``, which is taken as its ``str``; or an instance of a
        Django model, whose ID is ``"<app>.<model>:<primary key>"``, of the concrete model.
    :raises TypeError: if it is anything else. A bare primary key is refused, because rows of two
        models would have the same ID.
    :raises ValueError: if it is empty, longer than 255 characters, or contains a control character
        or a lone surrogate, which not every database can store; and for an instance that has no
        primary key yet.
    """
    if type(run_id) is not str:
        run_id = _named(run_id)
    if not run_id:
        raise ValueError("a run ID must not be empty")
    if not run_id.isprintable():  # quick, and true of most
        if _CONTROL.search(run_id):
            raise ValueError("a run ID must not contain a control character")
        if _SURROGATE.search(run_id):
            raise ValueError("a run ID must not contain a lone surrogate")
    if len(run_id) > MAX_ID_LENGTH:
        raise ValueError(f"a run ID must not be longer than {MAX_ID_LENGTH} characters")
    return run_id


def _named(run_id: object) -> str:
    if issubclass(type(run_id), str):
        return str.__str__(run_id)  # a member of an Enum has a __str__ of its own
    if isinstance(run_id, (str, uuid.UUID)):  # a lazy one says that it is a str
        return str(run_id)
    meta = None if isinstance(run_id, type) else getattr(run_id, "_meta", None)
    if meta is not None and hasattr(meta, "concrete_model"):
        key = run_id.pk  # type: ignore[attr-defined]
        parts = key if isinstance(key, tuple) else (key,)  # a composite one
        # Until the database has made a key, by a db_default, it is an expression. A CharField
        # without a key is empty.
        if key == "" or any(part is None or hasattr(part, "resolve_expression") for part in parts):
            raise ValueError(f"save {run_id!r} first: without a primary key it names no run")
        with suppress(Exception):  # what the field cannot take, no row has
            key = _as_read(meta, key)
        return f"{meta.concrete_model._meta.label_lower}:{key}"
    name = type(run_id).__name__
    hint = ""
    if isinstance(run_id, int):
        hint = ": rows of two models have the same keys, so pass the instance itself"
    raise TypeError(f"a run ID must be a str, a UUID or a model instance, not {name}{hint}")


def _as_read(meta: Any, key: Any) -> Any:
    """The key as an instance has it that was read from the database.

    One that was just created has it as it was given, such as the digits of a UUID as text.
    """
    if isinstance(key, tuple):
        parts = zip(meta.pk_fields, key, strict=True)
        return tuple(field.to_python(part) for field, part in parts)
    return meta.pk.to_python(key)


def clean_ids(run_id: object, groups: Iterable[object] = ()) -> tuple[str, ...]:
    """The ID of a run, followed by its group IDs, each once.

    :raises TypeError: as :func:`clean_id`, and if ``groups`` is not an iterable of IDs.
    :raises ValueError: as :func:`clean_id`.
    """
    first = clean_id(run_id)
    if groups == () or groups is None:
        return (first,)
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise TypeError("groups must be a list or tuple of IDs; for a single one write (group,)")
    return tuple(dict.fromkeys([first, *map(clean_id, groups)]))


def as_uuid(text: str) -> uuid.UUID | None:
    """The UUID that the text is; None if it is none, as the ID of a program that is not ours."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def new_request_id() -> str:
    """A new random UUID as text, by RFC 9562: each of its digits is random but two.

    ``str(uuid.uuid4())`` takes twice as long in a process that has slept, before the push.
    """
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def new_origin() -> str:
    """A new ID for a process on the wire: ``inst_`` and 32 lower-case hex digits."""
    return f"inst_{uuid.uuid4().hex}"
