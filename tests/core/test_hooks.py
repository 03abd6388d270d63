from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest

from run_abort._concurrency.hooks import Hook, SerialHook, call_logged


class TestCallLogged:
    def test_logs_the_name_of_what_failed(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails(what: object) -> None:
            raise SystemExit(3)

        call_logged(partial(partial, fails))
        call_logged(partial(partial(fails, 1)))
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "fails failed" in caplog.text
        assert "SystemExit: 3" in caplog.text

    def test_raises_nothing_although_the_log_does(
        self, break_log: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails() -> None:
            raise ValueError("the first error")

        break_log()
        assert not call_logged(fails)
        assert call_logged(lambda: None)
        errors = capsys.readouterr().err
        assert "the first error" in errors
        assert "the log is broken" in errors


class TestHook:
    def test_added_twice_it_is_called_once_and_removed_once(self) -> None:
        called: list[int] = []
        hook: Hook[[int]] = Hook()
        removes = [hook.add(called.append) for _ in range(2)]
        hook(1)
        assert called == [1]
        removes[0]()
        hook(2)
        assert called == [1]
        removes[1]()
        removes[0]()
        hook(3)
        assert called == [1]

    def test_one_that_raises_is_logged_and_the_others_are_called(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(number: int) -> None:
            raise ValueError

        called: list[int] = []
        hook: Hook[[int]] = Hook()
        hook.add(fails)
        hook.add(called.append)
        hook(7)
        assert called == [7]
        assert "fails failed" in caplog.text
        assert "ValueError" in caplog.text

    @pytest.mark.parametrize("kind", [Hook, SerialHook])
    def test_what_a_signal_handler_raises_is_not_lost(self, kind: type[Hook[[int]]]) -> None:
        def interrupted(number: int) -> None:
            raise KeyboardInterrupt

        called: list[int] = []
        hook = kind()
        hook.add(interrupted)
        hook.add(called.append)
        for number in (7, 8):
            with pytest.raises(KeyboardInterrupt):
                hook(number)
        assert called == [7, 8]

    def test_a_call_within_one_that_a_signal_handler_interrupts_is_made(self) -> None:
        called: list[int] = []
        hook: SerialHook[[int]] = SerialHook()

        def interrupted(number: int) -> None:
            called.append(number)
            if number == 7:
                hook(8)
                raise KeyboardInterrupt

        hook.add(interrupted)
        with pytest.raises(KeyboardInterrupt):
            hook(7)
        assert called == [7, 8]

    def test_one_that_is_added_while_another_is_removed_stays(self) -> None:
        called: list[str] = []
        hook: Hook[[]] = Hook()
        meanwhile: list[Callable[[], object]] = []

        class First:
            """A function that is compared just when another thread adds one."""

            def __call__(self) -> None:
                called.append("first")

            def __hash__(self) -> int:
                return 1

            def __eq__(self, other: object) -> bool:
                while meanwhile:
                    meanwhile.pop()()
                return self is other

        hook.add(First())
        remove = hook.add(First())
        meanwhile.append(lambda: hook.add(lambda: called.append("second")))
        remove()
        hook()
        assert called == ["first", "second"]

    def test_a_call_finishes_with_the_functions_that_it_began_with(self) -> None:
        called: list[str] = []
        hook: Hook[[]] = Hook()
        removes: list[Callable[[], None]] = []

        def first() -> None:
            called.append("first")
            for remove in removes:
                remove()
            hook.add(third)

        def second() -> None:
            called.append("second")

        def third() -> None:
            called.append("third")

        removes += [hook.add(first), hook.add(second)]
        hook()
        assert called == ["first", "second"]
        hook()
        assert called == ["first", "second", "third"]
