"""The mirror compared with a server: with the one the runs came from, or with one they were sent to.

Everything is read anew through the same door a sync uses, and nothing of it is trusted because it was seen before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.credentials import find
from mirror.errors import MirrorError, SourceError, UsageError
from mirror.paths import WandbPath, api_url
from mirror.pool import Pool
from mirror.query.runs import Selection, rids
from mirror.records import ListedRun, RunKey
from mirror.sources.parts import OF_RUNS
from mirror.sources.protocol import Wanted
from mirror.sources.wandb import WandbSource
from mirror.verify.artifacts import compare_artifacts
from mirror.verify.findings import Findings
from mirror.verify.items import compare_items
from mirror.verify.run import Expected, RunCompared
from mirror.wandb.client import Client
from mirror.wandb.transport import Transport

if TYPE_CHECKING:
    from mirror.store import Reader

_RUNS_TOGETHER = 25
_ROWS_TOGETHER = 10_000
_WHAT = frozenset(OF_RUNS)

Place = tuple[str, str]
"""Entity and project."""


@dataclass(frozen=True)
class Other:
    """The server to compare with. `remapping` says where projects went, `same_server` that the runs were mirrored
    from there, `origin` and `config_of` are what an import does: see `Expected`."""

    source: WandbSource
    remapping: Mapping[Place, Place] = field(default_factory=dict)
    same_server: bool = True
    origin: str = ""
    config_of: Callable[[Mapping[str, Any]], str | None] | None = None

    def place(self, entity: str, project: str) -> Place:
        return self.remapping.get((entity, project), (entity, project))


def connected(reader: Reader, url: str, workers: int) -> WandbSource:
    """The server at a URL, with the usual key for it. Raises SourceError if it does not answer or refuses the key, and
    UsageError if it serves this very mirror, which would prove nothing."""
    base_url = api_url(url)
    source = WandbSource(
        Client(Transport(base_url, find(base_url), connections=3 * workers + 4)), downloads=2 * workers
    )
    try:
        source.viewer()
        if source.store_id is not None and source.store_id == reader.snapshot.content["store_id"]:
            raise UsageError(f"`{url}` serves this very mirror: name the server the runs came from, or went to")
    except BaseException:
        source.close()
        raise
    return source


def remapping(texts: Iterable[str]) -> dict[Place, Place]:
    """`--remap a/b=c/d` as a dictionary. Raises UsageError."""
    found: dict[Place, Place] = {}
    for text in texts:
        sides = [tuple(side.strip().split("/")) for side in text.split("=")]
        if len(sides) != 2 or any(len(side) != 2 or not all(side) for side in sides):
            raise UsageError(f"`{text}` maps no project to another: write entity/project=entity/project")
        (entity, project), (new_entity, new_project) = sides
        found[(entity, project)] = (new_entity, new_project)
    return found


@dataclass(frozen=True)
class HeldProject:
    """A project of the mirror, the runs of it that are to be compared (rows of `runs_raw`), and whether that is all
    of them."""

    source: str
    entity: str
    project: str
    runs: Sequence[Mapping[str, Any]]
    whole: bool


def chosen(reader: Reader, paths: Sequence[WandbPath], source: str | None) -> Iterator[HeldProject]:
    """The runs that paths name (all, without any) by project, those that were deleted at their source left out."""
    wanted = rids(reader, Selection(paths, source))
    db = reader.connect()
    db.execute("create or replace temp table chosen as select unnest(?::bigint[]) as rid", [wanted])
    projects = db.execute(
        "select source, entity, project, list(r.rid order by r.rid), (select count(*) from raw.live a where "
        "a.source = r.source and a.entity = r.entity and a.project = r.project and a.deleted_at is null) "
        "from raw.live r semi join chosen c on c.rid = r.rid group by all order by 1, 2, 3"
    ).fetchall()
    columns = (
        'rid, source, storage_id, entity, project, run_id, name, notes, tags, "group", job_type, description, commit, '
        "host, state, sweep, username, user_name, created_at, fork_run_id, fork_step, history_rows, history_total, "
        "system_rows, logs_rows"
    )
    for host, entity, project, numbers, count in projects:
        cursor = db.execute(f"select {columns} from runs_raw where rid in (select unnest(?::bigint[]))", [numbers])
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        yield HeldProject(host, entity, project, rows, whole=len(rows) == count)


def meant(projects: Sequence[HeldProject], other: Other) -> list[HeldProject]:
    """The projects that are to be compared with a server when nobody names any: those that came from there or were
    sent elsewhere by name; all of them if it is the source of none."""
    own = [held for held in projects if held.source == other.source.name]
    moved = [held for held in projects if (held.entity, held.project) in other.remapping and held not in own]
    return [*own, *moved] or list(projects)


def compare_project(
    reader: Reader,
    held: HeldProject,
    other: Other,
    findings: Findings,
    *,
    workers: int = 4,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] = lambda runs: None,
) -> None:
    """Compare the runs of a project and, where all of them are meant, its artifacts, sweeps
    and reports (these at their own server alone: elsewhere they have other ids)."""
    entity, project = other.place(held.entity, held.project)
    stop = stop or threading.Event()
    name = f"{held.entity}/{held.project}"
    try:
        listed = _listed(other.source, entity, project, held)
    except SourceError as e:
        findings.doubt(name, f"the runs could not be listed: {e}")
        return
    if listed is None:
        findings.differ(name, "project", here="the project")
        return
    there = {run.key.run_id: run for run in listed}
    present = [row for row in held.runs if row["run_id"] in there]
    for row in held.runs:
        if row["run_id"] not in there:
            findings.differ(f"{name}/{row['run_id']}", "run", here="the run")
    if held.whole and other.same_server:
        for run_id in sorted(there.keys() - {row["run_id"] for row in held.runs}):
            findings.differ(f"{name}/{run_id}", "run", there="the run")
    findings.count(runs=len(held.runs))
    pool = Pool(workers, "verify")
    waiting: list[Future[None]] = []
    try:
        for part in _portions(present):
            if stop.is_set():
                return
            while len(waiting) >= 2 * workers:
                waiting.pop(0).result()
            waiting.append(pool.submit(_compare, reader, part, there, other, findings, stop, progress))
        for future in waiting:
            future.result()
    finally:
        pool.close()
    if held.whole and not stop.is_set():
        if other.same_server:
            compare_items(reader, held.source, entity, project, other.source, findings)
        compare_artifacts(reader, held.source, (held.entity, held.project), (entity, project), other.source, findings,
                          same_server=other.same_server)  # fmt: skip


def _listed(source: WandbSource, entity: str, project: str, held: HeldProject) -> Sequence[ListedRun] | None:
    """The runs there: all where the whole project is meant, else those that are held; None if there is no project."""
    if held.whole:
        listing = source.listing(entity, project)
        return None if listing.project is None else listing.runs
    found: list[ListedRun] = []
    ids = [row["run_id"] for row in held.runs]
    for start in range(0, len(ids), 100):
        listing = source.listing(entity, project, ids[start : start + 100])
        if listing.project is None:
            return None
        found += listing.runs
    return found


def _portions(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    portion: list[Mapping[str, Any]] = []
    weight = 0
    for row in rows:
        size = row["history_rows"] + row["system_rows"] + row["logs_rows"] // 10
        if portion and (len(portion) == _RUNS_TOGETHER or weight + size > _ROWS_TOGETHER):
            yield portion
            portion, weight = [], 0
        portion.append(row)
        weight += size
    if portion:
        yield portion


def _compare(
    reader: Reader,
    rows: Sequence[Mapping[str, Any]],
    there: Mapping[str, ListedRun],
    other: Other,
    findings: Findings,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> None:
    expected = Expected(other.same_server, other.origin, other.config_of)
    runs: dict[RunKey, RunCompared] = {}
    wanted = []
    for row in rows:
        listed = there[row["run_id"]]
        runs[listed.key] = RunCompared(reader, row, expected, findings)
        wanted.append(Wanted(listed, what=_WHAT))
    try:
        for step in other.source.fetch(wanted):
            if stop.is_set():
                return
            runs[step.key].take(step)
    except MirrorError as e:  # of the server, or of a damaged file of the mirror: the other runs go on
        for run in runs.values():
            if not run.finished:
                findings.doubt(run.where, str(e))
    for run in runs.values():
        run.close()
    progress(len(rows))
