"""Logged rows as a table: a row per logged row, a column per key, `_step` first; streamed, with flat memory.

A column has the type that holds all values of its key exactly (kinds.py); a mix of types, lists and media are JSON.
Nested dictionaries are columns with dotted names. Keys of one spelling that mean different places (`{"a": {"b": 1}}`
and `{"a.b": 1}`) are columns of their own, the second as `a.b_1`. A null and a missing value are both NULL, but for
columns of type JSON, where a null is `null`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mirror.query.export import unique
from mirror.query.kinds import best_type

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow

    from mirror.query.neighbours import Kinds, Neighbours, Piece

    Ints = npt.NDArray[np.int64]

_SLOTS = 1 << 20  # rows times columns that are made at once
_STEP = ("_step", 0)


@dataclass(frozen=True)
class Owner:
    """A run, and what stands before each of its rows."""

    rid: int
    values: tuple[str | None, ...] = ()


class LoggedRows:
    """The rows of runs, one run after another: a `Rows` of mirror/query/export.py.

    `owners` are all runs of `cells`, or one of them; of the keys that those are reduced to, if they are, `_step` is
    none, but a column nevertheless. `names` are the names of the owners' values.
    """

    def __init__(self, cells: Neighbours, owners: Sequence[Owner], names: Sequence[str] = ()) -> None:
        self._cells = cells
        self._owners = {owner.rid: owner for owner in owners}
        self._alone = len(cells.rids) > 1 and len(owners) == 1
        self._keys = cells.keys
        self._fixed = len(names)
        self._places = _catalogue(cells.kinds_of(owners[0].rid) if self._alone else cells.kinds(), self._keys)
        self.columns = unique([*names, *(key for key, _ in self._places)])
        self.types = ["VARCHAR"] * len(names) + list(self._places.values())

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self._batches():
            yield from zip(*(_listed(column) for column in batch), strict=True)

    def batches(self, rows: int = 0) -> pyarrow.RecordBatchReader:
        import pyarrow as pa

        from mirror.query.table import arrow_type

        kinds = [arrow_type(kind) for kind in self.types]
        schema = pa.schema(list(zip(self.columns, kinds, strict=True)))
        made = (pa.RecordBatch.from_arrays(columns, schema=schema) for columns in self._batches())
        return pa.RecordBatchReader.from_batches(schema, made)

    def texts(self) -> Iterator[str]:
        """The rows as the JSON texts that were logged, nested as they were; after the owner's values, if there are
        any, under `row`. Selected rows have `_step` in front."""
        from mirror.store.cells import rows_as_json

        names = self.columns[: self._fixed]
        for piece in self._pieces():
            found = rows_as_json(_spelled(piece.cells))
            if self._keys is not None:
                found = _stepped(found, piece.cells)
            yield from self._owned(names, found, piece) if names else found

    def _pieces(self) -> Iterator[Piece]:
        if self._alone:
            return self._cells.rows_of(*self._owners)
        return self._cells.pieces()

    def _batches(self) -> Iterator[list[pyarrow.Array]]:
        import numpy as np
        import pyarrow as pa

        rows_at_once = max(_SLOTS // max(len(self.columns), 1), 1)
        for piece in self._pieces():
            cells = piece.cells
            row = cells.column("row").to_numpy()
            held = np.unique(row)
            if len(held) <= rows_at_once:
                yield self._columns(piece, cells, held)
                continue
            order = np.argsort(row, kind="stable")
            cells, row = cells.take(pa.array(order)), row[order]
            for start in range(0, len(held), rows_at_once):
                part = held[start : start + rows_at_once]
                first, last = np.searchsorted(row, [part[0], part[-1] + 1])
                yield self._columns(piece, cells.slice(first, last - first), part)

    def _columns(self, piece: Piece, cells: pyarrow.Table, held: Ints) -> list[pyarrow.Array]:
        import numpy as np
        import pyarrow as pa

        from mirror.query.table import arrow_type
        from mirror.store.cellform import EMPTY, INT, kind_codes, places

        # An empty row is kept as a cell without a key, which is not the key "".
        cells = cells.filter(pa.array(kind_codes(cells) != EMPTY))
        code, names = places(cells)
        order = np.argsort(code, kind="stable")
        cells = cells.take(pa.array(order))
        at = np.searchsorted(held, cells.column("row").to_numpy())
        ends = np.cumsum(np.bincount(code, minlength=len(names)))
        kinds = kind_codes(cells)
        v = cells.column("v").to_numpy()
        has_j = cells.column("j").is_valid().to_numpy()
        made: dict[tuple[str, int], pa.Array] = {}
        for i, name in enumerate(names):
            if name in self._places:
                here = slice(ends[i - 1] if i else 0, ends[i])
                kind = self._places[name]
                if kind in _DTYPES and not (has_j[here] & (kinds[here] == INT)).any():
                    made[name] = _numbers(v[here], kinds[here], at[here], len(held), kind)
                else:
                    values = cells.slice(here.start, here.stop - here.start)
                    made[name] = _column(values, kinds[here], at[here], len(held), kind)
        if self._keys is not None and _STEP in self._places:
            steps = np.zeros(len(held), np.int64)
            known = cells.column("step").is_valid().to_numpy()
            steps[at[known]] = cells.column("step").drop_null().to_numpy()
            has_step = np.zeros(len(held), bool)
            has_step[at[known]] = True
            made[_STEP] = pa.array(steps, mask=~has_step)
        empty = {kind: pa.nulls(len(held), arrow_type(kind)) for kind in set(self._places.values())}
        return self._before(piece, held) + [made.get(place, empty[kind]) for place, kind in self._places.items()]

    def _before(self, piece: Piece, held: Ints) -> list[pyarrow.Array]:
        """The owners' values for rows of these numbers."""
        import numpy as np
        import pyarrow as pa

        which, at = np.unique(held // piece.span, return_inverse=True)
        owners = [self._owners[piece.rids[i]].values for i in which.tolist()] if self._fixed else []
        return [pa.array(values, pa.string()).take(pa.array(at)) for values in zip(*owners, strict=True)]

    def _owned(self, names: Sequence[str], texts: Iterator[str], piece: Piece) -> Iterator[str]:
        """The texts with the values of their owners."""
        import numpy as np

        from mirror.store.jsontext import quoted

        which, count = np.unique(np.unique(piece.cells.column("row").to_numpy()) // piece.span, return_counts=True)
        for i, rows in zip(which.tolist(), count.tolist(), strict=True):
            values = self._owners[piece.rids[i]].values
            parts = (f'"{n}":{"null" if v is None else quoted(v)}' for n, v in zip(names, values, strict=True))
            head = f'{{{",".join(parts)},"row":'
            yield from (f"{head}{text}}}" for text in islice(texts, rows))


def _spelled(cells: pyarrow.Table) -> pyarrow.Table:
    """The cells with numbers that are none as the strings W&B uses, which every JSON reader takes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from mirror.store.cellform import NONFINITE, kind_codes

    none = pa.array(kind_codes(cells) == NONFINITE)
    if not pc.any(none).as_py():
        return cells
    v = cells.column("v").combine_chunks()
    words = pc.if_else(pc.is_nan(v), '"NaN"', pc.if_else(pc.greater(v, 0.0), '"Infinity"', '"-Infinity"'))
    j = pc.if_else(none, words, cells.column("j").combine_chunks())
    return cells.set_column(cells.schema.get_field_index("j"), "j", j)


def _stepped(texts: Iterator[str], cells: pyarrow.Table) -> Iterator[str]:
    """The texts with the step of their row in front."""
    import numpy as np

    _, first = np.unique(cells.column("row").to_numpy(), return_index=True)
    for text, step in zip(texts, cells.column("step").take(first).to_pylist(), strict=True):
        yield text if step is None else f'{{"_step":{step},{text[1:]}'


# -- columns --------------------------------------------------------------------------------------------------

_OF_A_NUMBER = {"int", "number", "nonfinite"}
_WHOLE = 17  # characters of the longest integer that is kept as a double


def _catalogue(found: Iterable[Kinds], keys: Sequence[str] | None) -> dict[tuple[str, int], str]:
    """The places that rows have values at, and the type of each: `_step`, other keys of W&B's own, then those of users
    by name."""
    kinds: dict[tuple[str, int], set[str]] = {}
    longest: dict[tuple[str, int], int] = {}
    for key, path_id, here, inexact, digits in found:
        kinds[key, path_id] = {*here, "inexact"} if inexact else {*here}
        longest[key, path_id] = digits
    if keys is not None or not kinds:  # a table without any column could not be read
        kinds[_STEP], longest[_STEP] = {"int"}, 0
    order = sorted(kinds, key=lambda place: (place != _STEP, not place[0].startswith("_"), place))
    return {place: _type(kinds[place], longest[place]) for place in order}


def _type(kinds: set[str], longest: int) -> str:
    kinds = kinds - {"null"}
    inexact = "inexact" in kinds
    kinds.discard("inexact")
    if inexact and kinds == {"int"}:
        return best_type({"long"}, max(longest, _WHOLE))
    if inexact or not kinds <= _OF_A_NUMBER | {"bool", "string"} or ("string" in kinds and len(kinds) > 1):
        return "JSON"
    return best_type(kinds)


_DTYPES = {"BIGINT": "int64", "DOUBLE": "float64", "BOOLEAN": "bool"}


def _numbers(v: Any, kinds: Any, at: Ints, rows: int, kind: str) -> pyarrow.Array:
    """Numbers of one key, all of which `v` holds, as a column of so many rows."""
    import numpy as np
    import pyarrow as pa

    from mirror.store.cellform import NULL

    held = kinds != NULL
    values = np.zeros(rows, _DTYPES[kind])
    missing = np.ones(rows, bool)
    values[at[held]] = v[held]
    missing[at[held]] = False
    return pa.array(values, mask=missing)


def _column(cells: pyarrow.Table, kinds: Any, at: Ints, rows: int, kind: str) -> pyarrow.Array:
    """Values of one key as a column of so many rows."""
    import pyarrow as pa

    from mirror.query.table import arrow_type

    filled: list[Any] = [None] * rows
    for place, value in zip(at.tolist(), _values(cells, kinds, kind), strict=True):
        filled[place] = value
    return pa.array(filled, arrow_type(kind))


def _values(cells: pyarrow.Table, kinds: Any, kind: str) -> Iterator[Any]:
    from decimal import Decimal

    from mirror.query.leaves import json_of
    from mirror.store.cellform import BOOL, INT, NONFINITE, NULL, STRING

    for code, v, j in zip(kinds.tolist(), cells.column("v").to_pylist(), cells.column("j").to_pylist(), strict=True):
        if code == NULL:
            yield "null" if kind == "JSON" else None
        elif kind in ("BIGINT", "HUGEINT"):
            whole = int(j if j is not None else v)
            yield whole if kind == "BIGINT" else Decimal(whole)
        elif kind == "VARCHAR":
            yield _string(j) if code == STRING else None
        elif j is not None and code != NONFINITE:
            yield j
        else:
            yield json_of(int(v) if code == INT else bool(v) if code == BOOL else v)


def _string(j: str) -> str:
    from mirror.store.jsontext import parse_exactly, storable

    return storable(parse_exactly(j))


def _listed(column: pyarrow.Array) -> list[Any]:
    """The values as Python objects, NaN a value like any other."""
    import pyarrow as pa

    if column.null_count == 0 and not pa.types.is_string(column.type) and not pa.types.is_decimal(column.type):
        found: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return found
    values: list[Any] = column.to_pylist()
    return [int(v) if v is not None else None for v in values] if pa.types.is_decimal(column.type) else values
