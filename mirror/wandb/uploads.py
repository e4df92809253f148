"""Bytes of run files, sent to where a W&B server wants them: a bucket, or the server itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from mirror.errors import SourceError, TerminalSourceError
from mirror.wandb.client import Client
from mirror.wandb.mutations import mutate
from mirror.wandb.transport import LONG, Body, Patience, RefusedQuery, UnknownFields, reason

FILES_AT_ONCE = 100


class RefusedBytes(TerminalSourceError):
    """A server or a bucket would not take the bytes of a file."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """A file of a run: its name there, and its bytes as a path or as they are."""

    name: str
    content: Path | bytes

    def open(self) -> BinaryIO:
        return self.content.open("rb") if isinstance(self.content, Path) else BytesIO(self.content)

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


def upload_files(
    client: Client,
    entity: str,
    project: str,
    run_id: str,
    files: Sequence[Upload],
    *,
    patience: Patience = LONG,
) -> dict[str, str]:
    """Upload files of a run; returns the names of those that were refused for themselves, with the reason.

    Tried again when the bucket says it is too busy (503 SlowDown) or the connection breaks. Raises a SourceError
    when the server cannot be reached or takes no files at all.
    """
    refused: dict[str, str] = {}
    for start in range(0, len(files), FILES_AT_ONCE):
        part = files[start : start + FILES_AT_ONCE]
        try:
            made = _places(client, entity, project, run_id, [file.name for file in part])
        except RefusedQuery as e:
            if len(part) == 1:
                refused[part[0].name] = str(e)
                continue
            # One name that is not taken refuses the whole request: find out which.
            for file in part:
                refused |= upload_files(client, entity, project, run_id, [file], patience=patience)
            continue
        urls, wanted = made
        for file in part:
            if not (url := urls.get(file.name)):
                refused[file.name] = f"`{client.source}` gave no place to upload it to"
                continue
            try:
                put(client, url, file, wanted, patience)
            except RefusedBytes as e:
                refused[file.name] = str(e)
    return refused


def put(client: Client, url: str, file: Upload, headers: dict[str, str], patience: Patience = LONG) -> None:
    """PUT a file's bytes. Raises a SourceError."""

    body = file.open if file.size else b""  # an empty file would go out in chunks, which buckets refuse
    put_bytes(client, url, file.name, body, headers, patience)


def put_bytes(
    client: Client, url: str, name: str, body: Body, headers: dict[str, str], patience: Patience = LONG
) -> None:
    """The same of a body of any kind."""

    def answer(status: int, content: bytes, _: Any) -> None:
        if status >= 300:
            raise RefusedBytes(
                f"the bytes of `{name}` were refused with status {status}{reason(content)}: try again", status
            )

    client.transport.send("PUT", url, body, answer, headers=headers, patience=patience)


def mark_uploaded(client: Client, entity: str, project: str, run_id: str, names: Sequence[str]) -> bool:
    """Say that files of a run that has ended are there now; False if the server has no words for that (older ones)."""
    given = _of_run(entity, project, run_id) | {"files": ("[String!]!", list(names))}
    try:
        mutate(client, "markRunFilesUploaded", given, "success")
    except SourceError as e:
        if isinstance(e.__cause__, UnknownFields) or isinstance(e, UnknownFields):
            return False
        raise
    return True


def _places(
    client: Client, entity: str, project: str, run_id: str, names: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Where to PUT each file, and with which headers."""
    given = _of_run(entity, project, run_id) | {"files": ("[String!]!", list(names))}
    payload = mutate(client, "createRunFiles", given, "uploadHeaders files { name uploadUrl }")
    urls = {f["name"]: f["uploadUrl"] for f in payload.get("files") or () if f.get("name") and f.get("uploadUrl")}
    return urls, headers(payload.get("uploadHeaders"))


def _of_run(entity: str, project: str, run_id: str) -> dict[str, tuple[str, Any]]:
    return {"entityName": ("String!", entity), "projectName": ("String!", project), "runName": ("String!", run_id)}


def headers(texts: Any) -> dict[str, str]:
    """Headers as servers say them: a list of `Name: value`."""
    pairs = (text.partition(":") for text in texts or () if isinstance(text, str))
    return {name.strip(): value.strip() for name, _, value in pairs}
