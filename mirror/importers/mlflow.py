"""MLflow to W&B: from a tracking server (or its SQLite file) into the mirror, and from there to a W&B server."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mirror.errors import UsageError
from mirror.importers.account import Totals
from mirror.importers.everything import Everything, push_everything
from mirror.importers.places import Namespace
from mirror.importers.push import PushOptions, PushProgress, plan
from mirror.importers.run import Destination
from mirror.importers.server import opened
from mirror.query.sql import asking
from mirror.sources.mlflow.road import PREFIX, open_road
from mirror.sources.mlflow.source import ENTITY, MlflowSource
from mirror.store import Reader
from mirror.store.layout import default_root
from mirror.sync.folders import plan_folders, sync_folders
from mirror.sync.progress import Progress
from mirror.sync.project import Options
from mirror.sync.session import Planned, Result
from mirror.sync.wanted import WantedBytes

_REFUSED = re.compile(r"[/\\#?%:\x00-\x1f\x7f]+")
_LONGEST = 128


@dataclass(frozen=True)
class MlflowRun:
    """A run to import: one of the mirror's, or an `mlflow.entities.Run`. `client` is what the importer that W&B had
    was given beside it; nothing is asked of it."""

    run: Any
    client: Any = field(default=None, compare=False, repr=False)

    def run_id(self) -> str:
        """MLflow's id of the run, which is its id in W&B, too."""
        return str(self.run["run_id"] if isinstance(self.run, Mapping) else self.run.info.run_id)


@dataclass(frozen=True)
class MlflowPlan:
    """What an import would do: what would be fetched of each experiment, and (experiment, place, runs that would be
    sent, runs that are there already)."""

    fetch: Sequence[Planned]
    send: Sequence[tuple[str, Namespace, int, int]]
    errors: Sequence[str]


class MlflowImporter:
    """Copies experiments from MLflow to a W&B server, by way of the mirror at `root` (`MIRROR_ROOT`, then
    `./wandb-mirror`).

    The names and arguments are those of `wandb.apis.importers.mlflow.MlflowImporter`, which W&B's SDK had up to 0.27.0.
    `mlflow_tracking_uri` is the address of a tracking server or `sqlite:///PATH`; a key of None is looked for as for a
    sync. `experiments`, `filters` (in MLflow's language) and `deleted` choose runs. Everything may be called again:
    what is mirrored is not fetched twice, what is there is not sent twice, what failed is tried again.

    >>> importer = MlflowImporter("http://127.0.0.1:5000", "https://api.wandb.ai", KEY)              # doctest: +SKIP
    >>> importer.import_runs(importer.collect_runs(), namespace=Namespace("my-team", "from-mlflow")) # doctest: +SKIP
    """

    def __init__(
        self,
        mlflow_tracking_uri: str,
        dst_base_url: str,
        dst_api_key: str | None = None,
        *,
        root: str | Path | None = None,
        experiments: Sequence[str] = (),
        filters: str | None = None,
        deleted: bool = False,
        workers: int = 4,
        deleted_suffix: str | None = None,
        progress: PushProgress | None = None,
        sync_progress: Progress | None = None,
        stop: threading.Event | None = None,
        ledger: Path | None = None,
    ) -> None:
        self.root = Path(root or default_root())
        self.dst_base_url = dst_base_url
        self.stop = stop or threading.Event()
        self._uri = PREFIX + mlflow_tracking_uri.removeprefix(PREFIX)
        self._road = open_road(self._uri, os.environ)
        self._key = dst_api_key
        self._chosen: dict[str, Any] = {"experiments": experiments, "deleted": deleted, "filter_": filters}
        self._workers = workers
        self._suffix = deleted_suffix
        self._progress = progress
        self._sync_progress = sync_progress or Progress()
        self._ledger = ledger
        self._ids: list[str] = []
        self._names: set[str] = set()
        self.notices: list[str] = []
        """What is to be known of MLflow's, once it was read: what of it is not mirrored."""

    @property
    def source(self) -> str:
        """The name under which the mirror keeps the runs."""
        return self._road.name

    def collect_runs(self, *, limit: int | None = None) -> list[MlflowRun]:
        """The runs that were chosen, once they are mirrored. Raises a SourceError if MLflow cannot be read, also in
        parts: `sync` goes on with what can be."""
        result = self.sync(artifacts=False)
        if problems := result.problems:
            raise UsageError(f"not everything of `{self.source}` could be read, first of all: {problems[0]}")
        with Reader(self.root) as reader:
            return [MlflowRun(row) for row in self._rows(reader)[:limit]]

    def import_runs(
        self,
        runs: Iterable[MlflowRun] | None = None,
        artifacts: bool = True,
        namespace: Namespace | None = None,
        *,
        incremental: bool = True,
        remapping: Mapping[str, Namespace] | None = None,
    ) -> Totals:
        """Import runs, all that were chosen if none are named; with `artifacts` also the bytes of theirs, and the
        versions of registered models that they made.

        Everything goes into `namespace`. Without one each experiment becomes a project of the key's own entity, under
        its name without what W&B takes in none (`/` and the like), or goes where `remapping` says by its name.
        """
        done = self.import_everything(runs, artifacts, namespace, incremental=incremental, remapping=remapping)
        totals = done.kinds["runs"]
        for kind, others in done.kinds.items():
            if kind != "runs":
                totals.failures += others.failures
                totals.errors += others.errors
        return totals

    def import_everything(
        self,
        runs: Iterable[MlflowRun] | None = None,
        artifacts: bool = True,
        namespace: Namespace | None = None,
        *,
        incremental: bool = True,
        remapping: Mapping[str, Namespace] | None = None,
    ) -> Everything:
        """`import_runs`, which tells of runs and of artifacts, each by itself."""
        wanted = None if runs is None else {run.run_id() for run in runs}
        result = self.sync(artifacts=artifacts)
        with Reader(self.root) as reader, self.opened() as there:
            rows = [row for row in self._rows(reader) if wanted is None or row["run_id"] in wanted]
            found = {row["run_id"] for row in rows}
            done = push_everything(
                reader,
                [row["rid"] for row in rows],
                there,
                self._options(there, {row["project"] for row in rows}, namespace, incremental, remapping),
                kinds=("runs", "artifacts") if artifacts else ("runs",),
                source=self.source,
                of_runs=found,
                progress=self._progress,
                stop=self.stop,
            )
        errors = done.kinds["runs"].errors
        errors += result.problems
        for run_id in sorted((wanted or set()) - found):
            errors.append(f"`{self.source}` has no run `{run_id}` among those that were chosen")
        return done

    def plan(
        self,
        namespace: Namespace | None = None,
        *,
        incremental: bool = True,
        remapping: Mapping[str, Namespace] | None = None,
    ) -> MlflowPlan:
        """What an import would do. Writes nothing; the mirror need not exist. Raises a SourceError if MLflow cannot be
        read or the destination refuses the key."""
        source = self._listing()
        fetch, result = plan_folders(self.root, source, Options())
        listed = {name: ids for name, ids in sorted(source.listed.items()) if ids}
        self._ids, self._names = [run_id for ids in listed.values() for run_id in ids], set(source.listed)
        stale = {wanted.key.run_id for p in fetch for wanted in (*p.plan.new, *p.plan.changed)}
        done: set[str] = set()
        with self.opened() as there, ExitStack() as stack:
            options = self._options(there, listed, namespace, incremental, remapping)
            if self.root.exists():
                reader = stack.enter_context(Reader(self.root))
                planned = plan(reader, [row["rid"] for row in self._rows(reader)], there, options)
                done = {p.run.row["run_id"] for p in planned if p.done} - stale
        send = []
        for name, ids in listed.items():
            there_already = len(done.intersection(ids))
            send.append((name, options.place(Namespace(ENTITY, name)), len(ids) - there_already, there_already))
        self.notices = source.notices
        return MlflowPlan(fetch, send, result.errors)

    def sync(self, *, artifacts: bool = True) -> Result:
        """From MLflow into the mirror; notes which runs were chosen."""
        source = self._listing()
        options = Options(bytes=WantedBytes(everything=artifacts))
        result = sync_folders(self.root, source, options, progress=self._sync_progress, stop=self.stop)
        self._ids, self._names = [run_id for ids in source.listed.values() for run_id in ids], set(source.listed)
        self.notices = source.notices
        return result

    def _listing(self) -> _Noting:
        return _Noting(self._road, **self._chosen)

    def sent(
        self,
        reader: Reader,
        there: Destination,
        namespace: Namespace | None = None,
        *,
        incremental: bool = True,
        remapping: Mapping[str, Namespace] | None = None,
    ) -> tuple[list[int], PushOptions]:
        """The runs that were chosen by the last sync, and how an import sends them."""
        rows = self._rows(reader)
        options = self._options(there, {row["project"] for row in rows}, namespace, incremental, remapping)
        return [row["rid"] for row in rows], options

    def _options(
        self,
        there: Destination,
        experiments: Iterable[str],
        namespace: Namespace | None,
        incremental: bool,
        remapping: Mapping[str, Namespace] | None,
    ) -> PushOptions:
        places = {} if namespace else self.places(there, experiments, remapping or {})
        return PushOptions(self._workers, incremental, places, namespace, self._ledger)

    def opened(self) -> AbstractContextManager[Destination]:
        """The destination, until the end of a block."""
        return opened(self.dst_base_url, self._key, workers=self._workers, stop=self.stop, deleted_suffix=self._suffix)

    def places(
        self, there: Destination, experiments: Iterable[str], remapping: Mapping[str, Namespace]
    ) -> dict[Namespace, Namespace]:
        """Which experiment becomes which project. Raises UsageError if `remapping` names one that was not chosen."""
        for name in remapping:
            if name not in self._names:
                near = "".join(f"; did you mean `{other}`?" for other in get_close_matches(name, self._names, 1))
                raise UsageError(f"`{name}` is to become another project, and is no experiment that was chosen{near}")
        found: dict[Namespace, Namespace] = {}
        taken: dict[Namespace, str] = {}
        for name in sorted(experiments):
            place = remapping.get(name)
            if place is None:
                if there.username is None:
                    raise UsageError("the key has no entity of its own: name a place, namespace=Namespace(...)")
                place = Namespace(there.client.viewer().entity or there.username, project_name(name))
                if (other := taken.setdefault(place, name)) != name:
                    raise UsageError(
                        f"the experiments `{other}` and `{name}` would both become project `{place.project}`: name "
                        "another place for one of them"
                    )
            found[Namespace(ENTITY, name)] = place
        return found

    def _rows(self, reader: Reader) -> list[dict[str, Any]]:
        """(rid, run_id, project) of the chosen runs as the mirror holds them."""
        with asking(reader) as connection:
            found = connection.execute(
                "select rid, run_id, project from raw.live where source = ? and entity = ? "
                "and run_id in (select unnest(?::varchar[])) order by rid",
                [self.source, ENTITY, self._ids],
            ).fetchall()
        return [dict(zip(("rid", "run_id", "project"), row, strict=True)) for row in found]


class _Noting(MlflowSource):
    """Notes the runs it lists, by experiment."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.listed: dict[str, list[str]] = {}

    def listing(self, entity: str, project: str, *args: Any, **options: Any) -> Any:
        self.listed[project] = []
        found = super().listing(entity, project, *args, **options)
        self.listed[project] = [run.key.run_id for run in found.runs]
        return found


def project_name(experiment: str) -> str:
    """An experiment's name as W&B takes it for a project.

    >>> project_name("/Users/me/a: b")
    'Users-me-a- b'
    """
    name = _REFUSED.sub("-", experiment).strip("- ")[:_LONGEST].strip()
    return name if name.strip(".") else "mlflow"
