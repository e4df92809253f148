"""One query with wide views: found, understood, and written anew where it names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from mirror.errors import QueryError
from mirror.query.wide import VIEWS
from mirror.query.wide.documents import TABLES
from mirror.query.wide.names import (
    Mention,
    Node,
    Reference,
    alias_of,
    aliases,
    cte,
    folded,
    in_order,
    provided,
    selects_above,
    sources,
    stars,
)
from mirror.query.wide.splice import Edit, Statement
from mirror.query.wide.view import View

if TYPE_CHECKING:
    from mirror.query.sql import Params, Sandbox


class Rewriting:
    """Rewrites one statement; `done` gives the result."""

    def __init__(self, sandbox: Sandbox, statement: Statement, params: Params) -> None:
        from mirror.query.statement import explained_at

        self._sandbox = sandbox
        self._written = statement
        self._params: Any = params
        self._prefix = explained_at(statement.text)
        self._edits: list[Edit] = []
        self._columns: dict[str, set[str]] | None = None

    def done(self) -> tuple[Statement, Params]:
        statement = self._numbered(self._written)
        tree = self._parsed(statement)
        if tree is None:
            return self._written, self._params
        self._text = statement.text
        self._references = [r for table in tree.find_all(exp.Table) if (r := self._reference(table)) is not None]
        if not self._references:
            return self._written, self._params
        self._by_select: dict[int, list[Reference]] = {}
        for reference in self._references:
            self._by_select.setdefault(id(reference.select), []).append(reference)
        mentions = self._mentions(tree)
        self._views = {id(r): View(self, r, mentions) for r in self._references}
        # The innermost first: conditions that are copied outwards take them along.
        for reference in sorted(self._references, key=lambda r: -r.table.depth):
            for mention in [m for m in mentions if m.may_be(reference)]:
                mentions.remove(mention)
                self._settle(mention)
            self._views[id(reference)].replace()
        return statement.edited(self._edits), self._params

    # -- text ---------------------------------------------------------------------------------------------

    def _numbered(self, statement: Statement) -> Statement:
        """`?` as `$1`, `$2`, ...: conditions are copied, and a copy must mean the same value."""
        if isinstance(self._params, Mapping) or not self._params:
            return statement
        edits, number = [], 0
        for token in _tokens(statement.text):
            if token.token_type == sqlglot.TokenType.PLACEHOLDER:
                number += 1
                edits.append(Edit(token.start, token.end + 1, f"${number}"))
        return statement.edited(edits) if edits else statement

    def _parsed(self, statement: Statement) -> Node:
        start = explained_length(statement.text, self._prefix)
        # sqlglot does not read EXPLAIN: what stands before the statement is blanked, so that places stay.
        text = " " * start + statement.text[start:]
        try:
            found = sqlglot.parse(text, dialect="duckdb")
        except (SqlglotError, RecursionError) as e:
            if any(t.token_type != sqlglot.TokenType.STRING and t.text.lower() in VIEWS for t in _tokens(text)):
                said = f"this statement is too unusual for the wide views ({_reason(e)})"
                raise QueryError(f"{said}; read from them in a simple SELECT") from e
            return None
        return found[0] if len(found) == 1 else None

    # -- references ---------------------------------------------------------------------------------------

    def _reference(self, table: Node) -> Reference | None:
        view = folded(table.name)
        if view not in VIEWS or folded(table.db) not in ("", "main") or table.catalog or cte(table) is not None:
            return None
        select = table.find_ancestor(exp.Select, exp.SetOperation, exp.Pivot)
        if isinstance(table.parent, (exp.Describe, exp.Summarize)):
            select = table.parent
        if isinstance(select, exp.Pivot) or table.args.get("pivots"):
            raise QueryError(
                "PIVOT takes all columns there are: name the ones you mean, as in "
                f"`pivot (select run_id, ... from {view}) on ...`"
            )
        if not isinstance(select, (exp.Select, exp.Describe, exp.Summarize)):
            raise QueryError(f"`{view}` cannot stand here: read from it in a SELECT")
        alias = table.args.get("alias")
        if alias is not None and alias.columns:
            raise QueryError(f"`{view}` takes no list of column names: rename columns in the SELECT list, with AS")
        join = table.parent
        joined = [join, *(select.args.get("joins") or ())] if isinstance(select, exp.Select) else []
        if any(isinstance(j, exp.Join) and j.method == "NATURAL" for j in joined):
            raise QueryError(f"`{view}` takes part in no NATURAL JOIN: say USING (rid), or what else is meant")
        table.meta["wide"] = True
        found = Reference(table, view, alias_of(table), select)
        found.star = not isinstance(select, exp.Select)
        return found

    # -- mentions -----------------------------------------------------------------------------------------

    def _mentions(self, tree: Node) -> list[Mention]:
        found = []
        for select in tree.find_all(exp.Select):
            for _, named in stars(select):
                for reference in self._by_select.get(id(select), ()):
                    reference.star |= named in (None, reference.alias)
            for join in select.args.get("joins") or ():
                for identifier in join.args.get("using") or ():
                    inner = identifier.this if isinstance(identifier, exp.Column) else identifier
                    levels = [(select, self._by_select.get(id(select), []))]
                    mention = Mention(inner, inner.name, bool(inner.args.get("quoted")), inner, levels)
                    mention.start, mention.end = inner.meta["start"], inner.meta["end"] + 1
                    found.append(mention)
                    for node in identifier.walk():
                        node.meta["using"] = True
        for column in tree.find_all(exp.Column):
            if isinstance(column.this, exp.Identifier) and not column.meta.get("using"):
                made = self._mention(column)
                if made is not None:
                    found.append(made)
        return found

    def _mention(self, column: Node) -> Mention | None:
        parts = column.parts
        levels = [(select, self._by_select.get(id(select), [])) for select in selects_above(column)]
        named = [folded(part.name) for part in parts]
        for i, (select, references) in enumerate(levels):
            held = {alias_of(source): source for source in sources(select)}
            schema = named[0] == "main" and len(parts) > 2 and named[1] in held
            alias = named[1] if schema else named[0]
            if len(parts) > 1 and alias in held:
                mine = [r for r in references if r.alias == alias]
                if not mine:
                    return None
                rest = parts[2:] if schema else parts[1:]
                if schema:
                    self._edits.append(Edit(parts[0].meta["start"], parts[1].meta["start"], ""))
                if mine[0].view != "runs_wide" or folded(rest[0].name) not in TABLES:
                    rest = rest[:1]
                return self._made(column, rest, [(select, mine)], qualified=True)
            whole = [r for r in references if r.alias == alias]
            if len(parts) == 1 and whole and i == 0:
                whole[0].row = True
        if not any(references for _, references in levels):
            return None
        runs = any(r.view == "runs_wide" for _, references in levels for r in references)
        if len(parts) > 1 and not (runs and named[0] in TABLES):
            return self._made(column, parts[:1], levels)
        return self._made(column, parts, levels)

    def _made(self, column: Node, parts: Sequence[Node], levels: list[Any], qualified: bool = False) -> Mention:
        name = ".".join(part.name for part in parts)
        mention = Mention(parts[-1], name, any(p.args.get("quoted") for p in parts), column, levels, qualified)
        mention.start, mention.end = parts[0].meta["start"], parts[-1].meta["end"] + 1
        return mention

    def _settle(self, mention: Mention) -> None:
        """Give a mention to the views that it means, if it means any."""
        name, plain = mention.name, folded(mention.name)
        for depth, (select, references) in enumerate(mention.levels):
            ordering = depth == 0 and not mention.qualified and in_order(mention.node, select)
            if ordering and plain in aliases(select):
                return
            views = [self._views[id(reference)] for reference in references]
            hits = [(view, view.names.look(name, mention.quoted)) for view in views]
            for view, column in hits:
                if column is not None:
                    view.take(mention, column)
            if any(column is not None for _, column in hits):
                return
            if not mention.qualified:
                known = [provided(s, self.columns) for s in sources(select) if not s.meta.get("wide")]
                if any(names and plain in names for names in known) or plain in aliases(select):
                    return
                if None in known and not references:
                    return
            for view in views:
                column = view.elsewhere(name, mention.quoted)
                if column is not None:
                    view.take(mention, column)
                    return
                if depth == 0 and not mention.qualified and plain == view.alias:
                    view.take_all()
                    return
            if not mention.qualified and None in known:
                return
        reference = next(r for _, references in mention.levels for r in references)
        raise QueryError(self._unknown(mention, reference))

    def _unknown(self, mention: Mention, reference: Reference) -> str:
        parts = mention.node.parts if isinstance(mention.node, exp.Column) else [mention.identifier]
        whole = ".".join(part.name for part in parts)
        view = self._views[id(reference)]
        if whole != mention.name and view.find([whole]).look(whole, True) is not None:
            return f'`{whole}` without quotes is column `{whole.rpartition(".")[2]}` of a table: write `"{whole}"`'
        return view.unknown(mention.name)

    def columns(self, table: Node) -> set[str] | None:
        """Columns of one of the mirror's tables, folded; of a wide view none that are known."""
        if table.meta.get("wide") or table.catalog:
            return None
        if self._columns is None:
            self._columns = {}
            for schema, name, column in self.ask(
                "select schema_name, table_name, column_name from duckdb_columns() where not internal"
            ):
                key = f"{schema}.{name}" if schema != "main" else str(name)
                self._columns.setdefault(key, set()).add(folded(str(column)))
        db = folded(table.db)
        return self._columns.get(folded(table.name) if db in ("", "main") else f"{db}.{folded(table.name)}")

    # -- asking -------------------------------------------------------------------------------------------

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a statement of ours, which may hold conditions of the user's with their parameters."""
        given: dict[str, Any] = {}
        if self._params:
            named = self._params if isinstance(self._params, Mapping) else dict(enumerate(self._params, 1))
            used = {t.text for before, t in _pairs(_tokens(sql)) if before == "$"} if "$" in sql else set()
            given = {str(name): value for name, value in named.items() if str(name) in used}
        with self._sandbox.explained(None):
            rows: list[tuple[Any, ...]] = self._sandbox.cursor().execute(sql, given or None).fetchall()
            return rows

    def part(self, table: str, rids: Sequence[int]) -> str:
        return self._sandbox.part(table, rids)

    def add(self, *edits: Edit) -> None:
        self._edits += edits

    @property
    def text(self) -> str:
        return self._text


def _tokens(sql: str) -> list[Any]:
    return list(sqlglot.tokenize(sql, dialect="duckdb"))


def _pairs(tokens: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(before.text, token) for before, token in pairwise(tokens)]


def _reason(e: Exception) -> str:
    return re.sub(r"\x1b\[\d+m", "", str(e)).splitlines()[0].partition(" Line ")[0][:120]


def explained_length(text: str, prefix: int) -> int:
    """Characters before the statement that an EXPLAIN explains."""
    return len(text.encode()[:prefix].decode(errors="ignore"))
