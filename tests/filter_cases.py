"""Documents and filters out of hostile alphabets, for the proofs: every operator, every shape, few values, so that the
two meet often."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

NAMES = ["x", "y", "0", "1", "a/b", "x~1", "é", "value", "'", '"', "x y", "%", "1$"]
DOTTED = [*NAMES, "x.y", "y.x", "x.y.x", ".", "y.", ".x", ""]
PLAIN: list[Any] = [
    None, True, False, -3, -1, 0, 1, 2, 3, 4, 5, 8, 0.5, -0.5, -4.5, 1.0, 2.5, 1e300, 2**31 - 1, 2**31, 2**53,
    2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, float(2**60), 5e-324, "", "a", "b", "A", "1",
    "NaN", "é", "ａ", "'", "x' or '1'='1", "a\nb", '"', "\\", "%", "a\0b", "*/", "🦊", "null", "true",
]  # fmt: skip
NUMBERS = [v for v in PLAIN if isinstance(v, (int, float)) and not isinstance(v, bool)]
STORED = [*PLAIN, math.nan, math.inf, -math.inf]
PATTERNS = ["a", "^a", "[ab]", "1|b", "", "(?i)NAN", "'", "^$", "a.b", "^.b", "\\\\", '[%"]', "^[^a]", "é|🦊"]

_scalars = st.sampled_from(PLAIN)


def _values(scalars: st.SearchStrategy[Any], names: list[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(names), inner, max_size=3),
        max_leaves=8,
    )


documents = st.dictionaries(st.sampled_from(DOTTED), _values(st.sampled_from(STORED), DOTTED), max_size=5)
values = _values(_scalars, NAMES)

_paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(".".join)
_roots = st.sampled_from(["config", "summary_metrics"])
_exact = st.lists(st.sampled_from([n for n in DOTTED if n.isprintable()]), min_size=1, max_size=3)


def _bracketed(root: str, names: list[str]) -> str:
    import json

    return root + "".join(f"[{json.dumps(name, ensure_ascii=False)}]" for name in names)


fields = st.one_of(
    st.builds("{}.{}".format, _roots, _paths),
    st.builds("{}.{}".format, _roots, st.sampled_from(NAMES)),
    st.builds(_bracketed, _roots, _exact),
)
_orders = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])
_kinds = st.sampled_from(["double", "string", "object", "array", "bool", "null", "int", "long", "number", 1, 2, 4, 16])
_options = st.sets(st.sampled_from("ims"), max_size=2).map("".join)


def _one(operator: str, operand: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({operator: operand})


_simple = st.one_of(
    _one("$eq", values),
    _one("$ne", values),
    st.dictionaries(_orders, _scalars, min_size=1, max_size=2),
    _one("$in", st.lists(values, max_size=4)),
    _one("$nin", st.lists(values, max_size=4)),
    st.fixed_dictionaries({"$regex": st.sampled_from(PATTERNS)}, optional={"$options": _options}),
    _one("$contains", st.sampled_from([v for v in PLAIN if isinstance(v, str)])),
    _one("$exists", st.booleans()),
    _one("$size", st.integers(0, 4)),
    _one("$type", _kinds | st.lists(_kinds, min_size=1, max_size=2)),
    _one("$mod", st.tuples(st.sampled_from([1, 2, 4, -3, 2.5, 2**62]), st.sampled_from([0, 1, -1, 1.5])).map(list)),
    _one("$all", st.lists(values, max_size=3)),
)


def _around(conditions: st.SearchStrategy[Any], names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Filters that combine conditions on names."""
    return st.recursive(
        st.dictionaries(names, conditions, min_size=1, max_size=2),
        lambda inner: st.one_of(
            _one("$and", st.lists(inner, max_size=3)),
            _one("$or", st.lists(inner, min_size=1, max_size=3)),
            _one("$nor", st.lists(inner, min_size=1, max_size=2)),
            _one("$not", inner),
        ),
        max_leaves=3,
    )


_elements = st.one_of(_simple, _one("$not", _simple), _around(values | _simple, _paths))
_deeper = st.one_of(
    _simple,
    _one("$elemMatch", _elements),
    _one("$elemMatch", _one("$elemMatch", _elements)),
    _one("$all", st.lists(_one("$elemMatch", _elements), min_size=1, max_size=2)),
)
conditions = st.one_of(
    values,
    _simple,
    _deeper,
    _one("$not", _deeper),
    st.builds(lambda a, b: {**a, **b}, _deeper, _simple).filter(lambda c: "$options" not in c or "$regex" in c),
)
filters = _around(conditions, fields)
