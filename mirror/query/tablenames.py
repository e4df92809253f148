"""W&B tables by name in SQL: `select * from "table:team/project/run_id:key"`.

A name that a statement mentions becomes a view of the sandbox, over the Parquet file of the table:

    "table:ENTITY/PROJECT/RUN_ID:KEY"              what a run logged last under a key
    "table:ENTITY/PROJECT/RUN_ID:KEY@STEP"         ... at a step
    "table:ENTITY/PROJECT/COLLECTION:ALIAS/PATH"   in an artifact version; without PATH if it holds one table only
    "table:SHA256"                                 by the checksum of its JSON

`tables` lists them. Joined and partitioned tables of an artifact are put together from the tables they name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mirror.errors import QueryError
from mirror.store.blobs import TABLE_SUFFIX, blob_path, table_path
from mirror.store.views import literal, quoted

if TYPE_CHECKING:
    from mirror.query.sql import Sandbox

_MARK = "table:"
_MENTION = re.compile(rf'(?i)"{_MARK}(?:[^"]|"")+"')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_JOINED = ".joined-table.json"
_PARTITIONED = ".partitioned-table.json"
_MOST = 16 << 20
"""Bytes of a file that only says which tables belong together."""


def name_tables(sandbox: Sandbox, sql: str) -> None:
    """Make views of the tables that a statement names. QueryError for one that there is not."""
    if not _MENTION.search(sql):
        return
    import sqlglot

    identifiers = {t.text for t in sqlglot.tokenize(sql, dialect="duckdb") if t.token_type.name == "IDENTIFIER"}
    for text in sorted(identifiers):
        if text.lower().startswith(_MARK):
            sandbox.name(text, _Named(sandbox, text).body())


class _Named:
    """One name of a table."""

    def __init__(self, sandbox: Sandbox, text: str) -> None:
        self._sandbox = sandbox
        self._text = text
        self._path = text[len(_MARK) :]

    def body(self) -> str:
        """The select that it stands for."""
        if _SHA256.fullmatch(self._path):
            return self._rows(self._path)
        entity, _, rest = self._path.partition("/")
        project, _, rest = rest.partition("/")
        owner, colon, what = rest.partition(":")
        if not (entity and project and owner and colon and what):
            raise QueryError(
                f'`{self._text}` names no table: write "table:entity/project/run_id:key" or '
                '"table:entity/project/artifact:v0/path"; `select name from tables` lists them'
            )
        found = self._of_run(entity, project, owner, what) or self._of_artifact(entity, project, owner, what)
        if found is None:
            raise self._unknown(entity, project)
        return found

    def _of_run(self, entity: str, project: str, run_id: str, what: str) -> str | None:
        query = (
            "select source, blob, path from media where entity = ? and project = ? and run_id = ? and key = ? "
            f"and suffix(path, '{TABLE_SUFFIX}') and (? is null or step = ?) "
            "qualify row_number() over (partition by source order by stream, row desc) = 1"
        )
        key, _, step = what.rpartition("@")
        steps: list[tuple[str, int | None]] = [(what, None)]
        if key and step.removeprefix("-").isdigit():
            steps.append((key, int(step)))
        for name, at in steps:
            if rows := self._ask(query, [entity, project, run_id, name, at, at]):
                sha256, path = self._one(rows)
                return self._held(sha256, path, f"mirror sync {entity}/{project}/{run_id} --media")
        return None

    def _of_artifact(self, entity: str, project: str, collection: str, what: str) -> str | None:
        alias, _, path = what.partition("/")
        number = int(alias[1:]) if alias[:1] == "v" and alias[1:].isdecimal() and len(alias) < 10 else -1
        query = (
            "select a.source, a.rid, a.type from raw.artifacts_live a where entity = ? and project = ? "
            "and collection = ? and deleted_at is null and (version = ? or list_contains(aliases, ?))"
        )
        versions = self._ask(query, [entity, project, collection, number, alias])
        if not versions:
            return None
        if len(versions) > 1:
            raise self._ambiguous([row[0] for row in versions])
        _, rid, kind = versions[0]
        query = (
            "select e.path, e.sha256 from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid "
            "and a.entries_gen = e.gen where e.rid = ? and regexp_matches(e.path, '(^|[./-])table\\.json$')"
        )
        entries: dict[str, str | None] = dict(self._ask(query, [rid]))
        wanted = [p for p in (path, path + TABLE_SUFFIX) if p in entries] if path else list(entries)
        if path and not wanted:
            return None
        if not path and len(wanted) != 1:
            names = ", ".join(f"`{p}`" for p in wanted[:5]) or "none"
            raise QueryError(f"`{self._text}` holds {len(wanted)} tables ({names}): add the path of one of them")
        sync = f"mirror sync {entity}/{project} --artifacts '{kind}/{collection}:{alias}'"
        return self._composed(wanted[0], entries, sync)

    def _composed(self, path: str, entries: dict[str, str | None], sync: str) -> str:
        """A table of an artifact, or one that is put together out of others."""
        if not path.endswith((_JOINED, _PARTITIONED)):
            return self._held(entries[path], path, sync)
        said = self._document(entries[path], path, sync)
        if path.endswith(_PARTITIONED):
            folder = str(said.get("parts_path") or "").rstrip("/") + "/"
            parts = [self._held(entries[p], p, sync) for p in sorted(entries) if p.startswith(folder) and _plain(p)]
            if not parts:
                raise QueryError(f"`{path}` is a table in parts, but the artifact holds none below `{folder}`")
            return " union all by name ".join(f"({part})" for part in parts)
        sides = []
        for name in ("table1", "table2"):
            side = said.get(name)
            if not isinstance(side, str) or side not in entries or not _plain(side):
                raise QueryError(f"`{path}` joins `{side}`, which is no table of the artifact")
            sides.append(self._held(entries[side], side, sync))
        key = said.get("join_key")
        left, right = (key, key) if isinstance(key, str) else (key if isinstance(key, list) and len(key) == 2 else "  ")
        on = f"t1.{quoted(str(left))} = t2.{quoted(str(right))}"
        return f"select t1.*, t2.* from ({sides[0]}) t1 join ({sides[1]}) t2 on {on}"

    def _document(self, sha256: str | None, path: str, sync: str) -> dict[str, Any]:
        blob = blob_path(self._sandbox.layout.blobs, sha256) if sha256 else None
        if blob is None or not blob.exists():
            raise self._lacking(path, sync)
        try:
            found = json.loads(blob.read_bytes()) if blob.stat().st_size < _MOST else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise QueryError(f"`{path}` is no JSON of a table")
        return found

    def _held(self, sha256: str | None, path: str, sync: str) -> str:
        if sha256 is None:
            raise self._lacking(path, sync)
        return self._rows(sha256, sync)

    def _rows(self, sha256: str, sync: str = "") -> str:
        layout, private = self._sandbox.layout, self._sandbox.private_tables
        for folder in (layout.tables, private):
            if table_path(folder, sha256).exists():
                return _select(str(table_path(folder, sha256)))
        if not blob_path(layout.blobs, sha256).exists():
            raise self._lacking(sha256, sync)
        from mirror.store.tablefiles import convert  # needs pyarrow, which few statements do

        # Logged to `mirror serve`, or by a release that did not know tables.
        found = convert(layout, sha256, private)
        if found.fields is None:
            raise QueryError(f"`{self._text}` cannot be read as a table: {found.note}")
        return _select(str(table_path(private, sha256)))

    # -- what is wrong ------------------------------------------------------------------------------------

    def _lacking(self, path: str, sync: str) -> QueryError:
        return QueryError(
            f"the mirror does not hold the bytes of `{path}` of `{self._text}`"
            + (f": `{sync}` fetches them" if sync else "")
        )

    def _one(self, rows: Sequence[tuple[Any, ...]]) -> tuple[str | None, str]:
        if len(rows) > 1:
            raise self._ambiguous([row[0] for row in rows])
        return rows[0][1], rows[0][2]

    def _ambiguous(self, sources: Sequence[str]) -> QueryError:
        said = ", ".join(f"`{source}`" for source in sorted(set(sources)))
        return QueryError(f'`{self._text}` is held from {said}: name the one you mean by "table:<sha256>"')

    def _unknown(self, entity: str, project: str) -> QueryError:
        names = [n for (n,) in self._ask("select name from tables where entity = ? and project = ?", [entity, project])]
        near = get_close_matches(self._text, names, 1)
        hint = f"did you mean `{near[0]}`?" if near else "`mirror tables` lists the tables there are"
        return QueryError(f"there is no table `{self._text}`; {hint}")

    def _ask(self, query: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._sandbox.cursor().execute(query, list(params)).fetchall()
        return found


def _plain(path: str) -> bool:
    return path.endswith(TABLE_SUFFIX)


def _select(path: str) -> str:
    return f"select * from read_parquet([{literal(path)}], hive_partitioning = false)"
