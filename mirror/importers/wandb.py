"""W&B to W&B: from a server into the mirror, and from there to another. The source is only ever read."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mirror.errors import TerminalSourceError, UsageError
from mirror.importers.account import Totals
from mirror.importers.everything import KINDS, Everything, push_everything
from mirror.importers.places import Namespace, Remapping
from mirror.importers.push import PushOptions, PushProgress
from mirror.importers.run import MirroredRun, mirrored_runs
from mirror.importers.server import opened
from mirror.paths import WandbPath, api_url, canonical_source
from mirror.query.filters import parse as parse_filter
from mirror.query.runs import Selection, rids
from mirror.store import Reader
from mirror.store.layout import default_root
from mirror.sync.progress import Progress
from mirror.sync.project import Options
from mirror.sync.session import Result, Session, Target
from mirror.sync.wanted import WantedBytes

Where = Namespace | str
Renaming = Mapping[Any, Where]


class WandbImporter:
    """Copies experiments from one W&B server to another, by way of the mirror at `root` (`MIRROR_ROOT`, then
    `./wandb-mirror`).

    The names and arguments are those of `wandb.apis.importers.wandb.WandbImporter`, which W&B's SDK had up to 0.27.0.
    A key of None is looked for as for a sync: WANDB_API_KEY, then netrc. Everything may be called again: what is
    mirrored is not fetched twice, what is there is not sent twice, what failed is tried again.

    >>> importer = WandbImporter("https://api.wandb.ai", None, "https://wandb.example.org", KEY)  # doctest: +SKIP
    >>> importer.import_all([Namespace("my-team", "my-project")])                                 # doctest: +SKIP
    """

    def __init__(
        self,
        src_base_url: str,
        src_api_key: str | None,
        dst_base_url: str,
        dst_api_key: str | None,
        *,
        root: str | Path | None = None,
        workers: int = 4,
        deleted_suffix: str | None = None,
        progress: PushProgress | None = None,
        sync_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.src_base_url = api_url(src_base_url)
        self.dst_base_url = api_url(dst_base_url)
        self.root = Path(root or default_root())
        self._keys = (src_api_key, dst_api_key)
        self._workers = workers
        self._suffix = deleted_suffix
        self._progress = progress
        self._sync_progress = sync_progress
        self.stop = stop or threading.Event()

    @property
    def source(self) -> str:
        """The name under which the mirror keeps the source's runs."""
        return canonical_source(self.src_base_url)

    # -- all of it ----------------------------------------------------------------------------------------

    def import_all(
        self,
        namespaces: Where | Iterable[Where] | None = None,
        remapping: Renaming | None = None,
        incremental: bool = True,
        *,
        runs: bool = True,
        artifacts: bool = True,
        reports: bool = True,
    ) -> Everything:
        """Import projects whole; all of the source's default entity if none are named. Raises a SourceError if a
        server cannot be used at all; whatever else fails is in the result, and in the ledger."""
        kinds = [kind for kind, wanted in zip(KINDS, (runs, artifacts, reports), strict=True) if wanted]
        return self._import(namespaces, remapping, incremental, kinds)

    def import_runs(
        self,
        namespaces: Where | Iterable[Where] | None = None,
        remapping: Renaming | None = None,
        incremental: bool = True,
        *,
        runs: Sequence[MirroredRun] | None = None,
    ) -> Totals:
        """Import runs alone: those of projects, or those that `collect_runs` gave."""
        if runs is not None:
            if namespaces is not None:
                raise UsageError("name namespaces or runs: both say which runs are wanted")
            return self._push([run.rid for run in runs], remapping, incremental, ["runs"]).kinds["runs"]
        return self._import(namespaces, remapping, incremental, ["runs"]).kinds["runs"]

    def import_artifact_sequences(
        self,
        namespaces: Where | Iterable[Where] | None = None,
        remapping: Renaming | None = None,
        incremental: bool = True,
    ) -> Totals:
        """Import the artifacts of projects, whose runs should have been imported before."""
        return self._import(namespaces, remapping, incremental, ["artifacts"]).kinds.get("artifacts", Totals())

    def import_reports(
        self,
        namespaces: Where | Iterable[Where] | None = None,
        remapping: Renaming | None = None,
        incremental: bool = True,
    ) -> Totals:
        """Import the reports of projects, likewise."""
        return self._import(namespaces, remapping, incremental, ["reports"]).kinds.get("reports", Totals())

    def collect_runs(
        self,
        namespaces: Where | Iterable[Where] | None = None,
        *,
        filters: str | Mapping[str, Any] | None = None,
        order: str | None = None,
        limit: int | None = None,
    ) -> list[MirroredRun]:
        """The runs of projects, once they are mirrored, that meet a filter (as in `wandb.Api().runs`). Raises a
        SourceError if the source cannot be read, also in parts: `import_runs` goes on with what can be."""
        wanted = _namespaces(namespaces)
        if problems := self.sync(wanted).problems:
            raise TerminalSourceError(f"not everything of `{self.source}` could be read, first of all: {problems[0]}")
        with Reader(self.root) as reader:
            return mirrored_runs(reader, self._rids(reader, wanted, filters, order, limit))

    # -- its two halves -----------------------------------------------------------------------------------

    def sync(self, namespaces: Sequence[Namespace] | None) -> Result:
        """From the source into the mirror, with the bytes of files and artifacts."""
        options = Options(bytes=WantedBytes(everything=True))
        targets = [Target(n.entity, n.project) for n in namespaces] if namespaces is not None else [Target(None)]
        session = Session(self.root, options, progress=self._sync_progress, stop=self.stop, key=self._keys[0])
        return session.sync({self.src_base_url: targets})

    def _import(
        self,
        namespaces: Where | Iterable[Where] | None,
        remapping: Renaming | None,
        incremental: bool,
        kinds: Collection[str],
    ) -> Everything:
        wanted = _namespaces(namespaces)
        if canonical_source(self.dst_base_url) == self.source:
            self._check_apart(wanted, _remapping(remapping))
        result = self.sync(wanted)
        if result.problems and (not result.outcomes or not self.root.exists()):
            raise TerminalSourceError("; ".join(result.problems))
        with Reader(self.root) as reader:
            namespaces = wanted or _synced(result)
            chosen = self._rids(reader, namespaces)
        done = self._push(chosen, remapping, incremental, kinds, [WandbPath(n.entity, n.project) for n in namespaces])
        done.kinds.setdefault(next(iter(kinds), "runs"), Totals()).errors += result.problems
        return done

    def _push(
        self,
        chosen: Sequence[int],
        remapping: Renaming | None,
        incremental: bool,
        kinds: Collection[str],
        whole: Sequence[WandbPath] | None = None,
    ) -> Everything:
        options = PushOptions(self._workers, incremental, _remapping(remapping))
        key, workers = self._keys[1], self._workers
        with (
            Reader(self.root) as reader,
            opened(self.dst_base_url, key, workers=workers, stop=self.stop, deleted_suffix=self._suffix) as there,
        ):
            return push_everything(
                reader, chosen, there, options, kinds=kinds, whole=whole or None, source=self.source,
                progress=self._progress, stop=self.stop,
            )  # fmt: skip

    def _rids(
        self,
        reader: Reader,
        namespaces: Sequence[Namespace] | None,
        filters: str | Mapping[str, Any] | None = None,
        order: str | None = None,
        limit: int | None = None,
    ) -> list[int]:
        paths = [WandbPath(n.entity, n.project) for n in namespaces or ()]
        if namespaces is not None and not paths:
            return []
        parsed = parse_filter(filters) if filters is not None else None
        return rids(reader, Selection(paths, self.source, parsed, order, limit))

    def _check_apart(self, namespaces: Sequence[Namespace] | None, remapping: Remapping) -> None:
        """Refuse to send projects to where they are."""
        same = [n for n in namespaces or () if remapping.get(n, n) == n]
        if same or namespaces is None:
            name = same[0].path if same else "every project"
            raise UsageError(
                f"source and destination are both `{self.source}`, and `{name}` would be sent to itself: "
                "name another place for it, remapping={Namespace(...): Namespace(...)}"
            )


def _namespace(given: Where) -> Namespace:
    return given if isinstance(given, Namespace) else Namespace.from_path(given)


def _namespaces(given: Where | Iterable[Where] | None) -> list[Namespace] | None:
    if given is None:
        return None
    return [_namespace(n) for n in ((given,) if isinstance(given, (str, Namespace)) else given)]


def _remapping(given: Renaming | None) -> Remapping:
    return {_namespace(here): _namespace(there) for here, there in (given or {}).items()}


def _synced(result: Result) -> list[Namespace]:
    return [Namespace(outcome.report.entity, outcome.report.project) for outcome in result.outcomes]
