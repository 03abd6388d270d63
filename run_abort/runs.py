"""``abortable_run``: the block that holds a run."""

from __future__ import annotations

from functools import partial

from ._concurrency.promise import Promise
from ._concurrency.workers import spawn
from ._core.controller import AbortController
from ._core.scope import Scope
from ._core.types import Request, Way
from ._runtime.runtime import Runtime, current

__all__ = ["abortable_run"]


class abortable_run(Scope):  # noqa: N801  reads as a statement, as contextlib.suppress does
    """Hold a run while working on it, so that it can be aborted::

        with abortable_run(run_id) as signal:
            for item in items:
                signal.raise_if_aborted()
                ...

    Any number of blocks, in any number of threads, processes and hosts, may hold the same ID; an
    abort reaches them all. Leaving the block normally proves that it was not aborted: either the
    block ends first or the abort comes first.

    With ``async with``, an abort also cancels the body's task, as ``asyncio.timeout`` does. The
    cancellation leaves the block as ``RunAborted``. Other cancellations stay ``CancelledError``. A
    plain ``with`` in a coroutine cancels nothing: an abort only sets the signal.

    Entering starts the listener if needed, writes a row that says that this process works on the
    run, and reads whether an abort was requested before. It waits for the database for at most
    ``DATABASE_TIMEOUT``; if that is away, the block starts all the same.

    :param run_id: a ``str``; a ``uuid.UUID``, which is taken as its ``str``; or a model instance,
        whose ID is ``"<app>.<model>:<primary key>"``.
    :param groups: further IDs that the run answers to: its parent run, its tenant.
    :param label: what this block does, for people: in holds, in ``run_abort_status`` and on the
        page "Running now".
    :param grace: seconds, 0 to 86,400, that the block may take to end by itself after an abort.
        Also those from SIGTERM to SIGKILL for the processes that ``signal.run``, ``signal.attach``
        and ``signal.ends_children`` end.
    :param insist: the escalation after that: ``"interrupt"``, for ``with``, raises ``RunAborted``
        in its thread, but not within ``signal.shield()``; ``"cancel"``, for ``async with``, cancels
        the task again; or a list of both, for code that is used in both ways. It is repeated until
        the block is left: after ``grace``, at least 5 seconds, then each time after twice the
        delay, up to a minute if ``grace`` is shorter.
    :param catch: whether leaving the block swallows its own ``RunAborted``; ``signal.aborted`` then
        tells. An ``Exception`` that the body raised after the abort is swallowed with it, and
        logged as a warning. The ``RunAborted`` of a block around passes. Entering a run that was
        aborted before raises ``RunAborted`` all the same, because a context manager cannot skip its
        body, and so may an interrupt that arrives just as the block begins or ends: catch it where
        the job ends.
    :raises TypeError: at once, if an argument is of the wrong type. A bare primary key names no
        run, because rows of two models have the same keys.
    :raises ValueError: at once, if an ID is empty, longer than 255 characters, or contains a
        control character or a lone surrogate, if ``grace`` is negative or longer than a day, or if
        ``insist`` is unknown.
    :raises RunAborted: on entering, if the abort was requested before; then the body does not run.
        On leaving, if the run was aborted while the body ran; then an ``Exception`` of the body,
        such as that of a killed subprocess, becomes the ``__cause__``.
    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    :raises RuntimeError: on entering for a second time; make a new one for each block. On entering
        ``async with`` outside of a task. On entering where ``insist`` is not possible:
        ``"interrupt"`` in an event loop, in a greenlet, or in a Python without its global lock;
        ``"cancel"`` without an event loop.
    """

    _find_process = staticmethod(current)
    _process: Runtime

    @property
    def began(self) -> bool:
        """Whether the body runs, or has run."""
        return self._controller is not None and self._controller.began

    def _look(self, controller: AbortController) -> None:
        found = self._enter(controller)
        if found is not None:
            self._process.recorder.wait(found)
            self._found(controller, found)

    async def _alook(self, controller: AbortController) -> None:
        found = self._enter(controller)
        if found is not None:
            await self._process.recorder.await_(found)
            self._found(controller, found)

    def _enter(self, controller: AbortController) -> Promise[Request | None] | None:
        process = self._process
        # A short job in a process of its own ends before the listener connects.
        process.listener.ensure_started(may_rest=True)
        found = process.holder.enter(controller, self._ids, self._label)
        if found is not None:
            process.reconciler.service.ensure_started()
        return found

    def _found(self, controller: AbortController, found: Promise[Request | None]) -> None:
        if not found.is_done:  # the database may answer later
            found.when_done(partial(self._found_late, controller))
        elif found.result is not None:
            self._abort(controller, found.result, "reconcile" if controller.began else "start")

    def _found_late(self, controller: AbortController, found: Promise[Request | None]) -> None:
        if found.result is not None:
            # On a thread of its own, because the abort calls the callbacks of the signal. The body
            # runs by now, so this is not the abort of a run that never began.
            late = partial(self._abort, controller, found.result, "reconcile")
            spawn(late, name="run_abort-late")

    def _abort(self, controller: AbortController, request: Request, way: Way) -> None:
        self._process.registry.abort_controllers([controller], request, way)

    def abort_alone(self, reason: str) -> None:
        """Abort this block and no other. Does nothing unless it is open."""
        if self._controller is not None:
            request = Request(self._ids[0], reason=reason, origin=self._process.origin())
            self._abort(self._controller, request, "local")

    def _ended(self, controller: AbortController) -> None:
        process = self._process
        process.holder.leave(controller)
        if process.is_child:
            process.write_in_child()
