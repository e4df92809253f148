"""`mirror completion`: what makes a shell complete commands, options, paths and saved queries."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes a SHELL complete mirror's commands, options, paths of runs and saved queries.

    Paths come from the mirror at MIRROR_ROOT, or at --mirror where it stands before the path on the line.

    \b
    Examples:
      mirror completion bash >> ~/.bashrc
      mirror completion zsh >> ~/.zshrc
      mirror completion fish > ~/.config/fish/completions/mirror.fish
    """
    from click.shell_completion import get_completion_class

    from mirror.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    shell_script = found(cli, {}, "mirror", "_MIRROR_COMPLETE")
    click.echo(shell_script.source_template % shell_script.source_vars())
