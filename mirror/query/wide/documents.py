"""`runs_wide`: the view `runs` with the leaves of config and summary as columns.

`"config.opt.lr"` is the value at opt, lr (or under the literal name `opt.lr`), as filters read names; `"config/opt/lr"`
is one node by its JSON pointer, so that `{"a": {"b": 1}}` (`"config/a/b"`) and `{"a.b": 1}` (`"config/a.b"`) can be
told apart. Lists and dictionaries are JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mirror.errors import QueryError
from mirror.query.wide.catalogue import JSON, Ask, Column, Key, Names, Scope, exact_json, listed, spelled, spellings
from mirror.query.wide.names import folded
from mirror.store.views import quoted

TABLES = ("config", "summary")
MOST = 500
"""Values of config and summary that `select *` takes as columns."""
_DIGITS = (
    "case when num = floor(num) and abs(num) < 1e15 then cast(cast(num as bigint) as varchar) "
    "else cast(num as varchar) end"
)
# W&B spells non-finite numbers as strings; among numbers they are numbers.
_SPELLED = "type = 'string' and str in ('NaN', 'Infinity', '-Infinity')"
_NUMBER = f"case when {_SPELLED} then cast(str as double) else num end"
_LONG = "case when type = 'number' then str end"
_JSON = exact_json("num", "str", "type", "cast(to_json(str) as varchar)", _DIGITS)


class Documents:
    """The wide view of runs."""

    def __init__(self, ask: Ask, scope: Scope) -> None:
        self._ask = ask
        self._scope = scope.condition
        self._places: dict[str, list[tuple[str, str]]] = {}
        """Name of a column -> tables and pointers it is read from."""

    # -- names --------------------------------------------------------------------------------------------

    def names(self, mentioned: Sequence[str] | None) -> Names:
        """The values that some names may mean, or all of them (None)."""
        keys: dict[str, Key] = {}
        own = [str(row[0]) for row in self._ask("select column_name from (describe runs)")]
        for table in TABLES:
            found = self._nodes(table, mentioned)
            dotted: dict[str, list[str]] = {}
            for path, key in found.items():
                exact = table + path
                keys[exact], self._places[exact] = key, [(table, path)]
                dotted.setdefault(table + "".join(f".{part}" for part in _parts(path)), []).append(path)
            for name, paths in dotted.items():
                # Nested names come before names with dots, as in filters.
                paths.sort(key=lambda path: (-path.count("/"), path))
                keys[name] = _merged(name, [found[path] for path in paths])
                self._places[name] = [(table, path) for path in paths]
        return Names(own, keys)

    def _nodes(self, table: str, mentioned: Sequence[str] | None) -> dict[str, Key]:
        wanted = ["path <> ''", self._scope]
        if mentioned is not None:
            pointers = {p for name in mentioned for spelling in spellings(name) for p in _pointers(table, spelling)}
            if not pointers:
                return {}
            wanted.append(f"lower(path) in ({listed(pointers, lower=True)})")
        else:  # leaves: neither what is inside a list nor what has something inside
            wanted.append("(type <> 'object' or str = '{}')")
            wanted.append(
                f"not exists (select 1 from raw.{table}_live l where l.rid = t.rid and l.type = 'array' "
                "and starts_with(t.path, l.path || '/'))"
            )
        rows = self._ask(
            "select path, count(*) filter (where type in ('number', 'nonfinite')), "
            "count(*) filter (where type = 'bool'), count(*) filter (where type = 'string'), "
            f"count(*) filter (where {_SPELLED}), "
            "count(*) filter (where type in ('object', 'array')), coalesce(bool_and(str is not null or num=floor(num))"
            " filter (where type in ('number', 'nonfinite')), false) "
            "and count(*) filter (where type = 'number' and str is not null) > 0 "
            "and coalesce(max(length(str)) filter (where type = 'number'), 0) <= 38, count(*) "
            f"from raw.{table}_live t where {' and '.join(w for w in wanted if w)} group by path"
        )
        found = {}
        for row in rows:
            path, numbers, bools, strings, spelled_numbers, documents, beyond, runs = row
            if numbers:
                numbers, strings, beyond = (
                    numbers + spelled_numbers,
                    strings - spelled_numbers,
                    not spelled_numbers and beyond,
                )
            found[path] = Key(table + path, numbers, bools, strings, documents, beyond, runs=runs)
        return found

    def adopt(self, name: str, other: Documents) -> None:
        """Know where a value is that only `other`, for more runs, has found."""
        self._places[name] = other._places[name]

    def expanded(self, names: Names) -> list[Column]:
        """What `select *` has. QueryError if that were too many columns."""
        shown: dict[tuple[str, str], str] = {}
        for nicer in (False, True):  # a dotted name that means one place only is the nicer one
            for name, places in self._places.items():
                if name in names.keys and len(places) == 1 and (name[len(places[0][0])] == ".") is nicer:
                    shown[places[0]] = name
        if len(shown) > MOST:
            raise QueryError(
                f"`select *` from runs_wide would have {len(shown):,} values of config and summary as columns, at most "
                f"{MOST} are taken: name the ones you need, or ask for fewer runs (where project = ...)"
            )
        own = [Column(name) for name in names.own.values()]
        found = [Column(name, name) for name in sorted(shown.values())]
        mixed = [Column(c.name + JSON, c.key, True) for c in found if c.key and names.keys[c.key].mixed]
        return own + sorted(found + mixed, key=lambda c: c.name)

    def unknown(self, name: str) -> str:
        near = self.names(None).near(name)
        hint = f'did you mean `"{near}"`?' if near else '`"config.<key>"` and `"summary.<key>"` are values of runs'
        return f"runs_wide has no column `{name}`; {hint}"

    # -- SQL ----------------------------------------------------------------------------------------------

    def sql(self, columns: Sequence[tuple[str, Column]], names: Names) -> str:
        """A SELECT with `columns`, each under a name of its own, a row per run."""
        joins: list[str] = []
        shown = []
        keys = dict.fromkeys(c.key for _, c in columns if c.key is not None)
        with_json = {c.key for _, c in columns if c.json}
        values: dict[str, tuple[str, str]] = {}
        for name in keys:
            key, parts = names.keys[name], []
            for table, path in self._places[name]:
                alias = f"d{len(joins)}"
                value = key.value(_NUMBER, _LONG, "str", "type", "str")
                json = f", {_JSON} as j" if name in with_json else ""
                scope = f" and {self._scope}" if self._scope else ""
                scan = f"select rid, {value} as v{json} from raw.{table}_live where path = {spelled(path)}{scope}"
                joins.append(f" left join ({scan}) as {alias} on {alias}.rid = r.rid")
                parts.append(alias)
            values[name] = _first(parts, "v"), _first(parts, "j")
        for name, column in columns:
            of = f"r.{quoted(column.name)}" if column.key is None else values[column.key][column.json]
            shown.append(f"{of} as {quoted(name)}")
        return f"select {', '.join(shown) or '1'} from runs as r{''.join(joins)}"


def _first(aliases: Sequence[str], column: str) -> str:
    found = [f"{alias}.{column}" for alias in aliases]
    return found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"


def _parts(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _pointers(table: str, name: str) -> list[str]:
    """Pointers that a name may mean."""
    from mirror.query.filters.compile import pointer, readings

    if folded(name[: len(table)]) != table or name[len(table) : len(table) + 1] not in ("/", "."):
        return []
    if name[len(table)] == "/":
        return [name[len(table) :]]
    parts = tuple(name[len(table) + 1 :].split("."))
    return [pointer(reading) for reading in (readings(parts) if len(parts) <= _MOST_PARTS else [parts])]


_MOST_PARTS = 20


def _merged(name: str, keys: list[Key]) -> Key:
    if len(keys) == 1:
        return replace(keys[0], name=name)

    def total(field: str) -> int:
        return sum(getattr(key, field) for key in keys)

    beyond = any(key.beyond for key in keys) and all(key.beyond or not key.numbers for key in keys)
    return Key(name, total("numbers"), total("bools"), total("strings"), total("documents"), beyond)
