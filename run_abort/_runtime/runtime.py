"""The composition root: one ``Runtime`` per process makes the parts and connects them.

It is made when this module is imported, and by each test. Only this module registers functions for
forks, for the interpreter's exit, and for changed settings.
"""

from __future__ import annotations

import _thread
import atexit
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started, setting_changed

from run_abort import conf
from run_abort._concurrency import forks, workers
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import call_each
from run_abort._concurrency.service import Service
from run_abort._concurrency.workers import SerialWorker, in_event_loop
from run_abort._core import interrupts
from run_abort._core.controller import AbortController
from run_abort._core.escalation import Escalator
from run_abort._core.ids import new_origin
from run_abort._core.registry import Registry
from run_abort._core.types import Event, Left
from run_abort._store import database
from run_abort._store.database import Postponed
from run_abort._store.holder import Holder
from run_abort._store.recorder import Recorder
from run_abort._store.requests import Requests
from run_abort._transport.listener import Listener
from run_abort._transport.push import Push
from run_abort._transport.trust import Trust

from .disconnects import Disconnects
from .dispatch import Dispatch
from .events import Events
from .facts import Facts
from .force import Force
from .kind import kind_of_process
from .queues import Queues
from .reconciler import Reconciler

EXIT_TIMEOUT: Final = 1.0  # seconds to wait for each part before the process ends


class Runtime:
    """The parts of this process.

    :ivar is_child: whether it was forked.
    """

    def __init__(self) -> None:
        # Made here, not on first use: two threads could make two at once.
        self._origin = new_origin()
        self.inherited: list[AbortController] = []  # of the blocks around the fork
        self.is_child = False
        self._has_worked = False  # whether the child has left all of its blocks before
        self.registry = Registry()
        self.escalator = Escalator()
        self.queues = Queues()
        self.disconnects = Disconnects()
        self.facts = Facts(self.origin)
        self.events = Events(self.registry, self.facts)
        self.trust = Trust()
        self.dispatch = Dispatch(self.registry, self.trust)
        self.push = Push(self.origin, self.trust)
        self.recorder = Recorder()
        self.postponed = Postponed()
        self.requests = Requests(self.recorder, self.postponed)
        self.holder = Holder(
            self.recorder, self.postponed, origin=self.origin, kind=kind_of_process
        )
        self.listener = Listener(self.push, origin=self.origin, handle=self.dispatch.receive)
        self.reconciler = Reconciler(
            self.registry,
            self.dispatch,
            self.push,
            self.requests,
            self.holder,
            origin=self.origin,
            is_listening=self.listener.is_listening,
        )
        self._notifier: SerialWorker[set[str]] = SerialWorker(
            lambda ids: self.push.notify(sorted(ids)), name="run_abort-notifications", ours=True
        )
        # The threads but for the listener's, which begins again in its own way.
        self._services = (
            self.reconciler.service,
            self.recorder.service,
            self.escalator.service,
            self.disconnects.service,
        )
        self.force = Force(self.escalator, self.settle)
        self._join()

    def _join(self) -> None:
        self.events.flipped.add(self.dispatch.announce)
        self.registry.events.add(self.holder.note)
        self.registry.events.add(self.force.note)
        self.registry.events.add(self._note)
        self.registry.finishing.add(self.holder.finishing)
        self.holder.written.add(self._notifier.put)
        self.holder.failed.add(self.reconciler.retry_soon)
        self.postponed.added.add(self.reconciler.hurry)  # it looks whether they are over
        self.postponed.committed.add(self.holder.let_finish)
        self.reconciler.ticked.add(self.escalator.resume)
        self.trust.doubted.add(self.reconciler.look)
        self.dispatch.fell_behind.add(self.reconciler.service.ensure_started)
        self.listener.subscribed.add(self.reconciler.subscribed)
        self.listener.lost.add(self.reconciler.service.wake)

    @property
    def is_local(self) -> bool:
        """Whether an abort can reach this process only, as while the tests of a project run."""
        return not conf.settings().REQUESTS and not self.push.is_configured()

    def origin(self) -> str:
        """The ID of this process on the wire: ``inst_`` and 32 hex digits, new after each fork."""
        forks.catch_up()
        return self._origin

    # Blocks that were left.

    def _note(self, event: Event) -> None:
        if self.is_child and isinstance(event, Left):
            self.write_in_child()

    def write_in_child(self) -> None:
        """In a forked child, wait until it is written that its last block was left.

        The child may end now without Python's exit, as RQ's process for a job does. Only its main
        thread does that. The first time, the child may also have no further block.
        """
        if len(self.registry) or in_event_loop():
            return
        if threading.current_thread() is threading.main_thread():
            if not self._has_worked:
                self.holder.depart()
            self._has_worked = True
            self.recorder.flush(database.timeout())

    # Start and stop.

    def close(self) -> bool:
        """Stop all threads. Called by :func:`install`.

        :return: whether they have ended.
        """
        self.dispatch.disconnect()
        ended = [
            self.listener.stop(),
            self.reconciler.service.stop(),
            self.escalator.service.stop(),
            self.disconnects.service.stop(),
        ]
        self.settle()
        ended.append(self.recorder.stop())
        self.push.close()
        return all(ended)

    def settings_changed(self, setting: str) -> None:
        """Stop the parts that use a setting of Django that was overridden.

        They start on demand, and again at once if open blocks need them.
        """
        if setting in {"RUN_ABORT", "SECRET_KEY", "SECRET_KEY_FALLBACKS"}:
            self.trust.forget_keys()
        if setting in {"RUN_ABORT", "CACHES"}:
            self.listener.stop()
            self.push.forget()
        if setting in {"RUN_ABORT", "DATABASES"}:
            self.reconciler.service.stop()
            self.recorder.flush(EXIT_TIMEOUT)
            self.recorder.stop()
            self.holder.forget_process()
        if setting in {"RUN_ABORT", "CACHES", "DATABASES"} and len(self.registry):
            with suppress(ImproperlyConfigured):  # the next change may be valid
                self.listener.ensure_started()
                if self.reconciler.is_needed():
                    self.reconciler.service.ensure_started()

    def at_exit(self) -> None:
        """At the interpreter's exit: stop the threads, unless a run is still held.

        An exit function that was registered earlier is called later, and may wait for a daemon
        thread that holds a run. Non-daemon threads have ended by now.
        """
        if not len(self.registry):
            self.reconciler.service.stop()
            self.listener.stop()
        self.settle()
        self.recorder.stop(EXIT_TIMEOUT, is_over=True)

    def settle(self) -> None:
        """Wait for the workers: call this before a process ends without Python's exit.

        Waits for the listener, the queues, handlers and receivers, the recorder, the notifications
        and the facts, one after the other, for each at most ``EXIT_TIMEOUT`` seconds.
        """
        self.listener.wait_told(EXIT_TIMEOUT)
        self.events.finish()
        self.queues.wait_notified(EXIT_TIMEOUT)
        self.dispatch.wait_for_handlers(EXIT_TIMEOUT)
        self.postponed.check()
        self.holder.depart()
        self.recorder.flush(EXIT_TIMEOUT)
        self._notifier.wait_idle(EXIT_TIMEOUT)
        self.facts.wait_recorded(EXIT_TIMEOUT)

    # Around a fork.

    def before_fork(self) -> None:
        """Stop the app's threads and close its idle connections: the child inherits none."""
        services = (self.listener.service, *self._services)
        # Each, although a signal handler raises in one: CPython forks all the same.
        call_each([*(each.before_fork for each in services), workers.before_fork, self.push.close])

    def after_fork(self) -> None:
        """Start the threads that the fork has stopped, or that its child needs."""
        if workers.in_greenlets():
            # To start one lets other greenlets run. In the parent, gevent would lose the end of the
            # child; in a child that is about to become another program, they would go on twice.
            _thread.start_new_thread(self._resume, ())
        else:
            self._resume()

    def _resume(self) -> None:
        resumes = [partial(_resume, each) for each in self._services]
        call_each([*resumes, self.listener.after_fork])

    def after_fork_in_child(self) -> None:
        """Renew the origin, the locks and the threads for the child."""
        self._origin = new_origin()
        self.is_child, self._has_worked = True, False
        call_each(
            [
                workers.after_fork_in_child,
                interrupts.after_fork_in_child,
                self.registry.after_fork_in_child,
                self.events.after_fork_in_child,
                self.recorder.after_fork_in_child,
                self.postponed.after_fork_in_child,
                self._inherit,
                self.dispatch.after_fork_in_child,
                self.push.after_fork_in_child,
                self.force.after_fork_in_child,
                self.escalator.after_fork_in_child,
                self.disconnects.after_fork_in_child,
                self.reconciler.after_fork_in_child,
                self.listener.after_fork_in_child,
                self.after_fork,
            ]
        )

    def _inherit(self) -> None:
        self.inherited = self.registry.controllers()
        self.holder.after_fork_in_child(self.inherited)

    def leave_inherited(self) -> None:
        """Leave the blocks around the fork, because this child ends without leaving them."""
        for controller in self.inherited:
            if controller.close():
                self.holder.leave(controller)
            elif controller.left_at is None:
                controller.left_at = monotonic()
                self.registry.events(Left(controller.signal, controller.left_at))


def _resume(service: Service) -> None:
    if service.after_fork():
        service.start()


class _Current:
    """The runtime of this process."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.runtime.dispatch.connect()


_current: Final = _Current()


def current() -> Runtime:
    """The runtime of this process."""
    return _current.runtime


def install(runtime: Runtime) -> Runtime:
    """Replace the runtime, and close the previous one; for tests.

    :return: ``runtime``.
    """
    _current.runtime.close()
    _current.runtime = runtime
    runtime.dispatch.connect()
    return runtime


def _at_exit_of_child() -> None:
    """Settle in a child of ``multiprocessing``, which ends without calling ``atexit`` functions.

    Called before Python waits for the threads that are no daemons. They may work on the run of the
    block around the fork. So that is left by another such thread, once they have ended.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    if not _others_at_work():
        current().leave_inherited()
    elif current().inherited:
        with suppress(RuntimeError):  # of CPython 3.12.0 to 3.12.2: it starts no thread now
            threading.Thread(target=_leave_last, name="run_abort-exit").start()
    current().settle()


def _leave_last() -> None:
    while others := _others_at_work():
        for thread in others:
            try:
                thread.join()
            except RuntimeError:  # it is about to begin
                time.sleep(0.001)
    current().leave_inherited()
    current().settle()


def _others_at_work() -> list[threading.Thread]:
    """The threads that are no daemons, but for the main thread and this one."""
    spared = (threading.main_thread(), threading.current_thread())
    return [each for each in threading.enumerate() if not each.daemon and each not in spared]


def _settings_changed(*, setting: str, **kwargs: object) -> None:
    _current.runtime.settings_changed(setting)


def _catch_up(**kwargs: object) -> None:
    forks.catch_up()


setting_changed.connect(_settings_changed, dispatch_uid="run_abort.runtime")
request_started.connect(_catch_up, dispatch_uid="run_abort.runtime")
atexit.register(lambda: current().at_exit())
# The executors of concurrent.futures end in this way, too; nothing public is called there.
threading._register_atexit(_at_exit_of_child)  # type: ignore[attr-defined]
forks.at_fork(
    before=lambda: current().before_fork(),
    after_in_parent=lambda: current().after_fork(),
    after_in_child=lambda: current().after_fork_in_child(),
)
