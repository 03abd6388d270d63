"""``signal.ends_children``: programs that a library starts, in the thread that calls it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal as signals
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.forkserver import ForkServer
from multiprocessing.resource_tracker import ResourceTracker
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from run_abort import AbortController, RunAborted, abortable_run
from run_abort._core import children, process_tree
from run_abort._core.children import THREAD
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from tests.blocks import Work
from tests.conftest import Configure
from tests.support import is_there, wait_until

# Says its number and that of a child, which does not obey SIGTERM, nor is of its group.
STUBBORN = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
with open(os.environ["PIDS"], "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
time.sleep(60)
"""


class Library:
    """Starts programs that say who they are, and waits for them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def convert(self, code: str = "exec sleep 60") -> None:
        subprocess.run(["sh", "-c", f"echo $$ >> {self._path}; {code}"], check=True)

    def convert_stubbornly(self) -> None:
        subprocess.run([sys.executable, "-c", STUBBORN], env={"PIDS": str(self._path)}, check=True)

    def pids(self) -> list[int]:
        return [int(word) for word in self._path.read_text().split()] if self._path.exists() else []


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "pids")


def abort_when(condition: Callable[[], object], controller: AbortController) -> threading.Thread:
    def work() -> None:
        wait_until(condition)
        controller.abort("because")

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def watchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


class TestAbort:
    def test_what_a_library_waits_for_is_ended(
        self, controller: AbortController, library: Library, escalations: list[str]
    ) -> None:
        thread = abort_when(library.pids, controller)
        with pytest.raises(RunAborted) as raised, controller.signal.ends_children():
            library.convert()
        thread.join()
        assert (raised.value.run_id, raised.value.reason) == ("run-1", "because")
        cause = raised.value.__cause__
        assert isinstance(cause, subprocess.CalledProcessError)
        assert cause.returncode == -signals.SIGTERM
        assert not any(map(is_there, library.pids()))
        assert escalations == ["terminate"]
        wait_until(lambda: not watchers())

    def test_what_does_not_obey_is_killed_with_its_descendants(
        self, controller: AbortController, library: Library, escalations: list[str]
    ) -> None:
        thread = abort_when(lambda: len(library.pids()) == 2, controller)
        with pytest.raises(RunAborted), controller.signal.ends_children(grace=0.3):
            library.convert_stubbornly()
        thread.join()
        assert not any(map(is_there, library.pids()))
        assert escalations == ["terminate", "kill"]

    def test_what_is_started_after_the_abort_is_ended_too(
        self, controller: AbortController, library: Library
    ) -> None:
        """A library that tries again."""
        thread = abort_when(library.pids, controller)
        return_codes = []
        with pytest.raises(RunAborted), controller.signal.ends_children():
            for _ in range(3):
                with pytest.raises(subprocess.CalledProcessError) as error:
                    library.convert()
                return_codes.append(error.value.returncode)
        thread.join()
        assert return_codes == [-signals.SIGTERM] * 3
        assert not any(map(is_there, library.pids()))
        wait_until(lambda: not watchers())

    def test_children_of_before_and_of_other_threads_are_left_alone(
        self, controller: AbortController
    ) -> None:
        started: list[subprocess.Popen[bytes]] = []
        before = subprocess.Popen(["sleep", "60"])
        with pytest.raises(RunAborted), controller.signal.ends_children():
            release = threading.Event()

            def other() -> None:
                started.append(subprocess.Popen(["sleep", "60"]))
                release.wait(20)

            thread = threading.Thread(target=other)
            thread.start()
            wait_until(lambda: started)
            own = subprocess.Popen(["sleep", "60"])
            controller.abort()
            own.wait(20)
        for each in (before, *started):
            assert each.poll() is None
            each.kill()
            each.wait()
        release.set()
        thread.join()

    def test_those_of_all_threads_if_it_is_asked_to(
        self, controller: AbortController, library: Library
    ) -> None:
        """A library with a pool of threads: each of them starts one program after the other."""
        before = subprocess.Popen(["sleep", "60"])
        return_codes = []
        thread = abort_when(lambda: len(library.pids()) >= 2, controller)
        with ThreadPoolExecutor(2) as pool, pytest.raises(RunAborted):
            with controller.signal.ends_children(all_threads=True):
                for future in [pool.submit(library.convert) for _ in range(4)]:
                    error = future.exception()
                    assert isinstance(error, subprocess.CalledProcessError)
                    return_codes.append(error.returncode)
        thread.join()
        assert return_codes == [-signals.SIGTERM] * 4
        assert before.poll() is None
        before.kill()
        before.wait()

    def test_a_process_of_multiprocessing_is_a_child_too(self, controller: AbortController) -> None:
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        with pytest.raises(RunAborted), controller.signal.ends_children():
            process.start()
            controller.abort()
            process.join(20)
        assert process.exitcode == -signals.SIGTERM

    @pytest.mark.parametrize(
        ("module", "name", "kind", "pid"),
        [
            # They ignore SIGTERM: the abort would take the whole grace.
            *(
                (f"{each}.resource_tracker", "_resource_tracker", ResourceTracker, "_pid")
                for each in ("multiprocessing", "loky.backend", "joblib.externals.loky.backend")
            ),
            # It has started the processes of all threads.
            ("multiprocessing.forkserver", "_forkserver", ForkServer, "_forkserver_pid"),
        ],
    )
    def test_a_helper_of_multiprocessing_or_loky_is_left_alone(
        self,
        controller: AbortController,
        escalations: list[str],
        monkeypatch: pytest.MonkeyPatch,
        module: str,
        name: str,
        kind: type[Any],
        pid: str,
    ) -> None:
        helper = kind()
        loaded = ModuleType(module)
        setattr(loaded, name, helper)
        monkeypatch.setitem(sys.modules, module, loaded)
        with pytest.raises(RunAborted), controller.signal.ends_children():
            helper.ensure_running()
            controller.abort()
        assert is_there(getattr(helper, pid))
        assert escalations == []
        helper._stop()

    def test_of_all_threads_a_process_of_the_fork_server_is_a_child_too(
        self, controller: AbortController
    ) -> None:
        server: Any = forkserver._forkserver
        server.ensure_running()
        context = multiprocessing.get_context("forkserver")
        before, process = [context.Process(target=time.sleep, args=(60,)) for _ in range(2)]
        before.start()
        with pytest.raises(RunAborted), controller.signal.ends_children(all_threads=True):
            process.start()
            controller.abort()
            process.join(20)
        assert process.exitcode == -signals.SIGTERM
        assert before.is_alive()
        before.terminate()
        before.join()
        server._stop()


class TestBlock:
    def test_without_an_abort_it_does_nothing(self, controller: AbortController) -> None:
        threads = set(threading.enumerate())
        with controller.signal.ends_children():
            process = subprocess.Popen(["sleep", "60"])
            assert not set(threading.enumerate()) - threads  # one of another test may end
        assert not controller.signal._effects
        controller.abort()
        assert not watchers()
        assert process.poll() is None
        process.kill()
        process.wait()

    def test_an_aborted_signal_does_not_enter_it(self, controller: AbortController) -> None:
        controller.abort()
        with pytest.raises(RunAborted), controller.signal.ends_children():
            pytest.fail("entered")

    @pytest.mark.parametrize("spawns", [True, False])
    def test_forced_an_abort_while_it_is_entered(
        self, controller: AbortController, monkeypatch: pytest.MonkeyPatch, spawns: bool
    ) -> None:
        """The thread does not wait for the end of its own block, even if it is the only one."""

        def find(**options: bool) -> process_tree.Family:
            family = process_tree.children_from_now_on(**options)
            if not spawns:
                monkeypatch.setattr(threading.Thread, "start", no_thread)
            controller.abort()
            return family

        monkeypatch.setattr(children, "children_from_now_on", find)
        with pytest.raises(RunAborted), controller.signal.ends_children():
            process = subprocess.Popen(["sleep", "60"])
        assert process.wait(20) == -signals.SIGTERM

    def test_forced_without_a_thread_the_abort_does_not_wait_for_the_block(
        self, controller: AbortController, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(RunAborted), controller.signal.ends_children():
            process = subprocess.Popen(["sleep", "60"])
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", no_thread)
                controller.abort()
            assert process.wait(20) == -signals.SIGTERM

    @pytest.mark.parametrize("aborted", [True, False])
    def test_forced_one_whose_exit_was_prevented_ends_all_the_same(
        self, controller: AbortController, aborted: bool
    ) -> None:
        """As if an interrupt had arrived before ``__exit__`` began."""
        block = controller.signal.ends_children()
        held = block.__exit__  # as a with statement gets hold of it
        block.__enter__()
        if aborted:
            controller.abort()
            wait_until(watchers)
        del held
        wait_until(lambda: not watchers() and not controller.signal._effects)

    def test_an_interrupt_waits_until_the_programs_have_ended(
        self, configure: Configure, library: Library
    ) -> None:
        configure(REDIS_URL=None, LISTEN=False)

        def work() -> None:
            with abortable_run("run-1", grace=0.1, insist="interrupt") as signal:
                with signal.ends_children():
                    library.convert_stubbornly()

        thread = Work(work)
        thread.start()
        wait_until(lambda: len(library.pids()) == 2)
        current().registry.abort(Request("run-1"))
        thread.join(20)
        assert isinstance(thread.outcome, RunAborted)
        assert not any(map(is_there, library.pids()))
        wait_until(lambda: not watchers())

    def test_not_in_an_event_loop(self, controller: AbortController) -> None:
        async def main() -> None:
            with controller.signal.ends_children():
                pytest.fail("entered")

        with pytest.raises(RuntimeError, match="other tasks"):
            asyncio.run(main())

    def test_not_on_another_system(
        self, controller: AbortController, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "pidfd_open")
        with pytest.raises(RuntimeError, match="takes Linux"), controller.signal.ends_children():
            pytest.fail("entered")


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
