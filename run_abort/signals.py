"""The Django signals: three facts about an abort. Receivers take ``**kwargs``.

All three carry ``run_id`` (str), ``reason`` (str), ``actor`` (str) and ``abort_id``
(``uuid.UUID``, or None where a foreign sender gave none).
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["run_abort_received", "run_abort_requested", "run_aborted"]

# Somebody called abort_run in this process. Sent in the caller's thread once everything was
# tried, with ``outcome``; the sender is the class AbortOutcome.
run_abort_requested = Signal()

# This process heard of an abort that another process requested: once for each abort ID, on the
# listener's thread, after the controllers here were aborted. Also ``origin`` (str), the sending
# process. The sender is the class AbortMessage. A receiver that takes long holds up the next
# messages, and is named in a warning.
run_abort_received = Signal()

# A run was aborted here: sent for each run with the number of its ``controllers`` that flipped,
# on a thread that belongs to this signal. ``run_id`` is the run's own ID, also when its group was
# aborted. The sender is the class AbortController.
run_aborted = Signal()
