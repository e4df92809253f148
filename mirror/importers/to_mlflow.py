"""Mirrored runs to an MLflow tracking server, by REST: params, every number of the history as a point with its step
and time, tags, summary, files. MLflow holds numbers alone, and what it cannot hold is counted.

A run is found again by its tags and gone on with: a point that is there already stays one, since MLflow keeps a point
once. When everything was sent, all points are read back and compared.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, zip_longest
from typing import IO, TYPE_CHECKING, Any

from mirror.errors import MirrorError, TerminalSourceError, UsageError
from mirror.importers.account import Account, Totals
from mirror.importers.run import MirroredRun, mirrored_runs
from mirror.pool import Pool
from mirror.query.rows import stretches
from mirror.query.sql import asking
from mirror.sources.mlflow.points import Point, Points, Spool
from mirror.sources.mlflow.rest import RestRoad
from mirror.store.blobs import blob_path

if TYPE_CHECKING:
    import pyarrow as pa

    from mirror.store import Reader

_POINTS, _PAIRS = 1000, 100
"""How many metrics, and how many params or tags, a request of MLflow may have."""
_AT_ONCE = 4
"""Runs at the same time."""
_CHARACTERS = 80_000
"""Of params in a request, which MLflow limits to a million bytes; a character may become 12 of JSON."""
_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
_REFUSED = re.compile(r"[^\w.\-/ :]|^/|/$|//|^\.+(/|$)|(?<=/)\.+(?=/|$)")
_OWN = ("_step", "_timestamp", "_runtime")
_SOURCE, _STORAGE, _VERSION, _DONE = "mirror.source", "mirror.storage_id", "mirror.version", "mirror.complete"
_STATES = {"finished": "FINISHED", "failed": "FAILED", "crashed": "FAILED", "killed": "KILLED", "preempted": "KILLED"}


def push_to_mlflow(reader: Reader, rids: Sequence[int], uri: str) -> Totals:
    """Send runs to the server at `uri`; each project becomes an experiment `entity/project`. Raises a SourceError if
    the server cannot be used at all; a run that fails leaves the others alone."""
    uri = uri.removeprefix("mlflow:")
    if not uri.startswith(("http://", "https://")):
        raise UsageError(f"`{uri}` is no MLflow server: runs are sent to mlflow:http://HOST:PORT")
    server = RestRoad(uri, os.environ)
    experiments = {e["name"]: e for e in server.experiments(deleted=True)}
    totals = Totals()

    def send(run: MirroredRun) -> Account:
        account = Account(run.path, run.namespace.path, run.fingerprint())
        try:
            _Sending(reader, server, run, account).send(experiments)
        except MirrorError as e:
            account.error = str(e)
        return account

    pool = Pool(_AT_ONCE, "mlflow")
    try:
        for start in range(0, len(rids), _AT_ONCE):
            runs = mirrored_runs(reader, rids[start : start + _AT_ONCE])
            for name in {run.namespace.path for run in runs} - experiments.keys():
                made = server.write("experiments/create", {"name": name})["experiment_id"]
                experiments[name] = {"experiment_id": made, "lifecycle_stage": "active"}
            for future in [pool.submit(send, run) for run in runs]:
                totals.add(future.result())
    finally:
        pool.close()
    return totals


class _Sending:
    def __init__(self, reader: Reader, server: RestRoad, run: MirroredRun, account: Account) -> None:
        self._reader = reader
        self._server = server
        self._run = run
        self._account = account

    def send(self, experiments: Mapping[str, Any]) -> None:
        row, name = self._run.row, self._run.namespace.path
        experiment = experiments[name]
        if experiment.get("lifecycle_stage") == "deleted":
            raise UsageError(f"experiment `{name}` was deleted there, and MLflow keeps its name: restore it first")
        run_id, done = self._opened(str(experiment["experiment_id"]))
        self._account.destination = f"{name}/{run_id}"
        if done:
            self._account.skipped = True
            return
        with closing(Spool(run_id)) as sent:
            for points in self._points():
                sent.add(points)
                self._log(run_id, points)
            self._describe(run_id)
            self._files(run_id, str(experiment["experiment_id"]))
            self._check(run_id, sent.points())
        self._log_pairs(run_id, "tags", [(_DONE, "true")])
        state = _STATES.get(row["state"] or "", "RUNNING")
        self._server.write(
            "runs/update",
            {"run_id": run_id, "status": state} | ({"end_time": ended} if (ended := _ms(row["heartbeat_at"])) else {}),
        )

    def _opened(self, experiment: str) -> tuple[str, bool]:
        """The run's id there, and whether all of it is there; made if it is not."""
        row = self._run.row
        same = {_SOURCE: row["source"], _STORAGE: row["storage_id"], _VERSION: self._run.fingerprint()}
        filter_ = f"tags.`{_VERSION}` = '{same[_VERSION]}'"
        for run, _ in self._server.runs(experiment, False, filter_):
            tags = {tag["key"]: tag.get("value") for tag in run["data"].get("tags", ())}
            if tags.items() >= same.items():
                return run["info"]["run_id"], _DONE in tags
        tags = same | {"mirror.path": self._run.path} | {"mlflow.runName": row["name"] or row["run_id"]}
        named = {"mlflow.note.content": row["notes"], "mlflow.user": row["username"]}
        named |= {"mlflow.source.git.commit": row["commit"], "mirror.group": row["group"]}
        named |= {"mirror.job_type": row["job_type"], "mirror.state": row["state"], "mirror.url": row["url"]}
        tags |= {key: value for key, value in named.items() if value}
        if row["tags"]:
            tags["mirror.tags"] = json.dumps(list(row["tags"]), ensure_ascii=False)
        fitting = [{"key": key, "value": self._cut(key, value, _LONGEST_TAG)} for key, value in tags.items()]
        asked = {"experiment_id": experiment, "run_name": row["name"] or row["run_id"], "tags": fitting}
        asked["start_time"] = _ms(row["created_at"]) or 0
        return self._server.write("runs/create", asked)["run"]["info"]["run_id"], False

    # -- points -------------------------------------------------------------------------------------------

    def _points(self) -> Iterator[list[Point]]:
        """The numbers of the history, some thousand at a time, as MLflow can hold them."""
        names: dict[str, str] = {}
        for cells in stretches(self._reader, self._run.rid):
            yield list(self._converted(cells, names))

    def _converted(self, cells: pa.Table, names: dict[str, str]) -> Iterator[Point]:
        columns = ("key", "row", "step", "kind", "v", "j")
        listed = sorted(zip(*(cells.column(c).to_pylist() for c in columns), strict=True), key=lambda cell: cell[1])
        other = infinite = rounded = 0
        for row, some in groupby(listed, key=lambda cell: cell[1]):
            cells_of_row = list(some)
            at = next((v for key, _, _, _, v, _ in cells_of_row if key == "_timestamp" and v is not None), 0.0)
            for key, _, step, kind, v, j in cells_of_row:
                if key in _OWN or kind == "empty":
                    continue
                value = v if v is not None else _number(kind, j)
                if value is None:
                    other += 1
                    continue
                if kind == "int" and v is None:
                    rounded += 1
                if math.isinf(value):
                    infinite += 1
                    value = math.copysign(sys.float_info.max, value)
                if key not in names:
                    names[key] = self._name(key, names)
                yield round(at * 1000), row if step is None else step, names[key], None if value != value else value
        if other:
            self._account.lost("values", "MLflow's metrics are numbers, not texts, media or lists", other)
        if rounded:
            self._account.changed("large ints", "MLflow holds the nearest floating-point number", rounded)
        if infinite:
            self._account.changed("infinities", "MLflow holds the largest number instead", infinite)

    def _name(self, key: str, names: Mapping[str, str]) -> str:
        name = _REFUSED.sub("_", key)[:250]
        while name in names.values():
            name = f"{name[:240]} {len(names) + 1}"
        if name != key:
            self._account.changed("keys", f"`{key[:100]}` is `{name[:100]}` there", 1)
        return name

    def _log(self, run_id: str, points: Sequence[Point]) -> None:
        for start in range(0, len(points), _POINTS):
            metrics = [
                {"key": key, "value": "NaN" if value is None else value, "timestamp": at, "step": step}
                for at, step, key, value in points[start : start + _POINTS]
            ]
            self._server.write("runs/log-batch", {"run_id": run_id, "metrics": metrics})

    def _check(self, run_id: str, sent: Points) -> None:
        """Read all points back. Raises TerminalSourceError for the first that is not what was sent."""
        run = self._server.documents("", [run_id]).get(run_id)
        if run is None:
            raise TerminalSourceError(f"run `{run_id}` is gone there: send it again")
        with self._server.points([run]) as found:
            there = found[run_id]
            if isinstance(there, MirrorError):
                raise there
            distinct = 0
            once = (point for point, _ in groupby(sent, _comparable))
            for ours, theirs in zip_longest(once, map(_comparable, there)):
                if ours != theirs:
                    raise TerminalSourceError(f"point {ours} was sent, and {theirs} is there: send the run again")
                distinct += 1
            same = sent.total - distinct
        self._account.counts["points"] = distinct
        if same:
            self._account.changed("points", "of points that are wholly the same MLflow keeps one", same)

    # -- documents ----------------------------------------------------------------------------------------

    def _describe(self, run_id: str) -> None:
        params = []
        for key, held in json.loads(self._run.row["config_raw"] or "{}").items():
            if key == "_wandb":
                continue  # W&B's own; it is kept in mirror/config.json
            value = held.get("value") if isinstance(held, dict) else held
            for name, text in _flat(key, value):
                params.append((_REFUSED.sub("_", name)[:250], self._cut(f"config {name}", text, _LONGEST_PARAM)))
        self._log_pairs(run_id, "params", list(dict(params).items()))
        if len(dict(params)) < len(params):
            self._account.lost("config", "keys that are the same once written as MLflow takes them", 1)

    def _log_pairs(self, run_id: str, what: str, pairs: Sequence[tuple[str, str]]) -> None:
        part: list[dict[str, str]] = []
        size = 0
        for key, value in pairs:
            if part and (len(part) == _PAIRS or size + len(key) + len(value) > _CHARACTERS):
                self._server.write("runs/log-batch", {"run_id": run_id, what: part})
                part, size = [], 0
            part.append({"key": key, "value": value})
            size += len(key) + len(value)
        if part:
            self._server.write("runs/log-batch", {"run_id": run_id, what: part})

    def _cut(self, what: str, text: str, longest: int) -> str:
        if len(text) <= longest:
            return text
        self._account.lost("long texts", f"{what[:100]}: MLflow takes {longest:,} characters of {len(text):,}")
        return text[:longest]

    def _files(self, run_id: str, experiment: str) -> None:
        """The documents as they are, and the files whose bytes the mirror holds."""
        row = self._run.row
        for what in ("system", "logs"):
            if row[f"{what}_rows"]:
                name = "system metrics" if what == "system" else "console"
                self._account.lost(name, "MLflow has no place for them but metrics and files", row[f"{what}_rows"])
        for name in ("config", "summary"):
            if row[f"{name}_raw"]:
                self._upload(experiment, run_id, f"mirror/{name}.json", row[f"{name}_raw"].encode())
        with asking(self._reader) as connection:
            query = "select name, sha256 from files where rid = ? order by 1"
            files = connection.execute(query, [row["rid"]]).fetchall()
        for name, sha256 in files:
            if sha256 is None:
                self._account.lost("files", f"the mirror does not hold the bytes of `{name[:100]}`")
                continue
            with blob_path(self._reader.layout.blobs, sha256).open("rb") as file:
                self._upload(experiment, run_id, name, file)

    def _upload(self, experiment: str, run_id: str, name: str, content: bytes | IO[bytes]) -> None:
        try:
            self._server.upload(experiment, run_id, name, content)
            self._account.counts["files"] += 1
        except TerminalSourceError as e:
            self._account.lost("files", str(e))


def _comparable(point: Point) -> tuple[int, int, str, float, bool]:
    at, step, key, value = point
    return at, step, key, value or 0.0, value is None


def _number(kind: str, j: str | None) -> float | None:
    """The number of a cell that is none by itself: NaN and infinities, ints beyond 2^53, truth values."""
    text = (j or "").strip('"')
    if kind in ("nonfinite", "int", "number"):
        try:
            return float(text)
        except (ValueError, OverflowError):
            return None
    return float(text == "true") if kind == "bool" and text in ("true", "false") else None


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}/{name}", inner)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _ms(at: Any) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)
