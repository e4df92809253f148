"""The rows of one run as they were logged, in logged order, in bounded memory.

Cells lie sorted by key, rows are wanted: a first query weighs blocks of rows, then stretches of about equal
weight are read and rebuilt one after another, so neither a million rows nor cells of a megabyte fill memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.query.sql import asking
from mirror.records import Stream

if TYPE_CHECKING:
    import duckdb
    import pyarrow

    from mirror.store import Reader

TABLE = {"history": "history", "system": "system_metrics"}
_BLOCK = 16  # rows; the smallest stretch that is read at once
CELL_BYTES = 64  # what a cell costs in memory beside its text
_STRETCH_BYTES = 16 << 20
WEIGHT = f"count(*) * {CELL_BYTES} + coalesce(sum(strlen(j)), 0)"
"""SQL: about how many bytes of memory cells take."""


def rows(
    reader: Reader,
    rid: int,
    stream: Stream = "history",
    min_step: int | None = None,
    max_step: int | None = None,
    keys: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Every logged row of a run as a dict, in logged order (which is not step order if steps repeat).

    `min_step` is inclusive, `max_step` exclusive; rows without a step are left out if either is given. `keys`
    reduces rows to these keys (with dots for nested values, the name of a nested dictionary for all of it) and
    leaves out rows that have none of them. NotFoundError if the mirror holds no such run.
    """
    from mirror.store.rebuild import rows_as_dicts

    for cells in stretches(reader, rid, stream, min_step, max_step, keys):
        yield from rows_as_dicts(cells)


def stretches(
    reader: Reader,
    rid: int,
    stream: Stream = "history",
    min_step: int | None = None,
    max_step: int | None = None,
    keys: Sequence[str] | None = None,
    first_row: int = 0,
) -> Generator[pyarrow.Table, None, None]:
    """The cells (key, path_id, row, step, kind, v, j) of the same rows, in pieces of a bounded size that hold whole
    rows; pieces follow in order of row, the cells of a piece in any order. Rows before `first_row` are left out."""
    with asking(reader) as connection:
        conditions, params = ["gen = ?"], [generation(connection, rid, stream)]
        for condition, value in (("step >= ?", min_step), ("step < ?", max_step), ("row >= ?", first_row or None)):
            if value is not None:
                conditions.append(condition)
                params.append(value)
        if keys is not None:
            condition, values = holds(keys)
            conditions += [condition, "kind <> 'empty'"]  # an empty row has not even the key ""
            params += values
        cells = f"from {reader.relation(TABLE[stream], rid)} where {' and '.join(conditions)}"
        weights = connection.execute(
            f"select row // {_BLOCK}, {WEIGHT} {cells} group by 1 order by 1",
            params,
        ).fetchall()
        for first, last in evenly(weights):
            span = f"{cells} and row between {first * _BLOCK} and {last * _BLOCK + _BLOCK - 1}"
            query = f"select key, path_id, row, step, kind, v, j {span}"
            yield connection.sql(query, params=params).to_arrow_table()


def by_step(
    reader: Reader, rid: int, stream: Stream = "history", stretch_bytes: int = _STRETCH_BYTES
) -> Generator[pyarrow.Table, None, None]:
    """The cells of all rows in the order of steps, rows of one step as they were logged, rows without a step first:
    in pieces of a bounded size that hold whole rows, the cells of a piece in any order."""
    with asking(reader) as connection:
        gen = generation(connection, rid, stream)
        cells = f"from {reader.relation(TABLE[stream], rid)} where gen = ?"
        blocks = connection.execute(
            f"select row // {_BLOCK}, {WEIGHT}, min(step), max(step), count(*) - count(step) {cells} "
            "group by 1 order by 1",
            [gen],
        ).fetchall()
        spans: Iterator[tuple[str, list[int]]]
        stepless = all(block[2] is None for block in blocks)
        if stepless or (not any(block[4] for block in blocks) and all(a[3] <= b[2] for a, b in pairwise(blocks))):
            spans = (
                ("row between ? and ?", [first * _BLOCK, last * _BLOCK + _BLOCK - 1])
                for first, last in evenly([block[:2] for block in blocks], stretch_bytes)
            )
        else:
            spans = _by_step(connection, cells, gen, stretch_bytes)
        for span, params in spans:
            query = f"select key, path_id, row, step, kind, v, j {cells} and {span}"
            yield connection.sql(query, params=[gen, *params]).to_arrow_table()


def _by_step(
    connection: duckdb.DuckDBPyConnection, cells: str, gen: int, stretch_bytes: int
) -> Iterator[tuple[str, list[int]]]:
    """Conditions for pieces of a stream whose steps go back, or are missing."""
    place = "{'step': step, 'row': row}"
    bounds = connection.execute(
        f"with r as (select step, row, {WEIGHT} as weight {cells} group by all), p as (select step, row, "
        f"sum(weight) over (order by step nulls first, row rows unbounded preceding) // {int(stretch_bytes)} as part "
        f"from r) select step is null, min({place}), max({place}) from p group by part, step is null "
        "order by 1 desc, 2",
        [gen],
    ).fetchall()
    for stepless, first, last in bounds:
        if stepless:
            yield "step is null and row between ? and ?", [first["row"], last["row"]]
        else:
            span = "step between ? and ? and (step > ? or row >= ?) and (step < ? or row <= ?)"
            yield span, [first["step"], last["step"], *first.values(), *last.values()]


def holds(keys: Sequence[str]) -> tuple[str, list[Any]]:
    """A condition for the cells of some keys, with its parameters; what is nested in a key counts as the key's."""
    keys = [key for key in keys if key == key.encode("utf-8", "ignore").decode()]  # none has a lone surrogate
    if not keys:
        return "false", []
    one = "key = ? or (key >= ? and key < ? and (path_id >> ?) & 1 = 1)"
    values = [value for key in keys for value in (key, f"{key}.", f"{key}/", key.count("."))]
    # Cells lie sorted by key: a range over all of them skips most of a file before anything is compared.
    near = "key >= ? and key < ?"
    return f"{near} and ({' or '.join([one] * len(keys))})", [min(keys), max(f"{key}/" for key in keys), *values]


def generation(connection: duckdb.DuckDBPyConnection, rid: int, stream: Stream) -> int:
    found = connection.execute(f"select {stream}_gen from raw.live where rid = ?", [rid]).fetchone()
    if found is None:
        raise NotFoundError(f"The mirror holds no run with rid `{rid}`: list what it has with `mirror runs`.")
    return int(found[0])


def evenly(weights: Sequence[tuple[int, int]], most: int = _STRETCH_BYTES) -> Iterator[tuple[int, int]]:
    """First and last block of stretches that weigh about `most` bytes."""
    start = 0
    total = 0
    for i, (_, weight) in enumerate(weights):
        if i > start and total + weight > most:
            yield weights[start][0], weights[i - 1][0]
            start, total = i, 0
        total += weight
    if weights:
        yield weights[start][0], weights[-1][0]
