"""What MLflow can hold of a mirrored run's rows: every number as a point of a metric, with its step and time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from mirror.importers.account import Account
from mirror.importers.outgoing import gathered
from mirror.importers.to_mlflow.names import unique_names
from mirror.portions import portions
from mirror.query.rows import TABLE
from mirror.query.sql import asking
from mirror.records import Stream
from mirror.sources.mlflow.points import Point
from mirror.sources.mlflow.rows import theirs

if TYPE_CHECKING:
    from mirror.store import Reader

_TOGETHER = 1_000_000
"""Cells that one query sorts."""
_BATCH = 20_000
_OWN = ("_step", "_timestamp", "_runtime")
_NUMBER = "case when v is null and kind in ('number', 'int') then try_cast(j as double) else v end"
_SURE = 9e12
"""Seconds since 1970 whose milliseconds are counted exactly."""

_SERIES = f"""
with c as (select key, path_id, row, step, kind, v, {_NUMBER} as number from CELLS where gen = ?)
select key, path_id, count(number), count(*) filter (kind = 'int' and v is null and number is not null),
    count(*) filter (isinf(number)), count(*) - count(number),
    coalesce(mode(kind) filter (number is null), ''), count(step) filter (key = '_step' and path_id = 0),
    count(*) filter (key = '_timestamp' and path_id = 0 and v between 0 and {_SURE})
from c where kind <> 'empty' group by all order by all
"""
_POINTS = f"""
with named as (select unnest($keys) as key, unnest($paths) as path_id, unnest($names) as name),
t as (select row, round(v * 1000) as at from CELLS
    where gen = $gen and key = '_timestamp' and path_id = 0 and v between 0 and {_SURE}),
c as (select key, path_id, row, step, {_NUMBER} as number from CELLS
    where gen = $gen and key between $first and $last and number is not null)
select coalesce(t.at, $began)::bigint, coalesce(c.step, c.row), name, case when isnan(number) then null
    else least(greatest(number, -1.7976931348623157e308), 1.7976931348623157e308) end as value
from c join named using (key, path_id) left join t using (row)
order by name, 1, 2, value is null, value
"""


@dataclass(frozen=True)
class Series:
    """One metric: `numbers` points under `name`."""

    stream: Stream
    key: str
    path_id: int
    name: str
    numbers: int


class RunPoints:
    """`row` is the run's row of `runs_raw`. `series` are sorted by name, and so are points."""

    def __init__(self, reader: Reader, row: Mapping[str, Any], account: Account) -> None:
        self._reader = reader
        self._row = row
        self._began = milliseconds(row["created_at"]) or 0
        wanted: list[tuple[Stream, str, int, str, int]] = []
        self._told = gathered(row)
        wanted += [*self._listed("history", account), *self._listed("system", account)]
        names = unique_names([wish for *_, wish, _ in wanted])
        for (_, key, _, wish, _), name in zip(wanted, names, strict=True):
            if wish != name:
                account.changed("keys", f"`{key[:100]}` is `{name[:100]}` there")
        self.renamed = {name: key for (_, key, *_), name in zip(wanted, names, strict=True) if name != key}
        named = (
            Series(stream, key, path_id, name, numbers)
            for (stream, key, path_id, _, numbers), name in zip(wanted, names, strict=True)
        )
        self.series = sorted(named, key=lambda one: one.name)
        self.numbers = sum(one.numbers for one in self.series)

    def _listed(self, stream: Stream, account: Account) -> Iterator[tuple[Stream, str, int, str, int]]:
        """Series and the names that suit them; what is no number is noted."""
        rows = self._row[f"{stream}_rows"]
        if not rows:
            return
        with asking(self._reader) as connection:
            query = _SERIES.replace("CELLS", self._reader.relation(TABLE[stream], self._row["rid"]))
            found = connection.execute(query, [self._row[f"{stream}_gen"]]).fetchall()
        other = Counter[str]()
        large = infinite = steps = times = runtimes = 0
        for key, path_id, numbers, big, inf, rest, kind, stepped, timed in found:
            if path_id == 0 and key in _OWN:
                steps, times = max(steps, stepped), max(times, timed)
                runtimes += numbers if key == "_runtime" else 0
                continue
            large, infinite = large + big, infinite + inf
            other[kind] += rest
            if numbers:
                yield stream, key, path_id, self._wish(stream, key), numbers
        if sum(other.values()):
            kinds = ", ".join(kind for kind, n in other.most_common() if n)
            account.lost("values", f"MLflow's metrics are numbers alone; these are: {kinds}", sum(other.values()))
        if large:
            account.changed("large ints", "MLflow holds the nearest floating-point number", large)
        if infinite:
            account.changed("infinities", "MLflow holds the largest number instead", infinite)
        if times < rows:
            account.changed("times", "points of rows without a time have that of the run's beginning", rows - times)
        if stream == "history" and steps < rows:
            account.changed("steps", "points of rows without a step have the row's number", rows - steps)
        if runtimes:
            account.lost("_runtime", "a row's time and the run's beginning tell it", runtimes)

    def _wish(self, stream: Stream, key: str) -> str:
        if stream == "system":
            return f"system/{key.removeprefix('system.')}"  # where MLflow shows its own
        return theirs(key) if self._told else key

    def parts(self, most: int, least: int) -> list[list[Series]]:
        """The series in at most `most` parts of about as many points, which may be sent side by side: MLflow keeps the
        last point of each metric by reading it and writing it, so that one metric must not be sent twice at a time."""
        most = max(1, min(most, self.numbers // least, len(self.series)))
        parts: list[list[Series]] = [[] for _ in range(most)]
        sizes = [0] * most
        for one in sorted(self.series, key=lambda one: -one.numbers):
            smallest = sizes.index(min(sizes))
            parts[smallest].append(one)
            sizes[smallest] += one.numbers
        return [sorted(part, key=lambda one: one.name) for part in parts]

    def points(self, series: Sequence[Series]) -> Iterator[Point]:
        """The points of some series in the order of name, time, step, value (NaN last), each once: of points that are
        wholly the same MLflow keeps one."""
        before: Point | None = None
        for point in chain.from_iterable(map(self._read, _together(series))):
            if point != before:
                yield point
            before = point

    def _read(self, series: Sequence[Series]) -> Iterator[Point]:
        stream = series[0].stream
        keys = [one.key for one in series]
        params = {
            "keys": keys,
            "paths": [one.path_id for one in series],
            "names": [one.name for one in series],
            "gen": self._row[f"{stream}_gen"],
            "first": min(keys),
            "last": max(keys),
            "began": self._began,
        }
        query = _POINTS.replace("CELLS", self._reader.relation(TABLE[stream], self._row["rid"]))
        with asking(self._reader) as connection:
            found = connection.execute(query, params)
            while points := found.fetchmany(_BATCH):
                yield from points


def _together(series: Sequence[Series]) -> Iterator[list[Series]]:
    """Neighbours of one stream, as many as one query sorts."""
    for _, of_stream in groupby(series, key=lambda one: one.stream):
        yield from portions(of_stream, lambda one: one.numbers, _TOGETHER)


def keys_document(renamed: Mapping[str, str]) -> bytes:
    """JSON: the keys of metrics that are called otherwise there, by the names they have there."""
    return json.dumps(renamed, ensure_ascii=False, indent=0).encode("utf-8", "backslashreplace")


def milliseconds(at: Any) -> int | None:
    """Of a time, since 1970."""
    return None if at is None else round(at.timestamp() * 1000)
