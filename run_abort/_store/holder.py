"""The rows of the blocks that this process has open: its holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from django.db import transaction
from django.db.models import Exists, OuterRef, Q

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook
from run_abort._concurrency.promise import Promise
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.types import Aborted, Escalated, Event, Left, Request

from . import database, requests
from .clock import Now
from .connection import is_suspect, limited, link_of
from .database import tables
from .entries import MAX_STEPS, Entry, first_for, group_rows_of, row_of
from .holds import all_holds, delete_holds, still_there, write_changes, write_process
from .recorder import Operation, Recorder

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

# Seconds that a caller waits on SQLite, which has one writer: the caller may write next.
MOMENT: Final = 0.05
MAX_UNWRITTEN: Final = 10_000  # blocks
RETRY_FOR: Final = 600.0  # seconds in which what could not be written of a block is tried again


class Holder:
    """Writes the holds of this process, and reads the requests for them.

    Each block writes its hold first, and reads the standing requests then, as a statement of its
    own after the commit. An abort writes its request first, and reads the holds then. So in any
    order either the block finds the request, or the abort finds the hold.

    :param origin: returns the ID of this process on the wire.
    :param kind: returns the kind of this process, for people.
    :ivar written: called in the recorder's thread with the IDs of requests whose holds changed.
    :ivar failed: called after a failure: call :meth:`refresh`, and read the blocks' requests, soon.
    """

    def __init__(
        self,
        recorder: Recorder,
        postponed: database.Postponed,
        *,
        origin: Callable[[], str],
        kind: Callable[[], str],
    ) -> None:
        self._recorder = recorder
        self._postponed = postponed
        self._origin = origin
        self._kind = kind
        self.written: Hook[[set[str]]] = Hook()
        self.failed: Hook[[]] = Hook()
        self._outage = database.Outage(
            "The open blocks of this process cannot be written",
            "nothing is known of them elsewhere",
        )
        self._enter: Operation[Entry, Request | None] = Operation(0, self._write_entries)
        of_holds = partial(Operation, outage=self._outage)
        lazy = partial(of_holds, is_lazy=True)
        self._change: Operation[Entry, None] = lazy(4, self._write_changes, writes=True)
        self._refresh: Operation[None, bool] = of_holds(5, self._write_process, writes=True)
        self._leave: Operation[Entry, None] = lazy(7, self._delete)
        self._part: Operation[None, None] = of_holds(8, self._delete_process)
        self._reset()

    def _reset(self) -> None:
        # The blocks that are open. Each change is atomic, so no lock.
        self._open: dict[AbortSignal, Entry] = {}
        # The blocks whose row could not be changed, to be tried again.
        self._unwritten: dict[Entry, None] = {}
        self._strays: set[Any] = set()  # rows without a block, at the last refresh
        self.forget_process()

    def forget_process(self) -> None:
        """Write the process row anew with the next hold: another database may count by then."""
        # When it was written, and when the rows were compared with the blocks; in seconds of
        # monotonic(). Entering a block does the first alone.
        self._seen_at: float | None = None
        self._checked_at: float | None = None

    # Called by the threads of the blocks.

    def enter(
        self, controller: AbortController, ids: tuple[str, ...], label: str
    ) -> Promise[Request | None] | None:
        """Write the hold of a block, and read whether an abort of it was requested.

        :return: the first standing request, later. None if neither rows of requests nor of holds
            are kept.
        """
        options = conf.settings()
        if not options.HOLDS and not options.REQUESTS:
            return None
        entry = Entry(controller, ids, label)
        if options.HOLDS:
            self._open[controller.signal] = entry
        here = database.transaction_here()
        if here is None:
            entered = self._recorder.put(self._enter, entry)
            entered.when_done(self._entered)
            return entered
        entry.is_postponed = True
        # The transaction may be older than a request. Both wake the reconciler, which looks, too.
        if options.HOLDS:
            self._postponed.add(here, partial(self._enter_later, entry))
        elif not database.is_of_testcase(here):
            self._postponed.added()
        found: Promise[Request | None] = Promise()
        found.settle(first_for(entry, self._recorder.call(partial(requests.known_for, ids=ids))))
        return found

    def _entered(self, done: Promise[Request | None]) -> None:
        if done.error is not None:
            self.failed()

    def _enter_later(self, entry: Entry) -> None:
        entry.is_postponed = False
        if entry.controller.signal in self._open:
            self._recorder.put(self._enter, entry).when_done(self._entered)
        elif entry.controller.signal.aborted_by is not None:
            self._changed(entry)

    def leave(self, controller: AbortController) -> None:
        """Delete the hold of a block that was left before any abort. Waits for a moment at most."""
        entry = self._open.get(controller.signal)
        if entry is None:
            return
        here = database.transaction_here()
        try:
            # First, or the recorder could write the row again after it has deleted it.
            self._open.pop(controller.signal, None)
            if here is None:
                self._put(self._leave, entry)
                self.let_finish()
            elif not entry.is_postponed:
                self._postponed.add(here, partial(self._put, self._leave, entry))
        except BaseException:  # of a signal handler: leave() is called again
            self._open[controller.signal] = entry
            raise

    def let_finish(self) -> None:
        """On SQLite, wait a moment: a write during the caller's next transaction would break it."""
        if database.is_forbidden_here():
            return  # no transaction of this thread will follow
        if database.is_sqlite() and database.transaction_here() is None:
            self._recorder.flush(MOMENT)

    def hold_back(self, controllers: Sequence[AbortController]) -> None:
        """Write changes of these blocks when a transaction of this thread on SQLite is over.

        Call this before they are aborted. One of another thread may end before the transaction has
        written, and a write about that would keep it from writing.
        """
        if controllers and (here := database.transaction_here()) is not None:
            entries = filter(None, (self._open.get(each.signal) for each in controllers))
            self._hold_back(list(entries), here)

    def _hold_back(self, entries: Sequence[Entry], here: BaseDatabaseWrapper) -> None:
        if database.is_of_testcase(here):
            return  # which rolls all of it back
        some = [entry for entry in entries if not entry.is_held_back]
        for entry in some:
            entry.is_held_back = True
        if some:
            self._postponed.add(here, partial(self._change_late, some))

    def _change_late(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            entry.is_held_back = False
            if not self._has_ended(entry):
                self._changed(entry)

    def note(self, event: Event) -> None:
        """Write soon what has happened to blocks. Raises nothing; see :meth:`let_finish`."""
        if isinstance(event, Aborted):
            here = database.transaction_here() if event.way == "local" else None
            for controller in event.controllers:
                if controller.signal.aborted_by is event:
                    self._changed(self._open.get(controller.signal), here)
        elif isinstance(event, Left):
            # Forgotten last: if a signal handler raises earlier, the event comes again.
            self._changed_here(self._open.get(event.signal))
            self._open.pop(event.signal, None)
        else:
            self._escalated(event)

    def finishing(self, signal: AbortSignal) -> None:
        """Write soon that the block cannot be aborted any more."""
        self._changed_here(self._open.get(signal))

    def _escalated(self, event: Escalated) -> None:
        entry = self._open.get(event.signal)
        if entry is not None and len(entry.steps) < MAX_STEPS:
            aborted = event.signal.aborted_by
            seconds = 0.0 if aborted is None else event.at - aborted.at
            entry.steps.append((event.escalation, seconds))
            self._changed(entry)

    def _changed(self, entry: Entry | None, here: BaseDatabaseWrapper | None = None) -> None:
        if entry is not None and here is not None:
            self._hold_back([entry], here)
        elif entry is not None and not entry.is_postponed and not entry.is_held_back:
            self._put(self._change, entry)

    def _changed_here(self, entry: Entry | None) -> None:
        """:meth:`_changed` in the thread of the block, which goes on at once."""
        if entry is not None:
            self._changed(entry, database.transaction_here())
            self.let_finish()

    def _put(self, operation: Operation[Entry, None], entry: Entry) -> None:
        self._recorder.put(operation, entry).when_done(partial(self._written, entry))

    def _written(self, entry: Entry, done: Promise[None]) -> None:
        if done.error is None:
            entry.failed_at = 0.0
            return
        if not entry.may_be_written:  # without a row nothing is wrong in the database
            return
        entry.failed_at = entry.failed_at or monotonic()
        if monotonic() - entry.failed_at < RETRY_FOR and len(self._unwritten) < MAX_UNWRITTEN:
            self._unwritten[entry] = None
            self.failed()

    def _write_again(self, entry: Entry) -> None:
        del self._unwritten[entry]
        self._put(self._leave if self._has_ended(entry) else self._change, entry)

    def _has_ended(self, entry: Entry) -> bool:
        """Whether the block was left before any abort."""
        signal = entry.controller.signal
        return self._open.get(signal) is not entry and signal.aborted_by is None

    def depart(self) -> None:
        """Delete soon the row of this process, which is about to end, unless a hold refers to it.

        Else a queue that forks for each job would leave a row for each.
        """
        if self._seen_at is not None and not self._open:
            self._recorder.put(self._part, None)

    # Called by the reconciler's thread.

    @property
    def waits(self) -> bool:
        """Whether rows wait for the end of a transaction, or for the database."""
        return bool(self._postponed or self._unwritten)

    def refresh(self) -> bool:
        """Write that this process is alive, and what is missing of its holds.

        :return: whether all of its holds are written. If not, call this again soon.
        """
        self._postponed.check()
        again, is_due = list(self._unwritten), self._has_to_refresh()
        if (again or is_due) and any(each.is_in_transaction for each in self._open.copy().values()):
            return False
        for entry in again:
            self._write_again(entry)
        if not is_due:
            return not self._postponed and not again
        done = self._recorder.put(self._refresh, None)
        return self._recorder.wait(done) is not None and not again

    def _has_to_refresh(self) -> bool:
        entries = self._to_write() if conf.settings().HOLDS else []
        is_due = _is_due(self._seen_at) or _is_due(self._checked_at)
        return bool(entries) and (is_due or not all(each.is_written for each in entries))

    def _to_write(self) -> list[Entry]:
        return [entry for entry in self._open.copy().values() if not entry.is_postponed]

    def after_fork_in_child(self, kept: Iterable[AbortController]) -> None:
        """Keep only these blocks, as new holds of the child.

        They are written when :meth:`refresh` is called.
        """
        known = self._open
        self._reset()
        for controller in kept:
            entry = known.get(controller.signal)
            if entry is not None:
                entry.renew()
                self._open[controller.signal] = entry

    # Called in the recorder's thread.

    def _write_entries(self, alias: str, entries: list[Entry]) -> list[Request | None]:
        options = conf.settings()
        # A block may be left by now, if the database was away. Its row would stay for ever.
        held = [entry for entry in entries if self._open.get(entry.controller.signal) is entry]
        if options.HOLDS and held:
            link = link_of(alias)
            try:
                self._insert(alias, held)
            except Exception as error:
                if len(entries) > 1 or not options.REQUESTS or is_suspect(alias, link):
                    raise
                self._outage.report(error, writes=True)
                self.failed()
        if not options.REQUESTS:
            return [None] * len(entries)
        known = requests.known_for(alias, {each for entry in entries for each in entry.ids})
        return [first_for(entry, known) for entry in entries]

    def _insert(self, alias: str, entries: Sequence[Entry]) -> None:
        with limited(alias, writes=True):
            if _is_due(self._seen_at):
                self._see(alias)
            rows = [row_of(entry, self._origin()) for entry in entries]
            all_holds(alias).bulk_create(rows, ignore_conflicts=True)
            if groups := [row for entry in entries for row in group_rows_of(entry)]:
                tables().RunHoldGroup.objects.using(alias).bulk_create(groups)
            for entry in entries:
                entry.may_be_written = True  # if the answer to the commit is lost
        self._outage.over(writes=True)
        for entry in entries:
            entry.is_written = True
        self._delete_late(entries)

    def _see(self, alias: str) -> None:
        """Write until when this process counts as alive."""
        write_process(alias, self._origin(), self._kind, is_new=self._seen_at is None)
        transaction.on_commit(self._was_seen, using=alias)

    def _was_seen(self) -> None:
        self._seen_at = monotonic()
        self._checked_at = self._checked_at or self._seen_at  # the first hold comes after this

    def _write_process(self, alias: str, items: list[None]) -> list[bool]:
        holds = all_holds(alias)
        with limited(alias, writes=True, is_durable=False):
            # Not more often: on SQLite it would break a transaction of this process that has read.
            if _is_due(self._seen_at):
                self._see(alias)
            mine = holds.filter(process_id=self._origin(), left_at=None)
            rows = set(mine.values_list("pk", flat=True))
            entries = {entry.id: entry for entry in self._to_write()}
            # Blocks that were left, as far as a thread that was stuck, or an outage, kept that from
            # being written. Found twice, because the end of one just left is written after this.
            strays = rows - entries.keys()
            for late in requests.chunks(list(strays & self._strays), alias):
                ended = mine.filter(pk__in=late)
                unaborted = ended.exclude(state="aborting")
                delete_holds(alias, list(unaborted.values_list("pk", flat=True)))
                ended.update(state="stopped", left_at=Now())
        self._checked_at, self._strays = monotonic(), strays
        if missing := [entry for key, entry in entries.items() if key not in rows]:
            self._insert(alias, missing)
        return [True] * len(items)

    def _write_changes(self, alias: str, entries: list[Entry]) -> list[None]:
        some = list(dict.fromkeys(entries))
        # A row that somebody has deleted would come back without its groups.
        grouped = {entry.id for entry in some if len(entry.ids) > 1}
        gone = grouped - still_there(alias, grouped)
        new = [entry for entry in some if not entry.is_written or entry.id in gone]
        if new:  # with their groups, and the process
            self._insert(alias, new)
        write_changes(alias, [row_of(entry, self._origin()) for entry in some])
        self._delete_late(some)
        about = [entry.controller.signal.aborted_by for entry in some]
        self.written({each.request.id for each in about if each is not None and each.request.id})
        return [None] * len(entries)

    def _delete_late(self, entries: Iterable[Entry]) -> None:
        """Delete what this thread, if it was stuck, wrote after another one had deleted it."""
        for entry in filter(self._has_ended, entries):
            self._put(self._leave, entry)

    def _delete(self, alias: str, entries: list[Entry]) -> list[None]:
        have_groups = any(len(entry.ids) > 1 for entry in entries)
        with limited(alias, writes=True, is_durable=False):
            for some in requests.chunks([entry.id for entry in entries], alias):
                delete_holds(alias, some, have_groups=have_groups)
        return [None] * len(entries)

    def _delete_process(self, alias: str, items: list[None]) -> list[None]:
        mine = Q(pk=self._origin()) & ~Exists(all_holds(alias).filter(process_id=OuterRef("pk")))
        with limited(alias, writes=True, is_durable=False):
            tables().RunProcess.objects.using(alias).filter(mine)._raw_delete(alias)
        self._seen_at = None
        return items


def _is_due(done_at: float | None) -> bool:
    age = conf.settings().RECONCILE_INTERVAL * 0.9
    return done_at is None or monotonic() - done_at > age
