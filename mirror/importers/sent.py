"""Where the things of a mirror went on one server, as the ledgers tell it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from mirror.importers.ledger import lines_of
from mirror.importers.places import Namespace, RunName

_KINDS = ("project", "run", "artifact", "report")
_T = TypeVar("_T")


class Sent:
    """What was sent to a server; `destination` is its canonical name, `folder` holds the ledgers. Where a thing was
    sent to several namespaces, the last one counts."""

    def __init__(self, folder: Path, destination: str) -> None:
        self._runs: dict[tuple[str, str], dict[Namespace, str]] = {}
        self._names: dict[tuple[str, RunName], dict[Namespace, str]] = {}
        self._projects: dict[tuple[str, Namespace], dict[Namespace, None]] = {}
        for kind in _KINDS:
            for line in lines_of(folder / f"{kind}_successes.jsonl"):
                try:
                    if line["destination"] == destination:
                        self._note(kind, line)
                except (KeyError, TypeError, ValueError, AttributeError):
                    continue

    def run(self, source: str, storage_id: str, place: Namespace | None = None) -> tuple[Namespace, str] | None:
        """The namespace and the id of the copy of a run (of the one in `place`); None if it was not sent there."""
        return _last(self._runs.get((source, storage_id)), place)

    def run_name(self, source: str, run: RunName, place: Namespace | None = None) -> tuple[Namespace, str] | None:
        """The same of a run by its name."""
        return _last(self._names.get((source, run)), place)

    def project(self, source: str, here: Namespace) -> Namespace | None:
        """Where a project went last; None if nothing of it was sent."""
        return next(reversed(self._projects.get((source, here), {})), None)

    def projects(self, source: str) -> dict[Namespace, Namespace]:
        """Where the projects of a source went that were sent."""
        return {here: next(reversed(places)) for (host, here), places in self._projects.items() if host == source}

    def _note(self, kind: str, line: dict[str, str]) -> None:
        source, place = line["source"], Namespace(*line["dst_path"].split("/", 1))
        entity, project = line["src_path"].split("/", 1)
        if kind == "report":
            project = project.split("/", 1)[0]
        elif kind != "project":  # experiments of MLflow have slashes in their names, runs and artifacts have none
            project, run_id = project.rsplit("/", 1)
        _put(self._projects.setdefault((source, Namespace(entity, project)), {}), place, None)
        if kind == "run":
            for copies in (
                self._runs.setdefault((source, line["storage_id"]), {}),
                self._names.setdefault((source, (entity, project, run_id)), {}),
            ):
                _put(copies, place, line["dst_name"])


def _put(places: dict[Namespace, _T], place: Namespace, value: _T) -> None:
    """Put a place at the end."""
    places.pop(place, None)
    places[place] = value


def _last(copies: dict[Namespace, str] | None, place: Namespace | None) -> tuple[Namespace, str] | None:
    if copies and place is not None:
        copies = {place: copies[place]} if place in copies else {}
    return next(reversed(copies.items()), None) if copies else None
