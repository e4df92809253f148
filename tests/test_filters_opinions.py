"""Second and third opinions on what filters mean: mongomock, and mingo where Node and npm are there.

Every filter of the table in test_filters.py is asked of every document in it. Where an opinion differs from ours the
difference must belong to one of the classes below, each with its reason; a class that explains nothing fails, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mongo_match
import pytest
from test_filters import ABSENT, SEMANTICS

MINGO = "7.2.7"
Test = Callable[[str, Any], bool]


@dataclass(frozen=True)
class Class:
    """A kind of filter (as JSON text) and document on which an opinion differs, and why."""

    holds: Test
    why: str


def _in(*parts: str) -> Test:
    return lambda query, document: any(part in query for part in parts)


def _all(*tests: Test) -> Test:
    return lambda query, document: all(test(query, document) for test in tests)


def _document(found: Callable[[Any], bool]) -> Test:
    return lambda query, document: found(document)


def _deep(value: Any, found: Callable[[Any], bool]) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found(value) or any(_deep(v, found) for v in inner)


def _big(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) >= 2**53


def _list_in_list(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(e, list) for e in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


MONGOMOCK = {
    "no $mod": Class(_in('"$mod"'), "mongomock knows no $mod"),
    "other $type": Class(
        _in('"$type"'),
        "mongomock knows no lists and few names of types, calls every integer int, and looks at no elements",
    ),
    "{} as no condition": Class(_in(": {}"), "mongomock takes equality with {} for no condition"),
    "empty $all": Class(_in('"$all": []'), "mongomock: an empty $all matches everything; MongoDB: nothing"),
    "$gte null": Class(
        _in('"$gte": null', '"$lte": null'), "mongomock compares nothing with null; MongoDB: equal to null and missing"
    ),
    "null below": Class(
        _all(_in("config.x."), _in("null", "$exists")),
        "mongomock: below a scalar, null or a list without objects there is no missing value, or one too many",
    ),
    "true is 1": Class(
        _all(_document(lambda d: _deep(d, lambda v: isinstance(v, bool))), _in("1", "0", "[")), "in Python True == 1"
    ),
    "1 is true": Class(_in("true", "false"), "in Python 1 == True"),
    "$size of objects": Class(
        _all(_in('"$size"'), _document(lambda d: isinstance(d, dict))), "mongomock counts the names of an object"
    ),
    "whole list in $all": Class(
        _in('"$all": [['), "mongomock looks for the list among the elements only; MongoDB: $all is $and of equalities"
    ),
    "elements open": Class(
        _all(_in('"$elemMatch"'), _document(_list_in_list)),
        "mongomock: elements that are lists answer through their elements (MongoDB's $elemMatch: only by index)",
    ),
    "an index opens": Class(
        _in("config.x.0"), "mongomock: a list reached by its index answers through its elements; MongoDB: as a whole"
    ),
}
MINGO_CLASSES = {
    "lists in lists": Class(
        _document(lambda d: _deep(d, _list_in_list)), "mingo flattens lists in lists; MongoDB looks one level deep"
    ),
    "other $type": Class(
        _in('"$type"'), "JavaScript has one kind of number, and mingo looks at no elements for scalar types"
    ),
    "other $mod": Class(_in('"$mod"'), "mingo does not cut fractions off, and takes null and text for numbers"),
    "$gte null": Class(
        _in('"$gte": null', '"$lte": null'), "mingo compares nothing with null; MongoDB: equal to null and missing"
    ),
    "big integers": Class(_all(_document(lambda d: _deep(d, _big))), "JavaScript's numbers are doubles"),
    "$all of a scalar": Class(
        _in('"$all": ['),
        "mingo: $all wants a list, and looks for lists among its elements only; MongoDB: $and of equalities",
    ),
    "scalars as objects": Class(
        _in('"$elemMatch": {"$or"'),
        "mingo takes scalar elements for objects without names; MongoDB: queries meet objects",
    ),
    "collected values": Class(
        _all(_in("config.x.y", "config.x.0"), _in('"$elemMatch"')),
        "mingo collects the values below a list in a list of its own",
    ),
    "null below a list": Class(
        _all(_in("config.x."), _in("null"), _document(_is_list)),
        "mingo: an object without the name has no missing value, a list without objects has one",
    ),
}


def asked() -> tuple[list[Any], list[tuple[Any, list[bool]]]]:
    """Documents, and filters that MongoDB would take with our answers; NaN and infinities as W&B spells them."""
    documents = [{"config": {} if stored is ABSENT else {"x": _spelled(stored)}} for stored, _, _ in SEMANTICS]
    filters = [query for _, query, _ in SEMANTICS if _is_mongos(query)]
    runs = [{**document, "summary_metrics": {}} for document in documents]
    return documents, [(query, [mongo_match.matches(run, query) for run in runs]) for query in filters]


def _is_mongos(query: dict[str, Any]) -> bool:
    text = json.dumps(query)
    ours = ("$contains", '{"$not": {"config', "[", "config.x.value", "b$", "# both", "a.b", "(?")
    name = next(iter(query))
    return not any(part in (name if part == "[" else text) for part in ours)


def _spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelled(v) for v in value]
    if isinstance(value, dict):
        return {k: _spelled(v) for k, v in value.items()}
    return mongo_match.SPECIAL.get(str(value), value) if isinstance(value, float) else value


def unexplained(classes: dict[str, Class], answer: Callable[[int, int], Any]) -> tuple[list[str], set[str]]:
    """Differences that belong to no class, and classes that explain none. `answer(i, j)`: filter i on document j."""
    documents, filters = asked()
    needed: Counter[str] = Counter()
    strange = []
    for i, (query, expected) in enumerate(filters):
        text = json.dumps(query, ensure_ascii=False)
        for j, document in enumerate(documents):
            given = answer(i, j)
            if given == expected[j]:
                continue
            found = next((name for name, c in classes.items() if c.holds(text, document["config"].get("x"))), None)
            if found is None:
                strange.append(f"{text} on {str(document)[:200]}: {given}, ours {expected[j]}")
            else:
                needed[found] += 1
    return strange, set(classes) - set(needed)


def test_mongomock_agrees() -> None:
    filtering = pytest.importorskip("mongomock.filtering", reason="mongomock is not installed (extra `test`)")
    documents, filters = asked()

    def answer(i: int, j: int) -> Any:
        try:
            return filtering.filter_applies(filters[i][0], documents[j])
        except Exception as e:  # what it does not know it says in many ways
            return f"{type(e).__name__}: {e}"

    strange, idle = unexplained(MONGOMOCK, answer)
    assert not strange, "\n".join([f"{len(strange)} differences", *sorted(strange, key=len)[:40]])
    assert not idle, f"nobody needs {idle}"


@pytest.mark.slow
def test_mingo_agrees(tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node or npm is not installed")
    quick = ["--prefer-offline", "--fetch-retries=0", "--no-audit", "--no-fund"]  # npm would try again for 70 s
    command = [npm, "install", *quick, "--prefix", str(tmp_path), f"mingo@{MINGO}"]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install mingo: {installed.stderr.strip().splitlines()[-1:]}")
    documents, filters = asked()
    (tmp_path / "asked.json").write_text(json.dumps({"documents": documents, "filters": [q for q, _ in filters]}))
    script = Path(__file__).with_name("mingo_match.mjs")
    arguments = [str(tmp_path), str(tmp_path / "asked.json"), str(tmp_path / "answers.json")]
    subprocess.run([node, str(script), *arguments], check=True, timeout=300)
    answers = json.loads((tmp_path / "answers.json").read_text())["answers"]
    strange, idle = unexplained(
        MINGO_CLASSES, lambda i, j: answers[i] if isinstance(answers[i], str) else answers[i][j]
    )
    assert not strange, "\n".join([f"{len(strange)} differences", *sorted(strange, key=len)[:40]])
    assert not idle, f"nobody needs {idle}"
