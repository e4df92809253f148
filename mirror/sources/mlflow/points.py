"""The points of a run in the order of their times, out of a table laid out like MLflow's own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from mirror.errors import TerminalSourceError

_ORDERED = """
select timestamp, step, key, case when is_nan then null else value end from metrics
where run_uuid = ? order by timestamp, step, key, is_nan, value
"""
_BY_NAME = """
select timestamp, step, key, case when is_nan then null else value end from metrics
where run_uuid = ? and key in (select value from json_each(?)) order by key, timestamp, step, is_nan, value
"""
Point = tuple[int, int, str, "float | None"]
"""Milliseconds since 1970, step, key, value; None is NaN, which SQLite does not have."""


class Points:
    """Can be gone through more than once; `total` is how many there are."""

    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id
        self.total: int = self._ask("select count(*) from metrics where run_uuid = ?").fetchone()[0]

    def __iter__(self) -> Iterator[Point]:
        try:
            yield from self._ask(_ORDERED)
        except sqlite3.Error as e:
            raise _unreadable(e) from e

    def by_name(self, names: Sequence[str]) -> Iterator[Point]:
        """Those of some metrics, in the order of name, time, step, value (NaN last)."""
        try:
            yield from self._ask(_BY_NAME, json.dumps(names))
        except sqlite3.Error as e:
            raise _unreadable(e) from e

    def names(self) -> set[str]:
        return {name for (name,) in self._ask("select distinct key from metrics where run_uuid = ?")}

    def _ask(self, query: str, *params: str) -> sqlite3.Cursor:
        try:
            return self._connection.execute(query, [self._run_id, *params])
        except sqlite3.Error as e:
            raise _unreadable(e) from e


def _unreadable(error: sqlite3.Error) -> TerminalSourceError:
    return TerminalSourceError(f"the metrics of an MLflow run cannot be read (`{error}`): sync again later", error)


class Spool:
    """Points on their way, on disk as soon as there are many: a server gives them out key by key."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._connection.execute("create table metrics (run_uuid, key, timestamp, step, value, is_nan)")
        self._connection.execute("begin")

    def add(self, points: Iterable[Point]) -> None:
        rows = (
            (self._run_id, key, at, step, 0.0 if value is None else value, value is None)
            for at, step, key, value in points
        )
        self._connection.executemany("insert into metrics values (?, ?, ?, ?, ?, ?)", rows)

    def points(self) -> Points:
        return Points(self._connection, self._run_id)

    def close(self) -> None:
        self._connection.close()
