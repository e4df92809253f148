"""One run read from its logs, from the beginning or from where the last reading ended."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mirror.errors import SourceError, TerminalSourceError
from mirror.records import Fetched, Stream
from mirror.sources import protocol
from mirror.sources.offline import artifacts, rows
from mirror.sources.offline.console import Console, Line
from mirror.sources.offline.document import Document
from mirror.sources.offline.folder import RunLog
from mirror.sources.offline.framing import Damage, Log
from mirror.sources.offline.manifest import manifest, metadata, version
from mirror.sources.offline.protobuf import decoded
from mirror.sources.protocol import (
    ConsoleLines,
    Finished,
    HistoryRead,
    Items,
    Manifest,
    Restart,
    Rows,
    Step,
    Trouble,
    Wanted,
)

DOCUMENT = frozenset({"run", "config", "telemetry", "environment", "metric", "preempting", "exit"})
"""Kinds of records that a run's attributes and documents are made of."""
SILENT = frozenset({"header", "footer", "final", "noop_link_artifact"})
"""Kinds of records that say nothing of a run."""
_CHECKED_BYTES = 4096
_LARGEST_STATE = 1 << 20
"""Characters of a run's documents beyond which a log is read anew rather than gone on with."""


@dataclass
class Progress:
    """How far the logs of a run were read: `logs` to their ends, then `offset` bytes of the next. `check` is the
    CRC of the bytes before it, so that another log in its place is noticed, `size` that of the log as it was;
    `next_step` follows the highest step, `files` is the version of the files, `place` where the run belongs to."""

    logs: list[str] = field(default_factory=list)
    log: str = ""
    offset: int = 0
    check: int = 0
    files: str = ""
    rows: int = 0
    next_step: int = 0
    system: int = 0
    size: int = 0
    place: str = ""


class RunReading:
    """The steps of one run. `bytes` is how much was read, `notices` what is to be said of it."""

    def __init__(self, wanted: Wanted, logs: Sequence[RunLog], *, running: bool, heartbeat_at: datetime) -> None:
        self.key = wanted.key
        self.bytes = 0
        self.notices: list[str] = []
        self._wanted = wanted
        self._logs = logs
        self._running = running
        self._heartbeat_at = heartbeat_at
        self._document = Document()
        self._console = Console()
        self._progress = Progress()
        self._damage: list[tuple[Path, Damage]] = []
        self._unknown = 0
        self._torn = 0
        self._told: dict[str, list[Any]] = {}
        self._lines: list[Line] = []
        self._system: list[str] = []
        self._is_done = False
        self._place = f"{self.key.entity}/{self.key.project}"
        self._is_resumed = any(log.resumes for log in logs[1:])

    def steps(self) -> Iterator[Step]:
        if not self._remember():
            yield from self._begin(self._logs[0])
        elif self._is_done:
            yield from self._files()
            yield Finished(self.key, self._wanted.listed.fingerprint, self._memo())
            return
        for i, log in enumerate(self._logs[len(self._progress.logs) :], len(self._progress.logs)):
            yield from self._read(log, self._cut(i), last=i == len(self._logs) - 1)
        yield from self._end()

    # -- between readings ---------------------------------------------------------------------------------

    def _remember(self) -> bool:
        """Whether what the last reading left allows to go on from there."""
        try:
            memo = json.loads(self._wanted.memo or "")
            progress = Progress(**memo["progress"])
            document = Document.from_json(memo["document"]) if "document" in memo else None
            console = Console(**memo["console"]) if document else Console()
        except (ValueError, KeyError, TypeError):
            return False
        held, system = self._wanted.history, self._wanted.system
        read = [*progress.logs, progress.log]
        if (
            progress.place not in ("", self._place)  # its documents have to name the new one
            or [log.name for log in self._logs[: len(read)]] != read
            or any(log.rewound_to is not None or log.resumes for log in self._logs[len(read) :])
            or (held.rows, system.rows) != (progress.rows, progress.system)
            or held.pending
            or system.pending
            or not (held.proven and system.proven)  # rows were lost with a damaged file of the mirror
            or _check(self._logs[len(read) - 1].path, progress.offset) != progress.check
        ):
            return False
        self._progress, self._console = progress, console
        if document is None:
            self._is_done = len(read) == len(self._logs) and _size(self._logs[-1].path) == progress.size
            return self._is_done
        self._document = document
        return True

    def _memo(self) -> str:
        self._progress.place = self._place
        memo: dict[str, Any] = {"progress": asdict(self._progress)}
        if not self._document.ended and not self._is_done:  # what has ended hardly ever goes on
            memo |= {"document": self._document.as_json(), "console": asdict(self._console)}
        text = json.dumps(memo)
        return text if len(text) <= _LARGEST_STATE else "{}"

    def _cut(self, i: int) -> float | None:
        """The last step that counts of a log, if a later one went back behind its end."""
        return min((log.rewound_to for log in self._logs[i + 1 :] if log.rewound_to is not None), default=None)

    # -- reading ------------------------------------------------------------------------------------------

    def _begin(self, first: RunLog) -> Iterator[Step]:
        head = Document(created=first.started, started=first.started)
        if self._wanted.memo is None:
            yield self._as_step(head)
        yield Restart(self.key)
        yield Restart(self.key, "system")
        yield ConsoleLines(self.key, (), restart=True)

    def _read(self, log: RunLog, cut: float | None, *, last: bool) -> Iterator[Step]:
        p = self._progress
        if p.log != log.name:
            p.log, p.offset, p.check = log.name, 0, 0
            self._document.begin(p.next_step if log.resumes else 0)
        reader = Log(log.path, p.offset)
        try:
            for records in reader:
                yield from self._records(records, log, cut)
                self.bytes += sum(map(len, records))
        except SourceError as e:
            yield Trouble(self.key, "history", str(e))
        self._damage += [(log.path, damage) for damage in reader.damage]
        p.offset = reader.offset
        if last:
            self._torn = reader.torn
            p.size = p.offset + reader.torn
            p.check = _check(log.path, p.offset)
        else:
            p.logs.append(p.log)
            p.log = ""
            if reader.torn and not self._document.ended:
                self.notices.append(_torn(log.path, reader.torn))

    def _records(self, records: list[bytes], log: RunLog, cut: float | None) -> Iterator[Step]:
        found = rows.Records(records)
        self._unknown += found.unknown
        named: list[Any] = []
        for data in found.others():
            record = decoded(data)
            if record is None:
                self._unknown += 1
            elif (kind := record.WhichOneof("record_type")) == "artifact":
                named += artifacts.items(record.artifact, self.key, self._tell)
            elif kind == "use_artifact":
                named += artifacts.used(record.use_artifact, self.key)
            else:
                self._other(kind or "", record, log)
        yield from self._history(found.history(), cut)
        self._document.update_summary(found.summary())
        if self._system:
            self._progress.system += len(self._system)
            yield Rows(self.key, self._system, stream="system")
            self._system = []
        if self._lines:
            yield ConsoleLines(self.key, self._lines)
            self._lines = []
        if named:
            yield Items(self.key, named)

    def _history(self, texts: list[str], cut: float | None) -> Iterator[Step]:
        if cut is not None:
            texts = [text for text in texts if _step(text) <= cut]
        if first := self._document.first_step:
            texts = [_later(text, first) for text in texts]
        if texts:
            self._progress.rows += len(texts)
            if self._is_resumed:  # costs a look at every row
                self._progress.next_step = max(self._progress.next_step, 1 + max(map(_step, texts)))
            yield Rows(self.key, texts)

    def _tell(self, what: str, example: str) -> None:
        self._told.setdefault(what, [0, example])[0] += 1

    def _other(self, kind: str, record: Any, log: RunLog) -> None:
        match kind:
            case "stats":
                self._system.append(self._sample(record.stats))
            case "output_raw":
                self._lines += self._console.take(record.output_raw)
            case "output":
                self._lines += self._console.take(record.output)
            case "tbrecord":
                self.notices.append(f"`{record.tbrecord.log_dir}`: TensorBoard logs are not read (run {self.key.path})")
            case "files":
                for file in record.files.files:
                    if not os.path.lexists(log.files / file.path):
                        self._tell("files that its log names are not in its folder", file.path)
            case "alert":
                self._tell("alerts that a server would have sent are not kept", record.alert.title)
            case "request":
                asked = record.request.WhichOneof("request_type")
                self._tell("requests between the SDK's processes are not kept", asked or "?")
            case "output_logger":
                self._tell("lines of the SDK's own logger are not kept", record.output_logger.line)
            case _ if kind in DOCUMENT:
                self._document.take(kind, record)
            case _ if kind not in SILENT:
                self._tell("records are of kinds that this `wandb` does not know", kind or "?")

    def _sample(self, stats: Any) -> str:
        """System metrics as the SDK sends them: seconds as floats, names under `system.`."""
        seconds, nanos = stats.timestamp.seconds, stats.timestamp.nanos
        began, fraction = self._document.started
        since = (seconds - began) * 1_000_000_000 + nanos - fraction
        row: dict[str, Any] = {
            "_wandb": True,
            "_timestamp": seconds + nanos / 1e9,
            "_runtime": since // 1_000_000_000 + since % 1_000_000_000 / 1e9,
        }
        for item in stats.item:
            row[f"system.{item.key}"] = json.loads(item.value_json)
        self._document.system |= row
        return json.dumps(row)

    # -- the end ------------------------------------------------------------------------------------------

    def _end(self) -> Iterator[Step]:
        p, document = self._progress, self._document
        if document.ended and (rest := self._console.rest()):
            yield ConsoleLines(self.key, rest)
        yield self._as_step(document)
        yield from self._files()
        lost = self._lost()
        note = lost
        if self._torn and not document.ended:
            note = "; ".join(filter(None, [lost, _torn(self._logs[-1].path, self._torn)]))
            self.notices.append(_torn(self._logs[-1].path, self._torn))
        if document.branch and document.branch["run_id"] != self.key.run_id:
            fork = f"forked from run `{document.branch['run_id']}` at step {document.branch['value']:g}"
            note = "; ".join(filter(None, [note, f"{fork}: the rows before are that run's"]))
        for what, (n, example) in self._told.items():
            self.notices.append(f"{self.key.path}: {n:,} {what} (`{example}`{', ...' if n > 1 else ''})")
        yield HistoryRead(self.key, _fetched("history", p.rows, lost, note))
        yield HistoryRead(self.key, _fetched("system", p.system, lost, None))
        if lost:
            yield Trouble(self.key, "history", lost)
        yield Finished(self.key, self._wanted.listed.fingerprint, self._memo())

    def _files(self) -> Iterator[Step]:
        files = "".join(version(log.files) for log in self._logs)
        if files == self._progress.files:
            return
        try:
            entries = {entry.name: entry for log in self._logs for entry in manifest(log.files)}
        except SourceError as e:
            yield Trouble(self.key, "files", str(e))
        else:
            yield Manifest(self.key, list(entries.values()))
            self._progress.files = files

    def _lost(self) -> str | None:
        parts = [f"`{path}` is damaged from byte {d.start} to {d.end}" for path, d in self._damage[:10]]
        if self._unknown:
            parts.append(f"{self._unknown} records of `{self._logs[-1].path}` are none that `wandb` knows")
        return "; ".join(parts) + ": what is whole is kept" if parts else None

    def _as_step(self, document: Document) -> protocol.Document:
        last = self._logs[-1]
        text = next((t for log in reversed(self._logs) if (t := metadata(log.files)) is not None), None)
        run = document.run(
            self.key,
            running=self._running,
            heartbeat_at=self._heartbeat_at,
            url=last.path.absolute().as_uri(),
            metadata=text,
        )
        return protocol.Document(run)


def _step(row: str) -> int:
    step = json.loads(row).get("_step")
    return int(step) if isinstance(step, (int, float)) else -1


def _later(row: str, first_step: int) -> str:
    """A row of a log that resumes a run, with the step it has in the run."""
    values = json.loads(row)
    return json.dumps(values | {"_step": _step(row) + first_step}) if "_step" in values else row


def _fetched(stream: Stream, got: int, lost: str | None, note: str | None) -> Fetched:
    return Fetched(stream, "log", got=got, total=None if lost else got, complete=lost is None, note=note)


def _torn(path: Path, size: int) -> str:
    return f"`{path}` ends in {size} bytes of an unfinished record: the run still writes it, or was killed"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _check(path: Path, offset: int) -> int:
    """The CRC of the last bytes before `offset`."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, offset - _CHECKED_BYTES))
            return zlib.crc32(file.read(min(offset, _CHECKED_BYTES)))
    except OSError as e:
        raise TerminalSourceError(f"`{path}` cannot be read: {e.strerror or e}", e) from e
