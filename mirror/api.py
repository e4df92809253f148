"""`mirror.open`: a mirror from Python, for asking and for writing records of a source of your own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from mirror.errors import UsageError
from mirror.records import Fetched, FileEntry, Project, Run, RunKey, Stream
from mirror.store.layout import default_root

if TYPE_CHECKING:
    from mirror.query.sql import Result
    from mirror.store import Reader, Writer

Row: TypeAlias = "str | Mapping[str, Any]"


class Mirror:
    """A mirror that is open. Made by `mirror.open`; close it, or use it as a context manager."""

    def __init__(self, root: str | Path, *, write: bool = False) -> None:
        self.root = Path(root)
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        if write:
            from mirror.store import Writer

            self._writer = Writer(root)
        else:
            from mirror.store import Reader

            self._reader = Reader(root)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None and self._writer is not None:
                self._writer.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the mirror. What was put but not committed is dropped."""
        if self._writer is not None:
            self._writer.close()
        if self._reader is not None:
            self._reader.close()

    # -- asking -------------------------------------------------------------------------------------------

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> Result:
        """Run one SELECT over the tables and views of docs/data-model.md and the wide views of docs/sql.md.

        The result has `.df()`, `.pl()`, `.arrow()`, `.fetchall()`, as DuckDB's has. `QueryError` if the statement
        is wrong or wants to do more than read the mirror.
        """
        from mirror.query.sql import execute

        return execute(self._newest(), query, params)

    def create_wide(
        self,
        project: str,
        keys: Sequence[str] | None = None,
        to: str | Path = "wide.parquet",
        *,
        source: str | None = None,
    ) -> Path:
        """Write the history of `project` (entity/project) to a file with a column per key: a row per logged row, in
        order of run and row, with the columns and types of `history_wide`.

        `to` ends in .parquet, or in .duckdb for a database with the table `history_wide`; it is written whole or not
        at all, and lies outside the mirror. Without `keys` all keys of the project are columns, at most 200. A copy:
        later syncs do not change it.
        """
        from mirror.query.wide.table import create_wide

        return create_wide(self._newest(), project, keys, to, source=source)

    def _newest(self) -> Reader:
        """A reader of the newest state, what was put but not committed included."""
        if self._writer is not None:
            self._writer.commit()
        if self._reader is None:
            from mirror.store import Reader

            self._reader = Reader(self.root)
        else:
            self._reader.refresh()
        return self._reader

    # -- writing ------------------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """The writer underneath, for sources that need generations, leases and quarantine."""
        if self._writer is None:
            raise UsageError("this mirror is open for reading: open it with `mirror.open(root, write=True)`")
        return self._writer

    def put_projects(self, projects: Iterable[Project]) -> None:
        """Record projects."""
        for project in projects:
            self.writer.put_project(project)

    def put_runs(self, runs: Iterable[Run]) -> None:
        """Record runs: attributes, config and summary. A run is known by `key.source` and `key.storage_id`; put
        again, it gets a new version if anything differs."""
        for run in runs:
            self.writer.put_run(run)

    def put_history(self, run: Run | RunKey, rows: Iterable[Row], *, complete: bool = True) -> None:
        """Append logged rows, in logged order, to a run that was put before.

        A row is a dictionary or the JSON text of one; `_step`, `_timestamp` (seconds since 1970) and `_runtime`
        (seconds) are its usual keys, none is required, and steps may repeat. `complete=False` says that
        more is to come.
        """
        self._put(run, "history", rows, complete)

    def put_system_metrics(self, run: Run | RunKey, rows: Iterable[Row], *, complete: bool = True) -> None:
        """Append samples of system metrics, likewise."""
        self._put(run, "system", rows, complete)

    def put_files(self, run: Run | RunKey, files: Sequence[FileEntry]) -> None:
        """Replace a run's file manifest."""
        self.writer.put_files(_key(run), files)

    def commit(self) -> None:
        """Make everything put so far visible to readers; leaving the `with` block does it too."""
        self.writer.commit()

    def _put(self, run: Run | RunKey, stream: Stream, rows: Iterable[Row], complete: bool) -> None:
        import json
        from itertools import islice

        key = _key(run)
        texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        while part := list(islice(texts, 10_000)):
            self.writer.append(key, stream, part)
        held = self.writer.state(key, stream).rows
        self.writer.publish(
            key, stream, Fetched(stream, "api", got=held, total=held if complete else None, complete=complete)
        )


def _key(run: Run | RunKey) -> RunKey:
    return run.key if isinstance(run, Run) else run


def open(root: str | Path | None = None, *, write: bool = False) -> Mirror:
    """Open the mirror at `root` (default: `MIRROR_ROOT`, then `./wandb-mirror`).

    With `write=True` it is made if it does not exist, and takes records in:

    >>> key = RunKey("lab", "1", "me", "digits", "run1")
    >>> with open("/tmp/m", write=True) as m:                                    # doctest: +SKIP
    ...     m.put_runs([Run(key, name="first", state="finished", config='{"lr": {"value": 0.1}}')])
    ...     m.put_history(key, [{"_step": 0, "loss": 0.5}, {"_step": 1, "loss": 0.25}])
    """
    return Mirror(root if root is not None else default_root(), write=write)
