"""The Django signals: three facts about an abort.

The sender is the model ``AbortRequest``. All three carry ``run_id``, ``reason`` and ``actor``
(``str``), and ``abort_id``: a ``uuid.UUID``, or None if a foreign sender gave none, or one that is
no UUID. Receivers take ``**kwargs``. What they raise is logged, to ``django.dispatch``, and has no
other effect.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from asgiref.sync import async_to_sync
from django.dispatch import Signal

from .exceptions import RunAborted

__all__ = ["run_abort_received", "run_abort_requested", "run_aborted"]

logger = logging.getLogger("django.dispatch")


class _Signal(Signal):
    def __init__(self) -> None:
        super().__init__()
        # Reentrant: a signal handler may abort while its own thread sends or connects.
        self.lock = threading.RLock()  # type: ignore[assignment]


#: This process called ``abort_run`` or a function built on it. Sent in the caller's thread, whether
#: or not the request was recorded and published; for ``aabort_run`` on a thread of its own. Also
#: carries ``outcome``, the :class:`~run_abort.AbortOutcome`. The call waits for blocks only after
#: that, so this outcome has no ``holds``.
run_abort_requested = _Signal()

#: This process received an abort that another process requested. Sent once for each abort ID, after
#: the controllers of this process were aborted, even if there were none; for a message without an
#: ID, each time. Not sent without Redis. Also carries ``origin`` (``str``), the ID of the sending
#: process; empty if it gave none.
#:
#: Sent on a thread that belongs to this signal and exists while there is something to send, so that
#: a slow receiver delays only the receivers. The requests that the process has missed are sent
#: after each confirmed subscription. Up to 10,000 requests wait for slow receivers; further ones
#: are read again from the database later, those without a row are lost, and an error is logged. At
#: exit the interpreter waits for it for up to a second. Its database connections are closed when it
#: ends.
run_abort_received = _Signal()

#: A run was aborted in this process, by any requester. It has not *stopped* yet. Sent for each run
#: whose controllers were aborted; not for an ``AbortController`` that a project made. ``run_id`` is
#: the run's own ID, even if its group was aborted. Also carries ``controllers`` (``int``), how many
#: of the run were aborted, and ``way`` (``str``): ``"local"``, ``"channel"`` or ``"reconcile"``;
#: ``"start"`` if the run was aborted before it began. Then ``controllers`` is 0 if a queue took the
#: job back.
#:
#: Sent on a thread that belongs to this signal and exists while there is something to send. Up to
#: 10,000 aborts wait for slow receivers; further ones are not sent, and logged as an error. At exit
#: the interpreter waits for it for up to a second. Its database connections are closed when it
#: ends.
run_aborted = _Signal()


def send_to_all(signal: Signal, sender: object, *, but: object = None, **named: Any) -> None:
    """Send a signal to every receiver, in this thread; log what a receiver raises.

    ``Signal.send_robust`` stops at a ``RunAborted`` and a ``CancelledError``, which are no
    ``Exception``, and at an exception of a receiver without a name, such as a ``partial``.

    :param but: a receiver to which it is not sent.
    """
    receivers, async_receivers = signal._live_receivers(sender)
    others = (receiver for receiver in receivers if receiver != but)
    for receiver in (*others, *map(async_to_sync, async_receivers)):
        try:
            receiver(signal=signal, sender=sender, **named)
        except (Exception, RunAborted, asyncio.CancelledError):
            function = getattr(receiver, "awaitable", receiver)
            name = getattr(function, "__qualname__", None) or repr(function)
            logger.exception("The receiver %s failed", name)
