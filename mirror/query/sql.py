"""SQL over a mirror, in a sandbox: one reading statement, no files but the mirror's own, nothing to configure.

`execute` checks the statement (statement.py) and hands out a `Result`, which runs it when rows are asked for. Each
snapshot gets a database of its own in memory, locked before the first statement: external access is off but for
the live files, the configuration cannot be changed, Python's variables are no tables, every transaction is
read-only, and what does not fit into memory goes to a private folder that is removed afterwards.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from hashlib import md5
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mirror.errors import QueryError, StoreError
from mirror.query.statement import check
from mirror.query.tablenames import name_tables
from mirror.query.wide import Statement, rewritten
from mirror.store.snapshot import holds
from mirror.store.views import literal, live, parquet, quoted

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


def dicts(found: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """All rows of what was asked, by the names of their columns."""
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


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

    def __init__(self, sandbox: Sandbox, sql: str, params: Params = None) -> None:
        self._sandbox = sandbox
        self._params: Any = dict(params) if isinstance(params, Mapping) else list(params) if params else None
        self._statement = Statement(sql, sql)
        with self._explained():
            bundle = check(sandbox.cursor(), sql)
            self._statement, self._params = rewritten(sandbox, sql, self._params)
            name_tables(sandbox, sql)
        self._sql = self._statement.text
        with self._explained():
            if self._sql != sql:
                check(sandbox.cursor(), self._sql)
            self._cursor = sandbox.writing_cursor if bundle and _duckdb_1() else sandbox.cursor
            self.columns, self.types = self._described()

    @property
    def sql(self) -> str:
        """The statement that runs: with wide views replaced by what they stand for."""
        return self._sql

    def _explained(self) -> AbstractContextManager[None]:
        return self._sandbox.explained(self._statement)

    def _described(self) -> tuple[list[str], list[str]]:
        cursor = self._cursor()
        if _duckdb_1():  # binding with parameters would run the query anyway
            described = cursor.execute(self._sql, self._params).description or []
            return [d[0] for d in described], [str(d[1]) for d in described]
        try:
            relation = cursor.sql(self._sql, params=self._params)
        except Exception:
            self._cursor().execute(self._sql, self._params)  # the same error, but with its position
            raise
        return list(relation.columns), [str(t) for t in relation.types]

    # -- rows -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Row]:
        """The rows as tuples, a few thousand in memory at a time."""
        with self._explained():
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
        import pyarrow

        with self._explained():
            cursor = self._cursor()
            if _duckdb_1():
                found = cursor.execute(self._sql, self._params).to_arrow_reader(rows)
            else:
                found = cursor.sql(self._sql, params=self._params).to_arrow_reader(rows)

        def explained() -> Iterator[pyarrow.RecordBatch]:
            with self._explained():
                yield from found

        return pyarrow.RecordBatchReader.from_batches(found.schema, explained())

    def arrow(self) -> pyarrow.Table:
        """An Arrow table. HUGEINT (what sum() of integers gives) comes as DECIMAL(38, 0), exact."""
        return self.batches().read_all()

    def pl(self) -> polars.DataFrame:
        """A polars data frame (`pip install 'wandb-mirror[polars]'`)."""
        polars = _imported("polars")
        return polars.from_arrow(self.arrow())  # type: ignore[no-any-return]

    def df(self) -> Any:
        """A pandas data frame (`pip install 'wandb-mirror[pandas]'`); frames.py says how integers stay exact."""
        from mirror.query.frames import to_pandas

        return to_pandas(self.arrow(), self.types, _imported("pandas"))

    # -- looking --------------------------------------------------------------------------------------------

    @cached_property
    def _head(self) -> list[Row]:
        return list(islice(self, _SHOWN + 1))

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


def _duckdb_1() -> bool:
    import duckdb

    return str(duckdb.__version__).startswith("1.")


def _imported(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise QueryError(f"{name} is not installed: pip install 'wandb-mirror[{name}]', or use .arrow()") from None


# -- the sandbox --------------------------------------------------------------------------------------------


class Sandbox:
    """A locked database in memory over one state of a mirror. Connections to it may be used side by side."""

    def __init__(self, reader: Reader) -> None:
        self._db = reader.database()
        self._files = reader.files
        self._root = reader.layout.root
        self._tables = reader.snapshot.content["tables"]
        self._tail = reader.tail
        self._parts: set[str] = set()
        self._named: dict[str, str] = {}
        self._lock = threading.Lock()
        self.layout = reader.layout
        spill = tempfile.mkdtemp(prefix="mirror-sql-")
        self.private_tables = Path(spill) / "tables"
        weakref.finalize(self, shutil.rmtree, spill, ignore_errors=True)
        allowed = ", ".join(literal(path) for path in self._files)
        folders = ", ".join(literal(str(path)) for path in (self.layout.tables, self.private_tables))
        for setting in (
            f"temp_directory = {literal(spill)}",
            "python_enable_replacements = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "errors_as_json = true",
            f"allowed_paths = [{allowed}]",
            f"allowed_directories = [{folders}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            self._db.execute(f"set global {setting}")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection in a read-only transaction."""
        with self._lock:
            cursor = self._db.cursor()
        cursor.execute("begin transaction read only")
        return cursor

    def part(self, table: str, rids: Sequence[int]) -> str:
        """A view with the live rows of a table that reads only the files which hold some of the runs."""
        entry = self._tables.get(table, {"files": ()})
        files = [file for file in entry["files"] if any(holds(file["rids"], rid) for rid in rids)]
        if 2 * len(files) > len(entry["files"]) or not files:
            return f"raw.{table}_live"
        paths = [str(self._root / file["path"]) for file in files]
        name = f"part.{table}_{md5(''.join(paths).encode(), usedforsecurity=False).hexdigest()}"
        body = parquet(table, paths, [file["version"] for file in files])
        if table in self._tail:
            body += f" union all select * from tail.{table}"
        rows = live(table, f"({body})", all=not entry["superseded"] and table not in self._tail)
        with self._lock:
            if name not in self._parts:
                self._db.execute(f"create schema if not exists part; create view {name} as {rows}")
                self._parts.add(name)
        return name

    def name(self, text: str, body: str) -> None:
        """Make a view of that name. DuckDB does not tell names apart that differ in case only, so two of them are one
        too many: QueryError."""
        with self._lock:
            other = self._named.setdefault(text.lower(), text)
            if other != text:
                raise QueryError(f'`{text}` and `{other}` differ in case only: write them as "table:<sha256>"')
            self._db.execute(f"create or replace view {quoted(text)} as {body}")

    def writing_cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection that may make temporary types, which PIVOT needs before DuckDB 2.0."""
        with self._lock:
            return self._db.cursor()

    @contextmanager
    def explained(self, statement: Statement | None) -> Iterator[None]:
        """Turn DuckDB's exceptions (pyarrow's too, when it reads for DuckDB) into ours, of one line, which points into
        the statement (None: one that the user never saw)."""
        import duckdb

        try:
            yield
        except duckdb.InterruptException:
            raise KeyboardInterrupt from None
        except (duckdb.Error, OSError) as e:
            from mirror.query.complaint import complaint

            lost = next((path for path in self._files if path in str(e) and not Path(path).exists()), None)
            if lost is not None:
                raise StoreError(f"`{lost}` is gone: ask again, or run `mirror repair` if it stays so") from e
            raise QueryError(complaint(e, statement, self.cursor())) from e


_sandboxes: weakref.WeakKeyDictionary[Snapshot, Sandbox] = weakref.WeakKeyDictionary()


def sandbox(reader: Reader) -> Sandbox:
    """The sandbox for the state the reader is pinned to; made once a state."""
    found = _sandboxes.get(reader.snapshot)
    if found is None:
        found = _sandboxes[reader.snapshot] = Sandbox(reader)
    return found


@contextmanager
def asking(reader: Reader) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for statements of our own, whose errors are explained; closed afterwards."""
    held = sandbox(reader)
    connection = held.cursor()
    try:
        with held.explained(None):
            yield connection
    finally:
        connection.close()
