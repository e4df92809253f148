"""History exports: Parquet files of runs that have ended, made when somebody asks for them.

    ROOT/exports/<rid>/<generation>-<rows>/0.parquet, 1.parquet, ...

W&B exports the history of a run some hours after it has ended; a client then reads the files, and what a resumed run
has logged since from the server. An export is named by what it holds, so a cached one is either exactly the run as it
was at that row or it is not used; it can be deleted at any time and is made again. A read-only server keeps its
exports in a temporary folder.
"""

from __future__ import annotations

import heapq
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import NotFoundError
from mirror.server.history import export_file
from mirror.server.history import reading as history
from mirror.server.index import Place
from mirror.server.live import ENDED
from mirror.server.look import Found, Look
from mirror.server.rows import parse_row
from mirror.store.disk import explained, sync_folder

if TYPE_CHECKING:
    from mirror.server.home import Home

KEPT_BYTES = 2 << 30
"""Exports that are kept; the ones used longest ago go first."""

_PATIENCE = 20.0  # seconds a client waits for an export before it is told that there is none yet
_IN_USE = 3600.0  # seconds after its last use in which an export is not deleted: somebody may be reading it
_LIVE_ROWS = 10_000  # rows of `liveData` at most, those of the lowest steps: clients look for the lowest one


_AGENT = re.compile(r"W&B Public Client (\d+)\.(\d+)\.(\d+)")


def reads_exports(agent: str, operation: str) -> bool:
    """Whether a query for rows comes from a scan that reads the run's export, too.

    W&B's SDK does so since 0.27.1. Where a run was resumed after its export, it asks for the rows of every range of
    steps that reaches into the live ones, puts the exported rows of the range before them and takes no doubles out.
    """
    found = _AGENT.match(agent)
    return (
        operation in ("HistoryPage", "SampledHistoryPage")
        and found is not None
        and tuple(map(int, found.groups())) >= (0, 27, 1)
    )


class Exports:
    """The exports of one served mirror. `after` is the seconds between a run's end and its export; None is never."""

    def __init__(self, home: Home, after: float | None) -> None:
        self._home = home
        self._after = after
        apart = home.read_only and after is not None
        self._temporary = tempfile.TemporaryDirectory(prefix="mirror-exports-") if apart else None
        self._folder = Path(self._temporary.name) if self._temporary else home.layout.exports
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="exports")
        self._making: dict[Path, Future[bool]] = {}
        self._lock = threading.Lock()
        if not home.read_only:
            for leftover in self._folder.glob("*/*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._forget_deleted()

    def close(self) -> None:
        self._maker.shutdown(cancel_futures=True)
        if self._temporary:
            self._temporary.cleanup()

    # -- asking -------------------------------------------------------------------------------------------

    def of(self, look: Look, found: Found, keys: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
        """URL paths of the run's export, in no certain order, and its rows since with these keys only.

        Nothing at all says that there is no export: the client then asks for the rows themselves.
        """
        if self._after is None:
            return [], []
        if found.live:
            return self._of_resumed(found, keys)
        assert found.stored
        place = found.stored.place
        if not self._due(found) or not (folder := self._ready(place)):
            return [], []
        return self._paths(place.rid, folder), []

    def _due(self, found: Found) -> bool:
        end = found.run.heartbeat_at or found.run.updated_at
        return found.run.state in ENDED and (not self._after or not end or end.timestamp() + self._after <= time.time())

    def _of_resumed(self, found: Found, keys: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
        """What was exported before the run went on is still there, as long as it is the same run."""
        shelf, lines = history.settled(self._home, found.rid, "history")
        place = shelf.index.get(found.rid)
        rows = self._held(place)
        if place is None or not rows:
            return [], []
        stored = history.read(shelf, place, "history", f"row >= {rows}", keys)
        live = heapq.nsmallest(_LIVE_ROWS, _reduced([*stored, *lines], keys), key=_step)
        return self._paths(place.rid, self._place(place, rows)), live

    def rows_of_resumed(self, found: Found) -> int:
        """Rows of a live run that are in its export."""
        return self._held(self._home.shelves.newest().index.get(found.rid)) if self._after is not None else 0

    def _held(self, place: Place | None) -> int:
        """Rows of the largest export that is there of the run's live generation."""
        if place is None:
            return 0
        folders = (self._folder / str(place.rid)).glob(f"{place.history_gen}-*")
        held = [int(rows) for folder in folders if (rows := folder.name.partition("-")[2]).isdigit()]
        return max((rows for rows in held if rows <= place.history_rows), default=0)

    def _place(self, place: Place, rows: int) -> Path:
        return self._folder / str(place.rid) / f"{place.history_gen}-{rows}"

    def _paths(self, rid: int, folder: Path) -> list[str]:
        # Use keeps an export from being deleted.
        os.utime(folder)
        names = sorted(path.name for path in folder.glob("*.parquet"))
        return [f"/exports/{rid}/{folder.name}/{name}" for name in random.sample(names, len(names))]

    def file(self, rid: int, held: str, name: str) -> Path:
        """A file by the parts of its URL path; made again if it was deleted meanwhile."""
        place = self._home.shelves.newest().index.get(rid)
        gen, _, rows = held.partition("-")
        number = name.removesuffix(".parquet")
        if place and self._after is not None and all(p.isascii() and p.isdigit() for p in (gen, rows, number)):
            folder = self._place(place, int(rows))
            current = int(gen) == place.history_gen and int(rows) <= place.history_rows
            if current and (folder.is_dir() or (int(rows) == place.history_rows and self._ready(place))):
                path = folder / f"{int(number)}.parquet"
                if path.exists():
                    os.utime(folder)
                    return path
        raise NotFoundError("there is no such export any more: ask for the run's `parquetHistory` again")

    # -- making -------------------------------------------------------------------------------------------

    def _ready(self, place: Place) -> Path | None:
        """The folder of the run's export, made now if need be; None if that takes long or cannot be done."""
        folder = self._place(place, place.history_rows)
        with self._lock:
            if folder.is_dir():
                return folder
            making = self._making.get(folder)
            if making is None:
                making = self._making[folder] = self._maker.submit(self._make, place, folder)
                making.add_done_callback(lambda _: self._making.pop(folder, None))
        try:
            return folder if making.result(_PATIENCE) else None
        except StillRunning:
            return None
        except Exception as exc:
            print(f"the history of run {place.key.path!r} could not be exported: {exc}", file=sys.stderr)
            return None

    def _make(self, place: Place, folder: Path) -> bool:
        shelf = self._home.shelves.newest()
        cells = shelf.cells(place, "history")
        with explained("exporting a history"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(suffix=".tmp", dir=folder.parent, ignore_cleanup_errors=True) as made:
                made_folder = Path(made)
                if export_file.write(shelf.connect(), cells, place.history_rows, made_folder) is None:
                    return False
                for path in made_folder.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(made_folder)
                made_folder.rename(folder)
            sync_folder(folder.parent)
        self._vacuum(folder)
        self._forget_deleted()
        return True

    def _forget_deleted(self) -> None:
        """Delete the exports of runs that are not there any more."""
        runs = self._home.shelves.newest().index
        for folder in self._folder.glob("*"):
            if folder.name.isdigit() and runs.get(int(folder.name)) is None:
                shutil.rmtree(folder, ignore_errors=True)

    def _vacuum(self, made: Path) -> None:
        """Delete what was replaced or is more than is kept."""
        for other in made.parent.iterdir():
            if other != made and not other.name.startswith(made.name.partition("-")[0] + "-"):
                shutil.rmtree(other, ignore_errors=True)  # an earlier generation
        exports = sorted((folder.stat().st_mtime, folder) for folder in self._folder.glob("*/*-*"))
        sizes = {folder: sum(path.stat().st_size for path in folder.iterdir()) for _, folder in exports}
        total = sum(sizes.values())
        for used, folder in exports:
            if total <= KEPT_BYTES or time.time() - used < _IN_USE:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def _reduced(lines: list[str], keys: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        row = parse_row(line)
        if found := {key: row[key] for key in keys if key in row}:
            yield found


def _step(row: dict[str, Any]) -> float:
    step = row.get("_step")
    return step if isinstance(step, (int, float)) else float("inf")
