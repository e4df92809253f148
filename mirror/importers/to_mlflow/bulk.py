"""Points into the tables of an MLflow database, many in a transaction, by the rules of MLflow's own store.

MLflow (2.16 to 3.17) keeps a point once, whatever it is logged twice for (`metrics`, whose primary key is all of it);
NaN as 0 with a flag; and of each metric the last point (`latest_metrics`): that with the greatest step, then time, then
value, in which NaN counts as 0, and the first of those that are the same in all three.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from mirror.errors import TransientSourceError
from mirror.sources.mlflow.points import Point

TRIED = frozenset(
    {
        "4465047574b1",  # MLflow 2.16
        "0584bdc529eb",  # 2.22
        "6953534de441",  # 3.1
        "bf29a5ff90ea",  # 3.5
        "1b5f0d9ad7c1",  # 3.10
        "b7e2c1a4d9f3",  # 3.16
        "dc11669786a5",  # 3.17
    }
)
"""Revisions of MLflow's schema with which the rows written here were compared with those that its own store writes."""
BATCH = 50_000
"""Points in a transaction, which takes about half a second; MLflow's store waits 20 for its turn."""
_TURN, _REST = 2.0, 0.15
"""Seconds of writing after which others get a chance, and how long: SQLite tries again every tenth of a second."""
_ACTIVE = "select 1 from runs where run_uuid = ? and lifecycle_stage = 'active'"
_INSERT = "insert or ignore into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)"
_LATEST = """
insert into latest_metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)
on conflict (key, run_uuid) do update
set value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
where (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)
"""

_Row = tuple[str, float, int, str, int, bool]


class PointTables:
    """Through a connection in autocommit mode, by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._connection.execute("pragma foreign_keys = on")
        self._connection.execute("pragma cache_size = -65536")  # so that readers wait for the end alone
        self._busy = 0.0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Raises sqlite3.Error."""
        self._connection.execute("begin immediate")
        began = time.monotonic()
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise
        self._busy += time.monotonic() - began
        if self._busy > _TURN:
            time.sleep(_REST)
            self._busy = 0.0

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """All of them, or none. Raises TransientSourceError if the run is gone, sqlite3.Error."""
        with self.transaction():
            if self._connection.execute(_ACTIVE, [run_id]).fetchone() is None:
                raise TransientSourceError(f"run `{run_id}` is gone there: send it again")
            self._connection.executemany(_INSERT, _rows(run_id, points))
            self._connection.executemany(_LATEST, _last(_rows(run_id, points)))


def batches(points: Iterator[Point]) -> Iterator[list[Point]]:
    while batch := list(islice(points, BATCH)):
        yield batch


def _rows(run_id: str, points: Iterable[Point]) -> Iterator[_Row]:
    return (
        (name, 0.0 if value is None else value, at, run_id, step, value is None) for at, step, name, value in points
    )


def _last(rows: Iterable[_Row]) -> Iterable[_Row]:
    """The last of each metric; of those that are the same but for NaN the first, as MLflow does."""
    last: dict[str, tuple[tuple[int, int, float], _Row]] = {}
    for row in rows:
        name, value, at, _, step, _ = row
        mark = step, at, value
        if name not in last or mark > last[name][0]:
            last[name] = mark, row
    return [row for _, row in last.values()]
