"""`Report`: a written page with panels, which W&B calls a view."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from mirror.errors import NotFoundError
from mirror.objects.attrs import Attrs, Name, Text, Time, refusing
from mirror.objects.held import Held, Record, document, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from mirror.objects.users import User


class Report(Attrs):
    """A report: its title, who wrote it when, and its content (`spec`)."""

    def __init__(self, held: Held, row: Record) -> None:
        self._held = held
        self._row = row

    id = Name("storage_id")
    name = Name("name")
    """The server's name of the view."""
    display_name = Text("title")
    """The title."""
    title = display_name

    type = Name("type")
    entity = Name("entity")
    project = Name("project")
    description = Text("description")

    @property
    def user(self) -> User | None:
        from mirror.objects.users import User

        return None if self._row["username"] is None else User(self._row["username"])

    created_at = Time("created_at")
    updated_at = Time("updated_at")

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The content, as W&B keeps it."""
        return document(self._row["spec"])

    @property
    def sections(self) -> list[Any]:
        """Groups of panels of the old kind of report; newer ones have `blocks` in their spec."""
        return list(self.spec.get("panelGroups") or ())

    @property
    def blocks(self) -> list[Any]:
        return list(self.spec.get("blocks") or ())

    @property
    def path(self) -> list[str]:
        """Entity, project, `reports` and the name a URL has."""
        title = re.sub(r"-+", "-", re.sub(r"\W", "-", self.display_name or self.name)).strip("-")
        return [self.entity, self.project, "reports", f"{quote(title)}--{self.id.replace('=', '')}"]

    delete = refusing("delete")

    def __repr__(self) -> str:
        return safe(f"<Report {self.entity}/{self.project}: {self.display_name or self.name}>")


class Reports(Listed[Report]):
    """Reports of a project, the oldest first."""


def reports(held: Held, entity: str, project: str, name: str | None = None) -> Reports:
    """The reports of a project; those with that title or server's name, if one is given."""
    rows = select(
        held.state(),
        """
        select * from reports
        where entity = $1 and project = $2 and ($3::varchar is null or source = $3) and deleted_at is null
          and ($4::varchar is null or title = $4 or name = $4)
        order by created_at, storage_id
        """,
        [entity, project, held.source, None if name is None else unquote(name)],
    )
    return Reports([Report(held, row) for row in rows], f"{entity}/{project}")


def by_path(held: Held, entity: str, project: str, last: str) -> Report:
    """The report at the end of a URL, `Title--id`."""
    mark = last.rpartition("--")[2].replace("=", "")
    for one in reports(held, entity, project):
        if one.id.replace("=", "") == mark or one.name == mark:
            return one
    raise NotFoundError(f"the mirror holds no report `{last}` of `{entity}/{project}`; Api().reports() lists them")
