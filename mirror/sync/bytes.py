"""Bytes of run files, for those who ask for them: into ROOT/blobs by their content, each checked on arrival."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from mirror.errors import MirrorError, SourceError, TerminalSourceError, UsageError
from mirror.records import FileEntry, Project, RunKey
from mirror.sources.wandb import WandbSource
from mirror.store import Reader, Writer
from mirror.store.blobs import Blob, incoming
from mirror.store.layout import Layout
from mirror.wandb.documents import find_files

_AT_ONCE = 50


@dataclass
class BytesOutcome:
    """How many files were `fetched`, their bytes, and what could not be had."""

    fetched: int = 0
    bytes: int = 0
    messages: list[str] = field(default_factory=list)


def sync_bytes(
    source: WandbSource,
    writer: Writer,
    project: Project,
    globs: Sequence[str],
    stop: threading.Event,
    named: Sequence[str] | None = None,
) -> BytesOutcome:
    """Fetch the files of a project's runs whose names match one of `globs` and whose bytes are not held.

    What was fetched is held when the next run's files are; an interrupted fetch goes on with what is missing.
    """
    writer.commit()
    outcome = BytesOutcome()
    for key, files in _missing(writer, project, globs, named):
        for start in range(0, len(files), _AT_ONCE):
            if stop.is_set():
                return outcome
            try:
                _fetch(source, writer, key, files[start : start + _AT_ONCE], outcome)
            except SourceError as e:
                outcome.messages.append(f"{key.path}: files: {e}")
    return outcome


def _missing(
    writer: Writer, project: Project, globs: Sequence[str], named: Sequence[str] | None
) -> Iterator[tuple[RunKey, list[FileEntry]]]:
    """Runs with files that are wanted and not held, a run at a time."""
    columns = "name, size, md5, mimetype, updated_at, storage_id, url, sha256"
    with Reader(writer.layout.root) as reader:
        db = reader.connect()
        runs = db.execute(
            "select rid, storage_id, run_id from runs where source = ? and entity = ? and project = ? "
            "and deleted_at is null and files_count > 0 order by rid",
            [project.source, project.entity, project.name],
        ).fetchall()
        for rid, storage_id, run_id in runs:
            if named is not None and run_id not in named:
                continue
            query = f"select {columns} from {reader.relation('files', rid)} f semi join raw.live l "
            query += "on l.rid = f.rid and l.files_gen = f.gen where f.sha256 is null order by name"
            files = [FileEntry(*row) for row in db.execute(query).fetchall()]
            wanted = [f for f in files if any(fnmatchcase(f.name, glob) for glob in globs)]
            if wanted:
                yield RunKey(project.source, storage_id, project.entity, project.name, run_id), wanted


def _fetch(source: WandbSource, writer: Writer, key: RunKey, wanted: list[FileEntry], outcome: BytesOutcome) -> None:
    """Fetch some files of a run, side by side, and commit what arrived."""
    urls = find_files(source.client, key, [f.name for f in wanted])
    waiting: list[tuple[FileEntry, Future[Blob]]] = []
    for entry in wanted:
        if url := urls.get(entry.name):
            waiting.append((entry, source.downloads.submit(_download, source, writer.layout, url, entry)))
        else:
            outcome.messages.append(f"{key.path}: file `{entry.name}` is gone at the source")
    arrived: dict[str, FileEntry] = {}
    for entry, future in waiting:
        try:
            blob = future.result()
        except MirrorError as e:
            outcome.messages.append(f"{key.path}: file `{entry.name}`: {e}")
            continue
        arrived[entry.name] = replace(entry, sha256=blob.sha256)
        outcome.fetched += 1
        outcome.bytes += blob.size
    if arrived:
        writer.put_blobs(key, arrived)
        writer.commit()


def _download(source: WandbSource, layout: Layout, url: str, entry: FileEntry) -> Blob:
    with incoming(layout.blobs) as place:
        source.client.transport.save(url, place)
        try:
            blob = place.keep(entry.md5)
        except UsageError as e:
            raise TerminalSourceError(f"the bytes that came are not those with md5 `{entry.md5}`: sync again") from e
        if entry.md5 is None and entry.size is not None and blob.size != entry.size:
            raise TerminalSourceError(f"{blob.size} bytes came, {entry.size} were announced: sync again")
        return blob
