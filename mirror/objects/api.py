"""`Api`: the way in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import AmbiguousError, NotFoundError
from mirror.objects.attrs import ArgumentError, OfflineError, refusing
from mirror.objects.held import Held, select
from mirror.query.text import safe
from mirror.store import Reader
from mirror.store.layout import default_root

if TYPE_CHECKING:
    from mirror.objects.artifacts import Artifact, Artifacts
    from mirror.objects.collections import ArtifactCollection, ArtifactCollections, ArtifactType
    from mirror.objects.projects import Project, Projects
    from mirror.objects.reports import Report, Reports
    from mirror.objects.run import Run
    from mirror.objects.runs import Runs
    from mirror.objects.sweeps import Sweep
    from mirror.objects.users import User
    from mirror.paths import WandbPath


class Api:
    """Reads one mirror: the one at `root`, else at `MIRROR_ROOT`, else at `./wandb-mirror`.

    `overrides` may name an `entity` and a `project` for paths that leave them out (then WANDB_ENTITY and
    WANDB_PROJECT count, then the only entity of the mirror), and the `base_url` of a server, which narrows
    everything to what was mirrored from there; `source` (a host, e.g. `api.wandb.ai`) does the same. No server is
    asked anything, but with `online=True`: for bytes of files that the mirror does not hold, and to edit runs, with
    the key of `wandb login` or `api_key`. `timeout` is taken for wandb's sake. Raises StoreError if there is no
    mirror.
    """

    def __init__(
        self,
        root: str | Path | Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        timeout: int | None = None,
        api_key: str | None = None,
        *,
        source: str | None = None,
        online: bool = False,
    ) -> None:
        if isinstance(root, Mapping):  # wandb.Api({"entity": ..}): overrides come first there
            root, overrides = None, root
        self.settings: dict[str, Any] = {
            "entity": os.environ.get("WANDB_ENTITY") or None,
            "project": os.environ.get("WANDB_PROJECT") or None,
            "base_url": None,
        }
        self.settings.update(overrides or {})
        base_url = self.settings["base_url"]
        if base_url and source is None:
            from mirror.paths import canonical_source

            source = canonical_source(base_url)
        self.source = source
        reader = Reader(root if root is not None else default_root())
        self._held = Held(reader, source=source, base_url=base_url, online=online, api_key=api_key)

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self, path: str = "") -> Run:
        """A run by `entity/project/run_id`, `project/run_id`, `run_id` or URL; also one that was deleted at its
        source. Raises NotFoundError, or AmbiguousError with the sources (or full paths) that a path could mean."""
        from mirror.objects.run import Run
        from mirror.objects.runs import Page
        from mirror.query.runs import locate

        self._held.reader.refresh()
        preferred = {name: self.settings[name] for name in ("entity", "project")}
        rid = locate(self._held.reader, path, self.source, **preferred)
        table = self._held.reader.relation("runs", rid)
        return Run(self._held, rid, Page(self._held.state(), [rid], table))

    def runs(
        self,
        path: str | None = None,
        filters: Mapping[str, Any] | str | None = None,
        order: str | None = "+created_at",
        per_page: int = 50,
        include_sweeps: bool = False,
        lazy: bool = True,
        *,
        deleted: bool = False,
    ) -> Runs:
        """Runs of `entity/project` (of an entity, or of the whole mirror) that meet `filters`, in `order`.

        Filters and orders are those of `wandb.Api().runs`; docs/filters.md says what they mean. Which runs these
        are is settled here, their contents are read as they are asked for. Runs that were found deleted at their
        source are left out unless `deleted`. `include_sweeps` and `lazy` change nothing. Raises NotFoundError for
        a path the mirror holds nothing of, FilterError for a filter it cannot read.
        """
        from mirror.objects.runs import Runs
        from mirror.query.filters import parse as parse_filter
        from mirror.query.runs import Selection, check_held, rids

        self._held.reader.refresh()
        parsed = parse_filter(filters)
        for notice in parsed.notices:
            warnings.warn(notice, stacklevel=2)
        paths = [self._path(path)] if path else []
        for one in paths:
            check_held(self._held.reader, one, self.source)
        chosen = Selection(paths, self.source, parsed, order or "+created_at", deleted=deleted)
        name = "/".join(p for one in paths for p in (one.entity, one.project) if p)
        return Runs(self._held, rids(self._held.reader, chosen), per_page=per_page, name=name)

    # -- projects, sweeps, reports --------------------------------------------------------------------------

    def projects(self, entity: str | None = None, per_page: int = 200) -> Projects:
        """The projects of an entity."""
        from mirror.objects.projects import projects

        self._held.reader.refresh()
        return projects(self._held, entity or self._entity())

    def project(self, name: str, entity: str | None = None) -> Project:
        """One project. Raises NotFoundError if the mirror does not hold it."""
        from mirror.objects.projects import project

        self._held.reader.refresh()
        return project(self._held, entity or self._entity(), name)

    def sweep(self, path: str = "") -> Sweep:
        """A sweep by `entity/project/sweep_id`, with the short forms of runs."""
        from mirror.objects.sweeps import find

        self._held.reader.refresh()
        entity, project, sweep_id = self._three(path, "sweep")
        return find(self._held, entity, project, sweep_id)

    def reports(self, path: str = "", name: str | None = None, per_page: int = 50) -> Reports:
        """The reports of `entity/project`, or those of them that are named `name`."""
        from mirror.objects.reports import reports

        self._held.reader.refresh()
        entity, project = self._two(path)
        return reports(self._held, entity, project, name)

    def from_path(self, path: str) -> Project | Run | Sweep | Report:
        """What a path names: a project, a run, a sweep or a report."""
        parts = path.strip("/ ").split("/")
        if len(parts) == 1:
            return self.project(parts[0])
        if len(parts) == 2:
            return self.project(parts[1], parts[0])
        kind = parts[2] if len(parts) == 4 else "runs"
        if kind.startswith("report"):
            from mirror.objects.reports import by_path

            return by_path(self._held, parts[0], parts[1], parts[3])
        return self.sweep(path) if kind.startswith("sweep") else self.run(path)

    # -- artifacts ------------------------------------------------------------------------------------------

    def artifact(self, name: str, type: str | None = None) -> Artifact:
        """An artifact version by `entity/project/name:alias` (or `:v3`; `latest` if none is written)."""
        from mirror.objects.collections import find

        self._held.reader.refresh()
        entity, project, rest = self._three(name, "artifact")
        return find(self._held, entity, project, rest, type)

    def artifacts(
        self, type_name: str, name: str, order: str | None = None, per_page: int = 50,
        tags: Sequence[str] | str | None = None,
    ) -> Artifacts:  # fmt: skip
        """The versions of a collection `entity/project/name`, the newest first."""
        from mirror.objects.collections import versions

        self._held.reader.refresh()
        entity, project, collection = self._three(name, "artifact")
        return versions(self._held, entity, project, type_name, collection, order, tags)

    def artifact_versions(self, type_name: str, name: str, per_page: int = 50) -> Artifacts:
        """The old name of `artifacts`."""
        return self.artifacts(type_name, name, per_page=per_page)

    def artifact_types(self, project: str | None = None, per_page: int = 50) -> Sequence[ArtifactType]:
        """The types of artifacts of a project."""
        from mirror.objects.collections import types

        self._held.reader.refresh()
        return types(self._held, *self._two(project or ""))

    def artifact_type(self, type_name: str, project: str | None = None) -> ArtifactType:
        """One type of a project's artifacts."""
        for one in self.artifact_types(project):
            if one.name == type_name:
                return one
        where = "/".join(self._two(project or ""))
        raise NotFoundError(f"`{where}` has no artifacts of type `{type_name}`")

    def artifact_collections(self, project_name: str, type_name: str, per_page: int = 50) -> ArtifactCollections:
        """The collections of a type in a project."""
        from mirror.objects.collections import collections

        self._held.reader.refresh()
        return collections(self._held, *self._two(project_name), type_name)

    def artifact_collection(self, type_name: str, name: str) -> ArtifactCollection:
        """One collection, by `entity/project/name`."""
        from mirror.objects.collections import collection

        self._held.reader.refresh()
        return collection(self._held, *self._three(name, "artifact"), type_name)

    def artifact_exists(self, name: str, type: str | None = None) -> bool:
        """Whether the mirror holds an artifact version."""
        try:
            self.artifact(name, type)
        except NotFoundError:
            return False
        return True

    def artifact_collection_exists(self, name: str, type: str) -> bool:
        """Whether the mirror holds a collection."""
        try:
            self.artifact_collection(type, name)
        except NotFoundError:
            return False
        return True

    # -- who and what ---------------------------------------------------------------------------------------

    @property
    def default_entity(self) -> str | None:
        """Who is meant by paths without an entity: the override, WANDB_ENTITY, or the mirror's only entity."""
        if self.settings["entity"]:
            return str(self.settings["entity"])
        held = self._entities()
        return held[0] if len(held) == 1 else None

    @property
    def viewer(self) -> User:
        """Whose key it is: only the server knows, so this needs `Api(online=True)`."""
        if not self._held.online:
            raise OfflineError(
                "`viewer` is for the server to say, and a mirror asks none: use Api(online=True); "
                "`default_entity` is who paths without an entity mean"
            )
        from mirror.objects.online import viewer

        return viewer(self._held, self.source)

    def flush(self) -> None:
        """Look at the newest state of the mirror; everything that is asked of an `Api` does so by itself."""
        self._held.reader.refresh()

    create_project = refusing("create_project")
    create_run = refusing("create_run")
    create_team = refusing("create_team")
    create_user = refusing("create_user")

    # -- paths ----------------------------------------------------------------------------------------------

    def _path(self, path: str) -> WandbPath:
        """A path of runs. One name is an entity or, as in wandb, a project of the default entity."""
        from mirror.paths import WandbPath, parse

        found = parse(path)
        if found.project is None and found.base_url is None and found.entity not in self._entities():
            known = "select 1 from runs where project = $1 union all select 1 from projects where project = $1 limit 1"
            if select(self._held.state(), known, [found.entity]):
                return WandbPath(self.default_entity, found.entity)
        return found

    def _entities(self) -> list[str]:
        query = "select entity from projects union select entity from runs order by 1"
        return [row["entity"] for row in select(self._held.state(), query)]

    def _entity(self) -> str:
        found = self.default_entity
        if found is None:
            held = ", ".join(f"`{name}`" for name in self._entities())
            raise AmbiguousError(
                f"the mirror holds several entities ({held}): name one, e.g. Api(overrides={{'entity': ...}})"
                if held
                else "the mirror is empty: `mirror sync ENTITY/PROJECT` fills it"
            )
        return found

    def _two(self, path: str) -> tuple[str, str]:
        """Entity and project of `entity/project`, `project` or nothing."""
        parts = [part for part in path.strip("/ ").split("/") if part]
        project = parts[-1] if parts else self.settings["project"]
        if len(parts) > 2 or not project:
            raise ArgumentError(f"`{path}` is no path of a project: write entity/project")
        return (parts[0] if len(parts) == 2 else self._entity()), str(project)

    def _three(self, path: str, what: str) -> tuple[str, str, str]:
        """Entity, project and name of `entity/project/name`, `project/name` or `name`."""
        from mirror.paths import parse

        text = path.strip("/ ") if isinstance(path, str) else ""
        if what == "sweep" and text:
            if "://" in text:
                found = parse(text)
                parts = [p for p in (found.entity, found.project, found.sweep_id) if p]
            else:
                parts = [p for p in text.replace("/sweeps/", "/").split("/") if p]
                parts = parts[:-1] + parts[-1].rsplit(":", 1)
        else:
            parts = [p for p in text.split("/") if p]
        if not 1 <= len(parts) <= 3:
            raise ArgumentError(f"`{path}` is the path of no {what}: write entity/project/{what}")
        project = parts[-2] if len(parts) > 1 else self.settings["project"]
        if not project:
            raise ArgumentError(f"`{path}` names no project: write entity/project/{parts[-1]}")
        return (parts[0] if len(parts) == 3 else self._entity()), str(project), parts[-1]

    def __repr__(self) -> str:
        return safe(f"<Api of the mirror {self._held.reader.layout.root}>")
