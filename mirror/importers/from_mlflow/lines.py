"""Points of an MLflow run as the rows a W&B server takes.

The mirror has a row for each point, in the order of their times. A chart over steps wants one row for a step with all
metrics of it: the k-th point of a key at a step goes into the k-th row of that step, rows follow in the order of steps
and then of k. W&B wants steps that ascend, so that rows get steps by the same rule as every run's (see
`mirror.importers.lines`), and say under STEP which they had. A row has the time of its first point; points of another
time are named under TIMES, a JSON text: {"key": seconds}. Nothing is merged or left out. Metrics of the system go into
the stream that W&B has for them (see `mirror.importers.from_mlflow.system`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mirror.importers.origin import CONFIG_KEY, STEP
from mirror.query.rows import generation
from mirror.query.sql import asking

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from mirror.store import Reader

TIMES = f"{CONFIG_KEY}/times"
PART = 100_000
"""Points in memory at once."""
OF_SYSTEM = "(key >= 'system/' and key < 'system0')"
"""A condition for the keys that begin with `system/`: `0` follows `/`."""
_LARGEST_STEP = 1 << 62


@dataclass(frozen=True)
class Points:
    """Points as cells: `relation` in what `ask` connects to, with the columns of a history, of which `gen` counts."""

    ask: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
    relation: str
    gen: int


def mirrored_points(reader: Reader, rid: int) -> Points:
    """All points of a mirrored run."""
    with asking(reader) as connection:
        gen = generation(connection, rid, "history")
    return Points(partial(asking, reader), reader.relation("history", rid), gen)


@dataclass(frozen=True)
class After:
    """What a copy holds already: so many rows, the last of them, with its step."""

    rows: int = 0
    last: str | None = None
    step: int = -1


@dataclass(frozen=True)
class _Part:
    """Some rows that follow each other: the first and last by (step, k), how many, and by how much a step in it is at
    most ahead of its row's number."""

    first: tuple[int, int]
    last: tuple[int, int]
    start: int
    rows: int
    lead: int
    shifted: int


class MlflowLines:
    """See `mirror.importers.lines.RunLines`; `rows` is how many lines there are, `began` the run's start in seconds
    since 1970, from which `_runtime` counts. With `after` the lines are those of a copy, of which the last one is
    known, and behind them those of `points`."""

    shortened = 0

    def __init__(self, points: Points, began: float | None, after: After | None = None) -> None:
        self._held = points
        self._began = began
        self._after = after or After()
        with points.ask() as connection:
            found = connection.execute(self._bounds(), [points.gen]).fetchall()
        self._parts = [_part(*row) for row in found]

    @property
    def rows(self) -> int:
        return self._after.rows + sum(part.rows for part in self._parts)

    def shifted(self, rows: int) -> int:
        return sum(part.shifted for part in self._parts)

    def parts(self, first_row: int) -> Iterator[list[str]]:
        from mirror.store.cells import rows_as_json

        if self._after.last is not None and first_row < self._after.rows:
            yield [self._after.last]
        ahead = self._ahead
        for part in self._parts:
            if part.start + part.rows > first_row:
                with self._held.ask() as connection:
                    cells = self._cells(connection, part, ahead)
                lines = list(rows_as_json(cells))
                yield lines[max(0, first_row - part.start) :]
            ahead = max(ahead, part.lead)

    @property
    def _ahead(self) -> int:
        """How far the step of the last row there is ahead of its number."""
        return max(0, self._after.step - self._after.rows + 1)

    # -- queries ------------------------------------------------------------------------------------------

    def _points(self, condition: str = "true") -> str:
        """Points as (row, step, key, kind, v, j, k)."""
        return (
            "select row, step, key, kind, v, j, row_number() over (partition by step, key order by row) - 1 as k "
            f"from {self._held.relation} "
            f"where gen = ? and key not in ('_step', '_timestamp') and not {OF_SYSTEM} and {condition}"
        )

    def _bounds(self) -> str:
        good = f"case when step between 0 and {_LARGEST_STEP} then step - line end"
        return (
            f"with lines as (select step, k, count(*) as n from ({self._points()}) group by step, k), "
            f"placed as (select *, row_number() over (order by step, k) - 1 + {self._after.rows} as line, "
            f"sum(n) over (order by step, k rows unbounded preceding) // {PART} as part from lines), "
            f"led as (select *, line + greatest({self._ahead}, "
            f"max({good}) over (order by line rows unbounded preceding)) as wanted from placed) "
            "select min({'step': step, 'k': k}), max({'step': step, 'k': k}), min(line), count(*), "
            f"coalesce(max({good}), 0), count(*) filter (where wanted is distinct from step) "
            "from led group by part order by part"
        )

    def _cells(self, connection: duckdb.DuckDBPyConnection, part: _Part, ahead: int) -> pa.Table:
        """The cells of the rows of a part, in any order."""
        import numpy as np
        import pyarrow as pa

        gen = self._held.gen
        span = "(step > ? or k >= ?) and (step < ? or k <= ?)"
        found = connection.sql(
            f"with p as ({self._points('step between ? and ?')}), "
            f"l as (select *, dense_rank() over (order by step, k) - 1 + ? as line from p where {span}) "
            "select l.line, l.step as had, l.key, l.kind, l.v, l.j, t.v as seconds "
            f"from l join {self._held.relation} t on t.row = l.row "
            "and t.gen = ? and t.key = '_timestamp' order by line, seconds, l.key",
            params=[gen, part.first[0], part.last[0], part.start, *part.first, *part.last, gen],
        ).to_arrow_table()
        line, at = found.column("line").to_numpy(), found.column("seconds").to_numpy()
        _, begins, index = np.unique(line, return_index=True, return_inverse=True)
        numbers = line[begins]
        had = found.column("had").to_numpy()[begins]
        good = (had >= 0) & (had <= _LARGEST_STEP)
        step = numbers + np.maximum.accumulate(np.maximum(np.where(good, had - numbers, 0), ahead))
        moved = step != had
        times = list(_texts(numbers, begins, index, at, found.column("key")))
        tables = [
            table(found.column("key").cast(pa.string()), line, step[index], found.column("kind").cast(pa.string()),
                  found.column("v"), found.column("j")),
            ints("_step", numbers, step, step),
            table("_timestamp", numbers, step, "number", at[begins], None),
            ints(STEP, numbers[moved], step[moved], had[moved]),
            table(TIMES, np.array([n for n, _ in times], np.int64), np.zeros(len(times), np.int64), "string", None,
                  [text for _, text in times]),
        ]  # fmt: skip
        if self._began is not None:
            tables.append(table("_runtime", numbers, step, "number", at[begins] - self._began, None))
        return pa.concat_tables(tables)


def _part(first: dict[str, int], last: dict[str, int], start: int, rows: int, lead: int, shifted: int) -> _Part:
    return _Part((first["step"], first["k"]), (last["step"], last["k"]), start, rows, lead, shifted)


def _texts(numbers: Any, begins: Any, index: Any, at: Any, keys: Any) -> Iterator[tuple[int, str]]:
    """(line, text for TIMES) of the rows whose points have not all the same time."""
    other = (at != at[begins][index]).nonzero()[0]
    held: dict[int, dict[str, float]] = {}
    for i in other.tolist():
        held.setdefault(int(numbers[index[i]]), {})[keys[i].as_py()] = float(at[i])
    for number, times in held.items():
        yield number, json.dumps(json.dumps(times))


def ints(key: str, line: Any, step: Any, value: Any) -> pa.Table:
    """Cells of one key whose values are integers of any size."""
    exact = abs(value) < 1 << 53
    texts = [None if fits else str(n) for n, fits in zip(value.tolist(), exact.tolist(), strict=True)]
    return table(key, line, step, "int", value.astype(float), texts, ~exact)


def table(key: Any, line: Any, step: Any, kind: Any, v: Any, j: Any, no_v: Any = None) -> pa.Table:
    """Cells as `rows_as_json` takes them; `key` and `kind` may be the same for all."""
    import numpy as np
    import pyarrow as pa

    n = len(line)
    return pa.table(
        {
            "key": pa.array([key] * n, pa.string()) if isinstance(key, str) else key,
            "path_id": pa.array(np.zeros(n, np.int64)),
            "row": pa.array(line, pa.int64()),
            "step": pa.array(step, pa.int64()),
            "kind": pa.array([kind] * n, pa.string()) if isinstance(kind, str) else kind,
            "v": pa.nulls(n, pa.float64()) if v is None else v if no_v is None and not isinstance(v, np.ndarray)
            else pa.array(v, pa.float64(), mask=no_v),
            "j": pa.nulls(n, pa.string()) if j is None else pa.array(j, pa.string()) if isinstance(j, list) else j,
        }
    )  # fmt: skip
