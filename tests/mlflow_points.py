"""Points of MLflow, as they were logged and as rows at W&B tell of them, read by the two clients themselves."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

Point = tuple[int, int, str, str]
"""Milliseconds, step, key, value as text."""

SYSTEM = {
    "system.cpu": "system/cpu_utilization_percentage",
    "system.memory_percent": "system/system_memory_usage_percentage",
    "system.disk./.usagePercent": "system/disk_usage_percentage",
    "system.gpu.0.gpu": "system/gpu_0_utilization_percentage",
    "system.gpu.11.powerWatts": "system/gpu_11_power_usage_watts",
    "system.cpu (mlflow)": "system/cpu",
    "system.gpu.3.gpu (mlflow)": "system/gpu.3.gpu",
}
"""Names that W&B has for them, those that are no others; all others only get another beginning."""


def text(value: float) -> str:
    """NaN equals itself; MLflow keeps infinities as the largest floats there are."""
    return repr(max(-sys.float_info.max, min(sys.float_info.max, value))) if value == value else "nan"


def own(key: str) -> str:
    """The name that a metric has in the mirror, and at W&B."""
    return f"{key} (mlflow)" if key in ("_step", "_timestamp", "_runtime", "_wandb", "_mlflow") else key


def from_client(client: Any, run_id: str) -> Counter[Point]:
    return Counter(
        (point.timestamp, point.step, key, text(point.value))
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
    )


def named(points: Counter[Point]) -> Counter[Point]:
    return Counter({(at, step, own(key), value): n for (at, step, key, value), n in points.items()})


def there(run: Any) -> Counter[Point]:
    """The points a run's rows tell of: all metrics of a row are of its step and time, where it says no other."""
    found: Counter[Point] = Counter()
    last = -1
    for row in run.history(samples=1_000_000, pandas=False):
        step, at = row.pop("_step"), row.pop("_timestamp")
        assert step > last
        last = step
        times = json.loads(row.pop("mirror_origin/times", "{}"))
        row.pop("_runtime")
        logged = row.pop("mirror_origin/step", step)
        for key, value in row.items():
            assert not key.startswith("system/"), key
            found[round(times.get(key, at) * 1000), logged, key, text(float(value))] += 1
    for row in run.history(stream="system", samples=1_000_000, pandas=False):
        at, step, marked = row.pop("_timestamp"), row.pop("mirror_origin/step"), row.pop("_wandb")
        assert marked is True and row.pop("_runtime") is not None
        for key, value in row.items():
            assert key.startswith("system."), key
            name = SYSTEM.get(key) or key.replace("system.", "system/", 1)
            found[round(at * 1000), step, name, text(float(value))] += 1
    return found
