"""The Django signals: three facts about an abort. Receivers take ``**kwargs``.

All three carry ``run_id`` (str), ``reason`` (str), ``actor`` (str) and ``abort_id``
(``uuid.UUID``, or None if a foreign sender gave none). The sender is the model ``AbortRequest``.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["run_abort_received", "run_abort_requested", "run_aborted"]

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
