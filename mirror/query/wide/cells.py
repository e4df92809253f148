"""`history_wide` and `system_wide`: a row per logged row, a column per key, joined out of the cells of each key.

A row exists if one of the keys that a query mentions was logged in it. Each key is scanned by itself, with the
conditions that concern it, and the scans are joined on (rid, row): from the keys that a row must have, or from one
that was logged in every row, outwards; in full where there is none. (Aggregating all cells by row takes ten times
as long.) Two cells of a row under one dotted name, `a.b` and `{"a": {"b": ..}}`, are one column: the literal one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mirror.errors import QueryError
from mirror.query.wide.catalogue import PREFIX, Ask, Column, Key, Names, Scope, exact_json, listed, spelled, spellings
from mirror.store.views import quoted

OWN = ("source", "entity", "project", "run_id", "rid", "_step", "step", "row", "ts")
_OF_RUN = OWN[:4]
MOST = 200
"""Keys that `select *` takes as columns."""

_TABLES = {"history_wide": ("history", "history_rows"), "system_wide": ("system_metrics", "system_rows")}
_STRING = "try(json_extract_string(j, '$'))"
_JSON = exact_json("v", "j", "kind", "j", "cast(v as varchar)")
_CATALOGUE = """(
  select rid, key, path_id, count(*) as n, count(*) filter (where kind = 'number') as n_number,
    count(*) filter (where kind = 'nonfinite') as n_nonfinite, count(*) filter (where kind = 'int') as n_int,
    count(*) filter (where kind = 'bool') as n_bool, count(*) filter (where kind = 'string') as n_string,
    count(*) filter (where kind in ('list', 'dict', 'media')) as n_json
  from {cells}{where} group by rid, key, path_id
)"""


class Cells:
    """One wide view of cells over the runs in question."""

    def __init__(self, view: str, ask: Ask, scope: Scope) -> None:
        self.table, held = _TABLES[view]
        self._view = view
        self._ask = ask
        self._scope = scope.condition
        self._live = scope.live(self.table)
        self._runs = f"(select rid, {held} as held from raw.live{self._where(self._scope)})"
        self._catalogue = f"(select * from {scope.live('metric')}{self._where(self._scope)})"
        if self.table != "history":
            self._catalogue = _CATALOGUE.format(cells=self._live, where=self._where("kind <> 'empty'", self._scope))

    def _where(self, *conditions: str) -> str:
        found = " and ".join(c for c in conditions if c)
        return f" where {found}" if found else ""

    # -- names --------------------------------------------------------------------------------------------

    def names(self, mentioned: Sequence[str] | None) -> Names:
        """The keys that some names may mean, or all keys (None)."""
        wanted = ""
        if mentioned is not None:
            if not mentioned:
                return Names(OWN, {})
            wanted = f"lower(key) in ({listed(set().union(*map(spellings, mentioned)), lower=True)})"
        rows = self._ask(
            "select key, sum(n_number + n_nonfinite)::bigint, sum(n_int)::bigint, sum(n_bool)::bigint, "
            "sum(n_string)::bigint, sum(n_json)::bigint, count(*), count(distinct rid), "
            "count(*) filter (where n = held) "
            f"from {self._catalogue} join {self._runs} using (rid){self._where(wanted)} group by key"
        )
        keys: dict[str, Key] = {}
        for row in rows:
            name, floats, ints, bools, strings, documents, places, runs, filled = row
            keys[name] = Key(
                name, floats + ints, bools, strings, documents, ints > 0 and not floats,
                runs=runs, filled=0 if places > runs else filled, doubled=places > runs,
            )  # fmt: skip
        return Names(OWN, keys)

    def expanded(self, names: Names) -> list[Column]:
        """What `select *` has. QueryError if that were too many columns."""
        if len(names.keys) > MOST:
            raise QueryError(
                f"`select *` from {self._view} would have {len(names.keys):,} metrics as columns, at most {MOST} are "
                "taken: name the ones you need, or ask for fewer runs (where project = ...); the view "
                f"{'metrics' if self.table == 'history' else self.table} lists them"
            )
        own = [Column(name) for name in OWN if name != "step"]
        plain = [
            Column(key if self._is_free(key, names) else f"metric:{key}", key)
            for key in sorted(names.keys)
            if key != "_step"
        ]
        mixed = [replace(c, name=f"{c.name}::json", json=True) for c in plain if c.key and names.keys[c.key].mixed]
        return own + sorted(plain + mixed, key=lambda c: c.name.removeprefix("metric:"))

    @staticmethod
    def _is_free(key: str, names: Names) -> bool:
        return key != "" and (found := names.look(key, True)) is not None and found.key == key

    def unknown(self, name: str) -> str:
        where = " among the runs that the query asks for" if self._scope else ""
        near = self.names(None).near(name)
        name = name.removeprefix(PREFIX)
        known = "the view metrics lists them" if self.table == "history" else f"see the keys of {self.table}"
        return f"there is no metric `{name}`{where}; " + (f'did you mean `"{near}"`?' if near else known)

    # -- SQL ----------------------------------------------------------------------------------------------

    def sql(
        self, columns: Sequence[tuple[str, Column]], names: Names, needed: set[str], rows: list[str],
        conditions: dict[str, list[str]], *, every_row: bool = False,
    ) -> str:  # fmt: skip
        """A SELECT with `columns` (each under a name of its own). `rows` are conditions on rid, row, step and ts,
        `conditions` such on the value `v` (or its JSON, `j`) of single keys, `needed` the keys a row must have.
        `every_row`: rows that have none of the keys count, too."""
        keys = list(dict.fromkeys(c.key for _, c in columns if c.key is not None))
        if every_row and "_step" in names.keys and "_step" not in keys:
            keys.append("_step")
        keys.sort(key=lambda key: key not in needed)
        with_json = {c.key for _, c in columns if c.json}
        typed = self._typed([names.keys[key] for key in keys if key in names.keys])
        scans = []
        for key in keys:
            scan = self._scan(typed.get(key) or Key(key, 1, 0, 0, 0), rows, key in with_json)
            if conditions.get(key):
                scan = f"select * from ({scan}) where {' and '.join(f'({c})' for c in conditions[key])}"
            scans.append(scan)
        body = self._joined(keys, scans, with_json, needed, rows, typed)
        place = {key: i for i, key in enumerate(keys)}
        shown = []
        for name, column in columns:
            if column.key is not None:
                of = f"k.{'j' if column.json else 'v'}{place[column.key]}"
            else:
                of = f"l.{column.name}" if column.name in _OF_RUN else f"k.{column.name.removeprefix('_')}"
            shown.append(f"{of} as {quoted(name)}")
        live = (
            " join raw.live as l on l.rid = k.rid" if any(c.name in _OF_RUN and not c.key for _, c in columns) else ""
        )
        return f"select {', '.join(shown) or '1'} from ({body}) as k{live}"

    def _scan(self, key: Key, rows: list[str], json: bool) -> str:
        value = key.value("v", "j", "j", "kind", _STRING)
        only = " qualify row_number() over (partition by rid, row order by path_id < 0, path_id) = 1"
        return (
            f"select rid, row, step, ts, {value} as v{f', {_JSON} as j' if json else ''} "
            f"from {self._live}{self._where(f'key = {spelled(key.name)}', self._scope, *rows)}"
            + (only if key.doubled else "")
        )

    def _joined(
        self, keys: list[str], scans: list[str], with_json: set[str | None], needed: set[str], rows: list[str],
        typed: dict[str, Key],
    ) -> str:  # fmt: skip
        if not keys:
            return self._all_rows(rows)
        base = 0 if keys[0] in needed else self._filled(keys, typed)
        values = ", ".join(f"k{i}.v as v{i}" for i in range(len(keys)))
        values += "".join(f", k{i}.j as j{i}" for i, key in enumerate(keys) if key in with_json)
        if base is None:
            steps = ", ".join(
                f"coalesce({', '.join(f'k{i}.{c}' for i in range(len(keys)))}) as {c}" for c in ("step", "ts")
            )
            joins = "".join(f" full join ({scan}) as k{i} using (rid, row)" for i, scan in enumerate(scans) if i)
            return f"select rid, row, {steps}, {values} from ({scans[0]}) as k0{joins}"
        joins = "".join(
            f" {'' if keys[i] in needed else 'left '}join ({scan}) as k{i}"
            f" on k{i}.rid = k{base}.rid and k{i}.row = k{base}.row"
            for i, scan in enumerate(scans)
            if i != base
        )
        own = ", ".join(f"k{base}.{c}" for c in ("rid", "row", "step", "ts"))
        return f"select {own}, {values} from ({scans[base]}) as k{base}{joins}"

    def _filled(self, keys: list[str], typed: dict[str, Key]) -> int | None:
        """A key that was logged in every row of every run that has one of the keys."""
        if len(keys) == 1:
            return 0
        full = [i for i, key in enumerate(keys) if key in typed and 0 < typed[key].runs == typed[key].filled]
        if not full:
            return None
        counted = self._ask(
            f"select count(distinct rid) from {self._catalogue} join {self._runs} using (rid) "
            f"where key in ({listed(keys)})"
        )
        best = max(full, key=lambda i: typed[keys[i]].runs)
        return best if counted and typed[keys[best]].runs == counted[0][0] else None

    def _all_rows(self, rows: list[str]) -> str:
        """All logged rows, for a query that mentions no key; `_step` has them all, as a rule."""
        lacking = self._ask(
            f"select count(*) from {self._runs} r left join (select rid, sum(n) as n from {self._catalogue} "
            "where key = '_step' group by rid) m using (rid) where r.held <> coalesce(m.n, 0)"
        )
        if lacking and lacking[0][0] == 0:
            return self._scan(Key("_step", 1, 0, 0, 0), rows, False)
        return f"select distinct rid, row, step, ts from {self._live}{self._where(self._scope, *rows)}"

    def _typed(self, keys: list[Key]) -> dict[str, Key]:
        """Integers: whether some of them need more than a DOUBLE."""
        whole = [key.name for key in keys if key.beyond and not key.mixed]
        longest: dict[str, int] = {}
        if whole:
            longest = dict(
                self._ask(
                    f"select key, max(length(j)) from raw.{self.table}_live"
                    f"{self._where(f'key in ({listed(whole)})', self._scope, 'j is not null')} group by key"
                )
            )
        return {k.name: replace(k, beyond=k.name in longest and longest[k.name] <= _HUGEINT) for k in keys}


_HUGEINT = 38
"""Characters that always fit into a HUGEINT."""
