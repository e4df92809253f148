"""Tables and views over the live files: the same for a reader's connection and for `mirror.duckdb`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mirror.resources import text
from mirror.store.disk import explained, sync_folder
from mirror.store.layout import Layout
from mirror.store.schema import COLUMNS_SINCE, ITEM_TABLES, columns, ddl

if TYPE_CHECKING:
    import duckdb

_LIVE = {
    "config": "config_gen",
    "summary": "summary_gen",
    "metric": "metric_gen",
    "history": "history_gen",
    "system_metrics": "system_gen",
    "files": "files_gen",
    "logs": "logs_gen",
}
_HIGHEST = ("runs", *ITEM_TABLES)
"""Tables whose live rows are those of the highest gen of each rid."""


def quoted(name: str) -> str:
    """The one quoter of identifiers."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """The one quoter of strings."""
    return "'" + value.replace("'", "''") + "'"


def parquet(table: str, paths: Sequence[str], versions: Iterable[int] = ()) -> str:
    """A select over files of one table, with NULL for columns that older files do not have yet."""
    older = any(v < COLUMNS_SINCE.get(table, 1) for v in versions)
    names = ", ".join(quoted(name) for name, _, _ in columns()[table])
    files = ", ".join(literal(p) for p in paths)
    if not older:
        return f"select {names} from read_parquet([{files}], hive_partitioning = false)"
    # An empty first member of the union gives every column its place and type.
    return (
        f"select {names} from (select * from shape.{table} union all by name "
        f"select * from read_parquet([{files}], union_by_name = true, hive_partitioning = false))"
    )


def create(
    db: duckdb.DuckDBPyConnection,
    snapshot: Mapping[str, Any],
    layout: Layout,
    *,
    extra: Iterable[str] = (),
    materialise: bool,
) -> None:
    """Make `raw.*`, `raw.*_live` and the user's views in an empty database.

    `extra` names tables of which a schema `tail` holds further rows (the live tail of a server), which may
    replace versions in the files. `materialise` keeps raw.live as a table (and raw.old_runs, the run versions that it
    leaves out), which makes joins cheaper.
    """
    db.execute("create schema raw; create schema shape; use shape; " + ddl() + "; use main")
    extra = set(extra)
    for name in columns():
        entry = snapshot["tables"].get(name, {"superseded": False, "files": []})
        body = f"select * from shape.{name}"
        if entry["files"]:
            body = parquet(
                name,
                [str(layout.root / f["path"]) for f in entry["files"]],
                [f["version"] for f in entry["files"]],
            )
        if name in extra:
            body += f" union all select * from tail.{name}"
        db.execute(f"create view raw.{name} as {body}")
    for name in _HIGHEST:
        held = snapshot["tables"].get(name, {"superseded": False})
        shown = " where r.merged_into is null" if name == "runs" else ""
        db.execute(
            f"create view raw.{name}_live as select * from raw.{name}"
            if not held["superseded"] and name not in extra
            else f"create view raw.{name}_live as select r.* from raw.{name} r semi join "
            f"(select rid, max(gen) as gen from raw.{name} group by rid) m on m.rid = r.rid and m.gen = r.gen{shown}"
        )
    script = text("schema", "views.sql")
    db.execute(script.replace("create view raw.live", "create table raw.live") if materialise else script)
    if materialise and (snapshot["tables"].get("runs", {}).get("superseded") or "runs" in extra):
        # Leaving out the few old versions is cheaper than looking for the highest gen of every run in every query.
        db.execute(
            "create table raw.old_runs as select rid, gen from raw.runs anti join raw.live using (rid, gen); "
            "create or replace view raw.runs_live as select r.* from raw.runs r anti join raw.old_runs o "
            "on o.rid = r.rid and o.gen = r.gen"
        )
    for name in _LIVE:
        superseded = snapshot["tables"].get(name, {"superseded": False})["superseded"]
        db.execute(
            f"create view raw.{name}_live as {live(name, f'raw.{name}', all=not superseded and name not in extra)}"
        )


def live(table: str, rows: str, *, all: bool) -> str:
    """A select of the live ones among rows (a FROM item) of a table; `all` says that they are live anyway."""
    gen = _LIVE[table]
    found = f"select * from {rows}"
    return found if all else f"select t.* from {rows} t semi join raw.live l on l.rid = t.rid and l.{gen} = t.gen"


def write_database(layout: Layout, snapshot: Mapping[str, Any]) -> None:
    """Replace ROOT/mirror.duckdb: views only, for any DuckDB client from 1.5 on.

    It names files by absolute path, because a client resolves relative ones against its own folder; the next
    commit or `mirror repair` writes it anew for a root that was moved.
    """
    import duckdb

    tmp = layout.database.with_name("mirror.duckdb.tmp")
    with explained("writing mirror.duckdb"):
        tmp.unlink(missing_ok=True)
        try:
            with duckdb.connect() as db:
                db.execute(f"attach {literal(str(tmp))} as mirror (storage_version 'v1.5.0'); use mirror")
                create(db, snapshot, layout, materialise=False)
                db.execute("use memory; detach mirror")
        except duckdb.Error as e:
            for left in (tmp, tmp.with_name(f"{tmp.name}.wal")):
                left.unlink(missing_ok=True)
            # DuckDB tells the system's reason in its text alone.
            if any(reason in str(e) for reason in ("No space left", "File too large", "quota exceeded")):
                raise OSError(errno.ENOSPC, str(e), str(tmp)) from e
            raise
        fd = os.open(tmp, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        tmp.replace(layout.database)
        sync_folder(layout.root)
