"""System metrics of MLflow under the names that W&B has for them, and back.

MLflow's monitor (3.17) logs `system/cpu_utilization_percentage` and the like as metrics among all others, with a count
of its samples as the step; W&B keeps a stream of its own for them, with `system.` before every name. What means the
same in the same unit gets the name W&B's SDK has for it, so that its charts show it; the rest keeps its own.
"""

from __future__ import annotations

import re

PREFIX = "system/"
THERE = "system."

_NAMES = {
    "cpu_utilization_percentage": "cpu",
    "system_memory_usage_percentage": "memory_percent",
    "disk_usage_percentage": "disk./.usagePercent",
}
_GPU_NAMES = {
    "utilization_percentage": "gpu",
    "memory_usage_percentage": "memoryAllocated",
    "power_usage_watts": "powerWatts",
    "power_usage_percentage": "powerPercent",
}
_MLFLOW_NAMES = {there: here for here, there in _NAMES.items()}
_MLFLOW_GPU_NAMES = {there: here for here, there in _GPU_NAMES.items()}
_GPU = re.compile(rf"gpu_([0-9]+)_({'|'.join(_GPU_NAMES)})")
_GPU_THERE = re.compile(rf"gpu\.([0-9]+)\.({'|'.join(_MLFLOW_GPU_NAMES)})")
_OURS = " (mlflow)"


def wandb_key(key: str) -> str:
    """The name of a metric under PREFIX at W&B. No two get the same: one that has a name of W&B's already without
    meaning it gets ` (mlflow)` at its end.

    >>> [wandb_key(f"system/{name}") for name in ("disk_usage_percentage", "gpu_0_power_usage_watts", "a/b", "cpu")]
    ['system.disk./.usagePercent', 'system.gpu.0.powerWatts', 'system.a/b', 'system.cpu (mlflow)']
    """
    name = key.removeprefix(PREFIX)
    if gpu := _GPU.fullmatch(name):
        return f"{THERE}gpu.{gpu[1]}.{_GPU_NAMES[gpu[2]]}"
    return THERE + (_NAMES.get(name) or (name + _OURS if _is_taken(name) else name))


def mlflow_key(key: str) -> str:
    """The other way.

    >>> [mlflow_key(key) for key in ("system.cpu", "system.gpu.0.powerWatts", "system.a/b", "system.cpu (mlflow)")]
    ['system/cpu_utilization_percentage', 'system/gpu_0_power_usage_watts', 'system/a/b', 'system/cpu']
    """
    name = key.removeprefix(THERE)
    if gpu := _GPU_THERE.fullmatch(name):
        return f"{PREFIX}gpu_{gpu[1]}_{_MLFLOW_GPU_NAMES[gpu[2]]}"
    return PREFIX + (_MLFLOW_NAMES.get(name) or (name.removesuffix(_OURS) if _is_taken(name) else name))


def _is_taken(name: str) -> bool:
    while name.endswith(_OURS):
        name = name.removesuffix(_OURS)
    return name in _MLFLOW_NAMES or _GPU_THERE.fullmatch(name) is not None
