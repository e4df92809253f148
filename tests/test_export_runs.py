"""`mirror export`: what runs logged as files, exactly, under safe names, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import asking
import pandas
import polars
import pyarrow.parquet as pq
import pytest
from commanding import call, ok
from serving import client, serving
from test_runs import HOSTILE_KEYS

import mirror
from mirror.query.filenames import file_names
from mirror.query.logged import LoggedRows
from mirror.records import FileEntry, Run

ODD = [
    {"_step": 0, "loss": 0.1, "n": 1, "big": 2**53 + 1, "ok": True, "s": 'a,"b"\n', "mix": 1, "a": {"b": 1},
     "a.b": 2.5},
    {"_step": 0, "loss": math.nan, "n": 2**53, "big": 3, "s": "", "mix": "x", "l": [1, {"k": None}], "vast": 10**30},
    {},
    {"_step": 7, "loss": -math.inf, "ok": None, "s": None, "mix": None, "empty": {}, "vast": -1},
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = asking.fill(tmp_path_factory.mktemp("export-runs") / "m")
    with mirror.open(root, write=True) as m:
        odd = Run(asking.key("odd", "odd"), name="odd")
        m.put_runs([odd, Run(asking.key("none", "odd"))])
        m.put_history(odd, ODD)
        m.put_system_metrics(
            odd, [{"_timestamp": 1.7e9 + i, "system.cpu": 10 + i, "system.gpu.0.gpu": i / 3} for i in range(3)]
        )
        m.put_files(odd, [FileEntry("a/b.txt", 12, "bWQ1"), FileEntry("../../evil", 3)])
        hostile = Run(asking.key("hostile", "keys"), config=asking.wire({k: i for i, k in enumerate(HOSTILE_KEYS)}))
        m.put_runs([hostile])
        m.put_history(hostile, [{"_step": 0} | {k: i for i, k in enumerate(HOSTILE_KEYS) if k}, {"_step": 1, "": 5}])
    return root


def exported(root: Path, out: Path, *args: str | Path) -> Path:
    ok("export", *args, "-o", out, root=root)
    return out


def test_all_metrics_to_csv(root: Path, tmp_path: Path) -> None:
    """W&B's guide: export metrics of a run to CSV, as a pandas user reads them."""
    frame = pandas.read_csv(exported(root, tmp_path / "metrics.csv", "team/digits/run3", "--what", "history"))
    assert list(frame.columns) == ["_step", "_timestamp", "loss", "n"]
    assert frame["_step"].tolist() == frame["n"].tolist() == list(range(50))
    assert [str(v) for v in frame["loss"]] == [str(asking.loss(3, step)) for step in range(50)]
    assert frame["_timestamp"].tolist() == [1.7e9 + step for step in range(50)]


def test_a_project_to_csv(root: Path, tmp_path: Path) -> None:
    """W&B's guide: name, config and summary of all runs of a project."""
    args = ["team/digits", "--what", "runs", "--keys", "name,config,summary"]
    rows = list(csv.DictReader(exported(root, tmp_path / "project.csv", *args).open()))
    assert [row["name"] for row in rows] == ["run 1", "run 2", "run 3"]
    assert json.loads(rows[1]["config"]) == {
        "lr": 0.2, "layers": [2, 2], "opt": {"name": "adam", "beta": 0.9}, "seed": 2, "a.b": 2,
    }  # fmt: skip
    assert json.loads(rows[1]["summary"]) == {"loss": 2.02, "val/acc": 0.5, "best": {"step": 2}}
    nested = exported(root, tmp_path / "project.jsonl", *args)
    assert json.loads(nested.read_text().splitlines()[2])["summary"]["loss"] == "NaN"


def test_system_metrics_to_csv(root: Path, tmp_path: Path) -> None:
    """W&B's guide: system metrics of a run."""
    frame = pandas.read_csv(exported(root, tmp_path / "system.csv", "team/odd/odd", "--what", "system"))
    assert frame.to_dict("list") == {
        "_timestamp": [1.7e9, 1.7e9 + 1, 1.7e9 + 2], "system.cpu": [10, 11, 12],
        "system.gpu.0.gpu": [0.0, 1 / 3, 2 / 3],
    }  # fmt: skip


def test_odd_values(root: Path, tmp_path: Path) -> None:
    lines = exported(root, tmp_path / "odd.csv", "odd/odd", "--what", "history").read_text()
    head, *rows = csv.reader(io.StringIO(lines))
    assert head == ["_step", "a.b", "a.b_1", "big", "empty", "l", "loss", "mix", "n", "ok", "s", "vast"]
    assert rows == [
        ["0", "2.5", "1", str(2**53 + 1), "", "", "0.1", "1", "1", "true", 'a,"b"\n', ""],
        ["0", "", "", "3", "", '[1,{"k":null}]', "NaN", '"x"', str(2**53), "", "", str(10**30)],
        [""] * 12,
        ["7", "", "", "", "{}", "", "-Infinity", "null", "", "", "", "-1"],
    ]
    table = pq.read_table(exported(root, tmp_path / "odd.parquet", "odd/odd", "--what", "history"))
    assert [str(t) for t in table.schema.types] == [
        "int64", "double", "int64", "int64", "string", "string", "double", "string", "int64", "bool", "string",
        "decimal128(38, 0)",
    ]  # fmt: skip
    assert table.column("big").to_pylist() == [2**53 + 1, 3, None, None]
    assert table.column("vast").to_pylist() == [None, Decimal(10**30), None, Decimal(-1)]
    assert table.column("ok").to_pylist() == [True, None, None, None]
    assert str(table.column("loss").to_pylist()) == "[0.1, nan, None, -inf]"
    assert polars.read_ipc(exported(root, tmp_path / "odd.arrow", "odd/odd", "--what", "history")).height == 4


def test_json_lines_are_what_was_logged(root: Path, tmp_path: Path) -> None:
    lines = exported(root, tmp_path / "odd.jsonl", "odd/odd", "--what", "history").read_text().splitlines()
    words = {"nan": "NaN", "-inf": "-Infinity"}
    wanted = [{k: words.get(str(v), v) for k, v in row.items()} for row in ODD]
    assert [json.loads(line) for line in lines] == wanted
    lines = exported(root, tmp_path / "all.jsonl", "team/odd", "--what", "history", "--keys", "a,mix").read_text()
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"entity": "team", "project": "odd", "run_id": "odd", "name": "odd", "row": row}
        for row in ({"_step": 0, "mix": 1, "a": {"b": 1}}, {"_step": 0, "mix": "x"}, {"_step": 7, "mix": None})
    ]


def test_one_file_per_run_or_one_for_all(root: Path, tmp_path: Path) -> None:
    out = exported(root, tmp_path / "many", "team/digits", "--what", "history", "--what", "config")
    names = [f"run_{n}-run{n}.history.csv" for n in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == ["config.csv", *names]
    frame = pandas.read_csv(exported(root, tmp_path / "one", "team", "--what", "history", "--one-file") / "history.csv")
    assert list(frame.columns[:5]) == ["entity", "project", "run_id", "name", "_step"]
    assert frame.groupby("run_id").size()[["run1", "run2", "run3", "odd"]].tolist() == [50, 50, 50, 4]
    # A key of one run is an empty column of the others.
    assert frame[frame.run_id == "run1"].vast.isna().all()


def test_keys_and_filters(root: Path, tmp_path: Path) -> None:
    filter = '{"state": "finished"}'
    args = ["team/digits", "--what", "history", "--keys", "loss", "--filter", filter, "--format", "tsv"]
    out = exported(root, tmp_path / "loss", *args)
    assert sorted(path.name for path in out.iterdir()) == ["run_1-run1.history.tsv", "run_2-run2.history.tsv"]
    lines = (out / "run_2-run2.history.tsv").read_text().splitlines()
    assert lines == ["_step\tloss", *(f"{step}\t{asking.loss(2, step)!r}" for step in range(50))]
    config = exported(
        root, tmp_path / "config.csv", "digits/run1", "--what", "config", "--keys", "opt,seed"
    ).read_text()
    assert config.splitlines() == [
        "entity,project,run_id,name,config.opt.name,config.opt.beta,config.seed", "team,digits,run1,run 1,adam,0.9,1",
    ]  # fmt: skip


def test_config_and_summary_by_key(root: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(exported(root, tmp_path / "summary.csv", "team/digits", "--what", "summary"))
    assert frame["summary.val/acc"].tolist() == [0.25, 0.5, 0.75]
    assert frame["summary.loss"].tolist()[:2] == [1.02, 2.02] and math.isnan(frame["summary.loss"][2])
    assert frame["summary.best.step"].tolist() == [1, 2, 3]


def test_files_and_runs_without_anything(root: Path, tmp_path: Path) -> None:
    text = exported(root, tmp_path / "files.csv", "team/odd", "--what", "files").read_text()
    assert text.splitlines()[1:] == ["team,odd,odd,../../evil,3,,,,", "team,odd,odd,a/b.txt,12,bWQ1,,,"]
    out = exported(root, tmp_path / "none", "odd/none", *(f"--what={what}" for what in ("history", "system", "logs")))
    assert {p.name: p.read_text() for p in out.iterdir()} == {
        "none.history.csv": "_step\n", "none.system.csv": "_step\n", "none.logs.csv": "line,ts,level,text\n",
    }  # fmt: skip
    for format in ("parquet", "arrow", "json", "jsonl"):
        exported(root, tmp_path / f"none.{format}", "odd/none", "--what", "history")
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0
    done = call(
        "export", "team/digits", "--filter", '{"state": "no"}', "--what", "history", "-o", tmp_path / "z", root=root
    )
    assert done.code == 0 and "No runs" in done.err


def test_an_empty_row_is_not_the_empty_key(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("r")), Run(asking.key("s"))])
        m.put_history(asking.key("r"), [{"": 5}, {}, {"": None, "x": 1}])
        m.put_history(asking.key("s"), [{}])
    text = exported(
        tmp_path / "m", tmp_path / "x.csv", "team/digits", "--what", "history", "-k", "", "-k", "x"
    ).read_text()
    assert text.splitlines() == ['entity,project,run_id,name,_step,"",x', "team,digits,r,,,5,", "team,digits,r,,,,1"]
    exported(tmp_path / "m", tmp_path / "all", "team/digits", "--what", "history")
    assert (tmp_path / "all" / "r.history.csv").read_text().splitlines() == ['"",x', "5,", ",", ",1"]
    one = exported(tmp_path / "m", tmp_path / "y.csv", "team/digits", "--what", "history").read_text()
    assert one.splitlines()[1:] == ["team,digits,r,,5,", "team,digits,r,,,", "team,digits,r,,,1", "team,digits,s,,,"]


def test_hostile_keys(root: Path, tmp_path: Path) -> None:
    row = exported(root, tmp_path / "h.csv", "keys/hostile", "--what", "history").read_text()
    head, first, second = csv.reader(io.StringIO(row))
    wanted = {"_step": "0"} | {k: str(i) for i, k in enumerate(HOSTILE_KEYS) if k}
    found = dict(zip(head, first, strict=True))
    assert found.pop("") == "" and found == wanted
    assert dict(zip(head, second, strict=True))[""] == "5"
    for i, key in enumerate(HOSTILE_KEYS):
        if "\0" in key or not key:
            continue
        out = tmp_path / f"{i}.jsonl"
        ok("export", "keys/hostile", "--what", "history", "-k", key, "-o", out, root=root)
        # `.` selects nothing but itself: what is nested in a key is found by borders, not by spelling.
        assert [json.loads(line) for line in out.read_text().splitlines()] == [{"_step": 0, key: i}]
    head, values = csv.reader(
        io.StringIO(exported(root, tmp_path / "c.csv", "keys/hostile", "--what", "config").read_text())
    )
    assert dict(zip(head[4:], values[4:], strict=True)) == {f"config.{k}": str(i) for i, k in enumerate(HOSTILE_KEYS)}


def test_file_names_are_safe_and_unique(root: Path, tmp_path: Path) -> None:
    out = exported(root, tmp_path / "hostile", "team/hostile", "--what", "history")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert len(names) == len(asking.HOSTILE) and {p.parent for p in tmp_path.rglob("*.csv")} == {out}
    assert all(c.isalnum() or c in ".-+=_" for name in names for c in name)

    def key(run_id: str, name: str | None = None, project: str = "p") -> tuple[str, str, str, str, str | None]:
        return ("host", "e", project, run_id, name)

    assert file_names([key("a", "x"), key("b", "x"), key("c"), key("d", "d")]) == ["x-a", "x-b", "c", "d"]
    wild = [
        "../../etc/passwd",
        "/",
        "..",
        ".hidden",
        "-rf",
        "",
        "\0",
        "a/b",
        "a\\b",
        "A",
        "a",
        "é" * 200,
        "🦄" * 200,
        "con",
    ]
    found = file_names([key(w, w) for w in wild] + [key(w, "n", "q") for w in wild])
    assert len({name.casefold() for name in found}) == len(found)
    assert all(name and name[0] not in ".-" and "/" not in name and len(name.encode()) < 240 for name in found)
    # A name says nothing about which other runs are exported, unless two would be the same.
    assert file_names([key("a/b")])[0] == file_names([key("a/b"), key("a\\b")])[0]


def test_nothing_is_written_over(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text("mine")
    done = call("export", "team/digits", "--what", "runs", "-o", out, root=root)
    assert done.code == 2 and "would be written over: add --force" in done.err and out.read_text() == "mine"
    ok("export", "team/digits", "--what", "runs", "-o", out, "--force", root=root)
    assert out.read_text().startswith("source,")
    done = call("export", "team/digits", "--what", "runs", "-o", root / "x", root=root)
    assert done.code == 2 and "lies inside the mirror" in done.err
    done = call("export", "team/digits", "--what", "history", "-o", out / "folder", root=root)
    assert done.code == 1 and "cannot make the folder" in done.err


def test_a_file_appears_when_it_is_whole(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LoggedRows) -> Any:
        yield (1, 2, 3, 4)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LoggedRows, "__iter__", broken)
    done = call("export", "digits/run1", "--what", "history", "-o", tmp_path / "out", root=root)
    assert done.code == 1 and "No space left on device" in done.err and not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["team/digit", "--what", "history"], 1, "did you mean `team/digits`?"),
        (["team/digits/run9", "--what", "history"], 1, "holds no run `team/digits/run9`"),
        (["run 1", "--what", "history"], 1, "holds nothing of `run 1`"),
        (["team/digits", "--what", "runs", "--keys", "nmae"], 2, "unknown column `nmae`; did you mean `name`"),
        (["team/digits", "--what", "files", "--keys", "x"], 2, "files have no keys"),
        (["team/digits"], 2, "Missing option '--what'"),
        (["'; drop table runs; --", "--what", "runs"], 1, "holds nothing of"),
        (["team/digits'/**/or/**/1=1", "--what", "runs"], 2, "is no path"),
        (["shared/twin", "--what", "runs"], 1, "held from 2 sources"),
    ],
)
def test_bad_calls(root: Path, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    done = call("export", *args, "-o", tmp_path / "x", root=root)
    assert done.code == code and message in done.err and not (tmp_path / "x").exists()


def test_one_file_takes_one_kind_of_rows(root: Path, tmp_path: Path) -> None:
    done = call("export", "--what", "runs", "--what", "history", "-o", tmp_path / "x.csv", root=root)
    assert done.code == 2 and "is one file" in done.err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell peak memory")
def test_a_million_rows_and_ten_thousand_keys_in_flat_memory(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(asking.key("long")), Run(asking.key("wide"))])
        m.put_history(asking.key("long"), (f'{{"_step":{i},"loss":{i / 7!r},"n":{i}}}' for i in range(1_000_000)))
        keys = [f"layer.{k}" for k in range(10_000)]
        m.put_history(asking.key("wide"), ({"_step": i} | dict.fromkeys(keys, i / 3) for i in range(100)))
    code = (
        "import re, sys; from mirror.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    args = ["export", "--what", "history", "-o", str(tmp_path / "out"), "--mirror", str(tmp_path / "m")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500_000  # kB; the rows alone, as Python objects, would take more than a GB
    with (tmp_path / "out" / "long.history.csv").open() as f:
        assert sum(1 for _ in f) == 1_000_001
    frame = polars.read_csv(tmp_path / "out" / "wide.history.csv")
    assert frame.width == 10_001 and frame["layer.9999"].to_list() == [i / 3 for i in range(100)]


LOGGING = """
import json, math, sys, wandb
run = wandb.init(project="trip", name="a / b", config={"lr": 0.1, "opt": {"name": "adam"}})
for i in range(200):
    odd = {"loss": math.nan, "only": "text"}
    run.log({"loss": 1 / (i + 1), "val/acc": i, "nested": {"x": i * 2}} if i != 100 else odd)
run.finish()
print(json.dumps(run.id))
"""


@pytest.mark.slow
def test_logged_by_the_sdk_served_synced_exported(tmp_path: Path) -> None:
    """What a script logged with wandb's SDK comes out of the export, value for value."""
    with serving(tmp_path / "server") as server:
        run_id = client(server, LOGGING)
        env = os.environ | server.env
        command = [sys.executable, "-m", "mirror", "sync", "local/trip", "--base-url", server.url]
        subprocess.run([*command, "--mirror", tmp_path / "m"], env=env, check=True, timeout=300, capture_output=True)
    ok("export", f"local/trip/{run_id}", "--what", "history", "-o", tmp_path / "out", root=tmp_path / "m")
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == f"a___b-{run_id}.history.csv"
    frame = pandas.read_csv(path)
    assert frame["_step"].tolist() == list(range(200))
    assert [str(v) for v in frame["loss"]] == [str(1 / (i + 1)) if i != 100 else "nan" for i in range(200)]
    assert [str(v) for v in frame["val/acc"]] == [f"{i}.0" if i != 100 else "nan" for i in range(200)]
    assert frame["nested.x"].dropna().tolist() == [2 * i for i in range(200) if i != 100]
    assert frame["only"].dropna().to_dict() == {100: "text"}
