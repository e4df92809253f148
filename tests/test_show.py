"""`mirror show`: everything about a run on a page, and the same as JSON."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import asking
import pytest
from commanding import call, ok
from test_runs import HOSTILE_KEYS

import mirror
from mirror.records import Artifact, ArtifactUse, FileEntry, ItemKey, Run, Sweep

METADATA = {
    "program": "train.py", "args": ["--lr", "0.1", "--out", "a b"], "python": "CPython 3.11.2", "gpu": "NVIDIA A100",
    "gpu_count": 8, "host": "node7", "git": {"remote": "git@github.com:team/code.git", "commit": "c0ffee"},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = asking.fill(tmp_path_factory.mktemp("show") / "m")
    asking.incomplete(root)
    with mirror.open(root, write=True) as m:
        full = Run(
            asking.key("full", "full"), name="the full one", state="failed", exit_code=3, tags=("x", "y"), sweep="sw1",
            username="ada", notes="a note", created_at=asking.T0,
            heartbeat_at=asking.T0 + timedelta(hours=1, seconds=5),
            config=asking.wire({"lr": 0.1, "long": "x" * 1000, "many": {f"k{i}": i for i in range(60)}}),
            summary='{"loss": NaN, "big": 12345678901234567890123}', metadata=json.dumps(METADATA),
        )  # fmt: skip
        m.put_runs([full])
        m.put_history(full, [{"_step": i, "loss": 1 / (i + 1), "epoch": i // 10} for i in range(30)])
        m.put_system_metrics(full, [{"_timestamp": 1.7e9 + i, "system.cpu": 10 * i} for i in range(5)])
        m.put_files(full, [FileEntry("model.pt", 5_000_000), FileEntry("a.txt", 12), FileEntry("unknown")])
        m.writer.put_logs(full.key, [(i, None, None, f"line {i}\x1b[2J") for i in range(9)])
        item = ItemKey("lab.example", "storage-item", "team", "full")
        m.writer.put_item(
            Sweep(item, "sw1", config="method: grid\nmetric: {name: loss, goal: minimize}\n", state="FINISHED")
        )
        m.writer.put_item(
            Artifact(ItemKey("lab.example", "art1", "team", "full"), "model", "weights", 3, aliases=("best",), size=99,
                     run_entity="team", run_project="full", run_id="full"),
        )  # fmt: skip
        m.writer.put_item(
            Artifact(ItemKey("lab.example", "art2", "team", "full"), "dataset", "data", 0,
                     uses=[ArtifactUse("team", "full", "full", "train")])
        )  # fmt: skip
        keys = Run(asking.key("keys", "full"), config=asking.wire({k: k for k in HOSTILE_KEYS}), name="\x1b[31m[red]\n")
        m.put_runs([keys, Run(asking.key("bare", "full"))])
        m.put_history(keys, [dict.fromkeys(HOSTILE_KEYS, i) for i in range(3)])
    return root


def facts(root: Path, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ok("show", *args, "--format", "json", root=root))
    return found


def test_facts(root: Path) -> None:
    found = facts(root, "full/full", "--logs", "2")
    assert found["path"] == "team/full/full"
    assert (
        found["run"]["name"] == "the full one" and found["run"]["state"] == "failed" and found["run"]["exit_code"] == 3
    )
    assert found["run"]["duration"] == 3605.0 and found["run"]["created_at"] == "2025-01-31T12:00:00Z"
    assert found["origin"]["command"] == "python train.py --lr 0.1 --out 'a b'"
    assert found["origin"]["arguments"] == ["python", "train.py", "--lr", "0.1", "--out", "a b"]
    assert found["origin"]["commit"] == "c0ffee" and found["origin"]["host"] == "node7"
    assert found["origin"]["user"] == "ada" and found["origin"]["gpu_count"] == 8
    assert found["config"]["many"] == {f"k{i}": i for i in range(60)} and found["config"]["lr"] == 0.1
    assert found["summary"] == {"loss": "NaN", "big": 12345678901234567890123}
    loss = found["metrics"]["main"][0]
    assert (loss["key"], loss["values"], loss["first_step"], loss["last_step"]) == ("loss", 30, 0, 29)
    assert (loss["last"], loss["least"], loss["greatest"]) == (1 / 30, 1 / 30, 1.0)
    assert found["system"] == [{"key": "system.cpu", "values": 5, "mean": 20.0, "least": 0.0, "greatest": 40.0}]
    assert (found["files"]["count"], found["files"]["bytes"]) == (3, 5_000_012)
    assert found["files"]["biggest"][0] == {"name": "model.pt", "size": 5_000_000}
    assert found["logs"]["lines"] == 9 and [line["text"][:6] for line in found["logs"]["tail"]] == ["line 7", "line 8"]
    assert found["artifacts"]["logged"] == [
        {"type": "model", "collection": "weights", "version": 3, "aliases": ["best"], "size": 99}
    ]
    assert [a["collection"] for a in found["artifacts"]["used"]] == ["data"]
    assert (found["sweep"]["metric"], found["sweep"]["goal"]) == ("loss", "minimize")
    assert found["mirror"]["history_rows"] == 30 and found["mirror"]["history_complete"] is True


def test_the_page(root: Path) -> None:
    out = ok("show", "full/full", root=root)
    for text in (
        "python train.py --lr 0.1 --out 'a b'", "git@github.com:team/code.git", "c0ffee", "x, y", "1:00:05", "failed",
        "many.k0 ", "... and 22 more; --all shows them", "12345678901234567890123", "system.cpu", "5.0 MB",
        "line 8\\x1b[2J", "weights:v3", "data:v0", "30 rows of 30, complete", "loss over _step", "(1,000 characters)",
        "a note",
    ):  # fmt: skip
        assert text in out, text
    assert "\x1b" not in out and "many.k59" not in out and "line 3" not in out
    assert out.index("loss over _step") < out.index("epoch over _step")
    everything = ok("show", "full/full", "--all", "--no-plots", "--logs", "0", root=root)
    assert "many.k59" in everything and "over _step" not in everything and "line 8" not in everything


def test_metrics_to_choose(root: Path) -> None:
    out = ok("show", "full/full", "--metric", "epoch", "--metric", "system.cpu", root=root)
    assert "epoch over _step" in out and "system.cpu over _step" in out and "loss over _step" not in out
    done = call("show", "full/full", "--metric", "lss", root=root)
    assert done.code == 1 and "did you mean `loss`?" in done.err


def test_runs_without_much(root: Path) -> None:
    out = ok("show", "full/bare", root=root)
    assert out.startswith("team/full/bare\n") and "0 rows" in out and "INCOMPLETE" not in out
    assert facts(root, "full/bare")["metrics"] == {"keys": 0, "main": []}
    assert "1 rows of 10, INCOMPLETE" in ok("show", "digits/short", root=root)
    assert "9 missing" in ok("show", "digits/short", root=root)
    diverged = ok("show", "digits/run3", root=root)
    assert "NaN" in diverged and math.isnan(asking.loss(3, 49))


def test_hostile_names(root: Path) -> None:
    out = ok("show", "full/keys", "--all", root=root)
    assert all(c.isprintable() or c == "\n" for c in out)
    assert facts(root, "full/keys")["config"] == {k: k for k in HOSTILE_KEYS}
    for key in HOSTILE_KEYS:
        if "\0" not in key:
            assert "over _step" in ok("show", "full/keys", "--metric", key, root=root)
    for i in range(len(asking.HOSTILE)):
        out = ok("show", f"hostile/h{i}", root=root)
        assert all(c.isprintable() or c == "\n" for c in out)


def test_hostile_metadata(tmp_path: Path) -> None:
    broken = [
        "{",
        "[]",
        '"x"',
        '{"program": 5, "args": "x", "git": [], "gpu": {"a": 1}}',
        '{"program": "p", "args": [1, null]}',
    ]
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs(Run(asking.key(f"r{i}"), metadata=text) for i, text in enumerate(broken))
    for i in range(len(broken)):
        out = ok("show", f"r{i}", root=tmp_path / "m")
        assert ("command" in out) == (i == 4)
    assert "python p 1 None" in out


def test_unknown_and_ambiguous_runs(root: Path) -> None:
    done = call("show", "digits/run 1", root=root)
    assert done.code == 1 and "did you mean `team/digits/run1`?" in done.err
    done = call("show", "team/shared/twin", root=root)
    assert done.code == 1 and "held from 2 sources" in done.err
    assert "other.example" in ok("show", "team/shared/twin", "--source", "other.example", root=root)
    done = call("show", "x' or 1=1 --", root=root)
    assert done.code == 1 and "holds no run" in done.err
    assert call("show", root=root).code == 2


def test_on_a_terminal_nothing_from_outside_takes_effect(root: Path) -> None:
    shown, tty = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mirror", "show", "full/keys", "--mirror", str(root)],
        stdout=tty, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(tty)
    out = b""
    try:
        while part := os.read(shown, 65536):
            out += part
    except OSError:  # the other end is closed
        pass
    os.close(shown)
    assert process.wait(300) == 0
    # Colours are our own: bold headings, and curves.
    assert b"\x1b[1mteam/full/keys\x1b[0m" in out
    assert b"[red]" in out and b"\x1b[31m[red]" not in out and b"\x1b]" not in out


def test_a_million_rows_are_shown_without_reading_them_whole(tmp_path: Path) -> None:
    rows = 300_000
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("long"))])
        m.put_history(asking.key("long"), (f'{{"_step":{i},"loss":{1 / (i + 1)!r}}}' for i in range(rows)))
    code = (
        "import pyarrow; import mirror.query.rows as r; r.stretches = None; "  # nothing may read whole rows
        "from mirror.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "show", "long", "--mirror", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"{rows:,} rows of {rows:,}" in done.stdout, done.stderr
