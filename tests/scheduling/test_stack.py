"""Child processes of ours: they end with us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OURS = """
import sys
from pathlib import Path
from anomaly_times.cli.run import until_signal
from anomaly_times.scheduling.stack import Part, Stack

stack, pids = Stack(), Path("pids")
with until_signal(stack.kill) as stop, stack:
    part = Part("child", [sys.executable, "-c", sys.argv[1]], Path("child.log"))
    stack.start(part, ready=lambda: pids.exists() and len(pids.read_text().split()) == 2, stop=stop)
    print("up", flush=True)
    stop.wait()
    print("stopping", flush=True)
"""

STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
with open("pids", "w") as file:
    file.write(f"{os.getpid()} {inner.pid}")
time.sleep(300)
"""
"""A child that does not listen, with one of its own that leads another session."""

POLITE = """
import os, signal, time
with open("pids", "w") as file:
    file.write(f"{os.getpid()} {os.getpid()}")
time.sleep(300)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="who is there is read from /proc")


@contextmanager
def ours(folder: Path, child: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process with a stack of one part, and the pids of that part and of what it started."""
    process = subprocess.Popen(
        [sys.executable, "-c", OURS, child], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process, [int(pid) for pid in (folder / "pids").read_text().split()]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        for pid in map(int, (folder / "pids").read_text().split()):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_second_signal_ends_us_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    with ours(tmp_path, STUBBORN) as (process, pids):
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        # Far below the time that a part has to end by itself.
        assert time.monotonic() - began < 10
        assert soon(lambda: not any(map(alive, pids))), pids


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of the end of their parent")
def test_a_part_does_not_outlive_us_when_we_are_killed(tmp_path: Path) -> None:
    with ours(tmp_path, POLITE) as (process, pids):
        process.kill()
        process.wait()
        assert soon(lambda: not any(map(alive, pids))), pids
