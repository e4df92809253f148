"""The spool of a server: lines it has acknowledged and that are not in segments yet.

    ROOT/live/<rid>/run.jsonl                     versions of the run's documents, the last line counts
    ROOT/live/<rid>/history-<first line>.jsonl    logged rows; likewise system-, logs-

Every append is on the disk before it returns. A line cut short by a crash was never acknowledged and is
dropped. Files are named by the number of their first line, so draining the same file twice does nothing.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

from mirror.errors import StoreError
from mirror.records import Fetched, Run, Stream
from mirror.store.cells import CellBatch, decode
from mirror.store.console import parsed
from mirror.store.disk import explained, sync_folder
from mirror.store.layout import Layout
from mirror.store.versions import run_from_json, run_json

if TYPE_CHECKING:
    from mirror.store.writer import Writer

SpoolStream = Literal["history", "system", "logs"]
STREAMS: tuple[SpoolStream, ...] = ("history", "system", "logs")
_ROWS: tuple[Stream, ...] = ("history", "system")
_GONE = ".gone"
_PART_CHARS = 2 << 20  # of lines that are made cells at once; parsed they take many times as much


@dataclass
class _Stream:
    """One stream of a live run: `drained` lines are in segments, `count` lines exist in all."""

    drained: int = 0
    count: int = 0
    bytes: int = 0
    fd: int | None = None
    rotate: bool = False  # the files so far are being drained: the next line starts a new one


@dataclass
class _LiveRun:
    run: Run
    streams: dict[SpoolStream, _Stream] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class Sealed:
    """A run's documents, line counts and files (with their sizes) at one moment."""

    run: Run
    counts: dict[SpoolStream, int]
    files: dict[Path, int]


class Spool:
    """The live runs of one server. Methods may be called from several threads; `drain` needs the writer's.

    Only one process may hold the spool of a run; the project's lease sees to that.
    """

    def __init__(self, root: str | Path) -> None:
        self.layout = Layout(root)
        self._runs: dict[int, _LiveRun] = {}
        self.layout.live.mkdir(exist_ok=True)
        for folder in sorted(self.layout.live.iterdir()):
            if folder.suffix == _GONE:
                shutil.rmtree(folder)
            if folder.name.isdigit() and (run := last_version(folder)):
                _cut_torn_line(folder / "run.jsonl")
                self._runs[int(folder.name)] = live = _LiveRun(run)
                for stream in STREAMS:
                    live.streams[stream] = self._resume(folder, stream)

    def _resume(self, folder: Path, stream: SpoolStream) -> _Stream:
        found = _Stream()
        for path, first in stream_files(folder, stream):
            _cut_torn_line(path)
            data = path.read_bytes()
            found.count = first + data.count(b"\n")
            found.bytes += len(data)
        if stream == "logs":  # kept with their numbers, since lines are written again
            found.count = max((number + 1 for number, _ in live_logs(folder)), default=0)
        return found

    # -- documents ----------------------------------------------------------------------------------------

    def runs(self) -> dict[int, Run]:
        """rid -> the latest version of every live run."""
        return {rid: live.run for rid, live in list(self._runs.items())}

    def run(self, rid: int) -> Run:
        """The latest version of a live run's documents; KeyError if it is not live."""
        return self._runs[rid].run

    def open(self, rid: int, run: Run, *, drained: dict[SpoolStream, int] | None = None) -> None:
        """Make a run live. `drained` says how many lines of its streams are in segments already."""
        if rid in self._runs:
            self.put_run(rid, run)
        else:
            self._folder(rid).mkdir(exist_ok=True)
            sync_folder(self.layout.live)
            self._write(self._folder(rid) / "run.jsonl", run_json(run).encode() + b"\n")
            sync_folder(self._folder(rid))
            self._runs[rid] = _LiveRun(run, {s: _Stream() for s in STREAMS})
        self.set_drained(rid, drained or {})

    def set_drained(self, rid: int, drained: dict[SpoolStream, int]) -> None:
        """What segments hold; called for every run after a restart, and by `drain`."""
        for stream, rows in drained.items():
            state = self._runs[rid].streams[stream]
            state.drained = rows
            state.count = max(state.count, rows)

    def put_run(self, rid: int, run: Run) -> None:
        """Keep a new version of a run's documents."""
        live = self._runs[rid]
        with live.lock:
            if run == live.run:
                return
            path = self._folder(rid) / "run.jsonl"
            line = run_json(run).encode() + b"\n"
            if path.stat().st_size > 64 * len(line) + (1 << 16):
                # Summaries arrive all the time; only the last version is of use.
                with explained("writing the live tail"):
                    tmp = path.with_suffix(".tmp")
                    tmp.unlink(missing_ok=True)
                    self._write(tmp, line)
                    tmp.replace(path)
                    sync_folder(path.parent)
            else:
                self._write(path, line)
            live.run = run

    def _folder(self, rid: int) -> Path:
        return self.layout.live / str(rid)

    def _write(self, path: Path, data: bytes) -> None:
        with explained("writing the live tail"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _append(fd, data)
            finally:
                os.close(fd)

    # -- lines --------------------------------------------------------------------------------------------

    def count(self, rid: int, stream: SpoolStream) -> int:
        """Lines of a stream in all, in segments and live."""
        return self._runs[rid].streams[stream].count

    def drained(self, rid: int, stream: SpoolStream) -> int:
        """Lines of a stream that are in segments."""
        return self._runs[rid].streams[stream].drained

    def nbytes(self, rid: int) -> int:
        """Bytes of a run's live lines."""
        return sum(s.bytes for s in self._runs[rid].streams.values())

    def append(self, rid: int, stream: SpoolStream, first_line: int, lines: Sequence[bytes]) -> int:
        """Append lines (without newlines) that start at number `first_line` of the stream; returns the new count.

        Lines that are held already are skipped, so a request that is sent again adds nothing. Lines beyond the
        end are taken as the next ones: the offset tells repeats, it cannot leave holes.
        """
        live = self._runs[rid]
        with live.lock:
            state = live.streams[stream]
            new = lines[max(0, state.count - first_line) :]
            if not new:
                return state.count
            data = b"\n".join(new) + b"\n"
            if data.count(b"\n") != len(new):
                raise StoreError("a line holds a newline: send each row as one line")
            with explained("writing the live tail"):
                if state.fd is None:
                    path = self._folder(rid) / f"{stream}-{state.count:012d}.jsonl"
                    existing = [p for p, _ in stream_files(self._folder(rid), stream)]
                    path = existing[-1] if existing and not state.rotate else path
                    state.rotate = False
                    state.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                    sync_folder(path.parent)
                _append(state.fd, data)
            state.count += len(new)
            state.bytes += len(data)
            return state.count

    def lines(self, rid: int, stream: SpoolStream, start: int = 0) -> Iterator[str]:
        """Live lines from number `start` on; those below `drained` are in segments and not repeated here."""
        live = self._runs[rid]
        yield from read_lines(self._folder(rid), stream, max(start, live.streams[stream].drained))

    def rewrite_logs(self, rid: int, first_line: int, lines: Sequence[bytes]) -> int:
        """Console lines may be written again (progress bars): the later text of a line counts.

        Each line is kept as `[number, text]`; returns the number of lines.
        """
        records = [orjson.dumps([first_line + n, line.decode("utf-8", "replace")]) for n, line in enumerate(lines)]
        live = self._runs[rid]
        with live.lock:
            state = live.streams["logs"]
            if records:
                self._write(self._folder(rid) / "logs-000000000000.jsonl", b"\n".join(records) + b"\n")
            state.count = max(state.count, first_line + len(lines))
            state.bytes += sum(map(len, records))
            return state.count

    def log_lines(self, rid: int) -> list[tuple[int, str]]:
        """The live console lines, by number."""
        return live_logs(self._folder(rid))

    # -- into segments ------------------------------------------------------------------------------------

    def seal(self, rid: int) -> Sealed:
        """Set apart what a run holds now, to be drained; later lines go to new files."""
        live = self._runs[rid]
        with live.lock:
            for name, state in live.streams.items():
                if state.fd is not None and name != "logs":
                    os.close(state.fd)
                    state.fd, state.rotate = None, True
            files = {path: path.stat().st_size for name in STREAMS for path, _ in stream_files(self._folder(rid), name)}
            return Sealed(live.run, {name: state.count for name, state in live.streams.items()}, files)

    def put_rows(
        self,
        writer: Writer,
        rid: int,
        sealed: Sealed,
        seen: Callable[[int, CellBatch], None] = lambda first, cells: None,
        unseen: int = 0,
    ) -> None:
        """Put the rows that were `sealed` into the writer, while more may come in; `drain` is to follow. `seen` is told
        of those of the history from number `unseen` on, also of any that the store held before."""
        folder, key = self._folder(rid), sealed.run.key
        writer.put_run(sealed.run, rid=rid)
        for stream in _ROWS:
            count, held = sealed.counts[stream], writer.state(key, stream).rows
            if stream == "history":
                for first, cells in _batches(folder, stream, unseen, held):
                    seen(first, cells)
            for first, cells in _batches(folder, stream, held, count):
                if stream == "history":
                    seen(first, cells)
                writer.append(key, stream, cells)
            writer.publish(key, stream, Fetched(stream, "serve", asked=count, got=count, total=count))

    def drain(self, writer: Writer, rid: int, sealed: Sealed, *, final: bool) -> Callable[[], None]:
        """Put a run's documents into the writer, and with `final` its console, after its rows. Returns what is to be
        called once that is committed: it lets go of the lines that were `sealed` and, with `final`, closes the run,
        whose folder goes away unless something changed meanwhile. Many runs can share one commit.
        """
        live = self._runs[rid]
        folder = self._folder(rid)
        run = live.run
        writer.put_run(run, rid=rid)
        if final:
            writer.put_logs(run.key, [(n, *parsed(text)) for n, text in self.log_lines(rid)])

        def done() -> None:
            # From here on the lines are in segments for every reader that looks again.
            with live.lock:
                for path, size in sealed.files.items():
                    if not path.name.startswith("logs-") or (final and path.stat().st_size == size):
                        path.unlink()
                for name, state in live.streams.items():
                    if name != "logs" or final:
                        state.bytes = sum(path.stat().st_size for path, _ in stream_files(folder, name))
                        state.drained = sealed.counts[name]
                left = [path for path in folder.iterdir() if path.name != "run.jsonl" and path.suffix == ".jsonl"]
                quiet = not any(path.name.startswith(STREAMS) for path in left) and live.run == run
                if final and quiet:
                    del self._runs[rid]
                    # Killed halfway, a folder with some of its files left would be taken for a live run.
                    gone = folder.with_suffix(_GONE)
                    folder.rename(gone)
                    shutil.rmtree(gone)

        return done

    def close(self) -> None:
        """Close the files; nothing is lost, as everything acknowledged is on the disk."""
        for live in self._runs.values():
            for state in live.streams.values():
                if state.fd is not None:
                    os.close(state.fd)
                    state.fd = None


def _batches(folder: Path, stream: Stream, start: int, stop: int) -> Iterator[tuple[int, CellBatch]]:
    """Live lines from number `start` (or the first there is) to before `stop`, each batch with its first number."""
    files = stream_files(folder, stream)
    first = max(start, files[0][1]) if files else stop
    for part in parts(islice(read_lines(folder, stream, first), max(0, stop - first))):
        yield first, decode(part)
        first += len(part)


def parts(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines in lists that are made cells at once."""
    part: list[str] = []
    size = 0
    for line in lines:
        part.append(line)
        size += len(line)
        if size > _PART_CHARS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _append(fd: int, data: bytes) -> None:
    """All of it on the disk, or nothing of it in the file."""
    before = os.fstat(fd).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, before)
        raise


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


# -- what readers use too; they never change a file -------------------------------------------------------


def stream_files(folder: Path, stream: str) -> list[tuple[Path, int]]:
    """A run's live files of a stream with the number of their first line, in order."""
    before, after = f"{stream}-", ".jsonl"
    try:
        names = sorted(path.name for path in folder.iterdir())  # a glob takes many times as long
    except FileNotFoundError:
        return []
    held = [name for name in names if name.startswith(before) and name.endswith(after)]
    return [(folder / name, int(name[len(before) : -len(after)])) for name in held]


def read_lines(folder: Path, stream: str, start: int) -> Iterator[str]:
    """Whole lines from number `start` on; a last line without its newline is still being written."""
    for path, number in stream_files(folder, stream):
        with path.open("rb") as f:
            for line in f:
                if line.endswith(b"\n"):
                    if number >= start:
                        yield line[:-1].decode("utf-8")
                    number += 1


def live_logs(folder: Path) -> list[tuple[int, str]]:
    found: dict[int, str] = {}
    for line in read_lines(folder, "logs", 0):
        number, text = orjson.loads(line)
        found[number] = text
    return sorted(found.items())


def last_version(folder: Path) -> Run | None:
    """The last whole version of a live run's documents; None if there is none."""
    try:
        data = (folder / "run.jsonl").read_bytes()
    except FileNotFoundError:
        return None
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    return run_from_json(whole[-1].decode("utf-8")) if whole else None
