"""Segments: the immutable Parquet files of a mirror.

Cells are sorted by (key, rid, row), so that one metric of all runs is one contiguous stretch and row groups
outside it are skipped. Each footer carries enough to rebuild a lost catalog.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirror.store.catalog import FileRow
from mirror.store.disk import explained, sha256, sync_folder, write_durably
from mirror.store.layout import Layout
from mirror.store.schema import CELL_TABLES, ITEM_TABLES, SCHEMA_VERSION, fitted, tables

FOOTER = b"mirror"
ROW_GROUP = 131_072
_GROUP_BYTES = 32 << 20
ORDER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CELL_TABLES, ("key", "rid", "row")),
    "config": ("path", "rid"),
    "summary": ("path", "rid"),
    "metric": ("rid", "key"),
    "runs": ("rid",),
    "artifact_entries": ("rid", "path"),
    **dict.fromkeys(ITEM_TABLES, ("rid",)),
}
"""How the segments of a table are sorted."""
# A change of one run reads its row and its metrics back: small groups keep that cheap.
_SMALL_GROUPS = {"runs": 4096, "metric": 16_384}
_DELTA = ("row", "step", "ts")
_BLOCK = 64  # cells; from this mean length on, blocks of one key and run are moved as they are


def write_segment(
    layout: Layout,
    name: str,
    table: str,
    data: pa.Table,
    *,
    shard: int = 0,
    identities: Iterable[Sequence[Any]] = (),
) -> FileRow:
    """Write `data` as `ROOT/data/<table>/<shard>/<name>.parquet`, durable and read-only.

    `identities` are (rid, source, storage_id, entity, project, run_id) of the runs inside.
    """
    if table not in CELL_TABLES:  # cells come sorted, under schema and keys that are dictionaries
        data = data.cast(tables()[table])
        if table in ORDER:
            data = data.sort_by([(column, "ascending") for column in ORDER[table]])
    footer = {
        "rids": rid_ranges(pc.unique(data["rid"]).drop_null()) if "rid" in data.column_names else [],
        "identities": [list(i) for i in identities],
        "streams": _stream_extents(data) if table in CELL_TABLES else [],
        "replaces": [],
    }
    return write_pieces(layout, name, table, [data], data.schema, footer, shard=shard)


def write_pieces(
    layout: Layout,
    name: str,
    table: str,
    pieces: Iterable[pa.Table],
    schema: pa.Schema,
    footer: dict[str, Any],
    *,
    shard: int,
) -> FileRow:
    """Write a segment out of pieces that follow each other in the table's order; only a row group is held."""
    folder = layout.data / table / str(shard)
    path = folder / f"{name}.parquet"
    said = {"table": table, "schema_version": SCHEMA_VERSION, "name": name, **footer}
    rows = 0

    def write(f: BinaryIO) -> None:
        nonlocal rows
        with pq.ParquetWriter(f, schema.with_metadata({FOOTER: json.dumps(said).encode()}), **_options(table)) as out:
            for group in _groups(pieces, _SMALL_GROUPS.get(table, ROW_GROUP)):
                out.write_table(group, row_group_size=_SMALL_GROUPS.get(table, ROW_GROUP))
                rows += group.num_rows

    with explained(f"writing `{path.relative_to(layout.root)}`"):
        _make_durable_folder(folder)
        write_durably(path, write, mode=0o444)
        return FileRow(
            path=str(path.relative_to(layout.root)),
            table=table,
            rows=rows,
            bytes=path.stat().st_size,
            sha256=sha256(path),
            rids=footer["rids"],
            version=SCHEMA_VERSION,
        )


def _groups(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The pieces put together to whole row groups; smaller ones where rows are long."""
    waiting: list[pa.Table] = []
    held = size = 0
    for piece in pieces:
        waiting.append(piece)
        held, size = held + piece.num_rows, size + piece.nbytes
        if held < rows and size < _GROUP_BYTES:
            continue
        together = pa.concat_tables(waiting) if len(waiting) > 1 else piece
        whole = held - held % rows if size < _GROUP_BYTES else held
        yield together.slice(0, whole)
        waiting, held, size = [], held - whole, 0
        if held:
            waiting = [together.slice(whole)]
            size = waiting[0].nbytes
    if held:
        yield pa.concat_tables(waiting)


def _make_durable_folder(folder: Path) -> None:
    missing = [p for p in (folder, folder.parent) if not p.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def _options(table: str) -> dict[str, Any]:
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 3}
    if table in CELL_TABLES:
        options["use_dictionary"] = ["rid", "gen", "key", "path_id", "kind", "j"]
        options["column_encoding"] = {
            "v": "BYTE_STREAM_SPLIT",
            **dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        }
        # Statistics of long texts only bloat the footer.
        options["write_statistics"] = ["rid", "gen", "key", "row", "step", "ts"]
    return options


def sorted_cells(parts: Sequence[tuple[int, int, int, pa.Table]]) -> pa.Table:
    """One table of cells in segment order out of (rid, gen, first row, batch of cells).

    Batches of one run must come in row order; a stable sort by (key, rid) then keeps the rows in order.
    """
    chunks = []
    for rid, gen, first_row, batch in parts:
        n = batch.num_rows
        row = pc.add(batch["row"], pa.scalar(first_row, pa.int64())) if first_row else batch["row"]
        columns = [pa.repeat(pa.scalar(rid, pa.int64()), n), pa.repeat(pa.scalar(gen, pa.int64()), n)]
        columns += [
            batch["key"],
            batch["path_id"],
            row,
            batch["step"],
            batch["ts"],
            batch["kind"],
            batch["v"],
            batch["j"],
        ]
        chunks.append(pa.table(columns, names=["rid", "gen", "key", "path_id", "row", "step", "ts", "kind", "v", "j"]))
    table = pa.concat_tables(chunks).unify_dictionaries()
    if not table.num_rows:
        return table
    keys = table["key"].chunks
    names = np.array([k.encode("utf-8", "surrogatepass") for k in keys[0].dictionary.to_pylist()], dtype=object)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.argsort(names, kind="stable")] = np.arange(len(names))
    rids = {rid: i for i, rid in enumerate(sorted({rid for rid, *_ in parts}))}
    rid_rank = np.repeat([rids[rid] for rid, *_ in parts], [part.num_rows for *_, part in parts])
    place = rank[np.concatenate([chunk.indices.to_numpy() for chunk in keys])] * len(rids) + rid_rank
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    if len(starts) * _BLOCK < len(place):  # key after key, as exports come: whole blocks are put in order
        lengths = np.diff(starts, append=len(place))
        blocks = np.argsort(place[starts], kind="stable")
        at = zip(starts[blocks].tolist(), lengths[blocks].tolist(), strict=True)
        return pa.concat_tables([table.slice(start, length) for start, length in at])
    if len(names) * len(rids) < 1 << 16:
        place = place.astype(np.uint16)  # sorted by radix, several times faster
    return table.combine_chunks().take(pa.array(np.argsort(place, kind="stable")))


def rid_ranges(rids: Any) -> list[list[int]]:
    """The distinct rids as [first, last] ranges: rids of one sync are neighbours, so this stays short."""
    distinct = np.unique(np.asarray(rids, dtype=np.int64))
    if not len(distinct):
        return []
    breaks = np.flatnonzero(np.diff(distinct) > 1)
    first = np.concatenate([distinct[:1], distinct[breaks + 1]])
    last = np.concatenate([distinct[breaks], distinct[-1:]])
    ranges: list[list[int]] = np.column_stack([first, last]).tolist()
    return ranges


def _stream_extents(cells: pa.Table) -> list[list[int]]:
    """(rid, gen, first row, last row) inside a file of cells: what `repair` checks for gaps and overlaps."""
    found = cells.group_by(["rid", "gen"]).aggregate([("row", "min"), ("row", "max")])
    rows = [found[c].to_pylist() for c in ("rid", "gen", "row_min", "row_max")]
    return sorted(map(list, zip(*rows, strict=True)))


def read(path: Path, table: str, filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
    """The rows of a segment that pass `filters` (pyarrow's), under the columns that the table has today."""
    return fitted(pq.read_table(path, filters=filters), tables()[table])


def footer(path: Path) -> dict[str, Any] | None:
    """What a segment says of itself; None if it is no segment of a mirror."""
    metadata = pq.read_metadata(path).metadata or {}
    text = metadata.get(FOOTER)
    return json.loads(text) if text else None


def remove_readonly(path: Path) -> None:
    if path.exists():
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        path.unlink(missing_ok=True)
