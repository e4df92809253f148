"""Sweeps and reports of a project compared with the server they came from, or with their copies elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from mirror.errors import SourceError
from mirror.importers.places import Namespace
from mirror.importers.reports import reports_as_sent, same_content
from mirror.importers.run import Destination
from mirror.importers.sweeps import COPIED, copied_sweeps
from mirror.records import Report, Sweep
from mirror.verify.findings import Findings, as_json, plain
from mirror.verify.other import HeldProject, Other
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
    "sweeps": {
        "sweep_id": "sweep_id", "name": "name", "description": "description", "state": "state", "config_raw": "config",
        "username": "username", "created_at": "created_at",
    },
    "reports": {
        "name": "name", "title": "title", "description": "description", "spec": "spec", "type": "type",
        "username": "username", "created_at": "created_at",
    },
}  # fmt: skip
_LIST: dict[str, Callable[[Client, str, str], tuple[Any, Paged]]] = {"sweeps": list_sweeps, "reports": list_reports}


def compare_sweeps(
    reader: Reader, held: HeldProject, other: Other, place: Namespace, findings: Findings
) -> dict[str, str]:
    """Compare the sweeps of a project, all of them if all its runs are meant, else those of the runs. At their own
    server they go by its ids, and more of them there is a difference, too; elsewhere by what their copies say. Returns
    the id there of each."""
    if other.is_origin(held):
        named = None if held.whole else {row["sweep"] for row in held.runs if row["sweep"]}
        if named is None or named:
            _at_origin("sweeps", reader, held, other, findings, named)
        return {}
    copies: dict[str, str] = {}
    meant = {row["sweep"] for row in held.runs}
    wanted = copied_sweeps(reader, held.source, held.here)
    known = _there("sweeps", wanted, held, other, place, findings) if wanted else None
    for sweep in wanted if known is not None else ():
        copy: Sweep | None = sweep.among(known or ())
        where = f"{held.here.path}/sweeps/{sweep.sweep_id}"
        if copy is not None:
            copies[sweep.sweep_id] = copy.sweep_id
        if not held.whole and sweep.sweep_id not in meant:
            continue
        if copy is None:
            findings.differ(where, "sweeps", here="the sweep")
            continue
        findings.count(sweeps=1)
        for name in COPIED:
            _pair(where, "sweeps", name, getattr(sweep, name), getattr(copy, name), findings)
    return copies


def compare_reports(reader: Reader, held: HeldProject, other: Other, findings: Findings) -> None:
    """The same of its reports: elsewhere each is there under its name, and its content leads to the copies of what it
    shows."""
    if other.is_origin(held):
        _at_origin("reports", reader, held, other, findings)
        return
    place, source = other.place(held), held.source
    server = Destination(other.source.client)

    def as_sent(places: Mapping[Namespace, Namespace]) -> list[tuple[Mapping[str, Any], str]]:
        return reports_as_sent(reader, source, held.here, server, places, lambda run: other.run_name(source, run))

    try:
        wanted, alone = as_sent({**other.places(source), held.here: place}), as_sent({held.here: place})
    except SourceError as e:
        findings.doubt(held.here.path, f"reports could not be read: {e}")
        return
    known = _there("reports", wanted, held, other, place, findings) if wanted else None
    there: dict[str, Report] = {report.name: report for report in known or ()}
    for (report, content), (_, own) in zip(wanted, alone, strict=True) if known is not None else ():
        where = f"{held.here.path}/reports/{report['name']}"
        copy = there.get(report["name"])
        if copy is None:
            findings.differ(where, "reports", here="the report")
            continue
        findings.count(reports=1)
        for name in ("title", "description", "type"):
            _pair(where, "reports", name, report[name], getattr(copy, name), findings)
        # Other projects may have been sent later than the report that shows them.
        if not same_content(copy.spec, content) and not same_content(copy.spec, own):
            _pair(where, "reports", "spec", content, copy.spec, findings)


def _at_origin(
    kind: str, reader: Reader, held: HeldProject, other: Other, findings: Findings, named: Collection[str] | None = None
) -> None:
    """`named` are those that are compared, by what they are called, if not all are."""
    columns = _COMPARED[kind]
    query = (
        f"select storage_id, {', '.join(columns)} from {kind} "
        "where source = ? and entity = ? and project = ? and deleted_at is null"
    )
    rows = reader.connect().execute(query, [held.source, held.here.entity, held.here.project]).fetchall()
    rows = [row for row in rows if named is None or row[1] in named]
    mine = {row[0]: [plain(value) for value in row[1:]] for row in rows}
    found = _there(kind, rows or named, held, other, held.here, findings)
    if found is None:
        return
    others = {one.key.storage_id: [plain(getattr(one, name)) for name in columns.values()] for one in found}
    if named is not None:
        others = {key: values for key, values in others.items() if values[0] in named}
    findings.count(**{kind: len(mine)})
    for key in sorted({*mine, *others}):
        here, there = mine.get(key), others.get(key)
        place = f"{held.here.path}/{kind}/{(here or there or [key])[0]}"
        if here is None or there is None:
            findings.differ(place, kind, **{"there" if here is None else "here": f"the {kind.removesuffix('s')}"})
            continue
        for name, a, b in zip(columns, here, there, strict=True):
            _pair(place, kind, name.removesuffix("_raw"), a, b, findings)


def _there(
    kind: str, mine: Any, held: HeldProject, other: Other, place: Namespace, findings: Findings
) -> list[Any] | None:
    """All that the server has; None if it cannot be told, which is said if there is anything to compare."""
    where = held.here.path
    try:
        has = kinds_there(other.source.client, place.entity, place.project)
        if kind not in has and mine:
            findings.doubt(where, f"{kind}: the server does not say whether it has any")
        if not has.get(kind):
            return [] if kind in has else None
        found, listing = _LIST[kind](other.source.client, place.entity, place.project)
    except SourceError as e:
        if mine or not isinstance(e.__cause__, UnknownFields):
            findings.doubt(where, f"{kind} could not be read: {e}")
        return None
    if not listing.complete:
        findings.doubt(where, f"{kind}: the listing was cut off")
        return None
    return list(found)


def _pair(where: str, kind: str, name: str, here: Any, there: Any, findings: Findings) -> None:
    if plain(here) != plain(there):
        findings.differ(where, kind, key=name, here=as_json(plain(here)), there=as_json(plain(there)))
