"""The bytes of a run's files, as far as the mirror holds them, and which of them a destination has."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mirror.importers.account import Account
from mirror.importers.together import FileRow
from mirror.query.sql import asking
from mirror.records import FileEntry, RunKey
from mirror.store.blobs import blob_path
from mirror.wandb.transport import Patience
from mirror.wandb.uploads import Upload, upload_files

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client

METADATA = "wandb-metadata.json"
_SHOWN = 3


class RunFiles:
    """The files of a run. `sent` has base64 md5 and size of those that are or were sent, by name. `listed` are the
    run's files in the mirror, if they were read already."""

    def __init__(self, reader: Reader, rid: int, metadata: str | None, listed: Sequence[FileRow] | None = None) -> None:
        self.sent: dict[str, tuple[str, int]] = {}
        self.nbytes = 0
        self._uploads: dict[str, Upload] = {}
        self._absent: list[str] = []
        if listed is None:
            with asking(reader) as connection:
                query = "select name, size, md5, sha256 from files where rid = ? order by name"
                listed = connection.execute(query, [rid]).fetchall()
        for name, _, md5, sha256 in listed:
            path = blob_path(reader.layout.blobs, sha256) if sha256 else None
            if path is not None and path.is_file():
                self._uploads[name] = Upload(name, path)
            elif name == METADATA and metadata is not None and md5 in (None, _md5(metadata.encode())):
                self._uploads[name] = Upload(name, metadata.encode())
            else:
                self._absent.append(name)
                continue
            self.sent[name] = (md5 or "", self._uploads[name].size)
            self.nbytes += self._uploads[name].size
        if metadata is not None and METADATA not in self._uploads and METADATA not in self._absent:
            self._uploads[METADATA] = Upload(METADATA, metadata.encode())
            self.sent[METADATA] = (_md5(metadata.encode()), len(metadata.encode()))

    def send(
        self, client: Client, key: RunKey, there: Mapping[str, FileEntry], account: Account, patience: Patience
    ) -> list[str]:
        """Upload what the destination lacks, by name and content; returns the names."""
        wanted = [upload for name, upload in self._uploads.items() if not self._is_there(there.get(name), name)]
        refused = upload_files(client, key.entity, key.project, key.run_id, wanted, patience=patience)
        for name, why in refused.items():
            del self.sent[name]
            account.lost("files", f"`{name}`: {why}")
        if self._absent:
            more = f" and {len(self._absent) - _SHOWN} more" if len(self._absent) > _SHOWN else ""
            names = ", ".join(f"`{name}`" for name in self._absent[:_SHOWN])
            detail = f"the mirror does not hold the bytes of {names}{more}: sync with --files '*'"
            account.lost("files", detail, len(self._absent))
        return [upload.name for upload in wanted if upload.name not in refused]

    def arrived(self, there: Mapping[str, FileEntry]) -> int:
        """How many of those that were sent are there as they were sent."""
        return sum(self._is_there(there.get(name), name) for name in self.sent)

    def _is_there(self, entry: FileEntry | None, name: str) -> bool:
        if entry is None:
            return False
        md5, size = self.sent[name]
        return (not md5 or not entry.md5 or entry.md5 == md5) and entry.size in (None, size)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
