"""What `mirror export` writes: files of rows of runs, one per run or one for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Literal

from mirror.errors import UsageError
from mirror.query.columns import columns_of
from mirror.query.export import Rows, unique, write
from mirror.query.filenames import file_names
from mirror.query.kinds import Seen, fitted
from mirror.query.leaves import Place, documents, label, leaves
from mirror.query.logged import LoggedRows, Owner
from mirror.query.runs import Chosen, Selection, rids
from mirror.query.sql import execute
from mirror.query.table import Table

if TYPE_CHECKING:
    from mirror.query.neighbours import Neighbours
    from mirror.store import Reader

What = Literal["runs", "history", "system", "config", "summary", "files", "logs"]
WHATS: tuple[What, ...] = ("runs", "history", "system", "config", "summary", "files", "logs")
A_FILE_PER_RUN = ("history", "system", "logs")
_WHO = ("entity", "project", "run_id", "name")
_RUNS = (
    "source", *_WHO, "state", "tags", "group", "job_type", "notes", "username", "created_at", "heartbeat_at",
    "duration", "commit", "host", "sweep", "url", "history_rows", "config", "summary",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A file to be written: its name without the format's suffix, and how (to a stream, in a format; gives the number
    of rows)."""

    stem: str
    write: Callable[[IO[bytes], str], int]


def products(
    reader: Reader, selection: Selection, what: What, *, keys: Sequence[str] | None = None, one_file: bool = False
) -> list[Product]:
    """The files that hold `what` of the selected runs.

    history, system, logs: a file per run, or with `one_file` one with entity, project, run_id and name in front of
    every row (not if the one path names one run). runs, config, summary: one file with a row per run. files: one with
    a row per file. `keys` selects keys of rows and documents, columns of runs; UsageError where it has no meaning.
    """
    if keys is not None and what in ("files", "logs"):
        raise UsageError(f"{what} have no keys: leave --keys out, or select from the view `{what}` with `mirror sql`")
    chosen = rids(reader, selection)
    if what in A_FILE_PER_RUN and not one_file:
        make = partial(_logs, reader) if what == "logs" else partial(LoggedRows, _cells(reader, what, chosen, keys))
        return [
            Product(f"{stem}.{what}", partial(_write, partial(make, [Owner(rid)])))
            for stem, rid in zip(_stems(reader, chosen), chosen, strict=True)
        ]
    alone = len(chosen) < 2 and len(selection.paths) == 1 and selection.paths[0].run_id is not None
    rows = _all(reader, what, chosen, keys, alone)  # what is wrong shows before a file is made
    return [Product(what, partial(_write, lambda: rows))]


def _write(make: Callable[[], Rows], out: IO[bytes], format: str) -> int:
    rows = make()
    if format != "jsonl" or not isinstance(rows, LoggedRows):
        return write(rows, format, out, seekable=out.seekable())
    count = 0
    for text in rows.texts():
        out.write(text.encode() + b"\n")
        count += 1
    return count


def _all(reader: Reader, what: What, chosen: Sequence[int], keys: Sequence[str] | None, alone: bool) -> Rows:
    if what == "runs":
        return _runs(reader, chosen, keys)
    if what in ("config", "summary"):
        return _documents(reader, what, chosen, keys)
    if what == "files":
        return execute(reader, _FILES, {"rids": list(chosen)})
    owners, names = ([Owner(rid) for rid in chosen], ()) if alone else (_owners(reader, chosen), _WHO)
    if what == "logs":
        return _logs(reader, owners, names)
    return LoggedRows(_cells(reader, what, chosen, keys), owners, names)


def _cells(reader: Reader, what: What, chosen: Sequence[int], keys: Sequence[str] | None) -> Neighbours:
    from mirror.query.neighbours import Neighbours

    wanted = None if keys is None else [key for key in keys if key != "_step"]
    return Neighbours(reader, chosen, "system" if what == "system" else "history", wanted)


def _logs(reader: Reader, owners: Sequence[Owner], names: Sequence[str] = ()) -> Rows:
    who = ", ".join(f"l.{name}" if name != "name" else "r.name" for name in names)
    query = _LOGS.format(who=f"{who}, " if who else "")
    return execute(reader, query, {"rids": [owner.rid for owner in owners]})


_FILES = """
select f.entity, f.project, f.run_id, f.name, f.size, f.md5, f.mimetype, f.updated_at, f.url
from files as f where list_contains($rids, f.rid) order by list_position($rids, f.rid), f.name
"""
_LOGS = """
select {who}l.line, l.ts, l.level, l.text from logs as l join runs as r on r.rid = l.rid
where list_contains($rids, l.rid) order by list_position($rids, l.rid), l.line
"""


def _who(reader: Reader, chosen: Sequence[int]) -> dict[int, tuple[Any, ...]]:
    query = "select rid, source, entity, project, run_id, name from runs where list_contains($rids, rid)"
    return {row[0]: row[1:] for row in execute(reader, query, {"rids": list(chosen)})}


def _stems(reader: Reader, chosen: Sequence[int]) -> list[str]:
    who = _who(reader, chosen)
    return file_names([who[rid] for rid in chosen])


def _owners(reader: Reader, chosen: Sequence[int]) -> list[Owner]:
    who = _who(reader, chosen)
    return [Owner(rid, who[rid][1:]) for rid in chosen]


def _runs(reader: Reader, chosen: Sequence[int], columns: Sequence[str] | None) -> Rows:
    found = columns_of(reader, Chosen(chosen), columns or _RUNS)
    # Documents are embedded in JSON, not strings of JSON.
    found.types = [
        "JSON" if name in ("config", "summary") else kind
        for name, kind in zip(found.columns, found.types, strict=True)
    ]  # fmt: skip
    return found


def _documents(reader: Reader, what: str, chosen: Sequence[int], keys: Sequence[str] | None) -> Rows:
    """A row per run, a column per leaf of its config or summary. What columns there are, and of which types, a first
    reading of the documents tells."""

    def read() -> Iterator[tuple[int, dict[Place, Any]]]:
        for rid, config, summary in documents(reader, chosen):
            yield rid, leaves(config if what == "config" else summary)

    seen: dict[Place, Seen] = {}
    for _, found in read():
        for place, value in found.items():
            if keys is None or _selected(label(place), keys):
                seen.setdefault(place, Seen()).add(value)
    types = {place: kinds.type for place, kinds in seen.items()}
    who = _who(reader, chosen)

    def made() -> Iterator[list[Any]]:
        for rid, found in read():
            values = (fitted(found[place], kind) if place in found else None for place, kind in types.items())
            yield [*who[rid][1:], *values]

    names = unique([*_WHO, *(f"{what}.{label(place)}" for place in types)])
    return Table(names, [*["VARCHAR"] * len(_WHO), *types.values()], made)


def _selected(name: str, keys: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in keys)
