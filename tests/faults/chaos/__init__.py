"""The proof that no abort is lost: a fleet of processes, faults at random, and a count.

``python -m tests.faults.chaos --seconds 60 --seed 7`` from the root of the repository.

Each process writes down what it did and saw (``journal``); afterwards ``history`` puts the facts
together, ``checker`` counts what must not have happened, ``figures`` the rest.
"""

from __future__ import annotations
