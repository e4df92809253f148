"""Copies at W&B of MLflow runs that went on: a real store that `MlflowClient` writes, a real server, the real SDK."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow_points import SYSTEM, from_client, named, there
from serving import Server, serving

from mirror.importers.account import Totals
from mirror.importers.mlflow import MlflowImporter
from mirror.importers.places import Namespace

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
