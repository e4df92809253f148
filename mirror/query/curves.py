"""Curves of metrics, with as many points as a plot can show: runs of any length are put into buckets in SQL.

Up to `POINTS` values are points as they were logged. More are put into `POINTS` stretches of the x axis, each with
its mean, least and greatest finite value. A stretch with nothing but NaN or infinities is a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mirror.query.rows import TABLE
from mirror.query.sql import asking
from mirror.records import Stream

if TYPE_CHECKING:
    from mirror.store import Reader

POINTS = 1000


@dataclass(frozen=True)
class Curve:
    """Points in order of x. `mean` is NaN at a gap, like `low` and `high`. `values` counts what was logged,
    `nonfinite` how much of it is NaN or infinite, `runs` the most runs that a point stands for."""

    x: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    values: int = 0
    nonfinite: int = 0
    runs: int = 1

    def smooth(self, weight: float) -> Curve:
        """With the means smoothed exponentially; starting without a bias towards 0, as TensorBoard and W&B do."""
        last, debias = 0.0, 1.0
        means = []
        for value in self.mean:
            if value == value:
                last = last * weight + (1 - weight) * value
                debias *= weight
                value = last / (1 - debias) if debias < 1 else value
            means.append(value)
        return replace(self, mean=means)


def curves(
    reader: Reader, rids: Sequence[int], key: str, *, x: str = "_step", stream: Stream = "history", points: int = POINTS
) -> dict[int, Curve]:
    """The curve of each run that has numbers under `key`, in the order of `rids`.

    `x` is `_step` (where a row has none: its position) or a key of the same rows, such as `_runtime`.
    """
    found = _collected(_query(reader, stream, x, _PER_RUN), reader, [list(rids), key], x, {"points": points})
    return {rid: found[rid] for rid in rids if rid in found}


def grouped(
    reader: Reader,
    groups: Mapping[int, int],
    key: str,
    *,
    x: str = "_step",
    stream: Stream = "history",
    points: int = POINTS,
) -> dict[int, Curve]:
    """The curve of each group of runs (`groups`: rid -> number of the group), in order of these numbers: mean, least
    and greatest of its runs' means at each x, or in each stretch of the x axis, which is cut for all alike."""
    more = {"points": points, "groups": [*groups.values()]}
    found = _collected(_query(reader, stream, x, _PER_GROUP), reader, [[*groups], key], x, more)
    return dict(sorted(found.items()))


def _query(reader: Reader, stream: Stream, x: str, rest: str) -> str:
    at = "coalesce(h.step, h.row)::double" if x == "_step" else "p.v"
    join = "" if x == "_step" else "join place p on p.rid = h.rid and p.row = h.row"
    table = f"raw.{TABLE[stream]}"
    place = "" if x == "_step" else _PLACE.format(table=table)
    return (_CELLS + rest).format(table=table, stream=stream, at=at, join=join, place=place)


def _collected(query: str, reader: Reader, given: Sequence[Any], x: str, more: Mapping[str, Any]) -> dict[int, Curve]:
    params = {"rids": given[0], "key": given[1], **more, **({} if x == "_step" else {"x": x})}
    with asking(reader) as connection:
        found: dict[int, Curve] = {}
        for who, at, mean, low, high, values, nonfinite, runs in connection.execute(query, params).fetchall():
            curve = found.get(who) or Curve()
            for points, value in ((curve.x, at), (curve.mean, mean), (curve.low, low), (curve.high, high)):
                points.append(float("nan") if value is None else value)
            found[who] = replace(
                curve, values=curve.values + values, nonfinite=curve.nonfinite + nonfinite, runs=max(curve.runs, runs)
            )
    return found


# A key that two places share (nested and with a dot in its name) is the literal one where a run has both.
_CELLS = """
with wanted as (select unnest($rids::bigint[]) as rid),
live as (select l.rid, l.{stream}_gen as gen from raw.live l join wanted using (rid)),
literal as (
  select h.rid, h.gen, min(h.path_id) as path_id
  from {table} h join live using (rid, gen) where h.key = $key group by all
),
{place}
cells as (
  select h.rid, h.row, {at} as x,
         case when h.kind = 'nonfinite' then null else coalesce(h.v, try_cast(h.j as double)) end as y
  from {table} h join literal using (rid, gen, path_id) {join}
  where h.key = $key and h.kind in ('number', 'int', 'bool', 'nonfinite')
),
"""
_PLACE = """place as (
  select h.rid, h.row, h.v from {table} h join live using (rid, gen)
  where h.key = $x and h.kind in ('number', 'int') and h.v is not null
),
"""
_PER_RUN = """
bounds as (select rid, min(x) as first, max(x) as last, count(*) as n from cells group by rid),
placed as (
  select c.*, case when b.n <= $points then c.row::double
              else least(floor((c.x - b.first) / nullif(b.last - b.first, 0) * $points), $points - 1) end as bucket
  from cells c join bounds b using (rid)
)
select rid, avg(x) as middle, avg(y), min(y), max(y), count(*), count(*) - count(y), 1
from placed group by rid, bucket order by rid, middle, bucket
"""
_PER_GROUP = """
member as (select unnest($rids::bigint[]) as rid, unnest($groups::bigint[]) as g),
bounds as (select min(x) as first, max(x) as last, count(distinct x) as n from cells),
placed as (
  select c.*, case when b.n <= $points then c.x
              else least(floor((c.x - b.first) / nullif(b.last - b.first, 0) * $points), $points - 1) end as bucket
  from cells c cross join bounds b
),
per_run as (
  select rid, bucket, avg(x) as x, avg(y) as y, count(*) as n, count(*) - count(y) as nonfinite
  from placed group by rid, bucket
)
select g, avg(x) as middle, avg(y), min(y), max(y), sum(n)::bigint, sum(nonfinite)::bigint, count(*)
from per_run join member using (rid) group by g, bucket order by g, middle, bucket
"""
