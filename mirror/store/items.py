"""Sweeps, artifact collections, artifacts and reports: things of a project that have an identity and versions.

They are numbered like runs (a `rid` each) and written as deltas: a change appends one row under the next gen, and
the row with the highest gen is the live one. An artifact's manifest and its uses lie in tables of their own, in
versions of their own, so that a moved alias does not write a million entries again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from mirror.errors import StoreError
from mirror.records import Artifact, ArtifactCollection, Item, ItemKey, Report, Sweep
from mirror.store.catalog import Catalog, ItemIdentity, iso, now
from mirror.store.documents import explode
from mirror.store.schema import tables
from mirror.store.tablefiles import note_tables

if TYPE_CHECKING:
    from mirror.store.commit import Batch, Committer

KIND: dict[type[Item], str] = {
    Sweep: "sweeps",
    ArtifactCollection: "artifact_collections",
    Artifact: "artifacts",
    Report: "reports",
}
"""The table of each kind of item."""

_PARTS = {"entries": "artifact_entries", "uses": "artifact_uses"}
_AT_ONCE = 10_000
_MOST_NODES = 100_000


@dataclass(frozen=True)
class KnownItem:
    """What the catalog knows of an item. `digest` changes with everything but its entries and uses; `has_entries`
    is about an artifact's manifest."""

    rid: int
    key: ItemKey
    digest: str
    missing: int
    deleted: bool
    has_entries: bool


class Items:
    """The items that one writing session puts. Everything goes into the writer's batch. `changed` counts versions."""

    def __init__(self, catalog: Catalog, committer: Committer, reserve_rid: Callable[[], int]) -> None:
        self._catalog = catalog
        self._committer = committer
        self._reserve_rid = reserve_rid
        self._open: dict[tuple[str, str, str], tuple[ItemIdentity, dict[str, Any] | None]] = {}
        self._written: dict[int, tuple[str, int, dict[str, Any]]] = {}
        self.changed = 0

    def known(self, kind: str, source: str, entity: str, project: str) -> dict[str, KnownItem]:
        """A project's items of one kind by storage id, as they are committed."""
        return {
            i.key.storage_id: KnownItem(
                i.rid,
                i.key,
                i.digest,
                i.missing,
                i.deleted_at is not None,
                i.entries_gen > 0 and i.entries_digest != "",
            )
            for i in self._catalog.project_items(kind, source, entity, project)
        }

    def put(self, item: Item, batch: Batch) -> tuple[int, int]:
        """Record an item; returns its rid and about how many bytes that buffers (0 if it is held as it is)."""
        kind = KIND[type(item)]
        identity, _ = self._opened(kind, item.key)
        row = _row(item)
        new = _digest(repr(sorted(row.items())))
        changed = identity.digest != new or identity.deleted_at is not None or identity.key != item.key
        size = 0
        if isinstance(item, Artifact):
            for part, given in (("entries", item.entries), ("uses", item.uses)):
                if given is not None:
                    written = self._put_part(identity, part, given, batch)
                    changed |= written > 0
                    size += written
        if not changed:
            self._save(identity, replace(identity, missing=0), row, batch)
            return identity.rid, 0
        self._write(replace(identity, key=item.key, digest=new, deleted_at=None, missing=0), row, batch)
        return identity.rid, size + 2048 + sum(len(v) for v in row.values() if isinstance(v, str))

    def drop(self, kind: str, key: ItemKey, batch: Batch, at: datetime | None = None) -> None:
        """Mark an item as deleted. What is held of it stays."""
        identity, row = self._opened(kind, key)
        if not identity.gen or identity.deleted_at:
            return
        self._write(replace(identity, deleted_at=iso(at or now())), row or self._stored(identity), batch)

    def hold(self, key: ItemKey, hashes: Mapping[str, str], batch: Batch) -> int:
        """Note which blobs (sha256, by path) hold the bytes of an artifact's entries; returns the bytes that buffers.
        What the artifact is does not change by that."""
        identity, row = self._opened("artifacts", key)
        rows = self._committer.read("artifact_entries", [identity.rid], [identity.entries_gen])
        paths, known = pa.array(list(hashes), pa.string()), pa.array(list(hashes.values()), pa.string())
        found = known.take(pc.index_in(rows["path"], paths).combine_chunks())
        sha256 = pc.coalesce(found, rows["sha256"].combine_chunks())
        gen = pa.repeat(pa.scalar(identity.entries_gen + 1, pa.int64()), rows.num_rows)
        for name, column in (("sha256", sha256), ("gen", gen)):
            rows = rows.set_column(rows.column_names.index(name), name, column)
        batch.rows.setdefault("artifact_entries", []).append(rows.cast(tables()["artifact_entries"]))
        batch.superseded["artifact_entries"] = batch.superseded.get("artifact_entries", 0) + 1
        note_tables(batch, self._catalog.layout, identity.rid, hashes)
        changed = self.changed
        self._write(replace(identity, entries_gen=identity.entries_gen + 1), row or self._stored(identity), batch)
        self.changed = changed
        return int(rows.nbytes)

    def _stored(self, identity: ItemIdentity) -> dict[str, Any]:
        """The live version of an item, read back from the data."""
        held = self._committer.read(identity.kind, [identity.rid], [identity.gen]).to_pylist()
        if not held:
            key = identity.key
            raise StoreError(
                f"`{key.storage_id}` of `{key.entity}/{key.project}` is in the catalog, but not in `{identity.kind}`: "
                f"run `mirror repair --mirror {self._catalog.layout.root}`"
            )
        found: dict[str, Any] = held[0]
        return found

    def missed(self, kind: str, key: ItemKey, batch: Batch) -> int:
        """Note that a complete listing lacked the item; returns how many in a row did."""
        identity, row = self._opened(kind, key)
        self._save(identity, replace(identity, missing=identity.missing + 1), row, batch)
        return identity.missing + 1

    def committed(self) -> None:
        """What was put is durable: forget it."""
        self._open.clear()
        self._written.clear()

    def written(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Kind, version that is committed (0: none) and new row of what was put since the last commit."""
        return list(self._written.values())

    def _opened(self, kind: str, key: ItemKey) -> tuple[ItemIdentity, dict[str, Any] | None]:
        name = (kind, key.source, key.storage_id)
        if name not in self._open:
            found = self._catalog.find_item(*name)
            self._open[name] = (found or ItemIdentity(self._reserve_rid(), kind, key), None)
        return self._open[name]

    def _write(self, identity: ItemIdentity, row: dict[str, Any], batch: Batch) -> None:
        """The next version of an item."""
        self.changed += 1
        batch.superseded[identity.kind] = batch.superseded.get(identity.kind, 0) + (identity.gen > 0)
        new = replace(identity, gen=identity.gen + 1)
        row |= {
            "rid": new.rid,
            "gen": new.gen,
            "entity": new.key.entity,
            "project": new.key.project,
            "mirrored_at": now(),
            "deleted_at": datetime.fromisoformat(new.deleted_at) if new.deleted_at else None,
        }
        if new.kind == "artifacts":
            row |= {"entries_gen": new.entries_gen, "uses_gen": new.uses_gen}
        committed = self._written[new.rid][1] if new.rid in self._written else identity.gen
        self._written[new.rid] = (new.kind, committed, row)
        table = pa.Table.from_pylist([row], schema=tables()[new.kind])
        batch.rows.setdefault(new.kind, []).append(table)
        self._save(identity, new, row, batch)

    def _save(self, old: ItemIdentity, new: ItemIdentity, row: dict[str, Any] | None, batch: Batch) -> None:
        self._open[(new.kind, new.key.source, new.key.storage_id)] = (new, row)
        if new != old:
            batch.later.append(lambda: self._catalog.save_item(new))

    def _put_part(self, identity: ItemIdentity, part: str, given: Iterable[Any], batch: Batch) -> int:
        """An artifact's entries or uses, read once; returns the bytes that buffers. `identity` is brought along."""
        schema = tables()[_PARTS[part]]
        names = [name for name in schema.names if name not in ("rid", "gen")]
        gen = getattr(identity, f"{part}_gen") + 1
        hashed = hashlib.blake2b(digest_size=12)
        made: list[pa.Table] = []
        rows: list[tuple[Any, ...]] = []

        def flush() -> None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            ids = [[identity.rid] * len(rows), [gen] * len(rows)]
            made.append(pa.table([*ids, *columns], schema=schema))
            rows.clear()

        for one in given:
            values = tuple(getattr(one, name) for name in names)
            hashed.update(repr(values).encode("utf-8", "surrogatepass"))
            rows.append(values)
            if len(rows) == _AT_ONCE:
                flush()
        if rows:
            flush()
        if hashed.hexdigest() == getattr(identity, f"{part}_digest"):
            return 0
        batch.superseded[_PARTS[part]] = batch.superseded.get(_PARTS[part], 0) + (gen > 1)
        if made:
            batch.rows.setdefault(_PARTS[part], []).extend(made)
        setattr(identity, f"{part}_gen", gen)
        setattr(identity, f"{part}_digest", hashed.hexdigest())
        return 1 + sum(int(t.nbytes) for t in made)


def _row(item: Item) -> dict[str, Any]:
    """The columns that an item's record says."""
    skipped = {"key", *_PARTS}
    row = {f.name: getattr(item, f.name) for f in fields(item) if f.name not in skipped}
    row |= {name: list(row[name]) for name in ("aliases", "tags") if name in row}
    row |= {name: getattr(item.key, name) for name in ("source", "storage_id", "entity", "project")}
    if isinstance(item, Sweep):
        row |= {"config_raw": item.config, **sweep_columns(item.config)}
    return row


def sweep_columns(raw: str | None) -> dict[str, str | None]:
    """`config` (JSON), `method`, `metric` and `goal` of a sweep's YAML; all None where it cannot be read."""
    config = None
    if raw is not None:
        try:
            config = _plain(yaml.safe_load(raw), [_MOST_NODES])
        except (yaml.YAMLError, ValueError, RecursionError):
            config = None
    found: dict[str, Any] = config if isinstance(config, dict) else {}
    metric = found.get("metric")
    metric = metric if isinstance(metric, dict) else {}

    def text(value: object) -> str | None:
        return value if isinstance(value, str) else None

    return {
        "config": None if config is None else explode(json.dumps(config), unwrap=False)[0],
        "method": text(found.get("method")),
        "metric": text(metric.get("name")),
        "goal": text(metric.get("goal")),
    }


def _plain(value: Any, left: list[int]) -> Any:
    """YAML's value as JSON knows it. `left` bounds its nodes: a few anchors can name billions of them."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("too many nodes")
    if isinstance(value, dict):
        return {str(k): _plain(v, left) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v, left) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
