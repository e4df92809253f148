"""What MLflow says of a run besides its points, as a run's attributes, config and summary."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any

from mirror.records import Run, RunKey
from mirror.sources.mlflow.road import Json
from mirror.sources.mlflow.rows import own

_STATES = {
    "RUNNING": "running",
    "SCHEDULED": "pending",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "killed",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def fingerprint(run: Json, points: int | None, versions: list[Json]) -> str:
    """Changes when anything a listing shows of a run does: attributes, params, tags, the last point of every
    metric, inputs, its model versions, and the number of points where the road can count them."""
    data = {
        "info": run["info"],
        "data": {name: sorted(map(_dumped, listed)) for name, listed in run.get("data", {}).items()},
        "more": [run.get("inputs"), run.get("outputs"), points, versions],
    }
    return blake2b(_dumped(data).encode(), digest_size=12).hexdigest()


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def document(key: RunKey, run: Json, url: str | None) -> Run:
    """Params are texts, exactly as MLflow holds them; all that has no place of its own in a run is under the config's
    `_mlflow`: all tags, ids, the artifacts' address, datasets, model inputs and outputs."""
    info, data = run["info"], run.get("data", {})
    tags = pairs(data.get("tags", ()))
    began, ended = when(info.get("start_time")), when(info.get("end_time"))
    latest = [when(metric.get("timestamp")) for metric in data.get("metrics", ())]
    heard = max((at for at in (began, ended, *latest) if at is not None), default=None)
    parent = tags.get("mlflow.parentRunId")
    config: Json = {own(name): {"value": value} for name, value in pairs(data.get("params", ())).items()}
    config["_mlflow"] = {"value": _rest(run, tags, parent)}
    return Run(
        key=key,
        name=info.get("run_name") or tags.get("mlflow.runName"),
        state=_STATES.get(info.get("status", ""), str(info.get("status", "")).lower() or None),
        tags=tuple(f"{name}={value}" for name, value in tags.items() if not name.startswith("mlflow.")),
        group=parent,
        notes=tags.get("mlflow.note.content"),
        username=info.get("user_id") or tags.get("mlflow.user"),
        created_at=began,
        heartbeat_at=heard,
        updated_at=ended,
        commit=tags.get("mlflow.source.git.commit"),
        url=url,
        config=json.dumps(config),
        summary=json.dumps({own(m["key"]): number(m["value"]) for m in data.get("metrics", ())}),
    )


def _rest(run: Json, tags: dict[str, str], parent: str | None) -> Json:
    info, inputs = run["info"], run.get("inputs") or {}
    found = {
        "run_id": info["run_id"],
        "experiment_id": info["experiment_id"],
        "parent_run_id": parent,
        "status": info.get("status"),
        "lifecycle_stage": info.get("lifecycle_stage"),
        "start_time": info.get("start_time"),
        "end_time": info.get("end_time"),
        "artifact_uri": info.get("artifact_uri"),
        "tags": tags,
        "datasets": inputs.get("dataset_inputs"),
        "model_inputs": inputs.get("model_inputs"),
        "model_outputs": (run.get("outputs") or {}).get("model_outputs"),
    }
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def pairs(listed: Any) -> dict[str, str]:
    return {item["key"]: item.get("value", "") for item in listed}


def number(value: Any) -> float:
    """A metric's value: MLflow writes what JSON does not have as "NaN", "Infinity", "-Infinity"."""
    return float(value)


def when(milliseconds: Any) -> datetime | None:
    """A time; None if there is none or no calendar has it."""
    try:
        return _EPOCH + timedelta(milliseconds=int(milliseconds)) if milliseconds else None
    except (OverflowError, ValueError):
        return None
