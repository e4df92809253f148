"""What tests of pushes share: a server where the real SDK logged, a mirror of it, and what the SDK reads there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import Server, client, serving
from syncing import Copy

from mirror.credentials import Credential
from mirror.importers.run import Destination
from mirror.wandb.client import Client
from mirror.wandb.transport import Patience, Transport


@dataclass
class Lab:
    source: Server
    copy: Copy
    logged: Any


@contextmanager
def logged_lab(place: Path, log: str, read: str, *args: str, mirrored: list[str]) -> Iterator[Lab]:
    """`log` and `read` are scripts; `read` gets `args`."""
    with serving(place / "source") as source:
        client(source, log)
        copy = Copy(place / "copy", source.url, source.key)
        copy.sync(*mirrored, "--all-bytes")
        yield Lab(source, copy, client(source, read, *args))


def opened(there: Server, url: str | None = None, tries: int = 6) -> Destination:
    """The server, to be sent to (through `url`, if it stands behind another address)."""
    transport = Transport(url or there.url, Credential(there.key, "a test"), writable=True)
    return Destination(Client(transport), patience=Patience(tries, first_wait=0.05))
