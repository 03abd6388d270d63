"""The position of a listener in the order of requests, kept over restarts."""

from __future__ import annotations

from run_abort._runtime.runtime import current
from run_abort._store.cursors import Cursor

__all__ = ["Place"]


class Place:
    """The position of this listener: loaded once from its cursor, then saved there."""

    def __init__(self, name: str, *, from_now: bool) -> None:
        self.cursor = Cursor(name)
        self._is_to_forget = from_now
        self._is_taken = False

    def take(self) -> bool:
        """Load the position from the cursor; return False if the database fails, to be retried."""
        if self._is_to_forget and self.cursor.forget():
            self._is_to_forget = False
        if not self._is_taken and not self._is_to_forget:
            position = self.cursor.load()
            if position is not None:
                runtime = current()
                runtime.dispatch.remember(position.heard)
                runtime.reconciler.resume(position.heard_until, began=position.began_at)
                self.cursor.touch()
                self._is_taken = True
        return self._is_taken

    def keep(self) -> bool:
        """Move the cursor to the current time if every request so far was received and handled.

        :return: whether the cursor is up to date.
        """
        if not self.take():
            return False
        is_current = self.is_current()
        if not self.cursor.collect():
            return True
        return is_current and current().dispatch.wait_for_handlers(timeout=0) and self.cursor.save()

    def is_current(self) -> bool:
        """Whether every request made before now has been received."""
        runtime = current()
        is_listening = self._is_taken and runtime.listener.is_listening()
        return is_listening and runtime.reconciler.is_caught_up()
