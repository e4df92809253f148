"""One mirrored run to one place on a W&B server: made or continued."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.importers.account import Account
from mirror.importers.arrival import SentRun
from mirror.importers.files import RunFiles
from mirror.importers.origin import CONFIG_KEY, origin_of, with_origin
from mirror.importers.outgoing import Diverged, Lines, Streams, config_of, gathered, streams_of, version_of
from mirror.importers.places import Namespace
from mirror.importers.references import Leading, OfRun
from mirror.importers.together import NOTHING, Ready
from mirror.query.origin import git, metadata
from mirror.query.sql import asking, dicts
from mirror.query.text import safe
from mirror.records import RunKey
from mirror.wandb.documents import fetch_files
from mirror.wandb.filestream import LONGEST_LINE, FileStream, OffsetConflict
from mirror.wandb.held import HeldRun, held_run, held_runs
from mirror.wandb.mutations import Bucket, DeletedRunId, upsert_run
from mirror.wandb.transport import LONG, Patience, RefusedQuery

if TYPE_CHECKING:
    from mirror.store import Reader
    from mirror.wandb.client import Client

_CONFLICTS = 5
_LOG_LINES = 20_000
_BEYOND_BMP = re.compile("[\U00010000-\U0010ffff]")
_SAME = ("_step", "_timestamp", "_runtime")
"""What tells rows apart; other values some servers write anew (2.0 as 2)."""


@dataclass
class Destination:
    """A server that was opened for writing. `sweeps` maps (source, entity, project, sweep id) to the ids of the copies
    there; `deleted_suffix` is put behind run ids that were used up there; `username` is whose key it is."""

    client: Client
    username: str | None = None
    deleted_suffix: str | None = None
    sweeps: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    patience: Patience = LONG
    leading: Leading | None = None


VERSIONS = (
    "source", "storage_id", "gen", "history_gen", "history_rows", "system_gen", "system_rows", "files_gen", "logs_gen",
    "logs_rows",
)  # fmt: skip


@dataclass(frozen=True)
class MirroredRun:
    """A run of the mirror: its row of `runs_raw`."""

    row: Mapping[str, Any]

    def __repr__(self) -> str:
        return safe(f"<MirroredRun {self.path}>")

    @property
    def rid(self) -> int:
        return int(self.row["rid"])

    @property
    def path(self) -> str:
        return f"{self.row['entity']}/{self.row['project']}/{self.row['run_id']}"

    @property
    def namespace(self) -> Namespace:
        return Namespace(self.row["entity"], self.row["project"])

    def fingerprint(self) -> str:
        """32 hex digits that change whenever anything of the run does that could be sent."""
        text = "|".join(str(self.row[name]) for name in VERSIONS)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def mirrored_runs(reader: Reader, rids: Sequence[int]) -> list[MirroredRun]:
    """These runs with their documents, in this order."""
    with asking(reader) as connection:
        cursor = connection.execute("select * from runs_raw where rid in (select unnest(?::bigint[]))", [list(rids)])
        found = {row["rid"]: row for row in dicts(cursor)}
    return [MirroredRun(found[rid]) for rid in rids]


def listed_runs(reader: Reader, rids: Sequence[int]) -> list[MirroredRun]:
    """These runs without their documents, by project and time."""
    columns = ", ".join(("rid", "entity", "project", "run_id", *VERSIONS))
    with asking(reader) as connection:
        found = connection.execute(
            f"select {columns} from runs_raw where rid in (select unnest(?::bigint[])) "
            "order by source, entity, project, created_at, rid",
            [list(rids)],
        )
        return [MirroredRun(row) for row in dicts(found)]


def push_run(
    reader: Reader,
    run: MirroredRun,
    there: Destination,
    place: Namespace,
    account: Account,
    sent: Callable[[int], None] = lambda rows: None,
    *,
    ready: Ready = NOTHING,
    new: bool = False,
) -> SentRun:
    """Send a run and note in `account` what became of it, but for whether it arrived: that is to be seen of what is
    returned. Goes on where an earlier try stopped; `sent` is told of rows; `ready` is what was read of the run before,
    `new` says that the destination was just found to hold no such run.

    Raises a SourceError if the destination cannot be written, Diverged if what it holds is not this run.
    """
    for tries_left in reversed(range(_CONFLICTS)):
        account.notes.clear()
        account.counts.clear()
        try:
            return _push(reader, run, there, place, account, sent, ready, new)
        except OffsetConflict:
            new = False
            if not tries_left:
                raise
    raise AssertionError  # the last try returned or raised


def _push(
    reader: Reader,
    run: MirroredRun,
    there: Destination,
    place: Namespace,
    account: Account,
    sent: Callable[[int], None],
    ready: Ready,
    new: bool,
) -> SentRun:
    row, client = run.row, there.client
    bucket, held = _opened(run, there, place, account, new)
    entity, project, run_id = place.entity, place.project, bucket.run_id
    account.destination = f"{entity}/{project}/{run_id}"
    key = RunKey(client.source, bucket.storage_id, entity, project, run_id)
    files = RunFiles(reader, run.rid, row["metadata"], ready.files)
    listed = {} if held is None or not files.sent else {f.name: f for f in fetch_files(client, key).files}
    uploaded = files.send(client, key, listed, account, there.patience)

    leads = there.leading.of_run(row["source"], run.namespace) if there.leading else None
    streams = streams_of(reader, row, client, key, held, ready)
    offsets = (held.history, held.system or 0) if held else (0, 0)
    stream = FileStream(
        client.transport, entity, project, run_id, {"history": offsets[0], "system": offsets[1], "logs": 0},
        patience=there.patience,
    )  # fmt: skip
    for lines in _following(streams.history, held, streams.rows, account.destination):
        stream.write("history", leads.lines(lines) if leads else lines)
        sent(len(lines))
    if streams.samples < offsets[1]:
        raise Diverged(_beyond(account.destination, "system metrics", offsets[1], streams.samples))
    for lines in streams.system.parts(offsets[1]) if streams.samples > offsets[1] else ():
        stream.write("system", lines)
    for lines in _console(reader, run):
        stream.write("logs", lines)
    summary = row["summary_raw"]
    _summary(client, bucket, stream, leads.text(summary) if leads and summary else summary)
    if uploaded:
        stream.uploaded(uploaded)
    _end(stream, row)
    _state(client, key, row, account)
    _notes(run, there, account, streams, leads)
    points = row["history_rows"] if gathered(row) else None
    return SentRun(key, streams.rows, streams.samples, row["logs_rows"] or 0, files, account, points)


# -- making it ------------------------------------------------------------------------------------------------


def _opened(
    run: MirroredRun, there: Destination, place: Namespace, account: Account, new: bool
) -> tuple[Bucket, HeldRun | None]:
    """The run at the destination, made if it is new, with its documents; and what it held before."""
    run_id = str(run.row["run_id"])
    try:
        return _upserted(run, there, place, run_id, account, new)
    except DeletedRunId:
        if not there.deleted_suffix:
            raise
    renamed = run_id + there.deleted_suffix
    account.changed("run id", f"`{run_id}` was deleted there once, so the run is `{renamed}`")
    return _upserted(run, there, place, renamed, account, False)


def _upserted(
    run: MirroredRun, there: Destination, place: Namespace, run_id: str, account: Account, new: bool
) -> tuple[Bucket, HeldRun | None]:
    row = run.row
    held = None if new else held_run(there.client, place.entity, place.project, run_id)
    _check_same(held, run, f"{place.path}/{run_id}")
    document = metadata(row["metadata"])
    texts = {
        "displayName": row["name"], "notes": row["notes"] or (None if held is None else ""),
        "description": row["description"], "groupName": row["group"], "jobType": row["job_type"],
    }  # fmt: skip
    fields: dict[str, Any] = {
        "tags": list(row["tags"] or ()) or (None if held is None else []),
        "commit": row["commit"], "host": row["host"], "sweep": _sweep(run, there, account),
        "jobProgram": document.get("program") if isinstance(document.get("program"), str) else None,
        "jobRepo": git(document)[0],
    }  # fmt: skip

    def upserted(replaced: Mapping[str, str]) -> Bucket:
        return upsert_run(
            there.client,
            entity=place.entity,
            project=place.project,
            run_id=run_id,
            config=with_origin(config_of(row), row, replaced, version_of(row, held)),
            **fields,
            **{name: _BEYOND_BMP.sub("\ufffd", text) if name in replaced else text for name, text in texts.items()},
        )

    try:
        return upserted({}), held
    except DeletedRunId:
        raise
    except RefusedQuery:
        # Some servers keep names in columns that hold no emoji.
        odd = {name: text for name, text in texts.items() if text and _BEYOND_BMP.search(text)}
        if not odd:
            raise
        bucket = upserted(odd)
        for name in odd:
            account.changed(name, f"the server takes no characters beyond U+FFFF; it is kept in `{CONFIG_KEY}.{name}`")
        return bucket, held


def _check_same(held: HeldRun | None, run: MirroredRun, path: str) -> None:
    origin = origin_of(held.config) if held else {}
    if origin and (origin.get("source"), origin.get("storage_id")) != (run.row["source"], run.row["storage_id"]):
        raise Diverged(
            f"`{path}` is a copy of `{origin.get('path')}` from `{origin.get('source')}`, not of `{run.path}`: "
            "send the project somewhere else (--remap), or delete the run there"
        )
    if held and held.history and gathered(run.row) and not origin:
        raise Diverged(
            f"`{path}` is there already, and not by this importer: delete it there (and send `{run.path}` with "
            "--deleted-suffix), or send the project somewhere else (--remap)"
        )


def _sweep(run: MirroredRun, there: Destination, account: Account) -> str | None:
    row = run.row
    if not row["sweep"]:
        return None
    copy = there.sweeps.get((row["source"], row["entity"], row["project"], row["sweep"]))
    if copy is None:
        account.lost("sweep", f"the mirror does not hold sweep `{row['sweep']}`; its id is kept in `{CONFIG_KEY}`")
    elif copy != row["sweep"]:
        account.changed("sweep", f"`{row['sweep']}` is `{copy}` there")
    return copy


# -- its streams ----------------------------------------------------------------------------------------------


def _following(lines: Lines, held: HeldRun | None, rows: int, path: str) -> Iterator[list[str]]:
    """The lines of history that the destination lacks. Raises Diverged if its last one is another than ours."""
    count = held.history if held else 0
    if count > rows:
        raise Diverged(_beyond(path, "rows of history", count, rows))
    if not count:
        yield from lines.parts(0) if rows else ()
        return
    from mirror.store.jsontext import parse_plainly

    first = True
    for part in lines.parts(count - 1):
        if first and held and held.last_row is not None:
            ours = parse_plainly(part[0])
            other = [name for name in _SAME if name in held.last_row and held.last_row[name] != ours.get(name)]
            if other:
                raise Diverged(
                    f"row {count - 1} of `{path}` has {other[0]} `{held.last_row[other[0]]}`, in the mirror it has "
                    f"`{ours.get(other[0])}`: another run, or one that was rewound since; delete it there, or send the "
                    "project somewhere else (--remap)"
                )
        if len(part) > first:
            yield part[first:]
        first = False


def _beyond(path: str, what: str, there: int, here: int) -> str:
    return (
        f"`{path}` holds {there} {what}, the mirror {here}: sync the mirror first; if the run was rewound or is "
        "another one, delete it there or send the project somewhere else (--remap)"
    )


def _console(reader: Reader, run: MirroredRun) -> Iterator[list[str]]:
    """Console lines as the SDK sends them to servers that keep time and level of a line."""
    import orjson

    gen, start = run.row["logs_gen"], 0
    while start < (run.row["logs_rows"] or 0):
        with asking(reader) as connection:
            found = connection.execute(
                f"select line, ts, level, text from {reader.relation('logs', run.rid)} "
                "where gen = ? and line >= ? and line < ? order by line",
                [gen, start, start + _LOG_LINES],
            ).fetchall()
        lines = [""] * max((line - start + 1 for line, *_ in found), default=0)
        for line, ts, level, text in found:
            plain = text
            if ts is not None:
                at = ts.isoformat().replace("+00:00", "")
                plain = orjson.dumps({"level": level, "ts": at, "content": text}).decode()
            lines[line - start] = plain if len(plain) * 4 <= LONGEST_LINE else _cut(plain)
        yield lines
        start += _LOG_LINES


def _cut(line: str) -> str:
    return line.encode()[:LONGEST_LINE].decode("utf-8", "ignore")


def _summary(client: Client, bucket: Bucket, stream: FileStream, text: str | None) -> None:
    if not text:
        return
    if len(text) * 4 <= LONGEST_LINE or len(text.encode()) <= LONGEST_LINE:
        stream.summary(text)
    else:
        upsert_run(client, storage_id=bucket.storage_id, summaryMetrics=text)


def _end(stream: FileStream, row: Mapping[str, Any]) -> None:
    """Finish the run as it ended, as far as an exit code can say it."""
    state, code = row["state"], row["exit_code"]
    if state in ("finished", None):
        stream.finish(0)
    elif state in ("failed", "killed"):
        stream.finish(code or 1)
    elif state == "preempted":
        stream.preempting()
        stream.finish(code or 1)
    else:
        stream.flush()


def _state(client: Client, key: RunKey, row: Mapping[str, Any], account: Account) -> None:
    """Have the server take the state that no exit code says. W&B's API has an argument for it and does not say what it
    may be, so a server is believed if it shows the state then, and nothing else is."""
    state = row["state"]
    if state in ("finished", "failed", None):
        return
    if state == "running":
        account.changed("state", "`running` becomes `crashed` there when the server misses heartbeats")
        return

    def shown() -> str | None:
        found = held_runs(client, key.entity, key.project, [key.run_id])[key.run_id]
        return found.state if found else None

    if shown() == state:
        return
    with suppress(RefusedQuery):
        upsert_run(client, storage_id=key.storage_id, state=state)
    if (there := shown()) != state:
        then = ", and `crashed` when the server misses heartbeats" if there == "running" else ""
        account.changed("state", f"the server does not take `{state}`: the run is `{there}` there{then}")


# -- the account ----------------------------------------------------------------------------------------------


def _notes(run: MirroredRun, there: Destination, account: Account, streams: Streams, leads: OfRun | None) -> None:
    row, history, system = run.row, streams.history, streams.system
    if row["created_at"]:
        account.changed("created", f"it was made at {row['created_at']:%Y-%m-%d %H:%M:%S} UTC")
    if row["username"] and row["username"] != there.username:
        account.changed("user", f"`{row['username']}` made it; the copy belongs to `{there.username}`")
    if row["name"] is None:
        account.changed("name", "nobody named the run: the server shows its id, or makes a name up")
    if moved := history.shifted(row["history_rows"]):
        account.changed("steps", "rows whose step was not above that of the row before have the next free one", moved)
    if long := history.shortened + system.shortened:
        account.lost("long values", f"values in lines of more than {LONGEST_LINE} bytes", long)
    if not row["history_complete"]:
        account.lost("history", f"the mirror holds {row['history_rows']} of {row['history_total']} rows: sync it again")
    elif not row["history_lossless"]:
        account.changed("history", row["history_note"] or "the mirror read it by a road that is not exact")
    if leads and leads.led:
        account.changed("references", "media lead to copies of artifacts (wandb-client-artifact://)", leads.led)
    if leads and leads.left:
        account.lost("references", "media name artifacts that are not at the destination", leads.left)
    if row["system_sampled"]:
        got, total = row["system_rows"], row["system_total"]
        account.lost("system metrics", f"the source gave {got} of {total} rows", max(1, (total or 0) - got))
