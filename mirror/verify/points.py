"""Points of MLflow compared with the rows of W&B that were made of them.

A point is a key, a step, a time and a value. Points of one step share rows there: the k-th point of a key at a step
stands in the k-th row of that step. So both sides are compared key by key within a step, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from mirror.verify import values
from mirror.verify.findings import NOTHING, Findings
from mirror.verify.rows import Block, Cell, Places, as_value, block_of, compared, text

_OF_ROWS = ("_step", "_timestamp", "_runtime")
Point = tuple[Cell, float | None]


@dataclass
class _Step:
    """The points of one step by key."""

    step: int
    points: dict[str, list[Point]] = field(default_factory=dict)


class PointsCompared:
    """Like `RowsCompared`: takes rows of the other side, reads points of the mirror beside them. `said` is the
    beginning of the keys under which a row tells the step it had, and the times of points that were not its own."""

    def __init__(
        self, where: str, stream: str, here: Generator[pa.Table, None, None], findings: Findings, said: str
    ) -> None:
        self._where = where
        self._stream = stream
        self._findings = findings
        self._shared = Places()
        self._tables = here
        self._had_step, self._times = f"{said}/step", f"{said}/times"
        self._mine = self._steps()
        self._next = next(self._mine, None)
        self._there: _Step | None = None
        self.came = 0

    def close(self) -> None:
        """Stop reading the mirror."""
        self._mine.close()
        self._tables.close()

    def feed(self, table: pa.Table, rows: int) -> None:
        """So many more rows of the other side, as `cells.decode` made them."""
        self.came += rows
        if rows:
            for step, points in self._points(block_of(table, self._shared)):
                if self._there is None or self._there.step != step:
                    self._settle()
                    self._there = _Step(step)
                for key, point in points:
                    self._there.points.setdefault(key, []).append(point)

    def finish(self) -> None:
        """Nothing more comes of the other side."""
        self._settle()
        while self._next is not None:
            self._compare(self._next, _Step(self._next.step))
            self._next = next(self._mine, None)

    def _settle(self) -> None:
        """The step that came is whole: compare it, and what the mirror has before it."""
        there, self._there = self._there, None
        if there is None:
            return
        while self._next is not None and self._next.step < there.step:
            self._compare(self._next, _Step(self._next.step))
            self._next = next(self._mine, None)
        if self._next is not None and self._next.step == there.step:
            self._compare(self._next, there)
            self._next = next(self._mine, None)
        else:
            self._compare(_Step(there.step), there)

    def _steps(self) -> Generator[_Step, None, None]:
        current: _Step | None = None
        for table in self._tables:
            for step, points in self._points(block_of(table, self._shared)):
                if current is None or current.step != step:
                    if current is not None:
                        yield current
                    current = _Step(step)
                for key, point in points:
                    current.points.setdefault(key, []).append(point)
        if current is not None:
            yield current

    def _points(self, block: Block) -> Iterator[tuple[int, list[tuple[str, Point]]]]:
        """The step of every row and the points in it."""
        for step, row in zip(block.steps.tolist(), block.rows(), strict=True):
            named = {self._shared.name(code): cell for code, cell in row.items()}
            had, own = named.pop(self._had_step, None), named.get("_timestamp")
            times = named.pop(self._times, None)
            others = json.loads(as_value(times)) if times is not None else {}
            time = as_value(own) if own is not None else None
            points = [(key, (cell, others.get(key, time))) for key, cell in named.items() if key not in _OF_ROWS]
            yield (int(as_value(had)) if had is not None else step), points

    def _compare(self, here: _Step, there: _Step) -> None:
        self._findings.count(points=sum(map(len, here.points.values())))
        for key in {**here.points, **there.points}:
            mine, others = here.points.get(key, []), there.points.get(key, [])
            for i in range(max(len(mine), len(others))):
                a, b = (side[i] if i < len(side) else None for side in (mine, others))
                how = compared(a[0], b[0]) if a is not None and b is not None else values.OTHER
                if how == values.RESPELLED:
                    self._findings.respell(1)
                if how == values.OTHER or (a is not None and b is not None and a[1] != b[1]):
                    said = [NOTHING if point is None else f"{text(point[0])} at {point[1]}" for point in (a, b)]
                    self._findings.differ(
                        self._where, self._stream, step=here.step, key=key, here=said[0], there=said[1]
                    )
