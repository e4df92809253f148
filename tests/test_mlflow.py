"""A real `mlflow server` and the file behind it against `MlflowClient`: every point, param and tag, by both roads."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow_points
import pytest
from mlflow_points import Point, text, there
from serving import Server, serving

from mirror.cli import main
from mirror.importers.account import Totals
from mirror.importers.mlflow import MlflowImporter, MlflowRun
from mirror.importers.places import Namespace
from mirror.query.rows import rows as read_rows
from mirror.sources.mlflow import histories
from mirror.sources.mlflow.road import open_road
from mirror.sources.mlflow.rows import own
from mirror.store import Reader

pytest.importorskip("mlflow")
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from tracking import tracking

pytestmark = pytest.mark.slow


@dataclass
class Lab:
    """A server and what was logged there: experiment by run, points as they were put in."""

    url: str
    database: Path
    client: MlflowClient
    runs: dict[str, str] = field(default_factory=dict)
    logged: dict[str, list[Point]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def roads(self) -> dict[str, str]:
        return {"rest": f"mlflow:{self.url}", "database": f"mlflow:sqlite:///{self.database}"}

    def run(self, name: str, experiment: str, tags: dict[str, str] | None = None) -> str:
        held = self.client.get_experiment_by_name(experiment)
        where = held.experiment_id if held else self.client.create_experiment(experiment)
        run_id: str = self.client.create_run(where, run_name=name, tags=tags).info.run_id
        self.runs[run_id], self.logged[run_id], self.names[name] = experiment, [], run_id
        return run_id

    def log(self, run_id: str, points: list[tuple[int, int, str, float]]) -> None:
        self.logged[run_id] += [(at, step, key, text(value)) for at, step, key, value in points]
        for start in range(0, len(points), 1000):
            part = [Metric(key, value, at, step) for at, step, key, value in points[start : start + 1000]]
            self.client.log_batch(run_id, metrics=part, synchronous=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("mlflow")
    with tracking(folder, "--workers", "1") as server:
        found = Lab(server.url, server.database, server.client)
        fill(found, folder)
        yield found


def fill(lab: Lab, folder: Path) -> None:
    rng = random.Random(5)
    client = lab.client

    hostile = lab.run("hostile", "Ünïcode / 实验 .. \"x\" 'y'", {"team": "nlp", "mlflow.note.content": "a\nnote ☃"})
    points = [(1_700_000_000_000 + 7 * i, i, "loss", rng.gauss(0, 1)) for i in range(300)]
    points += [(1_700_000_000_000, 5, "many", float(i)) for i in range(20)]  # a step and time, many values
    points += [(1_700_000_000_000 - 1000 * i, i, "backwards", i / 3) for i in range(50)]
    points += [(1_700_000_000_001, -i, "negative", -0.0 if i % 2 else 1e-320) for i in range(10)]
    points += [(1_700_000_000_002, 2**53 + i, "far", float(i)) for i in range(4)]
    odd = [math.nan, math.inf, -math.inf, sys.float_info.max, 0.1 + 0.2, 5e-324, 2.0**60, 1e22]
    points += [(1_700_000_000_100 + i, i, "odd", value) for i, value in enumerate(odd)]
    points += [(1_700_000_000_100, 0, "odd", 0.0)]  # beside the NaN, which MLflow holds as 0.0 and a mark
    for name in ("_step", "_timestamp", "_runtime", "_wandb", "Loss", "a/b", "a.b", "a b", "é:x", "x" * 250):
        points += [(1_700_000_000_003 + i, i, name, i + 0.5) for i in range(3)]
    points += [(0, 0, "at the beginning of time", 1.0), (1, 1, "at the beginning of time", 2.0)]
    lab.log(hostile, points)
    params = {"lr": "0.10", "empty": "", "_step": "1", "_wandb": "w", "_mlflow": "m", "x.y": "{'a': 1}", "a/b": "☃\n\t"}
    params |= {"truth": "True", "count": "3", "nothing": "None", "far": "1e-7", "zeros": "007", "not": "nan"}
    params["long"] = "é" * 6000
    params |= {f"p{i}": str(i) + "!" for i in range(10_000)}
    listed = [Param(k, v) for k, v in params.items()]
    for start in range(0, len(listed), 100):
        client.log_batch(hostile, params=listed[start : start + 100])
    client.log_batch(hostile, tags=[RunTag("long", "v" * 5000), RunTag("a b/c", "c=d"), RunTag("empty", "")])
    dataset = Dataset("train ☃", "abc123", "code", '{"tags": {}}', schema="{}", profile='{"rows": 3}')
    client.log_inputs(hostile, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    client.log_text(hostile, "hello", "notes/ä b.txt")
    client.log_text(hostile, "", "notes/deep/empty.txt")
    client.set_terminated(hostile, "FAILED")

    child = lab.run("child", lab.runs[hostile], {"mlflow.parentRunId": hostile})
    client.set_terminated(child, "KILLED")

    wide = lab.run("wide", "wide")
    lab.log(wide, [(1_700_000_000_000 + i, i, f"k{k}", k + i / 7) for i in range(2) for k in range(60)])
    long = lab.run("long", "wide")
    lab.log(long, [(1_700_000_000_000 + i // 3, i // 2, "loss", i / 3) for i in range(26_000)])

    local = client.create_experiment("on disk", artifact_location=(folder / "local").as_uri())
    assert local
    files = lab.run("files", "on disk")
    for i in range(3):
        client.log_text(files, "x" * i, f"d{i}/file {i}.txt")

    client.create_registered_model("Model ☃", tags={"area": "vision"}, description="all ☃")
    client.create_registered_model("without a run")
    client.create_model_version("without a run", source="s3://bucket/model")
    made = client.create_logged_model(client.get_run(hostile).info.experiment_id, "logged", hostile)
    client.log_outputs(hostile, [LoggedModelOutput(made.model_id, step=3)])
    client.log_inputs(child, models=[LoggedModelInput(made.model_id)])
    client.create_model_version("Model ☃", source=f"runs:/{wide}/m", run_id=wide, tags={"k": "v"}, description="first")
    client.set_registered_model_alias("Model ☃", "champion", 1)
    client.create_experiment("empty")
    for i in range(12):  # so that one that goes is less than a tenth
        lab.run(f"small {i}", "small")
    deleted = lab.run("deleted before", "small")
    client.delete_run(deleted)
    gone = client.create_experiment("deleted experiment")
    client.delete_experiment(gone)


def sync(root: Path, *args: str, code: int = 0) -> str:
    return command("sync", *args, "--mirror", str(root), code=code)


def command(*args: str, code: int = 0) -> str:
    """What a command says, on both outputs."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(said),
        redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["mirror", *args])
        main()
    assert "Traceback" not in said.getvalue() and "unexpected" not in said.getvalue(), said.getvalue()
    assert (ended.value.code or 0) == code, said.getvalue()
    return said.getvalue()


@dataclass(frozen=True)
class Mirror:
    root: Path
    path: str
    said: str
    road: str

    def ask(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        with Reader(self.root) as reader:
            return reader.connect().execute(query, list(params)).fetchall()

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        with Reader(self.root) as reader:
            ((rid,),) = reader.connect().execute("select rid from runs where run_id = ?", [run_id]).fetchall()
            return list(read_rows(reader, rid))

    def points(self, run_id: str) -> Counter[Point]:
        """What the mirror holds: a row for each point, in the order of their times."""
        rows = self.rows(run_id)
        assert all(len(row) == 3 for row in rows)
        assert [row["_timestamp"] for row in rows] == sorted(row["_timestamp"] for row in rows)
        found: Counter[Point] = Counter()
        for row in rows:
            at, step = round(row.pop("_timestamp") * 1000), row.pop("_step")
            ((key, value),) = row.items()
            found[at, step, key, text(value)] += 1
        return found


@pytest.fixture(scope="module", params=["rest", "database"])
def mirror(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    root = tmp_path_factory.mktemp(request.param) / "m"
    said = sync(root, lab.roads()[request.param], "--all-bytes")
    return Mirror(root, lab.roads()[request.param], said, request.param)


def test_every_point_is_there(lab: Lab, mirror: Mirror) -> None:
    same_points(lab, mirror, [name for name in lab.names if name != "deleted before"])


def same_points(lab: Lab, mirror: Mirror, names: list[str]) -> None:
    for name in names:
        run_id = lab.names[name]
        there = from_client(lab, run_id)
        assert sum(there.values()) == len(set(lab.logged[run_id]))
        expected = Counter({(at, step, own(key), value): n for (at, step, key, value), n in there.items()})
        assert mirror.points(run_id) == expected, name


def from_client(lab: Lab, run_id: str) -> Counter[Point]:
    return mlflow_points.from_client(lab.client, run_id)


def test_answers_that_are_cut_off_lose_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server cuts after as many points as it is told, at most 25,000: here as few as 7."""
    monkeypatch.setattr(histories, "CAP", 7)
    monkeypatch.setattr(histories, "_PAGE", 5)
    names = ["hostile", "wide", "child", *(f"small {i}" for i in range(12))]
    for i, name in enumerate(names[3:]):
        lab.log(lab.names[name], [(1_700_000_000_000 + j, j, "shared", j / 3) for j in range(i)])
        lab.log(lab.names[name], [(1_700_000_000_000, 0, "alone", math.nan if i % 2 else 0.0)])
    road = open_road(lab.roads()["rest"], {})
    runs = list[Any]()
    for experiment in {lab.runs[lab.names[name]] for name in names}:
        there = [run_id for name in names if lab.runs[run_id := lab.names[name]] == experiment]
        found_there = lab.client.get_experiment_by_name(experiment)
        assert found_there is not None
        runs += road.documents(found_there.experiment_id, there).values()
    before = road.traffic.requests
    with road.points(runs) as points:
        for name in names:
            found = points[lab.names[name]]
            assert not isinstance(found, Exception)
            held = Counter((at, step, key, text(math.nan if v is None else v)) for at, step, key, v in found)
            assert held == from_client(lab, lab.names[name]), name
    assert road.traffic.requests - before > 100


def test_params_tags_and_the_rest_are_there(lab: Lab, mirror: Mirror) -> None:
    states = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
    for name, run_id in lab.names.items():
        if name == "deleted before":
            continue
        expected = lab.client.get_run(run_id)
        ((config, summary, project, shown, state, notes, group, tags, complete, created),) = mirror.ask(
            'select config_raw, summary_raw, project, name, state, notes, "group", tags, history_complete, '
            "epoch_ms(created_at) from runs_raw where run_id = ?",
            run_id,
        )
        held = {key: item["value"] for key, item in json.loads(config).items()}
        more = held.pop("_mlflow")
        assert held == {own(key): value for key, value in expected.data.params.items()}
        assert more["tags"] == expected.data.tags
        assert set(tags) == {f"{k}={v}" for k, v in expected.data.tags.items() if not k.startswith("mlflow.")}
        latest = {own(key): text(value) for key, value in expected.data.metrics.items()}
        assert {key: text(value) for key, value in json.loads(summary).items()} == latest
        assert (project, shown, state) == (lab.runs[run_id], name, states[expected.info.status])
        assert (notes, group) == (
            expected.data.tags.get("mlflow.note.content"),
            expected.data.tags.get("mlflow.parentRunId"),
        )
        assert complete and created == expected.info.start_time
        given = [
            (one.dataset.to_dictionary(), {t.key: t.value for t in one.tags}) for one in expected.inputs.dataset_inputs
        ]
        datasets = [(one["dataset"], {t["key"]: t["value"] for t in one["tags"]}) for one in more.get("datasets", ())]
        assert datasets == given


def test_experiments_are_projects(lab: Lab, mirror: Mirror) -> None:
    names = {experiment.name for experiment in lab.client.search_experiments(view_type=ViewType.ACTIVE_ONLY)}
    assert {"empty", "Default"} < names
    assert {name for (name,) in mirror.ask("select project from projects where entity = 'mlflow'")} == names
    assert mirror.ask("select count(*) from runs where run_id = ?", lab.names["deleted before"]) == [(0,)]


def test_artifacts_are_listed_with_their_bytes(lab: Lab, mirror: Mirror) -> None:
    query = "select f.name, f.size, f.sha256 from files f join runs r using (rid) where r.run_id = ? order by 1"

    def entry(name: str, content: str) -> tuple[str, int, str]:
        return name, len(content), hashlib.sha256(content.encode()).hexdigest()

    assert mirror.ask(query, lab.names["files"]) == [entry(f"d{i}/file {i}.txt", "x" * i) for i in range(3)]
    hostile = mirror.ask(query, lab.names["hostile"])
    if mirror.road == "rest":
        assert hostile == [entry("notes/deep/empty.txt", ""), entry("notes/ä b.txt", "hello")]
    else:  # they lie behind the server, and the file does not say where
        assert hostile == [] and "does not tell which artifacts there are" in mirror.said
    for name, size, sha256 in mirror.ask(query, lab.names["files"]):
        held = mirror.root / "blobs" / "sha256" / sha256[:2] / sha256
        assert held.read_bytes() == b"x" * size, name


def test_model_versions_are_artifacts(lab: Lab, mirror: Mirror) -> None:
    query = "select type, collection, version, aliases, tags, description, run_id, project from artifacts"
    assert mirror.ask(query) == [("model", "Model ☃", 1, ["champion"], ["k=v"], "first", lab.names["wide"], "wide")]
    query = "select type, collection, tags, description from artifact_collections"
    assert mirror.ask(query) == [("model", "Model ☃", ["area=vision"], "all ☃")]
    assert "no run made are not mirrored: `without a run v1`" in mirror.said


def test_models_that_runs_made_and_used_are_named(lab: Lab, mirror: Mirror) -> None:
    for name in ("hostile", "child"):
        expected = lab.client.get_run(lab.names[name])
        ((config,),) = mirror.ask("select config_raw from runs_raw where run_id = ?", lab.names[name])
        more = json.loads(config)["_mlflow"]["value"]
        inputs = [one["model_id"] for one in more.get("model_inputs", ())]
        outputs = [(one["model_id"], int(one.get("step", 0))) for one in more.get("model_outputs", ())]
        assert inputs == [one.model_id for one in expected.inputs.model_inputs]
        assert outputs == [(one.model_id, one.step) for one in expected.outputs.model_outputs]
        assert inputs or outputs


def test_a_second_sync_writes_nothing(lab: Lab, mirror: Mirror) -> None:
    before = mirror.ask("select max(gen), count(*), max(mirrored_at) from raw.runs")
    written = {path: path.stat().st_mtime_ns for path in (mirror.root / "data").rglob("*.parquet")}
    said = sync(mirror.root, mirror.path)
    assert "0 new, 0 changed; 0 rows;" in said
    assert mirror.ask("select max(gen), count(*), max(mirrored_at) from raw.runs") == before
    assert {path: path.stat().st_mtime_ns for path in (mirror.root / "data").rglob("*.parquet")} == written


def test_only_what_changed_is_fetched_again(lab: Lab, mirror: Mirror) -> None:
    """New points, later ones and one before all that are held; a tag; a run that is deleted."""
    run_id, long = lab.names["child"], lab.names["long"]
    step = len(lab.logged[run_id])
    lab.log(run_id, [(1_800_000_000_000 + step, step, "new", 1.0)])
    lab.log(long, [(1_900_000_000_000 + step, 50_000 + step, "loss", 2.0)])
    lab.client.set_tag(run_id, "mark", mirror.road)
    said = sync(mirror.root, mirror.path)
    assert "0 new, 2 changed; 2 rows;" in said
    same_points(lab, mirror, ["child", "long"])
    lab.log(run_id, [(5 + step, 100 + step, "new", 3.0)])
    assert "0 new, 1 changed;" in sync(mirror.root, mirror.path)
    same_points(lab, mirror, ["child"])
    test_params_tags_and_the_rest_are_there(lab, mirror)

    gone = lab.names["small 3"]
    lab.client.delete_run(gone)
    assert "1 not found" in sync(mirror.root, mirror.path)
    assert "1 deleted at the source" in sync(mirror.root, mirror.path)
    assert mirror.ask("select deleted_at is not null from runs where run_id = ?", gone) == [(True,)]
    assert "1 new, 1 changed" in sync(mirror.root, mirror.path, "--deleted", "--experiment", "small")
    assert mirror.ask("select count(*) from runs where project = 'small' and deleted_at is null") == [(13,)]
    lab.client.restore_run(gone)


def test_selection(lab: Lab, tmp_path: Path) -> None:
    roads = lab.roads()
    sync(tmp_path / "m", roads["rest"], "--experiment", "small", "--filter", "attributes.run_name = 'small 1'")
    with Reader(tmp_path / "m") as reader:
        assert reader.connect().execute("select run_id from runs").fetchall() == [(lab.names["small 1"],)]
    assert "judged by MLflow's server" in sync(tmp_path / "n", roads["database"], "--filter", "a = 'b'", code=1)
    assert "refused runs/search" in sync(tmp_path / "n", roads["rest"], "--filter", "this is no filter", code=1)
    assert "has no experiment `nope`" in sync(tmp_path / "n", roads["rest"], "--experiment", "nope", code=1)


def test_databricks_is_asked_by_mlflows_own_client(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes any MLflow server for one, but for artifacts that only the server can reach."""
    monkeypatch.setenv("DATABRICKS_HOST", lab.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", "any")
    said = sync(tmp_path / "m", "mlflow:databricks")
    mirror = Mirror(tmp_path / "m", "mlflow:databricks", said, "rest")
    same_points(lab, mirror, [name for name in lab.names if name != "deleted before"])
    sync(tmp_path / "bytes", "mlflow:databricks", "--experiment", "on disk", "--all-bytes")
    held = Mirror(tmp_path / "bytes", "", "", "").ask(
        "select name, size from files where sha256 is not null order by 1"
    )
    assert held == [(f"d{i}/file {i}.txt", i) for i in range(3)]


def test_what_is_no_store(tmp_path: Path) -> None:
    root = tmp_path / "m"
    assert "does not exist" in sync(root, f"mlflow:sqlite:///{tmp_path}/none.db", code=1)
    (tmp_path / "text.db").write_text("no database" * 100)
    assert "cannot be read as an MLflow store" in sync(root, f"mlflow:sqlite:///{tmp_path}/text.db", code=1)
    assert "is read neither as" in sync(root, "mlflow:./mlruns", code=2)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        assert "cannot reach the MLflow server" in sync(root, f"mlflow:http://127.0.0.1:{s.getsockname()[1]}", code=1)
    assert "names a registry of models" in sync(root, "mlflow:databricks-uc", code=2)
    assert "are for MLflow" in sync(root, "a/b", "--experiment", "x", code=2)


# -- from there to W&B ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    server: Server
    importer: MlflowImporter
    totals: Totals

    def run(self, run_id: str) -> Any:
        import wandb

        api = wandb.Api(overrides={"base_url": self.server.url}, api_key=self.server.key)
        return api.run(f"tester/from-mlflow/{run_id}")


@pytest.fixture(scope="module")
def imported(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    place = tmp_path_factory.mktemp("imported")
    (place / "there").mkdir()
    with serving(place / "there" / "mirror") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            if name not in ("WANDB_API_KEY", "WANDB_BASE_URL"):
                patch.setenv(name, value)
        importer = MlflowImporter(lab.url, server.url, server.key, root=place / "m")
        runs = importer.collect_runs()
        totals = importer.import_runs(runs, namespace=Namespace("tester", "from-mlflow"))
        yield Imported(server, importer, totals)


def test_every_point_arrives_at_wandb(lab: Lab, imported: Imported) -> None:
    assert imported.totals.ok, (imported.totals.failures, imported.totals.errors)
    names = [name for name in lab.names if name != "deleted before"]
    assert imported.totals.done == len(names)
    points = 0
    for name in names:
        expected = Counter(
            {(at, step, own(key), v): n for (at, step, key, v), n in from_client(lab, lab.names[name]).items()}
        )
        assert there(imported.run(lab.names[name])) == expected, name
        points += sum(expected.values())
    assert imported.totals.counts["points"] == points > 26_000


def test_metrics_of_a_step_share_a_row(lab: Lab, imported: Imported) -> None:
    rows = imported.run(lab.names["wide"]).history(samples=1000, pandas=False)
    assert [(row["_step"], len(row)) for row in rows] == [(0, 63), (1, 63)]
    long = imported.run(lab.names["long"]).history(samples=1_000_000, pandas=False)
    points = sum(from_client(lab, lab.names["long"]).values())
    assert len(long) == points and [row["_step"] for row in long[:4]] == [0, 1, 2, 3]
    assert [row.get("mirror_origin/step", row["_step"]) for row in long[:4]] == [0, 0, 1, 1]


def test_the_rest_of_a_run_arrives_at_wandb(lab: Lab, imported: Imported, tmp_path: Path) -> None:
    states = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
    typed = {"lr": 0.1, "_step": 1, "truth": True, "count": 3, "nothing": None, "far": 1e-7}
    for name in ("hostile", "child", "files"):
        run_id, run = lab.names[name], imported.run(lab.names[name])
        expected = lab.client.get_run(run_id)
        config, about = dict(run.config), run.config["_mlflow"]
        for key, value in expected.data.params.items():
            assert config[own(key)] == typed.get(key, value), key
            assert about.get("params", {}).get(own(key), config[own(key)]) == value
        assert about["tags"] == expected.data.tags
        assert about.get("parent_run_id") == expected.data.tags.get("mlflow.parentRunId")
        assert (run.name, run.state) == (name, states[expected.info.status])
        assert set(run.tags) == {f"{k}={v}" for k, v in expected.data.tags.items() if not k.startswith("mlflow.")}
        assert (run.notes or None, run.group or None) == (
            expected.data.tags.get("mlflow.note.content"),
            expected.data.tags.get("mlflow.parentRunId"),
        )
        origin = run.config["mirror_origin"]
        assert origin["path"] == f"mlflow/{lab.runs[run_id]}/{run_id}" and origin["source"].startswith("mlflow:")
        began = datetime.fromisoformat(origin["created_at"].replace("Z", "+00:00"))
        assert round(began.timestamp() * 1000) == expected.info.start_time == about["start_time"]
        assert about["status"] == expected.info.status and about.get("end_time") == expected.info.end_time
        latest = {own(key): text(value) for key, value in expected.data.metrics.items()}
        assert {key: text(float(value)) for key, value in run.summary._json_dict.items()} == latest
    datasets = imported.run(lab.names["hostile"]).config["_mlflow"]["datasets"]
    assert [one["dataset"]["name"] for one in datasets] == ["train ☃"]
    files = {file.name: file for file in imported.run(lab.names["hostile"]).files()}
    with files["notes/ä b.txt"].download(root=str(tmp_path)) as file:
        assert file.read() == "hello"


def test_imported_again_nothing_is_sent_but_what_is_new(
    lab: Lab, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    importer, place = imported.importer, Namespace("tester", "from-mlflow")
    again = importer.import_runs(namespace=place)
    assert (again.done, again.skipped, again.ok) == (0, imported.totals.done, True)

    run_id = lab.names["wide"]
    lab.log(run_id, [(1_000 + i, i, "early", 7.5) for i in range(3)])
    run = MlflowRun(lab.client.get_run(run_id), lab.client)
    changed = importer.import_runs([run], namespace=place)
    assert changed.ok and changed.done == 1, changed.failures
    assert there(imported.run(run_id)) == from_client(lab, run_id)
    run_id = lab.names["small 1"]  # one that runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lab.url)
    monitor = SystemMetricsMonitor(run_id, sampling_interval=0.1, samples_before_logging=2, tracking_uri=lab.url)
    monitor.start()
    deadline = time.monotonic() + 120
    while len(lab.client.get_metric_history(run_id, "system/cpu_utilization_percentage")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    monitor.finish()
    watched = importer.import_runs([MlflowRun(lab.client.get_run(run_id))], namespace=place)
    assert watched.ok and watched.counts["system"] >= 2
    assert there(imported.run(run_id)) == mlflow_points.named(from_client(lab, run_id))
    samples = imported.run(run_id).history(stream="system", samples=1000, pandas=False)
    assert all(0 <= row["system.cpu"] <= 100 and row["system.memory_percent"] > 0 for row in samples)
    other = importer.import_runs([run], namespace=Namespace("tester", "elsewhere"))
    assert other.ok and other.done == 1
    assert "no run `nope`" in importer.import_runs([MlflowRun({"run_id": "nope"})], namespace=place).errors[0]


# -- and into MLflow ------------------------------------------------------------------------------------------


def pushed(root: Path, url: str, *args: str, code: int = 0) -> str:
    return command("push", *args, "--to", f"mlflow:{url}", "--mirror", str(root), code=code)


def copies(lab: Lab, experiment: str) -> dict[str, Any]:
    """Runs of an experiment by the path that they were mirrored under."""
    found = lab.client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.data.tags["mirror.path"]: run for run in lab.client.search_runs([found.experiment_id])}


def test_what_came_from_mlflow_goes_back_point_by_point(lab: Lab, tmp_path: Path) -> None:
    root = tmp_path / "m"
    experiment = lab.runs[lab.names["hostile"]]
    sync(root, lab.roads()["rest"], "--experiment", experiment, "--experiment", "on disk", "--all-bytes")
    assert "points" in pushed(root, lab.url)
    for name in ("hostile", "child", "files"):
        original = lab.client.get_run(lab.names[name])
        project = lab.runs[lab.names[name]]
        copy = copies(lab, f"mlflow/{project}")[f"mlflow/{project}/{lab.names[name]}"]
        assert from_client(lab, copy.info.run_id) == from_client(lab, lab.names[name])
        assert copy.data.params == original.data.params
        tags = original.data.tags.keys() - {"mlflow.log-model.history"}
        assert {key: copy.data.tags[key] for key in tags} == {key: original.data.tags[key] for key in tags}
        assert (copy.info.run_name, copy.info.status) == (name, original.info.status)
        assert copy.info.start_time == original.info.start_time
        assert copy.data.tags.get("mlflow.note.content") == original.data.tags.get("mlflow.note.content")
    copy = copies(lab, "mlflow/on disk")[f"mlflow/on disk/{lab.names['files']}"]
    local = lab.client.download_artifacts(copy.info.run_id, "d2/file 2.txt", str(tmp_path))
    assert Path(local).read_text() == "xx"
    before = len(copies(lab, "mlflow/on disk"))
    assert "there already" in pushed(root, lab.url) and len(copies(lab, "mlflow/on disk")) == before


def test_the_import_can_be_rehearsed(lab: Lab, tmp_path: Path) -> None:
    said = command(
        "import", "mlflow", lab.url, "--experiment", "on disk", "--rehearse", "--mirror", str(tmp_path / "m")
    )  # fmt: skip
    assert "1 runs sent to http://127.0.0.1:" in said and "created" in said
    assert "Read back and compared" in said and "no difference" in said, said
    assert not (tmp_path / "m" / "run_successes.jsonl").exists()
    assert "name the server, --dst-base-url URL" in command("import", "mlflow", lab.url, code=2)
