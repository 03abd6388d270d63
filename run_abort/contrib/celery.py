"""Celery: tasks that are abortable runs::

    @app.task(base=AbortableTask)
    def import_file(path):
        current_signal().raise_if_aborted()

The run ID is the task's ID. The IDs of the root task and of the task's groups also abort it, so one
ID aborts a whole chain, group or chord. An aborted task ends in the state ``"ABORTED"`` and is not
retried. Its result contains the actor and the reason.

Celery's ``revoke`` is not used: it stores the state ``"REVOKED"`` for tasks that run or are over,
and takes no task out of its queue. A worker ends a task that waits at the task's start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, Final

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import call_logged
from run_abort._core import current
from run_abort._core.controller import GRACE, AbortController
from run_abort._core.ids import RunID
from run_abort._core.types import Escalation
from run_abort._runtime import runtime
from run_abort.exceptions import RunAborted, TaskAborted

from ._block import task_block
from ._needs import needs

with needs("Celery", "celery"):
    from celery.app.task import Task
    from celery.backends.base import DisabledBackend
    from celery.contrib.django.task import DjangoTask
    from celery.exceptions import Ignore, SoftTimeLimitExceeded
    from celery.exceptions import TimeoutError as NotReadyError
    from celery.result import AsyncResult
    from celery.signals import worker_process_shutdown, worker_shutdown

__all__ = ["ABORTED", "AbortableResult", "AbortableTask", "TaskAborted"]

logger = logging.getLogger("run_abort")

ABORTED: Final = "ABORTED"
PARTS: Final = {"group": ("tasks",), "chain": ("tasks",), "chord": ("header", "body")}
UNLOCK: Final = "celery.chord_unlock"  # Celery's own task, which looks whether a chord is ready
LOOK: Final = 0.5  # seconds between two reads of a task's state in get()


class _Result(AsyncResult):
    """Knows the state of an aborted task: the task is ready, and failed."""

    def ready(self) -> bool:
        return self.state == ABORTED or super().ready()

    def failed(self) -> bool:
        return self.state == ABORTED or super().failed()

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        """Like Celery's; raises :class:`TaskAborted` for an aborted task."""
        self._raise_if_aborted(propagate)
        return super().maybe_throw(propagate, callback)

    maybe_reraise = maybe_throw

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Like Celery's; raises :class:`TaskAborted` for an aborted task."""
        # Without a backend there is no state, and Celery says so.
        is_kept = not isinstance(self.backend, DisabledBackend) and not self.ignored
        if is_kept and self.state == ABORTED:
            self._raise_if_aborted(propagate)
            return self.result
        return super().get(timeout=timeout, propagate=propagate, **options)

    wait = get

    def _raise_if_aborted(self, propagate: bool) -> None:
        if propagate and self.state == ABORTED:
            facts = self.result if isinstance(self.result, dict) else {}
            raise TaskAborted(*(str(facts.get(key, "")) for key in ("run_id", "reason", "actor")))


class AbortableResult(_Result):
    """The result of an :class:`AbortableTask`: an aborted task is ready, and failed."""

    @property
    def supports_native_join(self) -> bool:
        """False, so that ``get()`` of a group calls ``get()`` of each of its results.

        The native join of a backend would wait for ever, because it does not know the state.
        """
        return False

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Like Celery's, which would wait for ever, because it does not know the state.

        :param timeout: maximum number of seconds to wait; None for no limit.
        :param propagate: whether to raise the exception of a task that failed or was aborted.
        :raises TaskAborted: if the task was aborted and ``propagate`` is True.
        :raises celery.exceptions.TimeoutError: if there is no result within ``timeout`` seconds.
        """
        deadline = None if timeout is None else monotonic() + timeout
        follows = propagate and options.get("follow_parents", True) and not self.ignored
        waiting = options | {"callback": None}
        while True:
            if follows:
                self._maybe_reraise_parent_error()
            left = LOOK if deadline is None else min(LOOK, deadline - monotonic())
            try:
                # A task or a callback may raise the same error: not here.
                super().get(timeout=max(left, 0.01), propagate=False, **waiting)
            except NotReadyError:
                if deadline is not None and monotonic() >= deadline:
                    raise
            else:
                return super().get(timeout=timeout, propagate=propagate, **options)

    wait = get


class AbortableTask(DjangoTask):
    """A base class for tasks: each execution is an abortable run.

    :cvar abort_grace: ``grace`` of ``abortable_run``, in seconds; also an option of ``@app.task``.
    :cvar abort_insist: ``insist`` of ``abortable_run``; also an option of ``@app.task``.
    """

    abstract = True
    abort_grace: ClassVar[float] = GRACE
    abort_insist: ClassVar[Escalation | Iterable[Escalation]] = ()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called by Celery.

        A chord, which outside of Redis looks whether the results of its tasks are ready, gets them
        from the app. Otherwise its body would wait for an aborted one for ever.
        """
        if not issubclass(app.AsyncResult, _Result):
            app.AsyncResult = type("AsyncResult", (_Result, app.AsyncResult), {})

    def get_run_id(self, request: Any) -> RunID:
        """The run ID of an execution; by default the task's ID. Meant to be overridden.

        :param request: Celery's task request, like ``self.request``. The task may not have begun.
        """
        return str(request.id)

    def get_run_groups(self, request: Any) -> Iterable[RunID]:
        """Further IDs that abort the execution; by default those of its root and its groups.

        A task of a chain belongs to the group of the chain, and one of a chord to that of its body.
        """
        groups = request.group, *_groups(request.chain, request.chord)
        return [each for each in (request.root_id, *groups) if each]

    def on_abort_before_start(self, error: TaskAborted) -> None:
        """Called if the task was aborted before it began. Meant to be overridden.

        Called in the worker, in the thread of the task; ``self.request`` is the task's. Exceptions
        are logged.
        """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly:
            return self._call(*args, **kwargs)
        if self.name == UNLOCK:  # otherwise nothing would fail the body of an aborted chord
            return self.run(*args, **kwargs)
        if getattr(request, "abort_signal", None) is not None:  # the task calls itself
            return super().__call__(*args, **kwargs)
        block = task_block(
            self.get_run_id(request),
            self.get_run_groups(request),
            at_once=request.is_eager,
            label=self.name,
            grace=self.abort_grace,
            insist=self.abort_insist,
        )
        call = super().__call__
        if call.__func__ is Task.__call__:  # it would execute the task with a copy of its request
            call = self.run
        try:
            with block as request.abort_signal:
                return call(*args, **kwargs)
        except RunAborted as aborted:
            error = TaskAborted.of(aborted)
            if not block.began:
                call_logged(partial(self.on_abort_before_start, error))
            if request.is_eager:
                raise error from aborted
            _mark(self, request, error)
            raise Ignore(str(aborted)) from aborted

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task as a function: within the caller's run, or else with a signal of no run."""
        if current.current_signal() is not None:
            return super().__call__(*args, **kwargs)
        controller = AbortController()
        current.enter(controller)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            current.leave(controller)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Like Celery's, but sends nothing if the execution was aborted.

        :raises RunAborted: if the execution was aborted.
        """
        # Code may fail because of the abort, say at a closed socket, and be retried for that.
        self._raise_if_aborted()
        return super().retry(*args, **options)

    def replace(self, sig: Any) -> Any:
        """Like Celery's, but sends nothing if the execution was aborted.

        :raises RunAborted: if the execution was aborted.
        """
        self._raise_if_aborted()
        return super().replace(sig)

    def _raise_if_aborted(self) -> None:
        signal = getattr(self.request, "abort_signal", None)
        if signal is not None:
            signal.raise_if_aborted()

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AbortableResult:  # noqa: N802
        """The result of a task by its ID."""
        facts = {"app": self.app, "backend": self.backend, "task_name": self.name}
        return AbortableResult(task_id, **facts, **kwargs)


def _mark(task: Any, request: Any, error: TaskAborted) -> None:
    """Call :func:`_store`; again if the soft time limit, which comes once, arrives meanwhile."""
    store = partial(_store, task, request, error)
    try:
        try:
            store()
        except SoftTimeLimitExceeded:
            store()
    except Exception:  # raised here, Celery would take it for a failure of the task
        logger.exception("The end of the aborted task %r could not be stored", request.id)


def _store(task: Any, request: Any, error: TaskAborted) -> None:
    """Store that the task was aborted, and notify its chord, its chain and its errbacks."""
    backend = task.backend
    facts = error.facts()
    if _is_kept(task, request):
        # Store the task's own state last: a caller that sees it may read the others next.
        for later in getattr(request, "chain", None) or ():  # it now never begins
            for task_id in _task_ids(later):
                backend.store_result(task_id, facts, ABORTED)
        backend.store_result(request.id, facts, ABORTED, request=request)
    # A chord treats an unknown state as success, so report a failure to it.
    backend.mark_as_failure(request.id, error, request=request, store_result=False)


def _is_kept(task: Any, request: Any) -> bool:
    """Whether the caller, or else the task, wants the end of a task that failed to be stored."""
    is_ignored = vars(request).get("ignore_result")  # Celery's class says False, not None
    if is_ignored is None:
        is_ignored = task.ignore_result
    return not is_ignored or task.store_errors_even_if_ignored


def _task_ids(signature: Any) -> Iterator[str]:
    """The IDs of the tasks of a signature, or of several, as a message contains them."""
    if isinstance(signature, (list, tuple)):
        for each in signature:
            yield from _task_ids(each)
    elif parts := PARTS.get(signature.get("subtask_type")):
        yield from _task_ids([signature["kwargs"].get(part) or () for part in parts])
    elif task_id := (signature.get("options") or {}).get("task_id"):
        yield task_id


def _groups(chain: Any, chord: Any) -> Iterator[str]:
    """The IDs of the groups that a task belongs to by what follows it, as its message contains it.

    Celery notes the group of a chain at its last task, which is the first in the message, and that
    of a chord at its body.
    """
    for later in (*(chain or ())[:1], chord):
        if later:
            parts, options = later.get("kwargs") or {}, later.get("options") or {}
            if group_id := options.get("group_id"):
                yield group_id
            yield from _groups(options.get("chain"), options.get("chord"))
            if later.get("subtask_type") == "chain":
                yield from _groups(list(parts["tasks"])[-1:], None)
            elif later.get("subtask_type") == "chord":
                yield from _groups(None, parts["body"])


def _settle(**kwargs: Any) -> None:
    """A process of the prefork pool, and a worker after SIGHUP, end without Python's exit."""
    runtime.current().settle()


for ending in (worker_process_shutdown, worker_shutdown):
    ending.connect(_settle, weak=False, dispatch_uid="run_abort")
