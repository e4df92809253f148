"""All points of runs, by REST: one metric of many runs in an answer where that provably cuts nothing off, else metric
by metric in pages.

`metrics/get-history-bulk`, which MLflow's own pages ask, gives one metric of up to 100 runs, run after run in the order
of their ids, and ends after 25,000 points without a word (mlflow 3.17). So an answer with fewer points is whole, and of
one that is cut, all runs before the last one named. What is left is asked again, and a run that fills an answer alone
by `metrics/get-history`, which has pages. `get-history-bulk-interval` samples, and one answer of it is slower to come
than one of the other two: not asked. That a metric has one point only is nowhere said, so that each is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.pool import Pool
from mirror.sources.mlflow.points import Point, Spool
from mirror.sources.mlflow.road import Json

CAP = 25_000
_RUNS = 100
_PAGE = 20_000
_BULK = "metrics/get-history-bulk"

Ask = Callable[[str, Json], Json]
"""The answer to a GET of a path below the API; raises SourceError."""


@dataclass(frozen=True)
class _Bulk:
    """One metric of several runs, in the order of their ids."""

    key: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class _Page:
    """A page of one metric of one run. `last` is the point before it."""

    key: str
    run: str
    token: str | None = None
    last: Point | None = None
    tokens: frozenset[str] = frozenset()


_Job = _Bulk | _Page


@dataclass
class _Answer:
    points: dict[str, list[Point]] = field(default_factory=dict)
    more: list[_Job] = field(default_factory=list)


class Histories:
    """`ask` for the API, `ask_pages` for what only MLflow's own pages ask; at most `ahead` requests at a time."""

    def __init__(self, ask: Ask, ask_pages: Ask, pool: Pool, ahead: int) -> None:
        self._ask = ask
        self._ask_pages = ask_pages
        self._pool = pool
        self._ahead = ahead
        self._no_bulk = False

    def gather(self, runs: Iterable[Json]) -> dict[str, Spool | SourceError]:
        """All points of these runs, each on disk as soon as there are many. An error stands for a run whose points
        did not all come: those that did not answer, or lack the last point that the run itself names."""
        found: dict[str, Spool | SourceError] = {}
        missing: dict[tuple[str, str], Point] = {}
        named: dict[str, list[str]] = {}
        for run in runs:
            run_id = run["info"]["run_id"]
            found[run_id] = Spool(run_id)
            for latest in run.get("data", {}).get("metrics", ()):
                missing[run_id, latest["key"]] = point(latest)
                named.setdefault(latest["key"], []).append(run_id)
        try:
            self._work(_jobs(named), found, missing)
        except BaseException:
            close(found)
            raise
        for run_id, key in missing:
            _fail(found, run_id, TransientSourceError(f"not all points of metric `{key}` came: sync again later"))
        return found

    def _work(
        self, todo: deque[_Job], found: dict[str, Spool | SourceError], missing: dict[tuple[str, str], Point]
    ) -> None:
        under_way: deque[tuple[_Job, Future[_Answer]]] = deque()
        while todo or under_way:
            while todo and len(under_way) < self._ahead:
                job = todo.popleft()
                under_way.append((job, self._pool.submit(self._read, job)))
            job, future = under_way.popleft()
            try:
                answer = future.result()
            except SourceError as e:
                for run_id in job.runs if isinstance(job, _Bulk) else [job.run]:
                    _fail(found, run_id, e)
                continue
            for run_id, points in answer.points.items():
                if missing.get((run_id, job.key)) in points:
                    del missing[run_id, job.key]
                if isinstance(spool := found[run_id], Spool):
                    spool.add(points)
            todo.extendleft(answer.more)

    def _read(self, job: _Job) -> _Answer:
        return self._bulk(job) if isinstance(job, _Bulk) else self._page(job)

    def _bulk(self, job: _Bulk) -> _Answer:
        if self._no_bulk:
            return _Answer(more=[_Page(job.key, run) for run in job.runs])
        asked = {"run_id": list(job.runs), "metric_key": job.key, "max_results": CAP}
        try:
            listed = self._ask_pages(_BULK, asked)["metrics"]
            points = _by_run(listed, job)
        except (TerminalSourceError, KeyError, TypeError, ValueError):
            self._no_bulk = True  # another server than MLflow's, or one run of these that may not be read
            return _Answer(more=[_Page(job.key, run) for run in job.runs])
        if len(listed) < CAP:
            return _Answer(points)
        order = list(points)
        cut, in_order = order[-1], order == sorted(order)
        if in_order and len(order) > 1:
            rest = tuple(run for run in job.runs if run >= cut)
            return _Answer({run: points[run] for run in order[:-1]}, [_Bulk(job.key, rest)])
        behind = tuple(run for run in job.runs if in_order and run > cut)
        alone: list[_Job] = [_Page(job.key, run) for run in job.runs if run not in behind]
        return _Answer(more=[*alone, _Bulk(job.key, behind)] if behind else alone)

    def _page(self, job: _Page) -> _Answer:
        asked: Json = {"run_id": job.run, "metric_key": job.key, "max_results": _PAGE}
        answer = self._ask("metrics/get-history", asked | ({"page_token": job.token} if job.token else {}))
        points = [point(one) for one in answer.get("metrics", ())]
        if job.last is not None and points and not _follows(job.last, points[0]):
            raise TransientSourceError(f"metric `{job.key}` changed while it was read: sync again later")
        token = answer.get("next_page_token")
        if not token:
            return _Answer({job.run: points})
        if token in job.tokens:
            raise TerminalSourceError(f"the same page of metric `{job.key}` comes again and again")
        last = points[-1] if points else job.last
        return _Answer({job.run: points}, [_Page(job.key, job.run, token, last, job.tokens | {token})])


def _jobs(named: Mapping[str, Sequence[str]]) -> deque[_Job]:
    return deque(
        _Bulk(key, tuple(ids[start : start + _RUNS]))
        for key, runs in named.items()
        for ids in [sorted(runs)]
        for start in range(0, len(ids), _RUNS)
    )


def _by_run(listed: Sequence[Any], job: _Bulk) -> dict[str, list[Point]]:
    """Raises ValueError for what was not asked for."""
    found: dict[str, list[Point]] = {}
    for one in listed:
        if (run := one["run_id"]) not in found:
            if run not in job.runs:
                raise ValueError(run)
            found[run] = []
        if one["key"] != job.key:
            raise ValueError(one["key"])
        found[run].append(point(one))
    return found


def point(listed: Mapping[str, Any]) -> Point:
    """MLflow writes what JSON does not have as "NaN", "Infinity", "-Infinity"."""
    value = float(listed["value"])
    return int(listed["timestamp"]), int(listed.get("step", 0)), listed["key"], None if value != value else value


def _follows(last: Point, first: Point) -> bool:
    """Whether a page begins behind the one before: pages are counted off, so that what is put between shifts them.
    NaN is ordered as 0."""
    before, after = ((at, step, value or 0.0) for at, step, _, value in (last, first))
    return before < after or (before == after and (last[3] is None) != (first[3] is None))


def _fail(found: dict[str, Spool | SourceError], run_id: str, error: SourceError) -> None:
    if isinstance(spool := found[run_id], Spool):
        spool.close()
        found[run_id] = error


def close(found: Mapping[str, Spool | SourceError]) -> None:
    for spool in found.values():
        if isinstance(spool, Spool):
            spool.close()
