"""What is read of many small runs at once: a question for each of them costs much more than its few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mirror.query.sql import asking
from mirror.records import Stream

if TYPE_CHECKING:
    from mirror.importers.run import MirroredRun
    from mirror.query.neighbours import Piece
    from mirror.store import Reader

_SMALL = 5_000
"""Rows up to which a run is read with others."""
_FILES = 100
"""Files up to which those of a run are listed with those of others."""

FileRow = tuple[str, int | None, str | None, str | None]
"""Name, size, base64 md5, and sha256 of the bytes if they are held."""


@dataclass(frozen=True)
class Ready:
    """What was read of a run with others: all lines of its streams, as they are sent, and its files; None for what has
    to be asked for."""

    history: Sequence[str] | None = None
    system: Sequence[str] | None = None
    files: Sequence[FileRow] | None = None


NOTHING = Ready()


class Together:
    """The small ones of some runs, in their order: their lines are read a group at a time, of which one is held.
    `plain` are the runs whose rows are sent as they were logged."""

    def __init__(self, reader: Reader, runs: Sequence[MirroredRun], plain: Sequence[MirroredRun]) -> None:
        self._reader = reader
        self._rids = [run.rid for run in runs]
        self._history = _Shared(reader, plain, "history")
        self._system = _Shared(reader, plain, "system")

    def ready(self, rid: int) -> Ready:
        try:
            return Ready(self._history.lines(rid), self._system.lines(rid), self._files.get(rid))
        except Exception:  # whichever run cannot be read says so when it is read alone: others do not fail with it
            return NOTHING

    @cached_property
    def _files(self) -> dict[int, list[FileRow]]:
        return _files(self._reader, self._rids)


class _Shared:
    """The lines of one stream."""

    def __init__(self, reader: Reader, runs: Sequence[MirroredRun], stream: Stream) -> None:
        from mirror.query.neighbours import Neighbours

        small = [run.rid for run in runs if 0 < run.row[f"{stream}_rows"] <= _SMALL]
        self._read = Neighbours(reader, small, stream)
        self._stream = stream
        self._at: Sequence[int] | None = None
        self._held: dict[int, list[str]] = {}

    @cached_property
    def _groups(self) -> dict[int, Sequence[int]]:
        return {rid: group for group in self._read.groups if len(group) > 1 for rid in group}

    def lines(self, rid: int) -> list[str] | None:
        """All lines of a run, once; None if they have to be read alone, or changed before they are sent."""
        if (group := self._groups.get(rid)) is None:
            return None
        if group is not self._at:
            self._held = {}  # two of them would be held for a moment
            self._at, self._held = group, _lines(self._read.together(group), self._stream)
        return self._held.pop(rid, None)


def _lines(piece: Piece, stream: Stream) -> dict[int, list[str]]:
    """The lines of those runs of a piece that are sent as they are: their steps ascend, and no line is long."""
    import numpy as np

    from mirror.importers.lines import own_steps
    from mirror.store.cells import rows_as_json
    from mirror.wandb.filestream import LONGEST_LINE

    rows, steps = own_steps(piece.cells)
    texts = list(rows_as_json(piece.cells))
    run = rows // piece.span
    wrong = np.zeros(len(rows), bool)
    if stream == "history":
        wrong = steps < 0
        wrong[1:] |= (steps[1:] <= steps[:-1]) & (run[1:] == run[:-1])
    ends = np.searchsorted(run, np.arange(len(piece.rids) + 1))
    left_out = set(run[wrong].tolist())
    found: dict[int, list[str]] = {}
    for n, rid in enumerate(piece.rids):
        part = texts[ends[n] : ends[n + 1]]
        if n not in left_out and 4 * max(map(len, part), default=0) <= LONGEST_LINE:
            found[rid] = part
    return found


def _files(reader: Reader, rids: Sequence[int]) -> dict[int, list[FileRow]]:
    """The files of those runs that have few, by name."""
    with asking(reader) as connection:
        rows: list[Any] = connection.execute(
            "select rid, name, size, md5, sha256 from files where rid in (select unnest(?::bigint[])) "
            f"qualify row_number() over (partition by rid order by name) <= {_FILES + 1} order by rid, name",
            [list(rids)],
        ).fetchall()
    found: dict[int, list[FileRow]] = {rid: [] for rid in rids}
    for rid, *file in rows:
        found[rid].append(tuple(file))
    return {rid: files for rid, files in found.items() if len(files) <= _FILES}
