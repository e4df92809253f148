"""Logs on disk as a source of runs: several logs of one run follow each other, each is read on where it grew."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from mirror.errors import SourceError
from mirror.pool import Pool
from mirror.records import FileEntry, ItemKey, ListedRun, Listing, Project, RunKey
from mirror.sources.offline.folder import RunLog, find
from mirror.sources.offline.local import Staged, run_files, save
from mirror.sources.offline.manifest import version
from mirror.sources.offline.reading import RunReading
from mirror.sources.protocol import Finished, Step, Trouble, Wanted
from mirror.wandb.transport import Sink, Traffic

SOURCE = "offline"
"""The source of these runs, as it stands in the mirror, wherever their folders lie."""
DEFAULT_ENTITY, DEFAULT_PROJECT = "local", "uncategorized"
STILL_WRITTEN = 1800.0
"""Seconds without a change after which a log without an end is that of a crashed run. The SDK writes a log in
pieces of 32 KiB, which a quiet run takes long to fill."""
_COPIED_AT_ONCE = 2


class OfflineSource:
    """See `mirror.sources.protocol.Source`. `entity` and `project` replace what the logs say; `default_entity` is for
    logs that name none. `errors` are the logs that could not be read, `notices` what is to be said of the others."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        entity: str | None = None,
        project: str | None = None,
        default_entity: str | None = None,
        online: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.traffic = Traffic()
        found = find(list(paths), online=online)
        self.errors, self.notices = found.errors, found.notices
        self._clock = clock
        self._logs: dict[RunKey, list[RunLog]] = {}
        for log in found.logs:
            key = RunKey(
                SOURCE,
                # What the log says, so that a run keeps its identity under another entity or project.
                json.dumps([log.entity, log.project, log.run_id]),
                entity or log.entity or default_entity or DEFAULT_ENTITY,
                project or log.project or DEFAULT_PROJECT,
                log.run_id,
            )
            self._logs.setdefault(key, []).append(log)
        self._pool: Pool | None = None
        self.whole: str | None = None
        self._staged = Staged(lambda: [(log, key.storage_id) for key, logs in self._logs.items() for log in logs])

    @property
    def name(self) -> str:
        return SOURCE

    def places(self) -> list[Project]:
        """The projects that the logs belong to."""
        names = dict.fromkeys((key.entity, key.project) for key in self._logs)
        return [Project(SOURCE, *name) for name in names]

    def projects(self, entity: str) -> list[Project]:
        return [place for place in self.places() if place.entity == entity]

    def listing(
        self,
        entity: str,
        project: str,
        run_ids: Sequence[str] | None = None,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> Listing:
        """A folder holds some runs of a project: that others are not in it says nothing."""
        keys = [
            key
            for key in self._logs
            if (key.entity, key.project) == (entity, project) and (run_ids is None or key.run_id in run_ids)
        ]
        runs = [ListedRun(key, self._fingerprint(key)) for key in keys]
        return Listing(Project(SOURCE, entity, project), runs, complete=True, everything=False)

    def _fingerprint(self, key: RunKey) -> str:
        """Changes when a log or a file of the run does, and when a log has not grown for long."""
        seen = hashlib.blake2b(digest_size=12)
        for log in self._logs[key]:
            try:
                found = log.path.stat()
                state: list[object] = [found.st_size, found.st_mtime_ns, self._is_fresh(found)]
            except OSError as e:
                state = [str(e)]
            seen.update(f"{log.name}\0{state}\0{version(log.files)}\0".encode("utf-8", "replace"))
        return seen.hexdigest()

    def _is_fresh(self, found: os.stat_result) -> bool:
        return self._clock() - found.st_mtime < STILL_WRITTEN

    # -- bytes --------------------------------------------------------------------------------------------

    @property
    def downloads(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(_COPIED_AT_ONCE, "copy")
        return self._pool

    def addresses(
        self, owner: RunKey | ItemKey, wanted: Sequence[tuple[str, list[str]]]
    ) -> list[dict[str, tuple[str, FileEntry | None]] | None]:
        """None for runs and artifacts of other folders: what is not here is not gone."""
        found: list[dict[str, Path] | None]
        if isinstance(owner, ItemKey):
            found = self._staged.files(wanted)
        else:
            here = {k.run_id: logs for k, logs in self._logs.items() if (k.entity, k.project) == _place(owner)}
            found = [run_files(here[run_id], names) if run_id in here else None for run_id, names in wanted]
        return [None if some is None else {name: (str(path), None) for name, path in some.items()} for some in found]

    def save(self, url: str, out: Sink, *, resume: bool = False) -> None:
        self.traffic.count(nbytes=save(Path(url), out, resume=resume))

    # -- rows and the rest --------------------------------------------------------------------------------

    def fetch(self, wanted: Sequence[Wanted]) -> Iterator[Step]:
        for one in wanted:
            try:
                yield from self._fetch(one)
            except SourceError as e:
                yield Trouble(one.key, "documents", str(e))
                yield Finished(one.key)

    def _fetch(self, wanted: Wanted) -> Iterator[Step]:
        if wanted.glance and wanted.memo and wanted.history.proven and wanted.system.proven:
            yield Finished(wanted.key, wanted.listed.fingerprint, wanted.memo)
            return
        logs = self._logs[wanted.key]
        try:
            last = logs[-1].path.stat()
        except OSError as e:
            raise SourceError(f"`{logs[-1].path}` cannot be read: {e.strerror or e}", e) from e
        reading = RunReading(
            wanted,
            logs,
            running=self._is_fresh(last),
            heartbeat_at=datetime.fromtimestamp(last.st_mtime, timezone.utc),
        )
        yield from reading.steps()
        self.traffic.count(nbytes=reading.bytes)
        self.notices += reading.notices


def _place(key: RunKey) -> tuple[str, str]:
    return key.entity, key.project
