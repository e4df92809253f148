"""`mirror export`: rows of runs as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.complete import complete_path
from mirror.cli.console import safe
from mirror.cli.options import filter_option, root_option, source_option
from mirror.errors import UsageError

if TYPE_CHECKING:
    from mirror.query.dump import Product

_SHOWN = 3


@click.command("export")
@click.argument("paths", nargs=-1, metavar="[PATH]...", shell_complete=complete_path)
@click.option(
    "--what", "whats", required=True, multiple=True,
    type=click.Choice(["runs", "history", "system", "config", "summary", "files", "logs"]),
    help="What to write: runs (attributes, config and summary as JSON), history (every logged row), system (system "
    "metrics), config, summary (a column a key), files (the manifests), logs (console lines); may be repeated.",
)  # fmt: skip
@click.option(
    "--format", "format_", type=click.Choice(["csv", "tsv", "json", "jsonl", "parquet", "arrow"]),
    help="How to write it  [default: what the suffix of -o says, else csv]",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR|FILE",
    help="Folder for the files (it is made), or one file, named with the format's suffix.",
)  # fmt: skip
@click.option("--one-file", is_flag=True, help="Write the rows of all runs to one file, with the run in front of each.")
@click.option(
    "--keys", metavar="NAMES",
    help="Only these metrics, config or summary keys (with what is nested in them), or columns of runs; separated by "
    "commas, a name with a comma in double quotes.",
)  # fmt: skip
@click.option("-k", "--key", "more", multiple=True, metavar="NAME", help="One more key, its name exactly as it is.")
@filter_option
@click.option("--deleted", is_flag=True, help="Export runs, too, that were found deleted at their source.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
@source_option
@root_option
def command(
    paths: tuple[str, ...],
    whats: tuple[str, ...],
    format_: str | None,
    output: Path,
    one_file: bool,
    keys: str | None,
    more: tuple[str, ...],
    filter_: str | None,
    deleted: bool,
    force: bool,
    source: str | None,
    root: Path,
) -> None:
    """Write what runs logged to files: of a PATH (entity, entity/project, a run or a URL), or of all runs.

    history, system and logs make a file per run, DIR/NAME-RUNID.history.csv and so on; with --one-file, or where -o is
    a FILE, one file in which entity, project, run_id and name stand before each row (unless PATH is a single run). The
    others make one file.

    A row of a history is a logged row, with a column per key: `_step` first, nested keys with dots, types that hold
    all values of a key exactly; NaN and Infinity are written as such. In jsonl, rows are nested as they were logged.
    Files appear when they are whole; one that is there already is only written over with --force.

    \b
    Examples:
      mirror export my-team/my-project/1a2b3c4d --what history -o metrics.csv
      mirror export my-team/my-project --what runs --keys name,config,summary -o project.csv
      mirror export my-team/my-project --what history --what system --format parquet -o exported
      mirror export my-team/my-project --what history --keys loss,val/acc --one-file -o curves.parquet
      mirror export my-team --filter '{"state": "finished"}' --what config --what summary -o exported
    """
    from mirror.cli.runs import names_in, selected
    from mirror.query.dump import A_FILE_PER_RUN, products
    from mirror.query.export import FORMATS, format_of
    from mirror.store import Reader

    single = output.suffix.lower().lstrip(".") in {*FORMATS, "feather", "ndjson", "ipc", "pq"} and not output.is_dir()
    if single and len(set(whats)) > 1:
        raise UsageError(f"`{output}` is one file: give --what once, or a folder for -o")
    format_ = format_ or (format_of(output) if single else "csv")
    wanted = names_in(keys, more) or None
    with Reader(root) as reader:
        selection = selected(paths, filter_, source=source, deleted=deleted, reader=reader)
        plan: dict[Path, Product] = {}
        for what in dict.fromkeys(whats):
            made = products(reader, selection, what, keys=wanted, one_file=one_file or single)  # type: ignore[arg-type]
            if what in A_FILE_PER_RUN and not made:
                click.echo(f"No runs, so no files of {what}.", err=True)
            plan |= {output if single else output / f"{p.stem}.{format_}": p for p in made}
        _check(plan, output, root, force)
        rows = _written(plan, format_)
    click.echo(
        f"{rows:,} rows written to {safe(str(output))}" + ("" if single else f" ({len(plan):,} files)"), err=True
    )


def _check(plan: dict[Path, Product], output: Path, root: Path, force: bool) -> None:
    if (output / "x").absolute().parent.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"`{output}` lies inside the mirror: choose a place outside `{root}` for -o")
    there = [path for path in plan if path.is_file() or path.is_symlink()]
    if there and not force:
        shown = ", ".join(f"`{path}`" for path in there[:_SHOWN])
        more = f" and {len(there) - _SHOWN:,} more" if len(there) > _SHOWN else ""
        raise UsageError(f"{shown}{more} would be written over: add --force, or choose another place with -o")


def _written(plan: dict[Path, Product], format: str) -> int:
    from mirror.cli.progress import steps
    from mirror.errors import MirrorError
    from mirror.query.export import replacing

    count = 0
    with steps("exporting", len(plan), unit="files") as advance:
        for path, product in plan.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise MirrorError(f"cannot make the folder `{path.parent}`: {e.strerror}; choose another -o") from e
            with replacing(path) as out:
                count += product.write(out, format)
            advance(1)
    return count
