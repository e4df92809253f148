"""Steps of a source, put into the store in the order they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mirror.errors import SourceError
from mirror.records import Failure, RunKey
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
from mirror.store import Reader, Writer
from mirror.store.cells import CellBatch, fingerprint, rows_as_json
from mirror.store.console import parsed
from mirror.sync.changes import Changes
from mirror.sync.feed import Ordered
from mirror.sync.plan import remember
from mirror.sync.quarantine import Quarantine, failure

_BY_STEP = "in the order of steps: the wire does not tell in which order rows of different steps were logged"

DOUBTFUL_TRIES = 3
"""What a source may be wrong about is tried so often; then it is noted, and the run is not failed for it."""

_STREAM_OF: dict[type, str] = {Manifest: "files", ConsoleLines: "logs", Cells: "history", SystemMetrics: "system"}
"""Of which stream steps are that do not say it themselves."""


@dataclass
class _Current:
    """A run between its first step and `Finished`."""

    troubles: dict[str, Trouble] = field(default_factory=dict)
    by_step: bool = False
    changed: bool = False


class Committer:
    """Applies steps. Afterwards `rows` were written, `done` runs are through, `changed` of them with changes,
    `failures` are in quarantine, and `notes` tell what has been tried often enough."""

    def __init__(self, writer: Writer, quarantine: Quarantine, changes: Changes) -> None:
        self._writer = writer
        self._quarantine = quarantine
        self._changes = changes
        self._current: dict[str, _Current] = {}
        self.rows = 0
        self.done = 0
        self.vanished = 0
        self.changed: set[str] = set()
        self.failures: list[Failure] = []
        self.notes: list[str] = []

    def apply(self, step: Step, cells: Ordered | SourceError | None = None) -> None:
        """Put one step into the store. `cells` are the decoded rows of a `Rows` step."""
        run = self._current.setdefault(step.key.storage_id, _Current())
        if (stream := _STREAM_OF.get(type(step)) or getattr(step, "stream", None)) is not None:
            self._writer.is_own(step.key, stream)
        match step:
            case Document():
                self._writer.put_run(step.run)
                run.changed |= self._writer.is_changed(step.key)
            case Manifest():
                before = self._writer.state(step.key, "files")
                self._writer.put_files(step.key, step.files)
                self._changes.files(step.key, before, self._writer.state(step.key, "files"))
                run.changed |= self._writer.is_changed(step.key)
            case Trouble():
                run.troubles.setdefault(step.stage, step)
            case Finished():
                self._finish(step, run)
            case Items():
                for item in step.items:
                    self._writer.put_item(item)
            case ConsoleLines():
                lines = [(n, *parsed(text)) for n, _, _, text in step.lines] if step.raw else step.lines
                self._writer.put_logs(step.key, lines, restart=step.restart)
                run.changed |= self._writer.is_changed(step.key)
            case _ if "history" in run.troubles and not isinstance(step, SystemMetrics):
                pass  # what follows rows that could not be read must not look as if they were there
            case Restart():
                self._writer.begin(step.key, step.stream)
            case Rows():
                self._append(step, cells, run)
            case Cells():
                assert isinstance(step.cells, CellBatch)
                self._writer.append(step.key, "history", step.cells)
                run.changed = True
                self.rows += step.cells.rows
            case HistoryRead():
                stream = step.fetched.stream
                note = _BY_STEP if run.by_step and stream == "history" else step.fetched.note
                self._writer.publish(step.key, stream, replace(step.fetched, note=note))
                run.changed |= self._writer.is_changed(step.key)
            case SystemMetrics():
                self._system(step)
                run.changed |= self._writer.is_changed(step.key)

    def _append(self, step: Rows, cells: Ordered | SourceError | None, run: _Current) -> None:
        if isinstance(cells, SourceError):
            run.troubles["history"] = Trouble(step.key, "history", str(cells))
        elif cells is not None:
            self._writer.append(step.key, step.stream, cells.cells)
            run.by_step |= cells.by_step
            run.changed = True
            self.rows += len(step.rows) if step.stream == "history" else 0

    def _system(self, step: SystemMetrics) -> None:
        """Replace what is held if all came, else keep every distinct row that ever came."""
        held = self._writer.state(step.key, "system")
        rows = list(step.rows)
        if step.fetched.complete:
            if held.rows and len(rows) >= held.rows and fingerprint(rows[held.rows - 1]) == held.last_fingerprint:
                rows = rows[held.rows :]
            elif held.rows:
                self._writer.begin(step.key, "system")
        elif held.rows:
            seen = self._held_system(step.key)
            rows = [row for row in rows if fingerprint(row) not in seen]
        self._writer.append(step.key, "system", rows)
        self._writer.publish(step.key, "system", step.fetched)

    def _held_system(self, key: RunKey) -> set[str]:
        """The fingerprints of the rows of system metrics that are held and visible."""
        self._writer.commit()
        rid = self._writer.known(key.source, key.entity, key.project)[key.storage_id].rid
        with Reader(self._writer.layout.root) as reader:
            query = "select * from raw.system_metrics_live where rid = ? order by row"
            cells = reader.connect().sql(query, params=[rid]).to_arrow_table()
            return {fingerprint(row) for row in rows_as_json(cells)}

    def _finish(self, step: Finished, run: _Current) -> None:
        del self._current[step.key.storage_id]
        self.done += 1
        before: Mapping[str, Failure] = self._quarantine.of(step.key)
        for stage, trouble in list(run.troubles.items()):
            failed = failure(step.key, stage, trouble.error, before.get(stage), self._changes.at)
            if trouble.doubtful and failed.attempts >= DOUBTFUL_TRIES:
                del run.troubles[stage]
                self.notes.append(f"{step.key.path}: {stage}: {trouble.error}")
                continue
            self._writer.quarantine(failed)
            self.failures.append(failed)
        if step.gone:
            self.vanished += 1
            return
        for stage in before:
            if stage not in run.troubles:
                self._writer.mended(step.key, stage)
        if not run.troubles and step.fingerprint is not None:
            self._writer.set_fingerprint(step.key, remember(step.fingerprint, step.memo, step.missing))
        self._changes.finished(step.key)
        if run.changed:
            self.changed.add(step.key.storage_id)
