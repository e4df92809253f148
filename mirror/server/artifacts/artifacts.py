"""Artifacts that clients log, use and change.

`create` announces one (a draft), its bytes come one by one, `commit` checks the whole and numbers it. From then on it
is a row of the store's tables, like those that were mirrored from elsewhere, and every change is a new row. Changes
of one collection are made one after the other, those of different ones share their commits.
"""

from __future__ import annotations

import base64
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, TypeVar

from mirror.errors import LockedError, NotFoundError, UsageError
from mirror.manifests import as_contents, document
from mirror.records import Artifact, ArtifactCollection, ArtifactUse, Item, ItemKey, RunKey
from mirror.server import ids
from mirror.server.artifacts import manifest as manifests
from mirror.server.artifacts.drafts import Arrived, Draft, Drafts, id_of, new_token, token_of
from mirror.server.artifacts.manifest import Contents
from mirror.server.artifacts.stored import ALIVE, Held, HeldCollection, StoredArtifacts
from mirror.server.home import Home
from mirror.store import Writer
from mirror.store.blobs import blob_path, incoming

PENDING, COMMITTED, DELETED = "PENDING", "COMMITTED", "DELETED"
_LARGE = 1 << 20  # bytes of manifests
_SWEEP_EVERY = 3600.0
_PART = re.compile(r"\d{1,5}-[0-9a-f]{32}")
Sequence_ = tuple[str, str, str]
"""entity, project, collection: what versions are numbered in."""


_Kind = TypeVar("_Kind", Held, Draft)


def sequence_of(found: Artifact | ArtifactCollection) -> Sequence_:
    return found.key.entity, found.key.project, found.collection


def now() -> datetime:
    return datetime.now(timezone.utc)


class Artifacts:
    """All artifacts of a served root."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.drafts = Drafts(home.layout.live / "artifacts")
        self._locks = [threading.RLock() for _ in range(64)]
        self._parsing = threading.Lock()
        self._swept = 0.0
        if not home.read_only:
            self._sweep()

    def _sweep(self) -> None:
        """Forget drafts that nobody finished, now and then."""
        if time.monotonic() - self._swept > _SWEEP_EVERY or not self._swept:
            self._swept = time.monotonic()
            self.drafts.sweep()

    @property
    def stored(self) -> StoredArtifacts:
        """What is committed now."""
        return StoredArtifacts(self.home.shelves.newest())

    @contextmanager
    def _alone(self, *sequences: Sequence_) -> Iterator[None]:
        """Nobody else changes these collections meanwhile."""
        places = sorted({hash(s) % len(self._locks) for s in sequences})
        for place in places:
            self._locks[place].acquire()
        try:
            yield
        finally:
            for place in reversed(places):
                self._locks[place].release()

    def _write(self, items: Iterable[Item], drop: Sequence[tuple[str, ItemKey]] = ()) -> None:
        """Put and drop items in one commit; they are there when this returns."""
        pen, _ = self.home.writable()
        made = list(items)

        def job(writer: Writer) -> None:
            for item in made:
                if item.key.source == self.home.source:
                    writer.put_item(item)
                else:  # a sync may be writing its project
                    with writer.lease(item.key.source, item.key.entity, item.key.project):
                        writer.put_item(item)
                        writer.commit()
            for kind, key in drop:
                writer.drop_item(kind, key)

        if made or drop:
            pen.do(job)

    def own(self, key: ItemKey, what: str) -> None:
        """Refuse to change what another source says."""
        if key.source != self.home.source:
            raise UsageError(
                f"{what} is mirrored from `{key.source}` and cannot be changed here: change it there and sync again"
            )

    # -- finding ------------------------------------------------------------------------------------------

    def find(self, source: str | None, storage_id: str) -> Held | Draft | None:
        """The artifact of that id: committed, or on its way in. `source` None: of this server, or of any other if
        only one knows the id."""
        stored = self.stored
        held = stored.find(source or self.home.source, storage_id)
        if source is not None or (held and not held.deleted):
            return held
        draft = self.drafts.find(token_of(storage_id))
        if isinstance(draft, str):  # it leads to the same artifact of somebody else, done or not
            other = self.drafts.find(token_of(draft))
            return stored.find(self.home.source, draft) or (other if isinstance(other, Draft) else None)
        return draft or held or stored.find_anywhere(storage_id)

    def by_client_id(self, token: str) -> str | None:
        """The id of the artifact that a client knows under a name of its own."""
        found = self.find(None, id_of(token))
        return None if found is None or (isinstance(found, Held) and found.deleted) else found.artifact.key.storage_id

    def draft(self, storage_id: str) -> Draft:
        found = self.drafts.find(token_of(storage_id))
        if not isinstance(found, Draft):
            raise NotFoundError(f"there is no unfinished artifact with the id `{storage_id[:100]}` here: log it again")
        return found

    def unfinished(self, token: str) -> Draft:
        """The draft of that token. `NotFoundError` if it is committed or was never announced."""
        return self.draft(id_of(token))

    # -- logging ------------------------------------------------------------------------------------------

    def create(self, draft: Draft, client_token: str | None) -> Held | Draft:
        """A draft, or the committed version of the collection that holds the same."""
        self._sweep()
        wanted = draft.artifact
        sequence = sequence_of(wanted)
        with self._alone(sequence):
            stored = self.stored
            self._check_collection(stored, wanted)
            held = None
            if draft.deduplicate and not draft.distributed:
                held = stored.of_digest(self.home.source, sequence, wanted.digest or "")
            before = held or self.find(self.home.source, wanted.key.storage_id) or self._drafted(draft)
            if isinstance(before, Held) and not before.deleted and _same(before.artifact, draft):
                self._put(before.artifact, aliases=[*before.artifact.aliases, *wanted.aliases])
                return self._known_as(client_token, self._again(before))
            if isinstance(before, Draft) and _same(before.artifact, draft):
                return self._known_as(client_token, before)  # its client asks again, or another brings a part of it
            if before is not None or not self.drafts.create(draft):
                draft = replace(draft, artifact=replace(wanted, key=replace(wanted.key, storage_id=id_of(new_token()))))
                self.drafts.create(draft)
            return self._known_as(client_token, draft)

    def _known_as(self, client_token: str | None, found: _Kind) -> _Kind:
        """Let the name that the client has for an artifact lead to it."""
        storage_id = found.artifact.key.storage_id
        if client_token and id_of(client_token) != storage_id and not self.by_client_id(client_token):
            self.drafts.point(client_token, storage_id)
        return found

    def _drafted(self, draft: Draft) -> Draft | None:
        found = self.drafts.find(draft.token)
        return found if isinstance(found, Draft) else None

    def _check_collection(self, stored: StoredArtifacts, wanted: Artifact) -> None:
        for held in stored.collection(*sequence_of(wanted)):
            path = f"{wanted.key.entity}/{wanted.key.project}/{wanted.collection}"
            self.own(held.collection.key, f"the collection `{path}`")
            if held.collection.type != wanted.type:
                raise UsageError(
                    f"the collection `{path}` has artifacts of type `{held.collection.type}`, this one is of type "
                    f"`{wanted.type}`: choose another name"
                )

    def commit(self, storage_id: str) -> Held:
        """Check the whole of a draft and make it the next version; durable when this returns."""
        self.home.writable()
        found = self.find(None, storage_id)
        if isinstance(found, Held):
            return found  # its client asks again
        try:
            return self._finish(self.draft(storage_id) if found is None else found)
        except NotFoundError:
            done = self.find(None, storage_id)
            if isinstance(done, Held):
                return done  # its client asked twice at once
            raise

    def _finish(self, draft: Draft) -> Held:
        sequence = sequence_of(draft.artifact)
        arrived = self.drafts.arrived(draft.token)
        with self._parsing if self._is_large(arrived) else nullcontext():
            contents, blob = self._manifest(draft, arrived)
            held = self._bytes(draft.artifact, contents, arrived)
            manifests.check_bytes(contents, held, draft.artifact.collection)
            entries = manifests.Entries(contents, held)
            artifact = replace(
                draft.artifact,
                state=COMMITTED,
                digest=manifests.digest(contents),
                size=sum(e.size or 0 for e in entries),
                file_count=len(entries),
                manifest_sha256=blob,
                entries=entries,
                updated_at=now(),
                **self.drafts.changes(draft.token),
            )
            with self._alone(sequence):
                done = self._commit(draft, artifact)
        return done

    def join_parts(self, draft: Draft, upload: str, parts: Sequence[tuple[int, str]]) -> None:
        """Make a file (hex md5 `upload`) of the parts that came, given as (number, hex md5)."""
        folder = self.drafts.parts(draft.token) / upload
        md5 = base64.b64encode(bytes.fromhex(upload)).decode()
        if not folder.exists() and md5 in self.drafts.arrived(draft.token).files:
            return  # joined before, for another file of the same content or for an answer that was lost
        if [number for number, _ in sorted(parts)] != list(range(1, len(parts) + 1)):
            raise UsageError(f"parts {sorted(n for n, _ in parts)[:20]} are no whole file: they are numbered from 1")
        with incoming(self.home.layout.blobs) as sink:
            for number, part_md5 in sorted(parts):
                path = folder / f"{number}-{part_md5}"
                if not _PART.fullmatch(path.name) or not path.exists():
                    raise UsageError(f"part {number} of the file did not arrive: log the artifact again")
                with path.open("rb") as part:
                    while piece := part.read(1 << 20):
                        sink.write(piece)
            blob = sink.keep(md5)
        self.drafts.file_came(draft.token, blob)
        shutil.rmtree(folder, ignore_errors=True)

    def _commit(self, draft: Draft, artifact: Artifact) -> Held:
        stored, source, sequence = self.stored, self.home.source, sequence_of(artifact)
        before = stored.find(source, artifact.key.storage_id)
        if before is not None:  # its client asked twice at once, or the server was killed just after the first time
            self.drafts.remove(draft.token)
            return before
        self._check_collection(stored, artifact)
        twin = stored.of_digest(source, sequence, artifact.digest or "") if draft.deduplicate else None
        if twin is not None:  # another client was faster
            self._put(twin.artifact, aliases=[*twin.artifact.aliases, *artifact.aliases])
            self.drafts.point(draft.token, twin.artifact.key.storage_id)
            return self._again(twin)
        items: list[Item] = [*self._without(stored, sequence, artifact.aliases)]
        if not any(c.collection.key.storage_id for c in stored.collection(*sequence)):
            key = replace(artifact.key, storage_id=ids.encode("ArtifactSequence", "v1", new_token()))
            items.append(ArtifactCollection(key, artifact.type, artifact.collection, created_at=artifact.created_at))
        self._write([*items, replace(artifact, version=stored.next_number(source, sequence))])
        self.drafts.remove(draft.token)
        found = self.stored.find(source, artifact.key.storage_id)
        assert found is not None
        return found

    def _again(self, held: Held) -> Held:
        return self.stored.find(held.artifact.key.source, held.artifact.key.storage_id) or held

    def _manifest(self, draft: Draft, arrived: Arrived) -> tuple[Contents, str]:
        """The entries of what is committed and the blob of its manifest. `UsageError` if the client lied."""
        whose = draft.artifact.collection
        parts = [p for p in arrived.manifests.values() if p.sha256]
        if not parts:
            raise UsageError(f"the manifest of artifact `{whose}` did not arrive: log it again")
        last = parts[-1]
        contents = self._read_manifest(last.sha256 or "", whose)
        if not draft.distributed and (made := manifests.digest(contents)) != draft.artifact.digest:
            raise UsageError(
                f"the manifest of artifact `{whose}` has the digest `{made}`, announced was "
                f"`{draft.artifact.digest}`: log it again"
            )
        if last.kind == "FULL" and not draft.distributed:
            return contents, last.sha256 or ""
        merged: Contents = {}
        if last.kind == "INCREMENTAL" and last.base:
            base = self.find(None, last.base)
            if not isinstance(base, Held) or base.artifact.key.entity != draft.artifact.key.entity:
                raise UsageError(f"artifact `{whose}` adds to one that is not here: log it as a whole")
            for batch in self.stored.batches(base):
                merged |= {e.path: as_contents(e) for e in batch}
        for part in parts if draft.distributed else [last]:
            merged |= self._read_manifest(part.sha256 or "", whose)
        with incoming(self.home.layout.blobs) as sink:
            sink.write(document(merged))
            return merged, sink.keep().sha256

    def _is_large(self, arrived: Arrived) -> bool:
        """Large manifests are read one at a time, so that memory holds one of them."""
        paths = [blob_path(self.home.layout.blobs, p.sha256) for p in arrived.manifests.values() if p.sha256]
        return sum(path.stat().st_size for path in paths if path.exists()) > _LARGE

    def _read_manifest(self, sha256: str, whose: str) -> Contents:
        return manifests.parse(blob_path(self.home.layout.blobs, sha256).read_bytes(), whose)

    def _bytes(self, artifact: Artifact, contents: Contents, arrived: Arrived) -> dict[str, tuple[str, int]]:
        """Where the bytes of the files are: here with the draft, or with other artifacts of the entity."""
        wanted = {e["digest"] for e in contents.values() if e.get("ref") is None}
        missing = [digest for digest in wanted if digest not in arrived.files]
        return arrived.files | (self.stored.bytes_of(artifact.key.entity, missing) if missing else {})

    # -- changing -----------------------------------------------------------------------------------------

    def _without(
        self, stored: StoredArtifacts, sequence: Sequence_, aliases: Sequence[str], but: Artifact | None = None
    ) -> list[Artifact]:
        """Other versions of the collection that lose these aliases, as they will be."""
        holders = stored.with_aliases(self.home.source, sequence, aliases) if aliases else []
        return [
            replace(h.artifact, aliases=tuple(a for a in h.artifact.aliases if a not in aliases), updated_at=now())
            for h in holders
            if but is None or h.artifact.key != but.key
        ]

    def _put(self, before: Artifact, *, aliases: Iterable[str] | None = None, **changes: Any) -> None:
        """Change a version, in its collection's turn; aliases that it gets are taken from the others."""
        items: list[Item] = []
        if aliases is not None:
            changes["aliases"] = tuple(dict.fromkeys(aliases))
            new = [a for a in changes["aliases"] if a not in before.aliases]
            items += self._without(self.stored, sequence_of(before), new, before)
        if any(getattr(before, name) != value for name, value in changes.items()):
            items.append(replace(before, updated_at=now(), **changes))
        self._write(items)

    def update(self, found: Held | Draft, change: Callable[[Artifact], dict[str, Any]]) -> Held | Draft:
        """Change attributes of a version. `change` is told how it is now and says what it will be."""
        path = "the artifact `{}/{}/{}`".format(*sequence_of(found.artifact))
        self.own(found.artifact.key, path)
        if isinstance(found, Draft):
            self.drafts.change(found.token, change(found.artifact))
            return found
        with self._alone(sequence_of(found.artifact)):
            again = self._again(found)
            if again.deleted:
                raise NotFoundError(f"{path} was deleted meanwhile")
            self._put(again.artifact, **change(again.artifact))
            return self._again(again)

    def delete(self, held: Held, *, with_aliases: bool) -> None:
        """Forget a version. Its number is not given again; bytes stay, since others may need them."""
        name = f"`{held.artifact.collection}:v{held.artifact.version}`"
        self.own(held.artifact.key, f"the artifact {name}")
        with self._alone(sequence_of(held.artifact)):
            held = self._again(held)
            if held.deleted:
                return
            if held.artifact.aliases and not with_aliases:
                raise UsageError(
                    f"the artifact {name} has the aliases {', '.join(f'`{a}`' for a in held.artifact.aliases)}: "
                    "remove them first, or delete it with `delete_aliases=True`"
                )
            gone = replace(held.artifact, state=DELETED, aliases=(), updated_at=now())
            self._write([gone], [("artifacts", gone.key)])

    def delete_logged_by(self, key: RunKey) -> None:
        """Forget the versions that a run logged."""
        where = f"source = ? and run_entity = ? and run_project = ? and run_id = ? and {ALIVE}"
        for held in self.stored.versions(where, (self.home.source, key.entity, key.project, key.run_id)):
            self.delete(held, with_aliases=True)

    def use(self, held: Held, use: ArtifactUse) -> None:
        """Note that a run uses a version. Artifacts from elsewhere are noted too, unless a sync writes them now."""
        self.home.writable()
        with self._alone(sequence_of(held.artifact)):
            held = self._again(held)
            uses = self.stored.uses(held)
            if use in uses:
                return
            new = replace(held.artifact, uses=[*uses, use])
            try:
                self._write([new])
            except LockedError as exc:
                print(f"the use of `{new.collection}` by `{use.run_id}` is not noted: {exc}", file=sys.stderr)

    # -- collections --------------------------------------------------------------------------------------

    def change_collection(
        self, held: HeldCollection, change: Callable[[ArtifactCollection], ArtifactCollection]
    ) -> HeldCollection:
        """Change a collection; its versions follow it to another name or type."""
        before = held.collection
        after = change(before)
        self.own(before.key, f"the collection `{before.collection}`")
        with self._alone(sequence_of(before), sequence_of(after)):
            stored = self.stored
            current = stored.collections("rid = ?", (held.rid,))
            if not current:
                raise NotFoundError(f"the collection `{before.collection}` was deleted meanwhile")
            before = current[0].collection
            after = replace(change(before), updated_at=now())
            moved: list[Artifact] = []
            gone: list[tuple[str, ItemKey]] = []
            if after.collection != before.collection and stored.collection(*sequence_of(after)):
                raise UsageError(f"there is a collection `{after.collection}` already: choose another name")
            if (after.collection, after.type) != (before.collection, before.type):
                where = "source = ? and entity = ? and project = ? and collection = ?"
                for found in stored.versions(where, (before.key.source, *sequence_of(before))):
                    moved.append(replace(found.artifact, collection=after.collection, type=after.type))
                    if found.deleted:  # moves along, so that its number is not given again
                        gone.append(("artifacts", found.artifact.key))
            self._write([after, *moved], gone)
            return self.stored.collections("rid = ?", (held.rid,))[0]

    def delete_collection(self, held: HeldCollection) -> None:
        """Forget a collection and all its versions."""
        found = held.collection
        self.own(found.key, f"the collection `{found.collection}`")
        with self._alone(sequence_of(found)):
            where = "source = ? and entity = ? and project = ? and collection = ? and deleted_at is null"
            versions = self.stored.versions(where, (found.key.source, *sequence_of(found)))
            gone = [replace(h.artifact, state=DELETED, aliases=(), updated_at=now()) for h in versions]
            keys = [("artifacts", a.key) for a in gone]
            self._write(gone, [*keys, ("artifact_collections", found.key)])


def _same(held: Artifact, asked: Draft) -> bool:
    """Whether an artifact is the one that a client asks for again."""
    return sequence_of(held) == sequence_of(asked.artifact) and (
        asked.distributed or held.digest == asked.artifact.digest
    )
