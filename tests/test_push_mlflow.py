"""`mirror push --to mlflow:URI` into a real `mlflow server`, and into its database while it runs; read back from the
server with MLflow's own client."""

from __future__ import annotations

import json
import math
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commanding import Done, call

from mirror import open as open_mirror
from mirror.importers.account import Account
from mirror.query.rows import rows as read_rows
from mirror.records import FileEntry, Run, RunKey

pytest.importorskip("mlflow")
from crowd import value
from faults import Faulty
from killing import killed_at
from liar import Answer, Liar
from starting import Started
from syncing import proxied
from tracking import Point, Tracking, text, tracking

from mirror.sources.mlflow import rest
from mirror.store import Reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    with tracking(tmp_path_factory.mktemp("mlflow"), "--workers", "1") as server:
        yield server


@pytest.fixture(params=["server", "database"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def address(server: Tracking, way: str) -> str:
    return server.url if way == "server" else f"sqlite:///{server.database}"


def mirrored(root: Path, project: str, runs: dict[str, list[dict[str, Any]]], **more: Any) -> None:
    """A mirror with these runs; called again, it has more of them."""
    with open_mirror(root, write=True) as m:
        for run_id, rows in runs.items():
            run = Run(RunKey("api.wandb.ai", f"{project} {run_id}", "team", project, run_id), **more)
            m.put_runs([run])
            m.put_history(run, rows)


def push(root: Path, url: str, *args: str, code: int = 0) -> Done:
    done = call("push", *args, "--to", f"mlflow:{url}", root=root)
    assert done.code == code, done
    assert "Traceback" not in done.err
    return done


def lines(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / f"run_{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(key: str, held: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number in a value, with the names that lead to it."""
    if isinstance(held, dict):
        for name, inner in held.items():
            for path, number in numbers(name, inner):
                yield (key, *path), number
    elif isinstance(held, (int, float)):
        try:
            yield (key,), float(held)
        except OverflowError:
            return


def expected(rows: list[dict[str, Any]]) -> Counter[Point]:
    """Points with the keys that they had, dots between nested ones."""
    found = {
        (round(row["_timestamp"] * 1000), row["_step"], path, text(number))
        for row in rows
        for key, held in row.items()
        if not key.startswith("_") or key == "_hidden"
        for path, number in numbers(key, held)
    }
    return Counter((at, step, ".".join(path), number) for at, step, path, number in found)


def rows_of(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of hostile keys and values; steps leap and are repeated, times go back."""
    from crowd import _KEYS

    rng = random.Random(seed)
    keys, step, rows = rng.sample(_KEYS, rng.randrange(1, 12)), 0, []
    for _ in range(count):
        step += rng.choice([0, 1, 1, 1, 10**6])
        at = 1_700_000_000 + rng.randrange(10**7) / 1000
        row = {key: value(rng) for key in keys if rng.random() < 0.8}
        rows.append({"_step": step, "_timestamp": at, "_runtime": 1.5} | row)
    return rows


def keys_of(server: Tracking, run: Any, folder: Path) -> dict[str, str]:
    """The keys of metrics that are called otherwise there."""
    if "mirror/keys.json" not in {file.path for file in server.client.list_artifacts(run.info.run_id, "mirror")}:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    local = server.client.download_artifacts(run.info.run_id, "mirror/keys.json", str(folder))
    held: dict[str, str] = json.loads(Path(local).read_text())
    return held


def named(server: Tracking, run: Any, folder: Path) -> Counter[Point]:
    """The points that are there, under the keys that they had."""
    keys = keys_of(server, run, folder)
    return Counter((at, step, keys.get(name, name), number) for at, step, name, number in server.points(run).elements())


def test_hostile_rows_arrive_point_by_point_and_come_back(server: Tracking, way: str, tmp_path: Path) -> None:
    runs = {f"r{i}": rows_of(i, count) for i, count in enumerate([0, 1, 7, 30, 30, 40])}
    root = tmp_path / "m"
    mirrored(
        root, f"hostile-{way}", runs, config='{"a/b": {"value": 1}, "a": {"value": {"b": "☃"}}, "": {"value": null}}'
    )
    said = push(root, address(server, way))
    copies = server.copies(f"team/hostile-{way}")
    assert len(copies) == len(runs)
    there = Counter[tuple[str, int, int, str, str]]()
    for run_id, rows in runs.items():
        copy = copies[f"team/hostile-{way}/{run_id}"]
        points, keys = server.points(copy), keys_of(server, copy, tmp_path)
        assert Counter((at, step, keys.get(k, k), v) for at, step, k, v in points.elements()) == expected(rows), run_id
        assert copy.data.params == {"a/b": "1", "a/b 2": "☃", "_": "null"}
        for name, held in copy.data.metrics.items():  # the last point, which MLflow keeps beside all; NaN counts as 0
            listed = [(step, at, 0.0 if v == "nan" else float(v), v) for at, step, key, v in points if key == name]
            assert text(held) in {v for *order, v in listed if order == list(max(listed)[:3])}, name
        there.update((run_id, *point) for point in points.elements())
    points_sent = there.total()
    assert f"compared: {points_sent:,} points of 6 runs" in said.err
    counts = [line["counts"]["points"] for line in lines(root, "successes")]
    assert sum(counts) == points_sent

    back = tmp_path / "back"
    assert call("sync", f"mlflow:{address(server, way)}", "--experiment", f"team/hostile-{way}", root=back).code == 0
    held = Counter[tuple[str, int, int, str, str]]()
    with Reader(back) as reader:
        for rid, run_id in reader.connect().execute("select rid, name from runs").fetchall():
            for row in read_rows(reader, rid):
                at, step = round(row.pop("_timestamp") * 1000), row.pop("_step")
                ((key, number),) = row.items()
                held[run_id, at, step, key, text(number)] += 1
    assert held == there


def test_what_mlflow_cannot_hold_is_counted(server: Tracking, way: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"_step": i, "_timestamp": 1_700_000_000.25 + i, "loss": i / 3, "a%b": i, "a$b": -i, "ok": i > 1, "s": "text"}
        for i in range(4)
    ]
    rows.append({"_step": 3, "_timestamp": 1_700_000_009.0, "loss": 1.0, "big": 2**60 + 1, "inf": math.inf})
    rows.append({"_step": 3, "_timestamp": 1_700_000_009.0, "loss": 1.0, "nan": math.nan, "list": [1], "n": {"x": 2}})
    rows.append({"timeless": 1.0})
    config = {"lr": {"value": 0.1}, "deep": {"value": {"a": {"b": 1}, "c": []}}, "long": {"value": "é" * 7000}}
    root = tmp_path / "m"
    key = RunKey("api.wandb.ai", "store-1", "team", f"odd-{way}", "r1")
    with open_mirror(root, write=True) as m:
        run = Run(
            key, name="odd ☃", state="killed", tags=("t",), config=json.dumps(config), summary='{"loss": 1.0}',
            notes="n" * 9000, group="g", sweep="sw1", username="ada",
        )  # fmt: skip
        m.put_runs([run])
        m.put_history(run, rows)
        m.put_system_metrics(run, [{"_timestamp": 1_700_000_001.5, "system.cpu": 12.5, "system.gpu.0.temp": 60}])
    said = push(root, address(server, way)).out
    copy = server.copies(f"team/odd-{way}")[f"team/odd-{way}/r1"]
    names = {"a$b": "a_b", "a%b": "a_b 2"}
    there = Counter({(at, s, names.get(k, k), v): 1 for at, s, k, v in expected(rows[:-1])})
    there |= {(0, 6, "timeless", "1.0"): 1}
    there |= {(1_700_000_001_500, 0, "system/cpu", "12.5"): 1, (1_700_000_001_500, 0, "system/gpu.0.temp", "60.0"): 1}
    assert server.points(copy) == there
    assert (copy.info.status, copy.info.run_name) == ("KILLED", "odd ☃")
    assert {k: v for k, v in copy.data.params.items() if k != "long"} == {"lr": "0.1", "deep/a/b": "1", "deep/c": "[]"}
    assert copy.data.params["long"] == "é" * 6000
    tags = copy.data.tags
    assert (tags["mlflow.note.content"], tags["mirror.group"], tags["mlflow.user"]) == ("n" * 8000, "g", "ada")
    assert (json.loads(tags["mirror.tags"]), tags["mirror.sweep"], tags["mirror.source"]) == (["t"], "sw1", key.source)
    counted = {
        "values": 5, "large": 1, "infinities": 1, "keys": 2, "points": 1, "times": 1, "steps": 1, "sweep": 1, "long": 2
    }  # fmt: skip
    for what, number in counted.items():
        (line,) = [line for line in said.splitlines() if line.split()[1:2] == [what]]
        assert f" {number} " in line, line
    held = server.client.download_artifacts(copy.info.run_id, "mirror/config.json", str(tmp_path))
    assert json.loads(Path(held).read_text()) == config


def test_what_is_there_is_not_sent_again_but_completed(server: Tracking, way: str, tmp_path: Path) -> None:
    project, to = f"team/twice-{way}", address(server, way)
    root, rows = tmp_path / "m", {run_id: rows_of(ord(run_id), 20) for run_id in "abc"}
    mirrored(root, f"twice-{way}", rows, config='{"lr": {"value": 1}}')
    assert "3 " in push(root, to, "--dry-run").out and not server.runs(project)
    push(root, to)
    first = {path: run.info.run_id for path, run in server.copies(project).items()}
    noted = lines(root, "successes")
    assert {line["src_path"]: line["dst_name"] for line in noted} == first
    assert all(
        line["destination"] == f"mlflow:{server.url[7:] if way == 'server' else server.database}"
        and line["fingerprint"]
        for line in noted
    )
    assert "0 runs sent" in (said := push(root, to).out) and "3 there already" in said
    assert "3 runs sent" in push(root, to, "--again").out
    assert {path: run.info.run_id for path, run in server.copies(project).items()} == first

    # One grows and gets another config, one is deleted there, one gets a point there.
    new = [{"_step": 10**9 + i, "_timestamp": 1_800_000_000 + i, "grown": i} for i in range(5)]
    mirrored(root, f"twice-{way}", {"a": rows["a"] + new}, config='{"lr": {"value": 2}, "new": {"value": 3}}')
    server.client.delete_run(first[f"{project}/b"])
    server.client.log_metric(first[f"{project}/c"], "foreign", 1.0)
    said = push(root, to).out
    assert "2 runs sent" in said and "1 there already" in said
    assert "MLflow never changes one: `lr` is `1`" in said
    copies = server.copies(project)
    assert copies[f"{project}/a"].info.run_id == first[f"{project}/a"]
    assert copies[f"{project}/b"].info.run_id != first[f"{project}/b"]
    assert copies[f"{project}/a"].data.params == {"lr": "1", "new": "3"}
    assert named(server, copies[f"{project}/a"], tmp_path) == expected(rows["a"] + new)
    assert named(server, copies[f"{project}/b"], tmp_path) == expected(rows["b"])
    failed = push(root, to, "--again", code=1)
    assert f"holds metric `foreign`, which `{project}/c` does not" in failed.err and "2 runs sent" in failed.out
    (failure,) = lines(root, "failures")
    assert failure["src_path"] == f"{project}/c" and "foreign" in failure["problems"][0]


def test_a_push_that_was_killed_goes_on(server: Tracking, tmp_path: Path) -> None:
    root = tmp_path / "m"
    runs = {
        f"r{i}": [{"_step": j, "_timestamp": 1e9 + j, **{f"k{k}": i + j / 7 + k for k in range(12)}} for j in range(n)]
        for i, n in enumerate([500, 3, 50, 0, 3])
    }
    mirrored(root, "killed", runs)
    with proxied(server) as proxy, (tmp_path / "said").open("w+") as out:  # type: ignore[arg-type]
        command: list[str | Path] = ["push", "--to", f"mlflow:{proxy.url}", "--mirror", root, "--workers", "2"]

        def start() -> Started:
            return Started(command, stdout=out, stderr=out)

        for at, arrives in ((5, True), (22, False), (12, True)):
            assert killed_at(proxy, at, start, arrives=arrives) == -signal.SIGKILL
        proxy.reset()
        with start() as process:
            proxy.before = lambda request: process.terminate() if len(proxy.requests) == 12 else None
            code = process.wait(300)
        proxy.reset()
        said = (tmp_path / "said").read_text()
        assert code == 0 or (code == 1 and "interrupted" in said and "run the same command again" in said), said
        push(root, proxy.url)
    copies = server.copies("team/killed")
    assert {path: server.points(run) for path, run in copies.items()} == {
        f"team/killed/{run_id}": expected(rows) for run_id, rows in runs.items()
    }
    assert len(lines(root, "successes")) == len(runs) and not lines(root, "failures")


def test_a_server_that_stumbles_gets_all_in_the_end(
    server: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_RETRY", "_ONCE"):
        monkeypatch.setattr(rest, name, getattr(rest, name).new(backoff_factor=0.01))
    root, runs = tmp_path / "m", {f"r{i}": rows_of(i, 5) for i in range(4)}
    mirrored(root, "stumbles", runs)
    proxy = Faulty(server)  # type: ignore[arg-type]
    try:
        for seed in range(20):
            proxy.go_wrong(seed, 0.3, "429", "500", "502", "reset", "cut", "slow")
            done = call("push", "--to", f"mlflow:{proxy.url}", root=root)
            assert "Traceback" not in done.err and "unexpected" not in done.err, done.err
            assert sum(proxy.injected.values()) > 0 or seed
            if done.code == 0:
                break
            assert lines(root, "failures")
        assert done.code == 0
    finally:
        proxy.close()
    copies = server.copies("team/stumbles")
    assert {path: named(server, run, tmp_path / path) for path, run in copies.items()} == {
        f"team/stumbles/{run_id}": expected(rows) for run_id, rows in runs.items()
    }


def test_an_experiment_that_was_deleted_and_another_name(server: Tracking, tmp_path: Path) -> None:
    root = tmp_path / "m"
    mirrored(root, "gone", {"a": rows_of(1, 3)})
    mirrored(root, "stays", {"a": rows_of(2, 3)})
    server.client.delete_experiment(server.client.create_experiment("team/gone"))
    failed = push(root, server.url, code=1)
    assert "experiment `team/gone` was deleted there" in failed.err and "1 runs sent" in failed.out
    assert server.copies("team/stays")
    push(root, server.url, "--remap", "team/gone=Ünother name")
    (copy,) = server.copies("Ünother name").values()
    assert named(server, copy, tmp_path) == expected(rows_of(1, 3))
    assert "maps nothing" in push(root, server.url, "--remap", "team/gone", code=2).err
    assert "takes runs alone" in push(root, server.url, "--what", "artifacts", code=2).err
    back = tmp_path / "back"
    assert call("sync", f"mlflow:{server.url}", "--experiment", "team/stays", root=back).code == 0
    said = push(back, server.url, "--remap", "mlflow/team/stays=team/stays", code=2).err
    assert "to where it came from" in said or "maps" in said or "no namespace" in said, said


def test_a_run_that_fails_leaves_the_others_alone(server: Tracking, tmp_path: Path) -> None:
    root = tmp_path / "m"
    mirrored(root, "torn", {"a": rows_of(1, 3), "b": rows_of(2, 3)})
    with open_mirror(root, write=True) as m:
        m.put_files(RunKey("api.wandb.ai", "torn a", "team", "torn", "a"), [FileEntry("x.txt", 1, sha256="ab" * 32)])
    failed = push(root, server.url, code=1)
    assert "team/torn/a: the bytes of `x.txt` are gone" in failed.err and "1 runs sent" in failed.out
    assert [line["src_path"] for line in lines(root, "failures")] == ["team/torn/a"]
    assert [line["src_path"] for line in lines(root, "successes")] == ["team/torn/b"]
    account = Account("a", "b", "c")
    account.failed(ValueError("odd"))
    assert account.error == "unexpected ValueError: odd (a bug: please report it)"


def test_what_is_no_mlflow_server_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RETRY", "_ONCE"):
        monkeypatch.setattr(rest, name, getattr(rest, name).new(backoff_factor=0.01))
    root = tmp_path / "m"
    mirrored(root, "any", {"a": rows_of(1, 3)})
    said = push(root, "postgresql://x/db", code=2).err
    assert "is a database" in said and "mlflow server --backend-store-uri postgresql://x/db" in said
    assert "names no file" in push(root, "sqlite://", code=2).err
    assert "is no MLflow server" in push(root, "./mlruns", code=2).err
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        assert "cannot reach the MLflow server" in push(root, f"http://127.0.0.1:{s.getsockname()[1]}", code=1).err
    answers = [
        (Answer(200, "<html>hello</html>"), "is no MLflow server"),
        (Answer(404, "not found"), "is no MLflow server"),
        (Answer(401, "who?"), "set MLFLOW_TRACKING_TOKEN"),
        (Answer(403, {"error_code": "PERMISSION_DENIED"}), "set MLFLOW_TRACKING_TOKEN"),
        (Answer(500, {"error_code": "INTERNAL_ERROR"}), "cannot reach the MLflow server"),
        (Answer(200, {"data": {"viewer": None}}), "is no MLflow server"),
    ]
    for answer, message in answers:
        liar = Liar(lambda request, answer=answer: answer)  # type: ignore[misc]
        try:
            assert message in push(root, liar.url, code=1).err
        finally:
            liar.close()
    assert not (root / "run_successes.jsonl").exists()
