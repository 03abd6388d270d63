from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from run_abort._core import escalation, interrupts
from run_abort._core.escalation import Cancellation, EscalationPlan, Escalator
from tests.core.scopes import wait_until


@pytest.fixture
def escalator() -> Iterator[Escalator]:
    escalator = Escalator()
    yield escalator
    assert escalator.service.stop()


class TestEscalator:
    def test_attempts_in_time_and_ends_when_there_is_nothing_to_do(
        self, escalator: Escalator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(interrupts, "CLEANUP_TIME", 0.01)
        attempts: list[float] = []
        began = time.monotonic()

        def attempt() -> bool:
            attempts.append(time.monotonic() - began)
            return len(attempts) != 1

        plan = EscalationPlan(0.1, attempt)
        escalator.add(plan)
        wait_until(lambda: len(attempts) >= 4)
        escalator.drop(plan)
        wait_until(lambda: not escalator.service.is_running)
        assert attempts[0] >= 0.1
        assert attempts[2] - attempts[1] >= 0.1
        assert attempts[3] - attempts[2] >= 0.2

    def test_one_that_raises_is_logged_and_the_others_go_on(
        self, escalator: Escalator, caplog: pytest.LogCaptureFixture
    ) -> None:
        done: list[int] = []

        def fails() -> bool:
            raise ZeroDivisionError

        def attempt() -> bool:
            done.append(1)
            return True

        other = EscalationPlan(0.01, attempt)
        escalator.add(EscalationPlan(0, fails))
        escalator.add(other)
        wait_until(lambda: done)
        escalator.drop(other)
        assert "ZeroDivisionError" in caplog.text

    def test_one_that_was_left_is_not_begun_with(self, escalator: Escalator) -> None:
        plan = EscalationPlan(0, lambda: True)
        escalator.drop(plan)
        escalator.add(plan)
        assert plan.is_over
        assert not escalator.service.is_running

    def test_one_that_is_left_during_its_attempt_is_not_repeated(
        self, escalator: Escalator
    ) -> None:
        attempts: list[int] = []

        def attempt() -> bool:
            attempts.append(1)
            escalator.drop(plan)
            return True

        plan = EscalationPlan(0, attempt)
        escalator.add(plan)
        wait_until(lambda: attempts and not escalator.service.is_running)
        assert attempts == [1]

    def test_the_first_that_is_due_comes_first(
        self, escalator: Escalator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr(escalation, "monotonic", lambda: now[0])
        attempted: list[str] = []

        def plan(name: str, grace: float) -> EscalationPlan:
            def attempt() -> bool:
                attempted.append(name)
                escalator.drop(plans[name])
                return True

            return EscalationPlan(grace, attempt)

        plans = {"late": plan("late", 0.1), "soon": plan("soon", 0.05), "now": plan("now", 0)}
        for each in plans.values():
            escalator.add(each)
        for expected in (["now"], ["now", "soon"], ["now", "soon", "late"]):
            wait_until(lambda expected=expected: attempted == expected)  # type: ignore[misc]
            now[0] += 0.05

    def test_each_of_many_is_dropped_as_quickly_as_one_of_few(self, escalator: Escalator) -> None:
        def seconds_for_each(number: int) -> float:
            plans = [EscalationPlan(30, lambda: True) for _ in range(number)]
            for plan in plans:
                escalator.add(plan)
            began = time.thread_time()
            for plan in plans:
                escalator.drop(plan)
            return (time.thread_time() - began) / number

        few = seconds_for_each(200)
        assert seconds_for_each(10_000) < 10 * few
        wait_until(lambda: not escalator.service.is_running)

    def test_a_child_goes_on_with_the_agenda(self, escalator: Escalator) -> None:
        attempts: list[int] = []
        plan = EscalationPlan(0.05, lambda: bool(attempts.append(1)) or True)
        escalator.add(plan)
        escalator.service.before_fork()
        escalator._lock.acquire()  # as if another thread had held it at the fork
        escalator.after_fork_in_child()
        assert not escalator.service.is_running
        assert escalator.service.after_fork()
        escalator.service.start()
        wait_until(lambda: attempts)
        escalator.drop(plan)

    def test_a_child_without_an_agenda_has_no_thread(self, escalator: Escalator) -> None:
        escalator.service.before_fork()
        escalator.after_fork_in_child()
        assert escalator.service.after_fork() is False


class TestPlan:
    @pytest.mark.parametrize(
        ("grace", "delays"),
        [
            (10, [10, 20, 40, 60, 60]),
            (0, [5, 10, 20, 40, 60]),  # a cleanup may take five seconds
            (100, [100, 100, 100]),
        ],
    )
    def test_each_delay_is_twice_the_last_up_to_a_minute(
        self, grace: float, delays: list[float]
    ) -> None:
        plan = EscalationPlan(grace, lambda: True)
        assert [plan.step() for _ in delays] == delays

    def test_one_that_failed_is_repeated_soon(self) -> None:
        assert EscalationPlan(10, lambda: False).step() == escalation.RETRY_DELAY

    def test_stuck_is_said_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[int] = []
        monkeypatch.setattr(escalation, "submit", lambda function, name: function())
        plan = EscalationPlan(0, lambda: False, on_stuck=lambda: said.append(1))
        waited = 0.0
        while not said:
            waited += plan.step()
        assert escalation.STUCK / 2 <= waited <= 2 * escalation.STUCK
        for _ in range(20):
            assert plan.step() <= escalation.MAX_DELAY
        assert said == [1]


class TestCancellation:
    def test_after_the_end_of_the_loop_it_is_not_sent(self) -> None:
        async def main() -> Cancellation:
            return Cancellation()

        assert asyncio.run(main()).send() is False


@pytest.mark.parametrize("insist", [7, [7], [["interrupt"]]])
def test_escalations_are_named_by_texts(insist: object) -> None:
    with pytest.raises(TypeError, match="insist must be a string or strings"):
        escalation.clean_insist(insist)
