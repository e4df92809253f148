"""`Runs`: many runs, read some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, overload

from mirror.objects.attrs import ArgumentError
from mirror.objects.held import Held, Record, select
from mirror.objects.run import Run

if TYPE_CHECKING:
    from mirror.query.sql import Sandbox

_HEAVY = ("config", "summary", "config_raw", "summary_raw", "system_summary", "history_keys", "metadata")
"""Columns of `runs` that are read when one of them is asked for."""
_TOGETHER = {"config_raw": ("config_raw", "summary_raw"), "summary_raw": ("config_raw", "summary_raw")}
_MOST = 1000  # runs of a page
_PAGE_BYTES = 32 << 20  # of documents; longer ones make the next page shorter
Format = Literal["default", "pandas", "polars"]


class Page:
    """Some runs at one moment: attributes at once, documents of all of them when one is asked for its own."""

    def __init__(self, state: Sandbox, rids: Sequence[int], table: str = "raw.runs") -> None:
        """`table` is where the runs' rows are, if not all files need to be looked into."""
        self._state = state
        self._table = table
        self._rids = list(rids)
        self._documents: dict[str, dict[int, str | None]] = {}
        self.rows: dict[int, Record] = {row["rid"]: row for row in self._read(_attributes())}
        self.bytes = 0

    def document(self, rid: int, column: str) -> str | None:
        """A document as it came over the wire."""
        if column not in self._documents:
            columns = _TOGETHER.get(column, (column,))
            rows = self._read(", ".join(columns))
            for one in columns:
                self._documents[one] = {row["rid"]: row[one] for row in rows}
                self.bytes += sum(len(row[one] or "") for row in rows)
        return self._documents[column].get(rid)

    def _read(self, columns: str) -> list[dict[str, Any]]:
        # raw.live is small and in memory: rows of other versions are skipped without looking at them all.
        live = "select rid, gen from raw.live where rid in (select unnest(?::bigint[]))"
        query = f"select r.rid, {columns} from {self._table} r semi join ({live}) m on m.rid = r.rid and m.gen = r.gen"
        return select(self._state, query, [self._rids])


@cache
def _attributes() -> str:
    from mirror.store.schema import columns
    from mirror.store.views import quoted

    return ", ".join(quoted(name) for name, _, _ in columns()["runs"] if name not in ("rid", *_HEAVY))


class Runs(Sequence[Run]):
    """Runs in the order that was asked for. `len()` is their number; they are read as they are looked at, `per_page`
    of them at first and more with every page. Which runs these are was settled when the object was made."""

    def __init__(self, held: Held, rids: Sequence[int], *, per_page: int = 50, name: str = "") -> None:
        if per_page < 1:
            raise ArgumentError(f"`per_page` is at least 1, got `{per_page}`")
        self._held = held
        self._state = held.state()
        self._rids = rids
        self._name = name
        self._next = 0
        self._size = min(per_page, _MOST)
        self._start = 0
        self._page: Page | None = None
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return len(self._rids)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} runs, number {index} is none of them")
        return self._at(i)

    def __iter__(self) -> Iterator[Run]:
        return (self._at(i) for i in range(len(self)))

    def __next__(self) -> Run:
        if self._next >= len(self):
            raise StopIteration
        self._next += 1
        return self._at(self._next - 1)

    next = __next__

    def _at(self, i: int) -> Run:
        if not self._start <= i < self._start + len(self._runs):
            self._turn(i)
        return self._runs[i - self._start]

    def _turn(self, i: int) -> None:
        """To the page that holds run i: the following one if runs are read in order, or the one before."""
        if self._page is not None and self._page.bytes > _PAGE_BYTES:
            self._size = max(1, self._size // 2)
        elif self._page is not None:
            self._size = min(2 * self._size, _MOST)
        self._start = max(0, i - self._size + 1) if i < self._start else i
        rids = self._rids[self._start : self._start + self._size]
        self._page = Page(self._state, rids)
        self._runs = [Run(self._held, rid, self._page) for rid in rids]

    def histories(
        self,
        samples: int | None = 500,
        keys: list[str] | None = None,
        x_axis: str = "_step",
        format: Format = "default",
        stream: str = "default",
    ) -> Any:
        """The histories of all these runs, one below the other, with a column `run_id`: a list of dictionaries, or
        a data frame with sorted columns. Arguments are those of `Run.history`."""
        if format not in ("default", "pandas", "polars"):
            raise ArgumentError(f"`format` is default, pandas or polars, got `{format}`")
        from mirror.objects.history import frame, histories, polars_frame

        rows: list[dict[str, Any]] = []
        for run, found in histories(self, samples, keys, x_axis, stream):
            rows += [row | {"run_id": run.id} for row in found]
        if format == "default":
            return rows
        made = frame(rows) if format == "pandas" else polars_frame(rows)
        return made[sorted(made.columns)]

    def __repr__(self) -> str:
        return f"<Runs {self._name}: {len(self)}>" if self._name else f"<Runs: {len(self)}>"
