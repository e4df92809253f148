"""What a shell offers when Tab is pressed: paths and saved queries of the mirror, read from its snapshot alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

_MOST = 200


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Entities, then projects, then runs: one level at a time."""
    return [CompletionItem(path) for path in _held(ctx, incomplete)]


complete_run = complete_path


def complete_query(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of saved queries."""
    from mirror.query.saved import load, names

    return [CompletionItem(name, help=load(name).question) for name in names() if name.startswith(incomplete)]


def _held(ctx: click.Context, incomplete: str) -> list[str]:
    from mirror.errors import MirrorError

    root: Any = ctx.params.get("root") or os.environ.get("MIRROR_ROOT") or "./wandb-mirror"
    try:
        return _paths(Path(root), incomplete)
    except (MirrorError, OSError):  # a shell in the middle of a line is no place for complaints
        return []


def _paths(root: Path, incomplete: str) -> list[str]:
    import duckdb

    from mirror.store.layout import Layout
    from mirror.store.snapshot import Snapshot

    layout = Layout(root)
    files = [str(layout.root / file["path"]) for file in Snapshot(layout.read_snapshot()).files("runs")]
    if not files:
        return []
    level = min(incomplete.count("/"), 2)
    parts = ["entity", "project", "run_id"][: level + 1]
    path = " || '/' || ".join(parts) + ("" if level == 2 else " || '/'")
    query = f"""
        select distinct {path} as path
        from (
          select *, row_number() over (partition by rid order by gen desc) as n
          from (select rid, gen, entity, project, run_id, deleted_at from read_parquet(?, union_by_name => true))
        )
        where n = 1 and deleted_at is null and starts_with(path, ?)
        order by 1 limit {_MOST}
    """
    with duckdb.connect() as db:
        try:
            found = [row[0] for row in db.execute(query, [files, incomplete]).fetchall()]
        except duckdb.Error:
            return []
    # A line break or a control character in a name would take effect in the shell.
    return [path for path in found if path.isprintable()]
