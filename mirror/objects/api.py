"""`mirror.Api`: the way into a mirror that users know from `wandb.Api`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirror.errors import AmbiguousError, NotFoundError
from mirror.objects.run import COLUMNS, Run, Runs
from mirror.paths import parse
from mirror.store import Reader


class Api:
    """A mirror, asked as `wandb.Api()` is. `root` defaults to MIRROR_ROOT, then `./wandb-mirror`.

    An Api stays with the state of the mirror it found; `flush()` moves on to the newest, as in W&B's SDK.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self._reader = Reader(root or os.environ.get("MIRROR_ROOT") or "wandb-mirror")

    def flush(self) -> None:
        """See what was mirrored since."""
        self._reader.refresh()

    def run(self, path: str) -> Run:
        """The run at `entity/project/run_id` (or a URL of it, or `project/run_id` if only one entity has it).

        `NotFoundError` if the mirror lacks it; `AmbiguousError`, which lists them, if several sources hold it.
        """
        wanted = parse(path, want="run", entity=os.environ.get("WANDB_ENTITY"))
        conditions = {"entity": wanted.entity, "project": wanted.project, "run_id": wanted.run_id}
        given = {name: value for name, value in conditions.items() if value is not None}
        where = " and ".join(f"{name} = ?" for name in given)
        query = f"select {COLUMNS} from runs_raw where {where} order by source"
        found = [Run(self._reader, row) for row in self._rows(query, list(given.values()))]
        if not found:
            raise NotFoundError(
                f"the mirror holds no run `{wanted.text}`: list what it has with `mirror runs`, or fetch it with "
                f"`mirror sync {wanted.text}`"
            )
        if len(found) > 1:
            places = ", ".join(f"`{run.source}: {'/'.join(run.path)}`" for run in found)
            raise AmbiguousError(
                f"`{path}` names several runs: {places}; ask in SQL with `source = ...` to tell them apart"
            )
        return found[0]

    def runs(
        self,
        path: str | None = None,
        filters: Mapping[str, Any] | str | None = None,
        order: str = "+created_at",
        per_page: int = 50,
    ) -> Runs:
        """The runs of `entity/project` (of everything if None) that match MongoDB-style `filters`, in `order`.

        `per_page` is accepted for compatibility and means nothing here. Deleted runs are left out, as at W&B.
        """
        from mirror.query.filters import order_sql, to_sql

        wanted = parse(path, want="project", entity=os.environ.get("WANDB_ENTITY")) if path else None
        given = {"entity": wanted.entity, "project": wanted.project} if wanted else {}
        named = {name: value for name, value in given.items() if value is not None}
        conditions = [f"runs.{name} = ?" for name in named]
        chosen = " and ".join([*conditions, "deleted_at is null", to_sql(filters or {})])
        query = (
            f"select {COLUMNS} from runs_raw join (select rid, row_number() over (order by {order_sql(order)}) as place "
            f"from runs where {chosen}) as chosen using (rid) order by place"
        )
        return Runs([Run(self._reader, row) for row in self._rows(query, list(named.values()))])

    def _rows(self, query: str, params: list[Any]) -> list[dict[str, Any]]:
        cursor = self._reader.connect()
        try:
            found = cursor.execute(query, params)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        finally:
            cursor.close()
