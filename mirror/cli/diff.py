"""`mirror diff`: what differs between runs."""

from __future__ import annotations

from pathlib import Path

import click

from mirror.cli.complete import complete_run
from mirror.cli.options import Option, output_options, root_option, source_option
from mirror.errors import UsageError


@click.command("diff")
@click.argument("runs", nargs=-1, metavar="RUN RUN...", shell_complete=complete_run)
@click.option("--all", "all_", is_flag=True, help="Show keys, too, that are the same in all runs.")
@click.option(
    "--what", "only", type=click.Choice(["run", "config", "summary"]), multiple=True, cls=Option, formerly=["--only"],
    help="Compare only this part; may be repeated.",
)  # fmt: skip
@click.option("--exit-code", is_flag=True, help="Exit with 1 if something differs, as `git diff --exit-code` does.")
@source_option
@root_option
@output_options
def command(
    runs: tuple[str, ...],
    all_: bool,
    only: tuple[str, ...],
    exit_code: bool,
    source: str | None,
    root: Path,
    format_: str | None,
    output: Path | None,
) -> None:
    """Show what differs between two or more runs: attributes, config and summary, a column a RUN.

    A RUN is entity/project/run, project/run, a run id or a URL. Keys of nested values have dots. Numbers are compared
    by their exact value (1 is 1.0), everything else by type and value. An empty cell means that the run has no such
    key; a null is shown as null. With --format, values are JSON and the column `missing` lists the runs without the
    key. The exit code is 0 whether runs differ or not, unless --exit-code is given.

    \b
    Examples:
      mirror diff 1a2b3c4d 5e6f7a8b
      mirror diff my-team/my-project/1a2b3c4d my-team/my-project/5e6f7a8b --what config --all
      mirror diff 1a2b3c4d 5e6f7a8b 9c0d1e2f --format csv -o differences.csv
    """
    from mirror.cli.output import emit
    from mirror.query.diff import PARTS, compared, short_names, table
    from mirror.query.runs import find_run
    from mirror.store import Reader

    if len(runs) < 2:
        raise UsageError("give at least two runs: mirror diff RUN RUN...")
    with Reader(root) as reader:
        found = [find_run(reader, run, source) for run in runs]
        lines = compared(reader, [row["rid"] for row in found], only or PARTS)
        different = [line for line in lines if line.differs]
        lines = lines if all_ else different
        for_people = format_ == "table" or (format_ is None and output is None)
        if for_people and not lines:
            click.echo("These runs do not differ.", err=True)
            return
        emit(table(lines, short_names(found), for_people=for_people), format_, output, root=root)
    if exit_code and different:
        raise click.exceptions.Exit(1)
