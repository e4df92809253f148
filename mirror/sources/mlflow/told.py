"""What rows at W&B tell of the points they were made of, and which points of a run they do not tell of."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.sources.mlflow.system import THERE, mlflow_key

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_TABLES = """
set threads = 2; set memory_limit = '1GB';
create table here (row bigint, step bigint, key varchar, kind varchar, v double, j varchar, gen int);
create table there (stream varchar, step bigint, ms bigint, key varchar, value double)
"""
_POINTS = """
insert into there
with t as (select row, round(v * 1000)::bigint as ms from cells where key = '_timestamp'),
  had as (select row, coalesce(v::bigint, j::bigint) as step from cells where key = $step),
  other as (select row, unnest(map_entries(json_extract_string(j, '$')::json::map(varchar, double))) as one
    from cells where key = $times)
select $stream, coalesce(had.step, c.step), coalesce(round(o.one.value * 1000)::bigint, t.ms), c.key,
  case when c.kind in ('number', 'int', 'nonfinite') then coalesce(c.v, try_cast(c.j as double)) end
from cells c left join t using (row) left join had using (row)
  left join other o on o.row = c.row and o.one.key = c.key
where c.kind <> 'empty' and c.key not in ('_step', '_timestamp', '_runtime', '_wandb', $step, $times)
"""
_NUMBERED = "row_number() over (partition by step, ms, key, value order by {})"
_MISSING = f"""
create table h as select *, {_NUMBERED.format("row")} as nth from (
  select p.row, p.step, round(t.v * 1000)::bigint as ms, p.key, p.v as value from here p
  join here t on t.row = p.row and t.key = '_timestamp' where p.key <> '_timestamp');
create table t as select step, ms, key, value, {_NUMBERED.format("1")} as nth from there;
create table missing as select * from here semi join (
  select row from h anti join t using (step, ms, key, value, nth)) using (row)
"""


class PointsTold:
    """Points of a run (`here`) beside those of a copy (`there`), on disk. Points are a time in milliseconds, a step, a
    key and a value; the same one may be there twice. `prefix` is where the keys begin under which an import says what
    a row was: `<prefix>/step`, `<prefix>/times`."""

    MISSING = "missing"
    """The table of the cells of points that the copy lacks, once `compare` has looked; columns as in a history."""

    def __init__(self, prefix: str) -> None:
        import duckdb

        self._prefix = prefix
        folder = tempfile.mkdtemp(prefix="mirror-points-")
        self._db = duckdb.connect(str(Path(folder, "points.db")))
        self._db.execute(_TABLES)
        weakref.finalize(self, _remove, self._db, folder)

    @contextmanager
    def ask(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the tables."""
        with self._db.cursor() as cursor:
            yield cursor

    def here(self, cells: pa.Table) -> None:
        """Cells of rows of the mirror, each of which is a point."""
        self._insert(cells, "insert into here select row, step, key, kind, v, j, 0 from cells where key <> '_step'")

    def there(self, cells: pa.Table, stream: str) -> None:
        """Whole rows of a stream of the copy as cells, numbered from 0."""
        import pyarrow as pa

        keys = cells.column("key").combine_chunks()
        if stream == "system":
            names = [mlflow_key(key) if key.startswith(THERE) else key for key in keys.dictionary.to_pylist()]
            keys = pa.array(names, pa.string()).take(keys.indices)
        cells = cells.set_column(cells.schema.get_field_index("key"), "key", keys.cast(pa.string()))
        self._insert(
            cells, _POINTS, {"stream": stream, "step": f"{self._prefix}/step", "times": f"{self._prefix}/times"}
        )

    def forget(self, stream: str) -> None:
        """What came of a stream comes once more."""
        self._db.execute("delete from there where stream = ?", [stream])

    def compare(self) -> tuple[int, int]:
        """How many points the copy lacks, and how many it has that are not here."""
        self._db.execute(_MISSING)
        found = self._db.execute(
            "select (select count(*) from missing where key <> '_timestamp'), "
            "(select count(*) from t anti join h using (step, ms, key, value, nth))"
        ).fetchone()
        assert found is not None
        return found[0], found[1]

    def _insert(self, cells: pa.Table, statement: str, params: dict[str, str] | None = None) -> None:
        names = ["row", "step", "key", "kind", "v", "j"]
        self._db.register("cells", cells.select(names))
        self._db.execute(statement, params)
        self._db.unregister("cells")


def _remove(db: duckdb.DuckDBPyConnection, folder: str) -> None:
    db.close()
    shutil.rmtree(folder, ignore_errors=True)
