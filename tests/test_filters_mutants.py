"""Does the proof prove anything? Each mutant is the translator with one mistake in it, and must be caught."""
# ruff: noqa: E501 (a mutant a line)

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import mongo_match
import pytest
from test_filters import ABSENT, PROJECT, QUERIES, SEMANTICS, Store
from test_filters_proof import Table

from mirror.errors import MirrorError
from mirror.filters import to_sql
from mirror.query.filters import compile as compiler
from mirror.query.filters import fields, lists, values
from mirror.query.filters.parse import _Parser as Parser

_PYTHONS_OWN = ("b$", "# both")  # patterns that Python's `re` reads differently

MUTANTS: dict[str, tuple[Any, str, str]] = {
    "missing is not null": (values.allows_missing, "return None in condition.values", "return False"),
    "$gte null without missing": (values.allows_missing, "condition.operator in _OR_EQUAL", 'condition.operator == "$eq"'),
    "true is 1": (values.branches, "if isinstance(constant, bool):", "if False:"),
    "strings as numbers": (values.branches, '{"number": _number(', '{"number": _number(value, operator, constant), "string": _number('),
    "NaN is a number": (values.branches, 'found["nonfinite"] = compared', 'found["nonfinite_"] = compared'),
    "doubles beyond 2^53": (values._number, "abs(constant) < _EXACT", "abs(constant) < 2**62"),
    "big integers by their double": (values._double_against, "int(near) == exact", "True"),
    "lists do not open": (values.holds, "if elements:", "if False:"),
    "an element opens again": (lists.walked, "elements=False", "elements=True"),
    "lists in lists are entered": (lists.walked, '_is_json("OBJECT", column("e"))', '_is_json("ARRAY", column("e"))'),
    "no missing value below a scalar": (lists.walked, 'default=array([cast(exp.null(), "JSON")])', "default=array([])"),
    "no index": (lists.walked, "if INDEX.fullmatch(name):", "if False:"),
    "$elemMatch takes scalars for objects": (lists.element, "if condition.objects else met", "if False else met"),
    "$not of NULL": (lists._inner, "return negated(_inner(node.part, value))", "return _inner(node.part, value)"),
    "$ne of a missing attribute": (compiler.compiled, "else negated(part)", "else exp.Not(this=exp.paren(part))"),
    "no names with dots": (compiler._document, "if field.exact else readings(field.parts)", "if True else []"),
    "pointers lead into lists": (compiler._document, "exp.Not(this=inside)", "exp.Not(this=FALSE.copy())"),
    "missing below a list": (compiler._document, "*([[part.copy() for part in an_array]] if walks else [])", "*[]"),
    "$and as $or": (compiler._joined, "join(holds(", "either(holds("),
    "$in without the second": (values._in, "strings = [c for c in constants if isinstance(c, str)]", "strings = [c for c in constants if isinstance(c, str)][:1]"),
    "$nin without lists": (values._in, '((ARRAY, list), ("object", dict))', '(("object", dict),)'),
    "objects with more names": (values._same, 'equal(call("len", call("json_keys", at.copy())), len(constant))', "TRUE.copy()"),
    "lists with more elements": (values._same, 'equal(call("json_array_length", at.copy()), len(constant))', "TRUE.copy()"),
    "$mod of 64 bits only by double": (values._mod, "_hugeint(_digits_only(value)), ", ""),
    "$type int of any size": (values._of_types, "low=whole(_INT[0])", "low=whole(_LONG[0])"),
    "patterns match the whole": (values.on_text, '"regexp_matches"', '"regexp_full_match"'),
    "slashes in names": (values.escaped, '.replace("/", "~1")', ""),
    "a day ends with its first moment": (compiler._within, '"$lt", _moment(end)', '"$lt", _moment(start)'),
    "tags in any order": (compiler._same_tags, "equal(value, cast(array(map(text, wanted)), \"VARCHAR[]\"))", 'call("list_has_all", value, array(map(text, wanted)))'),
    "tags by their first": (compiler._tags, "for c in condition.values if isinstance(c, str)]", "for c in condition.values[:1] if isinstance(c, str)]"),
    "any tag unlike it": (Parser._unequal, 'Not(self._compare(field, "$eq"', '(lambda part: part)(self._compare(field, "$eq"'),
    "$nor as $not of $and": (Parser._combination, "else Not(Or(tuple(parts)))", "else Not(And(tuple(parts)))"),
    "$all as $in": (Parser._all, "return And(tuple(parts)) if parts", "return Or(tuple(parts)) if parts"),
    "$exists by its truth alone": (Parser._exists, "if operand else Not(Exists(field, place))", "if True else None"),
    "`name` is the display name": (fields.resolve, "_BY_NAME.get(_plain(name))", '_BY_NAME.get("displayname" if name == "name" else _plain(name))'),
    "`value` stays": (fields.resolve, 'parts[1:2] == ("value",)', "False"),
}  # fmt: skip


def mutate(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], old: str, new: str) -> None:
    """Change a function's code where it stands, whoever has imported it."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"`{old}` is not in {function.__qualname__} once"
    names: dict[str, Any] = {}
    exec(
        compile("from __future__ import annotations\n" + source.replace(old, new), "<mutant>", "exec"),
        function.__globals__.copy(),
        names,
    )
    monkeypatch.setattr(function, "__code__", names[function.__name__].__code__)


class Corpus:
    """Filters with the answers they must have: a small part of the proof, asked in few statements."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.table = Table()
        stored = [{} if value is ABSENT else {"x": value} for value, _, _ in SEMANTICS]
        self.table.fill([(document, {"a/b": 1, "n": i}) for i, document in enumerate(stored)])
        asked = [query for _, query, _ in SEMANTICS if not any(text in str(query) for text in _PYTHONS_OWN)] + MORE
        self.documents = [(q, [mongo_match.matches(run, q) for run in self.table.runs]) for q in asked]
        self.projects = [(q, [mongo_match.matches(run, q) for run in store.runs.values()]) for q in QUERIES]

    def shows_a_difference(self) -> bool:
        try:
            return any(not self._agree(self.documents[i : i + 25], self.table.answers) for i in range(0, 250, 25)) or (
                not self._agree(self.projects, self._answers)
            )
        except (MirrorError, duckdb.Error, AssertionError):
            return True

    def _agree(self, asked: list[tuple[Any, list[bool]]], answers: Callable[[list[str]], list[list[bool]]]) -> bool:
        return answers([to_sql(query) for query, _ in asked]) == [expected for _, expected in asked]

    def _answers(self, expressions: list[str]) -> list[list[bool]]:
        rows = self.store.db.execute(f"select {', '.join(expressions)} from runs order by run_id").fetchall()
        return [[bool(row[i]) for row in rows] for i in range(len(expressions))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(Store(tmp_path_factory.mktemp("project") / "m", PROJECT))


MORE: list[dict[str, Any]] = [
    {"summary_metrics.a/b": 1},
    {"config.x": {"$in": ["a", "adam"]}},
    {"config.x": {"$in": ["b", [1, 7], None]}},
    {"config.x": {"$nin": [[1, 7], [1]]}},
    {"config.x": {"$gte": 2**53 + 1}},
    {"config.x": {"$gt": 0.3}},
    {"config.x.y": {"$ne": 1}},
    {"config.x.y": {"$in": [None, 5]}},
    {"config.x": [1]},
    {"config.x": {"a": 1}},
    {"config.x": {"$elemMatch": {"y": None}}},
    {"config.x": {"$elemMatch": {"y": {"$not": {"$gt": 1}}}}},
    {"config.x.0": {"$gt": 1}},
    {"config.x.0.y": 1},
]


def test_the_translator_as_it_is_survives(corpus: Corpus) -> None:
    assert len(corpus.documents) <= 250
    assert not corpus.shows_a_difference()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[name])
    assert corpus.shows_a_difference()


def test_the_matcher_shares_no_code_with_the_translator() -> None:
    assert "mirror" not in Path(inspect.getfile(mongo_match)).read_text(encoding="utf-8")
