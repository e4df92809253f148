"""One mirrored run to MLflow: made, or found and completed, and read back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.errors import SourceError, StoreError, TerminalSourceError, TransientSourceError
from mirror.importers.account import Account
from mirror.importers.outgoing import Diverged
from mirror.importers.run import MirroredRun
from mirror.importers.to_mlflow.destination import Destination, Pairs, pairs
from mirror.importers.to_mlflow.document import name_of, params, status, tags
from mirror.importers.to_mlflow.points import RunPoints, Series, keys_document, milliseconds
from mirror.pool import Pool
from mirror.query.sql import asking
from mirror.sources.mlflow.points import Point, Points
from mirror.sources.mlflow.road import Json
from mirror.store.blobs import blob_path
from mirror.wandb.budget import Stopped

if TYPE_CHECKING:
    from mirror.store import Reader

_LEAST = 5000
"""Points that are worth being sent beside others of the same run."""
_ARTIFACTS = """
select count(*) from artifacts
where source = ? and run_entity = ? and run_project = ? and run_id = ? and deleted_at is null
"""


@dataclass
class There:
    """Where runs are sent to. `pool` sends parts of runs; `sent` is told of rows."""

    destination: Destination
    pool: Pool
    workers: int
    stop: threading.Event
    sent: Callable[[int], None]

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped("stopped")


@dataclass
class Copy:
    """What was sent of a run and is to be found there."""

    run: MirroredRun
    run_id: str
    points: RunPoints
    params: Pairs
    tags: Pairs
    files: dict[str, int] = field(default_factory=dict)
    """Names and sizes."""


def send_run(
    reader: Reader, run: MirroredRun, there: There, experiment: str, held: str | None, account: Account
) -> Copy:
    """Send a run to an experiment. `held` is its copy there, if there is one, which gets what it lacks.

    Raises a SourceError if the server refuses, Diverged if the copy holds what the run does not.
    """
    points = RunPoints(reader, run.row, account)
    told, marked = params(run.row, account), tags(run.row, run.path, run.fingerprint(), account)
    document = there.destination.active(experiment, [held]).get(held) if held else None
    if document is None:
        there.check()
        began = milliseconds(run.row["created_at"]) or 0
        made = there.destination.make_run(experiment, name_of(run.row), began, marked)
        copy = Copy(run, made, points, told, marked)
        _send_points(there, copy, told, {}, None)
    else:
        data = document.get("data", {})
        old, worn = pairs(data.get("params")), pairs(data.get("tags"))
        if other := [name for name in told if old.get(name, told[name]) != told[name]]:
            account.lost("params", f"MLflow never changes one: `{other[0]}` is `{old[other[0]][:50]}`", len(other))
        lasting = {name: text for name, text in told.items() if name not in other}
        copy = Copy(run, document["info"]["run_id"], points, lasting, marked)
        new = {name: text for name, text in lasting.items() if name not in old}
        changed = {name: text for name, text in marked.items() if worn.get(name) != text}
        with _read(there, document) as found:
            _send_points(there, copy, new, changed, found)
    _send_files(reader, there, copy, experiment, account)
    there.check()
    there.destination.update(copy.run_id, status(run.row, account))
    return copy


def prove(
    there: There, copy: Copy, document: Json | None, found: Points | SourceError | None, account: Account
) -> None:
    """See that what was sent is what is there: `document` and `found`. Raises a SourceError or Diverged if not; what is
    missing is sent when the run is sent again."""
    if document is None or found is None:
        raise TransientSourceError(f"run `{copy.run_id}` is gone there: send it again")
    if isinstance(found, SourceError):
        raise found
    data = document.get("data", {})
    for what, sent in (("params", copy.params), ("tags", copy.tags)):
        arrived = pairs(data.get(what))
        if other := [name for name, text in sent.items() if arrived.get(name) != text]:
            got = arrived.get(other[0], "nothing")[:100]
            raise TransientSourceError(f"`{other[0]}` of the {what} was sent, and `{got}` is there: send it again")
    compared = _Compared(copy, found)
    if lacking := next(compared.missing(copy.points.series), None):
        raise TransientSourceError(f"point {lacking} was sent and is not there: send the run again")
    if merged := copy.points.numbers - compared.same:
        account.changed("points", "of points that are wholly the same MLflow keeps one", merged)
    if copy.files:
        listed = {file.name: file.size for file in there.destination.files(document) or ()}
        if short := [name for name, size in copy.files.items() if listed.get(name) != size]:
            raise TransientSourceError(f"file `{short[0][:200]}` was sent and is not there as it was: send it again")
    account.counts.update({"points": compared.same, "params": len(copy.params), "files": len(copy.files)})


# -- points -------------------------------------------------------------------------------------------------------


class _Compared:
    """Points as they are to be beside those there are. `same` counts what is on both sides."""

    def __init__(self, copy: Copy, found: Points | None) -> None:
        self.same = 0
        self._copy = copy
        self._found = found
        extra = found.names() - {one.name for one in copy.points.series} if found else None
        if extra:
            self._diverged(f"metric `{min(extra)}`")

    def missing(self, series: Sequence[Series]) -> Iterator[Point]:
        """The points of some series that are not there. Raises Diverged for one that is there alone."""
        theirs = iter(self._found.by_name([one.name for one in series]) if self._found else ())
        their = next(theirs, None)
        for our in self._copy.points.points(series):
            if our == their:
                self.same += 1
                their = next(theirs, None)
                continue
            if their is not None and _order(their) < _order(our):
                self._diverged(f"point {their}")
            yield our
        if their is not None:
            self._diverged(f"point {their}")

    def _diverged(self, what: str) -> None:
        raise Diverged(
            f"run `{self._copy.run_id}` holds {what}, which `{self._copy.run.path}` does not: delete it there, or send "
            "the project into another experiment (--remap)"
        )


def _order(point: Point) -> tuple[str, int, int, bool, float]:
    at, step, name, value = point
    return name, at, step, value is None, value or 0.0


def _send_points(there: There, copy: Copy, new_params: Pairs, new_tags: Pairs, found: Points | None) -> None:
    """Send the points that are not there, parts of a large run side by side; params and tags go with the first."""
    progress = _Progress(copy, there.sent)
    compared = _Compared(copy, found)

    def send(series: Sequence[Series], params: Pairs, tags: Pairs) -> None:
        for sent in there.destination.log(copy.run_id, compared.missing(series), params, tags):
            progress.sent(sent)
            there.check()

    there.check()
    first, *others = copy.points.parts(there.workers if there.destination.side_by_side else 1, _LEAST)
    under_way = [there.pool.submit(send, part, {}, {}) for part in others]
    try:
        send(first, new_params, new_tags)
    finally:
        wait(under_way)  # they read what the caller closes
    for future in under_way:
        future.result()
    progress.end()


class _Progress:
    """Tells of rows as their points go out: of a run that has 3 rows and 30 points, of 1 after each 10."""

    def __init__(self, copy: Copy, told: Callable[[int], None]) -> None:
        self._rows = copy.run.row["history_rows"]
        self._points = copy.points.numbers
        self._told = told
        self._lock = threading.Lock()
        self._sent = self._before = 0

    def sent(self, points: int) -> None:
        with self._lock:
            self._sent += points
            rows = self._rows * self._sent // max(1, self._points)
            rows, self._before = rows - self._before, rows
        self._told(rows)

    def end(self) -> None:
        self._told(self._rows - self._before)


@contextmanager
def _read(there: There, document: Json) -> Iterator[Points]:
    with there.destination.points([document]) as found:
        points = found[document["info"]["run_id"]]
        if isinstance(points, SourceError):
            raise points
        yield points


# -- files --------------------------------------------------------------------------------------------------------


def _send_files(reader: Reader, there: There, copy: Copy, experiment: str, account: Account) -> None:
    """Config and summary as they are, what metrics are called here, and the files whose bytes the mirror holds."""
    row = copy.run.row
    if row["logs_rows"]:
        account.lost("console", "MLflow has no place for its lines", row["logs_rows"])

    def upload(name: str, size: int, content: bytes | Path) -> None:
        there.check()
        try:
            there.destination.put_file(experiment, copy.run_id, name, content)
            copy.files[name] = size
        except TerminalSourceError as e:
            account.lost("files", str(e))

    for name in ("config", "summary"):
        if text := row[f"{name}_raw"]:
            content = text.encode("utf-8", "replace")
            upload(f"mirror/{name}.json", len(content), content)
    if copy.points.renamed:
        content = keys_document(copy.points.renamed)
        upload("mirror/keys.json", len(content), content)
    with asking(reader) as connection:
        query = "select name, sha256 from files where rid = ? order by 1"
        files = connection.execute(query, [row["rid"]]).fetchall()
        named = [row[name] for name in ("source", "entity", "project", "run_id")]
        ((artifacts,),) = connection.execute(_ARTIFACTS, named).fetchall()
    if artifacts:
        account.lost("artifacts", "a run's files are sent, versions of artifacts that it logged are not", artifacts)
    for name, sha256 in files:
        if sha256 is None:
            account.lost("files", f"the mirror does not hold the bytes of `{name[:100]}`")
            continue
        path = blob_path(reader.layout.blobs, sha256)
        try:
            upload(name, path.stat().st_size, path)
        except OSError as e:
            raise StoreError(f"the bytes of `{name[:100]}` are gone from the mirror: run `mirror repair`") from e
