"""Logged rows as the lines a destination takes: one for one, so that line numbers there are row numbers here.

W&B wants steps that ascend. A row whose step is not above that of the row before it (a resumed run that began at 0
again, rows without a step) is sent with the next free step, and says under STEP which one it had: no row is merged
or left out. The step of row i is i + max(0, the largest step[j] - j with j <= i), which needs no memory of rows sent
before, so an interrupted push goes on anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mirror.importers.origin import LEFT_OUT, STEP
from mirror.query.rows import TABLE, generation, stretches
from mirror.query.sql import asking
from mirror.records import Stream
from mirror.wandb.filestream import LONGEST_LINE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from mirror.store import Reader

    Ints = npt.NDArray[np.int64]

_LARGEST_STEP = 1 << 62
_OWN_STEP = f"key = '_step' and path_id = 0 and step between 0 and {_LARGEST_STEP}"


class RunLines:
    """The lines of one stream of one run. Once all of them were read, `shortened` counts the values that were left out
    of lines too long for any server. `whole` are all of them if they were read already, none of them changed."""

    def __init__(self, reader: Reader, rid: int, stream: Stream, whole: Sequence[str] | None = None) -> None:
        self._reader = reader
        self._rid = rid
        self._stream = stream
        self._whole = whole
        self.shortened = 0
        self._moved: int | None = None if whole is None else 0

    def shifted(self, rows: int) -> int:
        """How many of the run's `rows` rows get another step than they had."""
        if self._stream != "history" or self._moved is not None:
            return self._moved or 0
        with asking(self._reader) as connection:
            gen = generation(connection, self._rid, self._stream)
            found = connection.execute(
                "select count(*), count(*) filter (where step <> row + greatest(m, 0)) from (select row, step, "
                "max(step - row) over (order by row rows unbounded preceding) as m "
                f"from {self._reader.relation('history', self._rid)} where gen = ? and {_OWN_STEP})",
                [gen],
            ).fetchone()
        assert found is not None
        return int(rows - found[0] + found[1])

    def parts(self, first_row: int) -> Iterator[list[str]]:
        """The lines from row `first_row` on, some thousand at a time."""
        if self._whole is not None:
            if first_row < len(self._whole):
                yield list(self._whole[first_row:])
            return
        from mirror.store.cells import rows_as_json

        history = self._stream == "history"
        ahead = self._ahead(first_row) if history and first_row else 0
        moved = 0
        for table in stretches(self._reader, self._rid, self._stream, first_row=first_row):
            if history:
                table, ahead, more = _ascending(table, ahead)
                moved += more
            lines = list(rows_as_json(table))
            yield lines if 4 * max(map(len, lines), default=0) <= LONGEST_LINE else list(map(self._fitting, lines))
        if history and not first_row:
            self._moved = moved

    def _ahead(self, first_row: int) -> int:
        """How far the step of the row before was ahead of its number."""
        with asking(self._reader) as connection:
            gen = generation(connection, self._rid, self._stream)
            found = connection.execute(
                f"select max(step - row) from {self._reader.relation(TABLE[self._stream], self._rid)} "
                f"where gen = ? and row < ? and {_OWN_STEP}",
                [gen, first_row],
            ).fetchone()
        return max(0, found[0] or 0) if found else 0

    def _fitting(self, line: str) -> str:
        """The line, without its longest values if it is longer than servers take."""
        if len(line.encode()) <= LONGEST_LINE:
            return line
        from mirror.store.jsontext import parse, write

        row, exact = parse(line)
        sizes = {key: len(write(value, exact).encode()) for key, value in row.items()}
        left_out = []
        too_long = len(line.encode()) - LONGEST_LINE
        for key in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if too_long <= 0:
                break
            del row[key]
            left_out.append(key)
            too_long -= sizes[key] - len(key)
        self.shortened += len(left_out)
        row[LEFT_OUT] = left_out
        return write(row, exact)


def own_steps(table: pa.Table) -> tuple[Ints, Ints]:
    """The rows of a table of cells in order, and the step of each, -1 if it has none that W&B takes."""
    import numpy as np

    steps = table.filter(_is_own(table))
    rows: Ints = np.unique(table.column("row").to_numpy())
    step = np.full(len(rows), -1, np.int64)
    known = steps.column("step").is_valid().to_numpy()
    step[np.searchsorted(rows, steps.column("row").to_numpy()[known])] = steps.column("step").drop_null().to_numpy()
    step[step > _LARGEST_STEP] = -1
    return rows, np.maximum(step, -1)


def _is_own(table: pa.Table) -> pa.ChunkedArray:
    """Which cells are the `_step` of a row."""
    import pyarrow.compute as pc

    return pc.and_(pc.equal(table.column("key"), "_step"), pc.equal(table.column("path_id"), 0))


def _ascending(table: pa.Table, ahead: int) -> tuple[pa.Table, int, int]:
    """The cells with steps that ascend, how far the last row's step is ahead of its number, and how many rows have
    another step than they had."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rows, step = own_steps(table)
    lead = np.maximum.accumulate(np.maximum(np.where(step >= 0, step - rows, 0), ahead))
    wanted = rows + lead
    moved = wanted != step
    ahead = int(lead[-1]) if len(lead) else ahead
    if not moved.any():
        return table, ahead, 0
    here = pa.array(moved[np.searchsorted(rows, table.column("row").to_numpy())])
    # A row that was moved by an earlier import keeps saying where it was first.
    before = table.filter(pc.and_(pc.equal(table.column("key"), STEP), pc.equal(table.column("path_id"), 0)))
    again = pc.is_in(table.column("row"), value_set=before.column("row").combine_chunks())
    names = table.column("key").cast(pa.string())
    # A step may be a dictionary, too, whose leaves lie under `_step.`.
    inner = pc.and_(pc.starts_with(names, "_step."), pc.equal(pc.bit_wise_and(table.column("path_id"), 1), 1))
    own = pc.or_(_is_own(table), inner)
    renamed = pc.binary_join_element_wise(STEP, pc.utf8_slice_codeunits(names, len("_step")), "")
    key = pc.if_else(pc.and_(own, here), renamed, names)
    drop = pc.or_(pc.and_(here, pc.equal(table.column("kind").cast(pa.string()), "empty")),
                  pc.and_(pc.and_(own, here), again))  # fmt: skip
    kept = table.set_column(table.schema.get_field_index("key"), "key", key).filter(pc.invert(drop))
    new = wanted[moved]
    exact = new < 1 << 53
    added = pa.table(
        {
            "key": pa.array(["_step"] * len(new)),
            "path_id": pa.array(np.zeros(len(new), np.int64)),
            "row": pa.array(rows[moved]),
            "step": pa.array(new),
            "kind": pa.array(["int"] * len(new)),
            "v": pa.array(new.astype(np.float64), mask=~exact),
            "j": pa.array([None if fits else str(n) for n, fits in zip(new.tolist(), exact.tolist(), strict=True)],
                          pa.string()),
        }
    )  # fmt: skip
    return pa.concat_tables([kept.select(added.column_names).cast(added.schema), added]), ahead, len(new)
