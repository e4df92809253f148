"""Who may do what at the same time. All locks are `flock`s: the kernel drops them when a process dies, however it dies.

- the commit lock is held for the milliseconds of one commit;
- a project's lease is held by whoever writes its runs, for as long as he does; its file names the holder;
- a session's lock says that the writer with that name lives, so that its unfinished files are left alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from mirror.errors import LockedError


class FileLock:
    """An exclusive lock on a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self, *, remove: bool = False) -> None:
        if self._fd is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def write(self, text: str) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)


@contextmanager
def held(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()


class Lease:
    """The right to write the runs of one project of one source."""

    def __init__(self, folder: Path, source: str, entity: str, project: str) -> None:
        folder.mkdir(exist_ok=True)
        self.project = f"{entity}/{project}"
        name = hashlib.sha256(json.dumps([source, entity, project]).encode()).hexdigest()[:24]
        self._lock = FileLock(folder / f"{name}.lock")
        # The holder writes its name a moment after it gets the lock, so an empty file is asked again.
        for _ in range(20):
            if self._lock.acquire(wait=False):
                break
            try:
                holder = json.loads(self._lock.path.read_text())
            except (OSError, ValueError):
                time.sleep(0.01)
                continue
            raise LockedError(
                f"project `{self.project}` is being written by process {holder['pid']} on {holder['host']} "
                f"(`{holder['command']}`) since {holder['since']}: wait until it ends, or stop it, and try again"
            )
        else:
            raise LockedError(
                f"project `{self.project}` is being written by another process: try again when it has ended"
            )
        self._lock.write(
            json.dumps(
                {
                    "project": self.project,
                    "source": source,
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "command": " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:200],
                    "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                }
            )
        )

    def release(self) -> None:
        self._lock.write("")
        self._lock.release()
