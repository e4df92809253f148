"""Artifacts that configs of runs name, made to be named as their copies at another server.

An artifact that is put into a run's config stands there as `{"_type": "artifactVersion", "id": <the server's id>,
"version": "v3", "sequenceName": .., "usedAs": ..}` (wandb 0.31). Only the server that made an artifact knows it by
that id, and gives a copy one of its own when it is made: so configs are changed when the artifacts are there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mirror.errors import SourceError
from mirror.importers.account import Account, Totals
from mirror.importers.places import RunName
from mirror.importers.references import References
from mirror.importers.run import Destination, mirrored_runs
from mirror.portions import portions
from mirror.query.sql import asking
from mirror.records import ArtifactCollection, ItemKey
from mirror.wandb.artifacts import fetch_artifact, server_ids
from mirror.wandb.held import HeldRun, held_configs
from mirror.wandb.mutations import upsert_run

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client

NAMED = '"artifactVersion"'
"""Part of every config that names artifacts."""

_RUNS_AT_ONCE = 40


class Copied(NamedTuple):
    """What a copy of a version is called at a server: its id there, and `vN`."""

    storage_id: str
    version: str | None


class Copies:
    """The copies of artifacts at a server, each asked for once. Used by several threads."""

    def __init__(self, references: References, client: Client) -> None:
        self._references = references
        self._client = client
        self._found: dict[tuple[str, str], Copied | None] = {}

    def of(self, source: str, storage_id: str) -> Copied | None:
        """The copy of a version; None if there is none. Raises a SourceError."""
        if (source, storage_id) not in self._found:
            self._found[source, storage_id] = self._ask(source, storage_id)
        return self._found[source, storage_id]

    def config(self, source: str, text: str) -> str:
        """A config that names the copies of artifacts that are there, and the others as it did."""
        return led(text, lambda storage_id: self.of(source, storage_id))[0]

    def _ask(self, source: str, storage_id: str) -> Copied | None:
        if (copy := self._references.copy_of(source, storage_id)) is None:
            return None
        found = server_ids(self._client, [copy[1]]).get(copy[1])
        nobody = ArtifactCollection(ItemKey(self._client.source, found or "", "", ""), "", "")
        shown = fetch_artifact(self._client, nobody, found) if found else None
        if shown is None:
            return None
        return Copied(shown.key.storage_id, None if shown.version is None else f"v{shown.version}")


def led(text: str, copy_of: Callable[[str], Copied | None]) -> tuple[str, int, int]:
    """A config whose artifacts are named as `copy_of` says for their ids, how many are, and how many it knows none
    of. What is no JSON, and names no artifacts, stays as it is."""
    from mirror.store.jsontext import parse, write

    if NAMED not in text:
        return text, 0, 0
    try:
        document, exact = parse(text)
    except (ValueError, RecursionError):
        return text, 0, 0
    named = left = 0
    for one in _artifacts(document):
        if (copy := copy_of(one["id"])) is None:
            left += 1
            continue
        named += 1
        one["id"] = copy.storage_id
        if copy.version is not None and "version" in one:
            one["version"] = copy.version
    return (write(document, exact) if named else text), named, left


def _artifacts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("_type") == "artifactVersion" and type(value.get("id")) is str:
            yield value
        for one in value.values():
            yield from _artifacts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _artifacts(one)


def lead_configs(
    reader: Reader,
    rids: Sequence[int],
    there: Destination,
    references: References,
    run_name: Callable[[RunName], RunName],
) -> Totals:
    """Have the configs of runs that are there name the copies of artifacts that are there. Notes how many do, and how
    many artifacts have no copy."""
    totals, copies = Totals(), Copies(references, there.client)
    with asking(reader) as connection:
        found = connection.execute(
            "select rid, entity, project, run_id from runs_raw where contains(config_raw, ?) "
            "and rid in (select unnest(?::bigint[])) order by entity, project, run_id",
            [NAMED, list(rids)],
        ).fetchall()
    by_place: dict[tuple[str, str], dict[int, str]] = {}
    for rid, *name in found:
        entity, project, run_id = run_name((name[0], name[1], name[2]))
        by_place.setdefault((entity, project), {})[rid] = run_id
    for (entity, project), runs in by_place.items():
        for part in portions(runs, lambda rid: 1, _RUNS_AT_ONCE, _RUNS_AT_ONCE):
            try:
                held = held_configs(there.client, entity, project, [runs[rid] for rid in part])
                for mirrored in mirrored_runs(reader, part):
                    if (run := held[runs[mirrored.rid]]) is not None:
                        account = Account(mirrored.path, mirrored.path, "")
                        row = mirrored.row
                        _lead_config(there.client, run, row["source"], row["config_raw"], copies, account)
                        totals.note(account)
            except SourceError as e:
                totals.errors.append(f"artifacts in configs of {entity}/{project}: {e}")
    return totals


def _lead_config(client: Client, run: HeldRun, source: str, config: str, copies: Copies, account: Account) -> None:
    _, named, left = led(config, lambda storage_id: copies.of(source, storage_id))
    made = copies.config(source, run.config or "")
    if made != (run.config or ""):
        upsert_run(client, storage_id=run.storage_id, config=made)
    if named:
        account.changed("references", "artifacts in the config are named as their copies", named)
    if left:
        account.lost("references", "artifacts in the config that have no copy keep the ids of the source", left)
