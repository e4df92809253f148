"""File bytes by their content: ROOT/blobs/sha256/aa/<sha256>. A name that came over the wire is never a path here."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.errors import UsageError
from mirror.store.disk import explained, sync_folder


@dataclass(frozen=True)
class Blob:
    """What was stored: `sha256` hex, `md5` base64 as W&B serves it, `size` in bytes."""

    sha256: str
    md5: str
    size: int


class Incoming:
    """Bytes on their way into the store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmp = folder / f"incoming-{secrets.token_hex(8)}.tmp"
        self._file = self._tmp.open("xb")
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0

    def write(self, chunk: bytes) -> None:
        with explained("storing a file"):
            self._file.write(chunk)
        self._sha256.update(chunk)
        self._md5.update(chunk)
        self._size += len(chunk)

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
            raise UsageError(f"the bytes that came have md5 `{blob.md5}`, announced was `{md5}`: send them again")
        final = blob_path(self._folder, blob.sha256)
        with explained("storing a file"):
            if final.exists():
                return blob
            self._file.flush()
            os.fsync(self._file.fileno())
            final.parent.mkdir(exist_ok=True)
            self._tmp.chmod(0o444)
            self._tmp.replace(final)
            sync_folder(final.parent)
            sync_folder(self._folder)
        return blob

    def close(self) -> None:
        self._file.close()
        self._tmp.unlink(missing_ok=True)


def blob_path(folder: Path, sha256: str) -> Path:
    return folder / sha256[:2] / sha256


@contextmanager
def incoming(folder: Path) -> Iterator[Incoming]:
    """A place to write bytes to; what is not kept is removed."""
    with explained("storing a file"):
        folder.mkdir(parents=True, exist_ok=True)
        found = Incoming(folder)
    try:
        yield found
    finally:
        found.close()


def remove_leftovers(folder: Path) -> None:
    """Drop what a killed server was receiving."""
    for path in folder.glob("incoming-*.tmp"):
        path.unlink(missing_ok=True)
