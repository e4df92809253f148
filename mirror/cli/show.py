"""`mirror show`: a page about one run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.complete import complete_run
from mirror.cli.console import colored, safe
from mirror.cli.options import root_option, source_option
from mirror.query.text import size_of

if TYPE_CHECKING:
    from mirror.store import Reader

_LINES = 40
_LONGEST = 300  # characters of a value


@click.command("show")
@click.argument("run", shell_complete=complete_run)
@click.option("--metric", "metrics", multiple=True, metavar="KEY", help="Draw this metric, not the four that seem to "
              "matter most; may be repeated.")  # fmt: skip
@click.option("--plots/--no-plots", default=True, help="Draw curves, or leave them out.")
@click.option("--logs", type=click.IntRange(min=0), default=5, show_default=True, metavar="N",
              help="Show the last N console lines.")  # fmt: skip
@click.option(
    "--all", "all_", is_flag=True, help=f"Show all of config and summary, not the first {_LINES} keys of each."
)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True,
              help="A page for people, or all facts as JSON.")  # fmt: skip
@source_option
@root_option
def command(
    run: str,
    metrics: tuple[str, ...],
    plots: bool,
    logs: int,
    all_: bool,
    format_: str,
    source: str | None,
    root: Path,
) -> None:
    """Show a RUN: what it is, what made it, its config, summary and curves, its files, and how complete the mirror is.

    A RUN is entity/project/run, project/run, a run id or a URL. Curves of any length are drawn from a thousand points
    that are made in SQL.

    \b
    Examples:
      mirror show 1a2b3c4d
      mirror show my-team/my-project/1a2b3c4d --metric val/acc --metric loss --logs 20
      mirror show 1a2b3c4d --format json
    """
    from mirror.query.keys import stream_of
    from mirror.query.page import page
    from mirror.query.runs import find_run
    from mirror.store import Reader

    with Reader(root) as reader:
        row = find_run(reader, run, source)
        for metric in metrics:
            stream_of(reader, [row["rid"]], metric)
        facts = page(reader, row, logs=logs, main=metrics)
        if format_ == "json":
            click.echo(_json(facts))
            return
        for line in _page(facts, None if all_ else _LINES):
            click.echo(line)
        if plots:
            keys = metrics or [metric["key"] for metric in facts["metrics"]["main"]]
            for key in dict.fromkeys(keys):
                click.echo()
                click.echo(_plot(reader, row["rid"], key))


def _json(facts: Mapping[str, Any]) -> str:
    import orjson

    from mirror.query.leaves import json_of
    from mirror.query.text import json_text

    documents = {name: orjson.Fragment(json_of(facts[name])) for name in ("config", "summary")}
    text = json_text({**facts, **documents}).decode()
    return safe(text) if sys.stdout.isatty() else text


def _plot(reader: Reader, rid: int, key: str) -> str:
    from mirror.cli.figures import Plot, on_terminal
    from mirror.query.curves import curves
    from mirror.query.keys import stream_of

    stream = stream_of(reader, [rid], key)
    drawn = {str(who): curve for who, curve in curves(reader, [rid], key, stream=stream).items()}
    width = max(min(shutil.get_terminal_size().columns - 16, 100), 30)
    return on_terminal(Plot(key, "_step", drawn), width=width, height=8, color=colored())


# -- the page ---------------------------------------------------------------------------------------------------


def _page(facts: Mapping[str, Any], most: int | None) -> Iterable[str]:
    from mirror.query.leaves import label, leaves, shown

    yield _bold(safe(facts["path"]))
    yield from _pairs(_present(facts["run"]).items())
    origin = _present({k: v for k, v in facts["origin"].items() if k != "arguments"})
    if origin:
        yield from _section("Made by")
        yield from _pairs(origin.items())
    for name in ("config", "summary"):
        found = [(label(place), _cut(shown(value))) for place, value in leaves(facts[name]).items()]
        if found:
            yield from _section(name.capitalize())
            yield from _pairs(found[:most])
            if most is not None and len(found) > most:
                yield f"  ... and {len(found) - most:,} more; --all shows them"
    yield from _metrics(facts["metrics"])
    yield from _rows("System metrics", facts["system"])
    yield from _files(facts["files"])
    yield from _items(facts)
    yield from _logs(facts["logs"])
    yield from _section("In the mirror")
    yield from _pairs(_held(facts["mirror"]).items())


def _present(found: Mapping[str, Any]) -> dict[str, str]:
    from mirror.query.text import plain

    texts = {}
    for name, value in found.items():
        if value is None or value == "" or value == []:
            continue
        if name == "duration":
            value = str(timedelta(seconds=round(value)))
        texts[name.replace("_", " ")] = ", ".join(value) if isinstance(value, list) else plain(value)
    return texts


def _metrics(found: Mapping[str, Any]) -> Iterable[str]:
    if found["keys"]:
        more = f" ({len(found['main'])} of {found['keys']:,})" if found["keys"] > len(found["main"]) else ""
        yield from _rows(f"Metrics{more}", found["main"])


def _files(found: Mapping[str, Any]) -> Iterable[str]:
    if found["count"]:
        size = f"{_size(found['bytes'])}, {_size(found['bytes_held'])} of it held"
        yield from _rows(f"Files ({found['count']:,}, {size}); the biggest", [
            {"name": file["name"], "size": _size(file["size"])} for file in found["biggest"]
        ])  # fmt: skip


def _items(facts: Mapping[str, Any]) -> Iterable[str]:
    sweep = facts["sweep"]
    if sweep is not None:
        yield from _rows("Sweep", [sweep])
    for how in ("logged", "used"):
        rows = [
            {"artifact": f"{a['collection']}:v{a['version']}", "type": a["type"]}
            | ({"aliases": ", ".join(a["aliases"] or ()), "size": _size(a["size"])} if how == "logged" else {})
            for a in facts["artifacts"][how]
        ]
        yield from _rows(f"Artifacts {how}", rows)


def _logs(found: Mapping[str, Any]) -> Iterable[str]:
    if found["lines"]:
        yield from _section(f"Console ({found['lines']:,} lines)")
        for line in found["tail"]:
            yield f"  {safe(line['text'])}"


def _held(held: Mapping[str, Any]) -> dict[str, str]:
    from mirror.query.text import plain

    said = held["history_total"]
    history = f"{held['history_rows']:,} rows" + (f" of {said:,}" if said is not None else "")
    # Of a run whose source said nothing about its history, nothing is missing.
    complete = held["history_complete"] or (said is None and held["history_road"] is None)
    history += ", complete" if complete else ", INCOMPLETE"
    if held["history_road"] is not None:
        history += f", by the road `{held['history_road']}`"
    if not held["history_lossless"]:
        history += ", which cannot tell null from absent or nested from dotted"
    said = held["system_total"]
    system = f"{held['system_rows']:,} rows" + (f" of {said:,}" if said is not None else "")
    found = {"history": history, "note": held["history_note"], "system metrics": system,
             "mirrored at": plain(held["mirrored_at"])}  # fmt: skip
    if held["system_sampled"]:
        found["system metrics"] += ", thinned out by the source"
    return {name: text for name, text in found.items() if text}


def _rows(title: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    from mirror.query.text import aligned

    listed = list(rows)
    if not listed:
        return
    yield from _section(title)
    names = list(listed[0])
    numeric = [all(isinstance(row[n], (int, float, type(None))) for row in listed) for n in names]
    kinds = ["DOUBLE" if n else "VARCHAR" for n in numeric]
    for line in aligned(names, kinds, [[row[n] for n in names] for row in listed]):
        yield f"  {line}"


def _pairs(found: Iterable[tuple[str, str]]) -> Iterable[str]:
    from mirror.query.text import width

    pairs = [(safe(name), safe(text)) for name, text in found]
    longest = min(max((width(name) for name, _ in pairs), default=0), 40)
    for name, text in pairs:
        yield f"  {name}{' ' * (longest - width(name))}  {text}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def _section(title: str) -> Iterable[str]:
    return ("", _bold(safe(title)))


def _bold(text: str) -> str:
    return click.style(text, bold=True) if colored() else text


def _size(count: int | None) -> str:
    return "?" if count is None else size_of(count)
