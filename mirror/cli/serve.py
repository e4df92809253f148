"""`mirror serve`: W&B's own API on top of a mirror."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.core import ParameterSource

from mirror.cli.options import root_option
from mirror.cli.serve_user import user


def _export_after(text: str) -> float | None:
    """Seconds between a run's end and its export; None for no exports."""
    if text in ("off", "now"):
        return None if text == "off" else 0.0
    found = re.fullmatch(r"(?:after )? *(\d+(?:\.\d+)?)", text.strip())
    if found is None:
        raise click.BadParameter(f"`{text}` is none of `off`, `now` and `after SECONDS`, e.g. 'after 3600'")
    return float(found[1])


@click.group("serve", invoke_without_command=True)
@root_option
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with the API key clients must use (else MIRROR_API_KEY, else one is made and shown once).",
)
@click.option("--read-only", is_flag=True, help="Refuse everything that would change the mirror; write nothing.")
@click.option("--entity", default="local", show_default=True, help="Entity of the user; where runs without one go.")
@click.option(
    "--crash-after",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0.5),
    help="Seconds without a sign of life after which a run counts as crashed.",
)
@click.option(
    "--history-exports",
    "export_after",
    default="off",
    show_default=True,
    metavar="off|now|'after SECONDS'",
    callback=lambda _ctx, _param, value: _export_after(value),
    help="Serve histories of runs that have ended as Parquet files, too, as W&B does some hours after their end. "
    "Clients that find such a file read it instead of the rows themselves, and its form cannot tell null from absent "
    "or nested from dotted keys.",
)
@click.option("--allow-host", "allow_hosts", multiple=True, help="Further host name clients may call the server by.")
@click.option("-v", "--verbose", is_flag=True, help="Print every request on stderr.")
@click.pass_context
def command(
    ctx: click.Context,
    root: Path,
    port: int,
    host: str,
    api_key_file: Path | None,
    read_only: bool,
    entity: str,
    crash_after: float,
    export_after: float | None,
    allow_hosts: tuple[str, ...],
    verbose: bool,
) -> None:
    """Serve a mirror to W&B's SDK: `wandb.Api()` scripts read from it, `wandb.init()` logs into it.

    Set WANDB_BASE_URL and WANDB_API_KEY to what is printed at the start; nothing else changes.

    \b
    Examples:
      mirror serve --mirror wandb-mirror --port 8080       log into it, read from it
      mirror serve --mirror wandb-mirror --read-only       let scripts read, change nothing
      mirror serve user add ada --mirror wandb-mirror      another user, with a key of her own
    """
    if ctx.invoked_subcommand:
        if ctx.get_parameter_source("root") is ParameterSource.COMMANDLINE:
            raise click.UsageError("give --mirror after the words of the command: `mirror serve user list --mirror ..`")
        return
    from mirror.server.runner import serve

    serve(
        root,
        host=host,
        port=port,
        api_key_file=api_key_file,
        read_only=read_only,
        entity=entity,
        crash_after=crash_after,
        export_after=export_after,
        allow_hosts=allow_hosts,
        verbose=verbose,
        say=click.echo,
    )


command.add_command(user)
