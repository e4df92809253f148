"""Rows of many small runs in one scan.

A request may ask for the rows of hundreds of runs (aliases, or `history` inside a page of runs). A query for each
costs milliseconds however few rows it finds, one for all of them costs little more than one for the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirror.records import Stream
from mirror.server.index import Place
from mirror.server.look import Found, Look
from mirror.server.shelf import Shelf
from mirror.store.cells import rows_as_json
from mirror.store.schema import STREAM_TABLE

SMALL = 5_000
"""Rows up to which a run is read with others."""
_AT_ONCE = 50_000
_ROW_BITS = 40


@dataclass
class Rows:
    """All rows of one run as JSON texts, with their steps (of which some may be unknown)."""

    texts: list[str]
    steps: npt.NDArray[np.int64]
    stepped: npt.NDArray[np.bool_]

    def within(self, min_step: int | None, max_step: int | None) -> list[str]:
        if min_step is None and max_step is None:
            return self.texts
        keep = self.stepped.copy()
        if min_step is not None:
            keep &= self.steps >= min_step
        if max_step is not None:
            keep &= self.steps < max_step
        return [self.texts[i] for i in np.flatnonzero(keep)]


def of(look: Look, found: Found, stream: Stream) -> Rows | None:
    """The run's rows, read together with those of the runs that the request asks for after it; None if the run is
    large, or the only one."""
    if len(look.together) < 2 or not _small(found, stream):
        return None
    held = look.rows.pop((found.rid, stream), None)
    if held is None:
        held = _read(look, found, stream)
    return held


def _small(found: Found, stream: Stream) -> bool:
    return found.stored is not None and _count(found.stored.place, stream) <= SMALL


def _count(place: Place, stream: Stream) -> int:
    return place.history_rows if stream == "history" else place.system_rows


def _read(look: Look, found: Found, stream: Stream) -> Rows:
    """Read this run and as many of the following ones as are held without weight; the others wait in `look.rows`."""
    assert found.stored
    places = {found.rid: found.stored.place}
    total = _count(found.stored.place, stream)
    start = next((n for n, f in enumerate(look.together) if f.rid == found.rid), len(look.together))
    for other in look.together[start + 1 :]:
        if other.stored is None or not _small(other, stream) or other.rid in places:
            continue
        total += _count(other.stored.place, stream)
        if total > _AT_ONCE:
            break
        places[other.rid] = other.stored.place
    read = scan(look.shelf, list(places.values()), stream)
    mine = read.pop(found.rid)
    look.rows.update({(rid, stream): rows for rid, rows in read.items()})
    return mine


def scan(shelf: Shelf, places: list[Place], stream: Stream, condition: str = "true") -> dict[int, Rows]:
    """The rows of these runs, by rid, whose cells `c` meet a SQL condition (which holds for all cells of a row, or for
    none)."""
    gens = {p.rid: p.history_gen if stream == "history" else p.system_gen for p in places}
    wanted = ", ".join(f"({n}, {rid}, {gen})" for n, (rid, gen) in enumerate(gens.items()))
    relation = shelf.relation(STREAM_TABLE[stream], gens)
    query = (
        f"select c.key, c.path_id, (w.n::bigint << {_ROW_BITS}) | c.row as row, c.step, c.kind, c.v, c.j "
        f"from {relation} c join (values {wanted}) w(n, rid, gen) on w.rid = c.rid and w.gen = c.gen where {condition}"
    )
    cells: pa.Table = shelf.connect().sql(query).to_arrow_table()
    texts = list(rows_as_json(cells.drop_columns(["step"])))
    rows, first = np.unique(cells["row"].to_numpy(), return_index=True)
    step = cells["step"].take(pa.array(first))
    steps = step.fill_null(0).to_numpy()
    stepped = step.is_valid().to_numpy()
    ends = np.searchsorted(rows, np.arange(1, len(gens) + 1) << _ROW_BITS)
    found, begin = {}, 0
    for rid, end in zip(gens, ends.tolist(), strict=True):
        found[rid] = Rows(texts[begin:end], steps[begin:end], stepped[begin:end])
        begin = end
    return found
