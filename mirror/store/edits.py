"""What a writing session has put since its last commit, beside what is held of the same things."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mirror.records import Change, Run
from mirror.store.schema import tables
from mirror.store.versions import run_of

if TYPE_CHECKING:
    from mirror.store.commit import Committer, OpenRun
    from mirror.store.items import Items

_TOGETHER = 200
"""Versions that are read back at once."""


@dataclass(frozen=True)
class EditedRun:
    """A run whose documents were put. `before` is what is held of it, None for a new one; `deleted` says that it was
    held as deleted."""

    rid: int
    before: Run | None
    after: Run
    deleted: bool


@dataclass(frozen=True)
class EditedItem:
    """A sweep, collection, artifact or report of which a version was put: rows of its table `kind`."""

    rid: int
    kind: str
    before: dict[str, Any] | None
    after: dict[str, Any]


def edited_runs(opened: Iterable[OpenRun], committer: Committer) -> Iterator[EditedRun]:
    """The runs whose documents a commit would write now."""
    found = [(one.identity, one.run) for one in opened if one.document_changed and one.run is not None]
    for start in range(0, len(found), _TOGETHER):
        part = found[start : start + _TOGETHER]
        held = committer.held_runs([i for i, _ in part if i.gen])
        for identity, run in part:
            row = held.get(identity.rid)
            before = None if row is None else run_of(row)
            yield EditedRun(identity.rid, before, run, row is not None and row["deleted_at"] is not None)


def edited_items(items: Items, committer: Committer) -> Iterator[EditedItem]:
    """The items of which a commit would write a version now."""
    found = items.written()
    for kind in sorted({kind for kind, _, _ in found}):
        ours = [(gen, row) for its, gen, row in found if its == kind]
        for start in range(0, len(ours), _TOGETHER):
            part = ours[start : start + _TOGETHER]
            gens = {row["rid"]: gen for gen, row in part if gen}
            rows = committer.read(kind, [*gens], [*gens.values()]).to_pylist() if gens else []
            held = {row["rid"]: row for row in rows if row["gen"] == gens[row["rid"]]}
            for _, row in part:
                yield EditedItem(row["rid"], kind, held.get(row["rid"]), row)


def as_rows(changes: Sequence[Change]) -> pa.Table:
    """Rows of the table `changes`."""
    schema = tables()["changes"]
    return pa.table([[getattr(c, name) for c in changes] for name in schema.names], schema=schema)
