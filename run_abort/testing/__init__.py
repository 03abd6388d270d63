"""For the tests of projects: record requested aborts, and abort a job at every checkpoint.

    def test_import_survives_an_abort_anywhere(run_aborts, db):
        abort_everywhere(import_file, before=reset, after=check_invariants)

While Django's test environment is set up, the app is local: it aborts blocks of the test's own
process and uses neither Redis, nor the database, nor task queues. :func:`use_rows`,
:func:`use_push` and :func:`use_settings` give these back. The pytest plugin has the fixtures
``run_aborts``, ``run_abort_rows`` and ``run_abort_push``; pytest loads it when the app is
installed.
"""

from __future__ import annotations

import asyncio
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from asgiref.sync import async_to_sync

from run_abort._concurrency.workers import in_event_loop
from run_abort._core.effects import call_in_loop
from run_abort._core.ids import RunID, clean_id
from run_abort.exceptions import RunAborted

from .checkpoints import MAX_LOOKS, Checkpoint, DoesNotStop, Watch, steps_of
from .isolation import Aborts, RequestedAbort, record_aborts, use_push, use_rows, use_settings

__all__ = [
    "Aborts",
    "Checkpoint",
    "DoesNotStop",
    "InvariantsBroken",
    "Report",
    "RequestedAbort",
    "Violation",
    "Watch",
    "abort_after",
    "abort_everywhere",
    "record_aborts",
    "use_push",
    "use_rows",
    "use_settings",
]

LIMIT: Final = 1000  # checkpoints


@contextmanager
def abort_after(
    number: int,
    *,
    run_id: RunID | None = None,
    reason: str = "",
    actor: str = "",
    edges: bool = False,
    max_looks: int = MAX_LOOKS,
) -> Iterator[Watch]:
    """Abort a run at the ``number``-th look at its signal::

        with abort_after(3), pytest.raises(RunAborted):
            import_file()

    Each of these is a look: reading ``signal.aborted``; calling ``raise_if_aborted``, ``sleep``,
    ``wait``, ``wait_async``, ``add_callback``, ``attach``, ``run_async`` or ``finish``, which is
    the last one of its block; the beginning and the end of ``signal.run``,
    ``signal.ends_children`` and ``signal.cancels``, and each statement within the latter. Looks are
    counted over all threads and all blocks that are entered within this context.

    The abort happens just before the look, so the look finds it. As with ``abort_run``, it affects
    all blocks of the run, but nothing is recorded or published.

    :param number: the look at which to abort, from 1 on.
    :param run_id: count the looks and abort the blocks of this run only.
    :param reason: reason of the abort.
    :param actor: actor of the abort.
    :param edges: whether entering and leaving a block are looks, too.
    :param max_looks: number of looks allowed after the abort; the next raises :class:`DoesNotStop`.
    :return: an object with the ``checkpoints`` so far and the place of the abort, ``aborted_at``.
    :raises ValueError: if ``number`` is less than 1.
    :raises AssertionError: at the end, if there were fewer looks and the body did not raise.
    """
    __tracebackhide__ = True
    if number < 1:
        raise ValueError(f"looks are counted from 1, not from {number!r}")
    only = None if run_id is None else clean_id(run_id)
    watch = Watch(number, run_id=only, reason=reason, actor=actor, edges=edges, max_looks=max_looks)
    with watch:
        yield watch
    if watch.aborted_at is None:
        taken = len(watch.checkpoints)
        raise AssertionError(f"nothing was aborted: there were {taken} looks, not {number}")


@dataclass(frozen=True, slots=True)
class Violation:
    """A problem that an abort at a checkpoint causes.

    :ivar checkpoint: where the job was aborted; None if it ended before that checkpoint.
    :ivar number: number of the checkpoint.
    :ivar problem: a sentence for people.
    :ivar error: the exception raised by the job or by the check; None if neither raised.
    """

    checkpoint: Checkpoint | None
    number: int
    problem: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of :func:`abort_everywhere`.

    :ivar checkpoints: the checkpoints of the job when it is not aborted.
    :ivar violations: the problems found, in the order of the checkpoints.
    """

    checkpoints: tuple[Checkpoint, ...]
    violations: tuple[Violation, ...] = ()

    def __str__(self) -> str:
        total = len(self.checkpoints)
        if not self.violations:
            lines = [f"aborted at each of {total} checkpoints; nothing was broken:"]
            lines += [f"checkpoint {each.number} of {total} ({each})" for each in self.checkpoints]
            return "\n  ".join(lines)
        places = len({each.number for each in self.violations})
        text = f"an abort at {places} of {total} checkpoints leaves something broken:"
        for each in self.violations:
            where = "" if each.checkpoint is None else f" ({each.checkpoint})"
            line = f"aborted at checkpoint {each.number} of {total}{where}: {each.problem}"
            text += "\n" + textwrap.indent(line, "    ")[2:]
        return text


class InvariantsBroken(AssertionError):  # noqa: N818  a state, not a mistake
    """Raised by :func:`abort_everywhere`; ``report`` is the complete report."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


Raised = type[BaseException] | tuple[type[BaseException], ...] | None

# Exceptions that end the job. Others, such as KeyboardInterrupt, are not caught.
_ENDS: Final = (Exception, BaseExceptionGroup, RunAborted, DoesNotStop, asyncio.CancelledError)


def abort_everywhere(
    job: Callable[[], object],
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
    raises: Raised = RunAborted,
    awaits: bool = True,
    limit: int = LIMIT,
    max_looks: int = MAX_LOOKS,
) -> Report:
    """Run a job repeatedly, abort it at another checkpoint each time, and check the result::

        abort_everywhere(import_file, before=reset, after=check_invariants)

    First the job runs without an abort, to count its checkpoints: the looks of :func:`abort_after`
    with ``edges``, and every place where a task suspends within a block. Then it runs once per
    checkpoint and is aborted there. All functions are called in the calling thread; a coroutine
    that they return runs in a new event loop, on another thread, and its ORM calls in the calling
    one. Suspensions count in that loop, not in one that the job starts itself, as by
    ``asyncio.run``: return the coroutine instead.

    It reports: an exception of ``after``; a job that does not end with ``raises``; a job that keeps
    looking at its signal; a block that another thread still holds when the job has ended; a job
    that does not reach the checkpoint this time, which ends the whole run.

    :param job: takes no arguments, and must have the same checkpoints each time.
    :param before: called before each run; restores the initial state.
    :param after: called after each run; raises, such as by ``assert``, if an invariant is broken.
    :param raises: the exceptions with which the aborted job must end; None if it must end normally.
    :param awaits: whether suspensions of tasks count as checkpoints.
    :param limit: maximum number of checkpoints.
    :param max_looks: number of looks allowed after an abort.
    :raises InvariantsBroken: an ``AssertionError`` with the report, at the end.
    :raises AssertionError: if the job has no checkpoint, or more than ``limit``.
    :raises RuntimeError: if ``job`` returns a coroutine and the calling thread runs an event loop;
        use ``await asyncio.to_thread(abort_everywhere, job)`` there.
    :raises BaseException: any exception of ``before``; exceptions of the job and of ``after`` in
        the first run; at any time, those that do not end a job, such as ``KeyboardInterrupt``.
    """

    __tracebackhide__ = True

    def attempt(watch: Watch) -> BaseException | None:
        _complete(before)
        try:
            with watch:
                _complete(job, in_steps=awaits)
        except _ENDS as error:
            return error
        return None

    checkpoints = _count(attempt, after, limit)
    violations: list[Violation] = []
    for number in range(1, len(checkpoints) + 1):
        watch = Watch(number, max_looks=max_looks)
        with _noted(watch):
            violations += _judge(watch, number, attempt(watch), raises)
            try:
                _complete(after)
            except Exception as broken:
                violations.append(Violation(watch.aborted_at, number, _described(broken), broken))
        if watch.aborted_at is None:
            break
    report = Report(checkpoints, tuple(violations))
    if violations:
        raise InvariantsBroken(report) from violations[0].error
    return report


def _count(
    attempt: Callable[[Watch], BaseException | None], after: Callable[[], object] | None, limit: int
) -> tuple[Checkpoint, ...]:
    """Run the job without an abort and return its checkpoints."""
    __tracebackhide__ = True
    watch = Watch(limit + 1)
    with _noted(watch):
        error = attempt(watch)
        if watch.aborted_at is not None:
            raise AssertionError(
                f"the job has more than {limit:,} checkpoints: give it less to do, or give "
                "abort_everywhere a higher limit"
            ) from error
        if error is not None:
            raise error
        _complete(after)
    if not watch.checkpoints:
        raise AssertionError("the job has no checkpoint: it enters no abortable_run")
    return watch.checkpoints


def _judge(
    watch: Watch, number: int, error: BaseException | None, raises: Raised
) -> list[Violation]:
    """Return the problems with the way in which the job ended."""
    problems = []
    if watch.aborted_at is None:
        ended = "" if error is None else f", because it raised {_described(error)}"
        taken = len(watch.checkpoints)
        problems.append(
            f"this time the job reached only {taken} checkpoints{ended}: they must be the same "
            "each time"
        )
    elif isinstance(error, DoesNotStop):
        problems.append(f"the job does not stop: {error}")
    elif error is None and raises is not None:
        problems.append(
            "the job returned normally; if it catches RunAborted on purpose, pass raises=None"
        )
    elif error is not None and (raises is None or not isinstance(error, raises)):
        problems.append(f"the job raised {_described(error)}")
    if watch.still_open:
        problems.append(f"the job has ended, but blocks of {', '.join(watch.still_open)} are open")
    return [Violation(watch.aborted_at, number, problem, error) for problem in problems]


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _noted(watch: Watch) -> Iterator[None]:
    """Add a note to exceptions that says where the job was aborted."""
    try:
        yield
    except BaseException as error:
        where = "not aborted" if watch.aborted_at is None else f"aborted at {watch.aborted_at}"
        error.add_note(f"the job was {where}")
        raise


def _complete(function: Callable[[], object] | None, *, in_steps: bool = False) -> None:
    """Call the function, if there is one; if it returns a coroutine, run that in a new event loop.

    The loop has a thread of its own, so that what ``sync_to_async`` calls, such as the ORM, runs in
    the calling thread, on the connection whose transaction is that of the test.
    """
    result = None if function is None else function()
    if not inspect.iscoroutine(result):
        return
    if in_event_loop():
        result.close()
        raise RuntimeError(
            "a coroutine cannot be run in a thread that runs an event loop: use await "
            "asyncio.to_thread(abort_everywhere, job)"
        )

    tasks: list[asyncio.Task[object]] = []

    async def complete() -> None:
        loop = asyncio.get_running_loop()
        if in_steps:
            loop.set_task_factory(steps_of)
        tasks.append(loop.create_task(result))
        await tasks[0]

    try:
        async_to_sync(complete, force_new_loop=True)()
    except BaseException:
        for task in tasks:  # it goes on if a KeyboardInterrupt has ended the wait for it
            call_in_loop(task.get_loop(), task.cancel)
        raise
