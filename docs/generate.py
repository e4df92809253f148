"""Writes the documents that are made from the code: docs/cli.md and docs/data-model.md.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 if they are not up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from mirror.cli import cli
from mirror.resources import folder, text
from mirror.store.schema import columns

HERE = Path(__file__).parent
_WIDTH = 100


def command_line() -> str:
    """docs/cli.md: every command with its help."""
    out = [
        "# Command line\n",
        "Generated from the commands by `python docs/generate.py`; `mirror COMMAND --help` shows the same.\n",
        "Results go to stdout, progress and messages to stderr. Exit codes: 0 all is well, 1 something failed or is "
        "missing (also in part), 2 the call was wrong.\n",
    ]
    top = click.Context(cli, info_name="mirror", max_content_width=_WIDTH, terminal_width=_WIDTH)
    out.append(f"```text\n{cli.get_help(top)}\n```\n")
    return "\n".join([*out, *_commands(cli, top)])


def _commands(group: click.Group, parent: click.Context) -> list[str]:
    """A section for each command of a group, and for those of groups within it."""
    out = []
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        ctx = click.Context(command, info_name=name, parent=parent, max_content_width=_WIDTH, terminal_width=_WIDTH)
        out.append(f"## {ctx.command_path}\n\n```text\n{command.get_help(ctx)}\n```\n")
        if isinstance(command, click.Group):
            out += _commands(command, ctx)
    return out


def data_model() -> str:
    """docs/data-model.md: views, tables and columns with the comments of schema/*.sql."""
    views = text("schema", "views.sql")
    out = [
        "# Data model\n",
        "Generated from `schema/*.sql` by `python docs/generate.py`.\n",
        "## Views: what you query\n",
        "| view | what it holds |\n| --- | --- |",
    ]
    found = re.findall(r"^create view (\S+) as\s+-- (.*)$", views, re.M)
    out[-1] += "".join(f"\n| `{name}` | {comment} |" for name, comment in found if not name.startswith("raw."))
    out.append("\nEvery view names runs by `source`, `entity`, `project`, `run_id`; `rid` joins them all.\n")
    out.append("```sql\n" + views.strip() + "\n```\n")
    script = text("schema", "tables.sql")
    out.append("## Tables: what lies on the disk\n")
    out.append(_leading_comment(script) + "\n")
    for table, described in columns().items():
        comment = re.search(rf"^create table {table} \(\s+-- (.*)$", script, re.M)
        out.append(f"### {table}\n\n{comment[1] if comment else ''}\n")
        rows = ["| column | type | null | meaning |", "| --- | --- | --- | --- |"]
        body = script[script.index(f"create table {table} (") :]
        for name, kind, nullable in described:
            meaning = re.search(rf'^ {{2}}"?{name}"?\s.*?--\s*(.*)$', body, re.M)
            rows.append(f"| `{name}` | {kind} | {'yes' if nullable else ''} | {_cell(meaning[1] if meaning else '')} |")
        out.append("\n".join(rows) + "\n")
    out.append("## Catalog: what only writers need\n")
    out.append("```sql\n" + (folder("schema") / "catalog.sql").read_text(encoding="utf-8").strip() + "\n```\n")
    return "\n".join(out)


def _leading_comment(script: str) -> str:
    lines = []
    for line in script.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line[2:].strip())
    return "\n".join(lines)


def _cell(comment: str) -> str:
    return comment.replace("|", "\\|")


DOCUMENTS = {"cli.md": command_line, "data-model.md": data_model}


def main(check: bool) -> int:
    stale = []
    for name, make in DOCUMENTS.items():
        path, made = HERE / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            stale.append(name)
            if not check:
                path.write_text(made, encoding="utf-8")
    if stale:
        print(("out of date (run `python docs/generate.py`): " if check else "written: ") + ", ".join(stale))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
