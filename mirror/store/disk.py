"""Durable files: written under another name, flushed to the disk, then renamed. A reader sees a whole file or none."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mirror.errors import StoreError


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the operating system's refusals into one line that says what to do next."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"the disk is full while {doing}: nothing committed was lost; free some space and run the command again"
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"no permission while {doing} (`{e.filename}`): write as the owner of the mirror, "
                "or choose another --mirror"
            ) from e
        raise StoreError(f"the disk refused while {doing}: {e}") from e


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, write: Callable[[BinaryIO], object], *, mode: int = 0o644) -> None:
    """Create or replace `path` atomically with what `write` puts into the open file."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        with tmp.open("wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        tmp.chmod(mode)
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(f, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
