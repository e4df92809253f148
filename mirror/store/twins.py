"""Runs that are held from two sources, an offline log and a server: which may be the same, how their rows compare.

Rows are compared as a set with repetitions, by two sums of hashes of their cells, so a run of any length is compared
without holding it in memory, and in whatever order a source handed its rows over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from mirror.records import FileEntry, RunKey, Stream
from mirror.store.catalog import Catalog, Identity, StreamState
from mirror.store.cellform import CELLS
from mirror.store.cells import CellBatch, fingerprint, rows_as_json
from mirror.store.schema import STREAM_TABLE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from mirror.store.reader import Reader
    from mirror.store.writer import LogLine

_COMPARED = 5
"""First rows that have to agree."""
_PIECE_BYTES = 16 << 20
_CELL_BYTES = 64  # what a cell takes besides its text
_LINES = 10_000
_CLOCK = ("_step", "_timestamp", "_runtime")
"""What every road keeps of a row, and what tells rows of different runs apart."""
_SAME = """
select row, sum(hash({cell})) as a, bit_xor(hash('b', {cell})) as b from (
  select row, key, path_id,
    case kind when 'int' then 'number' when 'nonfinite' then 'string' else kind end as kind,
    case when kind <> 'nonfinite' then v + 0 end as v,
    case when kind = 'nonfinite' and isnan(v) then '"NaN"'
         when kind = 'nonfinite' then case when v > 0 then '"Infinity"' else '"-Infinity"' end
         when kind in ('list', 'dict', 'media') then canonical(j) else j end as j
  from {cells}
) group by row
"""
"""A row of every source has these sums: 1 and 1.0, NaN and "NaN" are the same, which sources spell differently."""


@dataclass(frozen=True)
class Held:
    """A run as it is held from one source: `streams` are the visible generations."""

    identity: Identity
    streams: dict[str, StreamState]

    @property
    def rid(self) -> int:
        return self.identity.rid

    @property
    def key(self) -> RunKey:
        return self.identity.key

    @property
    def origin(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.identity.origin or "{}")
        return found

    def rows(self, stream: str) -> int:
        return self.state(stream).rows

    def state(self, stream: str) -> StreamState:
        return self.streams.get(stream, StreamState())


def candidates(catalog: Catalog, logs: str, source: str, entity: str, project: str) -> list[tuple[Held, list[Held]]]:
    """Runs of the source `logs` with those that they may be copies of: runs of other sources with the same project and
    run id, and what they are shown under now, wherever it was moved. All of a project of `logs`, or those that concern
    a project of another source; those without any only if they were shown under one."""
    if not catalog.db.execute("select 1 from runs where source = ? limit 1", [logs]).fetchone():
        return []
    # A plus keeps SQLite from the index by source: it would look through all runs of one for each of the other.
    of_project = "source = :source and entity = :entity and project = :project"
    mine = f"select rid from runs where {of_project}"
    if source != logs:
        theirs = f"(select rid, project, run_id from runs where {of_project}) t"
        mine = (
            f"select l.rid from {theirs} join runs l on l.project = t.project and l.run_id = t.run_id "
            f"where +l.source = :logs union select l.rid from {theirs} join runs l on l.merged_into = t.rid"
        )
    there = "s.gen > 0 and s.deleted_at is null"
    query = (
        f"with m as (select rid, project, run_id, merged_into from runs where rid in ({mine}) and gen > 0) "
        "select m.rid, s.rid from m join runs s on s.project = m.project and s.run_id = m.run_id "
        f"where +s.source <> :logs and {there} "
        f"union select m.rid, s.rid from m join runs s on s.rid = m.merged_into where {there} "
        "union select rid, null from m where merged_into is not null order by 1, 2"
    )
    of: dict[int, list[int]] = {}
    given = {"logs": logs, "source": source, "entity": entity, "project": project}
    for log, other in catalog.db.execute(query, given):
        of.setdefault(log, []).extend([other] if other is not None else [])
    held = _held(catalog, sorted({*of, *(rid for others in of.values() for rid in others)}))
    return [(held[log], [held[rid] for rid in others]) for log, others in of.items()]


def _held(catalog: Catalog, rids: Sequence[int]) -> dict[int, Held]:
    states = catalog.streams(rids)
    found = {}
    for identity in catalog.identities(rids):
        streams = {s: live for s in STREAM_TABLE if (live := states.get((identity.rid, s), {}).get(True))}
        found[identity.rid] = Held(identity, streams)
    return found


def state(log: Held, others: Sequence[Held]) -> str:
    """Changes when rows of one of these runs do, or what is shown of them."""
    said: list[object] = []
    for held in (log, *others):
        streams = [(name, s.gen, s.rows) for name, s in sorted(held.streams.items())]
        said.append((held.rid, held.identity.merged_into, held.identity.origin, streams))
    return hashlib.blake2b(repr(said).encode(), digest_size=12).hexdigest()


class Comparison:
    """Compares what a reader holds of two runs."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._db: duckdb.DuckDBPyConnection = reader.connect()
        self._db.create_function("canonical", _canonical, ["VARCHAR"], "VARCHAR")

    def begin_alike(self, log: Held, other: Held, *, anywhere: bool = False) -> bool | None:
        """Whether the first rows of the log are the other's first ones, or some of them; None if one has no rows."""
        n = min(_COMPARED, log.rows("history"), other.rows("history"))
        if not n:
            return None
        lossy = _is_lossy(log) or _is_lossy(other)
        first = self._query(log, "history", lossy, f"row < {n}")
        return self._count(first, self._query(other, "history", lossy, "true" if anywhere else f"row < {n}")) == 0

    def lacking(self, log: Held, other: Held, stream: Stream) -> tuple[int, int]:
        """How many rows of `other` the log lacks, and how many of the log `other` lacks."""
        lossy = stream == "history" and (_is_lossy(log) or _is_lossy(other))
        a, b = (self._query(h, stream, lossy) for h in (log, other))
        return self._count(b, a), self._count(a, b)

    def lacking_lines(self, log: Held, other: Held) -> tuple[int, int]:
        """The same of console lines, by their texts."""
        a, b = (f"(select text from {self._rows(h, 'logs')})" for h in (log, other))
        return self._count(b, a), self._count(a, b)

    def _count(self, these: str, those: str) -> int:
        """How many rows of a query another one lacks."""
        found = self._db.execute(f"select count(*) from ({these} except all {those})").fetchone()
        assert found is not None
        return int(found[0])

    def _rows(self, held: Held, stream: str) -> str:
        return f"{self._reader.relation(STREAM_TABLE[stream], held.rid)} where gen = {held.state(stream).gen}"

    def _query(self, held: Held, stream: str, lossy: bool, where: str = "true") -> str:
        cells = f"{self._rows(held, stream)} and {where}"
        if lossy:
            cells += f" and key in {_CLOCK} and path_id = 0"
        return f"(select a, b from ({_SAME.format(cell='key, path_id, kind, v, j', cells=cells)}))"

    # -- what is taken over -------------------------------------------------------------------------------

    def batches(self, held: Held, stream: Stream, start: int, end: int) -> Iterator[CellBatch]:
        """The rows of a stream from row `start` to before row `end`, in pieces of a bounded size."""
        cells = f"{self._rows(held, stream)} and row >= {start} and row < {end}"
        pieces = self._db.execute(
            f"select min(row), max(row) from (select row, sum(w) over (order by row) // {_PIECE_BYTES} as part from "
            f"(select row, count(*) * {_CELL_BYTES} + coalesce(sum(strlen(j)), 0) as w from {cells} group by row)) "
            "group by part order by part"
        ).fetchall()
        for first, last in pieces:
            query = (
                f"select key, path_id, row - {first} as row, step, ts, kind, v, j from {self._rows(held, stream)} "
                f"and row between {first} and {last}"
            )
            table: pa.Table = self._db.sql(query).to_arrow_table()
            steps = pc.min_max(table["step"]).as_py()
            tail = table.filter(pc.equal(table["row"], last - first))
            text = next(iter(rows_as_json(tail)))
            cells_of = table.select(CELLS.names).cast(CELLS)
            yield CellBatch(last - first + 1, cells_of, steps["min"], steps["max"], fingerprint(text))

    def lines(self, held: Held) -> Iterator[list[LogLine]]:
        found = self._reader.connect()
        found.execute(f"select line, ts, level, text from {self._rows(held, 'logs')} order by line")
        while some := found.fetchmany(_LINES):
            yield some

    def files(self, held: Held) -> list[FileEntry]:
        names = ["name", "size", "md5", "mimetype", "updated_at", "storage_id", "url", "sha256"]
        rows = self._db.execute(f"select {', '.join(names)} from {self._rows(held, 'files')}").fetchall()
        return [FileEntry(*row) for row in rows]

    def run(self, held: Held) -> dict[str, Any]:
        """The page (`url`) and the config of a run, as it came over the wire."""
        query = f"select url, config_raw from {self._reader.relation('runs', held.rid)} where gen = {held.identity.gen}"
        found = self._db.execute(query).fetchone()
        url, config = found or (None, None)
        return {"url": url, "config": json.loads(config or "{}")}


def _is_lossy(held: Held) -> bool:
    read = held.state("history").fetched
    return read is not None and not read.lossless


def _canonical(text: str) -> str:
    """A JSON text in which the order of keys, 1 and 1.0, NaN and "NaN" are the same; one too deep for that as it is."""
    try:
        return json.dumps(_plain(json.loads(text)), sort_keys=True)
    except RecursionError:
        return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        return value if value == value and abs(value) != float("inf") else json.dumps(value)
    return value
