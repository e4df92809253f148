"""Arrow tables as pandas data frames without losing a digit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow


def to_pandas(table: pyarrow.Table, types: Sequence[str], pandas: Any) -> Any:
    """A data frame. `types` are DuckDB's. Integer columns with nulls become pandas' Int64 (pandas' own choice,
    float64, changes integers beyond 2^53); HUGEINT becomes int64 where all values fit, Python integers elsewhere."""
    nullable = {}
    for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"):
        nullable[name.lower()] = getattr(pandas, f"{name}Dtype")()
    frame = table.to_pandas(types_mapper=lambda kind: nullable.get(str(kind)))
    for i, (field, kind) in enumerate(zip(table.schema, types, strict=True)):
        if str(field.type) in nullable and not table[i].null_count:
            frame.isetitem(i, frame.iloc[:, i].astype(str(field.type)))
        elif kind in ("HUGEINT", "UHUGEINT"):
            frame.isetitem(i, _integers(table[i].to_pylist(), pandas))
    return frame


def _integers(values: Sequence[Any], pandas: Any) -> Any:
    whole = [None if v is None else int(v) for v in values]
    if all(v is None or -(2**63) <= v < 2**63 for v in whole):
        return pandas.array(whole, dtype="Int64" if None in whole else "int64")
    return pandas.array(whole, dtype=object)
