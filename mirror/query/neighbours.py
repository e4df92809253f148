"""The cells of many runs, in as few questions as fit into memory.

Cells lie sorted by key, so that the cells of a short run are spread over parts of a file that hold those of hundreds
of others: a question for each run would read all of them hundreds of times. Runs that follow each other are read
together instead, as many as weigh `_GROUP_BYTES`; one that weighs more is read in stretches of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mirror.errors import NotFoundError
from mirror.query.rows import CELL_BYTES, TABLE, WEIGHT, evenly, holds, stretches
from mirror.query.sql import asking, sandbox
from mirror.store.cellform import KINDS

if TYPE_CHECKING:
    from mirror.records import Stream
    from mirror.store import Reader

_GROUP_BYTES = 16 << 20
_KINDS = """
select {who} as rid, key, path_id, bit_or(1 << list_position({kinds}, kind)) as kinds,
       bool_or(kind in ('int', 'number') and v is null) as inexact,
       coalesce(max(strlen(j)) filter (where kind = 'int'), 0) as digits
from {cells} and kind <> 'empty' group by all order by 1
"""

Kinds = tuple[str, int, Set[str], bool, int]
"""Of a place in rows: key, path_id, kinds of its cells, whether there are numbers that no double holds, and the most
characters of an integer."""


@dataclass(frozen=True)
class Piece:
    """Whole rows of some runs: the columns key, path_id, row, step, kind, v and j of their cells, in any order. `row`
    numbers the rows of all runs, those of the i-th of `rids` from i * `span` on."""

    cells: pa.Table
    rids: Sequence[int]
    span: int


class Neighbours:
    """The rows of one stream of some runs, in the order of `rids`, whole or reduced to `keys` as in `rows`.

    Asked for run after run, a group is read once; only the last one read is held. NotFoundError if the mirror holds
    one of the runs no more.
    """

    def __init__(
        self, reader: Reader, rids: Sequence[int], stream: Stream = "history", keys: Sequence[str] | None = None
    ) -> None:
        self.rids = rids
        self.stream = stream
        self.keys = keys
        self._reader = reader
        self._held: tuple[Sequence[int], Piece] | None = None
        self._known: tuple[Sequence[int], pa.Table] | None = None

    def pieces(self) -> Iterator[Piece]:
        """All rows; no piece is without any."""
        for group in self.groups:
            if len(group) == 1:
                yield from self._alone(group[0])
            elif (piece := self.together(group)).cells.num_rows:
                yield piece

    def rows_of(self, rid: int) -> Iterator[Piece]:
        """The rows of one of the runs."""
        group, at = self._places[rid]
        if len(group) == 1:
            yield from self._alone(rid)
            return
        if self._held is None or self._held[0] is not group:
            self._held = None  # two of them would be held for a moment
            piece = self.together(group)
            order = np.argsort(piece.cells.column("row").to_numpy(), kind="stable")
            self._held = group, Piece(piece.cells.take(pa.array(order)).combine_chunks(), group, piece.span)
        piece = self._held[1]
        row = piece.cells.column("row").to_numpy()
        first, last = np.searchsorted(row, [at * piece.span, (at + 1) * piece.span])
        if first < last:
            yield Piece(piece.cells.slice(first, last - first), group, piece.span)

    def kinds(self) -> Iterator[Kinds]:
        """What kinds of values the rows of all runs have at each place."""
        return _read(self._kinds(self.rids, who="0::bigint")) if self.rids else iter(())

    def kinds_of(self, rid: int) -> Iterator[Kinds]:
        """The same for one of the runs."""
        group, _ = self._places[rid]
        if self._known is None or self._known[0] is not group:
            self._known = None
            self._known = group, self._kinds(group, who="rid")
        found = self._known[1]
        first, last = np.searchsorted(found.column("rid").to_numpy(), [rid, rid + 1])
        return _read(found.slice(first, last - first))

    # -- groups ---------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[Sequence[int]]:
        """The runs, those of each list light enough to be read together."""
        if len(self.rids) < 2:
            return [self.rids] if self.rids else []
        found = self._ask(f"select rid, {WEIGHT} as weight from {{cells}} group by rid", self.rids)
        weights = dict(zip(found["rid"].to_pylist(), map(int, found["weight"].to_pylist()), strict=True))
        weighed = [(i, weights.get(rid, 0) + CELL_BYTES) for i, rid in enumerate(self.rids)]
        return [self.rids[first : last + 1] for first, last in evenly(weighed, _GROUP_BYTES)]

    @cached_property
    def _places(self) -> dict[int, tuple[Sequence[int], int]]:
        return {rid: (group, i) for group in self.groups for i, rid in enumerate(group)}

    def _alone(self, rid: int) -> Iterator[Piece]:
        for cells in stretches(self._reader, rid, self.stream, keys=self.keys):
            yield Piece(cells, [rid], 1 << 62)

    def together(self, group: Sequence[int]) -> Piece:
        """All rows of one of the `groups`."""
        cells = self._ask("select rid, key, path_id, row, step, kind, v, j from {cells}", group)
        rid, row = cells.column("rid").to_numpy(), cells.column("row").to_numpy()
        span = int(row.max(initial=0)) + 1
        order = np.argsort(group)
        at = order[np.searchsorted(np.asarray(group), rid, sorter=order)]
        numbers = pa.array(at * span + row)
        return Piece(cells.set_column(cells.schema.get_field_index("row"), "row", numbers), group, span)

    def _kinds(self, rids: Sequence[int], who: str) -> pa.Table:
        with asking(self._reader) as connection:
            query = "select count(*) from raw.live where rid in (select unnest(?::bigint[]))"
            ((held,),) = connection.execute(query, [list(rids)]).fetchall()
        if held < len(rids):
            raise NotFoundError("the mirror no longer holds some of the runs: ask again")
        return self._ask(_KINDS.format(who=who, kinds=list(KINDS), cells="{cells}"), rids)

    def _ask(self, query: str, rids: Sequence[int]) -> pa.Table:
        """An answer about the cells of some of the runs, for which `{cells}` stands, with a condition at its end."""
        rows = sandbox(self._reader).part(TABLE[self.stream], rids)
        condition, params = "true", [min(rids), max(rids), list(rids)]
        if self.keys is not None:
            condition, values = holds(self.keys)
            condition += " and kind <> 'empty'"  # an empty row has not even the key ""
            params += values
        among = "rid between ? and ? and rid in (select unnest(?::bigint[]))"  # the range skips parts of files
        query = query.format(cells=f"{rows} where {among} and {condition}")
        with asking(self._reader) as connection:
            return connection.sql(query, params=params).to_arrow_table()


def _read(found: pa.Table) -> Iterator[Kinds]:
    columns = (found.column(name).to_pylist() for name in ("key", "path_id", "kinds", "inexact", "digits"))
    for key, path_id, bits, inexact, digits in zip(*columns, strict=True):
        yield key, path_id, _named(bits), inexact, digits


@cache
def _named(bits: int) -> Set[str]:
    return frozenset(kind for i, kind in enumerate(KINDS, 1) if bits >> i & 1)
