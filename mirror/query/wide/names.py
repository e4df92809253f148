"""Who a name in a query means: which mentions of columns may be columns of a wide view.

Names are judged by SQL's rules as DuckDB has them: the nearest SELECT whose sources know the name, a column before an
alias of the SELECT list (in ORDER BY the alias first), outer SELECTs for correlated subqueries. Nothing is resolved
in DuckDB's place: what this module decides is only which columns a wide view has to bring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

Node = Any  # sqlglot's nodes; its own annotations change with every release


def folded(name: str) -> str:
    """A name as DuckDB compares it: ASCII letters without case, all others as they are."""
    return "".join(c.lower() if c.isascii() else c for c in name)


@dataclass
class Reference:
    """One place where a query names a wide view."""

    table: Node
    view: str
    alias: str
    select: Node
    """The SELECT that reads from it."""
    star: bool = False
    row: bool = False
    """Its name stands for a whole row somewhere, unless that is a column's name."""


@dataclass
class Mention:
    """A name that may be a column of one of several references, innermost SELECT first."""

    identifier: Node
    name: str
    quoted: bool
    node: Node
    """The Column, or the Identifier of a USING."""
    levels: list[tuple[Node, list[Reference]]] = field(default_factory=list)
    qualified: bool = False
    start: int = 0
    end: int = 0

    def may_be(self, reference: Reference) -> bool:
        return any(r is reference for _, references in self.levels for r in references)


def selects_above(node: Node) -> Iterator[Node]:
    """The SELECTs whose sources a node can see, from the inside out."""
    while node is not None:
        above = node.parent
        if isinstance(above, exp.CTE) or (isinstance(above, exp.SetOperation) and not isinstance(node, exp.Query)):
            return  # a CTE sees none of the sources around it; ORDER BY of a UNION sees its output only
        if isinstance(above, exp.Select):
            yield above
        node = above


def nearest_select(node: Node) -> Node:
    return next(selects_above(node), None)


def within(select: Node) -> Iterator[Node]:
    """Nodes of a SELECT that do not belong to a query inside it; such queries themselves are among them."""
    stack = [select]
    while stack:
        node = stack.pop()
        for child in node.iter_expressions():
            yield child
            if not isinstance(child, (exp.Select, exp.SetOperation, exp.With)):
                stack.append(child)


def is_source(node: Node) -> bool:
    if isinstance(node, (exp.Table, exp.Lateral, exp.Unnest, exp.Values)):
        return True
    placed = isinstance(node, exp.Subquery) and isinstance(node.parent, (exp.From, exp.Join, exp.Table))
    return placed and isinstance(node.unnest(), (exp.Select, exp.SetOperation))


def sources(select: Node) -> list[Node]:
    return [node for node in within(select) if is_source(node) and node.find_ancestor(exp.Select) is select]


def cte(table: Node) -> Node:
    """The CTE that a table name means, if it means one."""
    if table.args.get("db"):
        return None
    name, node = folded(table.name), table
    while node is not None:
        with_ = node.args.get("with_") or node.args.get("with")
        for found in with_.expressions if with_ is not None else ():
            recursive = with_.args.get("recursive")
            if folded(found.alias) == name and (recursive or not _contains(found, table)):
                return found
        node = node.parent
    return None


def _contains(outer: Node, node: Node) -> bool:
    while node is not None and node is not outer:
        node = node.parent
    return node is outer


def alias_of(source: Node) -> str:
    return folded(source.alias_or_name)


def output_names(query: Node, columns: Callable[[Node], set[str] | None]) -> set[str] | None:
    """Names of the columns a query gives, folded; None where they cannot be told."""
    while isinstance(query, (exp.SetOperation, exp.Subquery)):
        query = query.this
    if not isinstance(query, exp.Select):
        return None
    found: set[str] = set()
    for item in query.expressions:
        if item.is_star or isinstance(item, exp.Columns):
            of = columns_of(query, columns)
            if of is None:
                return None
            found |= of
        found.add(folded(item.alias_or_name))
    return found


def columns_of(select: Node, columns: Callable[[Node], set[str] | None]) -> set[str] | None:
    found: set[str] = set()
    for source in sources(select):
        names = provided(source, columns)
        if names is None:
            return None
        found |= names
    return found


def provided(source: Node, columns: Callable[[Node], set[str] | None]) -> set[str] | None:
    """Names of the columns a source has, folded; None where they cannot be told. `columns` knows tables."""
    alias = source.args.get("alias")
    renamed = {folded(c.name) for c in alias.columns} if alias is not None and alias.columns else set()
    if isinstance(source, exp.Table):
        found = cte(source)
        if found is None:
            return columns(source)
        names = {folded(c.name) for c in found.args["alias"].columns}
        inner = None if _contains(found, source) else output_names(found.this, columns)
        return names or inner
    if isinstance(source, exp.Subquery):
        return renamed or output_names(source.this, columns)
    return renamed or None


def aliases(select: Node) -> set[str]:
    """Names that the SELECT list gives to its columns."""
    return {folded(item.alias) for item in select.expressions if isinstance(item, exp.Alias)}


def in_order(node: Node, select: Node) -> bool:
    found = node.find_ancestor(exp.Order, exp.Select, exp.Window)
    return isinstance(found, exp.Order) and found.parent is select


def stars(select: Node) -> Iterator[tuple[Node, str | None]]:
    """`*`, `t.*` and COLUMNS(...) of a SELECT, each with the table it names."""
    for node in within(select):
        if isinstance(node, exp.Columns):
            yield node, None
        elif isinstance(node, exp.Star) and not isinstance(node.parent, (exp.Count, exp.Columns)):
            named = isinstance(node.parent, exp.Column) and node.parent.table
            yield node, folded(node.parent.table) if named else None
