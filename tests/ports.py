"""Ports that stay free until a server of the tests takes them, also while it is killed and started again."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

_LOWEST, _HIGHEST = 20_000, 32_000
"""Below what Linux (32768) and macOS (49152) give to outgoing connections: those of other tests would take a port that
was free when it was chosen."""

_held: list[IO[bytes]] = []


def free_port() -> int:
    """A port that nobody listens on, and that no other process of tests on this machine is given while this one lives:
    each port given is locked by a file of its own."""
    locks = Path(tempfile.gettempdir()) / f"ports-of-mirror-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    ports = range(_LOWEST, _HIGHEST)
    for port in random.Random(os.getpid()).sample(ports, len(ports)):
        file = (locks / str(port)).open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as s:
                s.bind(("127.0.0.1", port))
        except OSError:
            file.close()
            continue
        _held.append(file)
        return port
    raise RuntimeError(f"no port from {_LOWEST} to {_HIGHEST} is free")
