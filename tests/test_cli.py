"""The command line: quick to start, one-line errors with the right exit code, nothing acts on a terminal."""
# ruff: noqa: E501 (tables of cases read best with a case a line)

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import asking
import pytest
from costs import slowness, spent

import mirror

MIRROR = [sys.executable, "-m", "mirror"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asking.fill(tmp_path_factory.mktemp("cli") / "m")


def call(
    *args: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MIRROR", "WANDB"))}
    return subprocess.run(
        [*MIRROR, *args], capture_output=True, text=True, env=clean | (env or {}), input=stdin, cwd=cwd
    )


def ok(*args: str, **more: object) -> str:
    done = call(*args, **more)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- start-up -----------------------------------------------------------------------------------------------


def seconds(*args: str) -> float:
    """Processor time of a call: what the wall clock says when nothing else runs."""
    return spent(lambda: subprocess.run([*MIRROR, *args], stdout=subprocess.DEVNULL, check=True))


def test_a_command_leaves_pandas_out_without_hiding_it_from_the_sdk() -> None:
    code = (
        "import sys; from mirror.memory import without_pandas; without_pandas(); import pyarrow as pa\n"
        "for _ in range(3): pa.array([1]); pa.table({'a': ['x']}); assert 'pandas' not in sys.modules\n"
        "from wandb.proto import wandb_internal_pb2; from importlib.util import find_spec; assert find_spec('pandas')\n"
        "import pandas"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_help_starts_in_a_fifth_of_a_second() -> None:
    assert seconds("--help") <= 0.2 * slowness()


def test_sql_starts_in_half_a_second(root: Path) -> None:
    assert seconds("sql", "select 1", "--mirror", str(root)) <= 0.5 * slowness()


@pytest.mark.parametrize(
    ("args", "unwanted"),
    [
        (["--help"], {"duckdb", "pyarrow", "sqlglot", "graphql", "starlette", "requests", "rich", "numpy", "wandb"}),
        (["sync", "--help"], {"duckdb", "pyarrow", "sqlglot", "graphql", "starlette", "requests", "wandb"}),
        (["sql", "select 1"], {"pyarrow", "sqlglot", "graphql", "starlette", "requests", "rich", "pandas", "wandb"}),
        (["runs", "--limit", "1"], {"pyarrow", "graphql", "starlette", "requests", "pandas", "wandb"}),
        (["status"], {"pyarrow", "graphql", "starlette", "requests", "rich", "pandas", "wandb"}),
    ],
)
def test_heavy_packages_are_imported_when_they_are_needed(root: Path, args: list[str], unwanted: set[str]) -> None:
    code = "import sys; from mirror.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    env = os.environ | {"MIRROR_ROOT": str(root)}
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=True)
    assert not unwanted & set(done.stdout.splitlines()[-1].split())


def test_importing_mirror_costs_next_to_nothing() -> None:
    code = "import sys; import mirror; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"duckdb", "pyarrow", "numpy", "click"} & set(done.stdout.split())


# -- calling ------------------------------------------------------------------------------------------------


def test_version() -> None:
    assert ok("--version") == f"mirror, version {mirror.__version__}\n"


def test_pull_is_sync() -> None:
    assert ok("pull", "--help").splitlines()[2:] == ok("sync", "--help").splitlines()[2:]
    assert "Pull runs from W&B into the mirror" in ok("sync", "--help").splitlines()[2]


def test_sql_from_a_file_and_from_stdin(root: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("select 41 + 1 as n;\n")
    assert ok("sql", "-f", str(tmp_path / "q.sql"), "--mirror", str(root), "--format", "csv") == "n\n42\n"
    assert ok("sql", "-f", "-", "--mirror", str(root), "--format", "jsonl", stdin="select 1 as n") == '{"n":1}\n'


def test_sql_parameters(root: Path) -> None:
    args = ["sql", "select $a || '|' || $b as x", "--mirror", str(root), "--format", "csv"]
    assert ok(*args, "--param", "a=it's = x", "-p", "b=") == "x\nit's = x|\n"


def test_the_root_comes_from_the_option_then_the_environment_then_the_folder(root: Path, tmp_path: Path) -> None:
    query = ["sql", "select count(*) as n from runs", "--format", "csv"]
    empty = tmp_path / "wandb-mirror"
    with mirror.open(empty, write=True) as m:
        m.put_runs([mirror.Run(asking.key("only"))])
    n = ok(*query, "--mirror", str(root), env={"MIRROR_ROOT": "/nowhere"})
    assert ok(*query, env={"MIRROR_ROOT": str(root)}) == n != "n\n1\n"
    assert ok(*query, cwd=tmp_path) == "n\n1\n"


def test_output_goes_to_a_file(root: Path, tmp_path: Path) -> None:
    done = call("sql", "select 1 as n", "--mirror", str(root), "-o", str(tmp_path / "x.json"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"1 rows written to {tmp_path}/x.json\n"
    assert json.loads((tmp_path / "x.json").read_text()) == [{"n": 1}]
    ok("sql", "select 1 as n", "--mirror", str(root), "-o", str(tmp_path / "x.txt"), "--format", "table")
    assert (tmp_path / "x.txt").read_text() == "n\n-\n1\n"


def test_a_closed_pipe_is_no_error(root: Path) -> None:
    command = (
        f"{sys.executable} -m mirror sql 'select i from range(1000000) t(i)' --mirror {root} --format %s | head -1"
    )
    for format in ("csv", "table", "jsonl"):
        done = subprocess.run(["bash", "-c", "set -o pipefail; " + command % format], capture_output=True, text=True)
        assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_results_and_messages_do_not_mix(root: Path) -> None:
    done = call("runs", "--mirror", str(root), "--filter", '{"summary.loss": {"$gt": 1}}', "--format", "csv")
    assert done.stdout.startswith("path,") and "Note: `summary.loss`" in done.stderr and "Note" not in done.stdout


# -- bad input: one line, the next step, the exit code ------------------------------------------------------


def newer(root: Path, tmp_path: Path) -> Path:
    found = json.loads((root / "snapshot.json").read_text())
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "snapshot.json").write_text(json.dumps(found | {"schema_version": 99}))
    return tmp_path / "newer"


@pytest.mark.parametrize(
    "command", [["sql", "select 1"], ["runs"], ["status"], ["query", "leaderboard", "-p", "metric=x"]]
)
def test_roots_that_cannot_be_read(root: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "snapshot.json").write_text("{")
    cases = {
        "missing": "does not exist: make one with `mirror sync ENTITY/PROJECT",
        "file": "is not a mirror: make one with",
        "folder": "is not a mirror: make one with",
        "broken": "is damaged: run `mirror repair",
        newer(root, tmp_path).name: "was written by a newer release (schema `99`",
    }
    for name, message in cases.items():
        done = call(*command, "--mirror", str(tmp_path / name))
        assert done.returncode == 1, name
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ") and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["sql", "select * form runs"], 2, 'syntax error at or near "runs" (column 15)'),
        (["sql", "from runz"], 2, "there is no table `runz` (column 6); did you mean `runs`?"),
        (["sql", "drop view runs"], 2, "refused DROP: only reading is allowed: write one SELECT"),
        (["sql", "copy (select 1) to 'x.csv'"], 2, "refused COPY: only reading is allowed"),
        (["sql", "from read_text('/etc/passwd')"], 2, "refused read_text(): ask the mirror's tables and views"),
        (["sql", "from '/etc/hosts'"], 2, "there is no table `/etc/hosts`"),
        (["sql", "select 'x\x1b]0;x' form y z"], 2, "syntax error"),
        (["sql", "from \"[/red]\x1b[31m\""], 2, "there is no table `[/red]\\x1b[31m`"),
        (["sql"], 2, "give one query: as an argument, or with -f FILE"),
        (["sql", "select 1", "-f", "/dev/null"], 2, "give one query: as an argument, or with -f FILE"),
        (["sql", "select 1", "-p", "x"], 2, "`x` is no parameter: write --param name=value"),
        (["sql", "select 1", "-o", "x.xlsx"], 2, "cannot tell a format from `x.xlsx`: add --format csv|tsv"),
        (["sql", "select 1", "-o", "ROOT/data/x.csv"], 2, "lies inside the mirror: choose a place outside"),
        (["sql", "select 1", "-o", "/nowhere/x.csv"], 1, "cannot write `/nowhere/x.csv`: No such file or directory"),
        (["runs", "team/digitz"], 1, "the mirror holds nothing of `team/digitz`; did you mean `team/digits`?"),
        (["runs", "nobody"], 1, "the mirror holds nothing of `nobody`; it holds `team/digits` or `team/hostile`"),
        (["runs", "team/digits/runx"], 1, "the mirror holds no run `team/digits/runx`; `mirror runs` lists what it"),
        (["runs", "a/b/c/d"], 2, "`a/b/c/d` is no path of an entity, a project or a run"),
        (["runs", "\x1b[31m"], 2, "is no path: it holds control characters"),
        (["runs", "--filter", '{"stat": 1}'], 2, "stat: unknown field; did you mean 'state'?"),
        (["runs", "--filter", "{"], 2, "filter: not JSON"),
        (["runs", "--filter", '{"config.x": {"$wat": 1}}'], 2, "config.x $wat: unknown operator; supported are $and"),
        (["runs", "--filter", "@/nowhere.json"], 2, "cannot read the filter `@/nowhere.json`"),
        (["runs", "--order", "stat"], 2, "stat: unknown field; did you mean 'state'?"),
        (["runs", "--columns", "nam"], 2, "unknown column `nam`; did you mean `name`?"),
        (["runs", "--source", "nowhere.example", "team/digits"], 1, "the mirror holds nothing from `nowhere.example`; it holds runs from `lab.example` or `other.example`"),
        (["status", "nobody"], 1, "the mirror holds nothing of `nobody`"),
        (["query", "leaderbord"], 2, "there is no saved query `leaderbord`; did you mean `leaderboard`?"),
        (["query", "leaderboard"], 2, "`leaderboard` needs --param metric=... (text): key of the summary"),
        (["query", "leaderboard", "-p", "metric=x", "-p", "limit=many"], 2, "parameter `limit` is an integer from 1 on, got `many`"),
        (["query", "leaderboard", "-p", "metric=x", "-p", "goal=up"], 2, "parameter `goal` is max or min, got `up`"),
        (["query", "leaderboard", "-p", "metrik=x"], 2, "`leaderboard` needs --param metric=..."),
        (["query", "leaderboard", "-p", "metric=x", "-p", "y=1"], 2, "`leaderboard` has no parameter `y`; it has `metric`"),
        (["query", "config_diff", "-p", "a=run1", "-p", "b=runx"], 1, "the mirror holds no run `runx`"),
        (["query", "config_diff", "-p", "a=run1", "-p", "b=team/shared/twin"], 1, "is held from 2 sources, `lab.example`, `other.example`"),
    ],
)  # fmt: skip
def test_wrong_calls(root: Path, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    args = [a.replace("ROOT", str(root)) for a in args]
    done = call(*args, env={"MIRROR_ROOT": str(root)}, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert all(c.isprintable() or c == "\n" for c in done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sq"], "there is no command `sq`; did you mean `sql`?"),
        (["runs", "--limt", "3"], "No such option"),
        (["runs", "--limit", "x"], "'x' is not a valid integer"),
        (["runs", "--format", "xml"], "'xml' is not one of"),
        (["sql", "select 1", "-f"], "requires an argument"),
    ],
)
def test_clicks_own_complaints(root: Path, args: list[str], message: str) -> None:
    done = call(*args, env={"MIRROR_ROOT": str(root)})
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_an_unexpected_error_is_one_line_and_says_how_to_report_it(root: Path) -> None:
    code = "import mirror.query.sql as s, mirror.cli as c; s.execute = lambda *a: 1 / 0; c.main()"
    command = [sys.executable, "-c", code, "sql", "select 1", "--mirror", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: unexpected ZeroDivisionError: division by zero (a bug: please report it")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MIRROR_DEBUG": "1"})
    assert "Traceback" in done.stderr and done.returncode == 1


def test_hostile_names_print_harmlessly_everywhere(root: Path) -> None:
    commands = [
        ["runs", "team/hostile"],
        ["runs", "--columns", "run_id,name,notes,config.name"],
        ["status"],
        ["status", "team/hostile", "--all"],
        ["query", "config_diff", "-p", "a=team/hostile/h1", "-p", "b=team/hostile/h2"],
        ["diff", "team/hostile/h1", "team/hostile/h2"],
        ["show", "team/hostile/h1"],
        ["sql", "select name, path from runs join config using (rid) where runs.project = 'hostile'"],
    ]
    for args in commands:
        out = ok(*args, env={"MIRROR_ROOT": str(root)})
        assert all(c.isprintable() or c == "\n" for c in out), args


def test_a_reader_needs_no_write_permission_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    before = sorted(str(p) for p in root.rglob("*"))
    env = {"MIRROR_ROOT": str(root), "TMPDIR": str(tmp_path)}
    for args in (["runs"], ["status"], ["sql", "from history"], ["query", "leaderboard", "-p", "metric=loss"]):
        ok(*args, env=env)
    assert sorted(str(p) for p in root.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_repair(tmp_path: Path) -> None:
    root = asking.fill(tmp_path / "m")
    done = call("repair", "--mirror", str(root))
    assert done.returncode == 0 and "0 are missing or damaged" in done.stdout
    (root / "catalog.sqlite").write_bytes(b"x" * 100)
    assert "it was rebuilt from the files" in ok("repair", "--mirror", str(root))
    (lost,) = (root / "data" / "history").rglob("*.parquet")
    lost.unlink()
    done = call("repair", "--mirror", str(root))
    assert done.returncode == 1 and "1 are missing or damaged" in done.stdout
    assert f"lost: {lost.relative_to(root)}" in done.stdout and "incomplete: team/digits/run1" in done.stdout
    assert "Incomplete: 3 runs" in ok("status", "--mirror", str(root))
    done = call("repair", "--mirror", str(tmp_path / "nothing"))
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
