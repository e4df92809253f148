"""`mirror changes`: what syncs saw change at the source."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.complete import complete_path
from mirror.cli.options import limit_option, output_options, root_option, source_option

_KINDS = ["run", "sweep", "artifact", "collection", "report", "project"]
_CHANGES = ["new", "edited", "resumed", "grown", "rewound", "rewritten", "moved", "renamed", "deleted", "returned"]


@click.command("changes")
@click.argument("path", required=False, shell_complete=complete_path)
@click.option("--since", metavar="TIME", help="Only what was seen since: a date, or how long ago, such as 36h or 7d.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(_KINDS), help="Only such things; may be repeated.")
@click.option("--change", "how", multiple=True, type=click.Choice(_CHANGES), help="Only this; may be repeated.")
@limit_option("Show at most so many, the oldest ones.")
@source_option
@root_option
@output_options
def command(
    path: str | None,
    since: str | None,
    kinds: tuple[str, ...],
    how: tuple[str, ...],
    limit: int | None,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """List what syncs saw change at the source, oldest first: everywhere, or in what PATH names.

    A thing that is new has one line. What was edited has a line for each field, with the value before and after. A run
    that goes on is no news; that it has ended is, and so is one that had ended and has more rows (resumed), fewer
    (rewound) or other ones (rewritten). What is deleted at the source stays in the mirror.

    The same rows are the view `changes` of `mirror sql`.

    \b
    Examples:
      mirror changes my-team/my-project --since 7d
      mirror changes --change deleted --change rewound --change rewritten
      mirror changes my-team/my-project/1a2b3c4d
      mirror changes --kind artifact --format jsonl
    """
    from datetime import datetime, timezone

    from mirror.cli.output import emit
    from mirror.cli.selection import moment
    from mirror.paths import parse
    from mirror.query.changes import changes
    from mirror.store import Reader

    at = None if since is None else moment(since, datetime.now(timezone.utc))
    named = None if path is None else parse(path)
    with Reader(root) as reader:
        found = changes(reader, named, since=at, kinds=kinds, how=how, source=source, limit=limit)
        if found.fetchone() is None:
            click.echo("No changes were seen.", err=True)
        emit(found, format_, output, root=root)
