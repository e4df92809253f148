"""What differs between runs: attributes, config and summary, leaf by leaf, compared exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.query.leaves import config, json_of, label, leaves, same, shown, summary
from mirror.query.origin import command, git, metadata
from mirror.query.sql import asking, dicts
from mirror.query.table import Table

if TYPE_CHECKING:
    from mirror.store import Reader

PARTS = ("run", "config", "summary")
_ATTRIBUTES = (
    "source", "entity", "project", "name", "state", "tags", "group", "job_type", "notes", "username", "host", "commit",
    "sweep", "exit_code",
)  # fmt: skip
_MISSING = object()


@dataclass(frozen=True)
class Line:
    """One key and what each run has there; `values` lacks the runs (by position) that have nothing."""

    key: str
    values: Mapping[int, Any]
    differs: bool


def compared(reader: Reader, rids: Sequence[int], parts: Sequence[str] = PARTS) -> list[Line]:
    """All keys of the runs, in the order in which they first occur."""
    held = _rows(reader, rids)
    lines: list[Line] = []
    for part in PARTS:
        if part in parts:
            lines += _aligned(part, [_part(part, row) for row in held])
    return lines


def _rows(reader: Reader, rids: Sequence[int]) -> list[dict[str, Any]]:
    with asking(reader) as connection:
        found = connection.execute("select * from runs_raw where list_contains(?, rid)", [list(rids)])
        by_rid = {row["rid"]: row for row in dicts(found)}
    return [by_rid[rid] for rid in rids]


def _part(part: str, row: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    if part == "run":
        return _attributes(row)
    return leaves(config(row["config_raw"]) if part == "config" else summary(row["summary_raw"]))


def _attributes(row: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    known = metadata(row["metadata"])
    remote, commit = git(known)
    found = {name: row[name] for name in _ATTRIBUTES}
    found["commit"] = found["commit"] or commit
    found |= {"git remote": remote, "command": command(known), "python": known.get("python"), "gpu": known.get("gpu")}
    return {(name,): value for name, value in found.items() if value is not None}


def _aligned(part: str, documents: Sequence[Mapping[tuple[str, ...], Any]]) -> list[Line]:
    found = []
    for place in dict.fromkeys(place for document in documents for place in document):
        values = {i: document[place] for i, document in enumerate(documents) if place in document}
        first = next(iter(values.values()))
        equal = len(values) == len(documents) and all(same(first, value) for value in values.values())
        name = label(place)
        found.append(Line(name if part == "run" else f"{part}.{name}", values, not equal))
    return found


def table(lines: Sequence[Line], names: Sequence[str], *, for_people: bool) -> Table:
    """A row a key, a column a run.

    For people values are bare and a missing one is empty; for programs values are JSON (null where a run has a null
    AND where it has nothing), and the column `missing` lists the runs that have nothing."""
    runs = range(len(names))
    rows: list[list[Any]] = []
    for line in lines:
        if for_people:
            rows.append([line.key, *(shown(line.values[i]) if i in line.values else None for i in runs)])
            continue
        values = (json_of(line.values[i]) if i in line.values else None for i in runs)
        rows.append([line.key, line.differs, *values, [names[i] for i in runs if i not in line.values]])
    if for_people:
        return Table(["key", *names], ["VARCHAR"] * (len(names) + 1), lambda: rows)
    types = ["VARCHAR", "BOOLEAN", *(["JSON"] * len(names)), "VARCHAR[]"]
    return Table(["key", "differs", *names, "missing"], types, lambda: rows)


def short_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A heading for each run: its run id if that tells the runs apart, else its path, else its path and source."""
    found: list[str] = []
    for parts in (("run_id",), ("entity", "project", "run_id"), ("source", "entity", "project", "run_id")):
        found = ["/".join(str(row[part]) for part in parts) for row in rows]
        if len({*found}) == len(found):
            break
    return found
