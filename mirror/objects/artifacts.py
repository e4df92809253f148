"""Artifact versions: what they hold, who made them, who used them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mirror.objects.attrs import Attrs, Count, Name, Text, Texts, Time, refusing
from mirror.objects.entries import Entries, Entry
from mirror.objects.held import Held, Record, document, select
from mirror.objects.sequence import Listed
from mirror.query.text import safe

if TYPE_CHECKING:
    from pathlib import Path

    from mirror.objects.collections import ArtifactCollection
    from mirror.objects.run import Run

COLUMNS = (
    "source, entity, project, storage_id, type, collection, version, state, digest, aliases, tags, description, "
    "metadata, size, file_count, history_step, ttl_seconds, commit_hash, run_entity, run_project, run_id, username, "
    "created_at, updated_at"
)


class Artifact(Attrs):
    """One version of a collection, under W&B's names: `name` is `collection:v3`."""

    def __init__(self, held: Held, row: Record, alias: str | None = None) -> None:
        self._held = held
        self._row = row
        self._alias = alias

    # -- attributes -----------------------------------------------------------------------------------------

    id = Name("storage_id")
    entity = Name("entity")
    project = Name("project")
    source = Name("source")
    """The host it was mirrored from."""
    type = Name("type")

    @property
    def version(self) -> str:
        """`v3`."""
        return f"v{self._row['version']}"

    @property
    def name(self) -> str:
        """`collection:v3`, or with the alias it was asked for by."""
        return f"{self._row['collection']}:{self._alias or self.version}"

    @property
    def qualified_name(self) -> str:
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def source_name(self) -> str:
        return f"{self._row['collection']}:{self.version}"

    @property
    def source_qualified_name(self) -> str:
        return f"{self.entity}/{self.project}/{self.source_name}"

    source_entity = entity
    source_project = project
    source_version = version

    @property
    def collection(self) -> ArtifactCollection:
        """The collection it is a version of."""
        from mirror.objects.collections import collection

        return collection(self._held, self.entity, self.project, str(self._row["collection"]), self.type, self.source)

    state = Text("state")
    digest = Text("digest")
    aliases = Texts("aliases")
    """Its aliases, without `v3`."""
    tags = Texts("tags")
    description = Text("description")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return document(self._row["metadata"])

    size = Count("size")
    """Bytes of all entries."""
    file_count = Count("file_count")

    @property
    def history_step(self) -> int | None:
        """The last step the run had logged when it made this; wandb's servers store the one to come."""
        step = self._row["history_step"]
        return None if step is None else max(0, int(step) - 1)

    @property
    def ttl(self) -> timedelta | None:
        seconds = self._row["ttl_seconds"]
        return None if seconds is None or seconds < 0 else timedelta(seconds=seconds)

    commit_hash = Text("commit_hash")
    created_at = Time("created_at")
    updated_at = Time("updated_at")
    # -- what it holds --------------------------------------------------------------------------------------

    @cached_property
    def manifest(self) -> Entries:
        """The entries by path."""
        query = (
            "select path, digest, size, ref, extra, sha256, storage_id from artifact_entries "
            "where source = ? and storage_id = ? order by path"
        )
        return Entries(self, select(self._held.state(), query, [self.source, self.id]))

    def files(self, names: Sequence[str] | None = None, per_page: int = 50) -> Listed[Entry]:
        """The files: all, or those named."""
        return self.manifest.files(names)

    def get_entry(self, name: str) -> Entry:
        """The entry at a path. Raises NotFoundError."""
        return self.manifest.entry(name)

    get_path = get_entry

    def download(
        self, root: str | Path | None = None, allow_missing_references: bool = False, skip_cache: bool | None = None,
        path_prefix: str | None = None, multipart: bool | None = None,
    ) -> str:  # fmt: skip
        """Write all files below `root` (`./artifacts/NAME:vN` if none is given), and return that folder.

        Raises OfflineError, before anything is written, if the mirror does not hold the bytes of one of them, or if
        one is a reference to elsewhere (unless `allow_missing_references`)."""
        return self.manifest.download(root, allow_missing_references, path_prefix)

    # -- who made and used it -------------------------------------------------------------------------------

    def logged_by(self) -> Run | None:
        """The run that made it; None if it was no run, or one the mirror does not hold."""
        row = self._row
        if row["run_id"] is None:
            return None
        found = _runs(self._held, self.source, [(row["run_entity"], row["run_project"], row["run_id"])])
        return found[0] if found else None

    def used_by(self) -> list[Run]:
        """The runs that declared it as an input and that the mirror holds."""
        query = (
            "select run_entity, run_project, run_id from artifact_uses where source = ? and storage_id = ? "
            "order by run_entity, run_project, run_id"
        )
        uses = select(self._held.state(), query, [self.source, self.id])
        return _runs(self._held, self.source, [(u["run_entity"], u["run_project"], u["run_id"]) for u in uses])

    save = refusing("save")
    delete = refusing("delete")
    link = refusing("link")
    unlink = refusing("unlink")
    add_file = refusing("add_file")
    add_dir = refusing("add_dir")
    add_reference = refusing("add_reference")

    def wait(self, timeout: int | None = None) -> Artifact:
        """Nothing to wait for."""
        return self

    def __repr__(self) -> str:
        return safe(f"<Artifact {self.qualified_name}>")


class Artifacts(Listed[Artifact]):
    """Artifact versions."""


def logged(run: Run) -> Artifacts:
    """Versions that a run made, in the order they were made."""
    condition = "source = ? and run_entity = ? and run_project = ? and run_id = ?"
    return read(run._held, condition, [run.source, run.entity, run.project, run.id], name="/".join(run.path))


def used(run: Run) -> Artifacts:
    """Versions that a run declared as inputs."""
    uses = (
        "(source, storage_id) in (select (source, storage_id) from artifact_uses "
        "where source = ? and run_entity = ? and run_project = ? and run_id = ?)"
    )
    return read(run._held, uses, [run.source, run.entity, run.project, run.id], name="/".join(run.path))


def read(
    held: Held, condition: str, params: Sequence[Any], order: str = "created_at, collection, version", name: str = ""
) -> Artifacts:
    """Committed versions that are there, by a condition over the view `artifacts`."""
    # A version that never arrived whole has no number.
    query = (
        f"select {COLUMNS} from artifacts where {condition} and deleted_at is null and version is not null "
        f"and coalesce(state, 'COMMITTED') = 'COMMITTED' order by {order}"
    )
    return Artifacts([Artifact(held, row) for row in select(held.state(), query, params)], name)


def _runs(held: Held, source: str, paths: Sequence[tuple[str, str, str]]) -> list[Run]:
    """The runs of these paths that are held, in this order."""
    from mirror.objects.runs import Runs

    rids = []
    for path in paths:
        query = (
            "select rid from raw.live where source = ? and entity = ? and project = ? and run_id = ? "
            "order by deleted_at is null desc, rid desc limit 1"
        )
        rids += [row["rid"] for row in select(held.state(), query, [source, *path])]
    return list(Runs(held, rids))
