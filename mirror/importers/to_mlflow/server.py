"""A MLflow tracking server as a destination, by REST."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import requests

from mirror.errors import SourceError, TerminalSourceError, TransientSourceError
from mirror.importers.to_mlflow.destination import ENTITIES, IDENTITY, PAIRS, Pairs, pairs
from mirror.sources.mlflow.points import Point
from mirror.sources.mlflow.rest import PATIENCE, RestRoad
from mirror.sources.mlflow.road import Json

_BYTES = 900_000
"""Of a request, which MLflow limits to a million."""
_FEW = 10
"""Runs that are looked for one by one, rather than among all of an experiment."""


class ServerDestination(RestRoad):
    """See `mirror.importers.to_mlflow.destination.Destination`."""

    side_by_side = True

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        super().__init__(url, environ)
        self.notices: list[str] = []

    def open(self) -> None:
        """It is as it is."""

    def experiment(self, name: str) -> Json | None:
        found = self._ask("GET", "experiments/get-by-name", {"experiment_name": name}, none_if_missing=True)
        if found is not None and not isinstance(found.get("experiment"), dict):
            raise TerminalSourceError(
                f"`{self.base_url}` is no MLflow server (it names no experiment): check the address"
            )
        return None if found is None else dict(found["experiment"])

    def make_experiment(self, name: str) -> str:
        return str(self._write("experiments/create", {"name": name})["experiment_id"])

    def copies(self, experiment: str, identities: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        few = len(identities) <= _FEW
        for filter_ in [f"= '{identity}'" for identity in identities] if few else ["LIKE '%'"]:
            for document, _ in self.runs(experiment, False, f"tags.`{IDENTITY}` {filter_}"):
                found.setdefault(pairs(document["data"]["tags"])[IDENTITY], document["info"]["run_id"])
        return found

    def active(self, experiment: str, run_ids: Sequence[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for start in range(0, len(run_ids), PAIRS):
            listed = ", ".join(f"'{run_id}'" for run_id in run_ids[start : start + PAIRS] if run_id.isalnum())
            for document, _ in self.runs(experiment, False, f"attributes.run_id IN ({listed})") if listed else ():
                found[document["info"]["run_id"]] = document
        return found

    def make_run(self, experiment: str, name: str, began: int, tags: Pairs) -> str:
        asked = {"experiment_id": experiment, "run_name": name, "start_time": began, "tags": _listed(tags)}
        for last in (False, False, True):
            try:
                return str(self._write("runs/create", asked)["run"]["info"]["run_id"])
            except SourceError:
                if found := self.copies(experiment, [tags[IDENTITY]]).get(tags[IDENTITY]):
                    return found
                if last:
                    raise
                time.sleep(1)
        raise AssertionError

    def log(self, run_id: str, points: Iterator[Point], params: Pairs, tags: Pairs) -> Iterator[int]:
        for sent, body in _bodies(run_id, points, params, tags):
            self._write("runs/log-batch", body)
            yield sent

    def update(self, run_id: str, changes: Json) -> None:
        self._write("runs/update", {"run_id": run_id} | changes)

    def put_file(self, experiment: str, run_id: str, name: str, content: bytes | Path) -> None:
        """By the server's own proxy. Raises SourceError if it has none."""
        place = f"{experiment}/{run_id}/artifacts/{name}"
        url = f"{self.base_url}/api/2.0/mlflow-artifacts/artifacts/{quote(place)}"
        with ExitStack() as stack:
            data = content if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            try:
                response = self._session.put(url, data=data, timeout=PATIENCE)
            except requests.exceptions.RequestException as e:
                raise TransientSourceError(
                    f"`{name[:200]}` could not be sent ({type(e).__name__}): send again", e
                ) from e
        if response.status_code != 200:
            raise TerminalSourceError(f"`{name[:200]}` was refused ({response.status_code}) by `{self.base_url}`")

    def _write(self, path: str, asked: Json | bytes) -> Json:
        """`asked` as an object, or as its JSON."""
        return self._ask("POST", path, asked) or {}


def _bodies(run_id: str, points: Iterator[Point], params: Pairs, tags: Pairs) -> Iterator[tuple[int, bytes]]:
    """Requests as large as MLflow takes them, and how many points are in each."""
    left = {"params": iter(params.items()), "tags": iter(tags.items())}
    while True:
        some = {what: _listed(dict(islice(pairs, PAIRS))) for what, pairs in left.items()}
        part = list(islice(points, ENTITIES - sum(map(len, some.values()))))
        if not part and not any(some.values()):
            return
        yield from _sized(run_id, {"metrics": _metrics(part)} | some)


def _sized(run_id: str, parts: Mapping[str, Sequence[Json]]) -> Iterator[tuple[int, bytes]]:
    body = orjson.dumps({"run_id": run_id, **parts})
    if len(body) <= _BYTES or max(map(len, parts.values())) < 2:
        yield len(parts["metrics"]), body
        return
    for half in (0, 1):
        yield from _sized(run_id, {what: some[half::2] for what, some in parts.items()})


def _listed(some: Pairs) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in some.items()]


def _metrics(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {"key": name, "value": "NaN" if value is None else value, "timestamp": at, "step": step}
        for at, step, name, value in points
    ]
