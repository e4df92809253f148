"""A W&B server as a source: reads runs in batches, many to a request, and isolates those that fail."""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from mirror.errors import SourceError, TransientSourceError
from mirror.pool import Pool
from mirror.records import FileEntry, ItemKey, Listing, Project, RunKey
from mirror.sources.console import LOG_FILE
from mirror.sources.history import PAGE_BYTES
from mirror.sources.protocol import Cells, Document, ExportLike, Finished, Manifest, Step, Trouble, Wanted
from mirror.sources.run import GOING_ON, Memo, RunReader
from mirror.wandb import documents, listing, rows
from mirror.wandb.artifacts import find_entries
from mirror.wandb.batch import Batch
from mirror.wandb.client import Client, Viewer
from mirror.wandb.exports import downloaded, find_exports, remove_leftovers
from mirror.wandb.ranges import SPARE_ROWS
from mirror.wandb.transport import BRIEF, LONG, NORMAL, Patience, RefusedQuery, Sink, TooLarge, Traffic

PAGE_ROWS = 10_000
"""Rows asked for at once; five times fewer requests than with 2,000, and hardly faster beyond."""

METADATA_FILE = "wandb-metadata.json"
_METADATA_LIMIT = 16 << 20
EXPORT_ROWS = 5_000
"""Shorter histories are read by rows, many to a request."""
_ANSWER_LIMIT = 8 * PAGE_BYTES
"""An answer that grows beyond is broken off and asked for in parts, unless it is one run's and one row's."""

OpenExport: TypeAlias = Callable[[Sequence[Path]], ExportLike]
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class _Doubtful(TransientSourceError):
    """What came is not what the server announced; it may as well be wrong about that."""


class WandbSource:
    """See `mirror.sources.protocol.Source`. `page_rows` bounds the rows asked for at once, `downloads` the
    files fetched at the same time; `open_export` reads export files, without it rows are the only road."""

    def __init__(
        self,
        client: Client,
        *,
        page_rows: int = PAGE_ROWS,
        downloads: int = 16,
        open_export: OpenExport | None = None,
    ) -> None:
        self.client = client
        self._open_export = open_export
        if open_export is not None:
            remove_leftovers()
        limits = client.limits
        # More than twice as many rows are asked for as are expected, so that it shows when there are more.
        self._page_rows = min(page_rows, max(1, (limits.rows - SPARE_ROWS - 1) // 2)) if limits.rows else page_rows
        self._runs_per_request = Batch(25, limits.aliases or 50, most_bytes=PAGE_BYTES)
        self._histories_per_request = Batch(50, limits.aliases or 50)
        self._counts_files = True
        self.downloads = Pool(downloads, "download")

    @property
    def name(self) -> str:
        return self.client.source

    @property
    def traffic(self) -> Traffic:
        return self.client.transport.traffic

    @property
    def store_id(self) -> str | None:
        """The identity of the mirror that the server serves, if it is a `mirror serve`; known once asked."""
        return self.client.transport.store_id

    def close(self) -> None:
        self.downloads.close()
        self.client.transport.close()

    # -- what there is ------------------------------------------------------------------------------------

    def viewer(self) -> Viewer:
        """Check the key and the server; gives up soon, since nothing is lost yet."""
        return self.client.viewer(patience=Patience(tries=3))

    def projects(self, entity: str) -> list[Project]:
        return list(self.client.projects(entity))

    def listing(
        self,
        entity: str,
        project: str,
        run_ids: Sequence[str] | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
        filters: str | None = None,
    ) -> Listing:
        """`filters` is W&B's filter language as JSON; the server picks the runs."""
        if run_ids is not None:
            return listing.find_runs(self.client, entity, project, run_ids)
        return listing.list_runs(self.client, entity, project, filters=filters, progress=progress)

    # -- reading ------------------------------------------------------------------------------------------

    def addresses(
        self, owner: RunKey | ItemKey, wanted: Sequence[tuple[str, list[str]]]
    ) -> list[dict[str, tuple[str, FileEntry | None]]]:
        if isinstance(owner, ItemKey):
            return [{name: (url, None) for name, url in urls.items()} for urls in find_entries(self.client, wanted)]
        found = documents.find_manifests(self.client, owner.entity, owner.project, wanted)
        return [{f.name: (one.download_urls[f.name], f) for f in one.files} for one in found]

    def save(self, url: str, out: Sink, *, resume: bool = False) -> None:
        self.client.transport.save(url, out, resume=resume)

    def fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        waiting = deque(wanted)
        while waiting:
            some = [waiting.popleft() for _ in range(min(self._runs_per_request.size, len(waiting)))]
            yield from self._fetch(some)

    def _fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        key = wanted[0].key

        def ask(some: Sequence[Wanted], patience: Patience) -> list[documents.RunDocuments | None]:
            ids = [w.key.run_id for w in some]
            limit = _ANSWER_LIMIT if len(some) > 1 else None
            answers, size = documents.fetch_documents(
                self.client, key.entity, key.project, ids, patience=patience, limit=limit
            )
            self._runs_per_request.went_well(len(some), size)
            return answers

        readers = []
        for one, found in self._isolated(wanted, ask, self._runs_per_request, NORMAL):
            if isinstance(found, SourceError):
                yield Trouble(one.key, "documents", str(found))
                yield Finished(one.key)
            elif found is None or found.run.key.storage_id != one.key.storage_id:
                yield Finished(one.key, gone=True)
            else:
                readers.append(RunReader(one, found, self._page_rows, self.client.limits.events))
        metadata = [self._metadata(reader) for reader in readers]
        for reader, future in zip(readers, metadata, strict=True):
            yield from self._documents(reader, future)
        for reader in readers:
            if self._open_export is not None and (reader.run.history_line_count or 0) >= EXPORT_ROWS:
                yield from self._export(reader, self._open_export)
        yield from self._rows(readers)

    def _export(self, reader: RunReader, open_export: OpenExport) -> Iterator[Step]:
        """Hand over the export of an ended run, if there is one that says all; the rows after it are read as ever.

        Whatever goes wrong with an export, the rows are still there to be read.
        """
        if reader.run.state in GOING_ON or not reader.history.exportable:
            return
        handed_over = False
        try:
            exports = find_exports(self.client, reader.run.key)
            if not exports.urls:
                return
            with downloaded(self.client, exports) as paths, closing(open_export(paths)) as export:
                if not 0 < export.rows <= (reader.run.history_line_count or 0):
                    return
                for batch in export.batches():
                    handed_over = True
                    yield Cells(reader.run.key, batch)
                reader.history.go_on_after(export)
        except SourceError:
            if handed_over:
                reader.history.start_over()

    def _metadata(self, reader: RunReader) -> Future[bytes | None] | None:
        """Complete the run's manifest; start to download wandb-metadata.json unless it is the one held."""
        manifest = first = reader.documents.manifest
        noted = reader.noted
        shown = _digest(first.count, [replace(f, url=None) for f in first.files])
        if "files" not in reader.wanted.what or (reader.wanted.glance and shown == noted.files):
            reader.memo = noted
            return None
        try:
            manifest = self._whole_manifest(reader, first)
        except SourceError as e:
            reader.trouble("files", e, doubtful=isinstance(e, _Doubtful))
            return None
        reader.manifest = manifest
        entry = next((f for f in manifest.files if f.name == METADATA_FILE), None)
        version = _digest(entry.md5, entry.size, entry.updated_at) if entry else ""
        reader.memo = Memo(files=shown, metadata=version)
        if log := next((f for f in manifest.files if f.name == LOG_FILE), None):
            reader.console.saw_file(_digest(log.md5, log.size, log.updated_at))
        if entry is None or version == noted.metadata:
            return None
        url = manifest.download_urls[METADATA_FILE]
        return self.downloads.submit(self._download, url, entry)

    def _whole_manifest(self, reader: RunReader, first: documents.Manifest) -> documents.Manifest:
        """All files of a run. If fewer are listed than the server counts, they are listed again; if it is as many then,
        this is a server that counts in another way."""
        found = documents.fetch_files(self.client, reader.run.key, first)
        if self._counts_files and len(found.files) < (first.count or 0):
            again = documents.fetch_files(self.client, reader.run.key)
            if not again.files:
                raise _Doubtful(f"no files are listed, the server says it has {first.count}")
            self._counts_files = len(again.files) > len(found.files)
            found = again if self._counts_files else found
        return found

    def _download(self, url: str, entry: FileEntry) -> bytes | None:
        """A file that is held in memory, whole. None if it is gone."""
        content = self.client.transport.download(url, limit=_METADATA_LIMIT)
        if content is not None:
            _check_size(entry, len(content))
        return content

    def _documents(self, reader: RunReader, metadata: Future[bytes | None] | None) -> Iterator[Step]:
        run = reader.run
        if metadata is not None:
            try:
                content = metadata.result()
            except SourceError as e:
                reader.trouble("files", e, doubtful=isinstance(e, _Doubtful))
            else:
                text = None if content is None else content.decode("utf-8", "replace")
                run = replace(run, metadata=text)
        yield Document(run)
        if reader.manifest is not None:
            yield Manifest(run.key, reader.manifest.files)

    def _rows(self, readers: Sequence[RunReader]) -> Iterator[Step]:
        """Ask for the rows of all these runs, as many runs to a request as fit into a page."""
        active = deque(readers)
        while active:
            asking: list[tuple[RunReader, rows.RowsAsk]] = []
            rows_left, bytes_left = self._page_rows, PAGE_BYTES
            while active and len(asking) < self._histories_per_request.size:
                reader = active[0]
                ask = reader.ask(self._page_rows)
                if ask is not None:
                    rows_left -= ask.weight
                    bytes_left -= reader.expected_bytes
                    if asking and (rows_left < 0 or bytes_left < 0):
                        break
                    asking.append((reader, ask))
                else:
                    if reader.console.by_file:
                        yield from self._console(reader)
                    yield from reader.finish()
                active.popleft()
            for (reader, ask), answer in self._isolated(asking, self._ask_rows, self._histories_per_request, BRIEF):
                reader.answer(ask, answer)
                yield from reader.take_steps()
                active.append(reader)

    def _console(self, reader: RunReader) -> Iterator[Step]:
        """The console lines out of the file that older servers keep them in."""
        try:
            key = reader.run.key
            manifest = documents.find_manifest(self.client, key.entity, key.project, key.run_id, [LOG_FILE])
            entry = next((f for f in manifest.files if f.name == LOG_FILE), None)
            if entry is None:
                reader.console.no_file()
                return
            with tempfile.TemporaryFile() as file:
                self.client.transport.save(manifest.download_urls[LOG_FILE], file)
                if reader.run.state not in GOING_ON:
                    _check_size(entry, file.seek(0, 2))
                file.seek(0)
                yield from reader.console.take(file)
        except SourceError as e:
            reader.trouble("logs", e, doubtful=isinstance(e, _Doubtful))

    def _ask_rows(
        self, asking: Sequence[tuple[RunReader, rows.RowsAsk]], patience: Patience
    ) -> list[rows.RowsAnswer | None]:
        key = asking[0][0].run.key
        asks = [ask for _, ask in asking]
        limit = _ANSWER_LIMIT if len(asks) > 1 or asks[0].divisible else None
        found = rows.fetch_rows(self.client, key.entity, key.project, asks, patience=patience, limit=limit)
        self._histories_per_request.went_well(len(asks))
        return found

    def _isolated(
        self,
        items: Sequence[_Item],
        ask: Callable[[Sequence[_Item], Patience], Sequence[_Answer]],
        batch: Batch,
        alone: Patience,
    ) -> Iterator[tuple[_Item, _Answer | SourceError]]:
        """Ask for many at once; when that fails, for parts of them, until those that fail are `alone`.

        Errors that concern all of them (a key that was revoked, a server that is gone) are raised.
        """
        before = batch.remember()
        if items and (yield from self._divided(items, ask, batch, alone)):
            batch.restore(before)

    def _divided(
        self,
        items: Sequence[_Item],
        ask: Callable[[Sequence[_Item], Patience], Sequence[_Answer]],
        batch: Batch,
        alone: Patience,
        second_try: bool = False,
    ) -> Generator[tuple[_Item, _Answer | SourceError], None, bool]:
        """See `_isolated`. Returns whether some failed alone, so that it was not the size of the requests."""
        try:
            answers = ask(items, BRIEF if len(items) > 1 else alone)
        except (TransientSourceError, RefusedQuery, TooLarge) as e:
            if not isinstance(e, TooLarge) and not self._is_well() and not second_try:
                return (yield from self._divided(items, ask, batch, alone, second_try=True))
            if len(items) == 1:
                yield items[0], e
                return True
            (batch.too_long if isinstance(e, TooLarge) else batch.failed)(len(items))
            found = False
            for part in _parts(items, e):
                found |= yield from self._divided(part, ask, batch, alone)
            return found
        yield from zip(items, answers, strict=True)
        return False

    def _is_well(self) -> bool:
        """False if the server did not answer a trivial question at once; then returns when it does.

        Tells a server that is down from runs it stumbles over. Raises if it stays down.
        """
        try:
            self.client.viewer(patience=Patience(tries=1))
        except TransientSourceError:
            self.client.viewer(patience=LONG)
            return False
        return True


def _parts(items: Sequence[_Item], error: SourceError) -> list[list[_Item]]:
    """Halves; or, if the error names the items that failed (`r3` is item 3), each of those and the rest."""
    aliases = error.aliases if isinstance(error, RefusedQuery) else set()
    blamed = [item for i, item in enumerate(items) if f"r{i}" in aliases]
    rest = [item for i, item in enumerate(items) if f"r{i}" not in aliases]
    if blamed and rest:
        return [rest, *([item] for item in blamed)]
    middle = len(items) // 2
    return [list(items[:middle]), list(items[middle:])]


def _check_size(entry: FileEntry, size: int) -> None:
    if entry.size is not None and entry.size != size:
        raise _Doubtful(f"{size} bytes of `{entry.name}` came, {entry.size} were announced: sync again")


def _digest(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=6).hexdigest()
