"""Two streams of logged rows, compared cell by cell while they pass, in the order of steps.

The wire gives rows by step, so both sides are compared in the order of steps, and in logged order within a step. Runs
of equal rows are compared as whole arrays; where they differ, rows are put side by side by their steps, and within one
step by looking a little ahead, so that a row that is missing is one difference and not one for every row after it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirror.store.cellform import BOOL, EMPTY, INT, LIST, NONFINITE, NULL, STRING, kind_codes, path, places
from mirror.verify import values
from mirror.verify.findings import NOTHING, Findings

Ints = npt.NDArray[np.int64]
Cell = tuple[int, int, str | None]
"""Kind, the bits of `v`, `j`."""

NO_STEP = -(1 << 63)
LARGEST_SENT = 1 << 62
"""A row with a larger step is sent with the next free one, too."""
NAN_BITS = int(np.float64(np.nan).view(np.int64))
_AHEAD = 32
"""How many rows of one step are looked ahead for a row that seems to be missing."""


class Places:
    """One code for each place in a row, shared by both sides."""

    def __init__(self) -> None:
        self._codes: dict[tuple[str, int], int] = {}
        self._places: list[tuple[str, int]] = []

    def codes(self, table: pa.Table) -> Ints:
        own, named = places(table)
        shared = np.empty(len(named), np.int64)
        for i, place in enumerate(named):
            shared[i] = self._code(place)
        found: Ints = shared[own]
        return found

    def code(self, key: str) -> int:
        """The code of a key that stands for itself."""
        return self._code((key, 0))

    def _code(self, place: tuple[str, int]) -> int:
        if place not in self._codes:
            self._codes[place] = len(self._places)
            self._places.append(place)
        return self._codes[place]

    def name(self, code: int) -> str:
        """The names that lead to the value; with dots between them, as keys are shown."""
        return ".".join(path(*self._places[code]))


@dataclass
class Block:
    """Whole rows in the order of steps: a number and a step for each row, and their cells by (row, code)."""

    numbers: Ints
    steps: Ints
    at: Ints  # the place of each cell's row in the block
    code: Ints
    kind: npt.NDArray[np.int8]
    bits: Ints
    j: pa.Array

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, start: int, stop: int) -> Block:
        lo, hi = np.searchsorted(self.at, [start, stop])
        return Block(
            self.numbers[start:stop],
            self.steps[start:stop],
            self.at[lo:hi] - start,
            self.code[lo:hi],
            self.kind[lo:hi],
            self.bits[lo:hi],
            self.j.slice(lo, hi - lo),
        )

    def followed_by(self, other: Block) -> Block:
        if not len(self):
            return other
        join = np.concatenate
        return Block(
            join([self.numbers, other.numbers]),
            join([self.steps, other.steps]),
            join([self.at, other.at + len(self)]),
            join([self.code, other.code]),
            join([self.kind, other.kind]),
            join([self.bits, other.bits]),
            pa.concat_arrays([self.j, other.j]),
        )

    def equals(self, other: Block) -> bool:
        """Whether all cells are the same to the last bit; the numbers of rows do not count."""
        names = ("at", "code", "kind", "bits")
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)
        return same and bool(self.j.equals(other.j))

    def rows(self) -> list[dict[int, Cell]]:
        found: list[dict[int, Cell]] = [{} for _ in range(len(self))]
        cells = zip(
            self.at.tolist(), self.code.tolist(), self.kind.tolist(), self.bits.tolist(), self.j.to_pylist(),
            strict=True,
        )  # fmt: skip
        for at, code, kind, bits, j in cells:
            found[at][code] = (kind, bits, j)
        return found


def block_of(table: pa.Table, shared: Places, first_number: int = 0, ascending: int | None = None) -> Block:
    """The rows of a table of cells (key, path_id, row, step, kind, v, j; whole rows, any order), by step; rows of one
    step keep their order, those without a step come first. `first_number` is added to `row`. With `ascending`, the
    next free step, rows keep their order and have the steps they are sent with."""
    row: Ints = table.column("row").to_numpy()
    held, at = np.unique(row, return_inverse=True)
    steps = np.full(len(held), NO_STEP, np.int64)
    step = table.column("step").combine_chunks()
    known = step.is_valid().to_numpy(zero_copy_only=False)
    steps[at[known]] = step.drop_null().to_numpy()
    if ascending is not None:
        i = np.arange(len(steps))
        steps = np.where((steps >= 0) & (steps <= LARGEST_SENT), steps, -1)
        steps = i + np.maximum.accumulate(np.maximum(steps - i, ascending)) if len(steps) else steps
    order = np.argsort(steps, kind="stable")
    moved = np.empty(len(order), np.int64)
    moved[order] = np.arange(len(order))
    at = moved[at]
    code = shared.codes(table)
    by_place = np.lexsort((code, at))
    # One NaN for all: its bits and those of a missing value mean nothing.
    v = table.column("v").to_numpy()
    bits = np.where(np.isnan(v), np.nan, v).view(np.int64)
    j = table.column("j").combine_chunks().cast(pa.large_string())
    return Block(
        held[order] + first_number,
        steps[order],
        at[by_place],
        code[by_place],
        kind_codes(table)[by_place],
        bits[by_place],
        j.take(pa.array(by_place)),
    )


def empty_block() -> Block:
    none = np.empty(0, np.int64)
    return Block(none, none, none, none, np.empty(0, np.int8), none, pa.array([], pa.large_string()))


class RowsCompared:
    """Takes the rows of the other side as they come (`feed`, then `finish`) and reads those of the mirror beside them.
    Differences go to `findings` as soon as they are certain.

    With `moved`, rows were sent there under steps that ascend: a row whose step is not above the one before it has the
    next free step, and says under this key which one it had. Then `here` comes in logged order. With `more_here`, rows
    that are here alone are counted and are no differences. `led` is what JSON text becomes whose references lead to
    copies there: a value may be there either way."""

    def __init__(
        self,
        where: str,
        stream: str,
        here: Generator[pa.Table, None, None],
        findings: Findings,
        *,
        moved: str | None = None,
        more_here: bool = False,
        led: Callable[[str], str] | None = None,
    ) -> None:
        self._where = where
        self._stream = stream
        self._findings = findings
        self._shared = Places()
        self._tables = here
        self._here = empty_block()
        self._there = empty_block()
        self.came = 0
        self._moved = moved
        self._more_here = more_here
        self._led = led
        self._next_step = 0

    def close(self) -> None:
        """Stop reading the mirror."""
        self._tables.close()

    def feed(self, table: pa.Table, rows: int) -> None:
        """So many more rows of the other side, as `cells.decode` made them."""
        if rows:
            self._there = self._there.followed_by(block_of(table, self._shared, self.came))
            self.came += rows
            self._settle()

    def finish(self) -> None:
        """Nothing more comes of the other side."""
        self._settle(final=True)
        for row in range(len(self._there)):
            self._extra(self._there, row)
        while len(self._here) or self._read():
            self._findings.count(rows=len(self._here), values=len(self._here.at))
            for row in range(len(self._here)):
                self._missing(self._here, row)
            self._here = empty_block()

    def _read(self) -> bool:
        table = next(self._tables, None)
        if table is None:
            return False
        block = block_of(table, self._shared, ascending=self._next_step if self._moved is not None else None)
        if len(block):
            self._next_step = int(block.steps[-1]) + 1
        self._here = self._here.followed_by(block)
        return True

    def _settle(self, *, final: bool = False) -> None:
        """Compare what both sides have; unless it is `final`, a few rows wait for those that come after them."""
        while len(self._there):
            more = True
            while more and len(self._here) < len(self._there) + _AHEAD:
                more = self._read()
            n = min(len(self._here), len(self._there))
            if not n:  # nothing is left here
                for row in range(len(self._there)):
                    self._extra(self._there, row)
                self._there = empty_block()
                return
            a, b = self._here.part(0, n), self._there.part(0, n)
            if a.equals(b):
                self._findings.count(rows=n, values=len(a.at))
                done = (n, n)
            else:
                done = self._side_by_side(last=not more, final=final)
                self._findings.count(rows=done[0], values=len(self._here.part(0, done[0]).at))
            self._here = self._here.part(done[0], len(self._here))
            self._there = self._there.part(done[1], len(self._there))
            if done == (0, 0):
                return

    def _side_by_side(self, *, last: bool, final: bool) -> tuple[int, int]:
        """Compare row by row; how many rows of each side are dealt with."""
        a, b = self._here.rows(), self._there.rows()
        steps_a, steps_b = self._here.steps.tolist(), self._there.steps.tolist()
        i = j = 0
        # Rows near the end wait for those after them, but for the last ones.
        end_a, end_b = len(a) if last else len(a) - _AHEAD, len(b) if final else len(b) - _AHEAD
        while i < end_a and j < end_b:
            if steps_a[i] < steps_b[j]:
                self._missing(self._here, i)
                i += 1
            elif steps_a[i] > steps_b[j]:
                self._extra(self._there, j)
                j += 1
            elif self._same(a[i], b[j], counted=True) or self._same_moved(a[i], b[j]):
                i, j = i + 1, j + 1
            else:
                skip_a, skip_b = self._ahead(a, b, steps_a, steps_b, i, j)
                if skip_a and skip_b:
                    self._swapped(self._here, i)
                elif skip_a or skip_b:
                    for k in range(skip_a):
                        self._missing(self._here, i + k)
                    for k in range(skip_b):
                        self._extra(self._there, j + k)
                else:
                    self._cells(i, a[i], self._moved_back(a[i], b[j]))
                    skip_a = skip_b = 1
                i, j = i + skip_a, j + skip_b
        return i, j

    def _ahead(
        self, a: list[dict[int, Cell]], b: list[dict[int, Cell]], steps_a: list[int], steps_b: list[int], i: int, j: int
    ) -> tuple[int, int]:
        """How many rows of either side to pass over until rows of the same step are equal again; (2, 2) if two rows
        stand in each other's place, (0, 0) if the rows belong together and differ."""
        step = steps_a[i]
        for d in range(1, _AHEAD):
            more_a = i + d < len(a) and steps_a[i + d] == step
            more_b = j + d < len(b) and steps_b[j + d] == step
            if not more_a and not more_b:
                break
            in_a = more_a and (self._same(a[i + d], b[j]) or self._same(a[i + d], self._moved_back(a[i + d], b[j])))
            in_b = more_b and (self._same(a[i], b[j + d]) or self._same(a[i], self._moved_back(a[i], b[j + d])))
            if in_a and in_b and d == 1:
                return 2, 2
            if in_a:
                return d, 0
            if in_b:
                return 0, d
        return 0, 0

    def _same(self, a: dict[int, Cell], b: dict[int, Cell], *, counted: bool = False) -> bool:
        if a == b:
            return True
        if a.keys() != b.keys():
            return False
        found = [self._how(cell, b[code]) for code, cell in a.items() if cell != b[code]]
        if values.OTHER in found:
            return False
        found = [how for how in found if how == values.RESPELLED]
        if counted:
            self._findings.respell(len(found))
        return True

    def _same_moved(self, a: dict[int, Cell], b: dict[int, Cell]) -> bool:
        """Whether the rows are the same but for the step that one of them was sent with."""
        back = self._moved_back(a, b)
        if back is b or not self._same(a, back, counted=True):
            return False
        self._findings.count(rows_with_another_step_that_say_so=1)
        return True

    def _moved_back(self, a: dict[int, Cell], b: dict[int, Cell]) -> dict[int, Cell]:
        """Row b with the step it had; b itself if it was not moved."""
        if self._moved is None:
            return b
        step, said, left_out = (
            self._shared.code(name) for name in ("_step", self._moved, self._moved.replace("/step", "/left_out"))
        )
        if said not in b and step in a:
            return {code: cell for code, cell in b.items() if code != left_out or left_out in a} if left_out in b else b
        back = {code: cell for code, cell in b.items() if code not in (step, said, left_out)}
        if said in b:
            back[step] = b[said]
        return back or {self._shared.code(""): (EMPTY, NAN_BITS, None)}

    # -- what differs -------------------------------------------------------------------------------------

    def _cells(self, i: int, a: dict[int, Cell], b: dict[int, Cell]) -> None:
        for code in {**a, **b}:
            mine, others = a.get(code), b.get(code)
            how = self._how(mine, others) if mine is not None and others is not None else values.OTHER
            if how == values.RESPELLED:
                self._findings.respell(1)
            elif how == values.OTHER:
                here, there = (NOTHING if cell is None else text(cell) for cell in (mine, others))
                self._differ(self._here, i, key=self._shared.name(code), here=here, there=there)

    def _how(self, a: Cell, b: Cell) -> str:
        """What `compared` says of two cells, references led to copies if they are there."""
        how = compared(a, b)
        if how != values.OTHER or self._led is None or a[2] is None or (led := self._led(a[2])) == a[2]:
            return how
        return compared((a[0], a[1], led), b)

    def _missing(self, block: Block, i: int) -> None:
        if self._more_here:
            self._findings.count(rows_of_a_log_on_disk_alone=1)
            return
        self._differ(block, i, here="" if self._findings.full else self._row(block, i))

    def _extra(self, block: Block, i: int) -> None:
        self._differ(block, i, numbered=False, there="" if self._findings.full else self._row(block, i))

    def _swapped(self, block: Block, i: int) -> None:
        order = ["rows {} and {}".format(*block.numbers[k].tolist()) for k in ([i, i + 1], [i + 1, i])]
        self._differ(block, i, key="(order)", here=order[0], there=order[1])

    def _differ(self, block: Block, i: int, *, numbered: bool = True, **what: Any) -> None:
        step = int(block.steps[i])
        number = int(block.numbers[i]) if numbered else None
        self._findings.differ(self._where, self._stream, row=number, step=None if step == NO_STEP else step, **what)

    def _row(self, block: Block, i: int) -> str:
        cells = block.part(i, i + 1).rows()[0]
        named = [f"{values.shown(self._shared.name(code))}:{text(cell)}" for code, cell in cells.items()]
        return "{" + ",".join([] if [c[0] for c in cells.values()] == [EMPTY] else named) + "}"


def compared(a: Cell, b: Cell) -> str:
    """What `values.compare` says of two cells."""
    if a == b:
        return values.EQUAL
    if EMPTY in (a[0], b[0]):
        return values.OTHER
    if a[0] < LIST and b[0] < LIST and a[0] == b[0] and a[0] != STRING and a[2] is None and b[2] is None:
        return values.OTHER
    return values.compare(as_value(a), as_value(b))


def text(cell: Cell) -> str:
    return values.shown(as_value(cell))


def as_value(cell: Cell) -> Any:
    """The exact value of a cell."""
    kind, bits, j = cell
    if kind == NONFINITE:
        return _double(bits)
    if j is not None:
        return values.read(j)
    if kind in (NULL, EMPTY):
        return None
    v = _double(bits)
    if kind == INT:
        return values.read("-0") if v == 0 and str(v).startswith("-") else int(v)
    return bool(v) if kind == BOOL else v


def _double(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
