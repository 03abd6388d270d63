from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal as signals
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from run_abort import AbortController, AbortSignal, RunAborted, abortable_run
from run_abort._concurrency import workers
from run_abort._core import process_tree, procfs
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from run_abort.http import abortable_stream
from tests.blocks import Work
from tests.conftest import Configure
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.processes.conftest import ONE_THREAD_LEFT, pid_in, python
from tests.support import TIMEOUT, is_there, wait_until

# Says its process ID and that of a grandchild; then both stay, and obey SIGTERM or do not.
FAMILY = """
import os, signal, subprocess, sys, time
stubborn = sys.argv[1] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
# A leader that goes at once, and leaves a grandchild that takes no notice of SIGTERM.
QUICK_LEADER = """
import os, subprocess, sys, time
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""

# Aborts a program of 21 processes, each in a session of its own, while a number of descriptors is
# free; says how many live then, and how many once there are descriptors again.
NEAR_THE_LIMIT = """
import logging, os, resource, subprocess, sys, tempfile, threading, time
from run_abort._core import process_tree, procfs
from run_abort._core.controller import AbortController
from run_abort.exceptions import RunAborted

program = '''
import os, subprocess, sys
children = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(20)]
print(os.getpid(), *[child.pid for child in children], "all", flush=True)
os.wait()
'''
process_tree.KILL_TIMEOUT = 0.5
logging.basicConfig(format="%(message)s", stream=sys.stdout)
has_warned = threading.Event()

class Warned(logging.Handler):
    def emit(self, record):
        has_warned.set()

logging.getLogger().addHandler(Warned())
free = int(sys.argv[1])
controller = AbortController("run-1", grace=0.5)
outcome = []

def work():
    try:
        controller.signal.run([sys.executable, "-c", program], stdout=output)
    except RunAborted as error:
        outcome.append("aborted")

def lives(pid):
    try:
        entry = procfs.entry_of(pid)
    except OSError:  # no descriptor to look with, so none for the abort either
        return True
    return entry is not None and not entry.is_dead

def said():
    output.seek(0)
    return output.read().split()

output = tempfile.TemporaryFile("w+")
thread = threading.Thread(target=work)
thread.start()
while "all" not in said():
    time.sleep(0.01)
pids = [int(word) for word in said()[:-1]]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(free):
    os.close(taken.pop())
controller.abort()
thread.join(20) if free else has_warned.wait(20)
# Without a descriptor nobody can look, but for a moment in which the abort closes one.
print("near the limit:", sum(map(lives, pids)) if free else "some", outcome, flush=True)
for fd in taken:
    os.close(fd)
thread.join(20)
print("afterwards:", sum(map(lives, pids)), outcome, flush=True)
"""


@pytest.fixture
def has_written(controller: AbortController, tmp_path: Path) -> Iterator[Path]:
    """The run is aborted once a program has made this file, after its output."""
    path = tmp_path / "has_written"
    waits = True

    def abort() -> None:
        wait_until(lambda: path.exists() or not waits)
        controller.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    yield path
    waits = False
    thread.join()


def open_files() -> set[tuple[str, str]]:
    """The descriptors of this process, each with what it is open on."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the directory itself
            found.add((entry.name, str(entry.readlink())))
    return found


def too_many_files(*args: Any, **options: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


class Runner:
    """Runs a program in a thread; its first line has two process IDs."""

    def __init__(
        self, controller: AbortController, tmp_path: Path, *args: str, grace: float | None = None
    ) -> None:
        self.result: Any = None
        self._path = tmp_path / "output"
        self._thread = threading.Thread(target=self._run, args=(controller, args, grace))
        self._thread.start()
        wait_until(lambda: self._path.exists() and self._path.read_text().endswith("\n"))
        self.pids = [int(word) for word in self._path.read_text().split() if word.isdecimal()]

    def _run(self, controller: AbortController, args: tuple[str, ...], grace: float | None) -> None:
        try:
            with self._path.open("w") as output:
                self.result = controller.signal.run(python(*args), stdout=output, grace=grace)
        except BaseException as error:
            self.result = error

    def join(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.result


class TestRun:
    def test_is_subprocess_run_if_nobody_aborts(self, controller: AbortController) -> None:
        signal = controller.signal
        done = signal.run(
            python("import sys; print(sys.stdin.read().upper()); sys.exit(3)"),
            input="text",
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, "TEXT\n", "")
        with pytest.raises(subprocess.CalledProcessError):
            signal.run(python("raise SystemExit(3)"), check=True)
        with pytest.raises(FileNotFoundError):
            signal.run(["/no/such/program"])
        with pytest.raises(ValueError, match="may not both be used"):
            signal.run(["true"], capture_output=True, stdout=subprocess.PIPE)
        with pytest.raises(ValueError, match="may not both be used"):
            signal.run(["true"], input="", stdin=subprocess.PIPE)

    def test_a_program_that_is_to_lead_its_own_session(self, controller: AbortController) -> None:
        code = "import os; raise SystemExit(os.getsid(0) != os.getpid())"
        assert controller.signal.run(python(code), preexec_fn=os.setsid).returncode == 0

    @pytest.mark.parametrize("text", [True, False])
    def test_input_and_output_of_a_program_that_takes_its_time(
        self, controller: AbortController, text: bool
    ) -> None:
        """More than a pipe takes, for longer than a slice of the waiting."""
        code = """
import shutil, sys, time
time.sleep(1.5)
shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)
"""
        sent: Any = "ä line\n" * 100_000
        if not text:
            sent = sent.encode()
        encoding = "utf-8" if text else None
        done = controller.signal.run(
            python(code), input=sent, capture_output=True, encoding=encoding
        )
        assert done.returncode == 0
        assert done.stdout == sent

    def test_a_timeout_while_it_reads_its_input(self, controller: AbortController) -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            controller.signal.run(["sleep", "600"], input=b"x" * 1_000_000, timeout=1.5)

    def test_nothing_is_kept(self, controller: AbortController) -> None:
        before = open_files()
        for _ in range(20):
            controller.signal.run(["true"], capture_output=True)
        # What other tests have left may be closed meanwhile.
        assert open_files() - before == set()
        assert not controller.signal._effects

    def test_all_that_it_has_started_is_asked_to_end(
        self, controller: AbortController, tmp_path: Path, escalations: list[str]
    ) -> None:
        runner = Runner(controller, tmp_path, FAMILY, "obedient")
        assert len(runner.pids) == 2
        began = time.monotonic()
        controller.abort("because", "ann")
        error = runner.join()
        assert time.monotonic() - began < TIMEOUT
        assert isinstance(error, RunAborted)
        assert (error.run_id, error.reason) == ("run-1", "because")
        assert error.process is not None
        assert error.process.returncode == -signals.SIGTERM
        assert not any(map(is_there, runner.pids))
        assert escalations == ["terminate"]

    @pytest.mark.parametrize("args", [(FAMILY, "stubborn"), (QUICK_LEADER,), (ONE_THREAD_LEFT,)])
    def test_what_is_left_is_killed(
        self,
        controller: AbortController,
        tmp_path: Path,
        escalations: list[str],
        args: tuple[str, ...],
    ) -> None:
        runner = Runner(controller, tmp_path, *args, grace=0.3)
        began = time.monotonic()
        controller.abort()
        assert isinstance(runner.join(), RunAborted)
        assert 0.3 <= time.monotonic() - began < TIMEOUT
        assert not any(map(is_there, runner.pids))
        assert escalations == ["terminate", "kill"]

    def test_the_output_so_far_is_kept(
        self, controller: AbortController, has_written: Path
    ) -> None:
        code = """
import sys, time
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
print(chr(228) * 100_000, flush=True)
open(sys.argv[1], "w")
time.sleep(600)
"""
        program = python(code, str(has_written))
        with pytest.raises(RunAborted) as raised:
            controller.signal.run(program, capture_output=True, text=True, encoding="utf-8")
        process = raised.value.process
        assert process is not None
        assert process.stdout == "out\n" + "ä" * 100_000 + "\n"
        assert process.stderr == "err\n"

    @pytest.mark.parametrize("encoding", ["utf-8", None])
    def test_a_stranger_that_keeps_the_pipe_does_not_keep_us_waiting(
        self, controller: AbortController, has_written: Path, encoding: str | None
    ) -> None:
        """It has left its group, and its parent is gone: nobody can tell whose it is."""
        # Its parent has to be reaped: until then it is a member, and leads the stranger's group.
        code = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    parent = os.getpid()
    if os.fork() == 0:
        while os.path.exists(f"/proc/{parent}"):
            time.sleep(0.001)
        os.write(1, b"%d \\r\\n\\xc3" % os.getpid())  # ends within a character
        open(sys.argv[1], "w")
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""
        program = python(code, str(has_written))
        began = time.monotonic()
        with pytest.raises(RunAborted) as raised:
            controller.signal.run(program, capture_output=True, encoding=encoding)
        assert time.monotonic() - began < TIMEOUT
        process = raised.value.process
        assert process is not None
        stranger = int(process.stdout.split()[0])
        output = f"{stranger} \n" if encoding else b"%d \r\n\xc3" % stranger
        errors = "" if encoding else b""
        assert (process.stdout, process.stderr) == (output, errors)
        assert is_there(stranger)
        os.kill(stranger, signals.SIGKILL)

    def test_at_a_timeout_everything_is_killed(
        self, controller: AbortController, tmp_path: Path
    ) -> None:
        path = tmp_path / "pids"
        code = FAMILY.replace(
            "print(os",
            f"f = open({str(path)!r}, 'w'); f.write(str(child.pid)); f.close(); print(os",
        )
        timeout = 0.5
        while not (path.exists() and path.read_text()):  # the machine may be slow
            timeout *= 2
            with pytest.raises(subprocess.TimeoutExpired) as raised:
                controller.signal.run(
                    python(code, "stubborn"), stdout=subprocess.PIPE, timeout=timeout
                )
            assert raised.value.timeout == timeout
        assert raised.value.stdout is not None
        wait_until(lambda: not is_there(int(path.read_text())))

    def test_an_aborted_signal_starts_nothing(
        self, controller: AbortController, tmp_path: Path
    ) -> None:
        controller.abort()
        with pytest.raises(RunAborted):
            controller.signal.run(["touch", str(tmp_path / "touched")])
        assert not (tmp_path / "touched").exists()

    def test_an_abort_just_after_the_start_is_not_missed(self) -> None:
        for number in range(30):
            controller = AbortController("run-1")
            timer = threading.Timer(number / 3000, controller.abort)
            timer.start()
            began = time.monotonic()
            with pytest.raises(RunAborted):
                controller.signal.run(["sleep", "600"])
            assert time.monotonic() - began < TIMEOUT
            timer.join()

    def test_an_interrupt_leaves_nobody_behind(self, configure: Configure, tmp_path: Path) -> None:
        configure(REDIS_URL=None, LISTEN=False)
        path = tmp_path / "pid"

        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt") as signal:
                signal.run(["sh", "-c", f"trap '' TERM; echo $$ > {path}; exec sleep 600"])

        thread = Work(work)
        thread.start()
        pid = pid_in(path)
        current().registry.abort(Request("run-1"))
        thread.join(20)
        assert isinstance(thread.outcome, RunAborted)
        assert not is_there(pid)

    def test_one_that_is_stopped_obeys_all_the_same(self, tmp_path: Path) -> None:
        """As one that reads from its terminal in the background."""
        controller, path = AbortController("run-1", grace=20), tmp_path / "pid"

        def abort() -> None:
            stat = procfs.PROC / str(pid_in(path)) / "stat"
            wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))
            controller.abort()

        thread = threading.Thread(target=abort)
        thread.start()
        with pytest.raises(RunAborted) as raised:
            controller.signal.run(["sh", "-c", f"echo $$ > {path}; kill -STOP $$; sleep 600"])
        thread.join()
        assert raised.value.process is not None
        assert raised.value.process.returncode == -signals.SIGTERM


class TestOpenFiles:
    """No process is left, or claimed to have ended, because of the limit of open files."""

    def outcome(self, free: int) -> str:
        return subprocess.check_output(python(NEAR_THE_LIMIT, str(free)), text=True, timeout=60)

    def test_near_the_limit_all_are_ended(self) -> None:
        assert self.outcome(1) == "near the limit: 0 ['aborted']\nafterwards: 0 ['aborted']\n"

    def test_at_the_limit_that_is_said_and_they_are_ended_later(self) -> None:
        warning = "Processes have not exited 0.5 s after they were killed: "
        assert self.outcome(0) == (
            f"{warning}unknown (Too many open files)\n"
            "near the limit: some []\nafterwards: 0 ['aborted']\n"
        )

    def test_what_cannot_be_looked_at_is_not_attached(
        self, controller: AbortController, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with subprocess.Popen(["sleep", "600"]) as process:
            monkeypatch.setattr(Path, "read_text", too_many_files)
            with pytest.raises(OSError, match="Too many"):
                controller.signal.attach(process)
            process.kill()
        with pytest.raises(OSError, match="Too many"):  # it is killed, and not waited for
            controller.signal.run(["sleep", "600"])


class TestWithoutPidfd:
    """As it is where there is no ``/proc``."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "pidfd_open")
        # Python 3.15 has looked for it once, to wait with a time-out.
        monkeypatch.setattr(subprocess, "_CAN_USE_PIDFD_OPEN", False, raising=False)

    def test_the_group_is_ended(self, tmp_path: Path) -> None:
        controller = AbortController("run-1", grace=0.3)
        runner = Runner(controller, tmp_path, FAMILY, "stubborn")
        controller.abort()
        assert isinstance(runner.join(), RunAborted)
        wait_until(lambda: not any(map(is_there, runner.pids)))


class TestAttach:
    def test_its_descendants_too_though_it_leads_no_group(
        self, controller: AbortController
    ) -> None:
        with subprocess.Popen(python(FAMILY, "obedient"), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            pids = [int(word) for word in process.stdout.readline().split()]
            controller.signal.attach(process)
            controller.abort()
            wait_until(lambda: not any(map(is_there, pids)))

    def test_one_that_is_detached_is_left_alone(self, controller: AbortController) -> None:
        with subprocess.Popen(["sleep", "600"]) as process:
            detach = controller.signal.attach(process)
            assert detach() is True
            assert detach() is False
            controller.abort()
            time.sleep(0.1)
            assert process.poll() is None
            process.kill()

    def test_a_signal_handler_that_raises_as_it_is_detached_leaves_nobody_waiting(
        self, controller: AbortController
    ) -> None:
        def attempt(steps: Steps) -> None:
            detach = controller.signal.attach(process)
            with suppress(HandlerError), steps.taken():
                detach()
            again = Work(detach)
            again.start()
            again.join(TIMEOUT)
            assert not again.is_alive(), steps.place

        with subprocess.Popen(["sleep", "600"]) as process:
            try:
                assert at_each_step(fail, attempt) > 1
            finally:
                process.kill()

    @pytest.mark.parametrize(
        "process",
        [7, multiprocessing.Process(), subprocess.CompletedProcess([], 0), None],
    )
    def test_another_kind_of_process_is_refused(
        self, controller: AbortController, process: Any
    ) -> None:
        controller.abort()
        with pytest.raises(TypeError, match=rf"subprocess\.Popen.*not {type(process)!r}"):
            controller.signal.attach(process)

    def test_one_that_has_ended_is_nobody_any_more(self, controller: AbortController) -> None:
        with subprocess.Popen(["true"]) as process:
            process.wait()
        detach = controller.signal.attach(process)
        assert detach() is False
        assert not controller.signal._effects

    @pytest.mark.parametrize("pidfds", [True, False])
    def test_the_number_of_one_that_others_reaped_is_not_trusted(
        self, controller: AbortController, monkeypatch: pytest.MonkeyPatch, pidfds: bool
    ) -> None:
        """Forced: it is the number of a process by now that is no child of this one."""
        if not pidfds:
            monkeypatch.delattr(os, "pidfd_open")
        orphan = subprocess.run(
            ["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE, check=True
        )
        stranger = int(orphan.stdout)
        process = subprocess.Popen(["true"])
        os.waitpid(process.pid, 0)
        process.pid = stranger
        controller.abort()
        assert controller.signal.attach(process, grace=0)() is False
        assert is_there(stranger)
        os.kill(stranger, signals.SIGKILL)
        process.returncode = 0

    @pytest.mark.parametrize("pidfds", [True, False])
    def test_a_number_that_was_passed_on_later_is_not_trusted(
        self, monkeypatch: pytest.MonkeyPatch, pidfds: bool
    ) -> None:
        """Forced: the process that has the number began later."""
        if not pidfds:
            monkeypatch.setattr(os, "pidfd_open", too_many_files)
        told: list[str] = []
        with subprocess.Popen(["sleep", "60"], process_group=0) as process:
            entry = procfs.entry_of(process.pid)
            assert entry is not None
            before = entry._replace(began=entry.began - 1)
            assert not process_tree._signal(before, signals.SIGKILL)
            assert process_tree.end(process_tree._Tree(before), 0.1, told.append)
            assert process.poll() is None
            assert process_tree._signal(entry, signals.SIGKILL)
        assert process.returncode == -signals.SIGKILL

    def test_an_aborted_signal_ends_it_at_once(self, controller: AbortController) -> None:
        controller.abort()
        with subprocess.Popen(["sleep", "600"]) as process:
            controller.signal.attach(process)
            assert process.wait(20) == -signals.SIGTERM

    def test_an_aborted_signal_does_not_make_the_caller_wait_for_its_end(
        self, controller: AbortController
    ) -> None:
        """Meanwhile an event loop would stand still, and a queue's time limit would be lost."""
        controller.abort()
        stubborn = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("began", flush=True)
while True:
    time.sleep(60)
"""
        program = [sys.executable, "-c", stubborn]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "began\n"
            detach = controller.signal.attach(process, grace=TIMEOUT)
            assert process.poll() is None
            assert process.stdout.readline() == "asked\n"
            process.kill()
            assert detach() is False

    def test_a_process_of_asyncio(self, controller: AbortController) -> None:
        async def main() -> int:
            process = await asyncio.create_subprocess_exec("sleep", "600")
            controller.signal.attach(process)
            controller.abort()
            return await asyncio.wait_for(process.wait(), 20)

        assert asyncio.run(main()) == -signals.SIGTERM


async def abort_after(path: Path) -> None:
    await asyncio.to_thread(wait_until, path.exists)
    current().registry.abort(Request("run-1"))


class TestRunAsync:
    def test_is_like_run(self, controller: AbortController) -> None:
        async def main() -> Any:
            return await controller.signal.run_async(
                python("print(input())"), input="text", capture_output=True, text=True
            )

        done = asyncio.run(main())
        assert (done.returncode, done.stdout) == (0, "text\n")

    def test_an_abort_ends_it_and_keeps_its_output(
        self, configure: Configure, tmp_path: Path
    ) -> None:
        configure(REDIS_URL=None, LISTEN=False)
        path = tmp_path / "has_written"
        code = """
import sys, time
print("so far", flush=True)
open(sys.argv[1], "w")
time.sleep(600)
"""

        async def main() -> None:
            aborting = asyncio.ensure_future(abort_after(path))
            async with abortable_run("run-1") as signal:
                await signal.run_async(python(code, str(path)), capture_output=True, text=True)
            await aborting

        with pytest.raises(RunAborted) as raised:
            asyncio.run(main())
        assert raised.value.process is not None
        assert raised.value.process.stdout == "so far\n"

    def test_a_cancellation_from_elsewhere_ends_it_too(
        self, controller: AbortController, tmp_path: Path, escalations: list[str]
    ) -> None:
        path = tmp_path / "pid"

        async def main() -> None:
            task = asyncio.ensure_future(
                controller.signal.run_async(["sh", "-c", f"echo $$ > {path}; exec sleep 600"])
            )
            while not (path.exists() and path.read_text()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not is_there(int(path.read_text()))

        asyncio.run(main())
        assert escalations == []

    @pytest.mark.parametrize("is_aborted_first", [False, True])
    def test_a_cancellation_from_elsewhere_is_not_lost_in_an_abort(
        self, configure: Configure, tmp_path: Path, is_aborted_first: bool
    ) -> None:
        configure(REDIS_URL=None, LISTEN=False)
        path = tmp_path / "runs"
        may_end = tmp_path / "may_end"
        program = f"trap '' TERM; touch {path}; until [ -e {may_end} ]; do sleep 0.01; done"

        async def work() -> None:
            async with abortable_run("run-1", catch=True) as signal:
                await signal.run_async(["sh", "-c", program])
            pytest.fail("the task goes on")

        async def main() -> None:
            task = asyncio.ensure_future(work())
            await asyncio.to_thread(wait_until, path.exists)
            steps = [task.cancel, lambda: current().registry.abort(Request("run-1"))]
            for step in reversed(steps) if is_aborted_first else steps:
                assert step()
                await asyncio.sleep(0.05)
            may_end.touch()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        asyncio.run(main())

    def test_in_a_stream_an_abort_is_one_too(self, configure: Configure, tmp_path: Path) -> None:
        configure(REDIS_URL=None, LISTEN=False)
        path = tmp_path / "runs"
        codes = []

        async def chunks(signal: AbortSignal) -> AsyncGenerator[str, None]:
            try:
                await signal.run_async(["sh", "-c", f"touch {path}; exec sleep 600"])
            except RunAborted as aborted:
                codes.append(aborted.process and aborted.process.returncode)
                raise
            yield "done"

        async def main() -> list[str]:
            aborting = asyncio.ensure_future(abort_after(path))
            stream = abortable_stream("run-1", chunks, on_abort=lambda aborted: "aborted")
            read = [chunk async for chunk in stream]
            await aborting
            return read

        assert asyncio.run(main()) == ["aborted"]
        assert codes == [-signals.SIGTERM]

    def test_a_fork_does_not_wait_for_it(self, controller: AbortController, tmp_path: Path) -> None:
        path = tmp_path / "runs"

        async def main() -> float:
            task = asyncio.ensure_future(
                controller.signal.run_async(["sh", "-c", f"touch {path}; exec sleep 600"])
            )
            await asyncio.to_thread(wait_until, path.exists)
            began = time.monotonic()
            workers.before_fork()
            took = time.monotonic() - began
            controller.abort()
            with pytest.raises(RunAborted):
                await task
            return took

        assert asyncio.run(main()) < workers.JOIN_TIMEOUT / 2


@pytest.mark.parametrize("grace", ["soon", True, -1, float("nan"), float("inf")])
def test_a_grace_that_is_none_is_an_error_before_it_is_needed(
    controller: AbortController, grace: Any
) -> None:
    async def run() -> None:
        await controller.signal.run_async(["true"], grace=grace)

    with subprocess.Popen(["true"]) as process:
        for use in (
            lambda: controller.signal.run(["true"], grace=grace),
            lambda: asyncio.run(run()),
            lambda: controller.signal.attach(process, grace=grace),
            lambda: controller.signal.ends_children(grace=grace),
        ):
            with pytest.raises((TypeError, ValueError), match="grace must be"):
                use()


class TestProcfs:
    def test_tells_of_this_process(self) -> None:
        entry = procfs.entry_of(os.getpid())
        assert entry is not None
        assert (entry.pid, entry.parent, entry.group) == (
            os.getpid(),
            os.getppid(),
            os.getpgrp(),
        )
        assert not entry.is_dead
        assert entry in set(procfs.processes())
        assert 0 < time.time() - (procfs.boot_time() + entry.began) < 24 * 3600

    def test_a_name_with_parentheses(self, tmp_path: Path) -> None:
        program = tmp_path / "a) R 1 (b"
        program.symlink_to("/bin/sleep")
        with subprocess.Popen([str(program), "600"]) as process:
            wait_until(lambda: procfs.entry_of(process.pid) is not None)
            entry = procfs.entry_of(process.pid)
            assert entry is not None
            assert entry.parent == os.getpid()
            process.kill()
            wait_until(lambda: procfs.entry_of(process.pid).is_dead)  # type: ignore[union-attr]

    def test_of_nobody_nothing(self) -> None:
        assert procfs.entry_of(2**22 + 1) is None
        assert process_tree.family_of(2**22 + 1) is None
