"""The methods of ``AbortSignal`` that make an abort end programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .children import EndsChildren
from .escalation import clean_grace
from .subprocesses import Process, Run, Signal, attach, run_async

if TYPE_CHECKING:
    from subprocess import CompletedProcess


class Programs:
    """A part of ``AbortSignal``, which has the attributes."""

    __slots__ = ()

    def run(
        self: Signal, args: Any, *, grace: float | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """Run a program, as ``subprocess.run`` does; end it when the run is aborted.

        On an abort the program, its process group and all its descendants get SIGTERM. The
        processes that are left after ``grace`` seconds get SIGKILL; so do all of them at once at a
        time-out or another exception, such as ``KeyboardInterrupt``. The program gets a process
        group of its own, unless ``start_new_session``, ``process_group`` or ``preexec_fn`` is
        given. So a Ctrl-C in the terminal does not reach it, and it is stopped if it reads from
        there: pass ``stdin=subprocess.DEVNULL`` or ``input``.

        :param grace: seconds, as for :class:`abortable_run`; None takes the grace of the block.
        :param options: those of ``subprocess.run``.
        :raises RunAborted: if the run was aborted, before or while the program runs. Raised once
            all of these processes have exited. Its ``process`` has the exit code and the output so
            far.
        :raises subprocess.TimeoutExpired: or ``CalledProcessError``, ``OSError``, as
            ``subprocess.run`` does.
        """
        return Run(self, args, _grace(self, grace), **options).run()

    async def run_async(
        self: Signal, args: Any, *, grace: float | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """:meth:`run` for asyncio code, on a thread of its own; does not block the loop.

        If the calling task is cancelled, the processes are ended in the same way, and the task
        waits for that.
        """
        return await run_async(Run(self, args, _grace(self, grace), **options))

    def attach(self: Signal, process: Process, *, grace: float | None = None) -> Callable[[], bool]:
        """End a process as :meth:`run` does when the run is aborted; at once if it was aborted.

        :param process: a child of this process, a ``subprocess.Popen`` or an
            ``asyncio.subprocess.Process``. If it leads a process group, the whole group gets the
            signals: start it with ``process_group=0``, or under uvloop with
            ``start_new_session=True``.
        :param grace: seconds, as for :class:`abortable_run`; None takes the grace of the block.
        :return: a function that detaches the process. It returns True if the process was detached.
            If the process is being ended, it waits until all of its processes have exited, and
            returns False. It also returns False if the process had exited before.
        :raises TypeError: if ``process`` is of another kind, such as a process ID or a
            ``multiprocessing.Process``.
        """
        attachment = attach(self, process, _grace(self, grace))
        return (lambda: False) if attachment is None else attachment.detach

    def ends_children(
        self: Signal, *, grace: float | None = None, all_threads: bool = False
    ) -> EndsChildren:
        """A block in which an abort ends the programs that the calling thread starts::

            with signal.ends_children():
                library.convert(path)   # calls subprocess.run somewhere

        They are ended as by :meth:`run`, also those that are started after the abort. Programs
        that other threads start, or that this thread started before, are left alone; so are those
        that still run when the block is left without an abort. Only on Linux.

        :param grace: seconds, as for :class:`abortable_run`; None takes the grace of the block.
        :param all_threads: whether to end programs that any thread of this process starts: for a
            library with a pool of threads. Only in a process that works on one run at a time, such
            as Celery's of the pool prefork or RQ's for a job: else programs of other runs are
            ended, too.
        :raises RunAborted: if the run was aborted, before or during the block, once all of these
            processes have exited. The library's error is the ``__cause__``, if there was one.
        :raises RuntimeError: on entering, if this system does not list the children of a thread;
            in an event loop or a greenlet, because the programs of other tasks and greenlets are
            started by the same thread.
        """
        return EndsChildren(self, _grace(self, grace), all_threads=all_threads)


def _grace(signal: Signal, grace: float | None) -> float:
    return signal.grace if grace is None else clean_grace(grace)
