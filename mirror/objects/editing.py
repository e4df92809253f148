"""Edits of runs, for `Api(online=True)`: the server is written, read back, and the mirror follows in the same call.

Only what was changed here is written, over what the server holds at that moment: whatever else stands there, W&B's own
keys, NaN and long integers included, goes back as it came. If the server holds another value than the one that was
changed here, somebody else was quicker: nothing is written then. The mirror changes last, and only to what the server
says it holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, NotFoundError, SourceError, TerminalSourceError
from mirror.objects.attrs import ArgumentError
from mirror.objects.online import client_of
from mirror.records import FileEntry, RunKey
from mirror.store import Writer, jsontext
from mirror.store.blobs import incoming
from mirror.store.documents import INTERNAL_KEYS
from mirror.wandb.client import Client
from mirror.wandb.documents import Manifest, RunDocuments, fetch_documents, fetch_files, find_manifest
from mirror.wandb.mutations import delete_files, delete_run, internal_project_id, upsert_run
from mirror.wandb.uploads import Upload, mark_uploaded, upload_files

if TYPE_CHECKING:
    from mirror.objects.files import File
    from mirror.objects.run import Run

_FIELDS = {
    "name": "displayName", "notes": "notes", "description": "description", "tags": "tags", "group": "groupName",
    "job_type": "jobType",
}  # fmt: skip
"""Attributes that can be set, and what `upsertBucket` calls them."""
_SHOWN_AFTER = 5.0
"""Seconds that a server may take to list a file it was sent."""

Document = dict[str, Any]
"""A JSON object read exactly."""


class ConflictError(MirrorError):
    """The server was changed since the mirror last looked; nothing was written."""


@dataclass
class Changes:
    """What is to be written: attributes, and top-level keys of the documents; a value of `GONE` removes the key.
    `seen` is what each of them was when it was changed."""

    attributes: dict[str, Any] = field(default_factory=dict)
    config: Document = field(default_factory=dict)
    summary: Document = field(default_factory=dict)
    seen: dict[tuple[str, str], Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.attributes or self.config or self.summary)


class _Gone:
    def __repr__(self) -> str:
        return "nothing"


GONE = _Gone()


def difference(
    kind: str, held: str | None, before: Mapping[str, Any], after: Mapping[str, Any], changes: Changes
) -> None:
    """Add the keys of a document (`config` or `summary`) that are not as they were shown to the changes. `held` is the
    document as the mirror holds it. Values are taken as W&B's SDK takes them: objects that say how they are logged,
    numpy's numbers and arrays. Raises ArgumentError for others."""
    found = changes.config if kind == "config" else changes.summary
    exact: Document | None = None
    for key in {**before, **after}:
        if key in before and key in after and before[key] is after[key]:
            continue
        if not isinstance(key, str):
            raise ArgumentError(f"`{kind}` has the key `{key!r}`: keys are texts")
        was, new = (encoded(side[key], f"{kind}[{key!r}]") if key in side else GONE for side in (before, after))
        if not _same(was, new):
            exact = _exactly(held, wrapped=kind == "config") if exact is None else exact
            found[key] = new
            changes.seen[(kind, key)] = exact.get(key, GONE)


def encoded(value: Any, where: str) -> Any:
    """A value as JSON has it."""
    if isinstance(value, jsontext.Number) or value is None or isinstance(value, (str, bool, float)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else jsontext.Number(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentError(f"`{where}` has the key `{key!r}`: keys are texts")
        return {key: encoded(inner, f"{where}[{key!r}]") for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [encoded(inner, where) for inner in value]
    if callable(as_json := getattr(value, "to_json", None)):
        try:
            return encoded(as_json(), where)
        except TypeError:  # wandb's objects want the run they are logged to
            return encoded(as_json(None), where)
    if callable(listed := getattr(value, "tolist", None)):  # numpy's numbers and arrays
        return encoded(listed(), where)
    raise ArgumentError(f"`{where}` cannot be written: a {type(value).__name__} is nothing that JSON has")


# -- one edit -------------------------------------------------------------------------------------------------


@contextmanager
def _editing(run: Run) -> Iterator[tuple[Client, Writer, RunKey]]:
    """The run's server, open for writing, and the mirror, held so that no sync of the project runs meanwhile.

    Raises LockedError, before anything is written, if one does."""
    key = RunKey(run.source, run.storage_id, run.entity, run.project, run.id)
    client = client_of(run._held, run.source, writable=True)
    try:
        root = run._held.reader.layout.root
        with Writer(root, create=False) as writer, writer.lease(key.source, key.entity, key.project):
            yield client, writer, key
    finally:
        client.transport.close()
        run._look_again()


def write(run: Run, changes: Changes) -> None:
    """Write the changes of a run. Raises ConflictError, NotFoundError if the run is gone at its server, SourceError if
    the server refuses them; the mirror stays as it is then."""
    with _editing(run) as (client, writer, key):
        current = _documents(client, key)
        fields = _fields(key, current, changes)
        if fields:
            upsert_run(client, storage_id=key.storage_id, **fields)
            current = _documents(client, key)
            _check(client, key, fields, current)
        writer.put_run(current.run)


def remove_run(run: Run, *, delete_artifacts: bool) -> None:
    """Delete a run at its server; the mirror keeps what it holds and says that the original is gone."""
    with _editing(run) as (client, writer, key):
        _documents(client, key)
        delete_run(client, key.storage_id, delete_artifacts=delete_artifacts)
        found, _ = fetch_documents(client, key.entity, key.project, [key.run_id])
        if found[0] is not None and found[0].run.key.storage_id == key.storage_id:
            raise TerminalSourceError(f"`{client.source}` said that it deleted {key.path}, and still has it")
        writer.tombstone(key)


def remove_files(run: Run, files: list[File]) -> None:
    """Delete files of a run at its server, and from the mirror's list of them."""
    with _editing(run) as (client, writer, key):
        before = _manifest(client, key)
        there = {one.name: one.storage_id for one in before.files}
        ids = [str(there[one.name]) for one in files if there.get(one.name) is not None]
        if ids:
            delete_files(client, ids, internal_project_id(client, key.entity, key.project))
        after = _manifest(client, key)
        if left := {one.name for one in files} & {one.name for one in after.files}:
            raise TerminalSourceError(f"`{client.source}` said that it deleted `{min(left)}`, and still lists it")
        writer.put_files(key, after.files)


def add_file(run: Run, path: Path, name: str) -> None:
    """Upload a file of a run; the mirror holds its bytes, too."""
    with _editing(run) as (client, writer, key):
        _documents(client, key)
        with incoming(writer.layout.blobs) as place:
            try:
                with path.open("rb") as file:
                    while chunk := file.read(1 << 20):
                        place.write(chunk)
            except OSError as e:
                raise ArgumentError(f"`{path}` cannot be read ({e.strerror}): name a file") from e
            blob = place.keep()
        refused = upload_files(client, key.entity, key.project, key.run_id, [Upload(name, path)])
        if refused:
            raise TerminalSourceError(f"`{client.source}` did not take `{name}`: {refused[name]}")
        mark_uploaded(client, key.entity, key.project, key.run_id, [name])
        _wait_for(client, key, name, blob.md5)
        manifest = _manifest(client, key)
        entries = [replace(one, sha256=blob.sha256) if one.name == name else one for one in manifest.files]
        writer.put_files(key, entries)


def _wait_for(client: Client, key: RunKey, name: str, md5: str) -> FileEntry:
    """The file as the server lists it; some list one a moment after it was sent."""
    end = time.monotonic() + _SHOWN_AFTER
    while True:
        listed = find_manifest(client, key.entity, key.project, key.run_id, [name]).files
        for one in listed:
            if one.name == name and one.md5 in (None, md5):
                return one
        if time.monotonic() > end:
            what = "another content" if listed else "no such file"
            raise TerminalSourceError(f"`{client.source}` took `{name}` and lists {what}: look at the run there")
        time.sleep(0.2)


# -- what the server holds ------------------------------------------------------------------------------------


def _documents(client: Client, key: RunKey) -> RunDocuments:
    """The run as it is at its server now. Raises NotFoundError."""
    found, _ = fetch_documents(client, key.entity, key.project, [key.run_id])
    if found[0] is None or found[0].run.key.storage_id != key.storage_id:
        raise NotFoundError(
            f"`{client.source}` has no run {key.path} any more, or shows it to others only: nothing was written"
        )
    return found[0]


def _manifest(client: Client, key: RunKey) -> Manifest:
    first = _documents(client, key).manifest
    return first if first.next_page is None else fetch_files(client, key, first)


def _fields(key: RunKey, current: RunDocuments, changes: Changes) -> dict[str, Any]:
    """What to send: the changes over what the server holds. Raises ConflictError."""
    fields: dict[str, Any] = {}
    for name, value in changes.attributes.items():
        there = _plain(getattr(current.run, name))
        if there != _plain(value):
            _agree(key, name, changes.seen[("attribute", name)], there)
            fields[_FIELDS[name]] = list(value) if name == "tags" else value or ""
    if changes.config:
        document = _read(key, "config", current.run.config)
        if _apply(key, "config", document, changes.config, changes.seen, wrapped=True):
            fields["config"] = jsontext.write(document, True)
    if changes.summary:
        document = _read(key, "summary", current.run.summary)
        if _apply(key, "summary", document, changes.summary, changes.seen, wrapped=False):
            fields["summaryMetrics"] = jsontext.write(document, True)
    return fields


def _apply(
    key: RunKey,
    kind: str,
    document: Document,
    changes: Document,
    seen: Mapping[tuple[str, str], Any],
    *,
    wrapped: bool,
) -> bool:
    """Change a document in place; whether anything is not yet as it should be."""
    changed = False
    for name, value in changes.items():
        held = document.get(name, GONE)
        inside = held["value"] if wrapped and isinstance(held, dict) and "value" in held else held
        if _same(inside, value):
            continue
        _agree(key, f"{kind}[{name!r}]", seen[(kind, name)], inside)
        changed = True
        if value is GONE:
            del document[name]
        elif wrapped:
            document[name] = (held if isinstance(held, dict) and "value" in held else {"desc": None}) | {"value": value}
        else:
            document[name] = value
    return changed


def _agree(key: RunKey, what: str, seen: Any, there: Any) -> None:
    """The server must still hold what was changed here."""
    if not _same(seen, there):
        shown = [repr(side) if side is GONE else jsontext.write(side, True)[:80] for side in (seen, there)]
        raise ConflictError(
            f"`{what}` of {key.path} was changed at its server meanwhile: it was `{shown[0]}` in the mirror and is "
            f"`{shown[1]}` there. Nothing was written: `mirror sync {key.path}`, then edit again"
        )


def _check(client: Client, key: RunKey, fields: Mapping[str, Any], after: RunDocuments) -> None:
    """What was written must be what the server now says."""
    names = {theirs: ours for ours, theirs in _FIELDS.items()}
    for field_, sent in fields.items():
        if field_ in ("config", "summaryMetrics"):
            text = after.run.config if field_ == "config" else after.run.summary
            equal = text is not None and _same(jsontext.parse_exactly(text), jsontext.parse_exactly(sent))
        else:
            equal = _plain(getattr(after.run, names[field_])) == _plain(sent)
        if not equal:
            raise SourceError(
                f"`{client.source}` took the {field_} of {key.path} and gives back another: look at the run there; "
                f"the mirror was left as it is, `mirror sync {key.path}` shows what there is"
            )


def _read(key: RunKey, kind: str, text: str | None) -> Document:
    try:
        found = jsontext.parse_exactly(text or "{}")
    except (ValueError, RecursionError) as e:
        raise TerminalSourceError(f"the {kind} of {key.path} at its server is no JSON: it cannot be edited", e) from e
    if not isinstance(found, dict):
        raise TerminalSourceError(f"the {kind} of {key.path} at its server is no JSON object: it cannot be edited")
    return found


def _exactly(text: str | None, *, wrapped: bool) -> Document:
    """A held document with exact values; a config without wrappers and W&B's own keys."""
    try:
        found = jsontext.parse_exactly(text or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    if not wrapped:
        return found
    return {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in found.items()
        if key not in INTERNAL_KEYS
    }


def _plain(value: Any) -> Any:
    """An attribute; nothing, an empty text and no tags are the same."""
    return (list(value) if isinstance(value, (list, tuple)) else value) or None


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON to the last digit: 1 is not 1.0, NaN is NaN."""
    if a is GONE or b is GONE:
        return a is b
    return jsontext.write(a, True, sort=True) == jsontext.write(b, True, sort=True)
