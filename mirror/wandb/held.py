"""What a server holds already of the runs that are to be sent there: the question with which the SDK resumes a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirror.errors import TransientSourceError
from mirror.wandb.client import Client, Fields
from mirror.wandb.named import Named
from mirror.wandb.transport import loads

RUNS_AT_ONCE = 40


@dataclass(frozen=True)
class HeldRun:
    """A run on a server: how many lines it holds of each stream, which are the offsets to go on at, and its last row
    of history; None where the server does not tell."""

    storage_id: str
    state: str | None
    history: int
    system: int | None
    logs: int | None
    config: str | None = None
    last_row: dict[str, Any] | None = None


def held_run(client: Client, entity: str, project: str, run_id: str) -> HeldRun | None:
    """What the server holds of a run, with its config and last row; None if it has no such run."""
    return _ask(client, entity, project, [run_id], ("config", "historyTail"))[run_id]


def held_runs(client: Client, entity: str, project: str, run_ids: Sequence[str]) -> dict[str, HeldRun | None]:
    """The same of many runs, without config and last row."""
    found: dict[str, HeldRun | None] = {}
    for start in range(0, len(run_ids), RUNS_AT_ONCE):
        found |= _ask(client, entity, project, run_ids[start : start + RUNS_AT_ONCE], ())
    return found


def held_configs(client: Client, entity: str, project: str, run_ids: Sequence[str]) -> dict[str, HeldRun | None]:
    """The same of some runs, with their configs."""
    return _ask(client, entity, project, run_ids, ("config",))


def _ask(
    client: Client, entity: str, project: str, run_ids: Sequence[str], more: Sequence[str]
) -> dict[str, HeldRun | None]:
    named = Named(run_ids)

    def build(f: Fields) -> str:
        counts = ("state", "historyLineCount", "eventsLineCount", "logLineCount", *more)
        asked = named.asked(f"id {f.of('Run', counts)}", "bucket(name: {}, missingOk: true)")
        return (
            f"query HeldRuns($entity: String!, $project: String!{named.declared}) {{"
            f" model(name: $project, entityName: $entity) {{ {asked} }} }}"
        )

    data, _ = client.ask(build, {"entity": entity, "project": project, **named.variables})
    answers = named.answers(data.get("model") or {})
    return {run_id: _held(client, node) for run_id, node in zip(run_ids, answers, strict=True)}


def _held(client: Client, node: Any) -> HeldRun | None:
    if not isinstance(node, dict):
        return None
    if not isinstance(node.get("historyLineCount"), int):
        raise TransientSourceError(f"`{client.source}` does not say how many rows it holds of a run: try again later")
    return HeldRun(
        str(node["id"]),
        node.get("state"),
        node["historyLineCount"],
        node.get("eventsLineCount"),
        node.get("logLineCount"),
        node.get("config"),
        _last(node.get("historyTail")),
    )


def _last(tail: Any) -> dict[str, Any] | None:
    """The last of a JSON list of rows, each of them JSON text."""
    try:
        rows = loads(tail) if isinstance(tail, str) else tail
        row = loads(rows[-1]) if rows else None
    except (ValueError, TypeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
