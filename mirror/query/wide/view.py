"""One wide view in a query: the columns it has to bring, and the subquery that brings them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlglot
from sqlglot import exp

from mirror.errors import QueryError
from mirror.query.wide import predicates
from mirror.query.wide.catalogue import PREFIX, Column, Names, Scope
from mirror.query.wide.cells import Cells
from mirror.query.wide.documents import Documents
from mirror.query.wide.names import Mention, Node, Reference, folded, sources, stars
from mirror.query.wide.splice import Edit
from mirror.store.views import quoted

if TYPE_CHECKING:
    from mirror.query.wide.rewrite import Rewriting

_FEW = 50
"""Runs that are named one by one, so that files and row groups without them are skipped."""


class View:
    """One wide view in the query: the columns it has to bring, and the subquery that brings them."""

    def __init__(self, rewriting: Rewriting, reference: Reference, mentions: Sequence[Mention]) -> None:
        self._rewriting = rewriting
        self._reference = reference
        self._taken: list[tuple[Mention, Column]] = []
        self._mentioned = sorted({m.name for m in mentions if m.may_be(reference)})
        # Which runs are asked for has to be known before keys are, and names of runs' columns need no catalogue.
        own = Names(predicates.RUN_COLUMNS, {})
        for mention in mentions:
            nearest = mention.levels[0][1]
            column = own.look(mention.name, mention.quoted)
            certain = column is not None and (not mention.quoted or mention.name == column.name)
            if certain and column is not None and nearest == [reference] and isinstance(mention.node, exp.Column):
                mention.node.meta.setdefault("means", (id(reference), column.name))

    @cached_property
    def _scope(self) -> Scope:
        reference = self._reference
        if not isinstance(reference.select, exp.Select):
            return Scope()
        found = predicates.pushed(reference, self._means, self._rewriting.columns)
        if not found.runs:
            return Scope()
        where = " and ".join(f"({_written(condition, self._means)})" for condition in found.runs)
        rids = [int(row[0]) for row in self._rewriting.ask(f"select rid from raw.live where {where} limit {_FEW + 1}")]
        if len(rids) > _FEW:
            return Scope(f"rid in (select rid from raw.live where {where})")
        return Scope(f"rid in ({', '.join(map(str, rids)) or 'null'})", lambda table: self._rewriting.part(table, rids))

    @cached_property
    def _builder(self) -> Cells | Documents:
        return self._made(self._scope)

    @cached_property
    def _everywhere(self) -> Cells | Documents:
        return self._made(Scope())

    def _made(self, scope: Scope) -> Cells | Documents:
        if self._reference.view == "runs_wide":
            return Documents(self._rewriting.ask, scope)
        return Cells(self._reference.view, self._rewriting.ask, scope)

    @cached_property
    def names(self) -> Names:
        return self.find(None if self._reference.star or self._reference.row else self._mentioned)

    @cached_property
    def _anywhere(self) -> Names:
        """What the names mean if all runs are asked; nothing new if they are."""
        return self._everywhere.names(self._mentioned) if self._scope.condition else Names((), {})

    def find(self, names: Sequence[str] | None) -> Names:
        return self._builder.names(names)

    def unknown(self, name: str) -> str:
        return self._builder.unknown(name)

    def elsewhere(self, name: str, quoted: bool) -> Column | None:
        """A column that only runs have which the query does not ask for: it is NULL then, not unknown."""
        found = self._anywhere.look(name, quoted)
        if found is None or found.key is None:
            return None
        self.names.keys[found.key] = replace(self._anywhere.keys[found.key], runs=0, filled=0)
        if isinstance(self._builder, Documents) and isinstance(self._everywhere, Documents):
            self._builder.adopt(found.key, self._everywhere)
        return found

    @property
    def alias(self) -> str:
        return self._reference.alias

    def take_all(self) -> None:
        self._reference.star = True

    def take(self, mention: Mention, column: Column) -> None:
        self._taken.append((mention, column))
        name = f"{PREFIX}{column.key}" if column.key is not None and not column.json else column.name
        mention.node.meta["means"] = (id(self._reference), name if not column.json else f"{PREFIX}{column.name}")

    def _means(self, node: Node) -> str | None:
        means = node.meta.get("means")
        return means[1] if means is not None and means[0] == id(self._reference) else None

    # -- replacing ----------------------------------------------------------------------------------------

    def replace(self) -> None:
        reference, rewriting = self._reference, self._rewriting
        columns = {column.name: column for _, column in self._taken}
        if reference.star:
            columns = {c.name: c for c in self._builder.expanded(self.names)} | columns
        shown = _told_apart(columns)
        subquery = self._sql([(shown[name], column) for name, column in columns.items()])
        reference.table.meta["wide_sql"] = subquery
        self._rename(shown, columns)
        first = reference.table.args.get("db") or reference.table.this
        start, end = first.meta["start"], reference.table.this.meta["end"] + 1
        text = f"({subquery})"
        if not isinstance(reference.select, exp.Select):  # DESCRIBE and SUMMARIZE
            text = f"select {_listed(columns, shown)} from {text}"
        elif not reference.table.alias:
            text += f" as {reference.view}"
        rewriting.add(Edit(start, end, text))

    def _sql(self, columns: list[tuple[str, Column]]) -> str:
        if isinstance(self._builder, Documents):
            return self._builder.sql(columns, self.names)
        found = predicates.Pushed()
        if isinstance(self._reference.select, exp.Select):
            found = predicates.pushed(self._reference, self._means, self._rewriting.columns)
        conditions: dict[str, list[str]] = {}
        needed = set()
        of = {f"{PREFIX}{c.name if c.json else c.key}": c for _, c in columns if c.key is not None}
        for name in found.needed:
            needed.add(str(of[name].key))
        for name, wanted in found.keys.items():
            column = of[name]
            value = "j" if column.json else "v"
            texts = [_written(condition, lambda n, value=value: self._of_cell(n, value)) for condition in wanted]
            conditions.setdefault(str(column.key), []).extend(texts)
        rows = [_written(condition, lambda n: self._of_cell(n, "v")) for condition in found.rows]
        every = self._reference.star
        return self._builder.sql(columns, self.names, needed, [f"({row})" for row in rows], conditions, every_row=every)

    def _of_cell(self, node: Node, value: str) -> str | None:
        means = self._means(node)
        if means is None:
            return None
        return value if means.startswith(PREFIX) else means.removeprefix("_")

    def _rename(self, shown: dict[str, str], columns: dict[str, Column]) -> None:
        """Where names had to be told apart, the query's mentions of them follow."""
        renamed = {name for name in columns if shown[name] != name}
        if renamed and self._reference.star and isinstance(self._reference.select, exp.Select):
            self._expand_star(shown, columns)
        for mention, column in self._taken:
            dotted = not mention.quoted and "." in mention.name
            if column.name not in renamed and not dotted:
                continue
            text = quoted(shown[column.name])
            mention.node.meta["shown"] = (shown[column.name], self._reference.table.alias_or_name)
            if column.name in renamed:
                select = mention.node.parent
                if isinstance(select, exp.Select) and mention.node.arg_key == "expressions":
                    if select.parent is not None and not _is_outermost(select):
                        raise QueryError(_twins(columns, column))
                    text += f" as {quoted(column.name)}"
            self._rewriting.add(Edit(mention.start, mention.end, text))

    def _expand_star(self, shown: dict[str, str], columns: dict[str, Column]) -> None:
        """`*` with every column under its own name; only where that is the query's result."""
        reference = self._reference
        found = list(stars(reference.select))
        whole = len(found) == 1 and isinstance(found[0][0], exp.Star) and _is_outermost(reference.select)
        star = found[0][0] if found else None
        plain = star is not None and not any(star.args.get(k) for k in ("except_", "except", "replace", "rename"))
        alone = whole and plain and len(sources(reference.select)) == 1
        place = star.meta.get("start") if star is not None else None
        if not alone or place is None or self._rewriting.text[place : place + 1] != "*":
            twin = next(c for c in columns.values() if shown[c.name] != c.name)
            raise QueryError(_twins(columns, twin))
        assert star is not None
        start = star.parent.args["table"].meta["start"] if isinstance(star.parent, exp.Column) else place
        self._rewriting.add(Edit(start, place + 1, _listed(columns, shown)))


def _listed(columns: Mapping[str, Column], shown: Mapping[str, str]) -> str:
    return ", ".join(quoted(shown[n]) + (f" as {quoted(n)}" if shown[n] != n else "") for n in columns)


def _twins(columns: Mapping[str, Column], column: Column) -> str:
    both = [name for name in columns if folded(name) == folded(column.name)]
    said = " and ".join(f"`{name}`" for name in sorted(both))
    return f"{said} differ in case only: give them different names in the SELECT list, with AS"


def _told_apart(columns: Mapping[str, Column]) -> dict[str, str]:
    """A name for every column that no other has, whatever the case: `loss` beside `Loss` becomes `loss (2)`."""
    taken: set[str] = set()
    found = {}
    own_first = sorted(columns, key=lambda name: (columns[name].key is not None, name))
    for name in own_first:
        shown, number = name, 1
        while folded(shown) in taken or (number > 1 and shown in columns):
            number += 1
            shown = f"{name} ({number})"
        taken.add(folded(shown))
        found[name] = shown
    return found


def _is_outermost(select: Node) -> bool:
    node: Node = select
    while isinstance(node.parent, (exp.SetOperation, exp.Subquery)):
        node = node.parent
    return node.parent is None


def _written(condition: Node, rename: Any) -> str:
    """A copy of a condition as text, with columns of the view under other names and inner views replaced."""

    def other(node: Node) -> Node:
        if isinstance(node, exp.Column):
            name = rename(node)
            if name is None and "shown" in node.meta:
                name, table = node.meta["shown"]
                return exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(table, quoted=True))
            return exp.column(exp.to_identifier(name)) if name is not None else node
        if isinstance(node, exp.Table) and node.meta.get("wide_sql"):
            inner = sqlglot.parse_one(node.meta["wide_sql"], dialect="duckdb")
            return exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier(node.alias_or_name)))
        return node

    return str(condition.copy().transform(other, copy=False).sql(dialect="duckdb", comments=False))
