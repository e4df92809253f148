"""The rows of one run as they were logged, in logged order, in bounded memory.

Cells lie sorted by key, rows are wanted: a first query weighs blocks of rows, then stretches of about equal
weight are read and rebuilt one after another, so neither a million rows nor cells of a megabyte fill memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.records import Stream

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from mirror.store import Reader

_TABLE = {"history": "history", "system": "system_metrics"}
_BLOCK = 16  # rows; the smallest stretch that is read at once
_CELL_BYTES = 64  # what a cell costs in memory beside its text
_STRETCH_BYTES = 16 << 20


def rows(
    reader: Reader,
    rid: int,
    stream: Stream = "history",
    min_step: int | None = None,
    max_step: int | None = None,
    keys: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Every logged row of a run as a dict, in logged order (which is not step order if steps repeat).

    `min_step` is inclusive, `max_step` exclusive; rows without a step are left out if either is given.
    `keys` (dotted for nested values) reduces rows to these keys and leaves out rows that have none of them.
    NotFoundError if the mirror holds no such run.
    """
    from mirror.store.cells import rows_as_dicts

    for cells in _stretches(reader, rid, stream, min_step, max_step, keys, None):
        yield from rows_as_dicts(cells)


def row_texts(
    reader: Reader,
    rid: int,
    stream: Stream = "history",
    min_step: int | None = None,
    max_step: int | None = None,
    keys: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[str]:
    """The same rows as JSON texts, `limit` of them at most; non-finite numbers are spelled as on the wire."""
    from mirror.store.cells import rows_as_json

    stretches = _stretches(reader, rid, stream, min_step, max_step, keys, limit)
    return list(islice((text for cells in stretches for text in rows_as_json(cells)), limit))


def _stretches(
    reader: Reader,
    rid: int,
    stream: Stream,
    min_step: int | None,
    max_step: int | None,
    keys: Sequence[str] | None,
    limit: int | None,
) -> Iterator[pa.Table]:
    """Cells of consecutive rows, a table at a time; about `limit` rows at a time if that is less."""
    connection = reader.connect()
    try:
        gen = _generation(connection, rid, stream)
        where = ["gen = ?"]
        params: list[Any] = [gen]
        for condition, value in (("step >= ?", min_step), ("step < ?", max_step)):
            if value is not None:
                where.append(condition)
                params.append(value)
        if keys is not None:
            where.append("list_contains(?, key)")
            params.append(list(keys))
        if limit is not None and len(where) == 1:
            where.append("row < ?")
            params.append(limit)
        cells = f"from {reader.relation(_TABLE[stream], rid)} where {' and '.join(where)}"
        weights = connection.execute(
            f"select row // {_BLOCK}, count(*) * {_CELL_BYTES} + coalesce(sum(strlen(j)), 0) {cells} "
            "group by 1 order by 1",
            params,
        ).fetchall()
        columns = "select key, path_id, row, kind, v, j"
        for first, last in _evenly(weights, None if limit is None else limit // _BLOCK + 1):
            span = f"{cells} and row between {first * _BLOCK} and {last * _BLOCK + _BLOCK - 1}"
            yield connection.sql(f"{columns} {span}", params=params).to_arrow_table()
    finally:
        connection.close()


def _generation(connection: duckdb.DuckDBPyConnection, rid: int, stream: Stream) -> int:
    found = connection.execute(f"select {stream}_gen from raw.live where rid = ?", [rid]).fetchone()
    if found is None:
        raise NotFoundError(f"The mirror holds no run with rid `{rid}`: list what it has with `mirror runs`.")
    return int(found[0])


def _evenly(weights: Sequence[tuple[int, int]], most: int | None) -> Iterator[tuple[int, int]]:
    """First and last block of stretches that weigh about `_STRETCH_BYTES`, of at most `most` blocks."""
    start = 0
    total = 0
    for i, (_, weight) in enumerate(weights):
        if i > start and (total + weight > _STRETCH_BYTES or i - start == most):
            yield weights[start][0], weights[i - 1][0]
            start, total = i, 0
        total += weight
    if weights:
        yield weights[start][0], weights[-1][0]
