"""A small real model: a two-layer network that learns to tell two spirals apart, in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

STEPS = 300
ENTITY, PROJECT = "demo", "spirals"


@dataclass(frozen=True)
class Trial:
    """Two hyperparameters and a seed. `crash_at` is a step at which the program fails."""

    lr: float
    width: int
    seed: int = 0
    crash_at: int | None = None

    @property
    def name(self) -> str:
        return f"lr{self.lr:g}-width{self.width}-seed{self.seed}"

    @property
    def run_id(self) -> str:
        return self.name.replace(".", "p")


def trials() -> list[Trial]:
    """A grid of learning rate and width, one rate that diverges, and one run that crashes."""
    grid = [Trial(lr, width, seed) for lr in (0.01, 0.03, 0.1, 0.3) for width in (4, 8, 32) for seed in (0, 1)]
    return [*grid, Trial(30.0, 32), Trial(0.1, 16, crash_at=120)]


def spirals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of shape (n, 2) on two spirals, and which of the two each lies on, shape (n,)."""
    random = np.random.default_rng(seed)
    turn = np.sqrt(random.uniform(0.05, 1, n)) * 3 * np.pi
    which = random.integers(0, 2, n)
    angle = turn + np.pi * which
    points = (turn * np.stack([np.cos(angle), np.sin(angle)]) / 5).T
    return points + random.normal(0, 0.06, (n, 2)), which.astype(float)


def train(trial: Trial, steps: int = STEPS) -> Iterator[dict[str, float]]:
    """Train, yielding `loss` at every step and `val/loss`, `val/acc` at every tenth."""
    points, labels = spirals(400, seed=0)
    held_out, held_out_labels = spirals(400, seed=1)
    random = np.random.default_rng(trial.seed)
    sizes = [2, trial.width, trial.width, 1]
    weights = [random.normal(0, 1 / np.sqrt(max(1, n // 2)), (n, m)) for n, m in pairwise(sizes)]
    biases = [np.zeros(m) for m in sizes[1:]]
    with np.errstate(all="ignore"):  # a run that diverges does so in silence, and logs NaN
        for step in range(steps):
            if step == trial.crash_at:
                raise RuntimeError("CUDA error: an illegal memory access was encountered (not really: this is a demo)")
            batch = random.integers(0, len(points), 128)
            layers = _forward(points[batch], weights, biases)
            row = {"loss": _loss(layers[-1], labels[batch])}
            if step % 10 == 0:
                out = _forward(held_out, weights, biases)[-1]
                row["val/loss"] = _loss(out, held_out_labels)
                row["val/acc"] = float(np.mean((out > 0.5) == held_out_labels))
            yield row
            # Written as the chain rule says, without the usual simplification: 0/0 once the output saturates.
            p, y = layers[-1], labels[batch]
            slope = ((p - y) / (p * (1 - p)) * (p * (1 - p)) / len(batch))[:, None]
            for i in (2, 1, 0):
                below = slope @ weights[i].T * (layers[i] > 0) if i else slope
                weights[i] -= trial.lr * (layers[i].T @ slope)
                biases[i] -= trial.lr * slope.sum(0)
                slope = below


def _forward(x: np.ndarray, weights: list[np.ndarray], biases: list[np.ndarray]) -> list[np.ndarray]:
    layers = [x]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        layers.append(np.maximum(layers[-1] @ w + b, 0))
    return [*layers, 1 / (1 + np.exp(-(layers[-1] @ weights[-1] + biases[-1])[:, 0]))]


def _loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
