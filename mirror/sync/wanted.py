"""Which bytes a user wants to have beside what is mirrored anyway, and which of them are not held yet."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mirror.errors import UsageError
from mirror.records import FileEntry, ItemKey, Project, RunKey
from mirror.sources.offline.source import SOURCE
from mirror.store.blobs import blob_path

if TYPE_CHECKING:
    from mirror.store import Reader

_OWNERS_AT_ONCE = 1000
_PAGE = 500
_Owners = dict[int, tuple[str, str]]
_TABLES_OF_RUNS = "run_table"
"""The type of the artifacts in which the SDK keeps the tables that runs log, with the media inside."""


@dataclass(frozen=True)
class WantedBytes:
    """`files` are globs of run files, `artifacts` texts `TYPE/NAME[:ALIAS]` (globs, too); `media` are the files that
    history and summaries refer to; `everything` is all of these."""

    files: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    media: bool = False
    everything: bool = False

    def __post_init__(self) -> None:
        for text in self.artifacts:
            artifact_glob(text)

    def __bool__(self) -> bool:
        return bool(self.files or self.artifacts or self.media or self.everything)


def artifact_glob(text: str) -> tuple[str, str, str]:
    """Type, name and alias (`*` if there is none) of `TYPE/NAME[:ALIAS]`. Raises UsageError.

    >>> artifact_glob("model/best-*:latest")
    ('model', 'best-*', 'latest')
    """
    kind, slash, rest = text.partition("/")
    name, _, alias = rest.partition(":")
    if not (kind and slash and name):
        raise UsageError(f"`{text}` names no artifacts: write TYPE/NAME or TYPE/NAME:ALIAS, such as 'model/*:latest'")
    return kind, name, alias or "*"


@dataclass(frozen=True)
class Missing:
    """A file whose bytes are wanted and not held. `owner` is the run or artifact that lists `entry`, `whose` says so
    for messages; the bytes are at its source as `name` of `at`, a run id or the storage id of an artifact."""

    owner: RunKey | ItemKey
    whose: str
    entry: FileEntry
    at: str
    name: str


class Search:
    """What a project lacks of what is wanted; `named` are the runs that are meant, if not all."""

    def __init__(self, reader: Reader, project: Project, wanted: WantedBytes, named: Sequence[str] | None) -> None:
        self._reader = reader
        self._project = project
        self._wanted = wanted
        self._named = None if named is None else list(named)

    def total(self) -> tuple[int, int]:
        """How many files are missing, and their bytes as far as their sizes are known."""
        files = size = 0
        for query, params, _ in self._queries():
            ((n, nbytes),) = self._ask(f"select count(*), coalesce(sum(size), 0) from ({query})", params)
            files, size = files + n, size + int(nbytes)
        return files, size

    def pages(self) -> Iterator[list[Missing]]:
        """The missing files, some at a time, those of one run or artifact one after the other."""
        for query, params, owners in self._queries():
            # A cursor of its own: others ask on the connection while these rows are handed out.
            cursor = self._reader.connect().cursor().execute(query + " order by rid, name", params)
            while rows := cursor.fetchmany(_PAGE):
                yield [self._missing(owners[rid], kind, *row) for kind, rid, *row in rows]

    def held(self, some: Sequence[Missing]) -> dict[tuple[str, int], str]:
        """(md5, size) -> sha256 of those of them whose bytes the mirror holds for something else of the entity."""
        query = """
            select md5, size, any_value(sha256) from (
              select md5, size, sha256 from files where source = $source and entity = $entity
              union all
              select digest, size, sha256 from artifact_entries where source = $source and entity = $entity
            ) where sha256 is not null and md5 in (select unnest($md5::varchar[])) group by md5, size
        """
        md5 = sorted({m.entry.md5 for m in some if m.entry.md5})
        params = {"source": self._project.source, "entity": self._project.entity, "md5": md5}
        self._reader.refresh()
        blobs = self._reader.layout.blobs
        return {
            (m, size): sha256
            for m, size, sha256 in self._ask(query, params)
            if size is not None and blob_path(blobs, sha256).exists()
        }

    # -- queries ------------------------------------------------------------------------------------------

    def _queries(self) -> Iterator[tuple[str, dict[str, Any], _Owners]]:
        """Selects of (kind, rid, name, size, md5, mimetype, updated_at, storage_id, url, ref) that are missing, their
        parameters, and whose they are."""
        if self._wanted.files or self._wanted.media or self._wanted.everything:
            query, params = self._of_runs()
            runs = self._runs()
            for rids in _parts(sorted(runs)):
                yield query, params | {"rids": rids}, runs
        if self._wanted.artifacts or self._wanted.media or self._wanted.everything:
            versions = self._versions()
            for rids in _parts(sorted(versions)):
                yield _OF_ARTIFACTS, {"rids": rids}, versions

    def _of_runs(self) -> tuple[str, dict[str, Any]]:
        wanted: list[str] = []
        params: dict[str, Any] = {}
        if self._wanted.everything:
            wanted.append("true")
        elif self._wanted.files:
            wanted.append("regexp_full_match(name, $pattern, 's')")
            params["pattern"] = "|".join(_regex(glob) for glob in self._wanted.files)
        if self._wanted.media:
            wanted.append(
                "(rid, name) in (select (rid, path) from media where rid in (select unnest($rids::bigint[])))"
            )
        return (
            "select 'run' as kind, rid, name, size, md5, mimetype, updated_at, storage_id, url, null as ref "
            "from (select * from raw.files_live union all select f.* from raw.files f join raw.merged m "
            "on m.rid = f.rid and m.files_gen = f.gen) "
            "where rid in (select unnest($rids::bigint[])) and sha256 is null "
            f"and ({' or '.join(wanted)})"
        ), params

    def _runs(self) -> _Owners:
        """(storage id, run id) of the runs whose files are looked at, by rid."""
        rows = self._ask(
            "select rid, storage_id, run_id from (select * from raw.runs_live union all select * from raw.merged) "
            "where source = ? and entity = ? and project = ? and deleted_at is null and files_count > 0 "
            "and (? is null or list_contains(?::varchar[], run_id))",
            [*self._where(), self._named, self._named],
        )
        return {rid: (storage_id, run_id) for rid, storage_id, run_id in rows}

    def _versions(self) -> _Owners:
        """(storage id, name) of the artifacts whose entries are looked at, by rid."""
        rows = self._ask(
            "select rid, storage_id, type, collection, version, aliases from raw.artifacts_live "
            "where source = ? and entity = ? and project = ? and deleted_at is null "
            f"and {_OFFLINE if self._project.source == SOURCE else _COMMITTED} "
            "and (? is null or "
            "(run_entity = entity and run_project = project and list_contains(?::varchar[], run_id)))",
            [*self._where(), self._named, self._named],
        )
        named = {row[0]: f"{row[3]}:v{row[4]}" if row[4] is not None else row[3] for row in rows}
        return {row[0]: (row[1], named[row[0]]) for row in rows if self._wants(*row[2:])}

    def _wants(self, kind: str, collection: str, version: int | None, aliases: Sequence[str] | None) -> bool:
        if self._wanted.everything or (self._wanted.media and kind == _TABLES_OF_RUNS):
            return True
        names = [f"v{version}", *(aliases or ())]
        return any(
            fnmatchcase(kind, k) and fnmatchcase(collection, c) and any(fnmatchcase(name, a) for name in names)
            for k, c, a in map(artifact_glob, self._wanted.artifacts)
        )

    def _missing(self, owner: tuple[str, str], kind: str, *row: Any) -> Missing:
        storage_id, name = owner
        *entry, ref = row
        found = FileEntry(*entry)
        source, entity, project = self._where()
        if kind == "run":
            key = RunKey(source, storage_id, entity, project, name)
            return Missing(key, f"{key.path}: file", found, name, found.name)
        at, _, path = (ref or "").removeprefix(_REF).partition("/")
        item = ItemKey(source, storage_id, entity, project)
        target = (storage_id, found.name) if ref is None else (b64encode(bytes.fromhex(at)).decode(), path)
        return Missing(item, f"artifact `{name}`: file", found, *target)

    def _where(self) -> tuple[str, str, str]:
        return self._project.source, self._project.entity, self._project.name

    def _ask(self, query: str, params: Any) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._reader.connect().execute(query, params).fetchall()
        return found


_COMMITTED = "coalesce(state, 'COMMITTED') = 'COMMITTED' and version is not null"
_OFFLINE = "state = 'PENDING'"  # what a log names has no version yet
_REF = "wandb-artifact://"
# A reference to an entry of another artifact is followed if the mirror knows that entry; its digest is the entry's.
_OF_ARTIFACTS = f"""
select 'artifact' as kind, e.rid, e.path as name, e.size, e.digest as md5, null as mimetype, null as updated_at,
       null as storage_id, null as url, e.ref
from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen
where e.rid in (select unnest($rids::bigint[])) and e.sha256 is null and (
  e.ref is null or (regexp_full_match(e.ref, '{_REF}([0-9a-f]{{2}})+/.+', 's') and exists (
    select 1 from raw.artifact_entries t join raw.artifacts_live b on b.rid = t.rid and b.entries_gen = t.gen
    where b.source = a.source and t.ref is null and t.digest = e.digest
      and '{_REF}' || lower(hex(try(from_base64(b.storage_id)))) || '/' || t.path = e.ref
  ))
)
"""


def _parts(rids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rids), _OWNERS_AT_ONCE):
        yield list(rids[start : start + _OWNERS_AT_ONCE])


def _regex(glob: str) -> str:
    r"""A glob of the shell as a regular expression that DuckDB reads, too.

    >>> _regex("models/*.ck[!a]t")
    'models/.*\\.ck[^a]t'
    """
    parts = re.split(r"(\*|\?|\[!?[^\]]+\])", glob)
    made = {"*": ".*", "?": "."}
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.escape(part)
        elif part in made:
            parts[i] = made[part]
        else:
            inside = part[1:-1].replace("\\", "\\\\")
            parts[i] = f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
    return "".join(parts)
