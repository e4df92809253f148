"""Files of runs: names that are safe to hand out, bytes in, bytes out."""

from __future__ import annotations

import mimetypes
import re
from datetime import datetime, timezone

from mirror.errors import UsageError
from mirror.records import FileEntry
from mirror.store.blobs import Blob

_PREFIX = "sha256:"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
MAX_NAME = 1024
METADATA = "wandb-metadata.json"


def checked_name(name: str) -> str:
    """The name, if a client can safely join it to a folder; `UsageError` otherwise."""
    parts = name.split("/")
    if (
        not name
        or len(name) > MAX_NAME
        or name.startswith("/")
        or "\\" in name
        or _CONTROL.search(name)
        or any(part in ("", ".", "..") for part in parts)
        or re.match(r"[A-Za-z]:", name)
    ):
        raise UsageError(
            f"`{name[:200]!r}` is no file name that is taken here: it must be a relative path of at most {MAX_NAME} "
            "characters without `..`, empty parts, backslashes or control characters"
        )
    return name


def entry(name: str, blob: Blob) -> FileEntry:
    """The manifest entry of bytes that were just stored."""
    return FileEntry(
        name,
        blob.size,
        blob.md5,
        mimetypes.guess_type(name)[0] or "application/octet-stream",
        datetime.now(timezone.utc),
        _PREFIX + blob.sha256,
        sha256=blob.sha256,
    )


def sha256_of(found: FileEntry) -> str | None:
    """Where the bytes are; None if this mirror does not hold them."""
    if found.storage_id and re.fullmatch(_PREFIX + "[0-9a-f]{64}", found.storage_id):
        return found.storage_id[len(_PREFIX) :]
    return None


def file_path(entity: str, project: str, run_id: str, name: str) -> str:
    """The URL path under which W&B serves a run's file, not yet percent-encoded."""
    return f"/files/{entity}/{project}/{run_id}/{name}"


def upload_path(entity: str, project: str, run_id: str, name: str) -> str:
    return f"/upload/{entity}/{project}/{run_id}/{name}"
