"""What an artifact version holds: entries by path, with bytes in the mirror or elsewhere."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.objects import bytes as disk
from mirror.objects.attrs import ArgumentError, Attrs, Count, Name, OfflineError, Text
from mirror.objects.held import Record
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.objects.artifacts import Artifact


class Entry(Attrs):
    """A file of an artifact, or a reference to something elsewhere."""

    def __init__(self, artifact: Artifact, row: Record) -> None:
        self._artifact = artifact
        self._row = row

    path = Name("path")
    name = path

    digest = Text("digest")
    """Base64 md5 of a file; what the store behind it says of a reference."""
    md5 = digest

    size = Count("size")
    ref = Text("ref")
    """The address of a reference, None for a file."""

    @property
    def extra(self) -> dict[str, Any]:
        text = self._row["extra"]
        return json.loads(text) if text else {}

    @property
    def held(self) -> bool:
        """Whether the mirror has the bytes."""
        return self._blob() is not None

    def download(self, root: str | Path | None = None, skip_cache: bool | None = None, *, replace: bool = True) -> str:
        """Write the file below `root` and return its path. Raises OfflineError if the mirror
        does not hold it and may not ask."""
        if not self.at_hand:
            raise self.missing()
        path = disk.place(_folder(self._artifact, root), self.path)
        if disk.checked(path, replace, exist_ok=True):
            if (blob := self._blob()) is not None:
                disk.copy(blob, path)
            else:
                from mirror.objects.online import fetch_entry

                fetch_entry(self, path)
        return str(path)

    @property
    def artifact(self) -> Artifact:
        return self._artifact

    @property
    def at_hand(self) -> bool:
        """Whether `download` can have the bytes: out of the mirror or, with Api(online=True), from the server."""
        return self.held or (self.ref is None and self._artifact._held.online)

    def missing(self) -> OfflineError:
        whose = self._artifact.source_qualified_name
        if self.ref is not None:
            return OfflineError(f"`{self.path}` of {whose} is a reference to `{self.ref}`: fetch it from there")
        a = self._artifact
        fetching = shlex.join(["mirror", "sync", f"{a.entity}/{a.project}", "--artifacts", f"{a.type}/{a.source_name}"])
        return OfflineError(
            f"the mirror does not hold the bytes of `{self.path}` of {whose}: `{fetching}` fetches them into the "
            "mirror, Api(online=True) when they are downloaded"
        )

    def _blob(self) -> Path | None:
        return disk.blob(self._artifact._held.blobs, self._row["sha256"])

    def __repr__(self) -> str:
        return safe(f"<Entry {self.path} ({self.size} bytes)>")


class Entries(Mapping[str, Entry]):
    """Entries of an artifact version by path."""

    def __init__(self, artifact: Artifact, rows: Sequence[Record]) -> None:
        self._artifact = artifact
        self._rows = {row["path"]: row for row in rows}

    @property
    def entries(self) -> Entries:
        """Itself: wandb's manifest keeps its entries under this name."""
        return self

    def __getitem__(self, path: str) -> Entry:
        return Entry(self._artifact, self._rows[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return safe(f"<Entries of {self._artifact.source_qualified_name}: {len(self)}>")

    def entry(self, path: str) -> Entry:
        """Raises NotFoundError, with a near match."""
        if path in self._rows:
            return self[path]
        near = get_close_matches(path, list(self._rows), 1)
        hint = f"did you mean `{near[0]}`?" if near else "`files()` lists what it has"
        raise NotFoundError(f"{self._artifact.source_qualified_name} has no entry `{path}`; {hint}")

    def files(self, names: Sequence[str] | None) -> Listed[Entry]:
        """Files by path: all, or those named. References are none."""
        if isinstance(names, str):
            raise ArgumentError(f"`names` is a list of paths, got `{names}`: write names=[{names!r}]")
        wanted = self._rows if not names else {name: None for name in names if name in self._rows}
        found = [entry for path in wanted if (entry := self[path]).ref is None]
        return Listed(found, self._artifact.source_qualified_name)

    def download(self, root: str | Path | None, allow_missing_references: bool, prefix: str | None) -> str:
        """See `Artifact.download`."""
        folder = _folder(self._artifact, root)
        wanted = [self[path] for path in self if path.startswith(prefix or "")]
        files = [entry for entry in wanted if entry.at_hand]
        for entry in wanted:
            if not entry.at_hand and not (entry.ref is not None and allow_missing_references):
                raise entry.missing()
        for entry in files:
            disk.place(folder, entry.path)
        for entry in files:
            entry.download(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)


def _folder(artifact: Artifact, root: str | Path | None) -> Path:
    """Where wandb puts an artifact's files, too: WANDB_ARTIFACT_DIR, else `./artifacts`."""
    if root is not None:
        return Path(root).expanduser()
    return disk.place(os.environ.get("WANDB_ARTIFACT_DIR") or "artifacts", artifact.source_name)
