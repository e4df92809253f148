"""Reading: one consistent state of the mirror as a DuckDB database in memory.

A reader needs nothing but snapshot.json, the files it lists and, if a server is taking runs in, the live tail.
It takes no lock and writes nothing, so it works without write permission and while others write.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import StoreError
from mirror.store import views
from mirror.store.layout import Layout
from mirror.store.snapshot import Snapshot

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_TRIES = 50


class Reader:
    """One state of the mirror at `root`, pinned until `refresh`. `StoreError` if it is no mirror."""

    def __init__(self, root: str | Path) -> None:
        self.layout = Layout(root)
        self._db: duckdb.DuckDBPyConnection | None = None
        self._load()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _load(self) -> None:
        # Live lines are deleted only after the snapshot that holds them in segments is out: if the snapshot
        # is still the same after the tail was read, the two fit together.
        for _ in range(_TRIES):
            content = self.layout.read_snapshot()
            mark, tail = self._tail(content)
            if self.layout.read_snapshot()["snapshot"] == content["snapshot"]:
                self.snapshot, self._mark, self._tail_tables = Snapshot(content), mark, tail
                return
        raise StoreError(f"`{self.layout.root}` changes faster than it can be read: try again")

    def refresh(self) -> bool:
        """Move to the newest state; True if there was something new. Connections made before stay as they are."""
        number = self.layout.read_snapshot()["snapshot"]
        if number == self.snapshot.id and self._live_mark() == self._mark:
            return False
        self.close()
        self._load()
        return True

    # -- files --------------------------------------------------------------------------------------------

    @property
    def files(self) -> list[str]:
        """Absolute paths of all live files: everything a query may read."""
        names = (f["path"] for t in self.snapshot.content["tables"].values() for f in t["files"])
        return [str(self.layout.root / name) for name in names]

    @property
    def tail(self) -> frozenset[str]:
        """Tables of which the live tail of a server holds rows: the schema `tail` of `database()`."""
        return frozenset(self._tail_tables)

    def relation(self, table: str, rid: int) -> str:
        """SQL of a FROM item with the rows of one run and all its versions, pruned to the files that hold the run."""
        held = self.snapshot.files(table, rid)
        body = f"select * from shape.{table}"
        if held:
            paths = [str(self.layout.root / f["path"]) for f in held]
            body = views.parquet(table, paths, [f["version"] for f in held]) + f" where rid = {int(rid)}"
        if table in self._tail_tables:
            body += f" union all select * from tail.{table} where rid = {int(rid)}"
        return f"({body})"

    # -- connections --------------------------------------------------------------------------------------

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A connection with the tables and views of schema/, in UTC. Connections share one database in memory."""
        if self._db is None:
            self._db = self.database()
        return self._db.cursor()

    def database(self) -> duckdb.DuckDBPyConnection:
        """A database of its own, for callers that change settings."""
        import duckdb

        db = duckdb.connect(":memory:")
        # Files never change, so their footers need not be read by every query: that is half of what a filter costs.
        db.execute("set global TimeZone = 'UTC'; set global parquet_metadata_cache = true")
        try:
            if self._tail_tables:
                db.execute("create schema tail")
                for name, rows in self._tail_tables.items():
                    db.register("rows_of_tail", rows)
                    db.execute(f"create table tail.{name} as select * from rows_of_tail")
                    db.unregister("rows_of_tail")
            views.create(db, self.snapshot.content, self.layout, extra=self._tail_tables, materialise=True)
        except duckdb.IOException as e:
            db.close()
            raise StoreError(
                f"a file of the mirror is missing or unreadable ({str(e).splitlines()[0]}): "
                f"run `mirror repair --mirror {self.layout.root}`"
            ) from e
        return db

    # -- the live tail of a server ------------------------------------------------------------------------

    def _live_mark(self) -> list[tuple[str, int]]:
        """Names and sizes of the live files: changes when a server takes something in."""
        found = []
        for folder in self._live_folders():
            for path in folder.iterdir():
                try:
                    found.append((str(path), path.stat().st_size))
                except FileNotFoundError:
                    continue
        return sorted(found)

    def _live_folders(self) -> list[Path]:
        try:
            return sorted(p for p in self.layout.live.iterdir() if p.name.isdigit())
        except FileNotFoundError:
            return []

    def _tail(self, content: dict[str, Any]) -> tuple[list[tuple[str, int]], dict[str, pa.Table]]:
        """What live runs add to the snapshot, as rows of its tables."""
        mark = self._live_mark()
        folders = self._live_folders()
        if not folders:
            return mark, {}
        from mirror.store.tail import tail_tables

        try:
            return mark, tail_tables(self.layout, content, folders)
        except FileNotFoundError:  # drained meanwhile: the snapshot has moved on, and the caller asks again
            return [], {}
