from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from run_abort._concurrency import service as services
from run_abort._concurrency.service import Life, Service
from tests.core.scopes import TIMEOUT, wait_until
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.guards import no_thread

NAME = "run_abort-test"


class Loop:
    """The work of a service: it pauses until it is to stop, and keeps count of its lives."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.rounds = 0
        self.service = Service(NAME, self.run)

    def run(self, life: Life) -> None:
        self.lives.append(life)
        while not life.stopping:
            self.rounds += 1
            life.pause(TIMEOUT)

    def begun(self, count: int) -> None:
        wait_until(lambda: len(self.lives) == count)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert loop.service.stop()


def threads() -> int:
    return [thread.name for thread in threading.enumerate()].count(NAME)


def forks(service: Service) -> None:
    """What happens in the process that forks."""
    service.before_fork()
    if service.after_fork():
        service.start()


class TestStart:
    def test_there_is_one_thread(self, loop: Loop) -> None:
        assert not loop.service.is_running
        callers = [threading.Thread(target=loop.service.start) for _ in range(10)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        loop.service.ensure_started()
        loop.begun(1)
        assert threads() == 1
        assert loop.service.is_running
        assert loop.service.is_current(loop.lives[0])

    def test_it_wakes_the_thread_that_rests(self, loop: Loop) -> None:
        loop.service.start(rest=TIMEOUT)
        assert loop.service.start(rest=1)
        assert loop.service.is_running
        assert loop.lives == []
        loop.service.start()
        loop.begun(1)

    @pytest.mark.parametrize("method", ["start", "__init__"])
    def test_where_no_thread_can_be_started_it_says_so(
        self, loop: Loop, method: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with no_thread(method):
            assert not loop.service.start()
        assert not loop.service.is_running
        assert "can't start new thread" in caplog.text
        assert loop.service.start()
        loop.begun(1)

    def test_where_no_thread_can_be_started_the_log_may_want_one_too(
        self, loop: Loop, break_log: Callable[[], None]
    ) -> None:
        break_log()
        with no_thread():
            assert not loop.service.start()

    @pytest.mark.parametrize("has_begun", [False, True])
    def test_forced_a_signal_handler_that_raises_meanwhile_does_not_end_it_for_good(
        self, loop: Loop, has_begun: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            if has_begun:
                start(thread)
            raise HandlerError

        with monkeypatch.context() as patch, pytest.raises(HandlerError):
            patch.setattr(threading.Thread, "start", interrupted)
            loop.service.ensure_started()
        assert loop.service.ensure_started()
        wait_until(lambda: any(map(loop.service.is_current, loop.lives)))
        wait_until(lambda: threads() == 1)


class TestStop:
    def test_it_ends_the_thread_and_another_life_may_begin(self, loop: Loop) -> None:
        loop.service.start()
        loop.begun(1)
        assert loop.service.stop()
        assert loop.service.stop()
        assert threads() == 0
        assert not loop.service.is_running
        assert not loop.service.is_current(loop.lives[0])
        loop.service.start()
        loop.begun(2)

    def test_one_that_rests_never_runs(self, loop: Loop) -> None:
        loop.service.start(rest=TIMEOUT)
        assert loop.service.stop()
        assert loop.lives == []

    def test_it_ends_a_wait_that_is_no_pause(self) -> None:
        waiting, released = threading.Event(), threading.Event()

        def run(life: Life) -> None:
            life.on_stop = released.set
            waiting.set()
            assert released.wait(TIMEOUT)

        service = Service(NAME, run)
        service.start()
        assert waiting.wait(TIMEOUT)
        assert service.stop()


@pytest.mark.parametrize("method", ["stop", "before_fork"])
def test_the_thread_ends_although_a_signal_handler_raises_at_any_step(
    loop: Loop, method: str
) -> None:
    stop = getattr(loop.service, method)

    def attempt(steps: Steps) -> None:
        begun = len(loop.lives)
        loop.service.start()
        loop.begun(begun + 1)  # to stop a thread that has not begun takes fewer steps
        with suppress(HandlerError), steps.taken():
            stop()
        loop.service.after_fork()
        loop.service.stop()
        for life in loop.lives:
            life.wake()  # it would look by itself, later
        wait_until(lambda: threads() == 0)

    assert at_each_step(fail, attempt) > 4


def test_one_that_raises_goes_on_although_the_log_raises_too(
    break_log: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "RETRY_DELAY", 0.01)
    lives: list[Life] = []

    def run(life: Life) -> None:
        lives.append(life)
        if len(lives) < 3:
            raise ValueError
        life.pause(TIMEOUT)

    break_log()
    service = Service(NAME, run)
    service.start()
    wait_until(lambda: len(lives) == 3)
    assert service.is_running
    assert service.stop()
    assert len(set(lives)) == 1


class TestRetire:
    """The thread ends itself; work that comes meanwhile is not left undone."""

    def retiring(self, is_needed: Callable[[], bool]) -> tuple[Service, list[bool]]:
        outcomes: list[bool] = []

        def run(life: Life) -> None:
            while not life.stopping:
                outcomes.append(service.retire(life, is_needed))
                if outcomes[-1]:
                    return
                life.pause(TIMEOUT)

        service = Service(NAME, run)
        return service, outcomes

    def test_forced_a_start_while_it_retires_leaves_one_thread(self) -> None:
        """The start comes between the thread's resignation and its last look."""
        needed = [False]

        def is_needed() -> bool:
            if not needed[0]:
                needed[0] = True
                assert not service.is_running
                assert service.start()
            return True

        service, outcomes = self.retiring(is_needed)
        service.start()
        wait_until(lambda: sorted(outcomes) == [False, True] and threads() == 1)
        assert service.is_running
        assert service.stop()

    def test_forced_a_fork_while_it_retires_ends_it_until_the_fork_is_over(self) -> None:
        """The fork has seen no thread that it could stop: so none may go on."""

        def is_needed() -> bool:
            service.before_fork()
            return True

        service, outcomes = self.retiring(is_needed)
        service.start()
        wait_until(lambda: outcomes == [True] and threads() == 0)
        assert service.after_fork() is True

    def test_under_load_no_work_is_left_undone(self) -> None:
        work: list[int] = []
        done: list[int] = []

        def run(life: Life) -> None:
            while not life.stopping:
                while work:
                    done.append(work.pop())
                if service.retire(life, lambda: bool(work)):
                    return

        service = Service(NAME, run)
        for number in range(3000):
            work.append(number)
            service.ensure_started()
        wait_until(lambda: len(done) == 3000)
        wait_until(lambda: threads() == 0)


class TestFork:
    def test_none_before_is_none_after(self, loop: Loop) -> None:
        forks(loop.service)
        assert not loop.service.is_running
        loop.service.before_fork()
        assert loop.service.after_fork_in_child() is False
        assert not loop.service.is_running

    def test_a_start_while_forking_waits_until_the_last_fork_is_over(self, loop: Loop) -> None:
        loop.service.before_fork()
        loop.service.before_fork()
        assert loop.service.start()
        assert threads() == 0
        assert loop.service.after_fork() is False
        assert loop.service.start()
        assert threads() == 0
        assert loop.service.after_fork() is True
        loop.service.start()
        loop.begun(1)

    def test_a_wake_while_forking_ends_the_first_pause_after_it(self) -> None:
        rounds: list[int] = []

        def run(life: Life) -> None:
            while not life.stopping:
                life.pause(None)
                rounds.append(1)

        service = Service(NAME, run)
        service.start()
        service.before_fork()
        ended = len(rounds)
        assert service.ensure_started()
        service.wake()
        assert service.after_fork() is True
        service.start()
        wait_until(lambda: len(rounds) == ended + 1)
        assert service.stop()

    def test_a_fork_that_was_not_announced_does_not_keep_it_from_starting(self, loop: Loop) -> None:
        assert loop.service.after_fork() is False
        assert loop.service.start()
        loop.begun(1)

    def test_a_stop_while_forking_is_final(self, loop: Loop) -> None:
        loop.service.start()
        loop.begun(1)
        loop.service.before_fork()
        loop.service.stop()
        assert loop.service.after_fork() is False
        assert not loop.service.is_running

    def test_the_child_is_told_whether_the_parent_had_a_thread(self, loop: Loop) -> None:
        loop.service.start()
        loop.begun(1)
        loop.service.before_fork()
        loop.service._lock.acquire()  # as if another thread had held it at the fork
        assert loop.service.after_fork_in_child() is True
        assert loop.service.start()
        assert not loop.service.is_running  # not before all parts of the child are renewed
        assert loop.service.after_fork() is True
        loop.service.start()
        loop.begun(2)
        assert loop.service.after_fork_in_child() is True  # where no hook was called before
        assert loop.service.after_fork() is False  # nobody has started it in the child
        assert not loop.service.is_running
        assert loop.lives[1].stopping
        loop.lives[1].wake()

    def test_one_that_is_busy_is_left_alone_and_does_not_begin_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(services, "JOIN_TIMEOUT", 0.01)
        busy, released = threading.Event(), threading.Event()
        lives: list[Life] = []

        def run(life: Life) -> None:
            lives.append(life)
            busy.set()
            while not life.stopping or len(lives) == 1:
                if released.wait(0.01):
                    return

        service = Service(NAME, run)
        service.start()
        assert busy.wait(TIMEOUT)
        service.before_fork()
        assert "busy" in caplog.text
        assert not service.is_current(lives[0])
        assert service.after_fork()
        service.start()
        wait_until(lambda: len(lives) == 2)
        assert service.is_current(lives[1])
        released.set()
        assert service.stop()

    def test_forced_two_forks_at_once_both_wait_for_its_end(self) -> None:
        began, ending, released = (threading.Event() for _ in range(3))
        alive_at_fork: list[int] = []

        def run(life: Life) -> None:
            began.set()
            while not life.stopping:
                life.pause(TIMEOUT)
            ending.set()
            assert released.wait(TIMEOUT)

        def fork() -> None:
            service.before_fork()
            alive_at_fork.append(threads())

        service = Service(NAME, run)
        service.start()
        assert began.wait(TIMEOUT)
        forking = [threading.Thread(target=fork) for _ in range(2)]
        forking[0].start()
        assert ending.wait(TIMEOUT)
        forking[1].start()
        forking[1].join(0.05)
        assert forking[1].is_alive()
        released.set()
        for thread in forking:
            thread.join()
        assert alive_at_fork == [0, 0]
        assert [service.after_fork() for _ in range(2)] == [False, True]

    def test_forced_a_fork_waits_for_the_end_of_a_thread_that_has_retired(self) -> None:
        retired, released = threading.Event(), threading.Event()

        def run(life: Life) -> None:
            assert service.retire(life, lambda: False)
            retired.set()
            assert released.wait(TIMEOUT)

        service = Service(NAME, run)
        service.start()
        assert retired.wait(TIMEOUT)
        threading.Timer(0.05, released.set).start()
        service.before_fork()
        assert threads() == 0
        assert service.after_fork() is False

    def test_its_own_thread_does_not_go_on_in_the_child(self) -> None:
        outcome: list[tuple[bool, bool]] = []

        def run(life: Life) -> None:
            service.before_fork()
            outcome.append((service.after_fork_in_child(), life.stopping))

        service = Service(NAME, run)
        service.start()
        wait_until(lambda: outcome == [(True, True)])
