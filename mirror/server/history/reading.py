"""Rows of a run for the wire: from segments, then from the spool, in logged order.

Nothing outlives the request but what is read ahead for the next one (ahead.py). A range that holds more rows than were
asked for is thinned out evenly, its first and last row included (the real rule is not known; clients ask for more than
a range holds).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mirror.errors import UsageError
from mirror.query.samples import having, thinned
from mirror.records import Stream
from mirror.server.history import small_runs
from mirror.server.history.keys import KeyCatalogue, from_metrics
from mirror.server.home import Home
from mirror.server.index import Place
from mirror.server.look import Found, Look
from mirror.server.rows import dumps, parse_row
from mirror.server.shelf import Shelf
from mirror.store.cells import rows_as_json
from mirror.store.live import parts, read_lines

_TRIES = 20


def count(look: Look, found: Found, stream: Stream) -> int:
    """Rows of a stream, in segments and live."""
    if found.live and look.home.live:
        try:
            return look.home.live.spool.count(found.rid, stream)
        except KeyError:  # drained meanwhile
            pass
    if found.live:
        held = _held(look.home.shelves.newest().index.get(found.rid), stream)
        return held + sum(1 for _ in read_lines(look.home.layout.live / str(found.rid), stream, held))
    assert found.stored
    return _held(found.stored.place, stream)


def rows(
    look: Look,
    found: Found,
    stream: Stream,
    *,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int,
    start: int = 0,
) -> list[str]:
    """At most `samples` rows with min_step <= `_step` < max_step; without bounds rows without a `_step` count too.
    Of a live run, rows before number `start` are left out.

    `samples` as large as the range is wide means all of its rows: the SDK asks so when it scans, and
    would lose rows that share a step.
    """
    if samples <= 0:
        return []
    if min_step is not None and max_step is not None and samples >= max_step - min_step:
        samples = max(samples, count(look, found, stream))
    if not found.live:
        batch = small_runs.of(look, found, stream)
        if batch is not None:
            return thinned(batch.within(min_step, max_step), samples)
        return _paged(look, found.rid, stream, min_step, max_step, samples)
    ranged = min_step is not None or max_step is not None
    shelf, lines = settled(look.home, found.rid, stream)
    stored = _from_segments(shelf, found.rid, stream, min_step, max_step, None, start)
    return thinned(stored + [line for line in lines if not ranged or _within(line, min_step, max_step)], samples)


def _paged(look: Look, rid: int, stream: Stream, min_step: int | None, max_step: int | None, samples: int) -> list[str]:
    """Rows out of segments, read ahead if this range goes on where the last one ended."""
    place = look.shelf.index.get(rid)
    if place is None or min_step is None or max_step is None:
        return _from_segments(look.shelf, rid, stream, min_step, max_step, samples)
    texts = look.home.ahead.rows(look.shelf, place, stream, min_step, max_step)
    if texts is None:
        texts = _from_segments(look.shelf, rid, stream, min_step, max_step, samples)
    look.home.ahead.answered(place, stream, max_step, texts)
    return thinned(texts, samples)


def last(look: Look, found: Found, stream: Stream, n: int) -> list[str]:
    """The last `n` rows."""
    shelf, lines = settled(look.home, found.rid, stream) if found.live else (look.shelf, [])
    place = shelf.index.get(found.rid)
    missing = n - len(lines)
    if place is None or missing <= 0:
        return lines[-n:]
    return read(shelf, place, stream, f"row >= {_held(place, stream) - missing}") + lines


def keys(look: Look, found: Found) -> dict[str, Any] | None:
    """The key catalogue (`historyKeys`), with the rows of this moment."""
    if not found.live:
        whole = look.whole(found)
        if whole.run.history_keys is not None:
            return parse_row(whole.run.history_keys)
        return (
            _counted_keys(look.shelf, whole.stored.place) if whole.stored and whole.stored.place.history_rows else None
        )
    if look.home.live and (held := look.home.live.get(found.rid)):
        return look.home.live.catalogue(held).document()
    catalogue = KeyCatalogue(found.run.history_keys)
    for part in parts(_since(look, found, "history", found.run.history_line_count)):
        catalogue.add(part)
    return catalogue.document()


def system_summary(look: Look, found: Found) -> str | None:
    """The last value of every system metric (`systemMetrics`), as JSON."""
    if not found.live:
        return look.whole(found).run.system_summary
    if look.home.live and (held := look.home.live.get(found.rid)):
        return look.home.live.system_summary(held)
    summary = parse_row(found.run.system_summary or "{}")
    for line in _since(look, found, "system", found.run.events_line_count):
        summary |= parse_row(line)
    return dumps(summary).decode() if summary else None


def _since(look: Look, found: Found, stream: Stream, seen: int | None) -> Iterator[str]:
    """Live lines that the documents of a run do not tell of yet (they tell of the first `seen` ones)."""
    return read_lines(look.home.layout.live / str(found.rid), stream, seen or 0)


def _counted_keys(shelf: Shelf, place: Place) -> dict[str, Any]:
    """A catalogue from the table `metric`, for runs whose source gave none. The SDK reads no row without one."""
    query = (
        "select key, n_number + n_int + n_nonfinite, n_bool, n_string, n_null, n_json, last_step, last_v "
        f"from {shelf.relation('metric', [place.rid])} where gen = {place.metric_gen} order by key, path_id"
    )
    return from_metrics(shelf.connect().execute(query).fetchall())


def settled(home: Home, rid: int, stream: Stream) -> tuple[Shelf, list[str]]:
    """A snapshot, and the live lines that follow the rows it holds."""
    for _ in range(_TRIES):
        before = _drained(home, rid, stream)
        shelf = home.shelves.newest()
        try:
            held = _held(shelf.index.get(rid), stream)
            lines = list(read_lines(home.layout.live / str(rid), stream, held))
        except FileNotFoundError:
            continue
        if _drained(home, rid, stream) == before:
            return shelf, lines
    raise UsageError("the run changes faster than it can be read: ask again")


def _drained(home: Home, rid: int, stream: Stream) -> int | None:
    """Changes whenever live lines became segments."""
    try:
        return home.live.spool.drained(rid, stream) if home.live else home.shelves.newest().number
    except KeyError:
        return None


def _held(place: Place | None, stream: Stream) -> int:
    """Rows in segments."""
    return 0 if place is None else place.history_rows if stream == "history" else place.system_rows


def _within(line: str, min_step: int | None, max_step: int | None) -> bool:
    step = parse_row(line).get("_step")
    if not isinstance(step, (int, float)) or step != step:
        return False
    return (min_step is None or step >= min_step) and (max_step is None or step < max_step)


def _from_segments(
    shelf: Shelf,
    rid: int,
    stream: Stream,
    min_step: int | None,
    max_step: int | None,
    samples: int | None,
    start: int = 0,
) -> list[str]:
    place = shelf.index.get(rid)
    if place is None or not _held(place, stream):
        return []
    conditions = [f"row >= {start}"] if start else []
    if min_step is not None:
        conditions.append(f"step >= {int(min_step)}")
    if max_step is not None:
        conditions.append(f"step < {int(max_step)}")
    condition = " and ".join(conditions) or "true"
    if samples is not None and _held(place, stream) > samples:
        cells = shelf.cells(place, stream)
        numbers = shelf.connect().execute(f"select distinct row from {cells} and {condition} order by row").fetchall()
        if len(numbers) > samples:
            condition = f"row in (select unnest({thinned([n for (n,) in numbers], samples)}))"
    return read(shelf, place, stream, condition)


def read(shelf: Shelf, place: Place, stream: Stream, condition: str, keys: list[str] | None = None) -> list[str]:
    """Rows that satisfy a SQL condition, with these top-level keys only if they are given."""
    query = f"select key, path_id, row, kind, v, j from {shelf.cells(place, stream)} and {condition}"
    if keys is not None:
        query += " and list_contains($keys, key) and path_id = 0"
    parameters = None if keys is None else {"keys": keys}
    return list(rows_as_json(shelf.connect().sql(query, params=parameters).to_arrow_table()))


def sampled(look: Look, found: Found, spec: str, start: int = 0) -> list[dict[str, Any]]:
    """Rows that have all the keys of a spec `{"keys": [..], "samples": n, "minStep": a, "maxStep": b}`, with
    these keys only; maxStep is inclusive here. `{}` asks for none: the SDK sends it where it only
    wants the runs of a sweep."""
    try:
        asked = json.loads(spec)
        if asked == {}:
            return []
        keys = [str(k) for k in asked["keys"]]
        samples = int(asked.get("samples", 500))
        low, high = asked.get("minStep"), asked.get("maxStep")
        low, high = None if low is None else int(low), None if high is None else int(high) + 1
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f'`{spec[:200]}` is no sampledHistory spec: send JSON like {{"keys": ["_step", "loss"], "samples": 500}}'
        ) from None
    total = max(count(look, found, "history"), 1)
    if low is not None and high is not None and samples >= high - low:
        samples = total  # as in `rows`
    texts = rows(look, found, "history", min_step=low, max_step=high, samples=total, start=start)
    return thinned(list(having(map(parse_row, texts), keys)), samples)
