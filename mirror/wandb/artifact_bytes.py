"""Bytes of an artifact's files, sent to where a W&B server wants them: side by side, large files in parts.

The SDK sends a file of 2 GiB or more in parts of 100 MiB, of which a server takes 10,000 (wandb 0.31); a bucket takes
no more than 5 GiB at once. Places to send to are signed for a while: those that are too old are asked for again.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from mirror.errors import TerminalSourceError
from mirror.pool import Pool
from mirror.portions import portions
from mirror.records import ArtifactEntry
from mirror.wandb.client import Client, nodes
from mirror.wandb.mutations import mutate
from mirror.wandb.transport import LONG, Patience, RefusedQuery
from mirror.wandb.uploads import RefusedBytes, headers, put_bytes

FILES_AT_ONCE = 500
BYTES_AT_ONCE = 4 << 30
"""Of files whose places are asked for at once."""
PART = 100 << 20
IN_PARTS_FROM = 2 << 30
_MOST_PARTS = 10_000
_ROUNDS = 5
_PIECE = 1 << 20
_TOO_OLD = {400, 401, 403}
"""What buckets answer to a signature that has expired (S3 and GCS 403, others 400 and 401)."""


@dataclass(frozen=True)
class Stored:
    """A file of the mirror and the entry it is."""

    entry: ArtifactEntry
    path: Path
    size: int

    @property
    def part(self) -> int:
        """Bytes of each part."""
        return max(PART, -(-self.size // _MOST_PARTS))

    def parts(self) -> list[dict[str, Any]] | None:
        """Number and md5 of every part; None of a file that is sent whole."""
        if self.size < IN_PARTS_FROM:
            return None
        found = []
        for number, start in enumerate(range(0, self.size, self.part), 1):
            hashed = hashlib.md5(usedforsecurity=False)
            with Slice(self.path, start, min(self.part, self.size - start)) as file:
                while piece := file.read(_PIECE):
                    hashed.update(piece)
            found.append({"partNumber": number, "hexMD5": hashed.hexdigest()})
        return found


def send_files(
    client: Client,
    storage_id: str,
    manifest: str,
    files: Sequence[Stored],
    *,
    patience: Patience = LONG,
    workers: int = 4,
    sent: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, str]:
    """Send the files of a draft; returns the id of the artifact that first held each of them, by path. What the server
    holds already is not sent. `sent` is told of bytes as they go, and of fewer when some go again; by several threads.
    Raises a SourceError."""
    born: dict[str, str] = {}
    pool = Pool(workers, "upload")
    waiting = list(files)
    try:
        for last in (*[False] * (_ROUNDS - 1), True):
            again: list[Stored] = []
            for batch in portions(waiting, lambda file: file.size, BYTES_AT_ONCE, FILES_AT_ONCE):
                again += _send(client, storage_id, manifest, batch, patience, pool, sent, born, last)
            if not (waiting := again):
                break
    finally:
        pool.close()
    return born


@dataclass
class _Going:
    file: Stored
    parts: list[dict[str, Any]] | None
    place: dict[str, Any]
    puts: list[Future[None]] = field(default_factory=list)


def _send(
    client: Client,
    storage_id: str,
    manifest: str,
    batch: Sequence[Stored],
    patience: Patience,
    pool: Pool,
    sent: Callable[[int], None],
    born: dict[str, str],
    last: bool,
) -> list[Stored]:
    """Send files at once; returns those whose places were too old."""
    hashed = [file.parts() for file in batch]
    going = []
    for file, parts, place in zip(batch, hashed, _places(client, storage_id, manifest, batch, hashed, patience),
                                  strict=True):  # fmt: skip
        going.append(one := _Going(file, parts, place))
        born[file.entry.path] = str((place.get("artifact") or {}).get("id") or storage_id)
        for url, start, size, wanted in _pieces(one):
            one.puts.append(pool.submit(_put, client, url, file, start, size, wanted, patience, sent))
        if not one.puts:
            sent(file.size)
    again = []
    for one in going:
        try:
            # All have ended before it is judged: none may come in between those of the next round.
            if failed := [error for put in one.puts if (error := put.exception())]:
                raise failed[0]
            if one.puts and one.place.get("uploadMultipartUrls"):
                _join(client, storage_id, one, patience)
        except RefusedBytes as e:
            if last or e.status not in _TOO_OLD:
                raise
            again.append(one.file)
        except RefusedQuery:  # it is one file already, if the answer to an earlier try was lost: ask where it stands
            if last:
                raise
            again.append(one.file)
    return again


def _pieces(one: _Going) -> Iterator[tuple[str, int, int, dict[str, str]]]:
    """Where each piece of a file goes: URL, first byte, bytes, headers. None if the server has it."""
    file, place = one.file, one.place
    wanted = headers(place.get("uploadHeaders"))
    urls = (place.get("uploadMultipartUrls") or {}).get("uploadUrlParts") if one.parts else None
    if urls:
        hashed = {part["partNumber"]: part["hexMD5"] for part in one.parts or ()}
        if {url.get("partNumber") for url in urls} != hashed.keys():
            raise TerminalSourceError(f"the server gave places for {len(urls)} of {len(hashed)} parts of a file")
        for url in urls:
            number = url["partNumber"]
            start = (number - 1) * file.part
            md5 = base64.b64encode(bytes.fromhex(hashed[number])).decode()
            kept = {name: value for name, value in wanted.items() if name.lower() == "content-type"}
            yield url["uploadUrl"], start, min(file.part, file.size - start), kept | {"Content-MD5": md5}
    elif url := place.get("uploadUrl"):
        yield url, 0, file.size, wanted


def _put(
    client: Client,
    url: str,
    file: Stored,
    start: int,
    size: int,
    wanted: dict[str, str],
    patience: Patience,
    sent: Callable[[int], None],
) -> None:
    counted = Counted(sent)

    def body() -> BinaryIO:
        counted.begin()
        return cast(BinaryIO, Slice(file.path, start, size, counted.more))

    try:
        put_bytes(client, url, file.entry.path, body if size else b"", wanted, patience)
    except BaseException:
        counted.begin()
        raise
    counted.end(size)


def _join(client: Client, storage_id: str, one: _Going, patience: Patience) -> None:
    """Let the parts of a file be one."""
    given = {
        "completeMultipartAction": ("CompleteMultipartAction!", "Complete"),
        "completedParts": ("[UploadPartsInput!]!", one.parts),
        "artifactID": ("ID!", storage_id),
        "storagePath": ("String!", one.place.get("storagePath")),
        "uploadID": ("String!", one.place["uploadMultipartUrls"].get("uploadID")),
    }
    mutate(client, "completeMultipartUploadArtifact", given, "digest", patience=patience)


def _places(
    client: Client,
    storage_id: str,
    manifest: str,
    batch: Sequence[Stored],
    hashed: Sequence[list[dict[str, Any]] | None],
    patience: Patience,
) -> list[dict[str, Any]]:
    """Where the bytes of each file go; nowhere (no uploadUrl) if the server has them."""
    files = []
    for file, parts in zip(batch, hashed, strict=True):
        entry = file.entry
        said = {"artifactID": storage_id, "name": entry.path, "md5": entry.digest, "artifactManifestID": manifest}
        files.append(said | ({"uploadPartsInput": parts} if parts else {}))
    given = {
        "artifactFiles": ("[CreateArtifactFileSpecInput!]!", files),
        "storageLayout": ("ArtifactStorageLayout!", "V2"),
    }
    several = (
        " storagePath uploadMultipartUrls { uploadID uploadUrlParts { partNumber uploadUrl } }" if any(hashed) else ""
    )
    shown = f"files {{ edges {{ node {{ id name uploadUrl uploadHeaders artifact {{ id }}{several} }} }} }}"
    made = list(nodes(mutate(client, "createArtifactFiles", given, shown, patience=patience).get("files")))
    if len(made) != len(batch):
        raise TerminalSourceError(f"`{client.source}` gave places for {len(made)} of {len(batch)} files")
    return made


class Slice(io.RawIOBase):
    """A part of a file, read from its beginning. `more` is told of bytes that were read."""

    def __init__(self, path: Path, start: int, size: int, more: Callable[[int], None] = lambda nbytes: None) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self._size = size
        self._at = 0
        self._more = more

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._size - self._at]
        got = self._file.readinto(view) if len(view) else 0
        self._at += got
        self._more(got)
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


class Counted:
    """Tells of bytes by the megabyte, and takes back what has to go again."""

    def __init__(self, sent: Callable[[int], None]) -> None:
        self._sent = sent
        self._told = 0
        self._read = 0

    def begin(self) -> None:
        if self._told:
            self._sent(-self._told)
        self._told = self._read = 0

    def more(self, nbytes: int) -> None:
        self._read += nbytes
        if self._read - self._told >= _PIECE:
            self.end(self._read)

    def end(self, nbytes: int) -> None:
        """So many bytes are there."""
        self._sent(nbytes - self._told)
        self._told = self._read = nbytes
