"""What moves between rooms: one frozen dataclass per kind of thing.

Sources make records, the store writes them, and nothing else crosses the border. Times are timezone-aware
`datetime`s in UTC; JSON documents are the wire's own text (`str`), never re-encoded, so that importers can
send exactly what arrived. `None` always means "the source did not say".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Stream = Literal["history", "system"]
"""The two row streams of a run: logged metrics and sampled system metrics (W&B's "events")."""


@dataclass(frozen=True)
class RunKey:
    """Who a run is. `source` is the canonical host; `storage_id` is what the server never reuses
    (GraphQL `Run.id`); entity, project and run_id are names and may change with a move or rename."""

    source: str
    storage_id: str
    entity: str
    project: str
    run_id: str

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.run_id}"


@dataclass(frozen=True)
class Project:
    source: str
    entity: str
    name: str
    storage_id: str | None = None
    description: str | None = None
    created_at: datetime | None = None
    run_count: int | None = None
    read_only: bool | None = None


@dataclass(frozen=True)
class Run:
    """A run's documents and attributes, under W&B's names in snake case.

    `name` is the display name, `key.run_id` the eight-letter id. `config` is the wire's config document
    with its `{"key": {"value": ..}}` wrapping and its internal `_wandb` key; `summary` likewise verbatim.
    `metadata` is the text of `wandb-metadata.json`. `history_line_count` and `events_line_count` are what
    the *server* says it holds; what the store holds is counted by the store. `origin` is JSON: stream -> source,
    for streams that another source than `key.source` gave.
    """

    key: RunKey
    name: str | None = None
    state: str | None = None
    tags: tuple[str, ...] = ()
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    description: str | None = None
    user_name: str | None = None
    username: str | None = None
    created_at: datetime | None = None
    heartbeat_at: datetime | None = None
    updated_at: datetime | None = None
    commit: str | None = None
    host: str | None = None
    sweep: str | None = None
    url: str | None = None
    config: str | None = None
    summary: str | None = None
    system_summary: str | None = None
    history_keys: str | None = None
    metadata: str | None = None
    history_line_count: int | None = None
    events_line_count: int | None = None
    log_line_count: int | None = None
    exit_code: int | None = None
    fork_run_id: str | None = None
    fork_step: int | None = None
    origin: str | None = None


@dataclass(frozen=True)
class ListedRun:
    """A run as a cheap listing shows it. `fingerprint` changes when anything the listing shows does."""

    key: RunKey
    fingerprint: str
    history_lines: int | None = None
    events_lines: int | None = None
    state: str | None = None


@dataclass(frozen=True)
class Listing:
    """The runs of a project. `project` is None if it does not exist or is closed to the key. `complete` is
    True if the source counts exactly as many runs as came; `note` says why not. `everything` is False for sources
    that never know all runs of a project (a folder): runs that they do not list are not gone."""

    project: Project | None
    runs: Sequence[ListedRun] = ()
    complete: bool = False
    note: str | None = None
    everything: bool = True


@dataclass(frozen=True)
class Fetched:
    """What became of one stream of one run: the road taken, what was asked for, what came, what the
    source says exists. `complete` is the invariant (rows held = rows the source says it has);
    `lossless` is False when the road cannot tell all values apart; `sampled` when the source thinned."""

    stream: Stream
    road: str
    asked: int | None = None
    got: int | None = None
    total: int | None = None
    complete: bool = True
    lossless: bool = True
    sampled: bool = False
    note: str | None = None


@dataclass(frozen=True)
class HistoryBatch:
    """Consecutive logged rows of one stream of one run, as JSON texts of objects, in logged order."""

    key: RunKey
    stream: Stream
    rows: Sequence[str]


@dataclass(frozen=True)
class FileEntry:
    """A file of a run as its source lists it. `name` is a relative path chosen by strangers: never join
    it to a folder without checking. `md5` is base64, as on the wire. `size` is in bytes."""

    name: str
    size: int | None = None
    md5: str | None = None
    mimetype: str | None = None
    updated_at: datetime | None = None
    storage_id: str | None = None
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ItemKey:
    """Who a sweep, a collection, an artifact or a report is: `storage_id` is what the server never reuses."""

    source: str
    storage_id: str
    entity: str
    project: str


@dataclass(frozen=True)
class Sweep:
    """A sweep. `key.storage_id` is GraphQL `Sweep.id`, `sweep_id` its `name`; `config` is the wire's YAML."""

    key: ItemKey
    sweep_id: str
    name: str | None = None
    description: str | None = None
    state: str | None = None
    config: str | None = None
    best_loss: float | None = None
    run_count: int | None = None
    username: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class ArtifactCollection:
    """A sequence of artifact versions."""

    key: ItemKey
    type: str
    collection: str
    description: str | None = None
    tags: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class ArtifactEntry:
    """An entry of a manifest. `path` is chosen by strangers: never join it to a folder without checking.
    `digest` is the base64 md5 of a file, or what the reference handler made; `extra` is JSON text."""

    path: str
    digest: str | None = None
    size: int | None = None
    ref: str | None = None
    birth_id: str | None = None
    extra: str | None = None
    sha256: str | None = None


def manifest_digest(entries: Iterable[tuple[str, str | None]]) -> str:
    """The digest of an artifact with these (path, digest) entries, in hex: the MD5 of a header line and a line
    `<path>:<digest>` for each, sorted by path (this is how W&B's SDK makes it, and what it sends along).

    >>> manifest_digest([])
    '64e7c61456b10382e2f3b571ac24b659'
    """
    hashed = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
    for path, digest in sorted(entries):
        hashed.update(f"{path}:{digest}\n".encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


@dataclass(frozen=True)
class ArtifactUse:
    """A run that used an artifact."""

    entity: str
    project: str
    run_id: str
    used_as: str | None = None


@dataclass(frozen=True)
class Artifact:
    """One version of a collection. `aliases` leave out the implicit `vN`. `entries` or `uses` of None mean
    that they were not asked for, and keep what is held."""

    key: ItemKey
    type: str
    collection: str
    version: int | None = None
    state: str | None = None
    digest: str | None = None
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    description: str | None = None
    metadata: str | None = None
    size: int | None = None
    file_count: int | None = None
    history_step: int | None = None
    ttl_seconds: int | None = None
    commit_hash: str | None = None
    manifest_sha256: str | None = None
    run_entity: str | None = None
    run_project: str | None = None
    run_id: str | None = None
    username: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    entries: Sequence[ArtifactEntry] | None = None
    uses: Sequence[ArtifactUse] | None = None


@dataclass(frozen=True)
class Report:
    """A report (W&B calls it a view). `spec` is the wire's JSON text."""

    key: ItemKey
    name: str
    type: str = "runs"
    title: str | None = None
    description: str | None = None
    spec: str | None = None
    username: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None


Item = Sweep | ArtifactCollection | Artifact | Report


@dataclass(frozen=True)
class Change:
    """Something that a sync saw change at the source: a row of `changes`. `rid` is None for projects; `field`,
    `before` and `after` say what was edited. Texts are short enough to be listed."""

    seen_at: datetime
    source: str
    entity: str
    project: str
    kind: str
    rid: int | None
    name: str
    change: str
    field: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Failure:
    """A run (or a whole project) that could not be fetched: a row of the quarantine."""

    key: RunKey
    stage: str
    error: str
    attempts: int
    next_try: datetime


@dataclass(frozen=True)
class SyncReport:
    """One sync of one project, as `mirror status` and the `sync_log` table tell it."""

    source: str
    entity: str
    project: str
    started_at: datetime
    finished_at: datetime
    outcome: str
    """`ok`, `partial` (something incomplete or quarantined), `unreachable` or `interrupted`."""
    runs_listed: int = 0
    runs_new: int = 0
    runs_changed: int = 0
    runs_gone: int = 0
    runs_failed: int = 0
    items_changed: int = 0
    rows: int = 0
    requests: int = 0
    bytes: int = 0
    message: str | None = None
    incomplete: Sequence[str] = field(default_factory=tuple)
