"""Metrics that MLflow's monitor logged of the machine, as rows of system metrics at W&B.

A row has the metrics of one sample: those of one time and step; the k-th point of a key goes into the k-th row. Rows
follow in the order of time; each says under STEP which step its points had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mirror.importers.from_mlflow.lines import OF_SYSTEM, PART, Points, ints, table
from mirror.importers.origin import STEP
from mirror.sources.mlflow.system import wandb_key

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class MlflowSystemLines:
    """See `mirror.importers.from_mlflow.lines.MlflowLines`; `after` is how many rows a copy holds already."""

    shortened = 0

    def __init__(self, points: Points, began: float | None, after: int = 0) -> None:
        self._held = points
        self._began = began
        with points.ask() as connection:
            found = connection.execute(self._bounds(), [points.gen, points.gen]).fetchall()
        self._parts: list[tuple[int, int, int, int]] = []
        for first, last, rows in found:
            self._parts.append((first, last, after, rows))
            after += rows
        self.rows = after

    def shifted(self, rows: int) -> int:
        return 0

    def parts(self, first_row: int) -> Iterator[list[str]]:
        from mirror.store.cells import rows_as_json

        for first, last, start, rows in self._parts:
            if start + rows > first_row:
                with self._held.ask() as connection:
                    cells = self._cells(connection, first, last, start)
                yield list(rows_as_json(cells))[max(0, first_row - start) :]

    def _points(self, condition: str = "true") -> str:
        """Points as (row, step, key, kind, v, j, seconds, k). Those of a sample follow each other in the mirror."""
        held = self._held.relation
        return (
            "select p.*, t.v as seconds, row_number() over (partition by t.v, p.step, p.key order by p.row) - 1 as k "
            f"from (select row, step, key, kind, v, j from {held} where gen = ? and {OF_SYSTEM} and {condition}) p "
            f"join {held} t on t.row = p.row and t.gen = ? and t.key = '_timestamp'"
        )

    def _bounds(self) -> str:
        """Parts that hold whole samples: first and last point, how many rows."""
        return (
            "with samples as (select min(row) as first, max(row) as last, count(*) as n, max(k) + 1 as rows "
            f"from ({self._points()}) group by seconds, step), "
            "placed as (select *, sum(n) over (order by first rows unbounded preceding) // "
            f"{PART} as part from samples) "
            "select min(first), max(last), sum(rows)::bigint from placed group by part order by part"
        )

    def _cells(self, connection: duckdb.DuckDBPyConnection, first: int, last: int, start: int) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        gen = self._held.gen
        found = connection.sql(
            "select dense_rank() over (order by seconds, step, k) - 1 + ? as line, step, key, kind, v, j, seconds "
            f"from ({self._points('row between ? and ?')}) order by line, key",
            params=[start, gen, first, last, gen],
        ).to_arrow_table()
        line = found.column("line").to_numpy()
        numbers, begins = np.unique(line, return_index=True)
        keys = found.column("key").cast(pa.string()).combine_chunks().dictionary_encode()
        names = pa.array([wandb_key(key) for key in keys.dictionary.to_pylist()], pa.string()).take(keys.indices)
        at, no_step = found.column("seconds").to_numpy()[begins], np.zeros(len(numbers), np.int64)
        tables = [
            table(names, line, np.zeros(len(line), np.int64), found.column("kind").cast(pa.string()),
                  found.column("v"), found.column("j")),
            table("_timestamp", numbers, no_step, "number", at, None),
            table("_wandb", numbers, no_step, "bool", np.ones(len(numbers)), None),
            ints(STEP, numbers, no_step, found.column("step").to_numpy()[begins]),
        ]  # fmt: skip
        if self._began is not None:
            tables.append(table("_runtime", numbers, no_step, "number", at - self._began, None))
        return pa.concat_tables(tables)
