"""Mirrored artifacts to a server: sequences in order, with aliases, tags, metadata, references and lineage.

A version is known again at the destination by the digest of its entries, which no server gives to two versions of one
sequence. Numbers of versions, their times and their authors are the destination's own.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, SourceError
from mirror.importers.account import Account, Totals
from mirror.importers.client_ids import Ids, own_ids
from mirror.importers.items import Item, send_each
from mirror.importers.ledger import Ledger
from mirror.importers.places import Namespace, RunName
from mirror.importers.push import PushProgress
from mirror.importers.references import REFERENCE, Leading, leading_to, storage_id_of
from mirror.importers.run import Destination
from mirror.importers.versions import MirroredArtifact, collections_of, entries_of, versions_of
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry
from mirror.store.blobs import blob_path
from mirror.wandb.artifact_writing import (
    create_artifact,
    describe_collection,
    tag_collection,
    update_artifact,
    upload_artifact,
    use_artifact,
)
from mirror.wandb.artifacts import fetch_artifact, list_artifacts, list_collections, server_ids
from mirror.wandb.held import held_runs

if TYPE_CHECKING:
    from mirror.store import Reader

_JOB = "wandb-job.json"
"""The entry that says what a job runs: its code may be an artifact of the server (wandb 0.31)."""
_NAMED_BY_JOB = re.compile(rb'"wandb-artifact://_id/([^"]+)"')


@dataclass
class _Place:
    """A project at the destination: what the runs that logged or used artifacts are there (None: they are not), its
    versions by collection and digest, and the storage ids of copies by those of what they are copies of."""

    namespace: Namespace
    runs: dict[RunName, RunName | None]
    leading: Leading
    versions: dict[tuple[str, str], Artifact] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

    def copy_of(self, source: str, storage_id: str) -> str | None:
        """The storage id of the copy of a version, of this project or another; None if it is not there."""
        if storage_id not in self.copies and (copy := self.leading.references.copy_of(source, storage_id)):
            for there in server_ids(self.leading.client, [copy[1]]).values():
                self.copies[storage_id] = there
        return self.copies.get(storage_id)

    def find(self, artifact: Artifact) -> Artifact | None:
        return self.versions.get((artifact.collection, artifact.digest or ""))


def push_artifacts(
    reader: Reader,
    source: str,
    here: Namespace,
    there: Destination,
    places: Mapping[Namespace, Namespace],
    *,
    run_name: Callable[[RunName], RunName] = lambda run: run,
    of_runs: Collection[str] | None = None,
    incremental: bool = True,
    ledger_folder: Path | None = None,
    progress: PushProgress | None = None,
) -> Totals:
    """Send the artifacts of a mirrored project to `places[here]`.

    `run_name` says what a run is called there; a run that is not there cannot be named as the one that logged or used
    an artifact, which is noted. `of_runs` leaves out what others than these logged. What was sent before and has not
    changed is left alone if `incremental`. A version that fails leaves the others alone.
    """
    held = [m for m in versions_of(reader, source, here) if of_runs is None or m.artifact.run_id in of_runs]
    if not held:
        return Totals()
    leading = leading_to(there, reader, lambda name: places.get(name, name))
    at = _look(there, places[here], held, run_name, leading)

    def items() -> Iterator[Item]:
        for m in held:
            account = Account(m.path, f"{at.namespace.path}/{m.artifact.collection}", m.fingerprint())
            storage_id = m.artifact.key.storage_id
            send = partial(_push, reader, m, there, at)
            yield Item(source, storage_id, account, _is_there(m.artifact, at), send, m.artifact.size or 0)

    ledger = Ledger(ledger_folder or reader.layout.root, "artifact")
    totals = send_each("artifacts", items(), there, at.namespace, ledger, incremental=incremental, progress=progress)
    if not there.client.transport.budget.stop.is_set():
        totals.errors += _describe(reader, source, here, there, at, {m.artifact.collection for m in held})
    return totals


def _push(
    reader: Reader,
    mirrored: MirroredArtifact,
    there: Destination,
    at: _Place,
    account: Account,
    sent: Callable[[int], None],
) -> None:
    """Make the version, or what is missing of it, and look at it again."""
    wanted = _wanted(mirrored.artifact, at.namespace)
    entries = list(_rewritten(mirrored.artifact, entries_of(reader, mirrored), at, there, account))
    if mirrored.artifact.key.source != there.client.source:
        _note_job(reader, entries, account)
    logged_by = _logged_by(mirrored.artifact, at, account)
    if mirrored.lacking:
        account.lost("files", mirrored.lacking)
    shown = at.find(wanted)
    ids = _ids(mirrored.artifact, wanted, there, at)
    if shown is None:
        storage_id = _make(reader, mirrored, wanted, entries, there, ids, logged_by, sent)
        account.counts["bytes"] += sum(e.size or 0 for e in entries if e.ref is None)
        shown = _shown(there, wanted, storage_id)
    else:  # it is there, but may not be known by all of its ids
        known = server_ids(there.client, [own for own, _ in ids])
        for more in ids:
            if more[0] not in known:
                create_artifact(there.client, wanted, run_id=logged_by, ids=more, patience=there.patience)
    at.copies[mirrored.artifact.key.storage_id] = shown.key.storage_id
    told = _runs_that_used(shown)
    for use in mirrored.artifact.uses or ():
        run = at.runs[(use.entity, use.project, use.run_id)]
        if run is None:
            account.lost("used by", f"run `{use.entity}/{use.project}/{use.run_id}` is not at the destination")
        elif run not in told:
            use_artifact(there.client, shown.key.storage_id, *run, use.used_as)
    if _attributes(shown) != _attributes(wanted):
        update_artifact(there.client, shown.key.storage_id, wanted, shown)
        shown = _shown(there, wanted, shown.key.storage_id)
    _compare(wanted, shown, entries, account)
    if shown.version != wanted.version:
        account.changed("version", f"v{wanted.version} is v{shown.version} there")
    account.destination += f":v{shown.version}"
    account.counts["artifacts"] += 1
    account.counts["entries"] += len(entries)
    at.versions[wanted.collection, wanted.digest or ""] = shown


def _is_there(artifact: Artifact, at: _Place) -> bool:
    """Whether a version is there, and known to be used by those of its runs that are: they may have come after it."""
    if artifact.key.storage_id not in at.copies:
        return False
    shown = at.find(artifact)
    wanted = {at.runs[run] for run in _runs_that_used(artifact)} - {None}
    return shown is None or wanted <= _runs_that_used(shown)


def _runs_that_used(artifact: Artifact) -> set[RunName]:
    return {(use.entity, use.project, use.run_id) for use in artifact.uses or ()}


def _make(
    reader: Reader,
    mirrored: MirroredArtifact,
    wanted: Artifact,
    entries: Sequence[ArtifactEntry],
    there: Destination,
    ids: Sequence[Ids],
    run_id: str | None,
    sent: Callable[[int], None],
) -> str:
    """Make the version, to be known by all of `ids`; returns its storage id. `sent` is told of bytes as they go."""
    blobs = reader.layout.blobs
    absent = [
        e.path
        for e in entries
        if e.ref is None and e.sha256 not in mirrored.texts and not (e.sha256 and blob_path(blobs, e.sha256).is_file())
    ]
    if absent:
        raise MirrorError(
            f"the mirror does not hold the bytes of {len(absent)} of {len(entries)} entries (`{absent[0]}`, ...): sync "
            f"with --artifacts '{wanted.type}/{wanted.collection}:*'"
        )

    def bytes_of(entry: ArtifactEntry) -> Path:
        assert entry.sha256 is not None
        if (text := mirrored.texts.get(entry.sha256)) is None:
            return blob_path(blobs, entry.sha256)
        path = Path(folder, entry.sha256)
        path.write_bytes(text)
        return path

    client = there.client
    draft = create_artifact(client, wanted, run_id=run_id, ids=ids[0], patience=there.patience)
    if not draft.committed:
        with tempfile.TemporaryDirectory(prefix="mirror-artifact-") as folder:
            upload_artifact(
                client, wanted, draft.storage_id, entries, bytes_of, run_id=run_id, patience=there.patience, sent=sent
            )
    for more in ids[1:]:  # one that is there is known under these, too
        create_artifact(client, wanted, run_id=run_id, ids=more, patience=there.patience)
    return draft.storage_id


def _ids(artifact: Artifact, wanted: Artifact, there: Destination, at: _Place) -> list[Ids]:
    """The client's ids by which the copy is to be known: those that rows have for it, and the one that stands for what
    the source's server calls it. A server has each id once: its own things keep theirs."""
    key, client = artifact.key, there.client
    here = Namespace(key.entity, key.project)
    rows = at.leading.ids(key.source, here).of(key.storage_id) if client.source != key.source else ()
    own = own_ids(key.source, key.storage_id, here, client.source, at.namespace, wanted.collection)
    return [*rows, own]


def _wanted(artifact: Artifact, place: Namespace) -> Artifact:
    """The version as it is to stand in another project."""
    return replace(artifact, key=replace(artifact.key, entity=place.entity, project=place.project))


def _logged_by(artifact: Artifact, at: _Place, account: Account) -> str | None:
    """The id of the run there that is to be the one that logged it."""
    if artifact.run_id is None:
        return None
    name = (artifact.run_entity or "", artifact.run_project or "", artifact.run_id)
    run = at.runs[name]
    if run is None or Namespace(run[0], run[1]) != at.namespace:
        account.lost("logged by", f"run `{'/'.join(name)}` is not at the destination in `{at.namespace.path}`")
        return None
    return run[2]


def _rewritten(
    artifact: Artifact, entries: Iterable[ArtifactEntry], at: _Place, there: Destination, account: Account
) -> Iterator[ArtifactEntry]:
    """The entries, with references to artifacts leading to their copies. Other references stay as they are."""
    source = artifact.key.source
    for entry in entries:
        found = REFERENCE.fullmatch(entry.ref or "")
        if found is None:
            yield entry
            continue
        storage_id = storage_id_of(found[1])
        copy = at.copy_of(source, storage_id) if storage_id else None
        try:
            hexed = base64.b64decode(copy or "", validate=True).hex()
        except ValueError:
            hexed = ""
        if hexed:
            yield replace(entry, ref=f"wandb-artifact://{hexed}/{found[2]}")
            continue
        if source != there.client.source:
            account.lost("reference", f"`{entry.path}` leads to `{entry.ref}`, which has no copy at the destination")
        yield entry


def _note_job(reader: Reader, entries: Sequence[ArtifactEntry], account: Account) -> None:
    """Note what a job names by ids of the source. Its bytes stay as they are, since they make its digest."""
    for entry in entries:
        if entry.path != _JOB or not entry.sha256:
            continue
        path = blob_path(reader.layout.blobs, entry.sha256)
        for named in _NAMED_BY_JOB.findall(path.read_bytes()) if path.is_file() else ():
            account.lost("reference", f"`{_JOB}` names artifact `{named.decode()}` by its id at the source")


def _compare(wanted: Artifact, shown: Artifact, entries: Sequence[ArtifactEntry], account: Account) -> None:
    """Note what is not there as it was sent; an artifact with other entries is a failure."""
    if shown.digest != wanted.digest or shown.state != "COMMITTED":
        raise SourceError(
            f"the destination shows state `{shown.state}` and digest `{shown.digest}`, not `{wanted.digest}`"
        )
    if shown.size is not None and shown.size != sum(e.size or 0 for e in entries):
        raise SourceError(f"the destination shows {shown.size} bytes, sent were {sum(e.size or 0 for e in entries)}")
    attributes = _attributes(shown)
    for name, value in _attributes(wanted).items():
        if value != attributes[name]:
            account.changed(name, f"{_short(value)} is {_short(attributes[name])} there")


def _attributes(artifact: Artifact) -> dict[str, Any]:
    """What can be set and is compared."""
    try:
        metadata = json.loads(artifact.metadata or "{}")
    except ValueError:
        metadata = artifact.metadata
    return {
        "aliases": sorted(artifact.aliases),
        "tags": sorted(artifact.tags),
        "description": artifact.description or "",
        "metadata": json.dumps(metadata, sort_keys=True),
    }


def _short(value: Any) -> str:
    text = str(value)
    return f"`{text[:80]}...`" if len(text) > 80 else f"`{text}`"


# -- the destination --------------------------------------------------------------------------------------


def _look(
    there: Destination,
    place: Namespace,
    held: Sequence[MirroredArtifact],
    run_name: Callable[[RunName], RunName],
    leading: Leading,
) -> _Place:
    """What the project holds of these versions. Raises a SourceError."""
    at = _Place(place, _runs_there(there, held, run_name), leading)
    if not there.client.has_project(place.entity, place.project):
        return at

    def trouble(message: str) -> None:
        raise SourceError(message)

    names = {m.artifact.collection for m in held}
    collections, _ = list_collections(there.client, place.entity, place.project)
    for part, _ in list_artifacts(there.client, [c for c in collections if c.collection in names], trouble):
        for one in part:
            if one.artifact.state == "COMMITTED":
                at.versions[one.artifact.collection, one.artifact.digest or ""] = one.artifact
    for m in held:
        if (found := at.find(m.artifact)) is not None:
            at.copies[m.artifact.key.storage_id] = found.key.storage_id
    return at


def _shown(there: Destination, wanted: Artifact, storage_id: str) -> Artifact:
    """The version as the destination shows it now."""
    found = fetch_artifact(there.client, ArtifactCollection(wanted.key, wanted.type, wanted.collection), storage_id)
    if found is None:
        raise SourceError(f"`{there.client.source}` does not show the artifact that was sent: send it again")
    return found


def _runs_there(
    there: Destination, held: Sequence[MirroredArtifact], run_name: Callable[[RunName], RunName]
) -> dict[RunName, RunName | None]:
    """Every run that logged or used these artifacts, and what it is at the destination: None if it is not there."""
    names = {run for m in held for run in _runs_that_used(m.artifact)}
    names |= {(a.run_entity or "", a.run_project or "", a.run_id) for m in held if (a := m.artifact).run_id is not None}
    by_place: dict[tuple[str, str], dict[RunName, str]] = {}
    for name in sorted(names):
        entity, project, run_id = run_name(name)
        by_place.setdefault((entity, project), {})[name] = run_id
    found: dict[RunName, RunName | None] = {}
    for (entity, project), wanted in by_place.items():
        known = held_runs(there.client, entity, project, sorted(set(wanted.values())))
        found |= {name: (entity, project, run_id) if known[run_id] else None for name, run_id in wanted.items()}
    return found


def _describe(
    reader: Reader, source: str, here: Namespace, there: Destination, at: _Place, names: set[str]
) -> list[str]:
    """Give collections their descriptions and tags; returns what went wrong."""
    try:
        listed, _ = list_collections(there.client, at.namespace.entity, at.namespace.project)
        shown = {c.collection: c for c in listed}
        for name, description, tags in collections_of(reader, source, here):
            copy = shown.get(name)
            if copy is None or name not in names:
                continue
            if (copy.description or "") != (description or ""):
                describe_collection(there.client, copy.key.storage_id, description or "")
            if missing := set(tags) - set(copy.tags):
                tag_collection(there.client, at.namespace.entity, at.namespace.project, name, missing)
    except SourceError as e:
        return [f"collections of {here.path}: {e}"]
    return []
