from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import logging
import pickle
import queue
import signal as signals
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from operator import call
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from run_abort._core import cpython, exits, interrupts, loops, scope
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.interrupts import Interruption, Shield
from run_abort._core.types import Aborted, Escalation, Event
from run_abort.exceptions import RunAborted
from tests.core.scopes import Block, Core, wait_until
from tests.guards import SWALLOWED_INTERRUPTS, in_event_loop

pytestmark = [
    pytest.mark.usefixtures("no_garbage"),
    SWALLOWED_INTERRUPTS,
]


@pytest.fixture
def quick_cleanups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "CLEANUP_TIME", 0.01)


@pytest.fixture(autouse=True)
def nothing_is_left(core: Core) -> Iterator[None]:
    yield
    assert not interrupts.open_interruptions
    assert interrupts._target() is None


DRIVER = """
def execute():
    global depth
    depth += 1
    for _ in map(str, range(10)):
        receive()
    depth -= 1

def receive():
    for _ in range(3):
        pass
"""


class Worker:
    """A thread that works on ``run-1``; what it raised is kept."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.ended_by: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.ended_by = error

    def join(self) -> BaseException | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.ended_by


def in_c_code(begun: threading.Lock, release: threading.Lock) -> None:
    """Release one lock and wait for the other in a single call, which nothing interrupts."""
    deque(map(call, (begun.release, partial(release.acquire, timeout=20))), maxlen=0)


def locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def abort(core: Core, work: Callable[[], object]) -> BaseException | None:
    """Abort the run once a thread works on it; how that ended."""
    worker = Worker(work)
    core.abort_when_held()
    return worker.join()


def spin(core: Core, grace: float = 0) -> None:
    """Work that does not look at its signal."""
    with core.block("run-1", grace=grace, insist="interrupt"):
        while True:
            pass


class TestThread:
    def test_one_that_does_not_look_is_interrupted(self, core: Core) -> None:
        worker = Worker(partial(spin, core, grace=0.1))
        began = time.monotonic()
        core.abort_when_held()
        raised = worker.join()
        assert time.monotonic() - began >= 0.1
        assert raised is not None
        error = pickle.loads(pickle.dumps(raised))
        assert type(error) is RunAborted
        for each in error, type(raised)(*raised.args):
            assert (each.run_id, each.reason, each.actor) == ("run-1", "because", "ann")
        assert list(core.registry.holders()) == []
        assert core.happened() == ["Aborted", "Escalated", "Left"]
        assert core.escalations() == ["interrupt"]

    def test_forced_the_escalation_is_told_before_the_block_is_left(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        escalated = AbortSignal.escalated

        def after_the_interrupt(signal: AbortSignal, escalation: Escalation) -> None:
            time.sleep(0.02)  # the block is being left meanwhile
            escalated(signal, escalation)

        monkeypatch.setattr(AbortSignal, "escalated", after_the_interrupt)

        assert isinstance(abort(core, partial(spin, core)), RunAborted)
        assert core.happened() == ["Aborted", "Escalated", "Left"]

    @pytest.mark.usefixtures("quick_cleanups")
    def test_one_that_swallows_it_is_interrupted_again(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swallowed = []
        send, may_send = Interruption.send, threading.Event()

        def send_once(interruption: Interruption) -> bool:
            """Not where it would leave the loop: the thread may stand there for long."""
            if not may_send.is_set():
                return False
            may_send.clear()
            was_sent = send(interruption)
            if not was_sent:
                may_send.set()
            return was_sent

        monkeypatch.setattr(Interruption, "send", send_once)

        def work() -> None:
            with core.block("run-1", grace=0.05, insist="interrupt"):
                while True:
                    try:
                        may_send.set()
                        while True:
                            pass
                    except RunAborted as error:
                        swallowed.append(error)
                        if len(swallowed) == 3:
                            raise

        assert isinstance(abort(core, work), RunAborted)
        assert len(swallowed) == 3
        assert core.escalations() == ["interrupt"] * 3

    def test_its_cleanup_is_not_interrupted(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor by the interrupt of a block around it that is due as well."""
        monkeypatch.setattr(interrupts, "CLEANUP_TIME", 0.5)
        took = []

        def work() -> None:
            with core.block("outer", grace=0.2, insist="interrupt"):
                with core.block("run-1", grace=0, insist="interrupt"):
                    began = time.monotonic()
                    try:
                        core.abort("outer")
                        core.abort()
                        while True:
                            pass
                    finally:
                        try:
                            for _ in iter(lambda: time.monotonic() < began + 20, False):
                                pass
                        finally:
                            took.append(time.monotonic() - began)

        error = Worker(work).join()
        assert isinstance(error, RunAborted)
        assert 0.5 <= took[0] < 20
        assert core.escalations()[0] == "interrupt"

    @pytest.mark.usefixtures("quick_cleanups")
    def test_one_in_a_call_of_c_code_is_interrupted_after_it_and_not_said_to_have_stopped(
        self, core: Core, caplog: pytest.LogCaptureFixture
    ) -> None:
        begun, release = locked(), locked()
        steps = []

        def go_on() -> None:
            steps.append("went on")  # pragma: no cover

        def work() -> None:
            with core.block("run-1", grace=0, insist="interrupt"):
                in_c_code(begun, release)
                go_on()  # CPython 3.14 raises it here, others at the end of the call before

        worker = Worker(work)
        assert begun.acquire(timeout=20)
        core.abort()
        wait_until(
            lambda: [each._target.sent is each for each in interrupts.open_interruptions] == [True]
        )
        wait_until(lambda: "Escalated" in core.happened())
        wait_until(lambda: "cannot be interrupted now" in caplog.text)
        assert "Left" not in core.happened()
        release.release()
        assert isinstance(worker.join(), RunAborted)
        assert steps == []
        assert caplog.text.count("cannot be interrupted now") == 1

    def test_one_whose_end_python_skips_is_left(self, core: Core) -> None:
        """CPython 3.11 to 3.13 skip ``except``, ``finally`` and ``with`` around such a loop, if the
        interrupt arrives where it goes round (python/cpython#108214 and #130279)."""
        for _ in range(20):
            steps: list[float] = []

            def work(steps: list[float] = steps) -> None:
                with core.block("run-1", grace=0, insist="interrupt"):
                    steps.append(1.0)
                    while steps[0] < 2:
                        pass

            assert isinstance(abort(core, work), RunAborted)
            assert list(core.registry.holders()) == []
            assert not interrupts.open_interruptions


class TestShield:
    @pytest.mark.parametrize("error", [None, ValueError("within")])
    def test_what_comes_within_is_raised_at_its_end_and_no_error_is_lost(
        self, core: Core, error: ValueError | None
    ) -> None:
        steps: list[str] = []
        inside = threading.Event()

        def work() -> None:
            with core.block("run-1", grace=0, insist="interrupt") as signal:
                with signal.shield(), signal.shield():
                    inside.set()
                    wait_until(lambda: interrupts._target().owed is not None)  # type: ignore[union-attr]
                    steps.append("finished")
                    if error:
                        raise error
                steps.append("went on")

        worker = Worker(work)
        assert inside.wait(20)
        core.abort_when_held()
        aborted = worker.join()
        assert isinstance(aborted, RunAborted)
        assert aborted.__context__ is error
        assert steps == ["finished"]

    def test_one_that_was_sent_before_it_is_taken_back_until_its_end(self, core: Core) -> None:
        """Forced: it is sent while the thread is in C code, from which it comes to the shield."""
        steps: list[str] = []
        release = locked()
        shield = Shield()

        def work() -> None:
            with core.block("run-1", grace=60, insist="interrupt"):
                # A class made by C code, whose call is not followed by a look for interrupts.
                for _ in [None]:
                    release.acquire(timeout=20)
                with shield:
                    steps.append("shielded")
                steps.append("went on")

        worker = Worker(work)
        core.abort_when_held()
        wait_until(lambda: len(interrupts.open_interruptions) == 1)
        (interruption,) = interrupts.open_interruptions
        assert interruption.send()
        assert not interruption.send()  # one at a time
        release.release()
        assert isinstance(worker.join(), RunAborted)
        assert "went on" not in steps

    def test_forced_after_one_was_taken_back_none_is_pending(self, core: Core) -> None:
        """CPython 3.11 would take one for pending, and a thread that is traced would hang."""
        called: list[str] = []

        def trace(frame: FrameType, event: str, value: object) -> None:
            called.append(frame.f_code.co_name)

        def work() -> None:
            sys.settrace(trace)
            locked()
            sys.settrace(None)

        with core.block("run-1", grace=60, insist="interrupt"):
            (interruption,) = interrupts.open_interruptions
            interruption._target.sent = interruption  # and the thread overlooks it
            with pytest.raises(RunAborted), Shield():
                pass
        worker = Worker(work)
        worker._thread.join(5)
        hangs = worker._thread.is_alive()
        cpython.take_back()  # otherwise it would hang for ever
        worker.join()
        assert not hangs
        assert called == ["locked"]

    def test_forced_one_that_arrives_as_it_takes_its_lock_leaves_that_free(
        self, core: Core
    ) -> None:
        """In CPython 3.14 it may arrive within a with statement, but before the body."""

        def work() -> None:
            with core.block("run-1", grace=3600, insist="interrupt") as signal:
                signal.wait(20)
                with Shield():
                    pass
                while True:
                    pass

        def is_waiting() -> bool:
            return sys._current_frames()[interruption.ident].f_code is Shield.put_up.__code__

        worker = Worker(work)
        wait_until(core.registry.holders)
        wait_until(lambda: interrupts.open_interruptions)
        (interruption,) = interrupts.open_interruptions
        lock = interruption._target.lock
        with lock:
            core.abort()
            wait_until(is_waiting)
            assert interruption.send()
        assert isinstance(worker.join(), RunAborted)
        assert lock.acquire(timeout=5)
        lock.release()

    def test_forced_an_abort_by_the_thread_itself_is_finished_first(self, core: Core) -> None:
        """Else locks that all threads need could stay locked for ever."""
        steps: list[str] = []

        def linger(event: Event) -> None:
            if isinstance(event, Aborted):
                wait_until(lambda: interrupts._target().owed is not None)  # type: ignore[union-attr]
                steps.append("emitted")

        def work() -> None:
            with core.block(grace=0, insist="interrupt"):
                core.abort()
                steps.append("went on")

        core.registry.events.add(linger)
        assert isinstance(Worker(work).join(), RunAborted)
        assert steps == ["emitted"]

    def test_forced_a_signal_handler_may_abort_while_its_thread_puts_one_up(
        self, core: Core
    ) -> None:
        aborted: list[int] = []

        def handle(number: int, frame: FrameType | None) -> None:
            aborted.append(core.abort("other"))

        before = signals.signal(signals.SIGUSR1, handle)
        try:
            with pytest.raises(RunAborted), core.block("other"):
                with core.block(insist="interrupt"):
                    target = interrupts._target()
                    assert target is not None
                    with target.lock:  # as the thread has it for a moment
                        signals.raise_signal(signals.SIGUSR1)
                        assert aborted == [1]
        finally:
            signals.signal(signals.SIGUSR1, before)

    def test_forced_one_that_is_sent_while_its_block_is_left_never_arrives(self) -> None:
        looked, closed = threading.Event(), threading.Event()

        class Slow(Interruption):
            def is_due(self) -> bool:
                is_due = super().is_due()
                looked.set()
                return closed.wait(20) and is_due

        interruption = Slow(RunAborted)
        interruption.open()
        shield = Shield()
        shield.put_up()
        sender = threading.Thread(target=interruption.send)
        sender.start()
        assert looked.wait(20)
        interruption.close()
        closed.set()
        shield.take_down()
        sender.join()
        assert interruption._target.owed is None

    def test_one_that_was_lost_protects_no_later_block(self, core: Core) -> None:
        """The exception of a signal handler can keep one from being taken down."""

        def work() -> None:
            with core.block("run-1", insist="interrupt"):
                Shield().put_up()
            with core.block("run-2", grace=0, insist="interrupt"):
                core.abort("run-2")
                give_up = time.monotonic() + 20
                while time.monotonic() < give_up:
                    pass
                pytest.fail("It was not interrupted")

        assert isinstance(Worker(work).join(), RunAborted)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can, so an interrupt is sent at any of their steps."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def interrupt_at_any_moment(core: Core, work: Callable[[], object]) -> None:
    """Interrupt a thread that is in the midst of ``work``, which it repeats."""

    def repeat() -> None:
        with core.block("run-1", grace=3600, insist="interrupt"):
            while True:
                work()

    worker = Worker(repeat)
    core.abort_when_held()
    (interruption,) = interrupts.open_interruptions
    while not interruption.send():
        pass
    assert isinstance(worker.join(), RunAborted)


@pytest.mark.usefixtures("switching")
class TestStatements:
    def test_none_arrives_within_one(self, core: Core) -> None:
        """Interrupted at any moment of a loop that nearly always is in a database driver."""
        for _ in range(50):
            driver = {"__name__": "psycopg.tests", "depth": 0}
            exec(DRIVER, driver)

            def work(execute: Callable[[], None] = driver["execute"]) -> None:
                execute()
                for _ in range(200):
                    pass

            interrupt_at_any_moment(core, work)
            assert driver["depth"] == 0


Uses = tuple[Callable[[], object], Callable[[], bool]]


def puts() -> Uses:
    items: queue.Queue[int] = queue.Queue()
    return partial(items.put, 1), lambda: not items.mutex.locked()


def gets() -> Uses:
    items: queue.Queue[int] = queue.Queue()

    def use() -> None:
        items.queue.append(1)  # not by put(): here only get() takes the lock
        items.get()

    return use, lambda: not items.mutex.locked()


def waits() -> Uses:
    lock = threading.Lock()
    condition = threading.Condition(lock)

    def use() -> None:
        with condition:
            condition.wait(0)

    return use, lambda: not lock.locked()


def takes_turns() -> Uses:
    turns = threading.Semaphore()

    def use() -> None:
        with turns:
            sum(range(20))

    return use, lambda: turns.acquire(blocking=False)


class Counted:
    count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *args: object) -> None:
        self.count -= 1

    def close(self) -> None:
        self.count -= 1

    def release(self, by: int, /, *more: int, sure: bool, **named: int) -> None:
        self.count -= by if sure and more and named else 0


class Taken(Counted):
    """Of the project's own. Its ``__exit__`` does not begin with the first instruction."""

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)


def enters() -> Uses:
    taken = Taken()

    def use() -> None:
        with taken:
            sum(range(20))

    return use, lambda: taken.count == 0


def takes_and_gives_back(taken: Taken, give_back: Callable[[], None]) -> Uses:
    def use() -> None:
        taken.count += 1
        try:
            sum(range(20))
        finally:
            give_back()

    return use, lambda: taken.count == 0


def closes() -> Uses:
    taken = Taken()
    return takes_and_gives_back(taken, taken.close)


def releases() -> Uses:
    taken = Taken()
    return takes_and_gives_back(taken, partial(taken.release, 1, 2, sure=True, name=3))


class TestLocks:
    """Those that nearly all threads of a process share."""

    def test_one_that_waits_for_the_lock_of_a_log_handler_leaves_it_free(self, core: Core) -> None:
        handler = logging.StreamHandler(io.StringIO())
        record = logging.makeLogRecord({})
        self.check(core, handler.lock, lambda: handler.handle(record))

    def test_one_that_waits_for_the_lock_of_a_queue_leaves_it_free(self, core: Core) -> None:
        items: queue.Queue[int] = queue.Queue()
        self.check(core, items.mutex, lambda: items.put(1))

    def test_one_that_waits_for_an_import_lets_others_import(
        self, core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "slow_module.py").write_text("import time; time.sleep(0.6)")
        monkeypatch.syspath_prepend(str(tmp_path))

        def work() -> None:
            with core.block("run-1", grace=0, insist="interrupt"):
                while True:
                    importlib.import_module("slow_module")

        def use() -> None:
            importlib.import_module("slow_module")

        first = Worker(use)
        wait_until(lambda: "slow_module" in sys.modules)
        worker = Worker(work)
        core.abort_when_held()
        time.sleep(0.1)
        assert Worker(use).join() is first.join() is None
        assert isinstance(worker.join(), RunAborted)

    @pytest.mark.usefixtures("switching")
    @pytest.mark.parametrize("uses", [puts, gets, waits, takes_turns, enters, closes, releases])
    def test_one_that_uses_them_leaves_them_free(
        self, core: Core, uses: Callable[[], Uses]
    ) -> None:
        for _ in range(100):
            use, is_free = uses()
            interrupt_at_any_moment(core, use)
            assert is_free()

    @pytest.mark.usefixtures("quick_cleanups")
    @pytest.mark.parametrize("name", ["__exit__", "close", "release"])
    def test_what_gives_back_and_does_not_come_to_an_end_is_interrupted(
        self, core: Core, name: str
    ) -> None:
        namespace: dict[str, Any] = {"sleep": time.sleep}
        exec(f"def {name}():\n    while True:\n        sleep(0.001)", namespace)

        def work() -> None:
            with core.block("run-1", grace=0, insist="interrupt"):
                namespace[name]()

        assert isinstance(abort(core, work), RunAborted)

    @staticmethod
    def check(core: Core, lock: Any, use: Callable[[], object]) -> None:
        def work() -> None:
            with core.block("run-1", grace=0, insist="interrupt"):
                while True:
                    use()

        with lock:
            worker = Worker(work)
            core.abort_when_held()
            time.sleep(0.3)  # several attempts
        assert isinstance(worker.join(), RunAborted)
        is_free = lock.acquire(timeout=1)
        assert is_free
        lock.release()


class TestLoop:
    """An event loop runs in the thread of the block."""

    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However slow the machine is, the loop is not taken for one that is held up."""
        monkeypatch.setattr(loops, "PATIENCE", 60)

    @pytest.fixture
    def loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """Made and closed outside of the block: interrupted there, it would leave sockets open."""
        with closing(asyncio.new_event_loop()) as loop:
            yield loop

    @pytest.fixture
    def abort_within(
        self, core: Core, loop: asyncio.AbstractEventLoop
    ) -> Callable[[Callable[[AbortSignal], Awaitable[None]]], BaseException | None]:
        """Abort the run once a coroutine function of the block was called; how the block ended."""

        def abort(main: Callable[[AbortSignal], Awaitable[None]]) -> BaseException | None:
            begun = threading.Event()

            async def begin(signal: AbortSignal) -> None:
                begun.set()
                await main(signal)

            def work() -> None:
                with core.block("run-1", grace=0, insist="interrupt") as signal:
                    loop.run_until_complete(begin(signal))

            worker = Worker(work)
            assert begun.wait(20)
            core.abort()
            return worker.join()

        return abort

    def test_one_that_waits_is_interrupted_at_once(self, core: Core, abort_within: Any) -> None:
        ended_by = []

        async def main(signal: AbortSignal) -> None:
            try:
                await asyncio.sleep(60)
            except BaseException as error:
                ended_by.append(type(error))
                await asyncio.sleep(0.01)  # the cleanup may await
                ended_by.append(type(error))
                raise

        assert type(abort_within(main)) is RunAborted
        assert ended_by == [asyncio.CancelledError] * 2
        assert core.happened() == ["Aborted", "Escalated", "Left"]
        assert core.escalations() == ["interrupt"]

    def test_no_callback_of_the_loop_is_hit(self, abort_within: Any) -> None:
        """The loop would log the exception, and the task would wait for ever."""

        def wake(waiting: asyncio.Future[None], signal: AbortSignal) -> None:
            assert signal.wait(20)
            until = time.monotonic() + 0.1  # an interrupt comes meanwhile
            while time.monotonic() < until:
                pass
            waiting.set_result(None)

        async def main(signal: AbortSignal) -> None:
            loop = asyncio.get_running_loop()
            waiting: asyncio.Future[None] = loop.create_future()
            loop.call_soon(wake, waiting, signal)
            await asyncio.shield(waiting)  # the cancellation may come first
            await asyncio.sleep(60)

        assert isinstance(abort_within(main), RunAborted)

    def test_a_coroutine_that_does_not_await_is_interrupted(
        self, abort_within: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loops, "PATIENCE", 0.01)

        async def main(signal: AbortSignal) -> None:
            while True:
                pass

        assert isinstance(abort_within(main), RunAborted)

    def test_a_shield_delays_it(self, abort_within: Any) -> None:
        saved = []

        async def main(signal: AbortSignal) -> None:
            with signal.shield():
                while not signal.aborted:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.2)
                saved.append(signal.run_id)
            await asyncio.sleep(60)

        assert isinstance(abort_within(main), RunAborted)
        assert saved == ["run-1"]

    @pytest.mark.usefixtures("quick_cleanups")
    def test_one_that_swallows_it_is_interrupted_again(self, abort_within: Any) -> None:
        swallowed = []

        async def main(signal: AbortSignal) -> None:
            while len(swallowed) < 2:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError as error:
                    swallowed.append(error)
            await asyncio.sleep(60)

        assert isinstance(abort_within(main), RunAborted)
        assert len(swallowed) == 2

    def test_a_cancellation_of_its_own_stays_one(self, core: Core) -> None:
        def work() -> None:
            with core.block("run-1", grace=60, insist="interrupt") as signal:
                assert signal.wait(20)
                raise asyncio.CancelledError

        assert type(abort(core, work)) is asyncio.CancelledError


class TestNested:
    @pytest.mark.parametrize("inner", [(), "interrupt"])
    def test_the_inner_block_is_left_properly(self, core: Core, inner: Any) -> None:
        def work() -> None:
            with core.block("outer", grace=0, insist="interrupt"):
                while True:
                    with core.block("run-1", insist=inner):
                        pass

        worker = Worker(work)
        core.abort_when_held("outer")
        error = worker.join()
        assert isinstance(error, RunAborted)
        assert error.run_id == "outer"
        assert list(core.registry.holders()) == []

    def test_one_for_the_outer_that_comes_while_the_inner_begins_leaves_nothing(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Forced: it is sent when there are the means to interrupt the inner one."""
        made = []

        class Slow(Interruption):
            __slots__ = ()

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)
                if len(made) == 2:
                    core.abort_when_held("outer")
                    wait_until(lambda: self._target.owed is made[0])

        monkeypatch.setattr(scope, "Interruption", Slow)

        def work() -> None:
            with core.block("outer", grace=0, insist="interrupt"):
                with core.block("run-1", insist="interrupt"):
                    pytest.fail("not reached")

        error = Worker(work).join()
        assert isinstance(error, RunAborted)
        assert error.run_id == "outer"
        assert list(core.registry.holders()) == []

    def test_the_inner_one_alone_is_interrupted(self, core: Core) -> None:
        outcome = []

        def work() -> None:
            with core.block("outer", grace=0, insist="interrupt"):
                try:
                    with core.block("run-1", grace=0, insist="interrupt"):
                        while True:
                            pass
                except RunAborted as error:
                    outcome.append(error.run_id)

        assert abort(core, work) is None
        assert outcome == ["run-1"]


@contextmanager
def within_a_stack(block: Block) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(block)
        yield


class TestLook:
    """``__exit__`` is looked up by others than the ``with`` statement, such as a debugger."""

    @pytest.mark.parametrize("enter", [None, within_a_stack])
    def test_before_the_block_it_changes_nothing(self, core: Core, enter: Any) -> None:
        def work() -> None:
            block = core.block("run-1", grace=0, insist="interrupt")
            inspect.getmembers(block)
            with block if enter is None else enter(block):
                while True:
                    pass

        assert isinstance(abort(core, work), RunAborted)
        assert core.escalations() == ["interrupt"]

    def test_within_the_block_it_does_not_leave_it(self, core: Core) -> None:
        def work() -> None:
            with (block := core.block("run-1", grace=0, insist="interrupt")):
                inspect.getmembers(block)
                with pytest.raises(RuntimeError, match="was entered before"), block:
                    pass
                assert core.holders() == 1
                while True:
                    pass

        assert isinstance(abort(core, work), RunAborted)
        assert core.escalations() == ["interrupt"]


class TestMadeBefore:
    """A block that was made before the block around it could be interrupted."""

    HITS = 300

    def work(self, core: Core, blocks: list[Block], ended: list[int]) -> None:
        with core.block("outer", grace=0, insist="interrupt"):
            core.abort("outer")
            for block in blocks:
                with block:
                    pass
                ended.append(1)
            while True:
                pass

    def test_interrupted_as_it_begins_or_ends_it_leaves_the_registry(self, core: Core) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        hits, count = 0, 500
        try:
            while hits < self.HITS:
                blocks = [core.block(f"inner-{number}") for number in range(count)]
                ended: list[int] = []
                error = Worker(partial(self.work, core, blocks, ended)).join()
                assert isinstance(error, RunAborted)
                assert error.run_id == "outer"
                assert list(core.registry.holders()) == []
                assert not interrupts.open_interruptions
                is_hit = len(ended) < len(blocks)
                hits += is_hit
                count = max(count // 2, 500) if is_hit else 2 * count
        finally:
            sys.setswitchinterval(interval)


def test_none_follows_while_a_block_is_left_by_its_guard(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: the next one is sent as soon as none may be."""
    block = core.block("run-1", grace=60, insist="interrupt")
    sent: list[bool] = []

    def hold_off_and_send(**options: bool) -> None:
        interrupts.hold_off(**options)
        assert block._interruption is not None
        sent.append(block._interruption.send())

    monkeypatch.setattr(scope, "hold_off", hold_off_and_send)

    def work() -> None:
        with block:
            block.abandon()

    assert Worker(work).join() is None
    assert sent == [False]
    assert list(core.registry.holders()) == []
    assert not interrupts.open_interruptions


def test_forced_none_is_sent_to_a_block_whose_leaving_one_has_just_hit(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives in what is about to put the shield up. Another thread has seen the block open."""
    block = core.block("run-1", grace=60, insist="interrupt")
    thread = threading.get_ident()
    looked = threading.Event()
    sent_to_open: list[bool] = []

    def hit(shield: Shield) -> RunAborted | None:
        monkeypatch.setattr(scope, "put_up", exits.put_up)
        threading.Thread(target=interruption.send).start()
        assert looked.wait(20)
        raise RunAborted("run-1")

    def slow_is_due(self: Interruption) -> bool:
        looked.set()
        waits = Shield.put_up.__code__
        wait_until(lambda: not self.is_open or sys._current_frames()[thread].f_code is waits)
        return True

    def send(ident: int, exception: type[RunAborted], **options: bool) -> bool:
        sent_to_open.append(interruption.is_open)
        return True

    monkeypatch.setattr(scope, "put_up", hit)
    monkeypatch.setattr(Interruption, "is_due", slow_is_due)
    monkeypatch.setattr(interrupts, "raise_outside_of_statements", send)
    with pytest.raises(RunAborted), block:
        interruption = block._interruption
        assert interruption is not None
    wait_until(lambda: sent_to_open)
    assert sent_to_open == [True]


def test_forced_one_that_was_sent_as_entering_failed_is_taken_back(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to CPython 3.12 the thread may overlook it until then; here it always does."""
    taken_back: list[object] = []

    class Failing(Block):
        def _look(self, controller: AbortController) -> None:
            raise ValueError

        def abandon(self, **options: bool) -> None:
            assert self._interruption is not None
            assert self._interruption.send()
            super().abandon(**options)

    monkeypatch.setattr(interrupts, "raise_outside_of_statements", lambda *args, **options: True)
    monkeypatch.setattr(
        interrupts, "take_back", lambda: taken_back.append(threading.current_thread())
    )
    with pytest.raises(ValueError, match="^$"), Failing(core, "run-1", insist="interrupt"):
        pytest.fail("It was entered")
    assert taken_back == [threading.current_thread()]


@pytest.mark.parametrize("is_postponed", [True, False])
def test_forced_none_is_sent_while_one_is_raised_by_the_thread_itself(
    monkeypatch: pytest.MonkeyPatch, is_postponed: bool
) -> None:
    """Up to CPython 3.12 the thread may overlook it, and then it would come after the block."""
    sent: list[bool] = []

    class Raised(Interruption):
        def raised(self) -> type[RunAborted]:
            if not sent:
                sent.append(True)
                sent.append(self.send())
            return super().raised()

    monkeypatch.setattr(interrupts, "raise_outside_of_statements", lambda *args, **options: True)
    interruption = Raised(lambda: RunAborted("run-1"))
    interruption.open()
    try:
        if is_postponed:
            with pytest.raises(RunAborted), Shield():
                assert interruption.send()
        else:
            with pytest.raises(RunAborted):
                interruption.raise_if_due()
    finally:
        interruption.close()
    assert sent == [True, False]


def test_none_follows_while_the_first_notes_its_arrival(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    obey = Interruption._obey
    sent: list[bool | None] = [None]

    def send_and_obey(interruption: Interruption) -> None:
        if sent == [None]:
            sent[0] = True  # one that arrives at once comes here again
            sent[0] = interruption.send()
        obey(interruption)

    monkeypatch.setattr(Interruption, "_obey", send_and_obey)

    assert isinstance(abort(core, partial(spin, core)), RunAborted)
    assert sent == [False]


class TestStack:
    """Blocks of an ``ExitStack``, which may lose them, inside a block that is interrupted."""

    class Stack(ExitStack):
        """The interrupt arrives when the block was entered and is not on the stack yet."""

        def _push_exit_callback(self, *args: Any) -> None:
            interrupt_outermost()
            super()._push_exit_callback(*args)  # type: ignore[misc]

    class Late(Block):
        """The interrupt arrives when it is no longer on the stack and was not left yet."""

        __slots__ = ()

        def __exit__(self, *exc_info: object) -> None:
            interrupt_outermost()
            super().__exit__(*exc_info)

    @pytest.mark.parametrize("insist", [(), "interrupt"])
    @pytest.mark.parametrize(("stack", "block"), [(Stack, Block), (ExitStack, Late)])
    def test_forced_one_that_it_loses_is_left_with_the_block_around_it(
        self, core: Core, stack: type[ExitStack], block: type[Block], insist: Any
    ) -> None:
        def work() -> None:
            with core.block("outer", grace=60, insist="interrupt"):
                core.abort("outer")
                with stack() as entered:
                    entered.enter_context(block(core, "inner", insist=insist))
                pytest.fail("not reached")

        error = Worker(work).join()
        assert isinstance(error, RunAborted)
        assert error.run_id == "outer"
        assert list(core.registry.holders()) == []
        assert not interrupts.open_interruptions

    def test_one_of_a_stack_around_the_block_is_left_with_its_stack(self, core: Core) -> None:
        with ExitStack() as stack:
            with pytest.raises(ValueError, match="within"):
                with core.block("outer", insist="interrupt"):
                    stack.enter_context(core.block("inner"))
                    raise ValueError("within")
            assert list(core.registry.holders()) == ["inner"]


def interrupt_outermost() -> None:
    assert next(iter(interrupts.open_interruptions)).send()


class TestTask:
    @pytest.mark.usefixtures("quick_cleanups")
    def test_one_that_swallows_its_cancellation_is_cancelled_again(self, core: Core) -> None:
        swallowed = []

        async def work() -> None:
            async with core.block("run-1", grace=0.05, insist="cancel"):
                while len(swallowed) < 3:
                    try:
                        await asyncio.sleep(20)
                    except asyncio.CancelledError as error:
                        swallowed.append(error)
                await asyncio.sleep(20)

        async def main() -> int:
            task = asyncio.ensure_future(work())
            while "run-1" not in list(core.registry.holders()):
                await asyncio.sleep(0)
            core.abort_when_held()
            with pytest.raises(RunAborted):
                await task
            return task.cancelling()

        assert asyncio.run(main()) == 0
        assert len(swallowed) == 3
        # Two that come while the loop is busy are swallowed as one.
        wait_until(lambda: len(core.escalations()) >= 3)
        assert set(core.escalations()) == {"cancel"}

    @in_event_loop
    async def test_one_that_leaves_is_cancelled_once(self, core: Core) -> None:
        with pytest.raises(RunAborted):
            async with core.block("run-1", grace=60, insist="cancel"):
                core.abort_when_held()
                await asyncio.sleep(20)
        await asyncio.sleep(0)
        assert not core.escalator._agenda
        assert core.happened() == ["Aborted", "Left"]


class TestArguments:
    def test_a_thread_is_interrupted_and_a_task_cancelled(self, core: Core) -> None:
        async def asynchronous() -> None:
            async with core.block("run-1", insist="interrupt"):
                pass

        async def synchronous() -> None:
            with core.block("run-1", insist="interrupt"):
                pass

        for wrong in (asynchronous, synchronous):
            with pytest.raises(RuntimeError, match="takes insist="):
                asyncio.run(wrong())
        with pytest.raises(RuntimeError, match="takes insist='interrupt' only"):
            with core.block("run-1", insist="cancel"):
                pass
        assert list(core.registry.holders()) == []

    def test_a_python_without_its_global_lock_is_refused(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        with pytest.raises(RuntimeError, match="without its global lock"):
            with core.block("run-1", insist="interrupt"):
                pytest.fail("not reached")
        assert list(core.registry.holders()) == []
        with core.block("run-1"):
            pass

    def test_a_greenlet_is_refused(self, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("threading.get_ident", lambda: 1)  # as gevent and eventlet do
        with core.block("run-1"):
            pass
        with pytest.raises(RuntimeError, match="a greenlet cannot be interrupted"):
            with core.block("run-1", insist="interrupt"):
                pass
        assert list(core.registry.holders()) == []

    def test_on_entering_the_stacks_of_threads_are_not_asked_for(
        self, core: Core, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Garbage that is collected amid that may wait for ever, in CPython 3.11."""
        monkeypatch.delattr(sys, "_current_frames")
        with core.block("run-1", insist="interrupt"):
            pass

    def test_both_may_be_named(self, core: Core) -> None:
        both: Any = ("cancel", "interrupt")
        with core.block("run-1", insist=both):
            pass

        async def main() -> None:
            async with core.block("run-1", insist=both):
                pass

        asyncio.run(main())

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"insist": "kill"}, ValueError),
            ({"insist": ["interrupt", "x"]}, ValueError),
            ({"insist": 7}, TypeError),
            ({"insist": [7]}, TypeError),
            ({"grace": -1}, ValueError),
            ({"grace": None}, TypeError),
        ],
    )
    def test_wrong_ones(self, core: Core, arguments: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            core.block("run-1", **arguments)


def test_one_that_could_not_be_left_is_left_by_the_escalator_and_never_interrupted(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a second interrupt had hit what is done when the first prevented ``__exit__``."""
    block = core.block("run-1", grace=0, insist="interrupt")
    held = block.__exit__  # as a with statement gets hold of it
    block.__enter__()
    monkeypatch.setattr(exits._Guard, "__del__", lambda self: None)
    del held
    core.abort_when_held()
    wait_until(lambda: list(core.registry.holders()) == [])
    assert not interrupts.open_interruptions
    time.sleep(0.1)  # nothing arrives here


def test_an_interruption_of_a_thread_that_ended_inside_hits_nobody() -> None:
    made: list[Interruption] = []
    thread = threading.Thread(target=lambda: made.append(Interruption(RunAborted)))
    thread.start()
    thread.join()
    assert made[0].send() is False
    made[0].close()


def test_forced_an_interrupt_while_the_guard_is_made_is_not_a_traceback() -> None:
    guard = exits._Guard.__new__(exits._Guard)
    del guard  # pytest would report what cannot be raised


def test_one_that_arrives_after_its_block_does_not_put_off_the_next() -> None:
    """CPython makes its exception later than it leaves the ``with`` statement."""
    late = Interruption(RunAborted)
    late.open()
    late.close()
    assert isinstance(late.arrive(), RunAborted)
    assert not late._target.is_obeying()
