"""Sweeps and reports of a project compared with the server they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mirror.errors import SourceError
from mirror.sources.wandb import WandbSource
from mirror.verify.findings import Findings, as_json, plain
from mirror.wandb.client import Client
from mirror.wandb.glance import kinds_there
from mirror.wandb.paging import Paged
from mirror.wandb.reports import list_reports
from mirror.wandb.sweeps import list_sweeps
from mirror.wandb.transport import UnknownFields

if TYPE_CHECKING:
    from mirror.store import Reader

# The columns of each table that the mirror holds as they came, with the attributes of the record that was made of them.
_COMPARED: dict[str, Mapping[str, str]] = {
    "sweeps": {"sweep_id": "sweep_id", "name": "name", "description": "description", "config_raw": "config"},
    "reports": {"name": "name", "title": "title", "description": "description", "spec": "spec"},
}
_LIST: dict[str, Callable[[Client, str, str], tuple[Any, Paged]]] = {"sweeps": list_sweeps, "reports": list_reports}


def compare_items(
    reader: Reader, source: str, entity: str, project: str, other: WandbSource, findings: Findings
) -> None:
    """Compare by the server's own ids; more of them there is a difference, too."""
    where = f"{entity}/{project}"
    try:
        there = kinds_there(other.client, entity, project)
    except SourceError as e:
        findings.doubt(where, f"sweeps and reports could not be read: {e}")
        return
    for kind, columns in _COMPARED.items():
        query = (
            f"select storage_id, {', '.join(columns)} from {kind} "
            "where source = ? and entity = ? and project = ? and deleted_at is null"
        )
        held = reader.connect().execute(query, [source, entity, project]).fetchall()
        mine = {row[0]: [plain(value) for value in row[1:]] for row in held}
        others: dict[str, list[Any]] = {}
        if there.get(kind):
            try:
                found, listing = _LIST[kind](other.client, entity, project)
            except SourceError as e:
                if mine or not isinstance(e.__cause__, UnknownFields):
                    findings.doubt(where, f"{kind} could not be read: {e}")
                continue
            if not listing.complete:
                findings.doubt(where, f"{kind}: the listing was cut off")
                continue
            others = {one.key.storage_id: [plain(getattr(one, name)) for name in columns.values()] for one in found}
        elif kind not in there and mine:
            findings.doubt(where, f"{kind}: the server does not say whether it has any")
            continue
        findings.count(**{kind: len(mine)})
        for key in sorted({*mine, *others}):
            _compare(f"{where}/{kind}", key, list(columns), mine.get(key), others.get(key), findings)


def _compare(
    where: str, key: str, names: list[str], here: list[Any] | None, there: list[Any] | None, findings: Findings
) -> None:
    kind = where.rpartition("/")[2]
    known = here or there or [key]
    place = f"{where}/{known[0]}"
    if here is None or there is None:
        findings.differ(place, kind, **{"there" if here is None else "here": f"the {kind.removesuffix('s')}"})
        return
    for name, mine, others in zip(names, here, there, strict=True):
        if mine != others:
            findings.differ(place, kind, key=name.removesuffix("_raw"), here=as_json(mine), there=as_json(others))
