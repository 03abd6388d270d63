"""How soon an abort has to take effect here."""

from __future__ import annotations

from typing import Any, Final

from .plan import ALONE, DEAF

# Seconds. Small, so that the 5 s until a silent link is given up are the longest of all.
RECONCILE_INTERVAL: Final = 1.0
POLL_INTERVAL: Final = 0.3
HEARTBEAT: Final = 0.5
LEASE: Final = 1.5

# Seconds for threads and queries that wait for a processor on a loaded machine.
SLACK: Final = 1.5

# Seconds from the moment at which abort_run has returned ``recorded: True`` until every block of
# the run has to know. A run that ends sooner proves nothing about the abort.
ALLOWANCE: Final = RECONCILE_INTERVAL + SLACK

# Seconds that a block waits for the database on entering: ``DATABASE_TIMEOUT``.
ENTERING: Final = 1.0

# Seconds after which a node of the cluster that does not answer is given up, and after which it is
# linked again when it does.
NODE_TIMEOUT: Final = 2.0

CHANNEL: Final = "chaos:run-abort"


def run_abort_settings(redis_url: str, member: str = "") -> dict[str, Any]:
    return {
        "REDIS_URL": redis_url if member != ALONE else False,
        "LISTEN": "auto" if member != DEAF else False,
        "CHANNEL": CHANNEL,
        "RECONCILE_INTERVAL": RECONCILE_INTERVAL,
        "POLL_INTERVAL": POLL_INTERVAL,
        "HEARTBEAT": HEARTBEAT,
        "LEASE": LEASE,
    }


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
