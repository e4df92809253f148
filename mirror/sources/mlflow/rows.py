"""Points as rows of a history: one row each, `{"_step": 3, "_timestamp": 1700000000.25, "loss": 0.5}`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b

from mirror.sources.mlflow.points import Point

_OURS = re.compile(r"_(?:step|timestamp|runtime|wandb|mlflow)(?: \(mlflow\))*")
TOGETHER = 5000


def own(key: str) -> str:
    """The key under which a metric or param is held: its name, but for names that mean something else in a mirror
    (`_step`), which get ` (mlflow)` at the end. No two names get the same key."""
    return f"{key} (mlflow)" if _OURS.fullmatch(key) else key


def theirs(key: str) -> str:
    """The name in MLflow of what is held under a key: the inverse of `own`."""
    name = key.removesuffix(" (mlflow)")
    return name if own(name) == key else key


def rows(points: Iterable[Point]) -> Iterator[list[str]]:
    """JSON texts, some thousand at a time."""
    batch: list[str] = []
    quoted = lru_cache(4096)(lambda key: json.dumps(own(key)))
    for at, step, key, value in points:
        number = "NaN" if value is None else _SPECIAL.get(text := repr(float(value)), text)
        batch.append(f'{{"_step":{step},"_timestamp":{at / 1000!r},{quoted(key)}:{number}}}')
        if len(batch) == TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch


_SPECIAL = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}


class Digest:
    """Of rows, so that a later reading knows whether what it held is the beginning of what there is."""

    def __init__(self) -> None:
        self._digest = blake2b(digest_size=16)
        self.rows = 0

    def take(self, batch: list[str]) -> None:
        self._digest.update(("\n".join(batch) + "\n").encode())
        self.rows += len(batch)

    def text(self) -> str:
        return self._digest.hexdigest()
