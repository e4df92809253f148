"""File bytes by their content: ROOT/blobs/sha256/aa/<sha256>. A name that came over the wire is never a path here."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from mirror.errors import UsageError
from mirror.store.disk import explained, sync_folder

_PARTIAL = "partial-"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Blob:
    """What was stored: `sha256` hex, `md5` base64 as W&B serves it, `size` in bytes."""

    sha256: str
    md5: str
    size: int


class Incoming:
    """Bytes on their way into the store. With a `name` they stay when the transfer breaks off or its process is
    killed, and whoever opens the same name next goes on from there; one at a time."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self._folder = folder
        self._stays = self._placed = False
        file = self._resumed(name) if name is not None else None
        while file is None:
            self._tmp = folder / f"incoming-{secrets.token_hex(8)}.tmp"
            file = self._tmp.open("xb")
            if not _locked(file, self._tmp):  # taken for a leftover in between
                file.close()
                file = None
        self._file = file
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0
        if self._stays:
            while chunk := self._file.read(_PIECE):
                self._take(chunk)

    def _resumed(self, name: str) -> BinaryIO | None:
        """The file of that name, locked; None if another process is writing to it."""
        hashed = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self._tmp = self._folder / f"{_PARTIAL}{hashed}.tmp"
        file = os.fdopen(os.open(self._tmp, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        if not _locked(file, self._tmp):
            file.close()
            return None
        self._stays = True
        return file

    def write(self, chunk: bytes) -> None:
        with explained("storing a file"):
            self._file.write(chunk)
        self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._md5.update(chunk)
        self._size += len(chunk)

    def tell(self) -> int:
        """Bytes that are here."""
        return self._size

    def seek(self, position: int) -> None:
        """Begin anew: a transfer that broke off is made again from its first byte."""
        assert position == 0
        with explained("storing a file"):
            self._file.seek(0)
            self._file.truncate()
        self._sha256, self._md5, self._size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0

    def truncate(self) -> None:
        """Nothing is left to cut off after `seek`; for those who write to it as to a file."""

    def keep(self, md5: str | None = None) -> Blob:
        """Make the bytes durable under their hash. Bytes that are there already are not written twice. `UsageError`
        if their base64 md5 is not the one that was announced."""
        blob = Blob(self._sha256.hexdigest(), base64.b64encode(self._md5.digest()).decode(), self._size)
        if md5 is not None and md5 != blob.md5:
            self._stays = False
            raise UsageError(f"the bytes that came have md5 `{blob.md5}`, announced was `{md5}`: send them again")
        final = blob_path(self._folder, blob.sha256)
        with explained("storing a file"):
            if final.exists():
                self._stays = False
                return blob
            self._file.flush()
            os.fsync(self._file.fileno())
            final.parent.mkdir(exist_ok=True)
            self._tmp.chmod(0o444)
            self._tmp.replace(final)
            self._placed = True
            sync_folder(final.parent)
            sync_folder(self._folder)
        return blob

    def close(self) -> None:
        if not (self._stays or self._placed):
            self._tmp.unlink(missing_ok=True)  # under its lock, before another can open it
        self._file.close()


TABLE_SUFFIX = ".table.json"
"""How names of W&B tables end."""


def blob_path(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / sha256


def table_path(folder: Path, sha256: str) -> Path:
    """Where the rows of a W&B table with these bytes lie, once they are read (`Layout.tables`)."""
    return folder / sha256[:2] / f"{sha256}.parquet"


@contextmanager
def incoming(folder: Path, name: str | None = None) -> Iterator[Incoming]:
    """A place to write bytes to; what is not kept is removed, or waits under its `name` to be gone on with."""
    with explained("storing a file"):
        folder.mkdir(parents=True, exist_ok=True)
        found = Incoming(folder, name)
    try:
        yield found
    finally:
        found.close()


def remove_leftovers(folder: Path) -> None:
    """Drop what killed processes were receiving."""
    _remove(folder, "incoming-*.tmp")


def remove_partial(folder: Path, older: float = 0.0) -> None:
    """Drop downloads that broke off more than `older` seconds ago and that nobody goes on with."""
    _remove(folder, f"{_PARTIAL}*.tmp", older)


def _remove(folder: Path, pattern: str, older: float = 0.0) -> None:
    for path in folder.glob(pattern):
        try:
            with path.open("rb") as file:
                if path.stat().st_mtime <= time.time() - older and _locked(file, path):
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


def _locked(file: IO[bytes], path: Path) -> bool:
    """Whether we have the file to ourselves, and it is still the one at that path."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
