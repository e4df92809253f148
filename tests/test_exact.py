"""Cell by cell: what was logged, what crossed the wire, what `wandb.Api()` reads back, what the mirror holds.

tests/corpus.py logs hostile runs through the real SDK into a real server, past a proxy that notes every line
as it was sent. From there on the mirror may change nothing: its rows, its raw tables and its documents are
compared with the lines, type for type. What the SDK changes while it writes and what `wandb.Api` changes while
it reads are listed below with their reasons; a difference that is not listed fails, and so does a listed one
that no longer occurs.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import roads
from commanding import call
from corpus import BIG_STEP, ENTITY, MAKERS, PROJECT, Media, Truth
from roads import ABSENT
from serving import Server, serving
from syncing import Copy, Proxy, proxied

import mirror

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
Difference = tuple[tuple[Any, ...], Any, Any]
Reason = Callable[[tuple[Any, ...], Any, Any], bool]


# Comparing


def bits(x: float) -> bytes | str:
    return "nan" if math.isnan(x) else struct.pack("<d", x)


def differences(a: Any, b: Any, path: tuple[Any, ...] = ()) -> Iterator[Difference]:
    """Every place where two JSON values differ, by type too (1 is not 1.0, NaN is NaN)."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            yield from differences(a.get(key, ABSENT), b.get(key, ABSENT), (*path, key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, (*path, i))
    elif isinstance(a, float) and isinstance(b, float):
        if bits(a) != bits(b):
            yield path, a, b
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def unexplained(found: Iterator[Difference], reasons: dict[str, Reason], used: set[str]) -> list[Difference]:
    """The differences that no reason covers; notes the reasons that were needed."""
    left = []
    for path, a, b in found:
        reason = next((name for name, covers in reasons.items() if covers(path, a, b)), None)
        used.add(reason or "")
        if reason is None:
            left.append((path, a, b))
    return left


def _same(a: Any, b: Any) -> bool:
    return not list(differences(a, b))


def _integral(path: tuple[Any, ...], a: Any, b: Any) -> bool:
    return isinstance(a, float) and type(b) is int and a == b and math.copysign(1, a) == (-1 if a < 0 else 1)


def _minus_zero(path: tuple[Any, ...], a: Any, b: Any) -> bool:
    return isinstance(a, float) and bits(a) == bits(-0.0) and type(b) is int and b == 0


def _beyond_64_bit(path: tuple[Any, ...], a: Any, b: Any) -> bool:
    return type(a) is int and not -(2**63) <= a < 2**63 and isinstance(b, float) and b == float(a)


SDK_WRITES: dict[str, Reason] = {
    "an integral float becomes an integer: wandb-core writes 4.0 as 4": _integral,
    "minus zero loses its sign: wandb-core writes -0.0 as 0": _minus_zero,
    "an integer beyond 64 bit (signed) becomes a float": _beyond_64_bit,
    "an empty dictionary is dropped": lambda path, a, b: a == {} and b is ABSENT,
    'the key "" is dropped': lambda path, a, b: path[-1] == "" and b is ABSENT,
    "a tuple becomes a list": lambda path, a, b: isinstance(a, tuple) and _same(list(a), b),
    "a media object becomes a dictionary that also says where its file is": lambda path, a, b: (
        isinstance(a, Media) and isinstance(b, dict) and _same(a.fields, {k: b.get(k, ABSENT) for k in a.fields})
    ),
    "every row gets _timestamp and _runtime": lambda path, a, b: (
        a is ABSENT and path in (("_timestamp",), ("_runtime",)) and type(b) in (int, float)
    ),
}
"""What the SDK 0.31 changes between `run.log` and the wire."""

CONFIG_WRITES: dict[str, Reason] = {
    "integral floats become integers": _integral,
    "a non-finite number becomes null": lambda path, a, b: isinstance(a, float) and not math.isfinite(a) and b is None,
    "an empty dictionary is dropped": lambda path, a, b: a == {} and b is ABSENT,
    "a tuple becomes a list": lambda path, a, b: isinstance(a, tuple) and _same(list(a), b),
    "dashes around a top-level key are stripped": lambda path, a, b: (
        len(path) == 1 and path[0] in ("--dashes-", "dashes") and ABSENT in (a, b)
    ),
}
"""What the SDK changes in a config."""

API_READS: dict[str, Reason] = {
    "an integral float is read as an integer": _integral,
    "minus zero is read as 0": _minus_zero,
    "an integer beyond 64 bit is read as a float": _beyond_64_bit,
    "a lone surrogate is read as U+FFFD": lambda path, a, b: (
        isinstance(a, str) and b == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in a)
    ),
    "a lone surrogate in a key is read as U+FFFD": lambda path, a, b: (
        ("\udfff" in path and b is ABSENT) or ("\ufffd" in path and a is ABSENT)
    ),
}
"""What `wandb.Api().run(..).scan_history()` of the SDK 0.31 changes between the wire and its caller."""


# The laboratory: log once, read back once, sync once


@dataclass
class Lab:
    server: Server
    proxy: Proxy
    truths: dict[str, Truth]
    sent: dict[str, list[str]]
    """History lines of every run as they were posted."""
    events: dict[str, list[str]]
    api: dict[str, dict[str, Any]]
    copy: Copy
    held: mirror.Api
    """The objects of the copy."""


def _posted(proxy: Proxy, file: str) -> dict[str, list[str]]:
    """Lines of a file stream by run, each at the offset it was posted to."""
    found: dict[str, dict[int, str]] = {}
    for request in proxy.requests:
        if not request.path.endswith("/file_stream"):
            continue
        run_id = request.path.split("/")[-2]
        part = (request.json.get("files") or {}).get(file) or {"offset": 0, "content": []}
        lines = found.setdefault(run_id, {})
        for i, line in enumerate(part["content"], part["offset"]):
            assert lines.setdefault(i, line) == line, "a line was sent twice with different content"
    return {run_id: [lines[i] for i in range(len(lines))] for run_id, lines in found.items()}


def _windows(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Step ranges that hold these steps: the SDK asks for every page of a range, also for empty ones."""
    found: list[list[int]] = []
    for step in sorted(set(steps)):
        if found and step - found[-1][1] < 100_000:
            found[-1][1] = step + 1
        else:
            found.append([step, step + 1])
    return [(low, high) for low, high in found] or [(0, 10)]


def _read_back(server: Server, place: Path, wanted: list[tuple[str, list[tuple[int, int]]]]) -> list[dict[str, Any]]:
    """What `wandb.Api` gives, in a process with a cache of its own."""
    place.mkdir()
    (place / "wanted").write_bytes(pickle.dumps(wanted))
    env = os.environ | server.env | {"WANDB_CACHE_DIR": str(place / "cache"), "WANDB_DIR": str(place)}
    subprocess.run([sys.executable, HERE / "readback.py", place / "wanted", place / "found"], env=env, check=True)
    found: list[dict[str, Any]] = pickle.loads((place / "found").read_bytes())
    return found


def _wanted(lab_rows: dict[str, list[str]], run_ids: Sequence[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    return [
        (
            f"{ENTITY}/{PROJECT}/{run_id}",
            _windows([int(json.loads(line)["_step"]) for line in lab_rows.get(run_id, [])]),
        )
        for run_id in run_ids
    ]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("exact")
    with ExitStack() as stack:
        server = stack.enter_context(serving(place / "source"))
        proxy = stack.enter_context(proxied(server))
        env = os.environ | server.env | {"WANDB_BASE_URL": proxy.url}
        subprocess.run([sys.executable, HERE / "corpus.py", place / "truth"], env=env, check=True)
        truths: list[Truth] = pickle.loads((place / "truth").read_bytes())
        sent, events = _posted(proxy, "wandb-history.jsonl"), _posted(proxy, "wandb-events.jsonl")
        proxy.reset()
        ids = [truth.run_id for truth in truths]
        api = _read_back(server, place / "api", _wanted(sent, ids))
        copy = Copy(place / "mirror", proxy.url, server.key)
        copy.sync(f"{ENTITY}/{PROJECT}")
        read = dict(zip(ids, api, strict=True))
        yield Lab(server, proxy, {t.run_id: t for t in truths}, sent, events, read, copy, mirror.Api(copy.root))


RUNS = [make.__name__ for make in MAKERS]


@pytest.fixture(params=range(len(RUNS)), ids=RUNS)
def truth(request: pytest.FixtureRequest, lab: Lab) -> Truth:
    return list(lab.truths.values())[request.param]


def lines_of(lab: Lab, truth: Truth) -> list[str]:
    return lab.sent.get(truth.run_id, [])


# What was logged is what was sent


def test_what_was_logged_was_sent(lab: Lab, truth: Truth) -> None:
    lines = lines_of(lab, truth)
    if truth.lines is not None:
        assert lines == truth.lines
        return
    assert len(lines) == len(truth.rows)
    for row, line in zip(truth.rows, lines, strict=True):
        wire = json.loads(line)
        assert unexplained(differences(row, wire), SDK_WRITES, set()) == []
        assert truth.began - 1 <= wire["_timestamp"] <= truth.ended + 1


def test_every_reason_why_the_sdk_changes_a_row_is_needed(lab: Lab) -> None:
    used: set[str] = set()
    for truth in lab.truths.values():
        if truth.lines is None:
            for row, line in zip(truth.rows, lines_of(lab, truth), strict=True):
                unexplained(differences(row, json.loads(line)), SDK_WRITES, used)
    assert used == set(SDK_WRITES)


# What was sent is what the mirror holds


def test_the_mirror_holds_every_line(lab: Lab, truth: Truth) -> None:
    """By the objects users know: every row as a dict, in order, type for type."""
    run = lab.held.run(f"{ENTITY}/{PROJECT}/{truth.run_id}")
    rows = list(run.scan_history())
    expected = [json.loads(line) for line in lines_of(lab, truth)]
    assert len(rows) == len(expected)
    for row, wire in zip(rows, expected, strict=True):
        assert list(differences(wire, row)) == []


def tokens(line: str) -> Any:
    """A line in which every number is (kind, exact value), to tell -0, 0, 0.0 and 1e400 apart."""

    def a_float(text: str) -> tuple[str, Any]:
        return ("number", text if math.isinf(float(text)) else bits(float(text)))

    return json.loads(
        line,
        strict=False,
        parse_int=lambda text: ("int", text),
        parse_float=a_float,
        parse_constant=lambda text: ("nonfinite", text),
    )


def from_cells(cells: Sequence[tuple[Any, ...]], rows: int) -> list[dict[str, Any]]:
    """Rows in the form of `tokens`, made from raw cells by the words of schema/tables.sql."""
    found: list[dict[str, Any]] = [{} for _ in range(rows)]
    for row, key, path_id, kind, v, j in cells:
        if kind == "empty":
            continue
        names = [""]
        for i, part in enumerate(key.split(".")):
            if i == 0:
                names[-1] = part
            elif path_id >> (i - 1) & 1 and i <= 62:
                names.append(part)
            else:
                names[-1] += "." + part
        if path_id < 0:  # a key that UTF-8 cannot hold: the inside of a JSON string
            names = [json.loads(f'"{name}"') for name in names]
        place = found[row]
        for name in names[:-1]:
            place = place.setdefault(name, {})
        match kind:
            case "int":
                value: Any = ("int", j or ("-0" if bits(v) == bits(-0.0) else str(int(v))))
            case "number":
                value = ("number", bits(v) if j is None else j)
            case "nonfinite":
                value = ("nonfinite", {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(v)])
            case "bool":
                value = v == 1
            case "null":
                value = None
            case _:
                value = tokens(j)
        assert names[-1] not in place
        place[names[-1]] = value
    return found


def test_the_raw_tables_hold_every_cell(lab: Lab, truth: Truth) -> None:
    """By SQL on the Parquet tables, with nothing of the mirror's own reading code in between."""
    connection = lab.copy.reader().connect()
    cells = connection.execute(
        "select c.row, c.key, c.path_id, c.kind, c.v, c.j, c.step, epoch_us(c.ts) from raw.history c "
        "join raw.live l on l.rid = c.rid and l.history_gen = c.gen where l.run_id = ?",
        [truth.run_id],
    ).fetchall()
    state = connection.execute(
        "select history_rows, history_total, history_complete, history_lossless, history_last_step "
        "from runs where run_id = ?",
        [truth.run_id],
    ).fetchone()
    lines = lines_of(lab, truth)
    wire = [tokens(line) for line in lines]
    assert from_cells([cell[:6] for cell in cells], len(lines)) == wire
    rows = [json.loads(line) for line in lines]
    for row, *_, step, ts in cells:
        plain = rows[row]
        assert step == int(plain["_step"])
        assert ts == (round(plain["_timestamp"] * 1e6) if "_timestamp" in plain else None)
    last = max((int(json.loads(line)["_step"]) for line in lines), default=None)
    assert state == (len(lines), len(lines), True, True, last)


def test_the_mirror_holds_every_system_metric(lab: Lab, truth: Truth) -> None:
    rows = lab.copy.rows(PROJECT, truth.run_id, "system")
    expected = [json.loads(line) for line in lab.events.get(truth.run_id, [])]
    assert len(rows) == len(expected)
    assert list(differences(expected, rows)) == []
    if truth.events is not None:
        assert lab.events[truth.run_id] == truth.events


def test_the_mirror_serves_what_it_holds(lab: Lab, tmp_path: Path) -> None:
    """The copy, served, answers `wandb.Api` as the source did: one more time around and nothing has moved."""
    root = lab.copy.root
    with serving(root, "--read-only", key=lab.server.key) as again:
        found = _read_back(again, tmp_path / "again", _wanted(lab.sent, list(lab.truths)))
    for run_id, read in zip(lab.truths, found, strict=True):
        assert list(differences(lab.api[run_id], read)) == [], run_id


def test_exports_give_the_same_rows(lab: Lab, tmp_path: Path) -> None:
    """The other road of the SDK: the copy once more, with Parquet exports of all runs that have ended."""
    with serving(lab.copy.root, "--read-only", "--history-exports", "now", key=lab.server.key) as again:
        found = _read_back(again, tmp_path / "exports", _wanted(lab.sent, list(lab.truths)))
        assert "could not be exported" not in again.log.read_text()
    used: set[str] = set()
    for run_id, read in zip(lab.truths, found, strict=True):
        for row, exported in paired(run_id, lab.api[run_id]["rows"], read["rows"]):
            for key, reason in roads.reasons(row, exported, _reads_alike):
                assert reason, (run_id, key, row.get(key), exported.get(key))
                used.add(reason)
        assert list(differences(lab.api[run_id] | {"rows": []}, read | {"rows": []})) == [], run_id
    assert used == roads.REASONS
    assert not (lab.copy.root / "exports").exists()


def _reads_alike(a: Any, b: Any) -> bool:
    return not unexplained(differences(a, b), API_READS, set())


# What was sent is what wandb.Api reads


def pairs(lab: Lab, run_id: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(row as sent, row as `wandb.Api` gives it)."""
    return paired(run_id, list(map(json.loads, lab.sent.get(run_id, []))), lab.api[run_id]["rows"])


def paired(run_id: str, rows: list[dict[str, Any]], read: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """`scan_history` sorts by step, and rows that share a step come in no certain order: there each row is paired
    with the one at its step and time."""
    assert len(read) == len(rows), run_id
    rows = sorted(rows, key=lambda row: row["_step"])
    if run_id not in REPEATED:
        return list(zip(rows, read, strict=True))
    at = {(row["_step"], row["_timestamp"]): row for row in read}
    assert len(at) == len(rows)
    return [(row, at[row["_step"], row["_timestamp"]]) for row in rows]


REPEATED = {"repeated", "samestep"}
"""Runs with several rows at one step, as offline-resumed runs have them."""


def test_wandb_api_reads_what_was_sent(lab: Lab, truth: Truth) -> None:
    for sent, read in pairs(lab, truth.run_id):
        assert unexplained(differences(sent, read), API_READS, set()) == []


def test_every_reason_why_wandb_api_differs_is_needed(lab: Lab) -> None:
    used: set[str] = set()
    for run_id in lab.api:
        for sent, read in pairs(lab, run_id):
            unexplained(differences(sent, read), API_READS, used)
    assert used == set(API_READS)


# Documents and attributes


def test_configs(lab: Lab, truth: Truth) -> None:
    held = lab.held.run(f"{ENTITY}/{PROJECT}/{truth.run_id}").config
    assert list(differences(lab.api[truth.run_id]["config"], held)) == []
    assert unexplained(differences(truth.config, held), CONFIG_WRITES, set()) == []
    assert list(differences({"": held}, from_nodes(lab, "config", truth))) == []


def test_every_reason_why_the_sdk_changes_a_config_is_needed(lab: Lab) -> None:
    used: set[str] = set()
    for run_id, truth in lab.truths.items():
        unexplained(differences(truth.config, lab.api[run_id]["config"]), CONFIG_WRITES, used)
    assert used == set(CONFIG_WRITES)


def test_summaries(lab: Lab, truth: Truth) -> None:
    held = lab.held.run(f"{ENTITY}/{PROJECT}/{truth.run_id}").summary._json_dict
    assert list(differences(lab.api[truth.run_id]["summary"], held)) == []
    if truth.lines is None:  # the SDK makes a summary of the last values; nulls do not count as values
        last: dict[str, Any] = {}
        for row in truth.rows:
            last |= {key: value for key, value in row.items() if value is not None}
        for key, value in (last | truth.summary).items():
            if key in truth.summary or not isinstance(value, dict):  # dictionaries are merged, not replaced
                assert unexplained(differences(value, held.get(key, ABSENT), (key,)), SDK_WRITES, set()) == []
        assert {key for row in truth.rows for key in row}.isdisjoint(set(held) - set(last) - set(truth.summary))
    assert list(differences({"": held}, from_nodes(lab, "summary", truth))) == []


def from_nodes(lab: Lab, table: str, truth: Truth) -> dict[str, Any]:
    """The document as its rows in `config` or `summary` tell it, under "" (and nodes without a parent beside it)."""
    nodes = lab.copy.sql(
        f"select path, type, num, str from {table} where run_id = ? order by length(path) desc", truth.run_id
    )
    document = json.loads(lab.copy.sql(f"select {table} from runs where run_id = ?", truth.run_id)[0][0] or "null")
    values: dict[str, Any] = {}
    for path, kind, num, text in nodes:
        match kind:
            case "object" | "array":
                value: Any = json.loads(text)
                for child in [p for p in values if p.rpartition("/")[0] == path and p]:
                    name = child.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
                    value[int(name) if kind == "array" else name] = values.pop(child)
            case "string":
                value = text
            case "bool":
                value = num == 1
            case "null":
                value = None
            case _:
                value = _number(num, text, path, document)
        values[path] = value
    return values


def _number(num: float | None, text: str | None, path: str, document: Any) -> Any:
    """The documents' tables do not tell 4 from 4.0 (the JSON texts do): take the type from there."""
    if text is not None:
        return json.loads(text)
    for token in path.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    assert num is not None
    return int(num) if type(document) is int else num


def test_attributes(lab: Lab, truth: Truth) -> None:
    held = lab.copy.runs(PROJECT)[truth.run_id]
    read = lab.api[truth.run_id]
    for name in ("name", "notes", "group", "job_type", "state"):
        assert held[name] == read[name], name
        if getattr(truth, name) is not None:  # without a name the server gives one
            assert held[name] == getattr(truth, name), name
    assert held["tags"] == read["tags"]
    assert sorted(held["tags"]) == sorted(truth.tags)


def test_no_run_is_missing_or_made_up(lab: Lab) -> None:
    assert set(lab.copy.runs(PROJECT)) == set(lab.truths)
    assert len(lab.truths) >= 30


# What it costs


def test_a_run_of_a_million_million_steps_costs_a_few_requests(lab: Lab, tmp_path: Path) -> None:
    lab.proxy.reset()
    copy = Copy(tmp_path / "mirror", lab.proxy.url, lab.server.key)
    copy.sync(f"{ENTITY}/{PROJECT}/hugesteps")
    assert [row["_step"] for row in copy.rows(PROJECT, "hugesteps")][-1] == BIG_STEP
    assert sum(lab.proxy.operations.values()) <= 12, lab.proxy.operations


# What is held is proven to be what a server has


def _verified(lab: Lab, *args: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", lab.server.key)
        done = call("verify", "--against", lab.proxy.url, "--format", "json", *args, root=lab.copy.root)
    assert "Traceback" not in done.err, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_everything_verifies_against_its_source(lab: Lab) -> None:
    found = _verified(lab)
    assert found["store"]["ok"] and found["against"]["ok"], found
    assert found["against"]["respelled"] == 0 and found["against"]["compared"]["runs"] == len(lab.truths)
    lines = sum(len(lines) for lines in lab.sent.values()) + sum(len(lines) for lines in lab.events.values())
    assert found["against"]["compared"]["rows"] == lines


def test_everything_verifies_where_it_was_pushed(lab: Lab) -> None:
    """But for files, whose bytes this mirror does not hold."""
    remap = ["--remap", f"{ENTITY}/{PROJECT}={ENTITY}/sent"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", lab.server.key)
        call("push", f"{ENTITY}/{PROJECT}", "--to", lab.server.url, *remap, root=lab.copy.root)
    found = _verified(lab, *remap, "--listed", "1000")["against"]
    assert {one["stream"] for one in found["listed"]} <= {"files", "artifacts", "artifact entries"}, found["listed"]
    assert found["compared"]["runs"] == len(lab.truths) and found["respelled"] == 0
