"""The commands and Python blocks of the tutorial, the how-to and docs/sql.md: those that need no server run on a mirror
that holds what they name; of the others the options are parsed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commanding import Done, call

import mirror
from mirror.cli import cli
from mirror.demo.training import ENTITY, PROJECT, train, trials
from mirror.records import ItemKey, Run, RunKey, Sweep

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
IDS = ("1a2b3c4d", "5e6f7a8b", "9c0d1e2f")

ELSEWHERE = {"sync", "serve", "push", "import", "demo"}
"""Commands that ask or are a server. Beside these: `verify --against`, and `doctor`, which asks the usual one."""

MEDIA = re.compile(r'"table:|/wandb\b')
"""What names things that only a sync brings; tests/test_tables.py asks for them."""


def commands(name: str) -> list[str]:
    """`mirror ...` of the fenced blocks and of the tables of a document, in order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    fenced = [line for language, body in BLOCK.findall(text) for line in body.splitlines() if language != "python"]
    in_tables = re.findall(r"^\|.*\| `(mirror [^`]+)` \|$", text, re.M)
    return [line for line in (*fenced, *in_tables) if line.startswith("mirror ")]


def pythons(name: str) -> list[str]:
    text = (DOCS / name).read_text(encoding="utf-8")
    return [body for language, body in BLOCK.findall(text) if language == "python"]


def words(command: str, run: str = "1a2b3c4d") -> list[str]:
    """The arguments after `mirror`, up to a comment or a redirection."""
    command = re.sub(r"\$\(mirror translate '([^']*)'\)", lambda m: translated(m[1]), command)
    found = [run if word == "RUN" else word for word in shlex.split(command, comments=True)[1:]]
    ends = [i for i, word in enumerate(found) if word in (">", ">>", "|")]
    return found[: ends[0]] if ends else found


def translated(condition: str) -> str:
    return call("translate", condition).out.strip().replace('"', '\\"')


def parse(arguments: list[str]) -> None:
    """Raise click.UsageError for an option or command that does not exist."""
    group: click.Command = cli
    while isinstance(group, click.Group) and arguments and not arguments[0].startswith("-"):
        name, found, arguments = group.resolve_command(click.Context(group), arguments)
        assert found is not None, name
        group = found
    group.make_context(group.name, arguments)


def put_demo(root: Path, entity: str, project: str, ids: tuple[str, ...] = ()) -> None:
    """The demo's trials, trained for fewer steps, as runs of a project; the first ones under these ids."""
    with mirror.open(root, write=True) as m:
        for n, trial in enumerate(trials()):
            rows, config = [], {"lr": trial.lr, "width": trial.width, "seed": trial.seed}
            try:
                for row in train(trial, 12 if trial.crash_at is None else trial.crash_at + 1):
                    rows.append(row)
            except RuntimeError:
                pass
            run_id = ids[n] if n < len(ids) else trial.run_id
            run = Run(
                RunKey("lab", run_id, entity, project, run_id), name=trial.name, group="baseline",
                state="finished" if trial.crash_at is None else "failed", sweep="a1b2c3d4",
                summary=json.dumps({key: value for row in rows for key, value in row.items()}),
                config=json.dumps({key: {"value": value} for key, value in config.items()}),
            )  # fmt: skip
            m.put_runs([run])
            m.put_history(run, ({"_step": i} | row for i, row in enumerate(rows)))
            m.put_system_metrics(run, [{"_runtime": 1.0, "_timestamp": 1.7e9, "system.gpu.0.gpu": 50.0}])
        sweep = {
            "method": "grid",
            "metric": {"name": "val/acc", "goal": "maximize"},
            "parameters": {"lr": {"values": [1]}},
        }
        m.writer.put_item(Sweep(ItemKey("lab", "s", entity, project), "a1b2c3d4", config=json.dumps(sweep)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs")
    put_demo(place / "tutorial" / "mirror", ENTITY, PROJECT)
    put_demo(place / "wandb-mirror", "my-team", "my-project", IDS)
    (place / "failed.json").write_text('{"state": "failed"}')
    (place / "best.json").write_text('{"config.lr": {"$gt": 0.001}}')
    (place / "filter.json").write_text('{"config.lr": {"$gt": 0.001}}')
    return place


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.delenv("MIRROR_ROOT", raising=False)
    yield


def good(done: Done) -> str:
    assert done.code == 0, done.err
    return done.out


def test_the_tutorial_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    found = commands("tutorial.md")
    assert len(found) == 9 and found[0] == "mirror demo --dir tutorial"
    parse(words(found[0]))  # `put_demo` makes what it leaves, in seconds
    monkeypatch.setenv("MIRROR_ROOT", "tutorial/mirror")
    said = [good(call(*words(command))) for command in found[1:]]
    count = len(list(trials()))
    assert f"{count}" in said[0] and all("lr" in line for line in said[1].splitlines()[2:])
    assert len(said[1].splitlines()) == 2 + 5 and len(said[3].splitlines()) == 2 + 3
    assert len(said[6].splitlines()) >= 2 + 3 and (place / "loss.parquet").stat().st_size > 0


def is_local(arguments: list[str]) -> bool:
    return not (arguments[0] in ELSEWHERE or arguments[0] == "doctor" or {"--against", "rm"} & set(arguments))


@pytest.mark.parametrize("command", [*dict.fromkeys([*commands("how-to.md"), *commands("filters.md")])])
def test_commands_of_the_how_to_run_or_are_parsed(command: str) -> None:
    arguments = words(command)
    parse(arguments)
    if is_local(arguments) and not MEDIA.search(command):
        good(call(*arguments))


OFFLINE = [code for code in pythons("how-to.md") if not re.search("online=True|Importer", code)]


@pytest.mark.parametrize("code", OFFLINE)
def test_python_of_the_how_to_runs(code: str) -> None:
    before = "import mirror\nm = mirror.open()\n" if "import mirror\n" not in code else ""
    exec(compile(before + code, "how-to.md", "exec"), {})
