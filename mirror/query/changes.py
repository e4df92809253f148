"""What syncs saw change at the source: the rows of `changes` that one asks for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mirror.paths import WandbPath, canonical_source
from mirror.query.runs import check_held
from mirror.query.sql import Result, execute

if TYPE_CHECKING:
    from mirror.store import Reader


def changes(
    reader: Reader,
    path: WandbPath | None = None,
    *,
    since: datetime | None = None,
    kinds: Sequence[str] = (),
    how: Sequence[str] = (),
    source: str | None = None,
    limit: int | None = None,
) -> Result:
    """The changes of all there is, or of what a path names, oldest first, at most `limit`. NotFoundError if the path
    names nothing that is held."""
    where: list[str] = []
    values: list[Any] = []

    def wants(condition: str, *given: Any) -> None:
        where.append(condition)
        values.extend(given)

    if path is not None:
        check_held(reader, path, source)
        named = [(c, v) for c, v in (("entity", path.entity), ("project", path.project)) if v is not None]
        within = " and ".join(f"{column} = ?" for column, _ in named) or "true"
        if path.run_id is not None:  # wherever it was before
            rids = f"rid in (select rid from runs where {within} and run_id = ?)"
            wants(rids, *(value for _, value in named), path.run_id)
        else:
            wants(within, *(value for _, value in named))
        if path.sweep_id is not None:
            wants("kind = 'sweep' and name = ?", path.sweep_id)
        if path.base_url is not None:
            wants("source = ?", canonical_source(path.base_url))
    if source is not None:
        wants("source = ?", source)
    if since is not None:
        wants("seen_at >= ?", since)
    for column, chosen in (("kind", kinds), ("change", how)):
        if chosen:
            wants(f"{column} in ({', '.join('?' * len(chosen))})", *chosen)
    return execute(
        reader,
        "select seen_at, source, kind, entity || '/' || project || case when kind = 'project' then '' else '/' || name "
        "end as path, change, field, before, after from changes "
        f"where {' and '.join(where) or 'true'} order by seen_at, source, entity, project, kind, name, field"
        + ("" if limit is None else " limit ?"),
        [*values, *([] if limit is None else [limit])] or None,
    )
