"""`Project`: a folder of runs, sweeps, artifacts and reports."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.objects.attrs import Attrs, Name, Text, Time
from mirror.objects.held import Held, Record, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mirror.objects.collections import ArtifactCollections, ArtifactType
    from mirror.objects.runs import Runs
    from mirror.objects.sweeps import Sweeps


class Project(Attrs):
    """A project. One that several sources have under the same path is one project here."""

    def __init__(self, held: Held, row: Record) -> None:
        self._held = held
        self._row = row

    id = Text("storage_id")
    name = Name("project")
    entity = Name("entity")

    @property
    def path(self) -> list[str]:
        return [self.entity, self.name]

    description = Text("description")
    created_at = Time("created_at")

    @property
    def run_count(self) -> int:
        """Runs held, without those that were deleted at their source."""
        return int(self._row["run_count"])

    def runs(self, filters: Any = None, order: str = "+created_at") -> Runs:
        """The project's runs."""
        from mirror.objects.runs import Runs
        from mirror.paths import WandbPath
        from mirror.query.filters import parse
        from mirror.query.runs import Selection, rids

        chosen = Selection([WandbPath(self.entity, self.name)], self._held.source, parse(filters), order)
        return Runs(self._held, rids(self._held.reader, chosen), name="/".join(self.path))

    def sweeps(self, per_page: int = 50) -> Sweeps:
        """The project's sweeps."""
        from mirror.objects.sweeps import sweeps

        return sweeps(self._held, self.entity, self.name, self._held.source)

    def artifacts_types(self, per_page: int = 50) -> Sequence[ArtifactType]:
        """The types of the project's artifacts."""
        from mirror.objects.collections import types

        return types(self._held, self.entity, self.name)

    def collections(self, per_page: int = 50) -> ArtifactCollections:
        """The project's collections of artifacts, of all types."""
        from mirror.objects.collections import collections

        return collections(self._held, self.entity, self.name)

    def __repr__(self) -> str:
        return safe(f"<Project {'/'.join(self.path)}>")


class Projects(Listed[Project]):
    """Projects of an entity by name."""


def projects(held: Held, entity: str) -> Projects:
    """Those that were deleted or renamed at their source are left out. Raises NotFoundError for an entity the mirror
    holds nothing of."""
    rows = _read(held, entity)
    found = [Project(held, row) for row in rows if not row["gone"] or row["run_count"]]
    if not rows:
        names = [row["entity"] for row in select(held.state(), "select distinct entity from runs order by 1")]
        near = get_close_matches(entity, names, 1)
        shown = ", ".join(f"`{name}`" for name in names[:5]) or "nothing"
        hint = f"did you mean `{near[0]}`?" if near else f"it holds {shown}"
        raise NotFoundError(f"the mirror holds nothing of `{entity}`; {hint}")
    return Projects(found, entity)


def project(held: Held, entity: str, name: str) -> Project:
    """Raises NotFoundError."""
    found = _read(held, entity)
    for row in found:
        if row["project"] == name:
            return Project(held, row)
    near = get_close_matches(name, [row["project"] for row in found], 1)
    hint = f"did you mean `{entity}/{near[0]}`?" if near else f"`mirror sync {entity}/{name}` fetches it"
    raise NotFoundError(f"the mirror holds no project `{entity}/{name}`; {hint}")


def _read(held: Held, entity: str) -> list[dict[str, Any]]:
    query = """
        with known as (
          select project, storage_id, description, created_at, 0 as runs, deleted_at is not null as gone from projects
          where entity = $1 and ($2::varchar is null or source = $2)
          union all by name
          select project, count(*) filter (where deleted_at is null) as runs from runs
          where entity = $1 and ($2::varchar is null or source = $2) group by project
        )
        select $1 as entity, project, any_value(storage_id) as storage_id, any_value(description) as description,
               min(created_at) as created_at, sum(runs)::bigint as run_count, coalesce(bool_and(gone), false) as gone
        from known group by project order by project
    """
    return select(held.state(), query, [entity, held.source])
