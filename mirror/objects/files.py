"""`File`: a file of a run, whose bytes may or may not be in the mirror."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.objects import bytes as disk
from mirror.objects.attrs import ArgumentError, Attrs, Count, Name, OfflineError, Text, Time, refused
from mirror.objects.held import Record, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.objects.run import Run

METADATA = "wandb-metadata.json"


class File(Attrs):
    """A file of a run."""

    def __init__(self, run: Run, row: Record) -> None:
        self._run = run
        self._row = row

    @property
    def run(self) -> Run:
        return self._run

    id = Text("storage_id")
    name = Name("name")
    size = Count("size")
    """Bytes; 0 where the source did not say."""

    @property
    def size_bytes(self) -> int:
        return self.size

    md5 = Text("md5")
    """The md5 in base64, as W&B has it."""
    mimetype = Text("mimetype")
    updated_at = Time("updated_at")
    url = Text("url")
    """Address at the source; it may need a key, and may have expired."""
    direct_url = Text("url")

    @property
    def held(self) -> bool:
        """Whether the mirror has the bytes, so that `download` asks nobody."""
        return self._blob() is not None or self._text() is not None

    def download(
        self, root: str | Path = ".", replace: bool = False, exist_ok: bool = False, api: Any = None
    ) -> IO[str]:
        """Write the file below `root` and open it for reading.

        Bytes that the mirror does not hold are fetched from the server with `Api(online=True)` only, OfflineError
        otherwise. Raises ArgumentError (a ValueError) if the file exists, unless `replace` or `exist_ok`."""
        path = disk.place(root, self.name)
        if disk.checked(path, replace, exist_ok):
            self._fetch(path, api._held.online if api is not None else self._run._held.online)
        return path.open(encoding="utf-8", errors="surrogateescape")

    def _fetch(self, path: Path, online: bool) -> None:
        if (found := self._blob()) is not None:
            disk.copy(found, path)
        elif (text := self._text()) is not None:
            with disk.written(path) as out:
                out.write(text.encode())
        elif online:
            from mirror.objects.online import fetch_file

            fetch_file(self._run._held, self, path)
        else:
            run = self._run._where
            fetching = shlex.join(["mirror", "sync", run, "--files", self.name])
            raise OfflineError(
                f"the mirror does not hold the bytes of `{self.name}` of {run}: `{fetching}` fetches them into the "
                "mirror, Api(online=True) when they are downloaded"
            )

    def _blob(self) -> Path | None:
        return disk.blob(self._run._held.blobs, self._row["sha256"])

    def _text(self) -> str | None:
        """wandb-metadata.json is mirrored with the run, word for word."""
        return self._run._page.document(self._run._rid, "metadata") if self.name == METADATA else None

    def delete(self) -> None:
        """Delete the file at the run's server, and from the mirror's list. Raises OfflineError without
        Api(online=True)."""
        if not self._run._held.online:
            raise refused("`File.delete()`")
        from mirror.objects.editing import remove_files

        remove_files(self._run, [self])

    def __repr__(self) -> str:
        return safe(f"<File {self.name} ({self.mimetype}) {self.size} bytes>")


class Files(Listed[File]):
    """Files of a run by name."""

    def __init__(self, run: Run, names: Sequence[str] | None, pattern: str | None) -> None:
        if isinstance(names, str):
            raise ArgumentError(f"`names` is a list of names, got `{names}`: write names=[{names!r}]")
        if names and pattern:
            raise ArgumentError("give either `names` or a `pattern`, not both")
        condition, params = "true", list[Any]()
        if names:
            condition, params = "name in (select unnest(?::varchar[]))", [list(names)]
        elif pattern is not None:
            if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                pattern += "\\"  # a last backslash stands for itself
            condition, params = "name ilike ? escape '\\'", [pattern]
        columns = "name, size, md5, mimetype, updated_at, storage_id, url, sha256"
        query = f"select {columns} from files where rid = ? and {condition} order by name"
        rows = select(run._held.state(), query, [run._rid, *params])
        super().__init__([File(run, row) for row in rows], "/".join(run.path))


def one_file(run: Run, name: str) -> File:
    """The file of that name. Raises NotFoundError."""
    found = Files(run, [name], None)
    if found:
        return found[0]
    if name == METADATA and run._page.document(run._rid, "metadata") is not None:  # before the manifest came
        return File(
            run,
            dict.fromkeys(("size", "md5", "mimetype", "updated_at", "storage_id", "url", "sha256")) | {"name": name},
        )
    near = get_close_matches(name, [file.name for file in Files(run, None, None)], 1)
    hint = f"did you mean `{near[0]}`?" if near else "`run.files()` lists what it has"
    raise NotFoundError(f"{run._where} has no file `{name}`; {hint}")


def name_below(path: str | Path, root: str | Path) -> str:
    """The name a file at `path` has in a run: its path below `root`, with slashes. Raises ArgumentError."""
    name = Path(os.path.relpath(path, root)).as_posix()
    if name.startswith("../") or name in ("..", "."):
        raise ArgumentError(f"`{path}` does not lie below `{root}`: name a folder above it as `root`")
    return name
