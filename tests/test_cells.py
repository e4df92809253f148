"""Rows -> cells -> rows: nothing changes, whatever was logged.

The judge is the standard library's `json`, which shares no code with the decoder: `tokens` reads a row with
every number as (kind, text or value), so that 1, 1.0, -0, NaN and 1e400 are all different things.
"""

from __future__ import annotations

import io
import json
import math
import struct
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import SourceError
from mirror.store.cells import decode, fingerprint, rows_as_dicts, rows_as_json

# The judge


def _float(text: str) -> tuple[str, Any]:
    value = float(text)
    return ("float", text) if math.isinf(value) else ("float", struct.pack("<d", value))


def tokens(row: str) -> Any:
    """A row as Python values in which every number is (what it is, exact value)."""
    return json.loads(
        row,
        strict=False,
        parse_int=lambda text: ("int", text),
        parse_float=_float,
        parse_constant=lambda text: ("constant", text),
    )


def typed(value: Any) -> Any:
    """A Python value in a form that compares by type too: True is not 1, 1 is not 1.0, NaN is NaN."""
    if isinstance(value, dict):
        return ("dict", {key: typed(child) for key, child in value.items()})
    if isinstance(value, list):
        return ("list", [typed(child) for child in value])
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))
    return (type(value).__name__, value)


def plainly(row: str) -> Any:
    return json.loads(row, strict=False)


def expected_cells(row: str) -> dict[tuple[str, int], tuple[str, bytes | None]]:
    """(key, path_id) -> (kind, bits of v) of a row, by the rules of schema/tables.sql."""
    found: dict[tuple[str, int], tuple[str, bytes | None]] = {}

    def walk(prefix: str, bits: int, value: Any) -> None:
        if isinstance(value, dict) and value and "_type" not in value and prefix.count(".") < 62:
            for name, child in value.items():
                walk(f"{prefix}.{name}", bits | 1 << prefix.count("."), child)
        else:
            found[prefix, bits] = expected_value(value)

    for name, value in tokens(row).items():
        walk(name, 0, value)
    return found or {("", 0): ("empty", None)}


def expected_value(value: Any) -> tuple[str, bytes | None]:
    def bits(x: float) -> bytes:
        return struct.pack("<d", x)

    match value:
        case ("int", text):
            small = len(text) < 18 and abs(int(text)) <= 2**53
            return "int", bits(float(text)) if small else None
        case ("float", known):
            return "number", known if isinstance(known, bytes) else None
        case ("constant", text):
            return "nonfinite", bits(float(text))
        case bool():
            return "bool", bits(float(value))
        case dict():
            return "media" if "_type" in value else "dict", None
    return {str: "string", list: "list", type(None): "null"}[type(value)], None


def through_parquet(table: pa.Table) -> pa.Table:
    """The table as the store hands it back: plain columns, sorted by key."""
    for i, name in ((0, "key"), (5, "kind")):
        table = table.set_column(i, name, table[name].cast(pa.string()))
    file = io.BytesIO()
    pq.write_table(table.sort_by([("key", "ascending"), ("row", "ascending")]), file)
    return pq.read_table(file)


def check(rows: list[str]) -> pa.Table:
    batch = decode(rows)
    assert batch.rows == len(rows)
    for table in (batch.table, through_parquet(batch.table)):
        texts = list(rows_as_json(table))
        dicts = list(rows_as_dicts(table))
        assert len(texts) == len(dicts) == len(rows)
        for row, text, value in zip(rows, texts, dicts, strict=True):
            assert tokens(text) == tokens(row)
            assert typed(value) == typed(plainly(row))
    held: list[dict[tuple[str, int], tuple[str, bytes | None]]] = [{} for _ in rows]
    for cell in batch.table.to_pylist():
        place = (cell["key"], cell["path_id"])
        assert place not in held[cell["row"]]
        held[cell["row"]][place] = (cell["kind"], None if cell["v"] is None else struct.pack("<d", cell["v"]))
    for row, cells in zip(rows, held, strict=True):
        if not any(path_id < 0 for _, path_id in cells):  # keys that UTF-8 cannot spell have tests of their own
            assert cells == expected_cells(row)
    return batch.table


def cells(row: str) -> dict[str, dict[str, Any]]:
    """The cells of one row by key."""
    return {cell["key"]: cell for cell in check([row]).to_pylist()}


# Anything at all

HOSTILE = "aA.._/\\\"'{}[]:, \t\n\r\x00\x7fé\u202e\u2028ß𝄞😀\ud800\udfff%$-0NI"
keys = st.one_of(
    st.text(st.sampled_from(HOSTILE), max_size=6),
    st.sampled_from(["", ".", "..", "a.b", "a", "loss", "Loss", "LOSS", "_step", "_timestamp", "x" * 300, "." * 70]),
)
numbers = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,3})", fullmatch=True),
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(2**53 - 2, 2**53 + 2).map(str),
    st.integers(2**63 - 2, 2**63 + 2).map(str),
    st.integers(2**64 - 2, 2**64 + 2).map(str),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "-0", "-0.0", "0", "0.0", "-0e5", "1e400", "-1e400", "1e-400"]),
)
strings = st.one_of(
    st.text(st.sampled_from(HOSTILE), max_size=8),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "nan", "1e400", "-0"]),
)


def _spelled(text: str, escaped: bool) -> str:
    """A JSON string, with escapes for everything beyond ASCII or for as little as possible."""
    if escaped or any("\ud800" <= c <= "\udfff" for c in text):
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


spelled = st.builds(_spelled, strings, st.booleans())
spelled_keys = st.builds(_spelled, keys, st.booleans())
space = st.sampled_from(["", "", "", " ", "\t"])


def _object(items: list[tuple[str, str]], gap: str) -> str:
    unique = {json.loads(key): (key, value) for key, value in items}
    return "{" + gap + f",{gap}".join(f"{key}{gap}:{gap}{value}" for key, value in unique.values()) + "}" + gap


def _objects(values: st.SearchStrategy[str], size: int) -> st.SearchStrategy[str]:
    return st.builds(_object, st.lists(st.tuples(spelled_keys, values), max_size=size), space)


values = st.recursive(
    st.one_of(numbers, spelled, st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]"),
        _objects(inner, 4),
        inner.map(lambda value: f'{{"_type":"histogram","values":{value}}}'),
    ),
    max_leaves=12,
)
logged = _objects(values, 8)


@settings(max_examples=400, deadline=None)
@given(st.lists(logged, max_size=6))
def test_rows_come_back_as_they_were(rows: list[str]) -> None:
    check(rows)


@settings(max_examples=150, deadline=None)
@given(st.lists(logged, min_size=1, max_size=6), st.randoms())
def test_the_order_of_cells_does_not_matter(rows: list[str], random: Any) -> None:
    table = decode(rows).table
    order = list(range(len(table)))
    random.shuffle(order)
    assert list(rows_as_json(table.take(order))) == list(rows_as_json(table))


@settings(max_examples=150, deadline=None)
@given(st.lists(logged, min_size=2, max_size=8), st.integers(1, 7))
def test_batches_can_be_cut_anywhere(rows: list[str], at: int) -> None:
    at = min(at, len(rows) - 1)
    whole = decode(rows).table
    head, tail = decode(rows[:at]).table, decode(rows[at:]).table
    tail = tail.set_column(2, "row", pa.compute.add(tail["row"], at))
    assert list(rows_as_json(pa.concat_tables([head, tail]))) == list(rows_as_json(whole))


few = st.sampled_from(["1", "1.0", "-0", "0", "0.0", "1e0", "NaN", '"NaN"', "null", "[]", "{}", '{"a":1}', "1e400"])


@settings(max_examples=400, deadline=None)
@given(*[st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"']), few), max_size=2)] * 2, space)
def test_fingerprints_are_equal_exactly_for_equal_rows(
    a: list[tuple[str, str]], b: list[tuple[str, str]], gap: str
) -> None:
    one, other = _object(a, ""), _object(b, gap)
    assert (fingerprint(one) == fingerprint(other)) == (tokens(one) == tokens(other))


@settings(max_examples=200, deadline=None)
@given(logged)
def test_fingerprints_survive_the_store(row: str) -> None:
    batch = decode([row])
    assert batch.last_fingerprint == fingerprint(row) == fingerprint(next(rows_as_json(batch.table)))


# The traps of the wire, by name


def test_bare_nan_and_infinity_tokens_are_nonfinite_numbers() -> None:
    found = cells('{"a":NaN,"b":Infinity,"c":-Infinity}')
    assert [(found[k]["kind"], found[k]["j"]) for k in "abc"] == [("nonfinite", None)] * 3
    assert math.isnan(found["a"]["v"])
    assert (found["b"]["v"], found["c"]["v"]) == (math.inf, -math.inf)


def test_a_nan_in_one_row_leaves_the_other_rows_to_the_fast_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    from mirror.store import cells as module

    exactly: list[str] = []
    parse_exactly = module.parse_exactly
    monkeypatch.setattr(module, "parse_exactly", lambda row: exactly.append(row) or parse_exactly(row))
    rows = [f'{{"_step":{i},"loss":{i}.5}}' for i in range(100)]
    rows[7] = '{"_step":7,"loss":NaN}'
    module.decode(rows)
    assert exactly == [rows[7]]


def test_nonfinite_strings_are_numbers_only_where_the_key_never_held_strings() -> None:
    row = '{"loss":"NaN","up":"Infinity","down":"-Infinity","note":"NaN","lower":"nan"}'
    assert {cell["kind"] for cell in cells(row).values()} == {"string"}
    batch = decode([row], lambda key: key != "note")
    kinds = dict(zip(batch.table["key"].to_pylist(), batch.table["kind"].to_pylist(), strict=True))
    assert kinds == {
        "loss": "nonfinite",
        "up": "nonfinite",
        "down": "nonfinite",
        "note": "string",
        "lower": "string",
    }
    back = next(rows_as_dicts(batch.table))
    assert math.isnan(back["loss"])
    assert (back["up"], back["down"], back["note"], back["lower"]) == (math.inf, -math.inf, "NaN", "nan")
    assert tokens(next(rows_as_json(batch.table))) == tokens(row)  # the wire's own spelling


def test_the_question_about_strings_is_asked_with_the_dotted_key() -> None:
    asked: list[str] = []
    decode(['{"a":{"b":"NaN"},"c":"x"}'], lambda key: asked.append(key) or False)
    assert asked == ["a.b"]


@pytest.mark.parametrize("n", [2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63)])
def test_integers_beyond_2_to_53_are_exact(n: int) -> None:
    cell = cells(f'{{"n":{n}}}')["n"]
    assert (cell["kind"], cell["v"], cell["j"]) == ("int", None, str(n))


@pytest.mark.parametrize("n", [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30])
def test_integers_beyond_64_bit_are_exact(n: int) -> None:
    cell = cells(f'{{"n":{n}}}')["n"]
    assert (cell["kind"], cell["v"], cell["j"]) == ("int", None, str(n))


def test_an_integer_longer_than_python_writes() -> None:
    digits = "1" + "0" * 5000
    batch = decode([f'{{"n":{digits}}}'])
    assert batch.table["kind"].to_pylist() == ["int"]
    assert list(rows_as_json(batch.table)) == [f'{{"n":{digits}}}']
    assert next(rows_as_dicts(batch.table)) == {"n": 10**5000}


@pytest.mark.parametrize("n", [2**53, -(2**53), 0, 1, -1])
def test_integers_a_double_holds_are_numbers(n: int) -> None:
    cell = cells(f'{{"n":{n}}}')["n"]
    assert (cell["kind"], cell["v"], cell["j"]) == ("int", float(n), None)


def test_big_integers_inside_lists_and_media_are_exact() -> None:
    check(['{"l":[18446744073709551616,[1e3,-0]],"m":{"_type":"t","n":123456789012345678901}}', '{"l":[1]}'])


def test_many_digits_behind_the_point_are_no_integer() -> None:
    check(['{"a":0.00012345678901234567,"b":0.1234567890123456789012345}'])


def test_integral_floats_stay_floats_and_ints_stay_ints() -> None:
    found = cells('{"f":1.0,"i":1,"g":1e22,"t":100000.0}')
    assert [found[k]["kind"] for k in "figt"] == ["number", "int", "number", "number"]


def test_minus_zero_keeps_its_sign() -> None:
    found = cells('{"i":-0,"f":-0.0,"z":0,"l":[-0,-0.0]}')
    assert [math.copysign(1, found[k]["v"]) for k in "ifz"] == [-1, -1, 1]
    assert [found[k]["kind"] for k in "ifz"] == ["int", "number", "int"]


def test_a_number_beyond_every_double_keeps_its_text() -> None:
    cell = cells('{"x":1e400}')["x"]
    assert (cell["kind"], cell["v"], cell["j"]) == ("number", None, "1e400")


def test_true_is_not_one() -> None:
    found = cells('{"t":true,"f":false,"one":1}')
    assert [(found[k]["kind"], found[k]["v"]) for k in ("t", "f", "one")] == [
        ("bool", 1),
        ("bool", 0),
        ("int", 1),
    ]


def test_null_is_not_absent() -> None:
    table = check(['{"a":null,"b":1}', '{"b":2}'])
    assert [(c["key"], c["row"], c["kind"]) for c in table.to_pylist() if c["key"] == "a"] == [("a", 0, "null")]


def test_a_row_without_keys_is_kept() -> None:
    table = check(["{}", '{"a":1}', "{}"])
    kinds = {(c["row"], c["key"], c["kind"]) for c in table.to_pylist()}
    assert kinds == {(0, "", "empty"), (1, "a", "int"), (2, "", "empty")}


def test_the_empty_key_is_no_empty_row() -> None:
    assert cells('{"":7}')[""]["kind"] == "int"


def test_nested_and_dotted_keys_stay_apart() -> None:
    table = check(['{"a":{"b":1},"a.b":2}', '{"a.b":{"c":3},"a":{"b.c":4,"b":{"c":5}},"a.b.c":6}'])
    found = {(c["row"], c["key"], c["path_id"]): c["v"] for c in table.to_pylist()}
    assert found == {
        (0, "a.b", 1): 1, (0, "a.b", 0): 2,
        (1, "a.b.c", 2): 3, (1, "a.b.c", 1): 4, (1, "a.b.c", 3): 5, (1, "a.b.c", 0): 6,
    }  # fmt: skip


def test_keys_full_of_dots() -> None:
    check(['{"":{"":{"":1}},".":{".":2},"..":{"":3},"...":4,".x.":{"y.":5}}'])


def test_nesting_beyond_what_path_id_marks_is_kept_whole() -> None:
    row = '{"a":' * 70 + "1" + "}" * 70
    (cell,) = check([row]).to_pylist()
    assert (cell["kind"], cell["key"], cell["path_id"]) == ("dict", ".".join("a" * 63), (1 << 62) - 1)
    check(['{"' + "." * 61 + '":{"b":{"c":1}},"' + "." * 62 + '":{"b":1},"' + "." * 300 + '":2}'])


def test_empty_dicts_and_lists_are_cells() -> None:
    found = cells('{"d":{},"l":[],"n":{"d":{},"l":[[]]}}')
    assert {k: (c["kind"], c["j"]) for k, c in found.items()} == {
        "d": ("dict", "{}"), "l": ("list", "[]"), "n.d": ("dict", "{}"), "n.l": ("list", "[[]]"),
    }  # fmt: skip


def test_media_stay_whole() -> None:
    histogram = '{"_type":"histogram","bins":[0,1.5],"values":[3]}'
    found = cells('{"img":{"_type":"image-file","path":"a.png","size":12},"n":{"h":' + histogram + "}}")
    assert {k: c["kind"] for k, c in found.items()} == {"img": "media", "n.h": "media"}
    assert json.loads(found["n.h"]["j"]) == {"_type": "histogram", "bins": [0, 1.5], "values": [3]}


def test_a_key_may_change_its_type_in_every_row() -> None:
    all_types = [
        "1",
        "1.5",
        '"s"',
        "true",
        "null",
        "[1]",
        '{"b":1}',
        "NaN",
        "18446744073709551616",
        "{}",
        '{"_type":"x"}',
    ]
    check([f'{{"_step":{i},"k":{value}}}' for i, value in enumerate(all_types)])


def test_keys_that_differ_in_case_only() -> None:
    assert {c["v"] for c in cells('{"Loss":1,"loss":2,"LOSS":3}').values()} == {1, 2, 3}


def test_odd_keys() -> None:
    odd = [
        "",
        " ",
        "a b",
        "a/b",
        "a\\b",
        "'",
        '"',
        "\t",
        "\n",
        "\r\n",
        "\x00",
        "😀",
        "x" * 300,
        "_",
        "__proto__",
        "NaN",
        "-0",
        "\u202e",
    ]
    check(
        [
            json.dumps({key: i for i, key in enumerate(odd)}),
            json.dumps({"n": {key: i for i, key in enumerate(odd)}}),
        ]
    )


def test_lone_surrogates_in_values_and_keys() -> None:
    row = r'{"s":"a\ud800","\udfff":1,"n":{"\ud800.x":{"\\ud800":2,"é":3}},"l":["\udc00"]}'
    table = check([row, '{"s":"fine"}'])
    negative = {c["key"] for c in table.to_pylist() if c["path_id"] < 0}
    assert negative == {r"\udfff", r"n.\ud800.x.\\ud800", r"n.\ud800.x.\u00e9"}
    check(['{"s":"\ud800"}'])  # not even escaped on the wire


def test_raw_control_characters_in_strings() -> None:
    check(['{"s":"a\tb\nc\x00","k\t":1}'])


def test_a_name_twice_in_one_row_keeps_its_last_value() -> None:
    assert cells('{"a":1,"a":{"b":2},"a":{"b":3}}') == cells('{"a":{"b":3}}')


def test_repeated_and_backward_steps_stay_rows_of_their_own() -> None:
    rows = [f'{{"_step":{step},"n":{n}}}' for n, step in enumerate([0, 1, 2, 0, 1, 1, 61010, 5])]
    batch = decode(rows)
    check(rows)
    assert (batch.first_step, batch.last_step) == (0, 61010)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("61010", 61010), ("1000000000000", 10**12), ("9007199254740993", 2**53 + 1), ("7.0", 7),
        ("1e3", 1000), ("-0", 0), ("9223372036854775807", 2**63 - 1), ("1e18", 10**18),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", None), ("1e19", None), ("2.5", None), ("true", None), ('"5"', None),
        ("null", None),
        ("NaN", None), ("[1]", None), ('{"a":1}', None), ('"-0"', None), ("1e400", None),
    ],
)  # fmt: skip
def test_step_of_a_row(text: str, step: int | None) -> None:
    batch = decode([f'{{"_step":{text},"x":1}}'])
    assert set(batch.table["step"].to_pylist()) == {step}
    assert (batch.first_step, batch.last_step) == (step, step)
    check([f'{{"_step":{text},"x":1}}'])


def test_a_row_without_a_step() -> None:
    batch = decode(['{"x":1}', '{"_step":4}', '{"n":{"_step":9}}'])
    assert batch.table.sort_by("row")["step"].to_pylist() == [None, 4, None]
    assert (batch.first_step, batch.last_step) == (4, 4)


@pytest.mark.parametrize(
    ("text", "ts"),
    [
        ("1795291464.817954", datetime(2026, 11, 21, 20, 4, 24, 817954, timezone.utc)),
        ("1.7952914648179538e+09", datetime(2026, 11, 21, 20, 4, 24, 817954, timezone.utc)),
        ("0", datetime(1970, 1, 1, tzinfo=timezone.utc)),
        ("-1.5", datetime(1969, 12, 31, 23, 59, 58, 500000, timezone.utc)),
        ("253402300799.5", datetime(9999, 12, 31, 23, 59, 59, 500000, timezone.utc)),
        ("253402300800", None), ("-62135596801", None), ("1e300", None), ("NaN", None), ("1e400", None),
        ('"2026-11-21"', None), ("true", None), ("null", None), ("99999999999999999999", None),
    ],
)  # fmt: skip
def test_time_of_a_row(text: str, ts: datetime | None) -> None:
    row = f'{{"_timestamp":{text},"x":1}}'
    assert set(check([row])["ts"].to_pylist()) == {ts}


def test_timestamps_keep_what_microseconds_lose() -> None:
    check([f'{{"_timestamp":{1.7952914648179538e9 + i * 1.1e-7!r}}}' for i in range(100)])


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "[1]",
        "null",
        "7",
        '"x"',
        "NaN",
        '{"a":1',
        '{"a":01}',
        '{"a":1} {"b":2}',
        "{'a':1}",
        '{"a":.5}',
        "\x00",
    ],
)
def test_a_line_that_is_no_object(line: str) -> None:
    with pytest.raises(SourceError, match=r"Row 2 of a batch is no JSON object"):
        decode(['{"a":1}', "{}", line, "{}"])
    with pytest.raises(SourceError):
        fingerprint(line)


def test_no_row_can_pass_for_two() -> None:
    with pytest.raises(SourceError, match="Row 0"):
        decode(['{"a":1},{"b":2}', '{"a":[{}', "{}]}"])


def test_the_error_shows_where_to_look_but_not_a_megabyte() -> None:
    with pytest.raises(SourceError) as caught:
        decode(['{"a":"' + "x" * 1_000_000])
    assert '`{"a":"xxx' in str(caught.value)
    assert len(str(caught.value)) < 400


def test_absurd_nesting_is_an_error_not_a_crash() -> None:
    check(['{"l":' + "[" * 300 + "NaN" + "]" * 300 + "}"])
    with pytest.raises(SourceError):
        decode(['{"l":' + "[" * 100_000 + "]" * 100_000 + "}"])


def test_a_megabyte_in_one_cell() -> None:
    check([json.dumps({"_step": i, "text": "é" * 1_000_000, "list": list(range(100_000))}) for i in range(2)])


def test_ten_thousand_keys() -> None:
    rng = np.random.default_rng(0)
    rows = [json.dumps({f"layer.{k}/grad": x for k, x in enumerate(rng.normal(size=10_000))}) for _ in range(3)]
    batch = decode(rows)
    assert len(batch.table) == 30_000
    assert [tokens(text) for text in rows_as_json(batch.table)] == [tokens(row) for row in rows]


def test_rows_that_share_no_key() -> None:
    check([f'{{"only in {i}":{i}}}' for i in range(500)])


def test_no_rows_at_all() -> None:
    batch = decode([])
    assert (batch.rows, len(batch.table), batch.first_step, batch.last_step, batch.last_fingerprint) == (
        0,
        0,
        None,
        None,
        "",
    )
    assert list(rows_as_json(batch.table)) == list(rows_as_dicts(batch.table)) == []


def test_every_finite_double_survives_as_the_same_bits() -> None:
    bits = np.random.default_rng(1).integers(0, 2**64, 20_000, dtype=np.uint64, endpoint=False)
    doubles = bits.view(np.float64)
    doubles = doubles[np.isfinite(doubles)]
    rows = [f'{{"x":{x!r}}}' for x in doubles.tolist()]
    table = decode(rows).table
    back = np.array([row["x"] for row in rows_as_dicts(table)])
    assert (back.view(np.uint64) == doubles.view(np.uint64)).all()
    parsed = np.array([json.loads(text)["x"] for text in rows_as_json(table)])
    assert (parsed.view(np.uint64) == doubles.view(np.uint64)).all()
