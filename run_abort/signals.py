"""The Django signals: three facts about an abort. Receivers take ``**kwargs``.

All three carry ``run_id`` (str), ``reason`` (str), ``actor`` (str) and ``abort_id``
(``uuid.UUID``, or None if a foreign sender gave none). The sender is the model ``AbortRequest``.
"""

from __future__ import annotations

import logging
from typing import Any

from asgiref.sync import async_to_sync
from django.dispatch import Signal

from .exceptions import RunAborted

__all__ = ["run_abort_received", "run_abort_requested", "run_aborted"]

logger = logging.getLogger("django.dispatch")

# This process requested an abort. Sent in the caller's thread at the end of the call, whether or
# not the request was recorded and published. Also carries ``outcome``.
run_abort_requested = Signal()

# This process received an abort that another process requested. Sent once for each abort ID, on the
# listener's thread, after the controllers of this process were aborted. Also carries ``origin``
# (str), the ID of the sending process. A slow receiver delays the next messages.
run_abort_received = Signal()

# A run was aborted in this process. Sent for each run, on a thread that belongs to this signal.
# Also carries ``controllers`` (int), how many controllers of the run were aborted, and ``way``
# (str): "local", "channel" or "reconcile"; "start" if the run was aborted before it began. Then
# ``controllers`` is 0 if a queue took the job back. ``run_id`` is the run's own ID, even if its
# group was aborted.
run_aborted = Signal()


def send_to_all(signal: Signal, sender: object, **named: Any) -> None:
    """Send a signal to every receiver, in this thread; log what a receiver raises.

    ``Signal.send_robust`` stops at a ``RunAborted``, which is no ``Exception``, and at an exception
    of a receiver without a name, such as a ``partial``.
    """
    receivers, async_receivers = signal._live_receivers(sender)
    for receiver in (*receivers, *map(async_to_sync, async_receivers)):
        try:
            receiver(signal=signal, sender=sender, **named)
        except (Exception, RunAborted):
            name = getattr(receiver, "__qualname__", None) or repr(receiver)
            logger.exception("The receiver %s failed", name)
