"""For the tests of projects: what was asked to abort, and what an abort does to a job, anywhere.

    def test_stop_button(aborts, client):
        client.post("/imports/7/stop/")
        assert aborts.run_ids == ["import-7"]

    def test_import_survives_an_abort_anywhere(aborts, db):
        abort_everywhere(import_file, before=reset, after=check_invariants)

The fixture ``aborts`` is that of the pytest plugin, which is there once the app is installed;
:func:`record_aborts` is the same for other runners. Both need neither Redis nor a database.
"""

from __future__ import annotations

import asyncio
import inspect
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.test import override_settings

from run_abort import conf
from run_abort._core.ids import clean_id
from run_abort._runtime.runtime import current
from run_abort._store import database
from run_abort.exceptions import RunAborted
from run_abort.signals import run_abort_requested

from .checkpoints import MAX_LOOKS, Checkpoint, DoesNotStop, Watch, steps_of

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
    "cut_off",
    "record_aborts",
    "recording",
]

LIMIT: Final = 1000  # checkpoints
JOIN_TIMEOUT: Final = 1.0  # seconds for all threads together


@dataclass(frozen=True, slots=True)
class RequestedAbort:
    """What was asked by ``abort_run`` and its kin.

    :ivar run_id: of a run or of a group.
    :ivar reason: why; may be empty.
    :ivar actor: who, as text: of a user the name; may be empty.
    :ivar abort_id: as in the outcome.
    """

    run_id: str
    reason: str
    actor: str
    abort_id: uuid.UUID


class Aborts(list[RequestedAbort]):
    """What was asked so far, in that order."""

    @property
    def run_ids(self) -> list[str]:
        """The IDs alone."""
        return [each.run_id for each in self]

    def _note(
        self, run_id: str, reason: str, actor: str, abort_id: uuid.UUID, **facts: object
    ) -> None:
        self.append(RequestedAbort(run_id, reason, actor, abort_id))


def cut_off() -> dict[str, Any]:
    """``RUN_ABORT`` as it is now, but with neither Redis nor the database, and not listening.

    :raises ImproperlyConfigured: if Django is not configured, or ``RUN_ABORT`` is invalid.
    """
    conf.settings()
    known: dict[str, Any] = getattr(settings, "RUN_ABORT", {})
    kept = {key: known[key] for key in known if key not in ("REDIS_URL", "CACHE_ALIAS")}
    return kept | {"INTENTS": False, "LISTEN": False}


@contextmanager
def record_aborts() -> Iterator[Aborts]:
    """Record what is asked by ``abort_run`` and its kin, in any thread of this process::

        with record_aborts() as aborts:
            stop_import("job-1")
        assert aborts.run_ids == ["job-1"]

    Meanwhile there is neither Redis nor the database for this app: ``RUN_ABORT`` is overridden. Nor
    is a task queue told. The blocks of this process are aborted as ever; a block that is entered
    later is not. At the end the app forgets what has ended, and waits for up to a second for the
    threads that it has started, such as for callbacks.

    :raises ImproperlyConfigured: if Django is not configured, or ``RUN_ABORT`` is invalid.
    """
    with recording() as aborts, override_settings(RUN_ABORT=cut_off()):
        yield aborts


@contextmanager
def recording() -> Iterator[Aborts]:
    """:func:`record_aborts` for whoever has ``RUN_ABORT`` as :func:`cut_off` says by other means.

    For the pytest plugin.
    """
    aborts = Aborts()
    others = set(threading.enumerate())
    runtime = current()
    before = runtime.push.only_named, runtime.queues.cut_off
    runtime.push.only_named = runtime.queues.cut_off = True
    run_abort_requested.connect(aborts._note, weak=False, dispatch_uid=id(aborts))
    try:
        yield aborts
    finally:
        run_abort_requested.disconnect(dispatch_uid=id(aborts))
        runtime.push.only_named, runtime.queues.cut_off = before
        runtime.registry.forget_ended()
        _join_ours(others)


def _join_ours(others: set[threading.Thread]) -> None:
    deadline = time.monotonic() + JOIN_TIMEOUT
    for thread in set(threading.enumerate()) - others - {threading.current_thread()}:
        if thread.name.startswith("run_abort"):
            thread.join(max(deadline - time.monotonic(), 0))


@contextmanager
def abort_after(
    number: int,
    *,
    run_id: str | int | uuid.UUID | None = None,
    reason: str = "",
    actor: str = "",
    edges: bool = False,
    max_looks: int = MAX_LOOKS,
) -> Iterator[Watch]:
    """Abort a run at the ``number``-th look at its signal::

        with abort_after(3), pytest.raises(RunAborted):
            import_file()

    A look is: to read ``signal.aborted``; to call its ``raise_if_aborted``, ``sleep``, ``wait``,
    ``wait_async``, ``add_callback``, ``attach`` or ``run_async``; to begin and to end
    ``signal.run`` and ``signal.cancels``, and each statement within the latter. The abort comes
    just before the look, which finds it. To await anything else is no look; see
    :func:`abort_everywhere`.

    The looks are counted in all threads, over all blocks that are entered within this, in the order
    in which they are taken. Aborted is the run whose signal it is, so all of its blocks, in the way
    in which ``abort_run`` aborts them. Nobody has requested it: nothing is recorded or published.

    :param run_id: count, and abort, the blocks of this run only.
    :param edges: whether to enter a block, and to leave it, is a look, too, as it is for
        :func:`abort_everywhere`. Aborted as it enters, a block's body does not begin; as it leaves,
        it has done all of its work.
    :param max_looks: how many looks at the aborted run may follow, before they raise
        :class:`DoesNotStop`.
    :return: what tells of the ``checkpoints`` so far, and where it has aborted, ``aborted_at``.
    :raises ValueError: if ``number`` is less than 1.
    :raises AssertionError: at its end, if there were fewer looks, and nothing else was raised.
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
    """Something that an abort at a checkpoint leaves wrong.

    :ivar checkpoint: where it was aborted; None if it ended before it came there.
    :ivar number: of the checkpoint.
    :ivar problem: what is wrong.
    :ivar error: what was raised, by the job or by the check; None if nothing was.
    """

    checkpoint: Checkpoint | None
    number: int
    problem: str
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a job that was aborted everywhere.

    :ivar checkpoints: of the run without an abort.
    :ivar violations: in the order of the checkpoints.
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
            told = f"aborted at checkpoint {each.number} of {total}{where}: {each.problem}"
            text += "\n" + textwrap.indent(told, "    ")[2:]
        return text


class InvariantsBroken(AssertionError):  # noqa: N818  it is what an abort has left behind
    """Raised by :func:`abort_everywhere`.

    :ivar report: all of it.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


Raised = type[BaseException] | tuple[type[BaseException], ...] | None

# How a job may end. Whatever else is raised is for the one who runs the tests, or the runner.
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
    """Run a job again and again, aborted at another checkpoint each time, and check what is left::

        abort_everywhere(import_file, before=reset, after=check_invariants)

    First the job runs without an abort, and its checkpoints are counted: the looks of
    :func:`abort_after`, with ``edges``, and, in event loops, every place where a task waits inside
    of a block, as an abort cancels it there. Then it runs once for each of them. All is called in
    the calling thread.

    What is reported: an exception of ``after``; another end of the job than ``raises``; a job that
    goes on looking; a block that is still open when the job has ended, in another thread; a job
    that does not come to the checkpoint any more, which ends the whole.

    :param job: takes no arguments. If it returns a coroutine, that is run in an event loop of its
        own. It has to come to the same checkpoints each time.
    :param before: called before each run: makes the job's world as it was.
    :param after: called after each run, the first one, too: raises, as by ``assert``, if something
        is not as it has to be.
    :param raises: what the aborted job has to raise; None: nothing, as it catches ``RunAborted``.
    :param awaits: whether it counts where a task waits.
    :param limit: at most so many checkpoints.
    :param max_looks: how many looks may follow an abort.
    :raises InvariantsBroken: an ``AssertionError`` with the report, at the end.
    :raises AssertionError: if the job comes to no checkpoint, or to more than ``limit``.
    :raises RuntimeError: if a coroutine is to be run in a thread whose event loop runs; there, use
        ``await asyncio.to_thread(abort_everywhere, job)``.
    :raises BaseException: what ``before`` raises, and what the job and ``after`` raise without an
        abort; at once, what is no ``Exception``, such as ``KeyboardInterrupt``.
    """

    __tracebackhide__ = True

    def attempt(watch: Watch) -> BaseException | None:
        if before is not None:
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
                if after is not None:
                    _complete(after)
            except Exception as broken:
                violations.append(Violation(watch.aborted_at, number, _told(broken), broken))
        if watch.aborted_at is None:
            break
    report = Report(checkpoints, tuple(violations))
    if violations:
        raise InvariantsBroken(report) from violations[0].error
    return report


def _count(
    attempt: Callable[[Watch], BaseException | None], after: Callable[[], object] | None, limit: int
) -> tuple[Checkpoint, ...]:
    """Run the job without an abort; return its checkpoints."""
    __tracebackhide__ = True
    watch = Watch(limit + 1)
    with _noted(watch):
        error = attempt(watch)
        if watch.aborted_at is not None:
            raise AssertionError(
                f"the job comes to more than {limit:,} checkpoints: give it less to do, or give "
                "abort_everywhere a higher limit"
            ) from error
        if error is not None:
            raise error
        if after is not None:
            _complete(after)
    if not watch.checkpoints:
        raise AssertionError("the job comes to no checkpoint: it enters no abortable_run")
    return watch.checkpoints


def _judge(
    watch: Watch, number: int, error: BaseException | None, raises: Raised
) -> list[Violation]:
    """What is wrong with the end of the job."""
    problems = []
    if watch.aborted_at is None:
        ended = "" if error is None else f", as it raised {_told(error)}"
        taken = len(watch.checkpoints)
        problems.append(
            f"this time the job came to {taken} checkpoints only{ended}: they have to be the same "
            "each time"
        )
    elif isinstance(error, DoesNotStop):
        problems.append(f"the job does not stop: {error}")
    elif error is None and raises is not None:
        problems.append(
            "the job returned as if it was not aborted; if it catches RunAborted: raises=None"
        )
    elif error is not None and (raises is None or not isinstance(error, raises)):
        problems.append(f"the job raised {_told(error)}")
    if watch.still_open:
        problems.append(f"the job has ended, but not its work on {', '.join(watch.still_open)}")
    return [Violation(watch.aborted_at, number, problem, error) for problem in problems]


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _noted(watch: Watch) -> Iterator[None]:
    """What is raised gets a note of where the job was aborted."""
    try:
        yield
    except BaseException as error:
        where = "not aborted" if watch.aborted_at is None else f"aborted at {watch.aborted_at}"
        error.add_note(f"the job was {where}")
        raise


def _complete(function: Callable[[], object], *, in_steps: bool = False) -> None:
    """Call it; what it returns, if that is a coroutine, is run in an event loop of its own."""
    result = function()
    if not inspect.iscoroutine(result):
        return
    if database.in_event_loop():
        result.close()
        raise RuntimeError("a coroutine cannot be run in a thread whose event loop runs")
    with asyncio.Runner() as runner:
        if in_steps:
            runner.get_loop().set_task_factory(steps_of)
        runner.run(result)
