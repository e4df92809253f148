"""A whole sync: several paths, on one or several servers, into one mirror; or only the plan of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from mirror import paths
from mirror.credentials import find
from mirror.errors import LockedError, SourceError, TerminalSourceError, TransientSourceError, UsageError
from mirror.records import Listing, Project
from mirror.sources.wandb import WandbSource
from mirror.store import Writer
from mirror.store.catalog import Catalog, now, peek
from mirror.store.exports import Export
from mirror.store.layout import Layout
from mirror.store.projects import known_projects
from mirror.store.servers import known_servers
from mirror.sync.estimate import Estimate, Experience, estimate, experience
from mirror.sync.gone import gone_projects
from mirror.sync.moves import held_runs
from mirror.sync.plan import Plan, make_plan
from mirror.sync.progress import Progress
from mirror.sync.project import Options, Outcome, sync_project, unreachable
from mirror.sync.quarantine import Quarantine
from mirror.sync.twins import merge
from mirror.wandb.budget import Budget, Stopped
from mirror.wandb.client import Client, Viewer
from mirror.wandb.limits import Limits
from mirror.wandb.transport import Transport


@dataclass(frozen=True)
class Target:
    """What to sync on one server: a whole entity, a whole project, or runs of a project."""

    entity: str | None
    project: str | None = None
    run_ids: tuple[str, ...] = ()


@dataclass
class Result:
    """What became of every project, and what went wrong outside of any."""

    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.errors and all(outcome.ok for outcome in self.outcomes)

    @property
    def problems(self) -> list[str]:
        """What could not be read, or not whole."""
        found = list(self.errors)
        for outcome in self.outcomes:
            found += outcome.messages
            found += [f"{f.key.path}: {f.stage}: {f.error}" for f in (*outcome.failures, *outcome.waiting)]
        return found


@dataclass(frozen=True)
class Planned:
    """What a sync of one project would do, and about what it would cost (None where nobody knows). `message` says why
    nothing can be said, if so."""

    project: Project
    plan: Plan
    message: str | None = None
    cost: Estimate | None = None


def targets(texts: Sequence[str], base_url: str | None, environ: Mapping[str, str]) -> dict[str, list[Target]]:
    """The targets of a command's paths, by base URL. Raises UsageError for what is no path of a project."""
    default = paths.api_url(base_url or environ.get("WANDB_BASE_URL") or paths.DEFAULT_BASE_URL)
    found: dict[str, dict[tuple[str | None, str | None], list[str] | None]] = {}
    for text in texts:
        path = paths.parse(text, base_url=default)
        server = path.base_url or default
        if base_url and paths.canonical_source(server) != paths.canonical_source(default):
            raise UsageError(f"`{text}` is not on `{base_url}`: leave out --base-url, or name a path on that server")
        if path.sweep_id is not None:
            raise UsageError(f"`{text}` is a sweep; its runs are synced with their project: name the project")
        entity = path.entity or environ.get("WANDB_ENTITY") or None
        runs = found.setdefault(server, {}).setdefault((entity, path.project), [])
        if path.run_id is None:
            found[server][(entity, path.project)] = None  # the whole project includes any run of it
        elif runs is not None and path.run_id not in runs:
            runs.append(path.run_id)
    return {
        server: [Target(entity, project, tuple(runs or ())) for (entity, project), runs in wanted.items()]
        for server, wanted in found.items()
    }


class Session:
    """One run of the command. `stop` ends it early and cleanly; `key` is an API key instead of the usual ones."""

    def __init__(
        self,
        root: str | Path,
        options: Options,
        *,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        key: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.options = options
        self.progress = progress or Progress()
        self.stop = stop or threading.Event()
        self._key = key
        self._environ = os.environ if environ is None else environ
        self._writer: Writer | None = None
        self._listed: dict[tuple[str, str], set[str]] = {}
        self._judged: set[tuple[str, str, str]] = set()
        self._experience: dict[str, Experience] = {}

    # -- doing it -----------------------------------------------------------------------------------------

    def sync(self, servers: Mapping[str, Sequence[Target]]) -> Result:
        """Bring everything named up to date. Errors of one server or project do not stop the others."""
        result = Result()
        with ExitStack() as stack:
            if self.root.exists():  # refuse a folder that is no mirror before anything is asked
                self._open(stack)
            for server, wanted in servers.items():
                try:
                    self._sync_server(server, wanted, result, stack)
                except Stopped:
                    break
                except SourceError as e:
                    result.errors.append(str(e))
            if self._writer is not None and not self.stop.is_set():
                self._writer.compact()
        return result

    def _open(self, stack: ExitStack) -> Writer:
        if self._writer is None:
            self._writer = stack.enter_context(Writer(self.root))
        return self._writer

    def _sync_server(self, server: str, wanted: Sequence[Target], result: Result, stack: ExitStack) -> None:
        with closing(self._connect(server)) as source:
            asked = (0, 0)  # the first project's report counts the questions about the key, too
            viewer = self._check(source)
            for target in self._projects(source, viewer, wanted, result):
                if self.stop.is_set():
                    raise Stopped("stopped")
                self._sync_target(source, viewer, target, result, stack, asked)
                asked = (source.traffic.requests, source.traffic.bytes)
            for entity in dict.fromkeys(t.entity or viewer.entity for t in wanted if t.project is None):
                if entity is not None:
                    self._note_gone(source, viewer, entity, result)

    def _sync_target(
        self,
        source: WandbSource,
        viewer: Viewer,
        target: Target,
        result: Result,
        stack: ExitStack,
        asked: tuple[int, int],
    ) -> None:
        entity, project = target.entity or "", target.project or ""
        name = f"{entity}/{project}"
        started_at = now()
        try:
            listing = self._listing(source, target)
            if listing.project is None:
                self._note_unreachable(source, Project(source.name, entity, project), _no_project(name, source), result)
                self._note_gone(source, viewer, entity, result, project)
                return
            outcome = sync_project(
                source,
                self._open(stack),
                listing,
                options=self.options,
                progress=self.progress,
                stop=self.stop,
                started_at=started_at,
                asked_before=asked,
                named=target.run_ids or None,
            )
            notes = [*outcome.notes, *merge(self._open(stack), source.name, entity, project)]
            result.outcomes.append(replace(outcome, notes=notes))
            if outcome.report.outcome == "unreachable":
                source.viewer()  # if the server is gone, the other projects need not be tried
        except LockedError as e:
            result.errors.append(str(e))
        except TransientSourceError as e:
            self._note_unreachable(source, Project(source.name, entity, project), str(e), result)
            source.viewer()

    def _note_unreachable(self, source: WandbSource, project: Project, message: str, result: Result) -> None:
        """Report it; keep a note in the mirror only if it holds something of the project."""
        outcome = unreachable(source, project, message, now())
        result.outcomes.append(outcome)
        if self._writer is not None and self._writer.known(project.source, project.entity, project.name):
            self._writer.log_sync(outcome.report)
            self._writer.commit()

    def _note_gone(
        self, source: WandbSource, viewer: Viewer, entity: str, result: Result, project: str | None = None
    ) -> None:
        """Mark projects as deleted that the listing of an entity lacks, or the one that is named. Of an entity that is
        not the key's own nothing is believed: what cannot be seen there may just be closed to the key."""
        if self._writer is None or self.stop.is_set() or entity not in viewer.entities:
            return
        held = known_projects(self._writer.catalog, source.name, entity)
        asked = {name for name in held if project in (None, name) and (source.name, entity, name) not in self._judged}
        self._judged |= {(source.name, entity, name) for name in asked}

        def is_there(name: str) -> bool:
            try:
                return source.client.has_project(entity, name)
            except TransientSourceError:
                return True  # nobody knows

        there = self._listed.get((source.name, entity)) or {p.name for p in source.projects(entity)}
        gone, deleted = gone_projects(
            self._writer, source.name, entity, there | held.keys() - asked, is_there, self.options.accept_deletions
        )
        result.errors += gone.messages
        for one in deleted:
            self.progress.notice(f"{one.entity}/{one.name}: deleted at the source, kept in the mirror")

    # -- only planning it ---------------------------------------------------------------------------------

    def plan(self, servers: Mapping[str, Sequence[Target]]) -> tuple[list[Planned], Result]:
        """What `sync` would do. Writes nothing; the mirror need not exist."""
        planned: list[Planned] = []
        result = Result()
        catalog = peek(self.root)
        try:
            for server, wanted in servers.items():
                try:
                    with closing(self._connect(server)) as source:
                        viewer = self._check(source)
                        for target in self._projects(source, viewer, wanted, result):
                            planned.append(self._plan_target(source, target, catalog))
                except Stopped:
                    break
                except SourceError as e:
                    result.errors.append(str(e))
        finally:
            if catalog is not None:
                catalog.close()
        result.errors += [p.message for p in planned if p.message]
        return planned, result

    def _plan_target(self, source: WandbSource, target: Target, catalog: Catalog | None) -> Planned:
        listing = self._listing(source, target)
        project = listing.project
        if project is None:
            project = Project(source.name, target.entity or "", target.project or "")
            return Planned(project, Plan(), _no_project(f"{project.entity}/{project.name}", source))
        who = (project.source, project.entity, project.name)
        plan = make_plan(
            listing,
            held_runs(catalog, listing) if catalog else {},
            Quarantine(catalog.quarantined(*who) if catalog else ()),
            now=now(),
            full=self.options.full,
            named=bool(target.run_ids),
            what=self.options.what,
        )
        if project.source not in self._experience:
            self._experience[project.source] = experience(self.root, project.source) if catalog else Experience()
        known = self._experience[project.source]
        return Planned(project, plan, cost=estimate(plan, len(listing.runs), self.options.page_rows, known))

    # -- what both need -----------------------------------------------------------------------------------

    def _connect(self, server: str) -> WandbSource:
        credential = find(server, key=self._key, environ=self._environ)
        self.progress.notice(f"{server}: API key from {credential.origin}")
        workers = self.options.workers
        budget = Budget(self.stop)
        self.progress.asking(lambda: budget.pause)
        timeout = _timeout(self._environ)
        transport = Transport(server, credential, budget=budget, connections=3 * workers + 4, timeout=timeout)
        return WandbSource(
            Client(transport, self._limits(server)),
            page_rows=self.options.page_rows,
            downloads=2 * workers,
            open_export=Export,
        )

    def _limits(self, server: str) -> Limits:
        """What `mirror doctor --probe` found out about a server."""
        return Limits.of_json(known_servers(Layout(self.root)).get(paths.canonical_source(server), {}))

    def _check(self, source: WandbSource) -> Viewer:
        viewer = source.viewer()
        self.progress.notice(f"{source.name}: logged in as {viewer.username or viewer.entity or 'unknown'}")
        if source.store_id is not None and (catalog := peek(self.root)) is not None:
            with closing(catalog):
                if catalog.get("store_id") == source.store_id:
                    raise TerminalSourceError(
                        f"`{source.client.transport.base_url}` serves the mirror at `{self.root}` itself: "
                        "sync into another --mirror, or from the server the runs came from"
                    )
        return viewer

    def _projects(
        self, source: WandbSource, viewer: Viewer, wanted: Sequence[Target], result: Result
    ) -> Iterator[Target]:
        """The targets, with entities taken apart into their projects, each project once."""
        seen: set[tuple[str, str, tuple[str, ...]]] = set()
        for target in wanted:
            entity = target.entity or viewer.entity
            if entity is None:
                result.errors.append("the path names no entity and the key has no default one: write entity/project")
                continue
            if target.project is not None:
                parts = [Target(entity, target.project, target.run_ids)]
            else:
                parts = [Target(p.entity, p.name) for p in source.projects(entity)]
                self._listed[(source.name, entity)] = {part.project or "" for part in parts}
                if not parts and entity not in viewer.entities:
                    result.errors.append(_no_entity(entity, source, viewer))
            for part in parts:
                name = (part.entity or "", part.project or "", part.run_ids)
                if name not in seen and not _excluded(f"{name[0]}/{name[1]}", self.options.exclude):
                    seen.add(name)
                    yield part

    def _listing(self, source: WandbSource, target: Target) -> Listing:
        entity, project = target.entity or "", target.project or ""
        name = f"{entity}/{project}"
        found = source.listing(
            entity,
            project,
            target.run_ids or None,
            lambda n, total: self.progress.listing(name, n, total),
            self.options.filters,
        )
        left = [run for run in found.runs if not _excluded(run.key.path, self.options.exclude)]
        return found if len(left) == len(found.runs) else replace(found, runs=left, everything=False)


def _timeout(environ: Mapping[str, str]) -> float:
    """Seconds a server may say nothing: WANDB_HTTP_TIMEOUT, which W&B's SDK obeys as well, else a minute."""
    text = environ.get("WANDB_HTTP_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise UsageError(f"WANDB_HTTP_TIMEOUT is `{text}`: set it to a number of seconds, or unset it")
    return seconds


def _excluded(path: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)


def _no_project(name: str, source: WandbSource) -> str:
    return (
        f"no project `{name}` on `{source.client.transport.base_url}` that the API key from "
        f"{source.client.transport.credential.origin} may read: check the spelling and whose key it is"
    )


def _no_entity(entity: str, source: WandbSource, viewer: Viewer) -> str:
    own = ", ".join(f"`{e}`" for e in viewer.entities) or "none"
    return (
        f"no projects of an entity `{entity}` on `{source.client.transport.base_url}` that the API key from "
        f"{source.client.transport.credential.origin} may read: check the spelling; its own entities are {own}"
    )
