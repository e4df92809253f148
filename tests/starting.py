"""Processes of `mirror`, and of scripts with W&B's SDK, that begin with everything imported: what most tests want of a
process is to call it, to watch it and to kill it, and a second of imports each time is most of what that costs.

    python starting.py FD MODULE...      a nursery: it imports the modules once and forks a process for every request

Each process is one of its own, with the arguments, environment, folder and files it was given. It runs what the console
script runs, or a script as `python -c` does, and ends as an interpreter ends. Tests of starting itself run the
interpreter (`MIRROR`, `SERVE`).
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import mirror

_PROGRAM = ("mirror.cli.serve", "mirror.server.runner", "mirror.cli.sync", "mirror.sync.session", "mirror.cli.sending")
_SDK = ("wandb", "wandb.apis.public", "numpy")
_nurseries: dict[tuple[int, tuple[str, ...]], socket.socket] = {}
_asking = threading.Lock()


class Started:
    """A process `mirror ARGUMENTS`, or `python -c SCRIPT ARGUMENTS`, with the methods of subprocess.Popen that tests
    need."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        script: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        request = {"arguments": self.arguments, "script": script}
        request |= {"env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
        body = json.dumps(request).encode()
        self._status, theirs = socket.socketpair()
        with Path(os.devnull).open("r+b") as nowhere, theirs:
            files = [nowhere, stdout or 1, stderr or 2]
            fds = [_fd(nowhere if file == subprocess.DEVNULL else file) for file in files]
            with _asking:
                nursery = _nursery(_SDK if script else _PROGRAM)
                socket.send_fds(nursery, [len(body).to_bytes(4, "big")], [theirs.fileno(), *fds])
                nursery.sendall(body)
        self.pid = int.from_bytes(self._status.recv(4), "big")

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                said = self._status.recv(4)
            except (BlockingIOError, TimeoutError):
                return None
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(said, "big"))
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _fd(file: IO[Any] | int) -> int:
    return file if isinstance(file, int) else file.fileno()


def run_mirror(
    arguments: Sequence[str | Path],
    *,
    script: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = 120,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """`mirror ARGUMENTS`, or the script, to its end, with what it said."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Started(arguments, script=script, env=env, cwd=cwd, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        out.seek(0), err.seek(0)
        said = out.read().decode(), err.read().decode()
    done = subprocess.CompletedProcess(process.arguments, code, *said)
    if check and code:
        raise subprocess.CalledProcessError(code, process.arguments, *said)
    return done


def _nursery(modules: tuple[str, ...]) -> socket.socket:
    """The one of this process with these modules; it ends when the socket is closed, as when this process ends."""
    place = os.getpid(), modules
    if place not in _nurseries:
        path = [str(Path(mirror.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        mine, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "WANDB_ERROR_REPORTING": "false"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        assert mine.recv(1) == b"+", f"the nursery of processes did not start: {process.wait(10)}"
        atexit.register(lambda: (mine.close(), process.wait(300)))
        _nurseries[place] = mine
    return _nurseries[place]


# -- the nursery -------------------------------------------------------------------------------------------


def _tend(requests: socket.socket, modules: Sequence[str]) -> str | None:
    """Fork for every request until there is nobody to ask; returns in each child, ready to run: the script, if any."""
    import importlib

    from mirror.memory import without_pandas

    if modules[0] != "wandb":
        without_pandas()
    for name in modules:
        importlib.import_module(name)
    children: dict[int, socket.socket] = {}
    bell, ring = socket.socketpair()
    for end in (bell, ring):
        end.setblocking(False)
    del sys.path[0]  # of this script
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for those who ask
    signal.set_wakeup_fd(ring.fileno())
    waiting = selectors.DefaultSelector()
    waiting.register(requests, selectors.EVENT_READ)
    waiting.register(bell, selectors.EVENT_READ)
    requests.sendall(b"+")
    while True:
        for key, _ in waiting.select():
            if key.fileobj is bell:
                bell.recv(4096)
                _bury(children)
                continue
            header, fds, *_ = socket.recv_fds(requests, 4, 4)
            if not header:
                sys.exit(0)
            body = b""
            while len(body) < int.from_bytes(header, "big"):
                body += requests.recv(1 << 16)
            status = socket.socket(fileno=fds[0])
            if pid := os.fork():
                children[pid] = status
                status.sendall(pid.to_bytes(4, "big"))
                for fd in fds[1:]:
                    os.close(fd)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for one in (waiting, requests, bell, ring, status, *children.values()):
                one.close()
            request = json.loads(body)
            _become(request, fds[1:])
            return request["script"]  # type: ignore[no-any-return]


def _bury(children: dict[int, socket.socket]) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with children.pop(pid) as asked:
                try:
                    asked.sendall(status.to_bytes(4, "big"))
                except OSError:  # nobody waits for it any more
                    continue


def _become(request: dict[str, Any], files: Sequence[int]) -> None:
    for number, fd in enumerate(files):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for made in gc.get_objects():  # the SDK makes a folder when it is imported: each process needs one of its own
        if type(made) is tempfile.TemporaryDirectory:
            made._finalizer.detach()  # type: ignore[attr-defined]
            made.__init__(suffix="wandb-media")  # type: ignore[misc]
    os.chdir(request["cwd"])
    sys.argv = ["-c" if request["script"] else "mirror", *request["arguments"]]


if __name__ == "__main__":
    asked = _tend(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if asked is None:
        from mirror.cli import main

        main()
    else:
        sys.path.insert(0, "")
        sys.modules["__main__"] = own = ModuleType("__main__")
        exec(compile(asked, "<string>", "exec"), own.__dict__)
