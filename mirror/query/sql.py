"""SQL over a mirror, in a sandbox: one reading statement, no files but the mirror's own, nothing to configure.

`execute` checks the statement (statement.py) and hands out a `Result`, which runs it when rows are asked for. Each
snapshot gets a database of its own in memory, locked before the first statement: external access is off but for
the live files, the configuration cannot be changed, Python's variables are no tables, every transaction is
read-only, and what does not fit into memory goes to a private folder that is removed afterwards.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from mirror.errors import QueryError, StoreError
from mirror.query.statement import check

if TYPE_CHECKING:
    import duckdb
    import polars
    import pyarrow

    from mirror.store import Reader
    from mirror.store.snapshot import Snapshot

Params: TypeAlias = "Sequence[Any] | Mapping[str, Any] | None"
Row: TypeAlias = tuple[Any, ...]

_ROWS = 4096
_ARROW_ROWS = 65_536


def execute(reader: Reader, sql: str, params: Params = None) -> Result:
    """Check one statement against the state the reader is pinned to. Rows come when they are asked for.

    `params` are bound, never pasted: a sequence for `?`, a mapping for `$name`. Raises QueryError, in one line
    with the position of a syntax error and near matches for unknown names.
    """
    return Result(sandbox(reader), sql, params)


class Result:
    """What a query gives: `columns`, `types` (DuckDB's names), and the rows in whichever form is asked for.

    Every form runs the query again, on the same state of the mirror. Iterating streams, with flat memory.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, sql: str, params: Params) -> None:
        self._db = db
        self._sql = sql
        self._params: Any = dict(params) if isinstance(params, Mapping) else list(params) if params else None
        with _explained(db, sql):
            check(db, sql)
            self.columns, self.types = self._described()

    def _described(self) -> tuple[list[str], list[str]]:
        cursor = self._cursor()
        if hasattr(cursor, "fetch_record_batch"):  # DuckDB 1: binding with parameters would run the query anyway
            described = cursor.execute(self._sql, self._params).description or []
            return [d[0] for d in described], [str(d[1]) for d in described]
        try:
            relation = cursor.sql(self._sql, params=self._params)
        except Exception:
            self._cursor().execute(self._sql, self._params)  # the same error, but with its position
            raise
        return list(relation.columns), [str(t) for t in relation.types]

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._db.cursor()
        cursor.execute("begin transaction read only")
        return cursor

    # -- rows -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Row]:
        """The rows as tuples, a few thousand in memory at a time."""
        with _explained(self._db, self._sql):
            cursor = self._cursor().execute(self._sql, self._params)
            while rows := cursor.fetchmany(_ROWS):
                yield from rows

    def fetchall(self) -> list[Row]:
        """All rows as tuples of Python values: exact integers of any size, Decimal, datetime (in UTC)."""
        return list(self)

    def fetchone(self) -> Row | None:
        """The first row, or None."""
        return next(iter(self), None)

    # -- frames ---------------------------------------------------------------------------------------------

    def batches(self, rows: int = _ARROW_ROWS) -> pyarrow.RecordBatchReader:
        """The rows as Arrow record batches of about `rows` rows, streamed."""
        with _explained(self._db, self._sql):
            cursor = self._cursor()
            if hasattr(cursor, "fetch_record_batch"):
                return cursor.execute(self._sql, self._params).fetch_record_batch(rows)
            return cursor.sql(self._sql, params=self._params).to_arrow_reader(rows)

    def arrow(self) -> pyarrow.Table:
        """An Arrow table. HUGEINT (what sum() of integers gives) comes as DECIMAL(38, 0), exact."""
        with _explained(self._db, self._sql):
            return self.batches().read_all()

    def pl(self) -> polars.DataFrame:
        """A polars data frame (`pip install 'wandb-mirror[polars]'`)."""
        polars = _imported("polars")
        return polars.from_arrow(self.arrow())  # type: ignore[no-any-return]

    def df(self) -> Any:
        """A pandas data frame (`pip install 'wandb-mirror[pandas]'`).

        Integers stay exact: columns with nulls become pandas' Int64, HUGEINT becomes int64 where all values fit and
        Python integers where not."""
        pandas = _imported("pandas")
        table = self.arrow()
        nullable = {
            name: pandas.array([], dtype=f"{'U' if 'u' in str(kind) else ''}Int{kind.bit_width}").dtype
            for name, kind in ((str(f.type), f.type) for f in table.schema)
            if name in _INTEGERS
        }
        with_nulls = {f.type for i, f in enumerate(table.schema) if str(f.type) in _INTEGERS and table[i].null_count}
        frame = table.to_pandas(types_mapper=lambda kind: nullable[str(kind)] if kind in with_nulls else None)
        for i, kind in enumerate(self.types):
            if kind in ("HUGEINT", "UHUGEINT"):
                frame.isetitem(i, _integers(frame.iloc[:, i], pandas))
        return frame

    # -- looking --------------------------------------------------------------------------------------------

    @cached_property
    def _head(self) -> list[Row]:
        rows = iter(self)
        return [row for row, _ in zip(rows, range(_SHOWN + 1), strict=False)]

    def __repr__(self) -> str:
        from mirror.query.text import aligned

        more = "\n..." if len(self._head) > _SHOWN else ""
        return "\n".join(aligned(self.columns, self.types, self._head[:_SHOWN])) + more

    def _repr_html_(self) -> str:
        from html import escape

        from mirror.query.text import cell

        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell(v))}</td>' for v in row)}</tr>" for row in self._head[:_SHOWN])
        more = f"<p>the first {_SHOWN} rows</p>" if len(self._head) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


_SHOWN = 20
_INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def _integers(series: Any, pandas: Any) -> Any:
    whole = [None if v is None else int(v) for v in series]
    if all(v is None or -(2**63) <= v < 2**63 for v in whole):
        return pandas.array(whole, dtype="Int64") if None in whole else pandas.array(whole, dtype="int64")
    return pandas.Series(whole, dtype=object, index=series.index)


def _imported(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise QueryError(f"{name} is not installed: pip install 'wandb-mirror[{name}]', or use .arrow()") from None


# -- the sandbox --------------------------------------------------------------------------------------------

_sandboxes: weakref.WeakKeyDictionary[Snapshot, duckdb.DuckDBPyConnection] = weakref.WeakKeyDictionary()


def sandbox(reader: Reader) -> duckdb.DuckDBPyConnection:
    """The locked database for the state the reader is pinned to; made once a state."""
    found = _sandboxes.get(reader.snapshot)
    if found is None:
        found = _sandboxes[reader.snapshot] = _locked(reader.database(), reader.files)
    return found


def _locked(db: duckdb.DuckDBPyConnection, files: Sequence[str]) -> duckdb.DuckDBPyConnection:
    spill = tempfile.mkdtemp(prefix="mirror-sql-")
    weakref.finalize(db, shutil.rmtree, spill, ignore_errors=True)
    allowed = ", ".join(_literal(path) for path in files)
    for setting in (
        f"temp_directory = {_literal(spill)}",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "errors_as_json = true",
        f"allowed_paths = [{allowed}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        db.execute(f"set global {setting}")
    return db


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def _explained(db: duckdb.DuckDBPyConnection, sql: str) -> Iterator[None]:
    """Turn DuckDB's exceptions into QueryErrors of one line."""
    import duckdb

    from mirror.query.complaint import complaint

    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.IOException as e:
        raise StoreError(f"{complaint(e, sql, db)}; if it stays, `mirror repair` looks for damage") from e
    except duckdb.Error as e:
        raise QueryError(complaint(e, sql, db)) from e
