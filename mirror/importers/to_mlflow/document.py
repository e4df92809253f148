"""What MLflow is told of a mirrored run besides its points: params, tags, status and times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

from mirror.importers.account import Account
from mirror.importers.outgoing import gathered
from mirror.importers.to_mlflow.destination import IDENTITY, VERSION
from mirror.importers.to_mlflow.names import LONGEST, unique_names
from mirror.importers.to_mlflow.points import milliseconds
from mirror.sources.mlflow.rows import theirs

_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
_STATES = {"finished": "FINISHED", "failed": "FAILED", "crashed": "FAILED", "killed": "KILLED", "preempted": "KILLED"}


def identity(row: Mapping[str, Any]) -> str:
    """32 hex digits, the same for every version of a run."""
    return blake2b(json.dumps([row["source"], row["storage_id"]]).encode(), digest_size=16).hexdigest()


def name_of(row: Mapping[str, Any]) -> str:
    return str(row["name"] or row["run_id"])[:LONGEST]


def status(row: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """How the run ended, for `Destination.update`."""
    state = row["state"] or ""
    found = {"run_name": name_of(row), "status": _STATES.get(state, "RUNNING")}
    if found["status"] != state.upper():
        account.changed("state", f"`{state}` is `{found['status']}` there")
    ended = milliseconds(row["updated_at"] if gathered(row) else row["heartbeat_at"])
    return found | ({"end_time": ended} if ended and found["status"] != "RUNNING" else {})


def tags(row: Mapping[str, Any], path: str, version: str, account: Account) -> dict[str, str]:
    """`row` of `runs_raw`. What came from MLflow gets its own tags back."""
    told = _told(row)
    found = {key: str(value) for key, value in told.get("tags", {}).items()} if gathered(row) else {}
    named = {
        "mlflow.note.content": row["notes"], "mlflow.user": row["username"], "mirror.sweep": row["sweep"],
        "mlflow.source.git.commit": row["commit"], "mirror.group": row["group"], "mirror.job_type": row["job_type"],
        "mirror.state": row["state"], "mirror.url": row["url"], "mirror.host": row["host"],
        "mirror.description": row["description"],
    }  # fmt: skip
    if row["tags"]:
        named["mirror.tags"] = json.dumps(list(row["tags"]), ensure_ascii=False)
    if row["fork_run_id"]:
        named["mirror.fork"] = f"{row['fork_run_id']}?_step={row['fork_step']}"
    found |= {key: str(value) for key, value in named.items() if value and key not in found}
    found |= {IDENTITY: identity(row), VERSION: version, "mirror.source": row["source"], "mirror.path": path}
    found["mlflow.runName"] = name_of(row)
    for what in ("sweep", "fork_run_id"):
        if row[what]:
            account.lost(what.removesuffix("_run_id"), f"MLflow knows none; a tag names `{row[what]}`")
    if inner := [name for name in ("datasets", "model_inputs", "model_outputs") if told.get(name)]:
        account.lost("inputs", f"{', '.join(inner)}; they are kept in mirror/config.json")
    return {key: _cut(f"tag {key}", value, _LONGEST_TAG, account) for key, value in found.items()}


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """What MLflow said of a run that came from there."""
    if not gathered(row):
        return {}
    held = json.loads(row["config_raw"] or "{}").get("_mlflow") or {}
    return dict(held.get("value") or {})


def params(row: Mapping[str, Any], account: Account) -> dict[str, str]:
    """The config's leaves, `a/b` for what is nested; texts as they are, all else as JSON."""
    leaves = list(_config(row))
    wanted = [theirs(name) for name, _ in leaves] if gathered(row) else [name for name, _ in leaves]
    names = unique_names(wanted)
    for wish, name in zip(wanted, names, strict=True):
        if wish != name:
            account.changed("params", f"`{wish[:100]}` is `{name[:100]}` there")
    return {
        name: _cut(f"config {name}", text, _LONGEST_PARAM, account)
        for name, (_, text) in zip(names, leaves, strict=True)
    }


def _config(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, held in json.loads(row["config_raw"] or "{}").items():
        if key == "_wandb" or (key == "_mlflow" and gathered(row)):
            continue  # not what a user set; kept in mirror/config.json
        yield from _flat(key, held.get("value") if isinstance(held, dict) and "value" in held else held)


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}/{name}", inner)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(what: str, text: str, longest: int, account: Account) -> str:
    plain = text.encode("utf-8", "replace").decode()
    if plain != text:
        account.changed("texts", f"{what[:100]}: half a surrogate pair is `?` there")
    if len(plain) <= longest:
        return plain
    account.lost("long texts", f"{what[:100]}: MLflow takes {longest:,} characters of {len(plain):,}")
    return plain[:longest]
