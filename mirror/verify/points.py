"""Points of MLflow compared with the rows of W&B that were made of them.

A point is a key, a step, a time and a value; one row there tells of several, and those that came late stand in rows of
their own behind others. So both sides are compared as what they tell of points, in whatever order, on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirror.importers.origin import CONFIG_KEY
from mirror.query.rows import stretches
from mirror.records import Stream
from mirror.sources.mlflow.told import PointsTold
from mirror.verify import values
from mirror.verify.findings import NOTHING, Findings

if TYPE_CHECKING:
    import pyarrow as pa

    from mirror.store import Reader

_OTHERS = """
with a as (select *, row_number() over (partition by key, step order by ms, value) as k
           from (select key, step, ms, value from h anti join t using (step, ms, key, value, nth))),
     b as (select *, row_number() over (partition by key, step order by ms, value) as k
           from (select key, step, ms, value from t anti join h using (step, ms, key, value, nth)))
select coalesce(a.step, b.step), coalesce(a.key, b.key), a.k is not null, a.value, a.ms, b.k is not null, b.value, b.ms
from a full join b using (key, step, k) order by 1, 2, a.k, b.k
"""
"""The points that one side alone tells of, two of a key and step beside each other."""


class PointsCompared:
    """Takes the rows of both streams of the other side (`feed`, then `finish`): metrics of the system are among the
    mirror's points, and a stream of their own there."""

    def __init__(self, where: str, reader: Reader, rid: int) -> None:
        self._where = where
        self._told = PointsTold(CONFIG_KEY)
        self._reader = reader
        self._rid = rid

    def feed(self, table: pa.Table, stream: Stream) -> None:
        """More rows of the other side, as `cells.decode` made them."""
        self._told.there(table, stream)

    def forget(self, stream: Stream) -> None:
        """What came of a stream comes once more."""
        self._told.forget(stream)

    def finish(self, findings: Findings) -> None:
        """Nothing more comes of the other side."""
        for cells in stretches(self._reader, self._rid, "history"):
            self._told.here(cells)
        differ = sum(self._told.compare())
        with self._told.ask() as db:
            found = db.execute("select count(*) from h").fetchone()
            findings.count(points=found[0] if found else 0)
            if not differ:
                return
            cursor = db.execute(_OTHERS)
            while some := cursor.fetchmany(1000):
                for step, key, *sides in some:
                    here, there = _text(*sides[:3]), _text(*sides[3:])
                    findings.differ(self._where, "points", step=step, key=key, here=here, there=there)


def _text(known: bool, value: float | None, ms: int | None) -> str:
    return f"{values.shown(value)} at {ms / 1000 if ms is not None else None}" if known else NOTHING
