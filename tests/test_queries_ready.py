"""The ready queries over a generated mirror: each answer is computed a second time, from what was put in."""
# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
import math
import random
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asking
import numpy as np
import pytest
from click.testing import CliRunner

import mirror
from mirror.cli import cli
from mirror.errors import UsageError
from mirror.query import saved
from mirror.records import FileEntry, ItemKey, Run, Sweep, SyncReport
from mirror.store import Reader

ODD = ["it's", '"q"', "a/b.c~d", "'; drop view runs; --", "$a", "{x}", "é🔥", "two\nlines", "%", "x" * 300]
"""Keys, groups, projects and values that would do harm if they were ever pasted into SQL."""


@dataclass
class Made:
    """A run as it was put in."""

    run_id: str
    project: str
    state: str
    minutes: int | None
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    group: str | None = None
    user: str | None = None
    gpus: int | None = None
    sweep: str | None = None
    files: list[int] = field(default_factory=list)

    @property
    def hours(self) -> float | None:
        return None if self.minutes is None else self.minutes / 60

    def record(self, n: int) -> Run:
        created = asking.T0 + timedelta(hours=n)
        return Run(
            asking.key(self.run_id, self.project), name=f"the {self.run_id}", state=self.state, group=self.group,
            username=self.user, created_at=created, sweep=self.sweep,
            heartbeat_at=None if self.minutes is None else created + timedelta(minutes=self.minutes),
            config=asking.wire(self.config), summary=json.dumps(self.summary),
            metadata=None if self.gpus is None else json.dumps({"gpu": "A100", "gpu_count": self.gpus, "args": ["x"]}),
        )  # fmt: skip


def generated() -> list[Made]:
    chance = random.Random(11)
    found = []
    states = ["finished"] * 6 + ["failed", "crashed", "killed", "running"]
    for n in range(40):
        lr, seed = [0.1, 0.01, 0.001][n % 3], n // 3 % 4
        rows = []
        for s in range(12):
            loss = 2 * lr + 1 / (s + 1) + chance.random() / 10
            if n % 13 == 5:
                loss += s
            row: dict[str, Any] = {"_step": s, "loss": math.nan if n % 11 == 3 and s > 7 else loss, "n": s}
            if s % 4 == 0 and n % 2:
                row["val/acc"] = chance.random()
            rows.append(row)
        if n == 7:
            rows.append({"_step": 11, "loss": 0.25})  # a step that was logged twice
        last = rows[-1]["loss"]
        found.append(
            Made(
                f"run{n:02}", "pq"[n % 4 == 0], states[n % len(states)], [0, 5, 30, 200, 900, None][n % 6],
                {"lr": lr, "seed": seed, "opt": {"name": ["adam", "sgd"][n % 2], "beta": [0.9, n % 5]}, "same": 1, "flag": n % 2 == 0}
                | ({"extra": None} if n % 7 == 0 else {}) | ({"big": 2**60 + n % 2} if n < 4 else {}),
                {"loss": last, "val": {"best": n * n % 17}, "val.best": n} if n % 5 else {"loss": "broken"},
                rows, group=f"lr{lr}", user=["ann", "bob", None][n % 3], gpus=[None, 1, 8][n % 3],
                sweep=["s1", "s2", None, "lost"][n % 4], files=[100 * n, 7][: n % 3],
            )
        )  # fmt: skip
    for i, odd in enumerate(ODD):
        found.append(
            Made(f"odd{i}", odd.replace("\n", " ")[:60], "failed", 3, {odd: odd, "k": {odd: 1}}, {odd: i, "k": {odd: 2.5}},
                 [{"_step": 0, odd: 4}, {"_step": 1, odd: math.inf}, {odd: 8}], group=odd)
        )  # fmt: skip
    found.append(Made("empty", "void", "finished", None, {}, {}, []))
    return found


MADE = generated()
SWEEPS = {
    "s1": ("p", "method: grid\nmetric:\n  name: loss\n  goal: minimize\n"),
    "s2": ("p", "method: bayes\nmetric: {name: val.best, goal: maximize}\n"),
    "s3": ("p", "method: random\n"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ready") / "m"
    began = datetime.now(timezone.utc)
    with mirror.open(root, write=True) as m:
        for n, made in enumerate(MADE):
            run = made.record(n)
            m.put_runs([run])
            m.put_history(run, made.rows)
            m.put_system_metrics(run, [{"cpu": i} for i in range(n % 3)])
            m.put_files(run, [FileEntry(f"f{i}", size=size) for i, size in enumerate(made.files)])
            m.writer.put_logs(run.key, [(i, None, None, f"line {i}") for i in range(n % 4)])
        for name, (project, config) in SWEEPS.items():
            key = ItemKey("lab.example", f"sweep-{name}", "team", project)
            m.writer.put_item(Sweep(key, name, name=f"sweep {name}", config=config))
        m.commit()
        for at in (began - timedelta(days=2), began):
            m.writer.log_sync(
                SyncReport("lab.example", "team", "p", at, at + timedelta(seconds=5), "ok", runs_changed=1)
            )
    return root


@pytest.fixture(scope="module")
def reader(root: Path) -> Reader:
    return Reader(root)


def answer(reader: Reader, name: str, **params: Any) -> list[dict[str, Any]]:
    found = saved.run(reader, name, params)
    return [dict(zip(found.columns, row, strict=True)) for row in found]


def near(value: Any) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        inner = ((f"{path}/{k.replace('~', '~0').replace('/', '~1')}", v) for k, v in value.items())
        return {p: v for place, item in inner for p, v in leaves(item, place).items()}
    return {path: value} if path else {}


def numbers(made: Made, key: str) -> list[tuple[int, int, float]]:
    """(row, step, value) of the finite values of a key."""
    return [
        (i, row.get("_step", i), float(row[key]))
        for i, row in enumerate(made.rows)
        if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]


def test_compare_runs(reader: Reader) -> None:
    one, other = MADE[7], MADE[8]
    found = {r["key"]: r for r in answer(reader, "compare_runs", a="run07", b=f"team/{other.project}/run08")}
    assert list(found) == sorted({k for made in (one, other) for row in made.rows for k in row})
    for key, r in found.items():
        lasts = []
        for side, made in (("a", one), ("b", other)):
            cells = [row[key] for row in made.rows if key in row]
            finite = [v for v in cells if math.isfinite(v)]
            assert r[f"{side}_points"] == (len(cells) or None)
            assert r[f"{side}_least"] == (min(finite) if finite else None)
            assert r[f"{side}_greatest"] == (max(finite) if finite else None)
            assert repr(r[f"{side}_last"]) == repr(float(cells[-1]) if cells else None)
            lasts.append(cells[-1] if cells else None)
        assert r["difference"] == (near(lasts[1] - lasts[0]) if None not in lasts else None)


@pytest.mark.parametrize("group", [None, "lr0.01", ODD[3]])
def test_varying_config(reader: Reader, group: str | None) -> None:
    chosen = [m for m in MADE if group in (None, m.group)]
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for made in chosen:
        for path, value in leaves(made.config).items():
            values[path][json.dumps(value)] += 1
    varying = {p: c for p, c in values.items() if len(c) > 1 or c.total() < len(chosen)}
    found = answer(reader, "varying_config", examples=100, **({"group": group} if group else {}))
    assert {r["path"] for r in found} == varying.keys()
    for path, counts in varying.items():
        mine = [r for r in found if r["path"] == path]
        assert {(r["different_values"], r["runs_with"], r["runs_without"]) for r in mine} == {
            (len(counts), counts.total(), len(chosen) - counts.total())
        }
        shown = Counter({_canonical(r["value"]): r["runs_of_value"] for r in mine})
        assert shown == Counter({_canonical(text): n for text, n in counts.items()}), path
    two = answer(reader, "varying_config", examples=2)
    assert max(Counter(r["path"] for r in two).values()) == 2


def _canonical(text: str) -> str:
    try:
        return json.dumps(json.loads(text))
    except ValueError:  # strings are shown as they are, between quotes
        return json.dumps(text[1:-1])


@pytest.mark.parametrize("project", [None, "p"])
def test_importance(reader: Reader, project: str | None) -> None:
    points: dict[str, list[tuple[Any, float]]] = defaultdict(list)
    for made in MADE:
        y = made.summary.get("loss")
        if isinstance(y, float) and math.isfinite(y) and project in (None, made.project):
            for path, value in leaves(made.config).items():
                for place, item in _elements(path, value):
                    points[place].append((item, y))
    expected = {}
    for path, pairs in points.items():
        by_value: dict[str, list[float]] = defaultdict(list)
        for x, y in pairs:
            by_value[repr(x)].append(y)
        if len(pairs) < 3 or len(by_value) < 2:
            continue
        ys = np.array([y for _, y in pairs])
        between = sum(len(v) * (np.mean(v) - ys.mean()) ** 2 for v in by_value.values())
        plain = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 2**53 for x, _ in pairs)
        correlation = np.corrcoef([x for x, _ in pairs], ys)[0, 1] if plain else None
        expected[path] = (len(pairs), len(by_value), correlation, between / ((ys - ys.mean()) ** 2).sum())
    assert {"/lr", "/opt/name", "/seed", "/flag"} <= expected.keys()
    found = answer(reader, "importance", metric="loss", **({"project": project} if project else {}))
    assert {r["path"] for r in found} == expected.keys()
    for r in found:
        runs, different, correlation, effect = expected[r["path"]]
        assert (r["runs"], r["different_values"]) == (runs, different), r
        assert r["correlation"] == near(correlation) and r["effect_size"] == near(effect), r
    weights = [abs(r["correlation"]) for r in found if r["correlation"] is not None]
    assert weights == sorted(weights, reverse=True)
    assert answer(reader, "importance", metric="loss' or 1=1 --") == []


def _elements(path: str, value: Any) -> list[tuple[str, Any]]:
    """A value and, in lists, the scalars inside, each with its pointer."""
    if isinstance(value, list):
        return [(f"{path}/{i}", v) for i, v in enumerate(value)]
    return [(path, value)]


# Two-sided 95 % quantiles of Student's t, from printed tables.
T95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    11: 2.201,
    12: 2.179,
    13: 2.160,
}


@pytest.mark.parametrize("by", [None, "lr", "opt.name", ODD[2]])
def test_seeds(reader: Reader, by: str | None) -> None:
    values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for made in MADE:
        variant: Any = made.group
        if by is not None:
            found = {p.replace("/", ".", 1).lstrip("."): v for p, v in leaves(made.config).items()}
            variant = made.config.get(
                by, found.get(by.replace(".", "/"), found.get("opt/name") if by == "opt.name" else None)
            )
            if variant is None:
                continue
            variant = variant if isinstance(variant, str) else repr(variant)
        at = {step: value for _, step, value in numbers(made, "loss")}
        for step, value in at.items():
            values[made.project, variant, step].append(value)
    found_rows = answer(reader, "seeds", key="loss", **({"by": by} if by else {}))
    assert {(r["project"], r["variant"], r["step"]) for r in found_rows} == values.keys()
    for r in found_rows:
        ys = values[r["project"], r["variant"], r["step"]]
        assert (r["runs"], r["least"], r["greatest"]) == (len(ys), min(ys), max(ys))
        assert r["mean"] == near(statistics.fmean(ys))
        if len(ys) == 1:
            assert r["deviation"] is None and r["low"] is None and r["high"] is None
        else:
            half = T95[len(ys) - 1] * statistics.stdev(ys) / math.sqrt(len(ys)) if len(ys) <= 14 else None
            assert r["deviation"] == near(statistics.stdev(ys))
            if half is not None:
                assert r["mean"] - r["low"] == pytest.approx(half, rel=2e-3)
                assert r["high"] - r["mean"] == pytest.approx(half, rel=2e-3)
    if by is None:
        assert {r["runs"] for r in found_rows} >= {3, 4}


def test_sweep_best(reader: Reader) -> None:
    found = {r["sweep_id"]: r for r in answer(reader, "sweep_best")}
    assert found.keys() == SWEEPS.keys()
    for name, metric, least in (("s1", "loss", True), ("s2", "val.best", False)):
        scored = []
        for n, made in enumerate(MADE):
            value = made.summary.get(metric)
            if made.project == "p" and made.sweep == name and isinstance(value, (int, float)) and math.isfinite(value):
                scored.append((value if least else -value, n, made.run_id))
        r = found[name]
        assert (r["metric"], r["goal"]) == (metric, "min" if least else "max")
        assert r["runs_with_metric"] == len(scored)
        best = min(scored, default=None)
        assert (r["run_id"], r["value"]) == ((best[2], best[0] if least else -best[0]) if best else (None, None))
    assert (found["s3"]["metric"], found["s3"]["run_id"], found["s3"]["runs_with_metric"]) == (None, None, 0)
    assert answer(reader, "sweep_best", project="nope") == []


def test_gpu_hours(reader: Reader) -> None:
    expected: dict[tuple[str, str | None], list[Made]] = defaultdict(list)
    for made in MADE:
        expected[made.project, made.user].append(made)
    found = answer(reader, "gpu_hours")
    assert {(r["project"], r["username"]) for r in found} == expected.keys()
    for r in found:
        mine = expected[r["project"], r["username"]]
        assert r["runs"] == len(mine)
        assert r["runs_timed"] == sum(m.hours is not None for m in mine)
        assert r["runs_with_gpus"] == sum(m.gpus is not None for m in mine)
        assert r["hours"] == near(sum(m.hours or 0 for m in mine))
        assert r["gpu_hours"] == near(sum((m.hours or 0) * (m.gpus or 0) for m in mine))
        lost = sum((m.hours or 0) * (m.gpus or 0) for m in mine if m.state in ("failed", "crashed", "killed"))
        assert r["gpu_hours_of_failures"] == near(lost)
    assert sum(r["gpu_hours"] for r in found) > 0


def test_failures(reader: Reader) -> None:
    def after(minutes: int | None) -> str:
        if minutes is None:
            return "unknown"
        limits = [(1, "below a minute"), (10, "1 to 10 minutes"), (60, "10 to 60 minutes"), (600, "1 to 10 hours")]
        return next((name for most, name in limits if minutes < most), "above 10 hours")

    expected: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for n, made in enumerate(MADE):
        if made.state in ("failed", "crashed", "killed"):
            expected[made.project, made.state, after(made.minutes)].append(n)
    found = answer(reader, "failures")
    assert {(r["project"], r["state"], r["after"]) for r in found} == expected.keys()
    for r in found:
        mine = expected[r["project"], r["state"], r["after"]]
        assert r["runs"] == len(mine)
        assert r["share"] == near(len(mine) / sum(m.project == r["project"] for m in MADE))
        assert (r["first_at"], r["last_at"]) == tuple(asking.T0 + timedelta(hours=n) for n in (min(mine), max(mine)))
        assert r["latest_run"] == MADE[max(mine)].run_id
        assert r["furthest_step"] == max(row["_step"] for n in mine for row in MADE[n].rows if "_step" in row)


@pytest.mark.parametrize(
    ("key", "factor"), [("loss", 1.0), ("loss", 0.5), ("loss", 100.0), (ODD[0], 1.0), ("nothing", 1.0)]
)
def test_diverged(reader: Reader, key: str, factor: float) -> None:
    expected = {}
    for made in MADE:
        finite = numbers(made, key)
        cells = [
            (row.get("_step", i), row[key])
            for i, row in enumerate(made.rows)
            if key in row and not isinstance(row[key], str)
        ]
        bad = [step for step, v in cells if not math.isfinite(v)]
        if bad:
            expected[made.run_id] = ("not finite", min(bad), len(bad))
        elif len(finite) > 1 and finite[-1][2] > finite[0][2] * factor:
            expected[made.run_id] = ("above start", None, 0)
    found = {r["run_id"]: r for r in answer(reader, "diverged", key=key, factor=factor)}
    assert {k: (r["reason"], r["first_nonfinite_step"], r["nonfinite_points"]) for k, r in found.items()} == expected
    for run_id, r in found.items():
        finite = numbers(next(m for m in MADE if m.run_id == run_id), key)
        assert (r["first_value"], r["last_value"], r["last_step"]) == (finite[0][2], finite[-1][2], finite[-1][1])


def test_stragglers(reader: Reader) -> None:
    seen = max(asking.T0 + timedelta(hours=n, minutes=m.minutes) for n, m in enumerate(MADE) if m.minutes is not None)
    found = {r["run_id"]: r for r in answer(reader, "stragglers")}
    assert found.keys() == {m.run_id for m in MADE if m.state == "running"} != set()
    silent = {}
    for n, made in enumerate(MADE):
        if made.state != "running":
            continue
        r = found[made.run_id]
        usual = [m.hours for m in MADE if m.project == made.project and m.state == "finished" and m.hours is not None]
        assert r["usual_hours"] == near(statistics.median(usual))
        assert r["hours"] == near(made.hours)
        last = asking.T0 + timedelta(hours=n, minutes=made.minutes or 0)
        silent[made.run_id] = (seen - last).total_seconds() / 3600
        assert r["silent_hours"] == near(silent[made.run_id])
        assert r["last_step"] == made.rows[-1]["_step"]
    limit = statistics.median(silent.values())
    few = answer(reader, "stragglers", silent=str(limit))
    assert {r["run_id"] for r in few} == {run for run, hours in silent.items() if hours >= limit - 1e-9}


def test_metric_coverage(reader: Reader) -> None:
    cells: dict[tuple[str, str], list[tuple[str, Any, Any]]] = defaultdict(list)
    for made in MADE:
        for row in made.rows:
            for key, value in row.items():
                cells[made.project, key].append((made.run_id, row.get("_step"), value))
    found = answer(reader, "metric_coverage")
    assert {(r["project"], r["key"]) for r in found} == cells.keys()
    for r in found:
        mine = cells[r["project"], r["key"]]
        runs = {run for run, _, _ in mine}
        assert r["runs"] == len(runs)
        assert r["share"] == near(len(runs) / sum(m.project == r["project"] and bool(m.rows) for m in MADE))
        assert r["points"] == len(mine)
        assert r["nonfinite"] == sum(not math.isfinite(v) for _, _, v in mine)
        assert r["numbers"] == r["points"] - r["nonfinite"]
        steps = [s for _, s, _ in mine if s is not None]
        assert r["first_step"] == min(steps)
    assert answer(reader, "metric_coverage", project="p") == [r for r in found if r["project"] == "p"]


def test_changes(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    with mirror.open(tmp_path / "m", write=True) as m:

        def sync(project: str, **changes: Run | None) -> None:
            at = datetime.now(timezone.utc)
            for name, run in changes.items():
                if run is None:
                    m.writer.tombstone(asking.key(name, project))
                else:
                    m.put_runs([run])
            m.commit()
            m.writer.log_sync(
                SyncReport("lab.example", "team", project, at, datetime.now(timezone.utc), "ok", runs_changed=1)
            )
            m.commit()

        def run(name: str, project: str = "p", **more: Any) -> Run:
            return Run(asking.key(name, project), created_at=more.pop("created_at", now - timedelta(days=1)), **more)

        sync("p", a=run("a"), b=run("b"), c=run("c"), d=run("d"))
        sync("q", x=run("x", "q"))
        reader = Reader(m.root)
        assert {(r["run_id"], r["change"]) for r in answer(reader, "changes")} == {(n, "new") for n in "abcdx"}
        later = datetime.now(timezone.utc)
        sync("p", a=run("a", tags=("new",)), b=run("b"), c=None, e=run("e", created_at=later))
        reader = Reader(m.root)
        changed = {(r["project"], r["run_id"], r["change"]) for r in answer(reader, "changes")}
        assert changed == {("p", "a", "changed"), ("p", "c", "gone"), ("p", "e", "new"), ("q", "x", "new")}
        assert {r["run_id"] for r in answer(reader, "changes", project="q")} == {"x"}


def test_storage(reader: Reader) -> None:
    found = {r["project"]: r for r in answer(reader, "storage")}
    assert found.keys() == {m.project for m in MADE}
    for project, r in found.items():
        mine = [(n, m) for n, m in enumerate(MADE) if m.project == project]
        assert r["runs"] == len(mine)
        assert r["history_rows"] == sum(len(m.rows) for _, m in mine)
        assert r["history_values"] == sum(len(row) for _, m in mine for row in m.rows)
        assert r["most_keys_of_a_run"] == max(len({k for row in m.rows for k in row}) for _, m in mine)
        assert r["system_rows"] == sum(n % 3 for n, _ in mine)
        assert r["console_lines"] == sum(n % 4 for n, _ in mine)
        assert (r["files"], r["file_bytes_at_source"]) == (
            sum(len(m.files) for _, m in mine),
            sum(sum(m.files) for _, m in mine),
        )


# -- all of them --------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {"a": "run01", "b": "run02", "metric": "loss", "key": "loss"}


@pytest.mark.parametrize("name", saved.names())
def test_an_empty_mirror_gives_no_rows(name: str, tmp_path: Path) -> None:
    with mirror.open(tmp_path / "m", write=True) as m:
        m.commit()
        query = saved.load(name)
        if any(p.kind == "run" for p in query.parameters):
            m.put_runs([Run(asking.key("run01")), Run(asking.key("run02"))])
            m.commit()
        given = {p.name: VALUES[p.name] for p in query.parameters if p.default is None}
        assert answer(Reader(m.root), name, **given) == []


@pytest.mark.parametrize("name", saved.names())
@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_hostile_text_is_only_ever_a_value(reader: Reader, name: str, odd: str) -> None:
    """Every text parameter takes it, nothing breaks, and nothing but its own rows is found."""
    query = saved.load(name)
    texts = [p.name for p in query.parameters if p.kind == "text"]
    given = {p.name: VALUES[p.name] for p in query.parameters if p.default is None} | dict.fromkeys(texts, odd)
    if "project" in texts:
        given["project"] = odd.replace("\n", " ")[:60]
    found = answer(reader, name, **given)
    if "project" in texts and found and "project" in found[0]:
        assert {r["project"] for r in found} == {given["project"]}
    if name == "leaderboard":
        assert [(r["run_id"], r["value"]) for r in found] == [(f"odd{ODD.index(odd)}", float(ODD.index(odd)))]
    if name == "learning_curves":
        assert next((r["least"], r["nonfinite"]) for r in found if r["points"]) == (4.0, 0)
        assert sum(r["nonfinite"] for r in found) == 1
    if name == "diverged":
        assert [(r["reason"], r["first_value"]) for r in found] == [("not finite", 4.0)]


def test_the_command_lists_queries_and_their_parameters_as_a_table(root: Path) -> None:
    run = CliRunner().invoke
    listed = run(cli, ["query", "--list", "--format", "jsonl"])
    assert listed.exit_code == 0, listed.output
    rows = [json.loads(line) for line in listed.output.splitlines()]
    assert {r["query"] for r in rows} == set(saved.names())
    assert {
        "query": "leaderboard",
        "parameter": "goal",
        "type": "max|min",
        "default": "max",
        "about": "which end is better",
    } in rows
    plain = run(cli, ["query"])
    assert plain.exit_code == 0 and all(name in plain.output for name in saved.names())
    found = run(
        cli, ["query", "leaderboard", "-p", "metric=loss", "-p", "limit=1", "--mirror", str(root), "--format", "jsonl"]
    )
    assert json.loads(found.output)["place"] == 1
    wrong = run(cli, ["query", "--list", "-p", "a=b"])
    assert isinstance(wrong.exception, UsageError) and "--list takes no query" in str(wrong.exception)
    explained = run(
        cli, ["sql", "--explain", "select loss from history_wide where project = 'p'", "--mirror", str(root)]
    )
    assert "where key = 'loss'" in explained.output and "history_wide where project = 'p'" in explained.output
