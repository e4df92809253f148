"""The mirror compared with a server: with the one the runs came from, or with one they were sent to.

Everything is read anew through the same door a sync uses, and nothing of it is trusted because it was seen before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, SourceError
from mirror.importers.configs import Copies
from mirror.importers.everything import KINDS
from mirror.importers.places import Namespace
from mirror.importers.references import References
from mirror.paths import WandbPath
from mirror.pool import Pool
from mirror.portions import portions
from mirror.query.runs import Selection, rids
from mirror.query.sql import dicts
from mirror.records import ListedRun, Listing, RunKey
from mirror.sources.parts import OF_RUNS
from mirror.sources.protocol import Rows, SystemMetrics, Wanted
from mirror.sources.wandb import WandbSource
from mirror.verify.artifacts import compare_artifacts
from mirror.verify.findings import Findings, as_json
from mirror.verify.items import compare_reports, compare_sweeps
from mirror.verify.lineage import compare_links
from mirror.verify.other import HeldProject, Other
from mirror.verify.run import Expected, RunCompared

if TYPE_CHECKING:
    from mirror.store import Reader

_RUNS_TOGETHER = 25
_ROWS_TOGETHER = 10_000
_LISTED_TOGETHER = 100
_WHAT = frozenset(OF_RUNS)

Pair = tuple[str, Mapping[str, Any]]
"""What a run is called there, and its row of `runs_raw`."""


def chosen(reader: Reader, paths: Sequence[WandbPath], source: str | None) -> Iterator[HeldProject]:
    """The runs that paths name (all, without any) by project, those that were deleted at their source left out; also
    projects without runs."""
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
        "host, state, exit_code, sweep, username, user_name, created_at, fork_run_id, fork_step, history_rows, "
        "history_total, system_rows, system_total, logs_rows, origin"
    )
    for host, entity, project, numbers, count in projects:
        cursor = db.execute(f"select {columns} from runs_raw where rid in (select unnest(?::bigint[]))", [numbers])
        rows = dicts(cursor)
        yield HeldProject(host, Namespace(entity, project), rows, whole=len(rows) == count)
    bare = db.execute(
        "select p.source, p.entity, p.project from projects p anti join raw.live r on r.source = p.source "
        "and r.entity = p.entity and r.project = p.project and r.deleted_at is null where p.deleted_at is null "
        "order by 1, 2, 3"
    ).fetchall()
    for host, entity, project in bare:
        named = any(p.run_id is None and p.entity == entity and p.project in (None, project) for p in paths)
        if source in (None, host) and (named or not paths):
            yield HeldProject(host, Namespace(entity, project), [], whole=True)


def meant(projects: Sequence[HeldProject], other: Other) -> list[HeldProject]:
    """The projects that are to be compared with a server when nobody names any: those that came from there or were
    sent there; all of them if it is the source of none."""
    return [held for held in projects if other.knows(held)] or list(projects)


def compare_project(
    reader: Reader,
    held: HeldProject,
    other: Other,
    findings: Findings,
    *,
    kinds: Collection[str] = KINDS,
    workers: int = 4,
    twice: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Compare the runs of a project with their artifacts and, where all of its runs are meant, its sweeps, all of its
    artifacts and its reports, as far as they are among `kinds`; `twice` has the server say in the end whether runs are
    what they were in the beginning. `progress` is told of rows that were read."""
    stop = stop or threading.Event()
    name = held.here.path
    by_place: dict[Namespace, list[Pair]] = {} if held.runs else {other.place(held): []}
    sent = set()
    for row in held.runs:
        place, run_id, known = other.copy(held, row)
        by_place.setdefault(place, []).append((run_id, row))
        sent.update([row["rid"]] if known else [])
        findings.count(runs_under_another_name=int(run_id != row["run_id"]))
    findings.count(runs=len(held.runs))
    is_origin, places = other.is_origin(held), other.places(held.source)
    references = References(reader, other.source.name, lambda here: places.get(here, here))
    copies = Copies(references, other.source.client)
    for place, pairs in by_place.items():
        try:
            listing = _listing(other.source, place, pairs, whole=held.whole and len(by_place) == 1)
        except SourceError as e:
            findings.doubt(name, f"the runs could not be listed: {e}")
            continue
        if listing.project is None:
            findings.differ(name, "project", key="" if place == held.here else place.path, here="the project")
            continue
        there = {run.key.run_id: run for run in listing.runs}
        for run_id, row in pairs:
            if run_id not in there:
                moved = "" if (place, run_id) == (held.here, row["run_id"]) else f"{place.path}/{run_id}"
                findings.differ(f"{name}/{row['run_id']}", "run", key=moved, here="the run")
        if is_origin:
            _description(reader, held, listing.project.description, findings)
        if held.whole and is_origin:
            _more(name, listing, pairs, findings)
        sweeps = compare_sweeps(reader, held, other, place, findings)
        expected = Expected()
        if not is_origin:
            led, config = partial(references.text, held.source), partial(copies.config, held.source)
            expected = Expected(False, sweeps, led, config)
        present = [pair for pair in pairs if pair[0] in there]
        _compare_runs(reader, present, there, other.source, expected, sent, findings, workers, stop, progress)
        if twice and not stop.is_set():
            _look_again(name, place, present, there, other, findings)
    if "artifacts" in kinds and not stop.is_set():
        compare_artifacts(reader, held, other, findings)
        if is_origin:
            compare_links(reader, held, other, findings)
    if "reports" in kinds and held.whole and not stop.is_set():
        compare_reports(reader, held, other, findings)


def _look_again(
    name: str, place: Namespace, pairs: Sequence[Pair], there: Mapping[str, ListedRun], other: Other, findings: Findings
) -> None:
    """See that the server lists runs as it did before they were compared."""
    try:
        now = {run.key.run_id: run for run in _listing(other.source, place, pairs, whole=False).runs}
    except SourceError as e:
        findings.doubt(name, f"the runs could not be listed once more: {e}")
        return
    for run_id, row in pairs:
        if run_id not in now or now[run_id].fingerprint != there[run_id].fingerprint:
            findings.doubt(f"{name}/{row['run_id']}", "it changed at the server while it was compared")


def _description(reader: Reader, held: HeldProject, there: str | None, findings: Findings) -> None:
    query = "select description from projects where source = ? and entity = ? and project = ?"
    found = reader.connect().execute(query, [held.source, held.here.entity, held.here.project]).fetchone()
    here = found[0] if found else None
    findings.count(projects=1)
    if (here or "") != (there or ""):
        findings.differ(held.here.path, "project", key="description", here=as_json(here), there=as_json(there))


def _more(name: str, listing: Listing, pairs: Sequence[Pair], findings: Findings) -> None:
    """What the project has there and the mirror does not."""
    if not listing.complete:
        findings.doubt(name, f"the runs were not all listed: {listing.note or 'the server counts others'}")
    for run_id in sorted({run.key.run_id for run in listing.runs} - {run_id for run_id, _ in pairs}):
        findings.differ(f"{name}/{run_id}", "run", there="the run")


def _listing(source: WandbSource, place: Namespace, pairs: Sequence[Pair], *, whole: bool) -> Listing:
    """The runs there: all where the whole project is meant, else those that are held."""
    if whole:
        return source.listing(place.entity, place.project)
    found: list[ListedRun] = []
    ids = [run_id for run_id, _ in pairs]
    listing = Listing(None)
    for start in range(0, len(ids), _LISTED_TOGETHER):
        listing = source.listing(place.entity, place.project, ids[start : start + _LISTED_TOGETHER])
        found += listing.runs
    return Listing(listing.project, found)


def _compare_runs(
    reader: Reader,
    pairs: Sequence[Pair],
    there: Mapping[str, ListedRun],
    source: WandbSource,
    expected: Expected,
    sent: set[int],
    findings: Findings,
    workers: int,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> None:
    pool = Pool(workers, "verify")
    waiting: list[Future[None]] = []
    try:
        for part in portions(pairs, _size, _ROWS_TOGETHER, _RUNS_TOGETHER):
            if stop.is_set():
                return
            while len(waiting) >= 2 * workers:
                waiting.pop(0).result()
            compared = [RunCompared(reader, row, expected, findings, row["rid"] in sent) for _, row in part]
            listed = [there[run_id] for run_id, _ in part]
            waiting.append(pool.submit(_compare, compared, listed, source, findings, stop, progress))
        for future in waiting:
            future.result()
    finally:
        pool.close()


def _size(pair: Pair) -> int:
    row = pair[1]
    return int(row["history_rows"] + row["system_rows"] + row["logs_rows"] // 10)


def _compare(
    compared: Sequence[RunCompared],
    listed: Sequence[ListedRun],
    source: WandbSource,
    findings: Findings,
    stop: threading.Event,
    progress: Callable[[int], None],
) -> None:
    runs: dict[RunKey, RunCompared] = dict(zip((run.key for run in listed), compared, strict=True))
    why = "the server said nothing more of it"
    try:
        for step in source.fetch([Wanted(run, what=_WHAT) for run in listed]):
            if stop.is_set():
                why = "interrupted"
                break
            runs[step.key].take(step)
            if isinstance(step, (Rows, SystemMetrics)):
                progress(len(step.rows))
    except MirrorError as e:  # of the server, or of a damaged file of the mirror: the other runs go on
        why = "interrupted" if stop.is_set() else str(e)
    for run in compared:
        if not run.finished:
            findings.doubt(run.where, why)
        run.close()
