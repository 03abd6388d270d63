"""Aborting within one process: controllers, their blocks, and the ways to end a block.

May import ``_concurrency`` and ``run_abort.exceptions``: neither Django nor Redis. Others use
``AbortController``, ``AbortSignal``, ``current_signal``, ``Registry``, ``Scope``, ``Escalator``,
``clean_id`` and the values in ``types``.
"""
