"""The shape of every Parquet table, read from `schema/tables.sql`."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from mirror.resources import text

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 3
"""What this release writes. Older stores are upgraded by their next writer, newer ones are refused."""

COLUMNS_SINCE: dict[str, int] = {"files": 2, "sync_log": 2, "runs": 3, "projects": 3}
"""Table -> schema version that last gave it a column: files of an older one lack some."""

CELL_TABLES = ("history", "system_metrics")
ITEM_TABLES = ("sweeps", "artifact_collections", "artifacts", "reports")
"""Tables of things that are numbered like runs and have one row per version."""
STREAM_TABLE = {"history": "history", "system": "system_metrics", "files": "files", "logs": "logs"}
"""Which table holds the rows of a stream."""

_TABLE = re.compile(r"create table (\w+) \((.*?)^\);", re.S | re.M)
_COLUMN = re.compile(r'^ {2}"?(\w+)"?\s+([\w\[\]]+)( not null)?,?\s*--', re.M)


@cache
def columns() -> dict[str, list[tuple[str, str, bool]]]:
    """Table name -> (column, SQL type, nullable), in the order of the file.

    >>> columns()["config"][0]
    ('rid', 'bigint', False)
    """
    return {
        name: [(column, kind, not rest) for column, kind, rest in _COLUMN.findall(body)]
        for name, body in _TABLE.findall(text("schema", "tables.sql"))
    }


@cache
def tables() -> dict[str, pa.Schema]:
    """Table name -> Arrow schema."""
    import pyarrow as pa  # costs 0.2 s, which a query need not pay

    types = {
        "bigint": pa.int64(),
        "integer": pa.int32(),
        "double": pa.float64(),
        "boolean": pa.bool_(),
        "varchar": pa.string(),
        "varchar[]": pa.list_(pa.string()),
        "timestamptz": pa.timestamp("us", tz="UTC"),
    }
    return {
        table: pa.schema([pa.field(name, types[kind], nullable=nullable) for name, kind, nullable in found])
        for table, found in columns().items()
    }


def coded(schema: pa.Schema) -> pa.Schema:
    """The schema of cells with dictionaries in the place of texts: keys and kinds, and often values, repeat."""
    import pyarrow as pa

    dictionary = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([f.with_type(dictionary) if pa.types.is_string(f.type) else f for f in schema])


def fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of a segment under these columns: those that an older release did not write yet are null."""
    import pyarrow as pa

    for missing in set(schema.names) - set(rows.column_names):
        rows = rows.append_column(missing, pa.nulls(rows.num_rows, schema.field(missing).type))
    return rows.select(schema.names).cast(schema)


@cache
def ddl() -> str:
    """`tables.sql` as it stands: run in an empty schema it makes every table."""
    return text("schema", "tables.sql")
