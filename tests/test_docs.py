"""What can be generated is up to date; what people read first is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mirror.cli import cli
from mirror.resources import text
from mirror.store.schema import columns

TOP = Path(__file__).parents[1]
COMMANDS = cli.list_commands(click.Context(cli))


def test_generated_documents_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help
    assert re.search(r"Examples?:\n", command.help) and f"mirror {name}" in command.help, "its help needs an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("file", ["tables.sql", "catalog.sql"])
def test_every_table_and_column_has_a_comment(file: str) -> None:
    script = text("schema", file)
    bare = [
        line
        for line in script.splitlines()
        if re.match(r'(create table|  "?\w+"? +\w)', line)
        and " -- " not in line
        and not line.lstrip().startswith(("primary key", "unique"))
    ]
    assert bare == []
    if file == "tables.sql":
        assert sum(len(c) for c in columns().values()) == len(re.findall(r'^  "?\w+"? +\w.* -- ', script, re.M))


def test_every_view_has_a_comment() -> None:
    script = text("schema", "views.sql")
    assert re.findall(r"^create view (\S+) as$", script, re.M) == []
    assert len(re.findall(r"^create view \S+ as +-- \S", script, re.M)) == script.count("create view ")


def test_links_between_documents_lead_somewhere() -> None:
    for document in [TOP / "README.md", TOP / "CHANGELOG.md", *(TOP / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
