"""Where a listener stands in the order of requests, over its restarts."""

from __future__ import annotations

from run_abort._runtime.runtime import current
from run_abort._store.cursors import Cursor

__all__ = ["Place"]


class Place:
    """Where this listener is in the order of requests: taken up once, then kept by its cursor."""

    def __init__(self, name: str, *, from_now: bool) -> None:
        self.cursor = Cursor(name)
        self._is_to_forget = from_now
        self._is_taken = False

    def take(self) -> bool:
        """Begin where the cursor stands; to be tried again while the database fails."""
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
        """Move the cursor to now, if it is behind and nothing is still to be heard or handled.

        :return: whether it stands where it has to.
        """
        if not self.take():
            return False
        is_current = self.is_current()
        if not self.cursor.collect():
            return True
        return is_current and current().dispatch.wait_for_handlers(timeout=0) and self.cursor.save()

    def is_current(self) -> bool:
        """Whether nothing that was requested before now is still to be heard of."""
        runtime = current()
        is_listening = self._is_taken and runtime.listener.is_listening()
        return is_listening and runtime.reconciler.is_caught_up()
