"""What a source of runs is, and the steps in which it hands over what it read.

A source lists what there is; `fetch` then yields, for runs that are wanted, steps that go into the store in
the order they come. The steps of one run are in order, those of different runs may be mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from mirror.pool import Pool
from mirror.records import Fetched, FileEntry, Item, ItemKey, ListedRun, Listing, Project, Run, RunKey, Stream
from mirror.sources.parts import ALL
from mirror.wandb.transport import Sink, Traffic


def _never(row: str) -> bool:
    return False


@dataclass(frozen=True)
class Held:
    """What the store holds of a stream of a run. `pending` rows are not visible yet: a fetch was interrupted.
    `proven` says that a fetch came to its end and found all there was. `is_last(row)` tells whether a row equals
    the last one held."""

    rows: int = 0
    last_step: int | None = None
    pending: bool = False
    proven: bool = False
    is_last: Callable[[str], bool] = field(default=_never, compare=False)


@dataclass(frozen=True)
class Wanted:
    """A run to fetch. `memo` is what the source noted when the run was last fetched (see `Finished`); `glance`
    says that its listing has not changed, so that what costs a request of its own may be left out. Only the parts
    in `what` are to be read (see `mirror.sources.parts`); `missing` are those not held as the listing shows the run.
    """

    listed: ListedRun
    history: Held = Held()
    system: Held = Held()
    logs: Held = Held()
    memo: str | None = None
    glance: bool = False
    what: frozenset[str] = ALL
    missing: frozenset[str] = frozenset()

    @property
    def key(self) -> RunKey:
        return self.listed.key

    @property
    def new_rows(self) -> int:
        """About how many rows there are to read, for sharing out work and for progress."""
        lines = self.listed.history_lines
        return max(0, lines - self.history.rows) if lines is not None else 1000


@dataclass(frozen=True)
class Document:
    """A run's attributes and documents. A run without `metadata` keeps the one that is held."""

    run: Run

    @property
    def key(self) -> RunKey:
        return self.run.key


@dataclass(frozen=True)
class Manifest:
    """All files of a run."""

    key: RunKey
    files: Sequence[FileEntry]


@dataclass(frozen=True)
class Items:
    """Artifacts and other things of a project that a run names."""

    key: RunKey
    items: Sequence[Item]


@dataclass(frozen=True)
class ConsoleLines:
    """Console lines (number, time, level, text) that follow those that are held, or with `restart` replace them.
    The texts of `raw` lines are as the SDK sent them, with time and level inside."""

    key: RunKey
    lines: Sequence[tuple[int, datetime | None, str | None, str]]
    restart: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Restart:
    """The rows that follow make a new generation of a stream: what is held is not their beginning."""

    key: RunKey
    stream: Stream = "history"


@dataclass(frozen=True)
class Rows:
    """Rows of a stream, as JSON texts. `paged` if the source gave them out by ranges of steps, so
    that their order is by step and only then as logged. `string_is_nonfinite` is for `cells.decode`."""

    key: RunKey
    rows: Sequence[str]
    paged: bool = False
    string_is_nonfinite: Callable[[str], bool] | None = field(default=None, compare=False)
    stream: Stream = "history"


class CellsLike(Protocol):
    """Rows that are cells already: how many, the highest step, the size in bytes."""

    @property
    def rows(self) -> int: ...

    @property
    def last_step(self) -> int | None: ...

    @property
    def nbytes(self) -> int: ...


class ExportLike(Protocol):
    """Export files that were opened (`mirror.store.exports.Export`): `rows` in all, read in the order of steps.
    `last_step` and `is_last` tell of the last row, once all batches were read."""

    @property
    def rows(self) -> int: ...

    @property
    def last_step(self) -> int | None: ...

    def batches(self) -> Iterator[CellsLike]: ...

    def is_last(self, row: str) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Cells:
    """Rows of the history that came as cells, out of an export."""

    key: RunKey
    cells: CellsLike


@dataclass(frozen=True)
class HistoryRead:
    """The history, or the stream that `fetched` names, was read to its end."""

    key: RunKey
    fetched: Fetched


@dataclass(frozen=True)
class SystemMetrics:
    """System metrics: everything the source gave out, which is everything it has if `fetched.complete`."""

    key: RunKey
    rows: Sequence[str]
    fetched: Fetched


@dataclass(frozen=True)
class Trouble:
    """A part of a run could not be read (`stage`: documents, files, history, system, logs). `doubtful` if the source
    may just be wrong about what it has, so that trying for ever would not help."""

    key: RunKey
    stage: str
    error: str
    doubtful: bool = False


@dataclass(frozen=True)
class Finished:
    """Nothing more comes of this run. `fingerprint` is what a listing would say of the run as it was read;
    `memo` is handed back with the next `Wanted`. `gone` if the run vanished after it was listed; `missing` are the
    parts that were left out."""

    key: RunKey
    fingerprint: str | None = None
    memo: str = ""
    gone: bool = False
    missing: frozenset[str] = frozenset()


Step: TypeAlias = (
    Document
    | Manifest
    | Items
    | ConsoleLines
    | Restart
    | Rows
    | Cells
    | HistoryRead
    | SystemMetrics
    | Trouble
    | Finished
)


class Source(Protocol):
    """A place runs are mirrored from. `name` is its canonical name, as it stands in the mirror."""

    @property
    def name(self) -> str: ...

    @property
    def traffic(self) -> Traffic:
        """What was asked and read so far."""
        ...

    def projects(self, entity: str) -> Iterable[Project]:
        """The projects of an entity that one may see."""
        ...

    def listing(
        self,
        entity: str,
        project: str,
        run_ids: Sequence[str] | None = None,
        progress: Callable[[int, int | None], None] = ...,
    ) -> Listing:
        """The runs of a project, all or those named."""
        ...

    def fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        """Read these runs, all of one project. Called from several threads at once."""
        ...


@runtime_checkable
class HasBytes(Source, Protocol):
    """A source that gives out the bytes of files, too."""

    @property
    def downloads(self) -> Pool: ...

    def addresses(
        self, owner: RunKey | ItemKey, wanted: Sequence[tuple[str, list[str]]]
    ) -> Sequence[dict[str, tuple[str, FileEntry | None]] | None]:
        """For each (run id, names) or, if `owner` is an artifact, (storage id, names): addresses by name, each with the
        entry as it is now, where that is told. What is not there is left out; None for an owner that is none of this
        source's to tell of."""
        ...

    def save(self, url: str, out: Sink, *, resume: bool = False) -> None:
        """Write what is behind an address to `out`; with `resume` only what follows the bytes it has."""
        ...
