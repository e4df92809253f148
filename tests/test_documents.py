"""Config and summary documents: every node can be found, and no value changes on the way."""

from __future__ import annotations

import json
import math
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import SourceError
from mirror.store.documents import explode, parse
from mirror.store.schema import tables

# The judge: the document, found again by following the pointers.


def at(document: Any, pointer: str) -> Any:
    """The value a JSON pointer (RFC 6901) leads to."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def count(value: Any) -> int:
    """Nodes of a value."""
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    if isinstance(value, list) and len(value) <= 64:
        return 1 + sum(map(count, value))
    return 1


def same(a: Any, b: Any) -> bool:
    """Equal by type too; NaN is NaN."""
    return repr(a) == repr(b)


def check(document: str, *, unwrap: bool = False) -> list[tuple[str, str, float | None, str | None]]:
    text, nodes = explode(document, unwrap=unwrap)
    assert text is not None
    value = json.loads(document, strict=False)
    if unwrap:
        value = {
            key: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for key, entry in value.items()
            if key not in ("_wandb", "wandb_version")
        }
    assert len(nodes) == count(value)
    assert len({path for path, *_ in nodes}) == len(nodes)
    for path, kind, number, string in nodes:
        found = at(value, path)
        match kind:
            case "object" | "array":
                assert isinstance(found, dict if kind == "object" else list)
                assert number is None
                assert string is not None
                assert same(json.loads(string), strict(found))
            case "number":
                assert type(found) in (int, float)
                if string is None:
                    assert number == found
                else:
                    assert json.loads(string) == found
                    assert number is None or number == float(found)
            case "nonfinite":
                assert string is None
                assert same(number, found)
            case "bool":
                assert found is (number == 1)
            case "null":
                assert (found, number, string) == (None, None, None)
            case "string":
                assert (found, number) == (string, None)
    assert same(json.loads(text), strict(value))
    assert duckdb.execute("select json_valid(?)", [text]).fetchone() == (True,)
    return nodes


def strict(value: Any) -> Any:
    """Non-finite numbers as the strings W&B uses for them."""
    if isinstance(value, dict):
        return {key: strict(child) for key, child in value.items()}
    if isinstance(value, list):
        return [strict(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


names = st.text(st.sampled_from("aA./~01\"\\' \t\né😀$"), max_size=5)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(st.sampled_from('aN/~"\\\t\n\x00é😀'), max_size=6),
        st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(values, st.booleans())
def test_every_node_is_where_its_path_says(value: Any, ascii_only: bool) -> None:
    check(json.dumps(value, ensure_ascii=ascii_only))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, values, max_size=5), st.sampled_from([{"desc": None}, {}]))
def test_configs_come_unwrapped(config: dict[str, Any], more: dict[str, Any]) -> None:
    wrapped = {key: {"value": value} | more for key, value in config.items()}
    internal = {"_wandb": {"value": {"t": {"1": [1]}}}, "wandb_version": 1}
    text, nodes = explode(json.dumps(wrapped | internal), unwrap=True)
    assert (text, nodes) == explode(json.dumps(config), unwrap=False) or any(math.isnan(n or 0) for _, _, n, _ in nodes)
    check(json.dumps(wrapped | internal), unwrap=True)


def test_entries_without_a_value_stay_as_they_are() -> None:
    text, _ = explode('{"a":1,"b":{"desc":null},"c":{"value":{"value":2}}}', unwrap=True)
    assert text == '{"a":1,"b":{"desc":null},"c":{"value":2}}'


def test_a_summary_is_not_unwrapped() -> None:
    text, _ = explode('{"loss":{"value":1},"_wandb":{"runtime":3}}', unwrap=False)
    assert text == '{"loss":{"value":1},"_wandb":{"runtime":3}}'


def test_nothing_said_is_not_an_empty_document() -> None:
    assert explode(None, unwrap=True) == (None, [])
    assert explode("{}", unwrap=True) == ("{}", [("", "object", None, "{}")])
    assert parse(None) is None


def test_pointers_escape_tildes_and_slashes() -> None:
    nodes = check('{"a/b":{"~":1},"":{"":2},"0":[3]}')
    assert {path for path, *_ in nodes} == {"", "/a~1b", "/a~1b/~0", "/", "//", "/0", "/0/0"}


def test_bare_nonfinite_tokens_become_nodes_and_strings() -> None:
    text, nodes = explode('{"a":NaN,"b":[Infinity,-Infinity],"c":"NaN"}', unwrap=False)
    assert text == '{"a":"NaN","b":["Infinity","-Infinity"],"c":"NaN"}'
    kinds = {path: kind for path, kind, *_ in nodes}
    assert kinds == {
        "": "object",
        "/a": "nonfinite",
        "/b": "array",
        "/b/0": "nonfinite",
        "/b/1": "nonfinite",
        "/c": "string",
    }


def test_control_characters_as_the_sdk_tolerates_them() -> None:
    assert check('{"note":"a\tb\nc"}')[1] == ("/note", "string", None, "a\tb\nc")


@pytest.mark.parametrize("n", [2**53 + 1, -(2**53) - 1, 2**63, 2**64, 10**40])
def test_long_integers_keep_their_digits(n: int) -> None:
    assert check(f'{{"seed":{n}}}')[1] == ("/seed", "number", float(n), str(n))


def test_short_integers_are_plain_numbers() -> None:
    assert check(f'{{"seed":{2**53}}}')[1] == ("/seed", "number", float(2**53), None)


def test_a_number_beyond_every_double() -> None:
    assert explode("[1e400]", unwrap=False)[1][1] == ("/0", "number", None, "1e400")


def test_arrays_of_more_than_64_elements_are_one_node() -> None:
    assert len(check(json.dumps({"layers": list(range(64))}))) == 66
    assert len(check(json.dumps({"layers": list(range(65))}))) == 2


def test_lone_surrogates_are_spelled_out() -> None:
    text, nodes = explode(r'{"\ud800":"x\udfff"}', unwrap=False)
    assert nodes[1] == (r"/\ud800", "string", None, r"x\udfff")
    assert text == r'{"\\ud800":"x\\udfff"}'
    assert duckdb.execute(r"select json_extract_string(?, '$.*')", [text]).fetchall() == [([r"x\udfff"],)]
    assert parse(r'{"\ud800":"x\udfff"}') == {"\ud800": "x\udfff"}


def test_nodes_fit_the_table() -> None:
    import pyarrow as pa

    document = '{"a":[1,NaN,null,true,"s",{"b":123456789012345678901234567890}],"\\ud800":{}}'
    _, nodes = explode(document, unwrap=False)
    fields = [tables()["config"].field(name) for name in ("path", "type", "num", "str")]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*nodes, strict=True), fields, strict=True)]
    assert pa.table(columns, schema=pa.schema(fields)).num_rows == 10


@pytest.mark.parametrize("document", ["", "{", '{"a":}', "undefined", "{'a':1}", '{"a":1} x'])
def test_text_that_is_no_json(document: str) -> None:
    with pytest.raises(SourceError, match="is no JSON"):
        explode(document, unwrap=True)
    with pytest.raises(SourceError, match="is no JSON"):
        parse(document)


def test_absurd_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(SourceError):
        explode("[" * 100_000 + "]" * 100_000, unwrap=False)


@settings(max_examples=200, deadline=None)
@given(values)
def test_parse_gives_what_json_gives(value: Any) -> None:
    text = json.dumps(value)
    assert same(parse(text), json.loads(text))
