"""The key catalogue that a server keeps of the rows it takes in."""

from __future__ import annotations

import json

from mirror.server.history.keys import KeyCatalogue, from_metrics


def catalogue(*rows: str, start: str | None = None) -> KeyCatalogue:
    made = KeyCatalogue(start)
    for i in range(0, len(rows), 2):  # in several pieces
        made.add(rows[i : i + 2])
    return made


def test_types_are_counted_by_key() -> None:
    found = catalogue(
        '{"_step":0,"a":1,"b":"x","c":null,"d":[1],"e":true,"f":{"g":{"h":2}},"i":{"_type":"image-file","path":"p"},"j":{}}',
        '{"_step":1,"a":2.5,"b":3,"f":{"g":{"h":1}},"a.b":1}',
    ).document()
    assert found and found["lastStep"] == 1 and found["sets"] == []
    types = {key: [(c["type"], c["count"]) for c in k["typeCounts"]] for key, k in found["keys"].items()}
    assert types == {
        "_step": [("number", 2)], "a": [("number", 2)], "b": [("number", 1), ("string", 1)], "c": [("nil", 1)],
        "d": [("list", 1)], "e": [("bool", 1)], "f.g.h": [("number", 2)], "i": [("image-file", 1)], "j": [("map", 1)],
        "a.b": [("number", 1)],
    }  # fmt: skip


def test_monotonic_and_previous_values() -> None:
    keys = catalogue(
        '{"up":1,"down":3,"nan":1,"inf":1,"big":1,"text":1}',
        '{"up":1,"down":2,"nan":NaN,"inf":Infinity,"big":123456789012345678901234567890,"text":"NaN"}',
        '{"up":5,"down":9,"nan":2,"inf":2,"text":2}',
    ).document()["keys"]  # type: ignore[index]
    assert {k: (v["monotonic"], v["previousValue"]) for k, v in keys.items()} == {
        "up": (True, 5), "down": (False, 9), "nan": (False, 2), "inf": (True, 2), "big": (True, 1), "text": (True, 2)
    }  # fmt: skip
    assert {"type": "string", "count": 1} in keys["text"]["typeCounts"]
    assert keys["nan"]["typeCounts"] == [{"type": "number", "count": 3}]


def test_it_goes_on_from_its_own_document() -> None:
    rows = [json.dumps({"_step": i, "x": (i * 7) % 5, "y": "s" if i % 3 else None, "n": {"m": i}}) for i in range(40)]
    whole = catalogue(*rows)
    half = catalogue(*rows[:17])
    assert catalogue(*rows[17:], start=half.text()).document() == whole.document()


def test_the_last_step_is_the_highest_whole_one() -> None:
    assert catalogue('{"_step":7}', '{"_step":3}').document()["lastStep"] == 7  # type: ignore[index]
    assert catalogue('{"_step":"x"}', '{"_step":NaN}').document()["lastStep"] == -1  # type: ignore[index]
    assert catalogue().document() is None and catalogue("{}").document() is None


def test_lone_surrogates_in_keys_do_no_harm() -> None:
    found = catalogue('{"\\ud800":1}')
    assert KeyCatalogue(found.text()).document() == found.document()


def test_a_catalogue_from_counts() -> None:
    found = from_metrics(
        [("a", 3, 0, 1, 0, 0, 9, 2.5), ("a", 0, 0, 0, 0, 2, 11, None), ("b", 0, 0, 0, 1, 0, None, None)]
    )
    assert found["lastStep"] == 11
    assert found["keys"]["a"] == {
        "typeCounts": [{"type": "number", "count": 3}, {"type": "string", "count": 1}, {"type": "map", "count": 2}],
        "monotonic": False,
        "previousValue": 2.5,
    }
    assert found["keys"]["b"]["typeCounts"] == [{"type": "nil", "count": 1}]
