"""Where a run branches off from another, as W&B's SDK tells it."""

from __future__ import annotations

import json
from typing import Any


def branch_point(config: str | None) -> tuple[str, int] | None:
    """(run id, step) that a config says its run branches off from: `wandb.init(fork_from="id?_step=5")` writes it to
    `_wandb.branch_point`, and nowhere else. None for a config that says nothing of the kind, or is no JSON."""
    if not config or '"branch_point"' not in config:
        return None
    try:
        document = json.loads(config, strict=False)
    except (ValueError, RecursionError):
        return None
    return point_of(document)


def point_of(document: Any) -> tuple[str, int] | None:
    """The same of a config that is parsed already."""
    internal = document.get("_wandb") if isinstance(document, dict) else None
    inner = internal.get("value", internal) if isinstance(internal, dict) else None
    point = inner.get("branch_point") if isinstance(inner, dict) else None
    if not isinstance(point, dict) or not isinstance(point.get("run_id"), str):
        return None
    step = point.get("step")
    return (point["run_id"], int(step)) if isinstance(step, (int, float)) and abs(step) < 2**53 else None
