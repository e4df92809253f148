"""What holds for all commands that look at runs: lost files, odd arguments, start-up, no traces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import asking
import pytest
from commanding import call, ok

import mirror
from mirror.records import Project

LOOKING = [
    ["show", "RUN"],
    ["diff", "RUN", "digits/run2"],
    ["plot", "RUN", "--metric", "loss"],
    ["export", "RUN", "--what", "history", "-o", "OUT"],
    ["best", "team/digits", "--metric", "loss", "--goal", "min"],
    ["runs", "RUN"],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = asking.fill(tmp_path_factory.mktemp("commands") / "m")
    with mirror.open(root, write=True) as m:
        m.put_projects([Project("lab.example", "team", "empty")])
    return root


def filled(args: list[str], run: str, out: Path) -> list[str]:
    return [str(out) if a == "OUT" else run if a == "RUN" else a for a in args]


@pytest.mark.parametrize("args", LOOKING, ids=lambda args: args[0])
def test_a_lost_file_is_said(root: Path, tmp_path: Path, args: list[str]) -> None:
    copy = tmp_path / "m"
    shutil.copytree(root, copy)
    for table in ("history", "summary", "config", "metric"):
        for path in (copy / "data" / table).rglob("*.parquet"):
            path.unlink()
    done = call(*filled(args, "team/digits/run1", tmp_path / "out"), root=copy)
    assert "a bug" not in done.err and "Traceback" not in done.err
    if done.code:
        assert done.code == 1 and "mirror repair" in done.err and done.err.startswith("Error: ")
    assert not (tmp_path / "out").exists() or [*(tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("args", LOOKING, ids=lambda args: args[0])
@pytest.mark.parametrize(
    "run",
    ["", " ", "a/b/c/d", "../..", "x\x00y", "\ud800", "\udcff", "🦄", "' or 1=1; --", "%", "team/digits/run9", "[red]"],
)
def test_odd_paths(root: Path, tmp_path: Path, args: list[str], run: str) -> None:
    done = call(*filled(args, run, tmp_path / "out"), root=root)
    if "RUN" in args and not (run in ("", " ") and args[0] in ("runs", "plot", "export")):
        assert done.code in (1, 2)
        assert done.err.startswith(("Error: ", "Usage: ")) and "a bug" not in done.err
    assert all(c.isprintable() or c == "\n" for c in done.err)


def test_bytes_that_are_no_text(root: Path) -> None:
    command = [sys.executable, "-m", "mirror", "show", b"team/digits/\xff", "--mirror", str(root)]
    done = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | {"LC_ALL": "C.UTF-8"})
    assert done.returncode in (1, 2) and done.stderr.startswith(b"Error: ") and b"a bug" not in done.stderr


def test_a_project_without_runs(root: Path, tmp_path: Path) -> None:
    assert ok("runs", "team/empty", "--format", "jsonl", root=root) == ""
    assert "No runs." in call("plot", "team/empty", "--metric", "loss", root=root).err
    assert "No runs." in call("best", "team/empty", "--metric", "loss", root=root).err
    for what in ("runs", "config", "summary", "files"):
        ok("export", "team/empty", "--what", what, "-o", tmp_path / "x", root=root)
    assert (tmp_path / "x" / "config.csv").read_text() == "entity,project,run_id,name\n"
    ok("export", "team/empty", "--what", "history", "--one-file", "-o", tmp_path / "x", root=root)
    assert (tmp_path / "x" / "history.csv").read_text() == "entity,project,run_id,name,_step\n"


def test_an_empty_mirror(tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True):
        pass
    for args in LOOKING:
        done = call(*filled(args, "team/digits/run1", tmp_path / "out"), root=tmp_path / "m")
        assert done.code == 1 and "the mirror holds no" in done.err, args
    assert ok("export", "--what", "runs", "-o", tmp_path / "runs.csv", root=tmp_path / "m") == ""


@pytest.mark.parametrize(
    ("args", "unwanted"),
    [
        (
            ["diff", "digits/run1", "digits/run2"],
            {"pyarrow", "graphql", "starlette", "requests", "pandas", "matplotlib"},
        ),
        (
            ["show", "digits/run1", "--no-plots"],
            {"graphql", "starlette", "requests", "pandas", "matplotlib", "uniplot"},
        ),
        (["plot", "digits/run1", "--metric", "n"], {"graphql", "starlette", "requests", "pandas", "matplotlib"}),
        (["completion", "bash"], {"duckdb", "pyarrow", "sqlglot", "numpy", "rich", "matplotlib"}),
        (["export", "--help"], {"duckdb", "pyarrow", "sqlglot", "numpy", "rich", "matplotlib"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_heavy_packages_are_imported_when_they_are_needed(root: Path, args: list[str], unwanted: set[str]) -> None:
    code = """
import sys
from mirror.cli import cli
try:
    cli.main(sys.argv[1:], standalone_mode=False)
finally:
    print(*sys.modules)
"""
    env = os.environ | {"MIRROR_ROOT": str(root)}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not unwanted & set(done.stdout.splitlines()[-1].split())


def test_a_reader_leaves_nothing(root: Path, tmp_path: Path) -> None:
    before = sorted(str(p) for p in root.rglob("*"))
    (tmp_path / "tmp").mkdir()
    for args in LOOKING:
        command = [
            sys.executable,
            "-m",
            "mirror",
            *filled(args, "team/digits/run1", tmp_path / "out"),
            "--mirror",
            str(root),
        ]
        env = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
    assert sorted(str(p) for p in root.rglob("*")) == before and [*(tmp_path / "tmp").iterdir()] == []
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["run_1-run1.history.csv"]


def test_a_folder_of_logs_that_is_taken_for_an_entity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mirror sync wandb` where the SDK left `./wandb`."""
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", "/dev/null")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = call("sync", "wandb", root=tmp_path / "m")
    assert done.code == 1 and "Note: `wandb` names an entity; the folder of that name here is `./wandb`." in done.err
