"""One run compared: what the other side hands over of it, step by step, beside what the mirror holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError
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
from mirror.store.cells import decode
from mirror.verify import values
from mirror.verify.console import ConsoleCompared
from mirror.verify.findings import Findings, as_json, plain
from mirror.verify.points import PointsCompared
from mirror.verify.rows import RowsCompared

if TYPE_CHECKING:
    from mirror.store import Reader

_PIECE = 4 << 20
"""Bytes of rows read of the mirror at once: several runs are compared side by side."""

ATTRIBUTES = ("name", "notes", "tags", "group", "job_type", "description", "commit", "host")
"""What a run is called and described by."""
FIXED = ("state", "sweep", "username", "user_name", "created_at", "fork_run_id", "fork_step")
"""What only the server that made the run can say, and W&B's API cannot set."""


@dataclass(frozen=True)
class Expected:
    """How far the other side can be the same. `same_server`: the runs were mirrored from it, so that everything is
    compared; elsewhere what nobody can set is left out, and more files are no difference. `origin` is the key of the
    config under which an import says where a run is from and what it changed, `config_of` makes the config that is sent
    of a run that came from MLflow (a row of `runs_raw`)."""

    same_server: bool = True
    origin: str = ""
    config_of: Callable[[Mapping[str, Any]], str | None] | None = None


class RunCompared:
    """Takes the steps of one run (`take`) until it is `finished`. `row` has the attributes and counts of its row of
    `runs_raw`."""

    def __init__(self, reader: Reader, row: Mapping[str, Any], expected: Expected, findings: Findings) -> None:
        self._reader = reader
        self._row = row
        self._expected = expected
        self._findings = findings
        self.where = f"{row['entity']}/{row['project']}/{row['run_id']}"
        self._rows: dict[Stream, RowsCompared | PointsCompared] = {}
        self._found: dict[Stream, Findings] = {}
        self._over: set[Stream] = set()
        self._console = ConsoleCompared(reader, row["rid"], self.where, findings)
        # Points of MLflow become rows, and its params typed values, when they are sent to W&B.
        self._reshaped = not expected.same_server and str(row["source"]).startswith("mlflow:")
        self._taken = False
        self._imported = False
        self.finished = False

    def take(self, step: Step) -> None:
        match step:
            case Document():
                self._taken = True
                self._document(step.run)
            case Manifest():
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
                if step.stage == "history" or step.stage == "system":
                    self._stop("history" if step.stage == "history" else "system")
                elif step.stage == "logs":
                    self._console.give_up()
            case Finished():
                self._finish(step)
            case Items() | Cells():
                pass

    # -- rows ---------------------------------------------------------------------------------------------

    def _compared(self, stream: Stream) -> RowsCompared | PointsCompared:
        if stream not in self._rows:
            sent = stream == "history" and self._imported
            read = (self._reader, self._row["rid"], stream)
            here = stretches(*read) if sent and not self._reshaped else by_step(*read, stretch_bytes=_PIECE)
            name = "history" if stream == "history" else "system metrics"
            self._found[stream] = self._findings.sheet()
            moved = f"{self._expected.origin}/step" if sent else None
            into = self._found[stream]
            self._rows[stream] = (
                PointsCompared(self.where, name, here, into, self._expected.origin)
                if self._reshaped and stream == "history"
                else RowsCompared(self.where, name, here, into, moved)
            )
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
        self._compared(stream).feed(batch.table, batch.rows)

    def _restart(self, stream: Stream) -> None:
        """What came was not all, and comes once more on another road."""
        if rows := self._rows.pop(stream, None):
            rows.close()
        self._found.pop(stream, None)

    def _stop(self, stream: Stream) -> None:
        self._restart(stream)
        self._over.add(stream)

    def _read(self, stream: Stream, *, complete: bool) -> None:
        if complete and stream not in self._over:
            self._compared(stream).finish()
            self._findings.add(self._found.pop(stream))
            self._rows.pop(stream)
            self._over.add(stream)

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
        if step.gone or not self._taken:
            if step.gone:
                self._findings.differ(self.where, "run", here="the run")
            return
        for stream in ("history", "system"):
            if stream not in self._over:  # nothing came, so there is nothing there
                self._read(stream, complete=True)
        self._console.finish()

    # -- documents and attributes -------------------------------------------------------------------------

    def _document(self, run: Run) -> None:
        names = ATTRIBUTES + FIXED if self._expected.same_server else ATTRIBUTES
        said = self._origin(run.config)
        self._imported = bool(said)
        for name in names:
            here, there = plain(self._row[name]), plain(getattr(run, name))
            if name in said and plain(said[name]) == here:
                self._findings.count(attributes_kept_in_the_config_only=here != there)
            elif here != there:
                self._findings.differ(self.where, "attributes", key=name, here=as_json(here), there=as_json(there))
        self._findings.count(attributes=len(names))
        config, summary, metadata = self._documents()
        if self._reshaped and self._expected.config_of is not None:
            config = self._expected.config_of(dict(self._row) | {"config_raw": config})
        self._tree("config", config, run.config)
        self._tree("summary", summary, run.summary)
        if run.metadata is not None or (metadata is not None and self._expected.same_server):
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
        if stream == "config" and self._expected.origin and isinstance(mine, dict) and isinstance(others, dict):
            mine, others = self._without_origin(mine, others)
        count = respelled = 0
        for key, a, b, how in values.leaves(mine, others):
            count += 1
            respelled += how == values.RESPELLED
            if how == values.OTHER:
                sides = {name: side for name, side in (("here", a), ("there", b)) if side is not None}
                self._findings.differ(self.where, stream, key=key, **sides)
        self._findings.count(**{f"{stream} values": count})
        self._findings.respell(respelled)

    def _origin(self, config: str | None) -> dict[str, Any]:
        """What an import says of the run; empty where none made it."""
        if self._expected.same_server or not self._expected.origin:
            return {}
        try:
            return _value(values.read(config or "{}"), self._expected.origin) or {}
        except (ValueError, RecursionError, AttributeError):
            return {}

    def _without_origin(self, here: dict[str, Any], there: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configs as they were before an import wrote its key; what it moved under the key is put back."""
        key = self._expected.origin
        if self._expected.same_server or not isinstance(origin := _value(there, key), dict):
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
        query = "select name, size, md5 from files where rid = ? order by name"
        db = self._reader.connect()
        mine = {name: (size, md5) for name, size, md5 in db.execute(query, [self._row["rid"]]).fetchall()}
        others = {f.name: (f.size, f.md5) for f in there}
        undigested = 0
        for name in sorted({*mine, *others}):
            here, found = mine.get(name), others.get(name)
            if here is None or found is None:
                if here is not None or self._expected.same_server:
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
        self._findings.count(files=len(mine))
        if undigested:
            self._findings.doubt(self.where, f"files: {undigested} have no digest, only their sizes were compared")


def _value(config: dict[str, Any], key: str) -> Any:
    """A config's value without its wrapper; None if there is none."""
    found = config.get(key)
    return found["value"] if isinstance(found, dict) and "value" in found else found
