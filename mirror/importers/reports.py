"""Mirrored reports to a server: their content leads to the copies of the projects and runs it shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from mirror.errors import SourceError
from mirror.importers.account import Account, Totals
from mirror.importers.items import Item, send_each
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace, RunName
from mirror.importers.push import PushProgress
from mirror.importers.run import Destination
from mirror.paths import app_url
from mirror.query.sql import asking, dicts
from mirror.wandb.held import held_runs
from mirror.wandb.mutations import upsert_view
from mirror.wandb.reports import fetch_report, list_reports

if TYPE_CHECKING:
    from mirror.store import Reader

_RUN_ID = {"section": "run", "name": "name"}
"""What a filter by run id names its key."""


def push_reports(
    reader: Reader,
    source: str,
    here: Namespace,
    there: Destination,
    places: Mapping[Namespace, Namespace],
    *,
    run_name: Callable[[RunName], RunName] = lambda run: run,
    incremental: bool = True,
    ledger_folder: Path | None = None,
    progress: PushProgress | None = None,
) -> Totals:
    """Send the reports of a mirrored project to `places[here]`. `places` says where all projects went that reports may
    show; others stay what they are. A report is known again by the name its server gave it."""
    place = places[here]
    held = reports_as_sent(reader, source, here, there, places, run_name)
    if not held:
        return Totals()
    known: set[str] = set()
    if there.client.has_project(place.entity, place.project):
        known = {report.name for report in list_reports(there.client, place.entity, place.project)[0]}

    def items() -> Iterator[Item]:
        for report, spec in held:
            name = report["name"]
            fingerprint = hashlib.blake2b(repr((report, spec)).encode(), digest_size=16).hexdigest()
            account = Account(f"{here.path}/reports/{name}", f"{place.path}/{name}", fingerprint)
            yield Item(source, report["storage_id"], account, name in known, partial(_push, report, spec, there, place))

    ledger = Ledger(ledger_folder or reader.layout.root, "report")
    return send_each("reports", items(), there, place, ledger, incremental=incremental, progress=progress)


def reports_as_sent(
    reader: Reader,
    source: str,
    here: Namespace,
    there: Destination,
    places: Mapping[Namespace, Namespace],
    run_name: Callable[[RunName], RunName],
) -> list[tuple[Mapping[str, Any], str]]:
    """The reports of a mirrored project (storage_id, name, type, title, description, spec), each with the content its
    copy has; arguments as for `push_reports`."""
    held = _reports(reader, source, here)
    if not held:
        return []
    rewrite = Rewriting(source, there.client.pages, places, _runs_there(reader, source, there, places, run_name, held))
    return [(report, rewrite.spec(report["spec"])) for report in held]


def _push(
    report: Mapping[str, Any],
    spec: str,
    there: Destination,
    place: Namespace,
    account: Account,
    sent: Callable[[int], None],
) -> None:
    storage_id = upsert_view(
        there.client, place.entity, place.project,
        name=report["name"], title=report["title"], description=report["description"], spec=spec, kind=report["type"],
    )  # fmt: skip
    shown = fetch_report(there.client, place.entity, place.project, storage_id)
    if shown is None:
        raise SourceError(f"`{there.client.source}` does not show the report that was sent: send it again")
    if not same_content(shown.spec, spec):
        raise SourceError("the destination shows another content than the one that was sent")
    for name in ("title", "description"):
        if (getattr(shown, name) or "") != (report[name] or ""):
            account.changed(name, f"`{report[name]}` is `{getattr(shown, name)}` there")
    account.counts["reports"] += 1


def same_content(text: str | None, other: str) -> bool:
    """Whether two contents are the same JSON."""
    try:
        return bool(json.loads(text or "null") == json.loads(other))
    except ValueError:
        return text == other


@dataclass(frozen=True)
class Rewriting:
    """Leads a report's content to another server: names of projects, links to pages, and ids of runs.

    `runs` are storage id and name of runs at the source, and the storage id and name of their copies.
    """

    source: str
    pages: str
    places: Mapping[Namespace, Namespace]
    runs: Mapping[tuple[str, RunName], tuple[str, RunName]]

    def spec(self, text: str | None) -> str:
        """The content of a report as it is to stand there; as it was, if nothing in it leads anywhere."""
        try:
            document = json.loads(text or "{}")
        except ValueError:
            return text or ""
        ids = {here[0]: there[0] for here, there in self.runs.items()}
        names = {here[1][2]: there[1][2] for here, there in self.runs.items()}
        links = self._links(names)

        def text_of(value: str) -> str:
            if value in ids:
                return ids[value]
            for pattern, moved_to in links:
                value = pattern.sub(moved_to, value)
            return value

        def walk(value: Any) -> Any:
            if isinstance(value, str):
                return text_of(value)
            if isinstance(value, list):
                return [walk(one) for one in value]
            if not isinstance(value, dict):
                return value
            made: dict[str, Any] = {ids.get(key) or key: walk(one) for key, one in value.items()}
            if made.get("key") == _RUN_ID:
                made["value"] = _renamed(made.get("value"), names)
            return self._place(made)

        moved = walk(document)
        return text or "{}" if moved == document else json.dumps(moved, ensure_ascii=False)

    def _place(self, node: dict[str, Any]) -> dict[str, Any]:
        """A node that names a project, as wandb-workspaces writes it: `{"entityName", "name"}`, and likewise."""
        for entity, project in (("entityName", "name"), ("entityName", "projectName"), ("entity", "project")):
            if isinstance(node.get(entity), str) and isinstance(node.get(project), str):
                place = self.places.get(Namespace(node[entity], node[project]))
                if place is not None:
                    return node | {entity: place.entity, project: place.project}
        return node

    def _links(self, names: Mapping[str, str]) -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]]:
        """Links to pages of these projects and their runs, and where they lead then."""
        hosts = {self.source, urlsplit(app_url(f"https://{self.source}")).netloc}
        host = "|".join(re.escape(h) for h in sorted(hosts))

        def path(place: Namespace) -> str:
            return f"{re.escape(quote(place.entity))}/{re.escape(quote(place.project))}"

        def to(place: Namespace) -> Callable[[re.Match[str]], str]:
            page = f"{self.pages}/{quote(place.entity)}/{quote(place.project)}"
            return lambda link: page + (f"/runs/{names.get(link[1], link[1])}" if link[1] else "")

        return [
            (re.compile(rf"https?://(?:{host})/{path(here)}(?:/runs/([\w.-]+))?(?![\w.%-])"), to(place))
            for here, place in self.places.items()
        ]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def _reports(reader: Reader, source: str, here: Namespace) -> list[dict[str, Any]]:
    with asking(reader) as connection:
        cursor = connection.execute(
            "select storage_id, name, type, title, description, spec from reports where source = ? and entity = ? "
            "and project = ? and deleted_at is null order by created_at, name",
            [source, here.entity, here.project],
        )
        return dicts(cursor)


def _runs_there(
    reader: Reader,
    source: str,
    there: Destination,
    places: Mapping[Namespace, Namespace],
    run_name: Callable[[RunName], RunName],
    reports: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, RunName], tuple[str, RunName]]:
    """Runs that these reports name by an id, and their copies."""
    specs = "\n".join(report["spec"] or "" for report in reports)
    by_place: dict[tuple[str, str], dict[RunName, tuple[str, RunName]]] = {}
    for storage_id, run in _runs(reader, source, places):
        if f'"{storage_id}"' in specs or f'"{run[2]}"' in specs:
            name = run_name(run)
            by_place.setdefault(name[:2], {})[name] = storage_id, run
    found: dict[tuple[str, RunName], tuple[str, RunName]] = {}
    for (entity, project), runs in by_place.items():
        copies = held_runs(there.client, entity, project, [name[2] for name in runs])
        for name, here in runs.items():
            if (copy := copies[name[2]]) is not None:
                found[here] = copy.storage_id, name
    return found


def _runs(reader: Reader, source: str, places: Iterable[Namespace]) -> list[tuple[str, RunName]]:
    found = []
    for place in places:
        with asking(reader) as connection:
            rows = connection.execute(
                "select storage_id, run_id from runs where source = ? and entity = ? and project = ?",
                [source, place.entity, place.project],
            ).fetchall()
        found += [(storage_id, (place.entity, place.project, run_id)) for storage_id, run_id in rows]
    return found
