"""Logged rows and system metrics of many runs in one request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mirror.wandb.client import Client, Fields, nodes, when
from mirror.wandb.ranges import Range
from mirror.wandb.transport import NORMAL, Patience, RefusedQuery, loads


@dataclass(frozen=True)
class LinesAsk:
    """The first lines of a console log, or those after a cursor."""

    first: int
    after: str | None = None


@dataclass(frozen=True)
class LinesAnswer:
    """Console lines (number, time, level, text), where the next ones begin, and whether there are `more`."""

    lines: list[tuple[int | None, datetime | None, str | None, str]]
    cursor: str | None
    more: bool


@dataclass(frozen=True)
class RowsAsk:
    """What is wanted of one run: rows of a range of steps, or of the whole history unranged (`samples`),
    or that many system metrics (`events`), or a page of its console `lines`."""

    run_id: str
    range: Range | None = None
    samples: int | None = None
    events: int | None = None
    lines: LinesAsk | None = None
    weight: int = 1
    """About how many rows the answer will hold."""
    divisible: bool = True
    """Whether less could be asked for at once."""


@dataclass(frozen=True)
class RowsAnswer:
    """Rows as JSON texts, in the order they came; how many lines the server holds at that moment."""

    rows: list[str]
    events: list[str]
    history_lines: int | None
    events_lines: int | None
    lines: LinesAnswer | None = None
    """None if none were asked for, or the server gives out none."""

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.rows)) + sum(map(len, self.events))


def fetch_rows(
    client: Client,
    entity: str,
    project: str,
    asks: Sequence[RowsAsk],
    *,
    patience: Patience = NORMAL,
    limit: int | None = None,
) -> list[RowsAnswer | None]:
    """An answer for each ask, None where the run is gone. One request."""
    variables: dict[str, Any] = {"entity": entity, "project": project}
    parts = [_Part(f"r{i}", i, ask, variables) for i, ask in enumerate(asks)]

    def build(f: Fields) -> str:
        counts = f.of("Run", ("historyLineCount", "eventsLineCount"))
        declared = "".join(p.declared(f) for p in parts)
        runs = " ".join(f"{p.alias} {{ id name {counts} {p.asked(f)} }}" for p in parts)
        return (
            f"query RunRows($entity: String!, $project: String!{declared}) {{"
            f" project(name: $project, entityName: $entity) {{ name entityName {runs} }} }}"
        )

    try:
        data, _ = client.ask(build, variables, patience=patience, limit=limit)
    except RefusedQuery as e:
        if "useImprovedPagination" not in str(e) or not client.fields.knows("Run", "logLines"):
            raise
        client.fields.forget({("Run", "logLines")})  # servers before 0.77 give out the last lines only
        data, _ = client.ask(build, variables, patience=patience, limit=limit)
    shown = data.get("project") or {}
    return [_answer(shown.get(f"r{i}")) for i in range(len(asks))]


_LINE = ("number", "timestamp", "level", "line")


class _Part:
    """One run of the query: its fields, and the variables they need (an unused variable is an error)."""

    def __init__(self, name: str, i: int, ask: RowsAsk, variables: dict[str, Any]) -> None:
        self.alias = f"{name}: run(name: $n{i})"
        self._declared = {"": f", $n{i}: String!"}
        self.fields: list[str] = []
        variables[f"n{i}"] = ask.run_id
        if ask.range is not None:
            self.fields.append(f"history(minStep: $lo{i}, maxStep: $hi{i}, samples: $s{i})")
            self._declared["history"] = f", $lo{i}: Int64!, $hi{i}: Int64!, $s{i}: Int!"
            variables |= {f"lo{i}": ask.range.lo, f"hi{i}": ask.range.hi, f"s{i}": ask.range.samples}
        elif ask.samples is not None:
            self.fields.append(f"history(samples: $s{i})")
            self._declared["history"] = f", $s{i}: Int!"
            variables[f"s{i}"] = ask.samples
        if ask.events is not None:
            self.fields.append(f"events(samples: $e{i})")
            self._declared["events"] = f", $e{i}: Int!"
            variables[f"e{i}"] = ask.events
        self._lines = f"logLines(first: $l{i}, after: $c{i}, useImprovedPagination: true)" if ask.lines else None
        if ask.lines is not None:
            self._declared["logLines"] = f", $l{i}: Int!, $c{i}: String"
            variables |= {f"l{i}": ask.lines.first, f"c{i}": ask.lines.after}

    def asked(self, f: Fields) -> str:
        lines = f"{{ edges {{ cursor node {{ {f.of('LogLine', _LINE)} }} }} pageInfo {{ endCursor hasNextPage }} }}"
        return f.of("Run", [*self.fields, f"{self._lines} {lines}"] if self._lines else self.fields)

    def declared(self, f: Fields) -> str:
        return "".join(text for name, text in self._declared.items() if not name or f.knows("Run", name))


def _answer(node: Any) -> RowsAnswer | None:
    if not isinstance(node, dict):
        return None
    return RowsAnswer(
        rows=_rows(node.get("history")),
        events=_rows(node.get("events")),
        history_lines=node.get("historyLineCount"),
        events_lines=node.get("eventsLineCount"),
        lines=_lines(node.get("logLines")),
    )


def _lines(connection: Any) -> LinesAnswer | None:
    if not isinstance(connection, dict):
        return None
    lines = []
    for node in nodes(connection):
        number, text = node.get("number"), str(node.get("line") or "")
        lines.append(
            (number if isinstance(number, int) else None, when(node.get("timestamp")), node.get("level"), text)
        )
    info = connection.get("pageInfo") or {}
    edges = connection.get("edges") or ()
    cursor = info.get("endCursor") or (edges[-1].get("cursor") if edges and edges[-1] else None)
    return LinesAnswer(lines, str(cursor) if cursor else None, bool(info.get("hasNextPage")))


def _rows(values: Any) -> list[str]:
    return [v if isinstance(v, str) else json.dumps(v) for v in values or ()]


def step_of(row: str) -> int | None:
    """The `_step` of a row, as an exact integer; None if it has none or is no JSON object."""
    try:
        parsed = loads(row)
    except ValueError:
        return None
    step = parsed.get("_step") if isinstance(parsed, dict) else None
    if isinstance(step, float) and step.is_integer():
        return int(step)
    return step if isinstance(step, int) and not isinstance(step, bool) else None
