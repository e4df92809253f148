"""Which conditions of a WHERE a wide view may apply early, and which keys they make necessary.

A condition on the columns of a row (run, step, time) leaves the same rows whether it is applied to the wide rows or to
the cells of every key. A condition on a key may go to that key's cells if it cannot hold for NULL: then rows without
the key are lost anyway. Only conditions made of a few harmless pieces are considered; all stay in the query as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlglot import exp

from mirror.query.wide.names import Node, Reference, cte, folded, provided

RUN_COLUMNS = ("source", "entity", "project", "run_id", "rid")
ROW_COLUMNS = ("rid", "row", "step", "_step", "ts")

_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike)
_STRICT = (*_COMPARISONS, exp.Add, exp.Sub, exp.Mul, exp.Neg, exp.Paren, exp.Not, exp.Cast)
_HARMLESS = (
    *_STRICT, exp.And, exp.Or, exp.Between, exp.In, exp.Is, exp.Null, exp.Boolean, exp.Literal, exp.Column,
    exp.Identifier, exp.Placeholder, exp.Parameter, exp.Tuple, exp.DataType, exp.Subquery, exp.Select, exp.From,
    exp.Where, exp.Table, exp.TableAlias, exp.Var,
)  # fmt: skip


@dataclass
class Pushed:
    """Conditions for a wide view: on its runs, on its rows, on cells of single keys; keys that must be there."""

    runs: list[Node] = field(default_factory=list)
    rows: list[Node] = field(default_factory=list)
    keys: dict[str, list[Node]] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)


def conjuncts(reference: Reference) -> Iterator[Node]:
    """The conditions that every row of the wide view has to meet to be in the result."""
    where = reference.select.args.get("where")
    if where is None or not _filtered_first(reference):
        return
    for condition in where.this.flatten() if isinstance(where.this, exp.And) else [where.this]:
        if all(isinstance(node, _HARMLESS) for node in condition.walk()):
            yield condition


def _filtered_first(reference: Reference) -> bool:
    """Whether WHERE may be applied before the joins: not for the side of an outer join that is filled with NULLs."""
    table, select = reference.table, reference.select
    # A sample is taken before WHERE, from the rows of the joins.
    if any(node.args.get("sample") for node in (table, select)) or table.args.get("pivots"):
        return False
    if not isinstance(table.parent, (exp.From, exp.Join)):
        return False
    joins = [node for node in select.args.get("joins") or () if isinstance(node, exp.Join)]
    if any(join.side in ("RIGHT", "FULL") or join.method in ("POSITIONAL", "NATURAL") for join in joins):
        return False
    if isinstance(table.parent, exp.From):
        return table.parent.parent is select
    own = table.parent
    return own.parent is select and own.side == "" and own.kind in ("", "INNER", "CROSS") and own.method == ""


def pushed(
    reference: Reference, means: Callable[[Node], str | None], columns: Callable[[Node], set[str] | None]
) -> Pushed:
    """`means(column)` is the name of a column of the wide view, folded if it is one of ours and with a leading
    `metric:` if it is a key; None if the column is not of this view."""
    found = Pushed()
    for condition in conjuncts(reference):
        names = _names(condition, means, columns)
        if names is None:
            continue
        keys = {name for name in names if name.startswith("metric:")}
        if not keys and names:
            if names <= set(RUN_COLUMNS):
                found.runs.append(condition)
            elif names <= set(ROW_COLUMNS):
                found.rows.append(condition)
            continue
        needed = {key for key in keys if _needs(condition, lambda node, key=key: means(node) == key)}  # type: ignore[misc]
        found.needed |= needed
        if len(keys) == 1 and needed and names - keys <= set(ROW_COLUMNS):
            found.keys.setdefault(keys.pop(), []).append(condition)
    return found


def _names(
    condition: Node, means: Callable[[Node], str | None], columns: Callable[[Node], set[str] | None]
) -> set[str] | None:
    """Columns of the wide view in a condition; None if it has others, or a subquery that is not on its own."""
    found: set[str] = set()
    for node in condition.find_all(exp.Column):
        name = means(node)
        inner = node.find_ancestor(exp.Select)
        inside = inner is not None and any(inner is s for s in condition.find_all(exp.Select))
        if inside:
            if name is not None or not _own(node, inner, columns):
                return None
        elif name is None:
            return None
        else:
            found.add(name)
    for table in condition.find_all(exp.Table):
        if cte(table) is not None or (table.meta.get("wide") and not table.meta.get("wide_sql")):
            return None
    return found


def _own(column: Node, select: Node, columns: Callable[[Node], set[str] | None]) -> bool:
    source = select.args["from_"].this if select.args.get("from_") is not None else None
    if not isinstance(source, exp.Table) or select.args.get("joins"):
        return False
    if source.meta.get("wide"):
        return "means" in column.meta
    known = provided(source, columns)
    if column.table and folded(column.table) != folded(source.alias_or_name):
        return False
    return known is not None and folded(column.name) in known


def _needs(condition: Node, is_key: Callable[[Node], bool]) -> bool:
    """Whether the condition can hold only where the key is not NULL."""
    if isinstance(condition, exp.Paren):
        return _needs(condition.this, is_key)
    if isinstance(condition, exp.And):
        return _needs(condition.left, is_key) or _needs(condition.right, is_key)
    if isinstance(condition, exp.Or):
        return _needs(condition.left, is_key) and _needs(condition.right, is_key)
    if isinstance(condition, exp.Not) and isinstance(condition.this, exp.Is):
        inner = condition.this
        return isinstance(inner.expression, exp.Null) and _null_with(inner.this, is_key)
    if isinstance(condition, exp.In):
        return _null_with(condition.this, is_key)
    return _null_with(condition, is_key)


def _null_with(node: Node, is_key: Callable[[Node], bool]) -> bool:
    """Whether an expression is NULL wherever the key is. (NULL IN (a query without rows) is false, not NULL.)"""
    if isinstance(node, exp.Column):
        return is_key(node)
    if isinstance(node, exp.Between) or (isinstance(node, exp.In) and node.args.get("query") is None):
        return _null_with(node.this, is_key)
    if isinstance(node, _STRICT):
        return any(_null_with(child, is_key) for child in node.iter_expressions())
    return False
