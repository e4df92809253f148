"""One run compared: what the other side hands over of it, step by step, beside what the mirror holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, SourceError
from mirror.importers.origin import CONFIG_KEY, STEP, forked_from, said_of
from mirror.importers.outgoing import config_of, gathered
from mirror.query.rows import by_step, stretches
from mirror.records import FileEntry, Run, Stream
from mirror.sources.protocol import (
    Cells,
    ConsoleLines,
    Document,
    Finished,
    HistoryRead,
    Items,
    Manifest,
    Restart,
    Rows,
    Step,
    SystemMetrics,
    Trouble,
)
from mirror.store.blobs import blob_path
from mirror.store.cells import decode
from mirror.verify import values
from mirror.verify.console import ConsoleCompared
from mirror.verify.findings import Findings, as_json, plain
from mirror.verify.points import PointsCompared
from mirror.verify.rows import RowsCompared
from mirror.verify.store import digests

if TYPE_CHECKING:
    from mirror.store import Reader

_PIECE = 4 << 20
"""Bytes of rows read of the mirror at once: several runs are compared side by side."""

_NAMES: dict[Stream, str] = {"history": "history", "system": "system metrics"}

ATTRIBUTES = ("name", "notes", "tags", "group", "job_type", "description", "commit", "host")
"""What a run is called and described by."""
SAID = ("state", "username", "user_name", "created_at")
"""What W&B's API cannot set, so that copies say it under CONFIG_KEY."""
FIXED = (*SAID, "sweep", "fork_run_id", "fork_step")
"""What only the server that made the run can say."""


@dataclass(frozen=True)
class Expected:
    """How far the other side can be the same. At their origin everything of runs is compared; elsewhere what nobody can
    set is looked for in what the copy says of its origin, and more files are no difference. `sweeps` are the ids there
    of a project's sweeps; `led` is what JSON text becomes whose references lead to copies, `config` a config that names
    artifacts."""

    is_origin: bool = True
    sweeps: Mapping[str, str] = field(default_factory=dict)
    led: Callable[[str], str] | None = None
    config: Callable[[str], str] = lambda text: text


class RunCompared:
    """Takes the steps of one run (`take`) until it is `finished`. `row` has the attributes and counts of its row of
    `runs_raw`; `sent` says that an import noted that it sent the run there.

    A run that the mirror holds from a log on disk, too, shows streams of which the log has more: these are compared
    with what the server had when they were put together, which has to be among them."""

    def __init__(
        self, reader: Reader, row: Mapping[str, Any], expected: Expected, findings: Findings, sent: bool = False
    ) -> None:
        self._reader = reader
        self._row = row
        self._expected = expected
        self._findings = findings
        self.where = f"{row['entity']}/{row['project']}/{row['run_id']}"
        self._rows: dict[Stream, RowsCompared] = {}
        self._points: PointsCompared | None = None
        self._broken = False
        self._found: dict[Stream, Findings] = {}
        self._over: set[Stream] = set()
        self._logged = frozenset(json.loads(row["origin"] or "{}")) if expected.is_origin else frozenset()
        self._console = ConsoleCompared(
            reader, row["rid"], self.where, findings, more_here="logs" in self._logged, is_origin=expected.is_origin
        )
        # Points of MLflow become rows, and its params typed values, when they are sent to W&B.
        self._reshaped = not expected.is_origin and gathered(row)
        self._sent = sent
        self._seen: set[str] = set()
        self._imported = False
        self.finished = False

    def take(self, step: Step) -> None:
        match step:
            case Document():
                self._seen.add("documents")
                self._document(step.run)
            case Manifest():
                self._seen.add("files")
                self._files(step.files)
            case ConsoleLines():
                self._console.take(step)
            case Rows():
                self._feed(step.stream, step.rows, step)
            case Restart():
                self._restart(step.stream)
            case HistoryRead():
                self._read(step.fetched.stream, complete=step.fetched.complete)
            case SystemMetrics():
                self._system(step)
            case Trouble():
                self._findings.doubt(self.where, f"{step.stage}: {step.error}")
                self._seen.add(step.stage)
                if step.stage == "history" or step.stage == "system":
                    self._stop("history" if step.stage == "history" else "system")
                elif step.stage == "logs":
                    self._console.give_up()
            case Finished():
                self._finish(step)
            case Items() | Cells():
                pass

    # -- rows ---------------------------------------------------------------------------------------------

    def _compared(self, stream: Stream) -> RowsCompared:
        if stream not in self._rows:
            sent = stream == "history" and self._imported
            read = (self._reader, self._row["rid"], stream)
            here = stretches(*read) if sent else by_step(*read, stretch_bytes=_PIECE)
            self._found[stream] = self._findings.sheet()
            self._rows[stream] = RowsCompared(
                self.where, _NAMES[stream], here, self._found[stream], moved=STEP if sent else None,
                more_here=stream in self._logged, led=self._expected.led,
            )  # fmt: skip
        return self._rows[stream]

    def _feed(self, stream: Stream, rows: Sequence[str], step: Rows | None = None) -> None:
        if stream in self._over:
            return
        try:
            batch = decode(rows, step.string_is_nonfinite if step else None)
        except MirrorError as e:
            self._findings.doubt(self.where, f"{stream}: {e}")
            self._stop(stream)
            return
        if not self._reshaped:
            self._compared(stream).feed(batch.table, batch.rows)
        elif batch.rows:
            self._told().feed(batch.table, stream)

    def _told(self) -> PointsCompared:
        if self._points is None:
            self._points = PointsCompared(self.where, self._reader, self._row["rid"])
        return self._points

    def _restart(self, stream: Stream) -> None:
        """What came was not all, and comes once more on another road."""
        if rows := self._rows.pop(stream, None):
            rows.close()
        self._found.pop(stream, None)
        if self._points is not None:
            self._points.forget(stream)

    def _stop(self, stream: Stream) -> None:
        self._restart(stream)
        self._over.add(stream)
        self._broken = True

    def _read(self, stream: Stream, *, complete: bool) -> None:
        if not complete or stream in self._over:
            return
        self._over.add(stream)
        if self._reshaped:
            return
        rows = self._compared(stream)
        rows.finish()
        found = self._found.pop(stream)
        had = self._row[f"{stream}_total"]
        if stream in self._logged and had is not None and rows.came < had:
            had_then = f"{had} rows when its log was compared with it"
            found.differ(self.where, stream, here=had_then, there=f"{rows.came} rows")
        self._findings.add(found)
        self._rows.pop(stream)

    def _system(self, step: SystemMetrics) -> None:
        if not step.fetched.complete:
            total, got = step.fetched.total, step.fetched.got
            self._findings.doubt(self.where, f"system metrics: the server gives out {got} of {total} samples")
            self._stop("system")
            return
        self._feed("system", step.rows)
        self._read("system", complete=True)

    def close(self) -> None:
        """Let go of what is being read of the mirror."""
        for rows in self._rows.values():
            rows.close()
        self._rows.clear()

    def _finish(self, step: Finished) -> None:
        self.finished = True
        if step.gone:
            self._findings.differ(self.where, "run", here="the run")
            return
        for part in sorted({"documents", "files"} - self._seen):
            self._findings.doubt(self.where, f"{part}: the server gave out none")
        if "documents" not in self._seen:
            return
        for stream in ("history", "system"):
            if stream not in self._over:  # nothing came, so there is nothing there
                self._read(stream, complete=True)
        if self._reshaped and not self._broken:
            self._told().finish(self._findings)
        self._console.finish()

    # -- documents and attributes -------------------------------------------------------------------------

    def _document(self, run: Run) -> None:
        said = self._origin(run.config)
        self._imported = bool(said)
        row: Mapping[str, Any] = self._row
        config, summary, metadata = self._documents()
        pairs = {name: (row[name], getattr(run, name)) for name in ATTRIBUTES}
        if row["name"] is None and not self._expected.is_origin:
            del pairs["name"]  # servers show the id of a run that nobody named, or make a name up
        if self._expected.is_origin:
            pairs |= {name: (row[name], getattr(run, name)) for name in FIXED}
            pairs["id"] = row["storage_id"], run.key.storage_id
        elif said:
            pairs |= {name: (row[name], getattr(run, name)) for name in SAID if row[name] is not None}
            pairs["forked_from"] = forked_from(config, row), said.get("forked_from")
            pairs["sweep"] = row["sweep"], run.sweep
            if (copy := self._expected.sweeps.get(row["sweep"] or "")) is not None:
                pairs["sweep"] = copy, run.sweep
                self._findings.count(runs_in_copies_of_sweeps=1)
        elif self._sent:
            self._findings.differ(self.where, "config", key=CONFIG_KEY, here="where the run is from")
        kept = 0
        for name, (here, there) in pairs.items():
            if plain(here) == plain(there):
                continue
            if name in said and plain(said[name]) == plain(said_of(here)):
                kept += 1
            else:
                sides = {"here": as_json(plain(here)), "there": as_json(plain(there))}
                self._findings.differ(self.where, "attributes", key=name, **sides)
        self._findings.count(attributes=len(pairs), attributes_kept_in_the_config_only=kept)
        if self._reshaped:
            config = config_of(dict(row) | {"config_raw": config})
        try:
            self._tree("config", config and self._expected.config(config), run.config)
        except SourceError as e:
            self._findings.doubt(self.where, f"config: what it names cannot be looked for: {e}")
        self._tree("summary", summary, run.summary)
        if run.metadata is not None or (metadata is not None and self._expected.is_origin):
            self._tree("wandb-metadata.json", metadata, run.metadata)

    def _documents(self) -> tuple[str | None, str | None, str | None]:
        rid = self._row["rid"]
        query = f"select config_raw, summary_raw, metadata from {self._reader.relation('runs', rid)} r "
        query += "semi join raw.live l on l.rid = r.rid and l.gen = r.gen"
        found = self._reader.connect().execute(query).fetchone()
        return found if found is not None else (None, None, None)

    def _tree(self, stream: str, here: str | None, there: str | None) -> None:
        try:
            mine, others = values.read(here or "{}"), values.read(there or "{}")
        except (ValueError, RecursionError) as e:
            if here != there:
                self._findings.doubt(self.where, f"{stream}: cannot be read as JSON ({e})")
            return
        if stream == "config" and isinstance(mine, dict) and isinstance(others, dict):
            if not self._expected.is_origin:
                mine, others = self._without_origin(mine, others)
            mine, others = _undescribed(mine), _undescribed(others)
        led = self._led(here, others) if stream == "summary" else {}
        count = respelled = leading = 0
        for key, a, b, how in values.leaves(mine, others):
            count += 1
            if how == values.OTHER and b is not None and led.get(key) == b:
                how, leading = values.EQUAL, leading + 1
            respelled += how == values.RESPELLED
            if how == values.OTHER:
                sides = {name: side for name, side in (("here", a), ("there", b)) if side is not None}
                self._findings.differ(self.where, stream, key=key, **sides)
        self._findings.count(**{f"{stream} values": count}, values_that_lead_to_copies=leading)
        self._findings.respell(respelled)

    def _origin(self, config: str | None) -> dict[str, Any]:
        """What an import says of the run; empty where none made it."""
        if self._expected.is_origin:
            return {}
        try:
            found = _value(values.read(config or "{}"), CONFIG_KEY)
        except (ValueError, RecursionError, AttributeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _led(self, here: str | None, others: Any) -> dict[str, str | None]:
        """The leaves of a document whose references lead to copies, where that makes any difference."""
        led = self._expected.led(here) if self._expected.led is not None and here else here
        return {} if led == here else {key: a for key, a, _, _ in values.leaves(values.read(led or "{}"), others)}

    def _without_origin(self, here: dict[str, Any], there: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configs as they were before an import wrote its key; what it moved under the key is put back."""
        key = CONFIG_KEY
        if not isinstance(origin := _value(there, key), dict):
            return here, there
        there = {name: value for name, value in there.items() if name != key}
        if key in here and _value(here, key) == origin.get("previous"):
            here = {name: value for name, value in here.items() if name != key}
        internal = _value(here, "_wandb")
        if origin.get("forked_from") and isinstance(internal, dict) and "branch_point" in internal:
            del internal["branch_point"]
        return here, there

    # -- files --------------------------------------------------------------------------------------------

    def _files(self, there: Sequence[FileEntry]) -> None:
        query = "select name, size, md5, sha256 from files where rid = ? order by name"
        db = self._reader.connect()
        mine: dict[str, tuple[int | None, str | None]] = {}
        for name, size, md5, sha256 in db.execute(query, [self._row["rid"]]).fetchall():
            if md5 is None and sha256 is not None:  # not every source tells digests
                blob = blob_path(self._reader.layout.blobs, sha256)
                md5 = digests(blob)[1] if blob.is_file() else None
            mine[name] = (size, md5)
        others = {f.name: (f.size, f.md5) for f in there}
        undigested = of_log = 0
        for name in sorted({*mine, *others}):
            here, found = mine.get(name), others.get(name)
            if here is None or found is None:
                if here is not None and "files" in self._logged:
                    of_log += 1
                elif here is not None or self._expected.is_origin:
                    sides = {"here": here, "there": found}
                    said = {side: as_json(list(what)) for side, what in sides.items() if what is not None}
                    self._findings.differ(self.where, "files", key=name, **said)
                continue
            if here[1] is None or found[1] is None:
                undigested += 1
                here, found = (here[0], None), (found[0], None)
            if here != found:
                self._findings.differ(
                    self.where, "files", key=name, here=as_json(list(here)), there=as_json(list(found))
                )
        self._findings.count(files_of_a_log_on_disk_alone=of_log)
        self._findings.count(files=len(mine))
        if undigested:
            self._findings.doubt(self.where, f"files: {undigested} have no digest, only their sizes were compared")


def _undescribed(config: dict[str, Any]) -> dict[str, Any]:
    """A config without descriptions that are null: W&B's client writes one beside every value it saves."""
    return {
        key: {"value": found["value"]}
        if isinstance(found, dict) and found.keys() == {"value", "desc"} and found["desc"] is None
        else found
        for key, found in config.items()
    }


def _value(config: dict[str, Any], key: str) -> Any:
    """A config's value without its wrapper; None if there is none."""
    found = config.get(key)
    return found["value"] if isinstance(found, dict) and "value" in found else found
