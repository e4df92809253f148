"""Rows as a destination gets them: one line a row, steps that ascend, the same lines wherever a push goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mirror
from mirror.importers.lines import RunLines
from mirror.importers.origin import origin_of, with_origin
from mirror.importers.run import mirrored_runs
from mirror.importers.together import Together
from mirror.query.sql import asking
from mirror.records import FileEntry, Project, Run, RunKey
from mirror.store import Reader
from mirror.wandb.filestream import LONGEST_LINE

STEP, LEFT_OUT = "mirror_origin/step", "mirror_origin/left_out"
KEY = RunKey("lab", "1", "e", "p", "r")


def stored(root: Path, texts: list[str]) -> Reader:
    with mirror.open(root, write=True) as made:
        made.put_projects([Project("lab", "e", "p")])
        made.put_runs([Run(KEY)])
        made.put_history(KEY, texts)
    return Reader(root)


def expected(texts: list[str]) -> list[dict[str, Any]]:
    """The rule, row by row: the next free step for a row whose own is none or not above that of the row before."""
    found: list[dict[str, Any]] = []
    last = -1
    for row in map(json.loads, texts):
        step = row.get("_step")
        own = int(step) if isinstance(step, (int, float)) and step == int(step) and 0 <= step <= 2**62 else None
        if own is None or own <= last:
            moved = {STEP: step} if "_step" in row and STEP not in row else {}
            row = row | moved | {"_step": last + 1}
            own = last + 1
        last = own
        found.append(row)
    return found


HOSTILE = [
    '{"_step":0,"x":1.5}', '{"_step":0,"x":2.0,"a":{"b":1},"a.b":2}', '{"_step":1.0,"x":-0.0}', "{}",
    '{"x":"no step"}', '{"_step":-7,"x":1}', '{"_step":100,"big":123456789012345678901234567890}', '{"_step":100}',
    '{"_step":"12","x":1}', '{"_step":99,"x":[1,{"y":null}]}', '{"_step":2.5}', '{"_step":9007199254740993,"x":1}',
    '{"_step":9007199254740993,"x":2}', '{"_step":5,"mirror_origin/step":3,"x":1}', '{"_step":9007199254740996}',
    '{"_step":1e300}', '{"_step":null,"x":1}', '{"":{"":1},"_step":{"a":1}}',
]  # fmt: skip


def test_hostile_steps_ascend_and_every_row_stays(tmp_path: Path) -> None:
    with stored(tmp_path / "m", HOSTILE) as reader:
        lines = RunLines(reader, 1, "history")
        whole = [line for part in lines.parts(0) for line in part]
        assert [json.loads(line) for line in whole] == expected(HOSTILE)
        steps = [json.loads(line)["_step"] for line in whole]
        assert steps == sorted(set(steps))
        moved = sum(json.loads(a).get("_step") != json.loads(b)["_step"] for a, b in zip(HOSTILE, whole, strict=True))
        assert lines.shifted(len(HOSTILE)) == moved == RunLines(reader, 1, "history").shifted(len(HOSTILE))
        for first in range(len(HOSTILE) + 1):
            assert [x for part in RunLines(reader, 1, "history").parts(first) for x in part] == whole[first:]


def test_small_runs_are_read_together_but_for_those_whose_lines_change(tmp_path: Path) -> None:
    plain = [
        '{"_step":0,"x":1.5}',
        '{"_step":7,"x":2.0,"a":{"b":1}}',
        '{"_step":9007199254740993,"":null,"s":"\u2028"}',
    ]
    long = [json.dumps({"_step": 0, "x": "x" * (LONGEST_LINE // 3)})]
    texts = {
        "a": plain,
        "b": HOSTILE,
        "none": [],
        "c": plain[:1],
        "gone": ["{}"],
        "long": long,
        "again": [plain[1]] * 2,
    }
    texts |= {"d": ['{"_step":1e3,"y":-0.0}', '{"_step":1001,"y":NaN}'], "null": ['{"_step":null,"x":1}']}
    with mirror.open(tmp_path / "m", write=True) as made:
        made.put_projects([Project("lab", "e", "p")])
        for n, (name, rows) in enumerate(texts.items()):
            key = RunKey("lab", str(n), "e", "p", name)
            made.put_runs([Run(key)])
            made.put_history(key, rows)
            made.put_system_metrics(key, ['{"gpu":1}', '{"gpu":2}'][: len(rows)])
        made.put_files(RunKey("lab", "0", "e", "p", "a"), [FileEntry("b.txt"), FileEntry("a.txt", 5, "md5")])
        made.put_files(RunKey("lab", "1", "e", "p", "b"), [FileEntry(f"{i}.txt") for i in range(101)])
    with Reader(tmp_path / "m") as reader:
        with asking(reader) as connection:
            rids = dict(connection.execute("select run_id, rid from runs").fetchall())
        runs = mirrored_runs(reader, [rids[name] for name in texts])
        together = Together(reader, runs, plain=runs)
        ready = {str(run.row["run_id"]): together.ready(run.rid) for run in runs}
        for name in ("a", "c", "d"):
            whole = ready[name].history
            assert whole is not None
            assert list(map(json.dumps, map(json.loads, whole))) == [
                json.dumps(dict(sorted(json.loads(line).items()))) for line in texts[name]
            ]
            lines = RunLines(reader, rids[name], "history", whole)
            for first in range(len(whole) + 1):
                alone = RunLines(reader, rids[name], "history").parts(first)
                assert [x for part in lines.parts(first) for x in part] == [x for part in alone for x in part]
            assert lines.shifted(len(whole)) == 0
        assert [name for name, of in ready.items() if of.history is None] == [
            "b",
            "none",
            "gone",
            "long",
            "again",
            "null",
        ]
        assert {name: len(of.system or ()) for name, of in ready.items()} == {
            n: min(2, len(r)) for n, r in texts.items()
        }
        assert ready["a"].files == [("a.txt", 5, "md5", None), ("b.txt", None, None, None)]
        assert ready["b"].files is None and ready["c"].files == []  # a hundred are listed together, no more
        assert Together(reader, runs, plain=[]).ready(rids["a"]).history is None


def test_a_row_that_is_too_long_loses_its_longest_values_and_says_so(tmp_path: Path) -> None:
    long = {"_step": 0, "short": 1, "é": "é" * (LONGEST_LINE // 2), "b": "b" * 100}
    with stored(tmp_path / "m", [json.dumps(long), '{"_step":1}']) as reader:
        lines = RunLines(reader, 1, "history")
        first, second = [line for part in lines.parts(0) for line in part]
    assert json.loads(first) == {"_step": 0, "short": 1, "b": "b" * 100, LEFT_OUT: ["é"]}
    assert json.loads(second) == {"_step": 1} and lines.shortened == 1


@pytest.mark.parametrize(
    "config", [None, "", "{}", "no json", '{"a":{"value":NaN}}', '{"a":{"value":12345678901234567890123}}', "[1]"]
)
def test_the_origin_is_added_to_any_config(config: str | None) -> None:
    row = {"source": "s", "entity": "e", "project": "p", "run_id": "r", "storage_id": "1"}
    text = with_origin(config, row, {"displayName": "😀"})
    origin = origin_of(text)
    assert origin["path"] == "e/p/r" and origin["displayName"] == "😀"
    if config and config.startswith('{"a"'):
        assert text.startswith(config[:-1])  # as it was written, to the letter


def test_an_origin_of_an_earlier_import_is_kept_and_a_fork_is_sent_whole() -> None:
    row = {"source": "s", "entity": "e", "project": "p", "run_id": "r", "storage_id": "1"}
    point = '{"_wandb":{"value":{"t":{"1":[1]},"branch_point":{"run_id":"parent","step":5}}},"x":{"value":2.0}}'
    once = with_origin(point, row, {})
    assert "branch_point" not in once and '"x":{"value":2.0}' in once
    assert origin_of(once)["forked_from"] == {"run_id": "parent", "step": 5}
    of_log = origin_of(with_origin("{}", row | {"fork_run_id": "parent", "fork_step": 5}, {}))
    assert of_log["forked_from"] == {"run_id": "parent", "step": 5}  # the record of a log says it, the config does not
    again = origin_of(with_origin(once, row | {"storage_id": "2"}, {}))
    assert again["storage_id"] == "2" and again["previous"]["storage_id"] == "1"
