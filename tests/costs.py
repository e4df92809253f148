"""What processes cost: processor time, whatever else the machine does, and the most memory they ever held."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def environ() -> dict[str, str]:
    """For processes that import this module."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def peak_kb() -> int:
    """Of the program that runs now. What getrusage says on Linux is also that of the process it was forked from, which
    hides everything that is less."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most


def spent(call: Callable[[], object]) -> float:
    """Seconds of processor time that the processes take which `call` starts and awaits, the least of eight calls."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(8))


_START = "import asyncio, ctypes, decimal, http.client, multiprocessing.pool, sqlite3, unittest.mock, xml.dom.minidom"
_USUAL = 0.14


def slowness() -> float:
    """How many times more processor time this machine takes to start Python with some of its own modules than the one
    (0.14 s) that limits of starts are for; never less than 1.3, which is what a machine with much to do takes there."""
    return max(1.3, 1.3 / _USUAL * spent(lambda: subprocess.run([sys.executable, "-I", "-c", _START], check=True)))
