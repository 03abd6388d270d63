"""The IDs of runs and of processes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Final

__all__ = ["MAX_ID_LENGTH", "as_uuid", "clean_id", "clean_ids", "new_origin"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
MAX_ID_LENGTH = 255  # characters; every database that Django supports can index as many


def clean_id(run_id: object) -> str:
    """The run ID as text.

    :param run_id: a ``str``, or an ``int`` or ``uuid.UUID``, which is taken as its ``str``.
    :raises TypeError: if it is anything else.
    :raises ValueError: if it is empty, longer than 255 characters, or contains a null character,
        which PostgreSQL cannot store, or a lone surrogate, which no database can.
    """
    if type(run_id) is not str:
        if isinstance(run_id, bool) or not isinstance(run_id, (str, int, uuid.UUID)):
            name = type(run_id).__name__
            raise TypeError(f"a run ID must be a str, an int or a UUID, not {name}")
        run_id = str(run_id)
    if not run_id:
        raise ValueError("a run ID must not be empty")
    if "\0" in run_id:
        raise ValueError("a run ID must not contain a null character")
    if not run_id.isascii() and _SURROGATE.search(run_id):
        raise ValueError("a run ID must not contain a lone surrogate")
    if len(run_id) > MAX_ID_LENGTH:
        raise ValueError(f"a run ID must not be longer than {MAX_ID_LENGTH} characters")
    return run_id


def clean_ids(run_id: object, groups: Iterable[object] = ()) -> tuple[str, ...]:
    """The ID of a run, followed by its group IDs, each once.

    :raises TypeError: as :func:`clean_id`, and if ``groups`` is not an iterable of IDs.
    :raises ValueError: as :func:`clean_id`.
    """
    first = clean_id(run_id)
    if not groups:
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


def new_origin() -> str:
    """A new ID for a process on the wire: ``inst_`` and 32 lower-case hex digits."""
    return f"inst_{uuid.uuid4().hex}"
