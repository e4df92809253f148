"""What a run says at its destination of where it comes from, under one key of its config.

W&B's API cannot set when a run was made, by whom, or how it ended other than by its exit code: that stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from mirror.forks import branch_point

CONFIG_KEY = "mirror_origin"
"""The key of the config. Its value: source, path, storage_id, url, created_at, heartbeat_at, state, exit_code,
username, user_name, sweep, forked_from, and under `previous` what an earlier import had written there."""

STEP = f"{CONFIG_KEY}/step"
"""The key of a row of history that tells which step it had, where it could not keep it."""
LEFT_OUT = f"{CONFIG_KEY}/left_out"
"""The key of a row whose longest values no server would take: the keys of these."""

_FIELDS = ("source", "storage_id", "url", "created_at", "heartbeat_at", "state", "exit_code", "username", "user_name",
           "sweep")  # fmt: skip


def with_origin(
    config: str | None, row: Mapping[str, Any], replaced: Mapping[str, str], version: str | None = None
) -> str:
    """A run's config as the wire has it, and its origin beside it: `row` is the run's row of `runs_raw`, `replaced`
    the attributes the destination would not take, as they were; `version` is what the run was like, for sources whose
    rows are not only added to. Everything else stays as it was written.

    The point at which a run was forked becomes a part of the origin: its rows are sent whole, and a server that is
    told of the point would add those of the parent to them.
    """
    from mirror.store.jsontext import parse, write

    document, exact = _object(config, parse)
    origin: dict[str, Any] = {"path": f"{row['entity']}/{row['project']}/{row['run_id']}"}
    origin |= {name: said_of(row[name]) for name in _FIELDS if row.get(name) is not None}
    if (point := forked_from(config, row)) is not None:
        origin["forked_from"] = point
    if branch_point(config) is not None:
        internal = document["_wandb"].get("value", document["_wandb"])
        del internal["branch_point"]
    if version is not None:
        origin["version"] = version
    origin |= replaced
    if (earlier := document.pop(CONFIG_KEY, None)) is not None:
        origin["previous"] = earlier.get("value", earlier) if isinstance(earlier, dict) else earlier
    text = write(document, exact)
    comma = "," if document else ""
    return f'{text[:-1]}{comma}"{CONFIG_KEY}":{{"value":{write(origin, exact)}}}}}'


def forked_from(config: str | None, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run and the step that a run goes on from: of a rewound run, it names itself. The config says so, and of a run
    that was read from its log, the row."""
    point = branch_point(config) or (row.get("fork_run_id"), row.get("fork_step"))
    return None if point[0] is None else {"run_id": point[0], "step": point[1]}


def origin_of(config: str | None) -> dict[str, Any]:
    """The origin a config tells of; empty if it tells none."""
    try:
        found = orjson.loads(config or "{}")
    except orjson.JSONDecodeError:
        from mirror.store.jsontext import parse_plainly

        try:
            found = parse_plainly(config or "{}")
        except (ValueError, RecursionError):
            return {}
    held = found.get(CONFIG_KEY) if isinstance(found, dict) else None
    value = held.get("value") if isinstance(held, dict) else None
    return value if isinstance(value, dict) else {}


def _object(text: str | None, parse: Any) -> tuple[dict[str, Any], bool]:
    try:
        found, exact = parse(text or "{}")
    except (ValueError, RecursionError):
        return {}, False
    return (found, exact) if isinstance(found, dict) else ({}, False)


def said_of(value: Any) -> Any:
    """How the origin tells an attribute."""
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
