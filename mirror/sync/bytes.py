"""Bytes of run files and artifacts, for those who ask for them: into ROOT/blobs by their content, each checked on
arrival. A download that was cut off, by the network or by a kill, goes on where it stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field, replace

from mirror.errors import MirrorError, SourceError, TerminalSourceError, TransientSourceError, UsageError
from mirror.records import FileEntry, ItemKey, Project, RunKey
from mirror.sources.protocol import HasBytes
from mirror.store import Reader, Writer
from mirror.store.blobs import Blob, Incoming, incoming, remove_partial
from mirror.store.layout import Layout
from mirror.sync.progress import Progress
from mirror.sync.wanted import Missing, Search, WantedBytes

_OWNERS_PER_REQUEST = 50
_NOTED_EVERY = 30.0
"""Seconds; what arrived after the last note is downloaded again if the process is killed."""
_NOTED_AT_MOST = 20_000
_NOTING_SHARE = 10
"""A note writes the manifests of those that got something anew: it waits ten times as long as the last one took."""
_GIVEN_UP = 7 * 86400.0
_MESSAGES = 100


@dataclass
class BytesOutcome:
    """How many files were `fetched`, their bytes, and what could not be had."""

    fetched: int = 0
    bytes: int = 0
    messages: list[str] = field(default_factory=list)
    unsaid: int = 0

    def failed(self, message: str) -> None:
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)
        else:
            self.unsaid += 1


def sync_bytes(
    source: HasBytes,
    writer: Writer,
    project: Project,
    wanted: WantedBytes,
    stop: threading.Event,
    named: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> BytesOutcome:
    """Fetch the bytes that are wanted of a project and not held; an interrupted fetch goes on with what is missing."""
    writer.commit()
    outcome = BytesOutcome()
    progress = progress or Progress()
    if writer.layout.blobs.exists():
        remove_partial(writer.layout.blobs, older=_GIVEN_UP)
    with Reader(writer.layout.root) as reader:
        search = Search(reader, project, wanted, named)
        files, size = search.total()
        if files:
            progress.downloading(f"{project.entity}/{project.name}", files, size)
        fetching = _Fetching(source, writer, outcome, stop, progress)
        try:
            for page in search.pages() if files else ():
                if stop.is_set():
                    break
                fetching.fetch(page, search.held(page))
        finally:
            fetching.note()
    if outcome.unsaid:
        outcome.messages.append(f"{outcome.unsaid:,} more files could not be fetched")
    return outcome


class _Fetching:
    """Fetches files side by side, a page at a time, and notes what arrived."""

    def __init__(
        self, source: HasBytes, writer: Writer, outcome: BytesOutcome, stop: threading.Event, progress: Progress
    ) -> None:
        self._source = source
        self._writer = writer
        self._outcome = outcome
        self._stop = stop
        self._progress = progress
        self._waiting = 0
        self._arrived: dict[RunKey | ItemKey, dict[str, FileEntry]] = {}
        self._here: dict[tuple[str, int], str] = {}
        """What arrived and is not noted: (md5, size) -> sha256."""
        self._note_at = time.monotonic() + _NOTED_EVERY
        self._received = source.traffic.bytes

    def fetch(self, page: Sequence[Missing], held: dict[tuple[str, int], str]) -> None:
        """Fetch the files of a page; `held` are bytes that are here: (md5, size) -> sha256."""
        held = self._here | held
        futures: dict[object, Future[Blob]] = {}
        waiting: list[tuple[Missing, Future[Blob]]] = []
        for m, url in self._located([m for m in page if _content(m.entry) not in held]):
            same = _content(m.entry) or (m.owner, m.name)
            if same not in futures:
                futures[same] = self._source.downloads.submit(
                    _download, self._source, self._writer.layout, url, m.entry
                )
            waiting.append((m, futures[same]))
        for m in page:
            if (content := _content(m.entry)) is not None and content in held:
                self._keep(m, held[content])
                self._progress.downloaded(files=1)
        try:
            counted: set[int] = set()
            for m, future in waiting:
                blob = self._awaited(m, future)
                if self._stop.is_set() and not future.done():
                    return
                if blob is not None:
                    first = id(future) not in counted
                    counted.add(id(future))
                    self._outcome.fetched += first
                    self._outcome.bytes += blob.size if first else 0
                    self._keep(m, blob.sha256)
                self._progress.downloaded(files=1)
                self._note_if_due()
        finally:
            for future in futures.values():
                future.cancel()

    def _awaited(self, m: Missing, future: Future[Blob]) -> Blob | None:
        """What arrived, None if it could not be had (which is said then) or the sync is to stop."""
        while True:
            try:
                return future.result(timeout=0.2)
            except NotYet:
                self._show()
                if self._stop.is_set():
                    return None
                self._note_if_due()
            except MirrorError as e:
                if not self._stop.is_set():
                    self._outcome.failed(f"{m.whose} `{m.entry.name[:200]}`: {e}")
                return None

    def _show(self) -> None:
        received = self._source.traffic.bytes
        self._progress.downloaded(nbytes=received - self._received)
        self._received = received

    def _keep(self, m: Missing, sha256: str) -> None:
        self._arrived.setdefault(m.owner, {})[m.entry.name] = replace(m.entry, sha256=sha256)
        self._waiting += 1
        if (content := _content(m.entry)) is not None:
            self._here[content] = sha256

    def _note_if_due(self) -> None:
        if time.monotonic() > self._note_at or self._waiting >= _NOTED_AT_MOST:
            self.note()

    def note(self) -> None:
        """Write down what arrived."""
        self._show()
        began = time.monotonic()
        for owner, held in self._arrived.items():
            self._writer.put_blobs(owner, held)
        self._arrived.clear()
        self._here.clear()
        self._waiting = 0
        self._writer.commit()
        now = time.monotonic()
        self._note_at = now + max(_NOTED_EVERY, _NOTING_SHARE * (now - began))

    # -- where they are -----------------------------------------------------------------------------------

    def _located(self, page: Sequence[Missing]) -> Iterator[tuple[Missing, str]]:
        """The files with their addresses; run files as they are at their source now. What is gone is said."""
        by_place: dict[tuple[bool, str], list[Missing]] = {}
        for m in page:
            by_place.setdefault((isinstance(m.owner, RunKey), m.at), []).append(m)
        for of_runs in (True, False):
            places = [(at, some) for (is_run, at), some in by_place.items() if is_run == of_runs]
            for start in range(0, len(places), _OWNERS_PER_REQUEST):
                if self._stop.is_set():
                    return
                part = places[start : start + _OWNERS_PER_REQUEST]
                for (_, some), found in zip(part, self._ask(part), strict=True):
                    for m in some:
                        yield from self._there(m, found)

    def _there(
        self, m: Missing, found: dict[str, tuple[str, FileEntry | None]] | None
    ) -> Iterator[tuple[Missing, str]]:
        if found is None:
            return
        url, now = found.get(m.name, ("", None))
        if not url:
            self._outcome.failed(f"{m.whose} `{m.entry.name[:200]}` is gone at the source")
            return
        yield (replace(m, entry=now) if now is not None else m), url

    def _ask(self, places: Sequence[tuple[str, list[Missing]]]) -> list[dict[str, tuple[str, FileEntry | None]] | None]:
        """Address and present entry by name, for each place; None where they could not be asked for."""
        wanted = [(at, sorted({m.name for m in some})) for at, some in places]
        try:
            return list(self._source.addresses(places[0][1][0].owner, wanted))
        except SourceError as e:
            if len(places) > 1:
                return [self._ask([place])[0] for place in places]
            self._outcome.failed(f"{places[0][1][0].whose}s: {e}")
            return [None]


def _content(entry: FileEntry) -> tuple[str, int] | None:
    """What says that two files have the same bytes, if something does."""
    return (entry.md5, entry.size) if entry.md5 and entry.size is not None else None


def _download(source: HasBytes, layout: Layout, url: str, entry: FileEntry) -> Blob:
    """Fetch and check one file. One that does not arrive as announced is fetched a second time, from the beginning."""
    content = _content(entry)
    name = None if content is None else f"{content[0]} {content[1]}"
    try:
        with incoming(layout.blobs, name) as place:
            if name is None or place.tell() < (entry.size or 0):
                _receive(source, url, place, resume=name is not None)
            return _kept(place, entry)
    except TerminalSourceError as e:
        if not isinstance(e, _Damaged):
            raise
    with incoming(layout.blobs) as place:
        source.save(url, place)
        return _kept(place, entry)


def _receive(source: HasBytes, url: str, place: Incoming, *, resume: bool) -> None:
    """Fetch to the end, however often the connection breaks, as long as each one brings more."""
    while True:
        before = place.tell()
        try:
            return source.save(url, place, resume=resume)
        except TransientSourceError:
            if not resume or place.tell() <= before:
                raise


class _Damaged(TerminalSourceError):
    """Other bytes than those that were announced."""


def _kept(place: Incoming, entry: FileEntry) -> Blob:
    if entry.md5 is None and entry.size is not None and place.tell() != entry.size:
        raise _Damaged(f"{place.tell()} bytes came, {entry.size} were announced: sync again")
    try:
        return place.keep(entry.md5)
    except UsageError as e:
        raise _Damaged(f"the bytes that came are not those with md5 `{entry.md5}`: sync again") from e
