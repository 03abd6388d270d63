from __future__ import annotations

import enum
import re
import threading
import uuid
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from run_abort._core.controller import AbortController
from run_abort._core.ids import clean_id, clean_ids, new_origin, new_request_id
from run_abort._core.registry import Registry
from run_abort._core.types import Aborted, Event, Request


class Kind(str, enum.Enum):  # noqa: UP042  not a StrEnum: str() of it is not its value
    IMPORT = "import"


class Lazy:
    """As Django's ``SimpleLazyObject``."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str

    def __str__(self) -> str:
        return "import"


def test_a_request_id_is_a_random_uuid() -> None:
    some = {new_request_id() for _ in range(200)}
    made = [uuid.UUID(each) for each in some]
    assert len(some) == 200
    assert {str(each) for each in made} == some
    assert {(each.version, each.variant) for each in made} == {(4, uuid.RFC_4122)}


class TestIds:
    @pytest.mark.parametrize(
        ("given", "cleaned"),
        [
            ("run-1", "run-1"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            ("a/b c\xa0🙂", "a/b c\xa0🙂"),
            ("x" * 255, "x" * 255),
            (Kind.IMPORT, "import"),
            pytest.param(Lazy(), "import", id="lazy"),
        ],
    )
    def test_what_is_a_run_id(self, given: object, cleaned: str) -> None:
        assert clean_id(given) == cleaned

    @pytest.mark.parametrize("given", [None, b"run-1", 1.5, True, 7, ["run-1"], object()])
    def test_what_is_none(self, given: object) -> None:
        with pytest.raises(TypeError, match="run ID must be"):
            clean_id(given)

    @pytest.mark.parametrize("key", [None, "", (None, None), (1, None)])
    def test_an_instance_without_its_whole_key(self, key: object) -> None:
        meta = SimpleNamespace(label_lower="shop.order")
        meta.concrete_model = SimpleNamespace(_meta=meta)
        with pytest.raises(ValueError, match="without a primary key it names no run"):
            clean_id(SimpleNamespace(_meta=meta, pk=key))

    @pytest.mark.parametrize("given", ["", "x" * 256, "a\0b", "a\nb", "a\x85b", "a\ud800b"])
    def test_text_that_is_none(self, given: str) -> None:
        with pytest.raises(ValueError, match="run ID must not"):
            clean_id(given)

    def test_groups_come_after_the_run_each_once(self) -> None:
        assert clean_ids("run", ["parent", "x", "run", "parent"]) == ("run", "parent", "x")

    @pytest.mark.parametrize("groups", ["parent", b"parent", 7, "", 0, False])
    def test_groups_are_several(self, groups: object) -> None:
        with pytest.raises(TypeError, match="groups must be"):
            clean_ids("run", groups)  # type: ignore[arg-type]

    def test_origins_are_new_each_time(self) -> None:
        assert re.fullmatch("inst_[0-9a-f]{32}", new_origin())
        assert new_origin() != new_origin()


def abort(registry: Registry, run_id: str, reason: str = "", actor: str = "") -> int:
    return registry.abort(Request(run_id, reason=reason, actor=actor))


class TestRegistry:
    def test_every_flag_is_set_before_anything_takes_effect(self) -> None:
        registry = Registry()
        controllers = [AbortController(str(n)) for n in range(5)]
        seen: list[bool] = []
        for controller in controllers:
            registry.register(controller, ["group"])
            controller.signal._when_aborted(
                lambda: seen.extend(each.signal.aborted for each in controllers)
            )
        abort(registry, "group")
        assert len(seen) == 25
        assert all(seen)

    def test_emits_what_it_aborted_once_flags_are_set_and_waiters_are_woken(self) -> None:
        registry = Registry()
        steps: list[str] = []
        events: list[Event] = []
        run = AbortController("run")
        run.signal._when_aborted(lambda: steps.append("woken"))
        registry.events.add(events.append)
        registry.events.add(lambda event: steps.append("emitted"))
        registry.register(run, ["run"])

        requests = [Request("other", "0"), Request("run", "1"), Request("run", "2")]
        assert [registry.abort(request, "channel") for request in requests] == [0, 1, 0]

        assert steps == ["woken", "emitted", "emitted"]
        aborted = [event for event in events if isinstance(event, Aborted)]
        assert [(event.request, event.controllers) for event in aborted] == [
            (requests[1], (run,)),
            (requests[2], (run,)),
        ]
        assert {event.way for event in aborted} == {"channel"}
        assert run.signal.aborted_by is aborted[0]

    def test_an_effect_that_raises_leaves_the_event_to_be_emitted(self) -> None:
        """A signal handler may raise anywhere."""
        registry = Registry()
        events: list[Event] = []
        registry.events.add(events.append)
        run = AbortController("run")
        registry.register(run, ["run"])
        run.signal._when_aborted(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            abort(registry, "run")
        assert len(events) == 1

    def test_knows_which_blocks_are_open(self) -> None:
        registry = Registry()
        first, second = AbortController("run"), AbortController("run")
        registry.register(first, ["run", "group"])
        registry.register(second, ["run"])
        assert registry.controllers() == [first, second]
        assert second in registry
        registry.leave(second, ["run"])
        assert second not in registry
        assert registry.controllers() == [first]

    def test_a_waiter_may_register_leave_and_abort(self) -> None:
        registry = Registry()
        first, second, third = (AbortController(str(n)) for n in range(3))
        registry.register(first, ["1"])
        registry.register(second, ["2"])

        def meddle() -> None:
            registry.leave(first, ["1"])
            registry.register(third, ["1"])
            abort(registry, "2")

        first.signal._when_aborted(meddle)
        assert abort(registry, "1") == 1
        assert second.signal.aborted
        assert not third.signal.aborted
        assert list(registry.holders()) == ["2", "1"]

    def test_under_concurrent_use_nothing_is_lost_or_left_behind(self) -> None:
        registry = Registry()
        stop = threading.Event()
        missed: list[str] = []

        def work(name: str) -> None:
            while not stop.is_set():
                run = AbortController(name)
                registry.register(run, [name, "all"])
                abort(registry, name)
                if not run.signal.aborted:
                    missed.append(name)
                registry.leave(run, [name, "all"])

        threads = [threading.Thread(target=work, args=(str(n % 3),)) for n in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            abort(registry, "all")
        stop.set()
        for thread in threads:
            thread.join()
        assert missed == []
        assert list(registry.holders()) == []


class RegistryMachine(RuleBasedStateMachine):
    """The registry beside the simplest thing that could be right: a list of what is open."""

    controllers = Bundle("controllers")
    ids = st.sampled_from("abcd")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.open: list[tuple[AbortController, tuple[str, ...]]] = []
        self.closed: set[AbortController] = set()
        self.aborted: dict[AbortController, str] = {}

    @rule(target=controllers, run_id=ids, groups=st.sets(ids))
    def register(self, run_id: str, groups: set[str]) -> AbortController:
        controller = AbortController(run_id)
        ids = clean_ids(run_id, sorted(groups))
        self.registry.register(controller, ids)
        self.open.append((controller, ids))
        return controller

    @rule(controller=controllers)
    def close(self, controller: AbortController) -> None:
        assert controller.close() is (controller not in self.aborted)
        if controller not in self.aborted:
            self.closed.add(controller)

    @rule(controller=controllers)
    def leave(self, controller: AbortController) -> None:
        for entry in list(self.open):
            if entry[0] is controller:
                self.registry.leave(*entry)
                self.registry.leave(*entry)  # which changes nothing
                self.open.remove(entry)

    @rule(run_id=ids, reason=st.text(max_size=3))
    def abort(self, run_id: str, reason: str) -> None:
        expected = [
            controller
            for controller, ids in self.open
            if run_id in ids and controller not in self.aborted and controller not in self.closed
        ]
        assert abort(self.registry, run_id, reason) == len(expected)
        self.aborted |= dict.fromkeys(expected, reason)

    @invariant()
    def agrees(self) -> None:
        assert set(self.registry.holders()) == {run_id for _, ids in self.open for run_id in ids}
        for controller, _ in self.open:
            assert controller.signal.aborted is (controller in self.aborted)
            assert controller.signal.reason == self.aborted.get(controller, "")


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
