"""A crowd of hostile runs beside those of corpus.py: what is in them is drawn by a seeded generator.

    python tests/crowd.py TRUTH.pickle SEED FIRST END     with WANDB_BASE_URL and WANDB_API_KEY of a server

logs them with the real SDK, all side by side in one process, and leaves a list of `Truth`s.
"""

from __future__ import annotations

import math
import pickle
import random
import sys
from pathlib import Path
from typing import Any

from corpus import ENTITY, PROJECT, Recorder, Truth

_KEYS = [
    "loss", "Loss", "val/acc", "a", "a.b", "b.c.d", "ünïcode", "🎈 party", " spaced ", "x" * 120, "0", "null",
    "_hidden", 'with"quote', "back\\slash", "it's", "select", "rid", "row", "key", "-minus", "$dollar", "[0]",
    "a//b", "{}",
]  # fmt: skip
_TEXTS = [
    "",
    "NaN",
    "Infinity",
    "null",
    "true",
    "1",
    "1e5",
    "ü 🎈\n\t",
    "' or 1=1 --",
    "\x1b[31m",
    "x" * 3000,
    "{}",
    "[1]",
]
_NUMBERS = [0, -0.0, 1, -1, 0.1, 1e-320, 1.7976931348623157e308, 2**53 + 1, -(2**63), 10**30, 3.0, 1 / 3]
_STRANGE = [math.nan, math.inf, -math.inf, None, True, False, [], {}]


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice([rng.gauss(0, 1), rng.randrange(-1000, 1000), rng.choice(_NUMBERS)])
    if kind < 0.65:
        return rng.choice(_TEXTS)
    if kind < 0.8 or depth > 2:
        return rng.choice(_STRANGE)
    if kind < 0.9:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_KEYS): value(rng, depth + 1) for _ in range(rng.randrange(1, 4))}


def rows(rng: random.Random, recorder: Recorder) -> None:
    """Rows of keys that come and go, and change their types; steps leap, and a step may get two calls."""
    import wandb

    keys = rng.sample(_KEYS, rng.randrange(1, 9))
    for n in range(rng.choice([0, 1, 7, 40])):
        row = {key: value(rng) for key in keys if rng.random() < 0.8}
        if n % 10 == 3:
            row["histogram"] = wandb.Histogram([rng.random() for _ in range(20)], num_bins=4)
            recorder.run.log(row)
        elif rng.random() < 0.1:
            recorder.log(row, step=recorder.run.step + rng.choice([0, 1, 5, 10**6]))
        else:
            recorder.run.log(row)


def log(seed: int, n: int) -> Truth:
    import wandb

    rng = random.Random(f"{seed} {n}")
    truth = Truth(f"crowd{n}", state=rng.choice(["finished", "finished", "failed"]))
    run = wandb.init(
        entity=ENTITY,
        project=PROJECT,
        id=truth.run_id,
        reinit="create_new",
        config={key: value(rng) for key in rng.sample(_KEYS, rng.randrange(6))},
        name=rng.choice([None, "", "same name", "ü 🎈 <b>", "../x"]),
        notes=rng.choice([None, "", "*notes*\n\n'quoted'"]),
        tags=rng.sample(["a", "b c", "ü", "x" * 60], rng.randrange(4)),
        group=rng.choice([None, "g", "ü/g"]),
        job_type=rng.choice([None, "train"]),
        settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=n % 5 != 0),
    )
    rows(rng, Recorder(run, truth))
    for key in rng.sample(_KEYS, rng.randrange(3)):
        run.summary[key] = value(rng)
    run.finish(exit_code=int(truth.state == "failed"))
    return truth


def main(target: str, seed: str, first: str, end: str) -> None:
    truths = [log(int(seed), n) for n in range(int(first), int(end))]
    Path(target).write_bytes(pickle.dumps(truths))


if __name__ == "__main__":
    main(*sys.argv[1:])
