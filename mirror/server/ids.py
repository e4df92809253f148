"""Names that go over the wire and come back: storage ids, file ids, cursors.

All are base64 of a readable text, as W&B's own are (`Run:v1:<run>:<project>:<entity>`); clients treat them as
opaque. A run logged here gets a random tail, so that deleting a run and making one of the same name never
gives the same id twice. A run mirrored from elsewhere is served under `Mirrored:v1:<source>:<its own id>`:
two instances may have given the same id to two runs.
"""

from __future__ import annotations

import base64
import binascii
import secrets


def encode(*parts: str | int) -> str:
    """The opaque text of `parts` (none but the last may hold a colon)."""
    return base64.urlsafe_b64encode(":".join(map(str, parts)).encode()).decode()


def decode(text: str, kind: str, parts: int) -> list[str] | None:
    """The parts after `kind` of an id made by `encode(kind, ...)`; None if `text` is not one."""
    try:
        plain = base64.urlsafe_b64decode(text.encode()).decode()
    except (ValueError, binascii.Error):
        return None
    head, *rest = plain.split(":", parts)
    return rest if head == kind and len(rest) == parts else None


def new_run_id(entity: str, project: str, run_id: str) -> str:
    """A storage id for a new run: like W&B's, and never given twice."""
    return encode("Run", "v1", run_id, project, f"{entity}:{secrets.token_hex(8)}")


def mirrored_run_id(source: str, storage_id: str) -> str:
    """The id under which a run of another source is served."""
    return encode("Mirrored", base64.urlsafe_b64encode(source.encode()).decode(), storage_id)


def parse_mirrored_run_id(text: str) -> tuple[str, str] | None:
    """(source, storage id) of an id made by `mirrored_run_id`, or None."""
    parts = decode(text, "Mirrored", 2)
    try:
        return (base64.urlsafe_b64decode(parts[0].encode()).decode(), parts[1]) if parts else None
    except (ValueError, binascii.Error):
        return None


def new_item_id(kind: str, *names: str) -> str:
    """A storage id for a new sweep or report, never given twice."""
    return encode(kind, "v1", *names, secrets.token_hex(8))
