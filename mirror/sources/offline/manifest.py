"""The files beside a log (`files/` in its run folder): names, sizes and checksums; nothing is copied."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import os
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from mirror.errors import TerminalSourceError
from mirror.records import FileEntry

METADATA = "wandb-metadata.json"
_METADATA_LIMIT = 16 << 20
_READ = 1 << 20


def _regular(folder: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Regular files below a folder by their names, sorted. Links to files count as the file (`run.save` makes
    them); links to folders are not followed, and what is no file (a pipe, a device) is never opened."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(place, file)
            try:
                found = path.stat()
            except OSError:
                continue  # a link that leads nowhere
            if stat.S_ISREG(found.st_mode):
                yield path.relative_to(folder).as_posix(), path, found


def named(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a run's `files` folder by the names they have in its manifest."""
    for name, path, _ in _regular(folder):
        yield _as_text(name), path


def _as_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def version(folder: Path) -> str:
    """Changes when a file below a folder does, as far as sizes and times tell."""
    seen = hashlib.blake2b(digest_size=8)
    for name, _, found in _regular(folder):
        seen.update(os.fsencode(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0"))
    return seen.hexdigest()


def manifest(folder: Path) -> list[FileEntry]:
    """All files below a run's `files` folder. Raises TerminalSourceError for one that cannot be read."""
    return [_entry(name, path, found) for name, path, found in _regular(folder)]


def _entry(name: str, path: Path, found: os.stat_result) -> FileEntry:
    md5 = hashlib.md5(usedforsecurity=False)
    size = 0
    try:
        with path.open("rb") as file:
            while part := file.read(_READ):
                md5.update(part)
                size += len(part)
    except OSError as e:
        raise TerminalSourceError(f"`{path}` cannot be read: {e.strerror or e}", e) from e
    return FileEntry(
        name=_as_text(name),
        size=size,
        md5=base64.b64encode(md5.digest()).decode(),
        mimetype=mimetypes.guess_type(name)[0],
        updated_at=datetime.fromtimestamp(found.st_mtime, timezone.utc),
        url=path.absolute().as_uri(),
    )


def metadata(folder: Path) -> str | None:
    """The text of `wandb-metadata.json`, which SDKs before 0.20 wrote beside the log; None if there is none."""
    path = folder / METADATA
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _METADATA_LIMIT:
            return None
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
