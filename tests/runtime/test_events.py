from __future__ import annotations

import gc
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from run_abort._runtime.deliveries import Delivery, delivery_of

from run_abort import RunAborted, abortable_run
from run_abort._core.controller import AbortController
from run_abort._runtime.runtime import current
from tests.blocks import held

pytestmark = pytest.mark.usefixtures("configure")


def new_id() -> str:
    return str(uuid.uuid4())


@contextmanager
def told() -> Iterator[list[Delivery]]:
    """What those who hooked in are told meanwhile."""
    hook = (found := list[Delivery]()).append
    deliveries.on_changed(hook)
    try:
        yield found
    finally:
        deliveries._deliveries.hooks.remove(hook)


def known(abort_id: str) -> Delivery:
    delivery = delivery_of(abort_id)
    assert delivery is not None
    return delivery


def is_forgotten() -> bool:
    facts = deliveries._deliveries
    return not facts._pending and not facts._untold


class TestWhatIsKnown:
    def test_aborting_until_the_last_was_left(self) -> None:
        abort_id = new_id()
        with told() as news:
            with pytest.raises(RunAborted), abortable_run("run-1", label="outer"):
                with pytest.raises(RunAborted), abortable_run("run-1", label="inner"):
                    current().registry.abort("run-1", abort_id=abort_id, way="channel")
                    first = known(abort_id)
                assert known(abort_id).stopped_at is None
            last = known(abort_id)
        assert (first.run_id, first.way, first.controllers) == ("run-1", "channel", 2)
        assert first.labels == ("outer", "inner")
        assert first.stopped_at is None
        assert last.stopped_at is not None
        assert last.stopped_at >= last.received_at == first.received_at
        assert [each.stopped_at for each in news] == [None, last.stopped_at]
        assert is_forgotten()

    def test_what_aborts_nobody_is_not_known(self) -> None:
        abort_id = new_id()
        with told() as news:
            current().registry.abort("run-1", abort_id=abort_id)
            with abortable_run("run-1"):
                pass
            current().registry.abort("run-1", abort_id=abort_id)
        assert delivery_of(abort_id) is None
        assert news == []

    def test_each_of_several_aborts_has_its_own(self) -> None:
        first, second = new_id(), new_id()
        with pytest.raises(RunAborted), abortable_run("run-1", groups=["all"]):
            current().registry.abort("run-1", abort_id=first)
            current().registry.abort("all", abort_id=second, way="reconcile")
            # It flipped nobody, but those are still to stop.
            assert known(second).stopped_at is None
        assert (known(first).way, known(second).way) == ("local", "reconcile")
        assert None not in {known(first).stopped_at, known(second).stopped_at}

    def test_the_same_again_changes_nothing(self) -> None:
        abort_id = new_id()
        with told() as news:
            with pytest.raises(RunAborted), abortable_run("run-1"):
                for way in ("local", "channel", "reconcile", "channel"):
                    current().registry.abort("run-1", abort_id=abort_id, way=way)
        assert (known(abort_id).way, known(abort_id).controllers) == ("local", 1)
        assert len(news) == 2

    def test_one_that_enters_later_is_to_stop_as_well(self) -> None:
        abort_id = new_id()
        with pytest.raises(RunAborted), abortable_run("run-1", label="early"):
            current().registry.abort("run-1", abort_id=abort_id)
        over = known(abort_id)
        with told() as news, pytest.raises(RunAborted), abortable_run("run-1", label="late"):
            current().registry.abort("run-1", abort_id=abort_id, way="start")
            assert known(abort_id).stopped_at is None
        last = known(abort_id)
        assert last.stopped_at is not None
        assert over.stopped_at is not None
        assert last.stopped_at >= over.stopped_at
        assert (last.way, last.controllers, last.labels) == ("local", 2, ("early", "late"))
        assert (last.key, last.received_at) == (over.key, over.received_at)
        assert [each.stopped_at for each in news] == [None, last.stopped_at]

    def test_labels_are_told_once_and_twenty_at_most(self) -> None:
        abort_id = new_id()
        labels = ["", "same", "same", *(str(number) for number in range(30))]
        controllers = [AbortController("run-1") for _ in labels]
        for controller, label in zip(controllers, labels, strict=True):
            current().registry.register(controller, ["run-1"], label)
        current().registry.abort("run-1", abort_id=abort_id)
        for controller in controllers:
            current().registry.leave(controller, ["run-1"])
            deliveries.left(controller)
        assert known(abort_id).labels == ("same", *(str(number) for number in range(19)))
        assert known(abort_id).controllers == 33
        assert known(abort_id).stopped_at is not None


class TestInterleavings:
    """The thread that aborts and the one that leaves, as they may get in each other's way."""

    def registered(self) -> AbortController:
        controller = AbortController("run-1")
        current().registry.register(controller, ["run-1"], "x")
        return controller

    def leave(self, controller: AbortController) -> None:
        assert not controller.close()
        current().registry.leave(controller, ["run-1"])
        deliveries.left(controller)

    def test_one_that_leaves_before_it_was_awaited_has_stopped(self) -> None:
        controller, abort_id = self.registered(), new_id()
        controller.flip()  # and whoever looks at the flag leaves before more is done
        self.leave(controller)
        deliveries.received([controller], abort_id, "channel")
        deliveries.tell(abort_id)
        assert known(abort_id).stopped_at is not None
        assert is_forgotten()

    def test_one_that_leaves_before_it_was_awaited_waits_for_that(self) -> None:
        """Else its process could exit with nothing told, and nothing waited for."""
        controller, abort_id = self.registered(), new_id()
        is_left = threading.Event()

        def leave() -> None:
            self.leave(controller)
            is_left.set()

        with told() as news:
            controller.flip()
            leaving = threading.Thread(target=leave)
            leaving.start()
            assert not is_left.wait(0.03)
            deliveries.received([controller], abort_id, "channel")
            assert is_left.wait(20)
            leaving.join(20)
            assert known(abort_id).stopped_at is not None
            deliveries.tell(abort_id)
        assert [each.stopped_at is None for each in news] == [False]
        assert is_forgotten()

    def test_one_that_was_aborted_without_an_id_does_not_wait(self) -> None:
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(RunAborted), abortable_run("run-1"):
                current().registry.abort("run-1")
        assert time.monotonic() - began < 20 * deliveries.NOTE_TIMEOUT / 2

    def test_one_that_leaves_before_news_of_it_are_told_is_told_of_once(self) -> None:
        controller, abort_id = self.registered(), new_id()
        with told() as news:
            controller.flip()
            deliveries.received([controller], abort_id, "channel")
            self.leave(controller)
            deliveries.tell(abort_id)
        assert [each.stopped_at is None for each in news] == [False]

    def test_a_second_thread_that_comes_after_it_left_counts_it_no_more(self) -> None:
        controller, abort_id = self.registered(), new_id()
        controllers = [controller]  # as both threads found it in the registry
        controller.flip()
        deliveries.received(controllers, abort_id, "channel")
        self.leave(controller)
        over = known(abort_id)
        with told() as news:
            current().registry.abort_controllers(controllers, abort_id=abort_id, way="reconcile")
        assert known(abort_id) == over
        assert over.controllers == 1
        assert news == []
        assert is_forgotten()

    def test_many_threads_agree(self) -> None:
        for _ in range(200):
            abort_id = new_id()
            start = threading.Barrier(3)

            def abort(start: threading.Barrier = start, abort_id: str = abort_id) -> None:
                start.wait()
                current().registry.abort("run-1", abort_id=abort_id, way="channel")

            threads = [threading.Thread(target=abort) for _ in range(2)]
            for thread in threads:
                thread.start()
            with pytest.raises(RunAborted), abortable_run("run-1") as signal:
                start.wait()
                assert signal.wait(20)
            for thread in threads:
                thread.join()
            assert known(abort_id).controllers == 1
            assert known(abort_id).stopped_at is not None
        assert is_forgotten()


class TestBounds:
    def test_a_thousand_that_are_over_are_remembered(self) -> None:
        stubborn = new_id()
        with held("other", is_stubborn=True):
            current().registry.abort("other", abort_id=stubborn)
            ids = [new_id() for _ in range(1100)]
            for abort_id in ids:
                with pytest.raises(RunAborted), abortable_run("run-1"):
                    current().registry.abort("run-1", abort_id=abort_id)
            # Not one that is still to stop, however old.
            assert known(stubborn).stopped_at is None
            remembered = [each for each in ids if delivery_of(each) is not None]
            assert remembered == ids[-1000:]
        assert known(stubborn).stopped_at is not None
        assert len(deliveries._deliveries._facts) <= 1000

    def test_no_block_is_kept_alive(self) -> None:
        controller = AbortController("run-1")
        current().registry.register(controller, ["run-1"])
        current().registry.abort("run-1", abort_id=new_id())
        current().registry.leave(controller, ["run-1"])
        deliveries.left(controller)
        reference = weakref.ref(controller)
        del controller
        gc.collect()
        assert reference() is None

    def test_without_an_id_there_is_nothing_to_tell_apart(self) -> None:
        before = dict(deliveries._deliveries._facts)
        with told() as news, pytest.raises(RunAborted), abortable_run("run-1"):
            current().registry.abort("run-1")
        assert news == []
        assert deliveries._deliveries._facts == before


class TestHooks:
    def test_one_that_raises_is_logged_and_harms_nobody(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(delivery: Delivery) -> None:
            raise ZeroDivisionError

        deliveries.on_changed(fails)
        try:
            with told() as news, pytest.raises(RunAborted), abortable_run("run-1"):
                current().registry.abort("run-1", abort_id=new_id())
        finally:
            deliveries._deliveries.hooks.remove(fails)
        assert len(news) == 2
        assert "fails failed" in caplog.text

    def test_adding_it_again_changes_nothing(self) -> None:
        with told() as news:
            deliveries.on_changed(deliveries._deliveries.hooks[-1])
            with pytest.raises(RunAborted), abortable_run("run-1"):
                current().registry.abort("run-1", abort_id=new_id())
        assert len(news) == 2
