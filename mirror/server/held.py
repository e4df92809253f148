"""Sweeps and reports of the newest snapshot, by SQL over their few Parquet files.

What is in entities that are closed to whoever asks is never found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

from mirror.errors import AmbiguousError
from mirror.records import ItemKey, Report, Sweep
from mirror.server import ids
from mirror.server.look import Look
from mirror.store.views import parquet

T = TypeVar("T", Sweep, Report)
_TABLE: dict[type[Any], str] = {Sweep: "sweeps", Report: "reports"}
_KEY = tuple(f.name for f in fields(ItemKey))


@dataclass(frozen=True)
class Held(Generic[T]):
    """An item and its number."""

    rid: int
    item: T


def items(
    look: Look, kind: type[T], condition: str, params: Sequence[Any] = (), *, deleted: bool = False
) -> list[Held[T]]:
    """The items that satisfy a SQL condition over the columns of their table, oldest first."""
    table = _TABLE[kind]
    files = look.shelf.snapshot.files(table)
    if not files:
        return []
    paths = [str(look.shelf.layout.root / f["path"]) for f in files]
    names: list[str] = [f.name for f in fields(kind) if f.name != "key"]
    columns = ", ".join(f'"{n}"' for n in (*_KEY, *(("config_raw" if n == "config" else n) for n in names)))
    query = (
        f"select rid, {columns} from (select * from ({parquet(table, paths, [f['version'] for f in files])}) "
        "qualify row_number() over (partition by rid order by gen desc) = 1) "
        f"where deleted_at is {'not ' if deleted else ''}null and ({condition}) order by created_at, rid"
    )
    found: list[Held[T]] = []
    for row in look.shelf.connect().execute(query, list(params)).fetchall():
        key = ItemKey(*row[1:5])
        if look.sees(key.entity):
            given: dict[str, Any] = dict(zip(names, row[5:], strict=True))
            found.append(Held(row[0], kind(key, **given)))
    return found


def in_project(look: Look, kind: type[T], entity: str, project: str) -> list[Held[T]]:
    return items(look, kind, "entity = ? and project = ?", (entity, project)) if look.sees(entity) else []


def by_id(look: Look, kind: type[T], served_id: str) -> Held[T] | None:
    """The item that is served under this id."""
    source, storage_id = ids.parse_mirrored_run_id(served_id) or (look.home.source, served_id)
    return next(iter(items(look, kind, "source = ? and storage_id = ?", (source, storage_id))), None)


def sweep(look: Look, entity: str, project: str, sweep_id: str) -> Held[Sweep] | None:
    """The sweep of that path; `AmbiguousError` if several sources have one."""
    found = items(look, Sweep, "entity = ? and project = ? and sweep_id = ?", (entity, project, sweep_id))
    if len(found) > 1:
        sources = ", ".join(f"`{f.item.key.source}`" for f in found)
        raise AmbiguousError(f"`{entity}/{project}/{sweep_id}` names sweeps of several sources ({sources})")
    return found[0] if found else None


def id_on_wire(look: Look, item: Sweep | Report) -> str:
    if item.key.source == look.home.source:
        return item.key.storage_id
    return ids.mirrored_run_id(item.key.source, item.key.storage_id)
