"""Runs that the mirror holds twice: from a log on disk, and from a server that the log was sent to.

Both are kept, each with its own `source`. They are the same run if project, run id and the first rows agree; a pair
whose rows differ only shares its names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mirror.store import Reader
from mirror.store.cells import fingerprint, rows_as_dicts

_COMPARED = 5
"""First rows that have to agree."""
_NAMED = 3
_MOST_CELLS = 100_000


def twins(root: Path, source: str, entity: str, project: str, run_ids: Collection[str]) -> Iterator[str]:
    """What to tell a user about runs of a project of this source that are held from other sources, too."""
    query = (
        "select a.run_id, a.rid, a.entity, b.rid, b.source, b.entity from runs a join runs b using (project, run_id) "
        "where a.source = ? and a.entity = ? and project = ? and b.source <> a.source and b.deleted_at is null"
    )
    same: dict[str, list[str]] = {}
    with Reader(root) as reader:
        for run_id, rid, _, other, where, owner in (
            reader.connect().execute(query, [source, entity, project]).fetchall()
        ):
            if run_id not in run_ids:
                continue
            path = f"{owner}/{project}/{run_id}"
            if _first_rows(reader, rid) == _first_rows(reader, other):
                same.setdefault(where, []).append(path)
            else:
                yield (
                    f"`{path}` from {where} has the id of a run of this folder, but other first rows: they are kept as "
                    "two runs, told apart by `source`"
                )
    for where, paths in same.items():
        named = ", ".join(f"`{path}`" for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
        yield (
            f"{len(paths)} of these runs are mirrored from {where}, too ({named}): both copies are kept, told apart by "
            f"`source`; the logs have every system metric, the server what was edited later"
        )


def _first_rows(reader: Reader, rid: int) -> list[str]:
    """The first rows of a run's history in a form in which 1 and 1.0 are equal."""
    query = (
        "select key, path_id, row, kind, v, j from raw.history_live where rid = ? and row < ? order by row "
        f"limit {_MOST_CELLS}"
    )
    cells = reader.connect().sql(query, params=[rid, _COMPARED]).to_arrow_table()
    return [fingerprint(json.dumps(_plain(row))) for row in islice(rows_as_dicts(cells), _COMPARED)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
