"""Merging sorted segments: many files become one sorted stream, a small piece of each in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirror.store.schema import fitted

# What is in sight of all files together: rows, and bytes before compression.
_SIGHT_ROWS = 100_000
_SIGHT_BYTES = 16 << 20
_LEAST_ROWS = 64

Keep = Callable[[pa.Table], pa.Array]
"""Which rows of a piece go on."""


def merged(paths: Sequence[Path], schema: pa.Schema, order: Sequence[str], keep: Keep | None) -> Iterator[pa.Table]:
    """The rows of these files that `keep` keeps, in pieces. The files must be sorted by `order`, and so is what
    comes out; without an order it is one file after the other."""
    cursors = [_Cursor(path, schema, order, keep, share=len(paths)) for path in paths]
    if not order:
        for cursor in cursors:
            while cursor.fill():
                yield cursor.take(None)
        return
    while cursors := [cursor for cursor in cursors if cursor.fill()]:
        # What is below the last row in sight of every file cannot be preceded by anything that is not in sight.
        bound = min((last for cursor in cursors if (last := cursor.last_in_sight) is not None), default=None)
        parts = [part for cursor in cursors if (part := cursor.take(bound)).num_rows]
        yield parts[0] if len(parts) == 1 else _sorted(pa.concat_tables(parts), order)


def _sorted(rows: pa.Table, order: Sequence[str]) -> pa.Table:
    """The rows in order. Dictionaries are sorted once, not once a row."""
    rows = rows.unify_dictionaries().combine_chunks()
    columns = []
    for name in reversed(order):
        column = rows[name].chunk(0)
        if pa.types.is_dictionary(column.type):
            rank = pc.rank(column.dictionary, tiebreaker="min").to_numpy()
            columns.append(rank[column.indices.to_numpy()])
        elif pa.types.is_integer(column.type):
            columns.append(column.to_numpy())
        else:
            return rows.sort_by([(name, "ascending") for name in order])
    return rows.take(pa.array(np.lexsort(columns)))


class _Cursor:
    """One file, read from its beginning to its end."""

    def __init__(self, path: Path, schema: pa.Schema, order: Sequence[str], keep: Keep | None, *, share: int) -> None:
        self._schema = schema
        self._order = order
        self._keep = keep
        coded = [field.name for field in schema if pa.types.is_dictionary(field.type)]
        self._file = pq.ParquetFile(path, read_dictionary=coded)
        metadata = self._file.metadata
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        rows = max(_LEAST_ROWS, min(_SIGHT_ROWS, _SIGHT_BYTES * metadata.num_rows // max(size, 1)) // share)
        self._pieces = self._file.iter_batches(batch_size=rows)
        self._sight: pa.Table = schema.empty_table()
        self._last: tuple[Any, ...] = ()
        self._ended = False

    def fill(self) -> bool:
        """Have rows in sight; False at the end of the file."""
        while not self._ended and not self._sight.num_rows:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                self._file.close()
                break
            rows = fitted(pa.Table.from_batches([piece]), self._schema)
            self._sight = rows.filter(self._keep(rows)) if self._keep else rows
            if self._sight.num_rows and self._order:
                self._last = self._place(self._sight.num_rows - 1)
        return bool(self._sight.num_rows)

    @property
    def last_in_sight(self) -> tuple[Any, ...] | None:
        """Where the last row in sight stands in the order; None if no row can come after it."""
        return None if self._ended else self._last

    def _place(self, row: int) -> tuple[Any, ...]:
        return tuple(self._sight[name][row].as_py() for name in self._order)

    def take(self, bound: tuple[Any, ...] | None) -> pa.Table:
        """The rows in sight that do not come after `bound`; all of them without one."""
        low = high = self._sight.num_rows
        if bound is not None and self._last > bound:
            low, high = 0, (high - 1 if self._place(0) <= bound else 0)
        while low < high:
            middle = (low + high) // 2
            if self._place(middle) <= bound:  # type: ignore[operator]
                low = middle + 1
            else:
                high = middle
        taken, self._sight = self._sight.slice(0, low), self._sight.slice(low)
        return taken
