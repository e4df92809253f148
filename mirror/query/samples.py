"""Some of a run's rows: evenly chosen ones, and those that have certain keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from mirror.query.rows import TABLE, generation, holds, rows
from mirror.query.sql import sandbox
from mirror.records import Stream

if TYPE_CHECKING:
    from mirror.query.neighbours import Piece
    from mirror.store import Reader

_MISSING = object()
_FEW = 20_000
"""Rows of a run that are read faster than those are found that will be kept."""


def sampled(
    reader: Reader,
    rid: int,
    stream: Stream = "history",
    keys: Sequence[str] | None = None,
    samples: int | None = None,
    more: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], int]:
    """At most `samples` rows of a run in logged order, evenly chosen, and how many there are to choose from.

    With `keys`, of the rows that have all of them, reduced to them and to those of `more` that a row has.
    """
    if keys is None:
        total = _count(reader, rid, stream)
        numbers = None if samples is None or total <= samples else thinned(range(total), samples)
        return list(_numbered(reader, rid, stream, numbers)), total
    wanted = [*keys, *more]
    if samples is None or _count(reader, rid, stream) <= _FEW:
        every = list(having(rows(reader, rid, stream, keys=wanted), keys, more))
        return (every if samples is None else thinned(every, samples)), len(every)
    numbers, total = _rows_with_all(reader, rid, stream, keys, samples)
    return list(having(_numbered(reader, rid, stream, numbers, wanted), keys, more)), total


def sampled_each(
    reader: Reader,
    rids: Sequence[int],
    stream: Stream = "history",
    keys: Sequence[str] | None = None,
    samples: int | None = None,
    more: Sequence[str] = (),
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The same for run after run, short ones read together."""
    from mirror.query.neighbours import Neighbours

    cells = Neighbours(reader, rids, stream, None if keys is None else [*keys, *more])
    for group in cells.groups:
        if len(group) == 1:
            yield sampled(reader, group[0], stream, keys, samples, more)
        elif keys is None:
            yield from _of_each(cells.together(group), samples)
        else:
            for rows, _ in _of_each(cells.together(group), None):
                every = list(having(rows, keys, more))
                yield (every if samples is None else thinned(every, samples)), len(every)


def _of_each(piece: Piece, samples: int | None) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """At most so many rows of each run of a piece, and how many there are."""
    import numpy as np
    import pyarrow as pa

    from mirror.store.rebuild import rows_as_dicts

    row = piece.cells.column("row").to_numpy()
    held = np.unique(row)
    starts = np.searchsorted(held, np.arange(len(piece.rids) + 1) * piece.span).tolist()
    totals = [end - start for start, end in pairwise(starts)]
    cells = piece.cells
    if samples is not None and max(totals) > samples:
        kept = [start + i for start, total in zip(starts, totals, strict=False) for i in thinned(range(total), samples)]
        cells = cells.filter(pa.array(np.isin(row, held[kept])))
    found = rows_as_dicts(cells)
    for total in totals:
        yield list(islice(found, total if samples is None else min(total, max(samples, 0)))), total


def having(
    rows: Iterable[Mapping[str, Any]], keys: Sequence[str], more: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows that have all of `keys`, reduced to them and to what they have of `more`."""
    for row in rows:
        found = {key: value_at(row, key) for key in keys}
        if _MISSING not in found.values():
            found |= {key: value for key in more if (value := value_at(row, key)) is not _MISSING}
            yield found


def value_at(row: Mapping[str, Any], key: str) -> Any:
    """The value at a key, a literal one before a nested one."""
    if key in row:
        return row[key]
    first, dot, rest = key.partition(".")
    while dot:
        inner = row.get(first)
        if isinstance(inner, dict) and (found := value_at(inner, rest)) is not _MISSING:
            return found
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"
    return _MISSING


def thinned(items: Sequence[Any], samples: int) -> list[Any]:
    """At most `samples` of the items, evenly spread, the first and the last among them."""
    n = len(items)
    if n <= samples:
        return list(items)
    if samples <= 1:
        return list(items[: max(samples, 0)])
    return [items[round(i * (n - 1) / (samples - 1))] for i in range(samples)]


def _count(reader: Reader, rid: int, stream: Stream) -> int:
    """Rows of a stream; they are numbered from 0 without a gap."""
    query = f"select {'history' if stream == 'history' else 'system'}_rows from raw.runs_live where rid = ?"
    return sum(int(held) for (held,) in sandbox(reader).cursor().execute(query, [rid]).fetchall())


def _rows_with_all(
    reader: Reader, rid: int, stream: Stream, keys: Sequence[str], samples: int
) -> tuple[list[int], int]:
    """Numbers of rows with a cell for each of the keys, thinned out, and how many there are."""
    total = _count(reader, rid, stream)
    gen = generation(sandbox(reader).cursor(), rid, stream)
    parts, params = [], []
    for key in dict.fromkeys(keys):
        if not (stream == "history" and _is_in_all(reader, rid, key, total)):
            condition, values = holds([key])
            parts.append(f"select row from {reader.relation(TABLE[stream], rid)} where gen = ? and {condition}")
            params += [gen, *values]
    if not parts:
        return thinned(range(total), samples), total
    # `intersect` also drops what occurs twice: the leaves of a nested dictionary.
    together = " intersect ".join(parts) if len(parts) > 1 else f"select distinct * from ({parts[0]})"
    connection = sandbox(reader).cursor()
    ((total,),) = connection.execute(f"select count(*) from ({together})", params).fetchall()
    numbered = f"select row, row_number() over (order by row) - 1 as i from ({together})"
    chosen = "true"
    if total > samples:
        chosen = "i in (select unnest(?::bigint[]))"
        params.append(thinned(range(total), samples))
    found = connection.execute(f"select row from ({numbered}) where {chosen} order by row", params)
    return [row for (row,) in found.fetchall()], int(total)


def _is_in_all(reader: Reader, rid: int, key: str, total: int) -> bool:
    """Whether all rows have a key, as `_step` is in most histories; the catalogue of keys tells."""
    if key != key.encode("utf-8", "ignore").decode():
        return False
    query = "select max(n) from metrics where rid = ? and key = ?"
    ((most,),) = sandbox(reader).cursor().execute(query, [rid, key]).fetchall()
    return bool(total) and most == total


def _numbered(
    reader: Reader, rid: int, stream: Stream, numbers: Sequence[int] | None, keys: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of these numbers (None: all of them) in logged order."""
    if numbers is None:
        yield from rows(reader, rid, stream, keys=keys)
        return
    if not numbers:
        return
    from mirror.store.rebuild import rows_as_dicts

    connection = sandbox(reader).cursor()
    condition, params = holds(keys) if keys is not None else ("true", [])
    gen = generation(sandbox(reader).cursor(), rid, stream)
    query = (
        f"select key, path_id, row, kind, v, j from {reader.relation(TABLE[stream], rid)} "
        f"where gen = ? and {condition} and row in (select unnest(?::bigint[]))"
    )
    yield from rows_as_dicts(connection.sql(query, params=[gen, *params, list(numbers)]).to_arrow_table())
