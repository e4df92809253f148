"""Processes that are killed at a counted request, or at a counted step of their own: each kill meets its process alive,
however slow the machine is."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from liar import Action, Request, Reset
from starting import Started
from syncing import Proxy


def killed_at(
    proxy: Proxy, at: int, start: Callable[[], Started | subprocess.Popen[bytes]], *, arrives: bool = False
) -> int:
    """Start a process that asks the proxy, and `kill -9` it when it has asked `at` times (1 is the first request).

    It hears no answer to that request or to any later one; `arrives` says whether the server got that request all the
    same. The server has answered all that it got by then, so that it does nothing more afterwards. Returns the exit
    code: -9, or that of a process which had less to ask.
    """
    asked, under_way, counting = 0, 0, threading.Lock()
    due, dead = threading.Event(), threading.Event()
    usual = proxy.reply

    def reply(request: Request) -> Action:
        nonlocal asked, under_way
        with counting:
            asked += 1
            number = asked
            passed = number < at or (number == at and arrives)
            under_way += passed
        if passed:
            try:
                answer = usual(request)
            finally:
                with counting:
                    under_way -= 1
            if number < at:
                return answer
        due.set()
        dead.wait(300)
        return Reset()

    proxy.reply = reply
    process = start()
    try:
        while process.poll() is None and not (due.wait(0.01) and not under_way):
            pass
    finally:
        if due.is_set():
            process.send_signal(signal.SIGKILL)
        code = process.wait(300)
        dead.set()
        proxy.reply = usual
    return code


_COUNTED = """
import signal, sys
left, later = int(sys.argv.pop(1)), float(sys.argv.pop(1))
begun = left

def count(frame, event, what):
    global left
    if event in ("c_call", "c_return"):
        left -= 1
        if left == 0:
            signal.setitimer(signal.ITIMER_REAL, later) if later else signal.raise_signal(signal.SIGKILL)

def steps():
    sys.setprofile(None)
    return begun - left

"""


def dying(script: str, *args: str, at: int = 0, later: float = 0.0) -> tuple[int, int]:
    """Run a script that calls `sys.setprofile(count)` where the steps begin, and `print(steps())` at its end.

    A step is the call of a function of C, or its return. The process ends at step `at`, by SIGKILL; or `later` seconds
    after it, maybe within such a function, by SIGALRM, which nobody hears either; by itself if it has fewer steps.
    Returns its exit code and the number it printed (0 if it did not).
    """
    command = [sys.executable, "-c", _COUNTED + script, str(at), str(later), *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=False)
    assert done.returncode in (0, -signal.SIGKILL, -signal.SIGALRM), done
    return done.returncode, int(done.stdout or 0)
