"""``python encoder.py DONE TOTAL``: a program that behaves as ffmpeg does.

It knows nothing of Django, nor of aborts. A child process makes up the frames of a video; this
process compresses them, and prints a line for each. It ends once its output has no reader.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib

FRAME = 20_000  # bytes


def decode(done: int, total: int) -> None:
    """Write frames to the standard output: in a real program, those of a file."""
    for number in range(done, total):
        sys.stdout.buffer.write(bytes((x * number) % 251 for x in range(FRAME)))
        sys.stdout.buffer.flush()
        time.sleep(0.02)


def encode(done: int, total: int) -> None:
    """Compress the frames of the child process."""
    command = [sys.executable, __file__, str(done), str(total), "--decode"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as decoder:
        assert decoder.stdout is not None
        print("processes", os.getpid(), decoder.pid, flush=True)
        while frame := decoder.stdout.read(FRAME):
            print("frame", len(zlib.compress(frame)), flush=True)


if __name__ == "__main__":
    # As many programs do, it wants to finish its file first: SIGTERM is not enough to end it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    work = decode if "--decode" in sys.argv else encode
    work(int(sys.argv[1]), int(sys.argv[2]))
