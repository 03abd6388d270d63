"""Functions to call around a fork, also if a C program forks without calling Python's hooks.

Python calls the hooks of ``os.register_at_fork`` itself. uWSGI calls them only with the option
``py-call-uwsgi-fork-hooks``. Without it, a child detects the fork by its process ID, and no thread
is stopped: if one waits for the interpreter's lock at the fork, the child can hang for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from .hooks import Hook


class _Process:
    """The ID of this process, by which a child detects that it was forked.

    :ivar in_child: called in the child, once after each fork.
    """

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
    """Call the functions around every fork from now on. They cannot be removed."""
    _process.in_child.add(after_in_child)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent)


def catch_up() -> None:
    """Call the functions for a child, if this is a child in which they were not called yet."""
    if _process.pid != os.getpid():
        _process.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork_in_child)

try:
    import uwsgi  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:

    def once_forked(start: Callable[[], object]) -> None:
        """Call ``start``; in what uWSGI is about to fork, in each of its processes after that."""
        start()

else:
    _theirs = getattr(uwsgi, "post_fork_hook", None)
    _starts: Final[Hook[[]]] = Hook()

    def once_forked(start: Callable[[], object]) -> None:
        if uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler():
            start()
        else:
            _starts.add(start)

    def _post_fork() -> None:
        if _theirs is not None:
            _theirs()
        catch_up()
        _starts()

    uwsgi.post_fork_hook = _post_fork
