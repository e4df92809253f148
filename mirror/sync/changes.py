"""What a sync saw change at the source, as rows of the table `changes`: written with its commits, at no request.

A thing that is new has one row. What was edited has a row for each field, with both values. A run that goes on is not
news, nor is what it logs (rows, summary, system metrics, console, files); that it ended is, and so is an ended run
that has more rows (`resumed`), fewer (`rewound`) or others (`rewritten`), in one row whatever their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from mirror.errors import SourceError
from mirror.records import Change, ItemKey, Project, Run, RunKey
from mirror.sources.run import GOING_ON
from mirror.store import Writer
from mirror.store.catalog import Known, StreamState
from mirror.store.documents import parse, unwrapped
from mirror.store.edits import EditedItem, EditedRun
from mirror.store.jsontext import storable

KINDS = {"sweeps": "sweep", "artifact_collections": "collection", "artifacts": "artifact", "reports": "report"}
"""What things of the tables of items are called."""

MOST_FIELDS = 20
"""Of one document of one run; a last row tells how many more there are."""
MOST_TEXT = 200

_ATTRIBUTES = (
    "name", "state", "tags", "group", "job_type", "notes", "description", "user_name", "username", "commit", "host",
    "sweep", "exit_code", "fork_run_id", "fork_step",
)  # fmt: skip
_OWN = ("_wandb", "_timestamp", "_runtime", "_step")
"""Keys of a summary that nobody edits."""
_NOT_EDITED = {
    "rid", "gen", "source", "storage_id", "entity", "project", "mirrored_at", "deleted_at", "updated_at", "created_at",
    "config_raw", "method", "metric", "goal", "manifest_sha256", "best_loss", "run_count", "entries_gen",
}  # fmt: skip
"""Columns of items that say what another one says, or change as runs go on."""
_PARTS = {"uses_gen": "uses"}

Difference = tuple[str, "str | None", "str | None"]
"""Field, value before, value after."""


class Changes:
    """Gathers the changes of one sync of one project; while they are `told`, every commit of the writer tells of what
    it writes. `at` is the time of the sync."""

    def __init__(self, writer: Writer, known: Mapping[str, Known], at: datetime) -> None:
        self._writer = writer
        self._known = known
        self.at = at
        self._rows: list[Change] = []
        self._grown: list[tuple[RunKey, Known, Difference]] = []
        self._files: dict[int, tuple[RunKey, int, int]] = {}
        self._was_going_on: set[int] = set()
        self._renamed: tuple[str, str] | None = None

    @contextmanager
    def told(self) -> Iterator[Changes]:
        self._writer.before_commit = self._before_commit
        try:
            yield self
        finally:
            self._writer.before_commit = lambda: None

    def _before_commit(self) -> None:
        for run in self._writer.edited_runs():
            self._run(run)
        for key, held, (field, before, after) in self._grown:
            if held.rid not in self._was_going_on:
                self._add("run", held.rid, key, key.run_id, "resumed" if field == "history" else "grown", field,
                          before, after)  # fmt: skip
        for rid, (key, before_files, after_files) in self._files.items():
            if rid not in self._was_going_on:
                self._add("run", rid, key, key.run_id, "edited", "files", str(before_files), str(after_files))
        for item in self._writer.edited_items():
            self._item(item)
        self._grown.clear()
        self._files.clear()
        self._writer.put_changes(self._rows)
        self._rows.clear()

    # -- what the sync tells ------------------------------------------------------------------------------

    def project(self, project: Project, change: str) -> None:
        self._add("project", None, project, project.name, change)

    def renamed(self, before: Project, after: Project) -> None:
        """A project has another name. That its runs and other things have moved with it is not told of each."""
        self._add("project", None, after, after.name, "renamed", "path", _path(before), _path(after))
        self._renamed = (_path(before), _path(after))

    def deleted(self, held: Known) -> None:
        self._add("run", held.rid, held.key, held.key.run_id, "deleted")

    def files(self, key: RunKey, before: StreamState, after: StreamState) -> None:
        """The manifest of a run was read."""
        held = self._known.get(key.storage_id)
        if held is not None and before.gen and before.last_fingerprint != after.last_fingerprint:
            self._files[held.rid] = (key, before.rows, after.rows)

    def finished(self, key: RunKey) -> None:
        """Everything of a run was read."""
        held = self._known.get(key.storage_id)
        if held is None:
            return
        before, after = held.history, self._writer.state(key, "history")
        if after.pending:  # it could not be read to its end: told of when it is
            return
        if after.gen != before.gen or before.pending:
            if before.rows:
                self._files.pop(held.rid, None)
                shorter = not before.pending and _end(after) < _end(before)
                was = None if before.pending else str(before.rows)
                change = "rewound" if shorter else "rewritten"
                self._add("run", held.rid, key, key.run_id, change, "history", was, str(after.rows))
        elif after.rows > before.rows and _whole(before):
            self._files.pop(held.rid, None)
            self._grown.append((key, held, ("history", str(before.rows), str(after.rows))))
        elif self._writer.state(key, "system").rows > held.system.rows and _whole(held.system):
            counts = str(held.system.rows), str(self._writer.state(key, "system").rows)
            self._grown.append((key, held, ("system", *counts)))

    # -- what is put --------------------------------------------------------------------------------------

    def _run(self, run: EditedRun) -> None:
        key, before = run.after.key, run.before
        if before is None:
            fork = None if run.after.fork_run_id is None else f"{run.after.fork_run_id}?_step={run.after.fork_step}"
            self._add("run", run.rid, key, key.run_id, "new", fork and "fork", None, fork)
            return
        if run.deleted:
            self._add("run", run.rid, key, key.run_id, "returned")
        self._moved("run", run.rid, before.key, key, key.run_id)
        going_on = before.state in GOING_ON
        if going_on:
            self._was_going_on.add(run.rid)
        held = self._known.get(key.storage_id)
        logged = held is not None and run.after.history_line_count not in (None, held.history.rows)
        for field, old, new in differences(before, run.after, logged=going_on or logged):
            self._add("run", run.rid, key, key.run_id, "edited", field, old, new)

    def _item(self, item: EditedItem) -> None:
        kind, after, before = KINDS[item.kind], item.after, item.before
        key = ItemKey(after["source"], after["storage_id"], after["entity"], after["project"])
        name = _name(item.kind, after)
        if before is None:
            self._add(kind, item.rid, key, name, "new")
        elif after["deleted_at"] is not None:
            self._add(kind, item.rid, key, name, "deleted")
        else:
            if before["deleted_at"] is not None:
                self._add(kind, item.rid, key, name, "returned")
            self._moved(kind, item.rid, replace(key, entity=before["entity"], project=before["project"]), key, name)
            for field, old_gen in ((part, before[gen]) for gen, part in _PARTS.items() if gen in before):
                if after[f"{field}_gen"] != old_gen:
                    self._add(kind, item.rid, key, name, "edited", field)
            for field in sorted(before.keys() - _NOT_EDITED - _PARTS.keys()):
                if (one := _text(before[field])) != (other := _text(after.get(field))):
                    self._add(kind, item.rid, key, name, "edited", field, one, other)

    def _moved(self, kind: str, rid: int, before: RunKey | ItemKey, after: RunKey | ItemKey, name: str) -> None:
        where = f"{before.entity}/{before.project}", f"{after.entity}/{after.project}"
        if where[0] != where[1] and where != self._renamed:
            self._add(kind, rid, after, name, "moved", "path", *where)

    def _add(
        self,
        kind: str,
        rid: int | None,
        where: RunKey | ItemKey | Project,
        name: str,
        change: str,
        field: str | None = None,
        before: str | None = None,
        after: str | None = None,
    ) -> None:
        project = where.name if isinstance(where, Project) else where.project
        texts = map(_short, (field, before, after))
        self._rows.append(
            Change(self.at, where.source, where.entity, project, kind, rid, storable(name), change, *texts)
        )


def differences(before: Run, after: Run, *, logged: bool) -> Iterator[Difference]:
    """What somebody edited between two versions of a run; with `logged`, the run itself changed its summary."""
    for name in _ATTRIBUTES:
        if (old := getattr(before, name)) != (new := getattr(after, name)):
            yield name, _text(old), _text(new)
    yield from _bounded("config", before.config, after.config)
    if logged:
        return
    yield from _bounded("summary", before.summary, after.summary)
    if before.metadata is not None and after.metadata not in (None, before.metadata):
        yield "metadata", None, None


def _bounded(document: str, before: str | None, after: str | None) -> Iterator[Difference]:
    if before == after:
        return
    try:
        old, new = (dict(_leaves(document, _user_part(document, text))) for text in (before, after))
    except (SourceError, RecursionError):
        yield document, before, after
        return
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    for name in islice(names, MOST_FIELDS):
        yield name, old.get(name), new.get(name)
    if more := len(names[MOST_FIELDS:]):
        yield document, None, f"... and {more:,} more fields"


def _user_part(document: str, text: str | None) -> Any:
    value = parse(text)
    if not isinstance(value, dict):
        return value
    return unwrapped(value) if document == "config" else {k: v for k, v in value.items() if k not in _OWN}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """The values of a document by path, as JSON; lists are whole. A document of nothing has none."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}/{key.replace('~', '~0').replace('/', '~1')}", inner)
    elif "/" in path:
        yield path, json.dumps(value, ensure_ascii=False, sort_keys=True)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    text = storable(text[: 2 * MOST_TEXT])
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


def _path(project: Project) -> str:
    return f"{project.entity}/{project.name}"


def _name(kind: str, row: Mapping[str, Any]) -> str:
    if kind == "artifacts":
        return f"{row['collection']}:v{row['version']}"
    return str(row[{"sweeps": "sweep_id", "artifact_collections": "collection", "reports": "name"}[kind]])


def _whole(state: StreamState) -> bool:
    """Whether all there was of a stream had come."""
    return state.fetched is not None and state.fetched.complete and not state.pending


def _end(state: StreamState) -> tuple[int, int]:
    return state.rows, -1 if state.last_step is None else state.last_step
