"""Bytes of files onto the disk: out of the mirror, or from the server if that is allowed."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mirror.errors import SourceError, UsageError
from mirror.objects.attrs import ArgumentError
from mirror.store.blobs import blob_path

_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileExists(ArgumentError):
    """A download would overwrite a file."""


def blob(blobs: Path, sha256: str | None) -> Path | None:
    """The file below ROOT/blobs with these bytes, None if the mirror does not hold them."""
    if sha256 is None or not _SHA256.fullmatch(sha256):
        return None
    path = blob_path(blobs, sha256)
    return path if path.is_file() else None


def place(root: str | Path, name: str) -> Path:
    """Where a file of that name goes below `root`. Names are chosen by strangers: UsageError for one that would
    lead out of it."""
    top = Path(root).expanduser().absolute()
    parts = re.split(r"[/\\]", name)
    path = Path(os.path.normpath(top / name))
    if (
        not name
        or any(ord(c) < 32 or ord(c) == 127 for c in name)
        or any(part in ("", ".", "..") for part in parts)
        or Path(name).is_absolute()
        or re.match(r"[A-Za-z]:", name)
        or not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(top))
    ):
        raise UsageError(f"`{name[:200]!r}` is no name that can be written below `{top}`: it leads out of the folder")
    return path


def checked(path: Path, replace: bool, exist_ok: bool) -> bool:
    """Whether the file is to be written. Raises FileExists."""
    if not path.exists() or replace:
        return True
    if exist_ok:
        return False
    raise FileExists(f"`{path}` exists: pass replace=True to overwrite it, or exist_ok=True to leave it as it is")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete, and not at all otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with tmp.open("x+b") as out:
            yield out
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def copy(source: Path, path: Path) -> None:
    """A copy of a held file's bytes."""
    with source.open("rb") as held, written(path) as out:
        shutil.copyfileobj(held, out, 1 << 20)


def verify(file: IO[bytes], md5: str | None, name: str) -> None:
    """Compare what was written with its md5 (base64, as W&B has it; None if it is not known). Raises SourceError."""
    if md5 is None:
        return
    file.seek(0)
    found = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(1 << 20):
        found.update(chunk)
    if base64.b64encode(found.digest()).decode() != md5:
        raise SourceError(f"`{name}` arrived damaged: its md5 is not `{md5}`; download it again")
