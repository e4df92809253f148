"""`mirror tables`: the W&B tables that runs and artifacts hold, and the names to read them by."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.complete import complete_path
from mirror.cli.options import limit_option, output_options, root_option, source_option


@click.command("tables")
@click.argument("path", required=False, shell_complete=complete_path)
@click.option("--missing", is_flag=True, help="Also those whose bytes the mirror does not hold.")
@limit_option("Show at most so many tables.")
@source_option
@root_option
@output_options
def command(
    path: str | None,
    missing: bool,
    limit: int | None,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """List W&B tables, those of PATH if one is given: rows, columns, and the name that SQL reads each by.

    A table can be read once its bytes are in the mirror: `mirror sync PATH --media` fetches those that runs logged,
    `--artifacts TYPE/NAME` those in artifacts. Columns have one type each; columns of lists, media or mixed values
    hold JSON.

    \b
    Examples:
      mirror tables
      mirror tables my-team/my-project --missing
      mirror sql 'select * from "table:my-team/my-project/1a2b3c4d:predictions" limit 5'
      mirror sql 'select label, count(*) from "table:my-team/my-project/eval:v3/scores" group by label'
    """
    from mirror.cli.output import emit
    from mirror.errors import UsageError
    from mirror.paths import parse
    from mirror.query.sql import execute
    from mirror.store import Reader

    given = parse(path) if path is not None else None
    if given is not None and given.project is None and given.entity is None:
        raise UsageError(f"`{path}` is no path: write entity, entity/project or entity/project/run")
    params = {
        "entity": given and given.entity, "project": given and given.project, "run": given and given.run_id,
        "missing": missing, "source": source,
    }  # fmt: skip
    with Reader(root) as reader:
        found = execute(reader, _TABLES + ("" if limit is None else f"limit {limit:d}"), params)
        if found.fetchone() is None:
            more = "" if missing else " whose bytes are held: --missing lists the others, too"
            click.echo(f"No tables{more}.", err=True)
        emit(found, format_, output, root=root)


_TABLES = """
select name, row_count as rows, json_array_length(fields) as columns,
       array_to_string(json_extract_string(fields, '$[*].column'), ', ') as "column names",
       case when sha256 is null then 'bytes not held' else note end as note
from tables
where ($entity::varchar is null or entity = $entity) and ($project::varchar is null or project = $project)
  and ($run::varchar is null or run_id = $run) and ($source::varchar is null or source = $source)
  and ($missing or sha256 is not null)
order by source, entity, project, run_id, key, step, row, collection, version, path
"""
