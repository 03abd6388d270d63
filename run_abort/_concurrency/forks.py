"""What has to happen around a fork, also where a C program forks without calling Python's hooks.

Python calls the hooks of ``os.register_at_fork`` itself. uWSGI calls them only if it is told to
(``py-call-uwsgi-fork-hooks``); without that, its children find out by their process ID.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

from .hooks import Hook

__all__ = ["at_fork", "catch_up"]

logger = logging.getLogger("run_abort")


class _Process:
    """This process, as far as its children have to know that they are others."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.in_child: Hook[[]] = Hook()

    def after_fork_in_child(self) -> None:
        self.pid = os.getpid()
        self.in_child()


_process: Final = _Process()


def at_fork(
    *,
    before: Callable[[], object],
    after_in_parent: Callable[[], object],
    after_in_child: Callable[[], object],
) -> None:
    """Call the functions around every fork from now on; they cannot be removed again."""
    _process.in_child.add(after_in_child)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent)


def catch_up() -> None:
    """Call the functions for a child, if this process is one in which they were not called."""
    if _process.pid != os.getpid():
        _process.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork_in_child)

try:
    import uwsgi  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    pass
else:
    _theirs = getattr(uwsgi, "post_fork_hook", None)

    def _post_fork() -> None:
        if _theirs is not None:
            _theirs()
        catch_up()

    uwsgi.post_fork_hook = _post_fork
