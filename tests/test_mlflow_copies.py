"""Copies at W&B of MLflow runs that went on: a real store that `MlflowClient` writes, a real server, the real SDK."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commanding import call
from killing import killed_at
from mlflow_points import SYSTEM, from_client, named, there
from serving import Server, serving
from syncing import proxied

from mirror.importers.account import Totals
from mirror.importers.mlflow import MlflowImporter, MlflowRun
from mirror.importers.places import Namespace
from mirror.store import Reader

pytest.importorskip("mlflow")
from mlflow import MlflowClient
from mlflow.entities import Metric

pytestmark = pytest.mark.slow

T0 = 1_700_000_000_000


@dataclass
class Lab:
    """An MLflow store, and a server that runs are imported into as `tester/PROJECT`."""

    client: MlflowClient
    uri: str
    server: Server
    root: Path

    def log(self, run_id: str, points: list[tuple[int, int, str, float]]) -> None:
        """Points as (milliseconds, step, key, value)."""
        for start in range(0, len(points), 1000):
            part = [Metric(key, value, at, step) for at, step, key, value in points[start : start + 1000]]
            self.client.log_batch(run_id, metrics=part, synchronous=True)

    def run(self, project: str) -> str:
        held = self.client.get_experiment_by_name(project)
        where = held.experiment_id if held else self.client.create_experiment(project)
        run_id: str = self.client.create_run(where, run_name="first").info.run_id
        return run_id

    def send(self, project: str, **options: Any) -> Totals:
        importer = MlflowImporter(self.uri, self.server.url, self.server.key, root=self.root, experiments=[project])
        return importer.import_runs(namespace=Namespace("tester", project), **options)

    def copy(self, project: str, run_id: str) -> Any:
        import wandb

        api = wandb.Api(overrides={"base_url": self.server.url}, api_key=self.server.key)
        return api.run(f"tester/{project}/{run_id}")

    def check(self, project: str, run_id: str) -> None:
        assert there(self.copy(project, run_id)) == named(from_client(self.client, run_id))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("copies")
    (place / "there").mkdir()
    uri = f"sqlite:///{place}/store.db"
    with serving(place / "there" / "mirror") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            if name not in ("WANDB_API_KEY", "WANDB_BASE_URL"):
                patch.setenv(name, value)
        patch.chdir(place)  # where MLflow puts artifacts of a store without a server
        yield Lab(MlflowClient(uri), uri, server, place / "m")


def some_points(rng: random.Random, around: int) -> list[tuple[int, int, str, float]]:
    """Points that follow, come late, share steps and times with others, and some of the system."""
    found = []
    for i in range(rng.randrange(1, 60)):
        step = rng.choice([around + i, around + i, rng.randrange(around + 40), -rng.randrange(5), 2**53 + around])
        at = T0 + rng.choice([100 * (around + i), rng.randrange(100 * around + 4000)])
        key = rng.choice(["loss", "acc", "a.b", "_step", f"k{rng.randrange(99)}"])
        found.append((at, step, key, rng.choice([rng.gauss(0, 1), -0.0, 2.0, math.nan, 1e22, 5e-324])))
        if not i % 7:
            names = [*SYSTEM.values(), "system/network_receive_megabytes", "system/node 1/cpu_utilization_percentage"]
            found += [(at, i // 7, name, rng.random() * 100) for name in rng.sample(names, 5)]
    return found


def test_a_run_that_went_on_is_gone_on_with(lab: Lab) -> None:
    rng = random.Random(11)
    run_id = lab.run("went on")
    before: list[dict[str, Any]] = []
    for turn in range(6):
        lab.log(run_id, some_points(rng, 40 * turn))
        lab.client.log_param(run_id, f"p{turn}", str(turn))
        lab.client.set_tag(run_id, "turn", str(turn))
        lab.client.set_tag(run_id, "mlflow.note.content", f"turn {turn}")
        if turn == 5:
            lab.client.update_run(run_id, "FINISHED", "last")
            lab.client.delete_tag(run_id, "mlflow.note.content")
        totals = lab.send("went on")
        assert totals.ok and totals.done == 1, (totals.failures, totals.errors)
        lab.check("went on", run_id)
        assert totals.counts["points"] == sum(from_client(lab.client, run_id).values())
        copy = lab.copy("went on", run_id)
        rows = copy.history(samples=1_000_000, pandas=False)
        assert rows[: len(before)] == before and len(rows) > len(before)  # what is there stays as it is
        before = rows
        assert {f"p{i}": i for i in range(turn + 1)}.items() <= copy.config.items()
        assert (copy.name, copy.state) == (("last", "finished") if turn == 5 else ("first", "running"))
        assert (copy.notes or None) == (None if turn == 5 else f"turn {turn}") and copy.tags == [f"turn={turn}"]
        assert copy.summary["loss"] == pytest.approx(lab.client.get_run(run_id).data.metrics["loss"], nan_ok=True)
    totals = lab.send("went on")
    assert (totals.done, totals.skipped) == (0, 1)
    totals = lab.send("went on", incremental=False)  # looked through once more, and nothing is missing
    assert totals.ok and lab.copy("went on", run_id).history(samples=1_000_000, pandas=False) == before


def ask(root: Path, query: str) -> list[tuple[Any, ...]]:
    with Reader(root) as reader:
        return reader.connect().execute(query).fetchall()


def command(*args: str, code: int = 0) -> str:
    """What a command says, on both outputs."""
    done = call(*args)
    assert done.code == code and "Traceback" not in done.err and "unexpected" not in done.err, done.out + done.err
    return done.out + done.err


def test_model_versions_become_artifacts(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    client, server = lab.client, lab.server
    runs = [lab.run("models") for _ in range(2)]
    for i, run_id in enumerate(runs):
        lab.log(run_id, [(T0, 0, "loss", float(i))])
        client.log_text(run_id, f"weights {i}", "m/data/weights.bin")
        client.log_text(run_id, "flavors: {}", "m/MLmodel")
    client.create_registered_model("My ☃ model", tags={"area": "vision"}, description="all of it")
    first = client.create_model_version(
        "My ☃ model", f"runs:/{runs[0]}/m", runs[0], tags={"k": "v w"}, description="one"
    )
    client.create_model_version("My ☃ model", f"{client.get_run(runs[1]).info.artifact_uri}/m", runs[1])
    client.create_model_version("My ☃ model", f"runs:/{runs[1]}/m", runs[1])  # the same files once more
    client.create_model_version("My ☃ model", "s3://bucket/elsewhere", runs[1])
    client.set_registered_model_alias("My ☃ model", "champion", "2")
    client.transition_model_version_stage("My ☃ model", "1", "Production")

    importer = MlflowImporter(lab.uri, server.url, server.key, root=tmp_path / "m", experiments=["models"])
    done = importer.import_everything(namespace=Namespace("tester", "models"))
    assert done.ok, (done.failures, done.errors)
    sent = done.kinds["artifacts"]
    assert (sent.done, sent.counts["artifacts"], sent.counts["entries"]) == (4, 4, 10)
    assert sent.notes["lost", "files"][:2] == (1, 1)
    api = wandb.Api(overrides={"base_url": server.url}, api_key=server.key)
    (collection,) = api.artifact_type("model", "tester/models").collections()
    assert collection.description == "all of it" and collection.tags == ["area vision"]
    copies = sorted(collection.artifacts(), key=lambda copy: int(copy.version[1:]))
    assert [copy.logged_by().id for copy in copies] == [runs[0], runs[1], runs[1], runs[1]]
    assert [set(copy.aliases) for copy in copies] == [{"production"}, {"champion"}, set(), {"latest"}]
    assert [copy.metadata["mlflow"]["version"] for copy in copies] == [1, 2, 3, 4]
    about = copies[0].metadata["mlflow"]
    assert (about["name"], about["tags"], about["source"]) == ("My ☃ model", ["k=v w"], first.source)
    assert (copies[0].description, copies[0].tags) == ("one", ["k v w"])
    for i, copy in enumerate(copies[:3]):
        folder = Path(copy.download(root=str(tmp_path / f"v{i}"), skip_cache=True))
        assert (folder / "data" / "weights.bin").read_text() == f"weights {min(i, 1)}"
        assert (folder / "MLmodel").read_text() == "flavors: {}"
        which = json.loads((folder / "mlflow-model-version.json").read_text())
        assert (which["name"], which["version"], which["run_id"]) == ("My ☃ model", i + 1, runs[min(i, 1)])
    assert list(copies[3].manifest.entries) == ["mlflow-model-version.json"]

    again = importer.import_everything(namespace=Namespace("tester", "models"))
    assert again.ok and (again.kinds["artifacts"].done, again.kinds["artifacts"].skipped) == (0, 4)
    client.set_registered_model_alias("My ☃ model", "champion", "3")
    client.update_model_version("My ☃ model", "3", "three")
    again = importer.import_everything(namespace=Namespace("tester", "models"))
    assert again.ok and (again.kinds["artifacts"].done, again.kinds["artifacts"].skipped) == (2, 2)
    api = wandb.Api(overrides={"base_url": server.url}, api_key=server.key)
    copy = api.artifact(f"tester/models/{collection.name}:champion")
    assert (copy.version, copy.description) == ("v2", "three")
    monkeypatch.setenv("MIRROR_DST_API_KEY", server.key)
    args = ["import", "mlflow", lab.uri, "--dst-base-url", server.url, "--mirror", str(tmp_path / "m"), "--verify"]
    args += ["--experiment", "models", "--into", "tester/models"]
    said = command(*args)
    assert "no difference" in said and "10 artifact entries" in said and "1 collections" in said, said
    query = 'mutation($id: ID!) { updateArtifact(input: {artifactID: $id, description: "2"}) { artifact { id } } }'
    server.graphql(query, id=copy.id)
    said = command(*args, code=1)  # nothing is sent again, and what is there is not what was sent
    assert "0 runs sent" in said and "1 differences" in said and "three" in said, said
    one = importer.import_everything(
        [MlflowRun({"run_id": runs[0]})], namespace=Namespace("tester", "one"), incremental=False
    )
    assert one.ok and one.kinds["artifacts"].done == 1  # those of the others are not asked for
    none = importer.import_everything(artifacts=False, namespace=Namespace("tester", "none"))
    assert none.ok and list(none.kinds) == ["runs"]


def test_a_plan_writes_nothing(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRROR_DST_API_KEY", lab.server.key)
    root = tmp_path / "m"
    runs = [lab.run("plan/me") for _ in range(3)]
    lab.log(runs[0], [(T0 + i, i, "loss", 1.0) for i in range(7)])
    args = ["import", "mlflow", lab.uri, "--dst-base-url", lab.server.url, "--mirror", str(root)]
    args += ["--experiment", "plan/me"]

    def planned(*more: str) -> list[list[str]]:
        said = command(*args, "--dry-run", *more)
        return [line.split() for line in said.splitlines() if "plan/me" in line]

    fetch, send = planned()
    assert fetch[:6] == ["mlflow/plan/me", "3", "0", "0", "0", "0"] and send == ["plan/me", "local/plan-me", "3", "0"]
    assert not root.exists() and not lab.server.graphql('{ project(name: "plan-me") { name } }')["project"]
    for more in ((), ("--dry-run",)):
        said = command(*args, "--remap", "plan me=local/other", *more, code=2)
        assert "`plan me` is to become another project" in said and "did you mean `plan/me`?" in said
    command(*args)
    said = command("verify", "--against", lab.server.url, "--mirror", str(root))
    assert " 3 runs" in said.splitlines()[2] and "left out" not in said
    assert planned()[1][-3:] == ["local/plan-me", "0", "3"]
    assert planned("--into", "tester/other")[1][-3:] == ["tester/other", "3", "0"]
    lab.log(runs[1], [(T0, 0, "loss", 1.0)])
    lab.run("plan/me")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    fetch, send = planned()
    assert fetch[1:4] == ["1", "1", "2"] and send[-3:] == ["local/plan-me", "2", "2"]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
    assert "leave out one of them" in command(*args[:3], "--dry-run", "--rehearse", code=2)


def test_experiments_that_are_renamed_or_deleted(lab: Lab, tmp_path: Path) -> None:
    """Nothing vanishes: what MLflow has no more is marked, what it calls otherwise is there under its new name."""
    root = tmp_path / "m"
    run_id, other = lab.run("old name"), lab.run("goes away")
    for one in (run_id, other):
        lab.log(one, [(T0 + i, i, "loss", float(i)) for i in range(5)])
    named = ["--experiment", "old name", "--experiment", "goes away"]
    command("sync", f"mlflow:{lab.uri}", *named, "--mirror", str(root))
    experiment = lab.client.get_run(run_id).info.experiment_id
    lab.client.rename_experiment(experiment, "new name")
    lab.client.delete_experiment(lab.client.get_run(other).info.experiment_id)

    args = ["sync", f"mlflow:{lab.uri}", "--mirror", str(root)]
    assert "deleted" not in command(*args)  # one listing that lacks it may be wrong
    assert "are gone at the source, and are kept as they are" in command(*args, code=1)
    said = command(*args, "--accept-deletions")
    assert "goes away: deleted at the source, kept in the mirror" in said
    gone = "select project from projects where deleted_at is not null order by 1"
    assert ask(root, gone) == [("goes away",), ("old name",)]
    names = dict(ask(root, "select run_id, project from runs"))
    assert (names[run_id], names[other]) == ("new name", "goes away")  # what it held is held
    assert ask(root, f"select count(*) from history where run_id in ('{run_id}', '{other}') and key = 'loss'") == [
        (10,)
    ]
    lab.client.restore_experiment(lab.client.get_run(other).info.experiment_id)
    command(*args)
    assert ask(root, gone) == [("old name",)]
    totals = lab.send("new name")
    assert totals.ok and totals.done == 1
    lab.check("new name", run_id)


def test_killed_and_gone_on_with(lab: Lab, tmp_path: Path) -> None:
    """An import of a run that went on, killed at one request after another: nothing is doubled or missing."""
    rng = random.Random(3)
    run_id = lab.run("killed")
    lab.log(run_id, [(T0 + 10 * i, i, f"k{k}", i / 7 + k) for i in range(300) for k in range(3)])
    assert lab.send("killed").ok
    mirror = [sys.executable, "-c", "import sys; sys.argv[0] = 'mirror'; from mirror.cli import main; main()"]
    killed = 0
    with proxied(lab.server) as proxy:
        args = ["import", "mlflow", lab.uri, "--dst-base-url", proxy.url, "--into", "tester/killed", "-q"]
        args += ["--experiment", "killed", "--mirror", str(lab.root)]
        for turn in range(5):
            points = [
                (T0 + rng.randrange(9000), rng.randrange(900), f"k{rng.randrange(5)}", rng.random()) for _ in "x" * 99
            ]
            lab.log(run_id, [*points, (T0 + 5000 + turn, turn, "system/cpu_utilization_percentage", 1.5)])
            at = 4 + 2 * turn  # after the run was made anew, read back, sent in parts
            code = killed_at(
                proxy,
                at,
                lambda: subprocess.Popen([*mirror, *args], env=os.environ | {"MIRROR_DST_API_KEY": lab.server.key}),
                arrives=turn % 2 == 0,
            )
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
    assert killed >= 3
    totals = lab.send("killed")
    assert totals.ok, totals.failures
    lab.check("killed", run_id)
