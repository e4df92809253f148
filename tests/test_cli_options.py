"""Options of all commands: one name for one meaning, and old spellings go on working."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import asking
import click
import pytest
from commanding import ok

import mirror
from mirror.cli import cli
from mirror.cli.options import Option
from mirror.records import Run


def commands(group: click.Group = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        found = group.get_command(context, word)
        assert found is not None
        yield f"{name} {word}".strip(), found
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {word}".strip())


COMMANDS = dict(commands())
OPTIONS = [(name, o) for name, c in COMMANDS.items() for o in c.params if isinstance(o, click.Option)]

# Words of which one would do: the one that is used, and others that users of W&B, DuckDB, gh or git might look for.
# A new option has to be called as its like is elsewhere.
MEANINGS = {
    "--mirror": {"--root", "--store", "--database", "--db"},
    "--source": {"--from", "--src"},
    "--format": {"--fmt", "--output-format", "--as", "--json", "--csv"},
    "--output": {"--out", "--outfile", "--to-file"},
    "--limit": {"--max", "--top", "--count", "--head"},
    "--filter": {"--filters", "--where", "--query"},
    "--order": {"--sort", "--order-by", "--sort-by"},
    "--columns": {"--fields", "--select", "--cols"},
    "--column": {"--field", "--col"},
    "--metric": {"--metrics", "--series"},
    "--what": {"--only", "--parts", "--part", "--which"},
    "--deleted": {"--include-deleted", "--with-deleted", "--trashed"},
    "--since": {"--after", "--newer", "--from-date"},
    "--workers": {"--jobs", "--threads", "--parallel", "--concurrency"},
    "--dry-run": {"--plan", "--pretend", "--simulate"},
    "--yes": {"--no-confirm", "--assume-yes", "--confirm"},
    "--force": {"--overwrite", "--clobber", "--replace"},
    "--quiet": {"--silent", "--no-progress"},
    "--verbose": {"--debug", "--loud"},
    "--api-key-file": {"--key-file", "--api-key", "--token-file"},
    "--base-url": {"--url", "--server", "--endpoint", "--api-url"},
    "--remap": {"--map", "--rename", "--mapping"},
}
SHORT = {
    "-c": "--column", "-f": "--file", "-k": "--key", "-n": "--limit", "-o": "--output", "-p": "--param",
    "-q": "--quiet", "-v": "--verbose", "-y": "--yes", "-h": "--help",
}  # fmt: skip


def test_a_meaning_has_one_name() -> None:
    others = {other: name for name, found in MEANINGS.items() for other in found}
    assert not others.keys() & MEANINGS.keys()
    wrong = [f"{command} {o}: it is {others[o]}" for command, option in OPTIONS for o in option.opts if o in others]
    assert not wrong


def test_an_option_has_the_same_spellings_in_all_commands() -> None:
    """Whoever learned `-n` with one command can write it with every other."""
    spellings: dict[str, set[frozenset[str]]] = defaultdict(set)
    for _, option in OPTIONS:
        long = next(o for o in option.opts if o.startswith("--"))
        spellings[long].add(frozenset(option.opts))
        for short in option.opts:
            assert short.startswith("--") or SHORT[short] == long
    assert {name: found for name, found in spellings.items() if len(found) > 1} == {}


def test_the_same_help_is_of_the_same_option() -> None:
    helps: dict[str, set[str]] = defaultdict(set)
    for _, option in OPTIONS:
        helps[option.help or ""].add(max(option.opts, key=len))
    assert "" not in helps
    # `--change` and `--kind` of changes, `--experiment` of import are told apart by their values.
    helps.pop("Only this; may be repeated.", None)
    assert {text: names for text, names in helps.items() if len(names) > 1} == {}


def test_commands_that_read_runs_take_a_source() -> None:
    """One path may be held from two sources."""
    reading = {
        "runs",
        "show",
        "diff",
        "best",
        "export",
        "plot",
        "query",
        "tables",
        "changes",
        "files ls",
        "push",
        "purge",
    }
    assert reading <= {name for name, option in OPTIONS if "--source" in option.opts}


def test_commands_that_give_rows_write_them_in_every_format_and_to_files() -> None:
    both = {"sql", "runs", "diff", "best", "tables", "query", "changes", "files ls"}
    for name in both:
        found = {o: option for command, option in OPTIONS if command == name for o in option.opts}
        assert isinstance(found["--format"].type, click.Choice) and "-o" in found
        assert {*found["--format"].type.choices} >= {"csv", "tsv", "json", "jsonl", "parquet", "arrow"}


FORMERLY = {
    "diff": (["a", "b", "--only", "config"], "only", ("config",)),
    "serve user add": (["ada", "--key-file", "key.txt"], "key_file", Path("key.txt")),
    "serve user key": (["ada", "--key-file", "key.txt"], "key_file", Path("key.txt")),
    "sync": (["mlflow:http://x", "--include-deleted"], "include_deleted", True),
    "import mlflow": (["http://x", "--include-deleted", "--dst-base-url", "http://y"], "include_deleted", True),
}


@pytest.mark.parametrize("name", FORMERLY)
def test_old_spellings_work_and_are_not_shown(name: str) -> None:
    args, parameter, value = FORMERLY[name]
    command = COMMANDS[name]
    context = command.make_context(name, [*args])
    assert context.params[parameter] == value
    old = next(arg for arg in args if arg.startswith("--"))
    shown = command.get_help(context)
    (option,) = (o for o in command.params if isinstance(o, Option) and old in o.formerly)
    assert old not in shown and option.opts[0] in shown


def test_every_old_spelling_is_tested() -> None:
    assert {name for name, option in OPTIONS if isinstance(option, Option)} == {*FORMERLY}


def test_tables_of_one_source_and_some_of_them(tmp_path: Path) -> None:
    logged = [{"_step": 0, "t": {"_type": "table-file", "path": "t.table.json"}}]
    with mirror.open(tmp_path / "m", write=True) as m:
        for run_id, source in (("a", "lab.example"), ("b", "lab.example"), ("c", "other.example")):
            run = Run(asking.key(run_id, source=source))
            m.put_runs([run])
            m.put_history(run, logged)

    def tables(*options: str) -> list[str]:
        found = ok("tables", "team/digits", "--missing", *options, "--format", "jsonl", root=tmp_path / "m")
        return [json.loads(line)["name"] for line in found.splitlines()]

    assert tables() == [f"table:team/digits/{run_id}:t@0" for run_id in "abc"]
    assert tables("--source", "other.example") == tables()[2:] and tables("--source", "nowhere.example") == []
    assert tables("--limit", "2") == tables()[:2] and tables("-n", "0") == []
