"""Aborting within one process: controllers, the blocks that they belong to, and what ends a block.

May import ``_concurrency`` and ``run_abort.exceptions``: neither Django nor Redis. Others use
``AbortController``, ``AbortSignal``, ``Registry``, ``Scope``, ``Escalator``, ``clean_id`` and the
values in ``types``.
"""
