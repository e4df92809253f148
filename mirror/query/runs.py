"""Which runs: paths, filters and orders to SQL over the view `runs`, and one run by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirror.errors import AmbiguousError, NotFoundError, UsageError
from mirror.paths import WandbPath, canonical_source, parse
from mirror.query.filters import Filter
from mirror.query.sql import execute

if TYPE_CHECKING:
    from sqlglot.expressions import Expression as Expr
    from sqlglot.expressions import Select

    from mirror.store import Reader

_EXAMPLE_PATHS = 5


@dataclass(frozen=True)
class Selection:
    """Runs of any of `paths` (of all, without any) that meet `filter`, ordered, at most `limit` of them.

    Runs that were found deleted at their source are left out, unless `deleted` wants them or a path names the run.
    """

    paths: Sequence[WandbPath] = ()
    source: str | None = None
    filter: Filter | None = None
    order: str | None = None
    limit: int | None = None
    deleted: bool = False

    def sql(self, columns: Sequence[Expr]) -> str:
        from mirror.query.filters.sql import written

        return written(self.query(columns))

    def query(self, columns: Sequence[Expr]) -> Select:
        from sqlglot import exp

        from mirror.query.filters.compile import compiled
        from mirror.query.filters.order import ordered
        from mirror.query.filters.sql import both, either

        conditions = [either(self._within(path) for path in self.paths)] if self.paths else [self._alive()]
        if self.source is not None:
            conditions.append(_equals("source", self.source))
        if self.filter is not None:
            conditions.append(compiled(self.filter.node))
        query = exp.select(*columns).from_("runs").where(both(conditions), copy=False)
        query = query.order_by(*ordered(self.order)[0], copy=False)
        return query if self.limit is None else query.limit(self.limit, copy=False)

    def _within(self, path: WandbPath) -> Expr:
        from mirror.query.filters.sql import both

        return condition(path) if path.run_id is not None else both([condition(path), self._alive()])

    def _alive(self) -> Expr:
        from mirror.query.filters.sql import TRUE, column, is_null

        return TRUE.copy() if self.deleted else is_null(column("deleted_at", "runs"))


@dataclass(frozen=True)
class Chosen:
    """Runs by rid, in the order given."""

    rids: Sequence[int]

    def query(self, columns: Sequence[Expr]) -> Select:
        from sqlglot import exp

        from mirror.query.filters.sql import FALSE, array, call, column, member

        literals = [exp.Literal.number(rid) for rid in self.rids]
        query = exp.select(*columns).from_("runs")
        if not literals:
            return query.where(FALSE.copy(), copy=False)
        place = call("list_position", array(literals), column("rid", "runs"))
        return query.where(member(column("rid", "runs"), [n.copy() for n in literals]), copy=False).order_by(place)


def condition(path: WandbPath) -> Expr:
    from mirror.query.filters.sql import both

    named = {"entity": path.entity, "project": path.project, "run_id": path.run_id, "sweep": path.sweep_id}
    parts = [_equals(column, value) for column, value in named.items() if value is not None]
    if path.base_url is not None:
        parts.append(_equals("source", canonical_source(path.base_url)))
    return both(parts)


def _equals(name: str, value: str) -> Expr:
    from mirror.query.filters.sql import column, equal

    return equal(column(name, "runs"), value)


def rids(reader: Reader, selection: Selection) -> list[int]:
    """The selected runs as rids, in order."""
    from mirror.query.filters.sql import column

    return [row[0] for row in execute(reader, selection.sql([column("rid", "runs")]))]


def find_run(reader: Reader, path: str, source: str | None = None) -> Mapping[str, Any]:
    """The row of `runs` that a run path names; errors as in `locate`."""
    found = execute(reader, "select * from runs where rid = ?", [locate(reader, path, source)])
    return dict(zip(found.columns, found.fetchall()[0], strict=True))


def locate(
    reader: Reader, path: str, source: str | None = None, *, entity: str | None = None, project: str | None = None
) -> int:
    """The rid of the run that a path names: entity/project/run, project/run, run or a URL. `entity` and `project`
    are preferred where the path leaves them out, and a run that is there to one that was deleted at its source.

    Raises NotFoundError, or AmbiguousError if several sources (or entities, where none is written) have it."""
    wanted = parse(path, want="run")
    if wanted.run_id is None:
        raise UsageError(f"`{path}` names no run: write entity/project/run")
    source = canonical_source(wanted.base_url) if wanted.base_url is not None else source
    named = {"run_id": wanted.run_id, "entity": wanted.entity, "project": wanted.project, "source": source}
    parts = {column: value for column, value in named.items() if value is not None}
    # raw.live is in memory, unlike `runs`.
    query = "select rid, source, entity, project, run_id, deleted_at is not null as gone from raw.live where "
    found = execute(reader, query + " and ".join(f"{column} = ?" for column in parts), list(parts.values()))
    rows = [dict(zip(found.columns, row, strict=True)) for row in found]
    if not rows:
        raise NotFoundError(_missing_run(reader, wanted, path))
    for preferred in ({"entity": entity}, {"project": project}, {"gone": False}):
        rows = [row for row in rows if row | preferred == row] or rows
    if len(rows) > 1:
        names = sorted({f"{r['entity']}/{r['project']}/{r['run_id']}" for r in rows})
        if len(names) > 1:
            raise AmbiguousError(f"`{path}` may be {_some(names)}: write the whole path")
        if len({row["source"] for row in rows}) > 1:
            sources = ", ".join(sorted(f"`{r['source']}`" for r in rows))
            raise AmbiguousError(
                f"`{names[0]}` is held from {len(rows)} sources, {sources}: name one "
                "(--source HOST, or Api(source=...))"
            )
    return int(max(row["rid"] for row in rows))


def find_path(reader: Reader, path: str, source: str | None = None) -> WandbPath:
    """What a path names in this mirror: an entity, a project, a sweep or a run, which may be written by its id alone.

    Raises NotFoundError or AmbiguousError."""
    wanted = parse(path)
    try:
        check_held(reader, wanted, source)
    except NotFoundError:
        if wanted.run_id is not None or wanted.sweep_id is not None or wanted.base_url is not None:
            raise
        try:
            row = find_run(reader, path, source)
        except NotFoundError:
            pass
        else:
            return WandbPath(row["entity"], row["project"], row["run_id"])
        raise
    return wanted


def check_held(reader: Reader, path: WandbPath, source: str | None) -> None:
    from sqlglot import exp

    if execute(reader, Selection([path], source, limit=1, deleted=True).sql([exp.Literal.number(1)])).fetchone():
        return
    if path.run_id is not None:
        raise NotFoundError(_missing_run(reader, path, path.text))
    held = [(row[0], row[1]) for row in execute(reader, _HELD)]
    names = sorted({name for host, name in held if source in (None, host)})
    if path.text in names:  # a project without runs is an empty list
        return
    where = "the mirror holds nothing" if source is None else f"the mirror holds nothing from `{source}`"
    if source is not None and not names:
        raise NotFoundError(f"{where}; it holds runs from {_some(sorted({host for host, _ in held}))}")
    raise NotFoundError(f"{where} of `{path.text}`; {_near(names, path.text)}")


_HELD = """
select source, entity || '/' || project from projects
union select source, entity || '/' || project from runs
union select source, entity || '/' || project from sync_log
"""


def _missing_run(reader: Reader, path: WandbPath, text: str) -> str:
    query = "select entity || '/' || project || '/' || run_id from runs where run_id = $id or name = $id order by 1"
    near = [row[0] for row in execute(reader, query, {"id": path.run_id})]
    hint = f"did you mean {_some(near)}?" if near else "`mirror runs` lists what it holds"
    return f"the mirror holds no run `{text}`; {hint}"


def _near(held: list[str], wanted: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(wanted, held, 1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"it holds {_some(held)}" if held else "it is empty: `mirror sync ENTITY/PROJECT` fills it"


def _some(names: Sequence[str]) -> str:
    shown = " or ".join(f"`{name}`" for name in names[:_EXAMPLE_PATHS])
    return shown + (f" and {len(names) - _EXAMPLE_PATHS} more" if len(names) > _EXAMPLE_PATHS else "")
