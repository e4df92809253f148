"""Rows that Python makes, for every output format: a `Rows` of mirror/query/export.py that streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_ROWS = 4096


@dataclass
class Table:
    """`columns`, their DuckDB `types`, and the rows, made anew each time they are asked for."""

    columns: list[str]
    types: list[str]
    make: Callable[[], Iterable[Sequence[Any]]]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return map(tuple, self.make())

    def batches(self, rows: int = _ROWS) -> pyarrow.RecordBatchReader:
        import pyarrow as pa

        kinds = [arrow_type(kind) for kind in self.types]
        schema = pa.schema(list(zip(self.columns, kinds, strict=True)))

        def made() -> Iterator[pyarrow.RecordBatch]:
            waiting = iter(self)
            while part := list(islice(waiting, rows)):
                columns = zip(zip(*part, strict=True), kinds, strict=True)
                yield pa.RecordBatch.from_arrays([_array(values, kind) for values, kind in columns], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, made())


def arrow_type(kind: str) -> pyarrow.DataType:
    """What Arrow calls a DuckDB type."""
    import pyarrow as pa

    if kind.endswith("[]"):
        return pa.list_(arrow_type(kind.removesuffix("[]")))
    return {
        "BIGINT": pa.int64(),
        "HUGEINT": pa.decimal128(38, 0),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    }.get(kind, pa.string())


def _array(values: Sequence[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    if pa.types.is_decimal(kind):
        values = [None if v is None else Decimal(v) for v in values]
    return pa.array(values, kind)
