"""Documents and filters out of hostile alphabets, for the proofs: every operator, every shape, and each time few names
and few values, so that the two meet often."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

PLAIN: list[Any] = [
    None, True, False, -3, -1, 0, 1, 2, 3, 4, 5, 8, 0.5, -0.5, -4.5, 1.0, 2.5, 1e300, 2**31 - 1, 2**31, 2**53,
    2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, float(2**60), 5e-324, "", "a", "b", "A", "1",
    "NaN", "é", "ａ", "'", "x' or '1'='1", "a\nb", '"', "\\", "%", "a\0b", "*/", "🦊", "null", "true",
]  # fmt: skip
PATTERNS = ["a", "^a", "[ab]", "1|b", "", "(?i)NAN", "'", "^$", "a.b", "^.b", "\\\\", '[%"]', "^[^a]", "é|🦊"]
STRINGS = [v for v in PLAIN if isinstance(v, str)]


@dataclass(frozen=True)
class Alphabet:
    """`names` in filters, `dotted` further ones in documents, `values` in both, `stored` further ones in documents."""

    names: list[str]
    values: list[Any]
    dotted: tuple[str, ...] = ()
    stored: tuple[Any, ...] = ()


ALPHABETS = {
    "numbers": Alphabet(["x", "y"], [None, True, False, -1, 0, 1, 1.0, 2, 2.5, -4.5, "1", 0.5], stored=(math.nan,)),
    "big": Alphabet(
        ["x"],
        [1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, float(2**60),
         2**60 + 1, 1e300, 5e-324],
        stored=(math.inf, -math.inf),
    ),
    "strings": Alphabet(["x", "é"], ["", "a", "b", "A", "é", "ａ", "🦊", "a\nb", "NaN", None, 1], stored=(math.nan,)),
    "hostile": Alphabet(["'", '"', "%", "a/b", "x~1"], ["'", '"', "\\", "%", "x' or '1'='1", "a\0b", "*/", "--", 1]),
    "lists": Alphabet(["x", "0", "1"], [None, 1, 2, "a", False]),
    "dots": Alphabet(["x", "y", "value"], [None, 1, 2, "a"], dotted=("x.y", "y.x", "x.y.x", ".", "y.", "")),
}  # fmt: skip


def values_of(scalars: list[Any], names: list[str], leaves: int = 5) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.sampled_from(scalars),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=2),
        max_leaves=leaves,
    )


def documents_of(alphabet: Alphabet) -> st.SearchStrategy[dict[str, Any]]:
    names = [*alphabet.names, *alphabet.dotted]
    inner = values_of([*alphabet.values, *alphabet.stored], names)
    return st.dictionaries(st.sampled_from(names), inner, max_size=4)


def _one(operator: str, operand: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({operator: operand})


def _around(conditions: st.SearchStrategy[Any], names: st.SearchStrategy[str], top: bool) -> st.SearchStrategy[Any]:
    """Filters that combine conditions on names; `$not` among them, which MongoDB takes on fields only, at the top."""
    return st.recursive(
        st.dictionaries(names, conditions, min_size=1, max_size=2),
        lambda inner: st.one_of(
            _one("$and", st.lists(inner, max_size=2)),
            _one("$or", st.lists(inner, min_size=1, max_size=2)),
            _one("$nor", st.lists(inner, min_size=1, max_size=2)),
            *([_one("$not", inner)] if top else []),
        ),
        max_leaves=2,
    )


def _bracketed(root: str, names: list[str]) -> str:
    return root + "".join(f"[{json.dumps(name, ensure_ascii=False)}]" for name in names)


def conditions_of(alphabet: Alphabet, *, mongo: bool) -> tuple[st.SearchStrategy[str], st.SearchStrategy[Any]]:
    """Paths without their root, and conditions; with `mongo` only what MongoDB itself would take."""
    scalars = st.sampled_from(alphabet.values)
    values = values_of(alphabet.values, alphabet.names, 3)
    paths = st.lists(st.sampled_from(alphabet.names), min_size=1, max_size=3).map(".".join)
    names = ["double", "string", "object", "array", "bool", "null", "int", "long", "number"]
    kinds = st.sampled_from([*names, 1, 2, 4, 16])
    ranges = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), scalars, min_size=1, max_size=2)
    texts = [v for v in alphabet.values if isinstance(v, str)] or ["a"]
    simple = st.one_of(
        _one("$eq", values),
        _one("$ne", values),
        ranges,
        _one("$in", st.lists(values, max_size=3)),
        _one("$nin", st.lists(values, max_size=3)),
        st.fixed_dictionaries(
            {"$regex": st.sampled_from(PATTERNS)},
            optional={"$options": st.sets(st.sampled_from("ims"), max_size=2).map("".join)},
        ),
        _one("$exists", st.booleans()),
        _one("$size", st.integers(0, 3)),
        _one("$type", kinds | st.lists(kinds, min_size=1, max_size=2)),
        _one("$mod", st.tuples(st.sampled_from([1, 2, 4, -3, 2.5, 2**62]), st.sampled_from([0, 1, -1, 1.5])).map(list)),
        _one("$all", st.lists(values, max_size=2)),
        *([] if mongo else [_one("$contains", st.sampled_from(texts))]),
    )
    elements = st.one_of(simple, _one("$not", simple), _around(values | simple, paths, top=False))
    deeper = st.one_of(
        _one("$elemMatch", elements),
        _one("$elemMatch", _one("$elemMatch", elements)),
        _one("$all", st.lists(_one("$elemMatch", elements), min_size=1, max_size=2)),
    )
    conditions = st.one_of(
        values,
        simple,
        deeper,
        _one("$not", simple | deeper),
        *([] if mongo else [st.builds(lambda a, b: {**a, **b}, ranges, simple)]),
    )
    return paths, conditions


def single_of(alphabet: Alphabet) -> st.SearchStrategy[Any]:
    """One condition on one config value, as MongoDB takes it."""
    paths, conditions = conditions_of(alphabet, mongo=True)
    paths = paths.filter(lambda path: path.split(".")[1:2] != ["value"])  # W&B's wrapper
    return st.builds(lambda path, condition: {f"config.{path}": condition}, paths, conditions)


def filters_of(alphabet: Alphabet) -> st.SearchStrategy[Any]:
    paths, conditions = conditions_of(alphabet, mongo=False)
    roots = st.sampled_from(["config", "summary_metrics"])
    exact = st.lists(st.sampled_from([*alphabet.names, *alphabet.dotted]), min_size=1, max_size=2)
    fields = st.builds("{}.{}".format, roots, paths)
    return _around(conditions, fields | st.builds(_bracketed, roots, exact), top=True)


documents = st.one_of(*map(documents_of, ALPHABETS.values()))
filters = st.one_of(*map(filters_of, ALPHABETS.values()))
