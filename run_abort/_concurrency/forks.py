"""What has to happen around a fork, also where a C program forks and does not say so.

Python calls the hooks of ``os.register_at_fork`` itself. uWSGI calls them only if it is told to
(``py-call-uwsgi-fork-hooks``); without, its children find out by their process ID.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

__all__ = ["at_fork", "catch_up"]

logger = logging.getLogger("run_abort")

Hook = Callable[[], object]

_in_child: Final[list[Hook]] = []
_pid = os.getpid()


def at_fork(
    *, before: Hook | None = None, after_in_parent: Hook | None = None, after_in_child: Hook
) -> None:
    """Call the hooks around every fork from now on; there is no way to take them back.

    Those in the child are called in the order in which they were given.
    """
    _in_child.append(after_in_child)
    if hasattr(os, "register_at_fork"):
        if before is not None:
            os.register_at_fork(before=before)
        if after_in_parent is not None:
            os.register_at_fork(after_in_parent=after_in_parent)


def catch_up() -> None:
    """Do what was to be done after the fork, if this process is a child that was not told."""
    if _pid != os.getpid():
        _after_fork_in_child()


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    for hook in _in_child:
        try:
            hook()
        except Exception:
            logger.exception("A hook failed after a fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

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
