"""Runs that the mirror holds twice, from a log on disk and from a server that the log was sent to: shown as one.

Both stay as they are, each under its own rid, so each goes on being synced by itself. They are the same run if project,
run id and first rows agree (with their times, to the microsecond). Then the server's is the one that is shown, and a
stream of which the log has more (history, system metrics, console, files) is copied to it as a new generation; `origin`
says so. What the log has less of stays with the log's own rid, in the raw tables. Histories of which neither contains
the other are no copies of each other: both runs are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from mirror.errors import LockedError
from mirror.forks import point_of
from mirror.records import Fetched, Stream
from mirror.sources.offline.source import SOURCE
from mirror.store import Reader, Writer
from mirror.store.twins import Comparison, Held, candidates, state

_NAMED = 3


def merge(writer: Writer, source: str, entity: str, project: str, *, server: str | None = None) -> list[str]:
    """Show runs of a project once that logs and a server gave; returns what a user should know. To be called after a
    sync of either. `server` decides where several servers have a run. What has not changed is not looked at again."""
    writer.commit()
    found = candidates(writer.catalog, SOURCE, source, entity, project)
    found = [(log, others) for log, others in found if server or log.identity.judged != state(log, others)]
    if not found:
        return []
    with Reader(writer.layout.root) as reader:
        merging = _Merging(writer, Comparison(reader), server)
        for log, others in found:
            merging.judge(log, others)
    writer.commit()
    judged = {log.rid for log, _ in found} - merging.undecided
    with suppress(LockedError):  # then they are looked at once more
        for log, others in candidates(writer.catalog, SOURCE, source, entity, project):
            if log.rid in judged:
                writer.show(log.key, judged=state(log, others))
        writer.commit()
    return merging.notices.texts()


@dataclass
class _Notices:
    """`same` are paths of runs that are shown once, `taken` of those that got a stream from the log, by server."""

    same: dict[str, list[str]] = field(default_factory=dict)
    taken: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def texts(self) -> list[str]:
        texts = []
        for where, paths in self.same.items():
            text = f"{len(paths)} of these runs are mirrored from {where}, too ({_some(paths)}): they are shown once"
            for stream, names in self.taken.get(where, {}).items():
                text += f"; {_STREAMS[stream]} of {len(names)} ({_some(names)}) from the log, which has more"
            texts.append(text)
        return texts + self.others


_STREAMS = {"history": "the history", "system": "the system metrics", "logs": "the console", "files": "the files"}


class _Merging:
    """`undecided` are logs that could not be looked at."""

    def __init__(self, writer: Writer, compare: Comparison, server: str | None) -> None:
        self._writer = writer
        self._compare = compare
        self._server = server
        self.notices = _Notices()
        self.undecided: set[int] = set()

    def judge(self, log: Held, others: Sequence[Held]) -> None:
        """Find out of which run the log is a copy, and show both as it."""
        twin = self._twin(log, others)
        try:
            with ExitStack() as stack:
                for key in (held.key for held in (log, twin) if held is not None):
                    stack.enter_context(self._writer.lease(key.source, key.entity, key.project))
                if twin is not None:
                    self._merge(log, twin)
                elif log.identity.merged_into is not None:
                    self._writer.show(log.key, merged_into=None)
                self._writer.commit()
        except LockedError as e:
            self.undecided.add(log.rid)
            self.notices.others.append(f"`{log.key.path}`: its log is compared with the server's run next time: {e}")

    def _twin(self, log: Held, others: Sequence[Held]) -> Held | None:
        path, alike, unknown = log.key.path, list[Held](), list[Held]()
        for other in others:
            same = self._begins_alike(log, other)
            if same:
                alike.append(other)
            elif same is None:
                unknown.append(other)
            else:
                self.notices.others.append(
                    f"`{other.key.path}` from {other.key.source} has the id of a run of this folder, but other first "
                    "rows: they are kept as two runs, told apart by `source`"
                )
        for chosen in (
            [o for o in alike if o.rid == log.identity.merged_into and self._server is None],
            [o for o in alike if o.key.source == self._server] if self._server else [],
            alike,
            [o for o in alike if o.key.entity == log.key.entity],
        ):
            if len(chosen) == 1:
                return chosen[0]
        if alike:
            held = " and ".join(f"`{o.key.path}` from {o.key.source}" for o in alike)
            self.notices.others.append(
                f"the log of `{path}` may be that of {held}: it is kept apart; say which it is by syncing it "
                "with --base-url or --entity"
            )
        elif unknown:
            self.notices.others.append(
                f"`{unknown[0].key.path}` from {unknown[0].key.source} has the id of a run of this folder, but neither "
                "rows nor the times they were started at tell whether it is the same: they are kept as two runs"
            )
        return None

    def _begins_alike(self, log: Held, other: Held) -> bool | None:
        same = self._compare.begin_alike(log, other)
        if same is False and self._is_fork(log):  # a server puts the rows of the parent before those of the log
            same = self._compare.begin_alike(log, other, anywhere=True)
        if same is not None:
            return same
        started = [_started(self._compare.run(held)["config"]) for held in (log, other)]
        return started[0] == started[1] if all(started) else None

    def _is_fork(self, log: Held) -> bool:
        point = point_of(self._compare.run(log)["config"])
        return point is not None and point[0] != log.key.run_id

    # -- stream by stream ---------------------------------------------------------------------------------

    def _merge(self, log: Held, twin: Held) -> None:
        path, where = twin.key.path, twin.key.source
        lacks = (0, 0) if "history" in twin.origin else self._compare.lacking(log, twin, "history")
        if all(lacks):
            self.notices.others.append(
                f"`{path}` from {where} and its log contradict each other: {lacks[0]} rows are on the server alone, "
                f"{lacks[1]} in the log alone; they are kept as two runs, told apart by `source`"
            )
            self._writer.show(log.key, merged_into=None)
            return
        took = {
            "history": self._take_rows(log, twin, "history", lacks),
            "system": self._take_rows(log, twin, "system"),
            "logs": self._take_lines(log, twin),
            "files": self._take_files(log, twin),
        }
        taken = [stream for stream, done in took.items() if done]
        url = self._compare.run(log)["url"] or SOURCE
        origin = dict.fromkeys(taken, url)
        self._writer.show(twin.key, origin=json.dumps(origin) if origin else None)
        self._writer.show(log.key, merged_into=twin.rid)
        self.notices.same.setdefault(where, []).append(path)
        for stream in taken:
            self.notices.taken.setdefault(where, {}).setdefault(stream, []).append(path)

    def _take_rows(self, log: Held, twin: Held, stream: Stream, lacks: tuple[int, int] | None = None) -> bool:
        """Whether the rows of a stream are the log's; copies those that are not copied yet."""
        mine, theirs = log.state(stream), twin.state(stream)
        copied = stream in twin.origin
        if copied and (mine.rows, mine.last_fingerprint) == (theirs.rows, theirs.last_fingerprint):
            return True
        if not copied and not self._has_more(log, twin, stream, lacks):
            return False
        start = theirs.rows if copied and self._goes_on(log, twin, stream) else 0
        if copied and mine.rows < theirs.rows:
            return True  # the log was cut: what was copied from it is more
        if not start:
            self._writer.begin(twin.key, stream)
        for batch in self._compare.batches(log, stream, start, mine.rows):
            self._writer.append(twin.key, stream, batch)
        own = None if theirs.fetched is None else theirs.fetched.total if copied else theirs.rows
        read = mine.fetched or Fetched(stream, "log")
        note = None if own is None else f"from its log: the server had {own} rows when they were compared"
        note = "; ".join(filter(None, [read.note, note]))
        self._writer.publish(twin.key, stream, Fetched(
            stream, "log", got=mine.rows, total=own, complete=read.complete, note=note or None
        ))  # fmt: skip
        return True

    def _has_more(self, log: Held, twin: Held, stream: Stream, lacks: tuple[int, int] | None) -> bool:
        """Whether the log has all rows of a server's stream and more, or the same without losses."""
        if not log.rows(stream):
            return False
        server_only, log_only = lacks or self._compare.lacking(log, twin, stream)
        read = twin.state(stream).fetched
        if stream == "history" and log_only and not server_only and self._was_rewound(log, twin):
            return False
        return not server_only and (log_only > 0 or (read is not None and not read.lossless))

    def _goes_on(self, log: Held, twin: Held, stream: Stream) -> bool:
        """Whether what was copied is the beginning of what the log holds now."""
        theirs = twin.state(stream)
        if not 0 < theirs.rows < log.rows(stream):
            return False
        batch = next(self._compare.batches(log, stream, theirs.rows - 1, theirs.rows))
        return batch.last_fingerprint == theirs.last_fingerprint

    def _was_rewound(self, log: Held, twin: Held) -> bool:
        """Whether the server's run was taken back to an earlier step and the log does not know."""
        before, after = (point_of(self._compare.run(held)["config"]) for held in (log, twin))
        return after is not None and after != before and after[0] == twin.key.run_id

    def _take_lines(self, log: Held, twin: Held) -> bool:
        mine, theirs = log.rows("logs"), twin.rows("logs")
        copied = "logs" in twin.origin
        if copied and mine <= theirs:
            return True
        if not mine or (not copied and theirs and (mine <= theirs or self._compare.lacking_lines(log, twin)[0])):
            return False
        restart = not copied
        for lines in self._compare.lines(log):
            self._writer.put_logs(twin.key, lines, restart=restart)
            restart = False
        return True

    def _take_files(self, log: Held, twin: Held) -> bool:
        """The manifest with more names; files that are equal in both have their bytes in common."""
        mine, theirs = self._compare.files(log), self._compare.files(twin)
        names, held = {f.name for f in mine}, {f.name for f in theirs}
        if "files" in twin.origin or held < names:
            self._writer.put_files(twin.key, mine)
            return True
        bytes_of = {(f.name, f.size, f.md5): f.sha256 for f in mine if f.sha256}
        new = {
            f.name: replace(f, sha256=held_as)
            for f in theirs
            if not f.sha256 and (held_as := bytes_of.get((f.name, f.size, f.md5)))
        }
        if new:
            self._writer.put_blobs(twin.key, new)
        return False


def _own_config(config: dict[str, object]) -> dict[str, object]:
    """The SDK's own part of a config."""
    own = config.get("_wandb")
    value = own.get("value") if isinstance(own, dict) else None
    return value if isinstance(value, dict) else {}


def _started(config: dict[str, object]) -> list[str]:
    """When the SDK that logged a run says that it was started, for every process of it."""
    machines = _own_config(config).get("e")
    found = machines.values() if isinstance(machines, dict) else ()
    return sorted(str(m["startedAt"]) for m in found if isinstance(m, dict) and m.get("startedAt"))


def _some(paths: Sequence[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
