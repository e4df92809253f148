"""Every example of W&B's two guides, with the import line changed, on a mirror of what the real SDK logged.

tests/guide_examples.py holds their code. Each is run with this package, on a mirror synced from a real `mirror serve`
or on that server's own root, and with the real SDK against that server; both must give what was logged. The examples
that edit runs are in tests/test_edits.py: here they are refused, since nobody said that a server may be asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import guide_examples
import pytest
from guide_examples import HOSTILE
from liar import Request
from serving import Server, serving
from syncing import Copy, log_run, proxied

import mirror

pytestmark = pytest.mark.slow

TRAIN = r"""
import argparse, json, sys, time
import wandb

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--sweep")
args = parser.parse_args()
quick = wandb.Settings(x_disable_stats=True)

def log(name, config, rows, settings=quick, files=(), **more):
    run = wandb.init(project="guide", id=name, name=f"the {name}", config=config, settings=settings, **more)
    for row in rows:
        run.log(row)
    for file, content in files:
        open(file, "w").write(content)
        run.save(file, policy="now")
    return run

stats = wandb.Settings(x_stats_sampling_interval=0.2, x_stats_buffer_size=100)
with log("short", {"n_epochs": 5, "lr": args.lr}, [{"val": 100 * n, "loss": n / 8} for n in range(5)], stats,
         files=[("model-best.h5", "the best weights")], notes="a note", tags=["a", "b"]) as run:
    while len(run._system_metrics.get("cpu", ())) < 4:
        time.sleep(0.05)
log("long", {}, [{"loss": 1 / (n + 1)} | ({"accuracy": n / 600} if n % 2 == 0 else {}) for n in range(600)]).finish()
cnn = {"batch_size": 16, "n_conv_layers": 4, "optimizer": "adam", "epochs": 7, "experiment_name": "foo"}
mlp = {"batch_size": 32, "n_conv_layers": 5, "optimizer": "rmsprop", "epochs": 7, "experiment_name": "bar"}
with log("cnn", cnn, [{"accuracy": n / 10, "loss": 5 - n} if n % 2 else {"loss": 5 - n} for n in range(4)]) as run:
    for content, aliases in (("old", []), ("new", ["best"])):
        net = wandb.Artifact("net", type="model", description="a net", metadata={"layers": [4, 5]})
        open("model.h5", "w").write(content)
        net.add_file("model.h5")
        run.log_artifact(net, aliases=aliases).wait()
with log("mlp", mlp, [{"accuracy": 0.5, "loss": 1}]) as run:
    run.use_artifact("net:v1")
log("baz", {"experiment_name": "baz", "batch_size": 8}, [{"loss": 3}]).finish()
"""

SWEEP = r"""
import json
import wandb

config = {"name": "the sweep", "method": "grid", "metric": {"name": "val_acc", "goal": "maximize"},
          "parameters": {"lr": {"values": [0.1, 0.2, 0.3]}}}
sweep = wandb.sweep(config, project="guide")
for lr, acc in ((0.1, 0.5), (0.2, 0.9), (0.3, 0.7)):
    with wandb.init(project="guide", id=f"s{acc}", name=f"acc {acc}", config={"lr": lr},
                    settings=wandb.Settings(x_disable_stats=True, sweep_id=sweep)) as run:
        run.log({"val_acc": acc})
        open("model.h5", "w").write(f"model of {acc}")
        run.save("model.h5", policy="now")
print(json.dumps(sweep))
"""

EXPERIMENTS = ["cnn", "mlp", "baz"]
RUNS = ["short", "long", *EXPERIMENTS]
SWEPT = ["acc 0.5", "acc 0.9", "acc 0.7"]


@dataclass
class World:
    """What was logged, where it is served, and a mirror of it."""

    server: Server
    copy: Copy
    paths: dict[str, str]
    commit: str
    began: datetime
    by_wandb: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("guides")
    code = folder / "code"
    code.mkdir()
    (code / "train.py").write_text(TRAIN)
    (code / "search.py").write_text(SWEEP)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=code, check=True, timeout=30)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=code, check=True, timeout=30, capture_output=True)
    with serving(folder / "served") as server:
        began = datetime.now(timezone.utc)
        script(server, code, "train.py", "--lr", "0.1")
        sweep = script(server, code, "search.py")
        odd = [
            {"_step": n, "_timestamp": 1.7e9 + n, "_runtime": n} | {key: f"{n}{key}" for key in HOSTILE} for n in (0, 1)
        ]
        odd[1] |= {"n": {"in": {"ner": 1.5}}, "big": 2**60 + 1, "none": None, "list": [1, {"a": None}]}
        config = {key: {"value": key} for key in HOSTILE if key} | {"deep": {"value": {"x": [1, {"y": None}]}}}
        summary = {key: key for key in HOSTILE} | {"deep": {"er": {"x": 1.5}}}
        log_run(server, "odd", "odd", odd, summary=summary, config=json.dumps(config), displayName="odd")
        paths = {name: f"local/guide/{name}" for name in RUNS} | {"odd": "local/odd/odd"}
        paths["project"] = "local/guide"
        paths["sweep"] = f"local/guide/{sweep}"
        paths["tomorrow"] = f"{began + timedelta(days=1):%Y-%m-%dT%H}"
        (folder / "paths.json").write_text(json.dumps(paths))
        there = folder / "with-wandb"
        there.mkdir()
        by_wandb = script(server, there, guide_examples.__file__, str(folder / "paths.json"))
        copy = Copy(folder / "mirror", server.url, server.key)
        copy.sync("local/guide", "local/odd")
        yield World(server, copy, paths, commit.stdout.decode().strip(), began, by_wandb)


def script(server: Server, folder: Path, *command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=os.environ | server.env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}\n{server.log.read_text()[-2000:]}"
    last = done.stdout.strip().splitlines()[-1:]
    return json.loads(last[0]) if last and last[0][:1] in '{["' else None


class Online:
    """This package with an `Api` that may fetch file bytes from the server."""

    errors = mirror.errors

    @staticmethod
    def Api() -> mirror.Api:
        return mirror.Api(online=True)


@pytest.fixture
def answer(request: pytest.FixtureRequest, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example that a test is named after, run with this package; the real SDK must have said the same.

    `on` is where: a synced `mirror`, that mirror with Api(online=True), or the `served` root itself."""
    on = request.node.callspec.params["on"]
    name = request.function.__name__.removeprefix("test_")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRROR_ROOT", str(world.server.root if on == "served" else world.copy.root))
    for variable, value in world.server.env.items():
        monkeypatch.setenv(variable, value)
    module = Online if on == "online" else mirror
    found = json.loads(json.dumps(guide_examples.EXAMPLES[name](module, world.paths)))
    assert found == world.by_wandb[name]
    return found


anywhere = pytest.mark.parametrize("on", ["mirror", "served"])
with_bytes = pytest.mark.parametrize("on", ["served", "online"])


@anywhere
def test_export_run_data(answer: Any, on: str) -> None:
    assert answer["config"] == {"n_epochs": 5, "lr": 0.1}
    history = answer["history"]
    assert history["_step"] == [0, 1, 2, 3, 4]
    assert history["val"] == [0, 100, 200, 300, 400] and history["loss"] == [0, 0.125, 0.25, 0.375, 0.5]
    assert sorted(history) == ["_runtime", "_step", "_timestamp", "loss", "val"]
    summary = answer["summary"]
    assert (summary["val"], summary["loss"], summary["_step"]) == (400, 0.5, 4)
    assert summary["_timestamp"] == history["_timestamp"][-1] and summary["_runtime"] >= int(history["_runtime"][-1])


@anywhere
def test_querying_multiple_runs(answer: Any, on: str) -> None:
    assert answer["names"] == answer["csv"] == [f"the {name}" for name in RUNS] + SWEPT
    assert answer["configs"][:2] == [{"n_epochs": 5, "lr": 0.1}, {}]
    assert [config["lr"] for config in answer["configs"][5:]] == [0.1, 0.2, 0.3]
    assert answer["losses"] == [0.5, 1 / 600, 2, 1, 3, None, None, None]


@anywhere
def test_mongodb_style_filters(answer: Any, on: str) -> None:
    assert answer == ["Found 2 runs", ["cnn", "mlp"]]


@anywhere
def test_order_of_runs(answer: Any, on: str) -> None:
    assert answer == {
        "-created_at": ["baz", "mlp", "cnn"],
        "+created_at": ["cnn", "mlp", "baz"],
        "+summary_metrics.loss": ["mlp", "cnn", "baz"],
        "-config.batch_size": ["mlp", "cnn", "baz"],
        "+config.experiment_name": ["mlp", "baz", "cnn"],
    }


@anywhere
def test_page_by_page(answer: Any, on: str) -> None:
    assert answer == [8, [*RUNS, "s0.5", "s0.9", "s0.7"], "long", ["long", "cnn"]]


@anywhere
def test_error_handling(answer: Any, on: str) -> None:
    assert answer is True


@anywhere
def test_flush_the_cache(answer: Any, on: str) -> None:
    assert answer == ["finished", "finished"]


@anywhere
def test_get_the_latest_git_commit(answer: Any, on: str, world: World) -> None:
    assert answer == world.commit


@anywhere
def test_get_a_runs_name_and_id(answer: Any, on: str) -> None:
    assert answer == ["short", "the short", "a note", ["a", "b"]]


@anywhere
def test_read_metrics_from_a_run(answer: Any, on: str, world: World) -> None:
    times = [at for at, _ in answer]
    assert times == sorted(times) and world.began.timestamp() < times[0] < world.began.timestamp() + 240
    accuracy = [value for _, value in answer]
    assert [accuracy[1], accuracy[3]] == [0.1, 0.3] and accuracy[0] != accuracy[0] and accuracy[2] != accuracy[2]


@anywhere
def test_filter_runs_by_date(answer: Any, on: str) -> None:
    assert answer == [8, 0]


@anywhere
def test_read_specific_metrics_from_a_run(answer: Any, on: str) -> None:
    assert answer == [[1, 0.1], [3, 0.3]]


@anywhere
def test_compare_two_runs(answer: Any, on: str) -> None:
    assert answer == {
        "batch_size": {"the cnn": 16, "the mlp": 32},
        "n_conv_layers": {"the cnn": 4, "the mlp": 5},
        "optimizer": {"the cnn": "adam", "the mlp": "rmsprop"},
        "experiment_name": {"the cnn": "foo", "the mlp": "bar"},
    }


@anywhere
def test_export_metrics_from_a_single_run_to_csv(answer: Any, on: str) -> None:
    columns, accuracy, steps = answer
    assert columns == ["_runtime", "_step", "_timestamp", "accuracy", "loss"] and steps == [0, 1, 2, 3]
    assert accuracy[1::2] == [0.1, 0.3] and all(value != value for value in accuracy[::2])


@anywhere
def test_export_system_metrics_to_csv(answer: Any, on: str, world: World) -> None:
    columns, times, cpu = answer
    assert "system.cpu" in columns and len(times) == len(cpu) >= 1
    assert all(world.began.timestamp() < at < world.began.timestamp() + 240 for at in times)


@anywhere
def test_get_unsampled_metric_data(answer: Any, on: str) -> None:
    assert answer == [1 / (n + 1) for n in range(600)]


@anywhere
def test_sampled_metric_data(answer: Any, on: str) -> None:
    rows, steps, few, many = answer
    assert (rows, few, many) == (500, 10, 600)
    assert steps[0] == 0 and steps[-1] == 599 and steps == sorted(set(steps))


@anywhere
def test_get_paginated_data_from_history(answer: Any, on: str) -> None:
    assert answer == [{"_step": n, "accuracy": n / 600, "loss": 1 / (n + 1)} for n in range(0, 600, 2)]


@anywhere
def test_export_metrics_from_all_runs_to_csv(answer: Any, on: str) -> None:
    assert answer == [
        [*SWEPT[:1], SWEPT[2], SWEPT[1], "the baz", "the cnn", "the long", "the mlp", "the short"],
        [None, None, None, 3, 2, 1 / 600, 1, 0.5],
    ]


@anywhere
def test_get_the_starting_time_of_a_run(answer: Any, on: str, world: World) -> None:
    assert answer.endswith("Z")
    at = datetime.fromisoformat(answer.replace("Z", "+00:00"))
    assert world.began - timedelta(seconds=2) < at < world.began + timedelta(seconds=240)


@with_bytes
def test_download_a_file_from_a_run(answer: Any, on: str) -> None:
    assert answer == ["the best weights", "the best weights"]


@with_bytes
def test_download_all_files_from_a_run(answer: Any, on: str) -> None:
    assert answer["model-best.h5"] == len("the best weights")
    assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json"} <= answer.keys()
    assert Path("all/model-best.h5").read_text() == "the best weights"


@anywhere
def test_get_runs_from_a_sweep(answer: Any, on: str) -> None:
    assert answer == sorted(SWEPT)


@anywhere
def test_get_the_best_run_from_a_sweep(answer: Any, on: str) -> None:
    metric = {"name": "val_acc", "goal": "maximize"}
    assert answer == ["acc 0.9", "-summary_metrics.val_acc", metric, "the sweep"]


@with_bytes
def test_download_the_best_model_file_from_a_sweep(answer: Any, on: str) -> None:
    assert answer == ["Best run acc 0.9 with 0.9% val accuracy", "model of 0.9"]


@anywhere
def test_download_system_metrics_data(answer: Any, on: str) -> None:
    rows, columns = answer
    assert rows >= 1 and "system.cpu" in columns


@anywhere
def test_get_the_command_that_ran_the_run(answer: Any, on: str) -> None:
    program, read = answer
    assert program == ["python", read, "--lr", "0.1"] and read.endswith("train.py")


# -- the same calls agree ------------------------------------------------------------------------------------------


@anywhere
def test_attributes(answer: Any, on: str) -> None:
    assert answer["short"]["config"] == {"n_epochs": 5, "lr": 0.1} and answer["short"]["lastHistoryStep"] == 4
    assert answer["short"]["historyLineCount"] == 5 and answer["long"]["lastHistoryStep"] == 599
    assert "_wandb" in answer["short"]["raw"] and answer["cnn"]["repr"] == "<Run local/guide/cnn (finished)>"
    assert answer["short"]["system_metrics"]["system.cpu"] >= 0 and answer["long"]["system_metrics"] == {}


@anywhere
def test_a_summary(answer: Any, on: str) -> None:
    assert answer[1:4] == [1.5, 1.5, None] and answer[4:7] == [3, True, {"x": 1.5}]
    assert answer[7] == [key for key in sorted(HOSTILE) if key and key.strip() == key]


@anywhere
def test_histories_as_lists(answer: Any, on: str) -> None:
    assert [(row["_step"], row["loss"]) for row in answer["all"]] == [(0, 5), (1, 4), (2, 3), (3, 2)]
    assert answer["keys"] == [{"_step": 1, "loss": 4, "accuracy": 0.1}, {"_step": 3, "loss": 2, "accuracy": 0.3}]
    steps = [row["_step"] for row in answer["one key"]]
    assert len(steps) == 7 and steps[0] == 0 and steps[-1] == 598 and all(step % 2 == 0 for step in steps)
    assert [row["loss"] for row in answer["x"]] == [5, 4, 3, 2] and list(answer["x"][0]) == ["_timestamp", "loss"]
    assert answer["key of none"] == [] and answer["no system metrics"] == 0 and answer["system"]
    assert len(answer["samples"]) == 13 and [row["_step"] for row in answer["one sample"]] == [0]


@anywhere
def test_scans(answer: Any, on: str) -> None:
    assert answer["range"] == [{"_step": n, "accuracy": n / 600} for n in range(10, 21, 2)]
    assert (answer["again"], answer["small pages"]) == (6, 100)
    assert answer["odd"][1]["n"] == {"in": {"ner": 1.5}} and answer["odd"][1]["big"] == 2**60 + 1


@anywhere
def test_odd_keys(answer: Any, on: str) -> None:
    for key in HOSTILE:
        assert answer["each"][key] == [{"_step": n, key: f"{n}{key}"} for n in (0, 1)], key
    assert answer["all"] == [{"_step": n} | {key: f"{n}{key}" for key in HOSTILE if key} for n in (0, 1)]
    assert answer["nested"] == [{"_step": 1, "n.in.ner": 1.5}]
    assert answer["config"] == {key: key for key in HOSTILE if key} | {"deep": {"x": [1, {"y": None}]}}
    assert set(HOSTILE) <= set(answer["frame"])


@anywhere
def test_frames(answer: Any, on: str) -> None:
    assert answer[0]["accuracy"] == answer[1]["accuracy"] == "float64" and answer[1]["loss"] == "int64"
    assert answer[2] == ["_step", "accuracy", "loss"]


@anywhere
def test_histories_of_many_runs(answer: Any, on: str) -> None:
    assert [row["run_id"] for row in answer[0]] == ["cnn", "cnn", "mlp"]
    assert answer[1:] == [["_step", "loss", "run_id"], [5, 4, 3, 2, 1]]


@anywhere
def test_files(answer: Any, on: str) -> None:
    listed, json_files, named, count = answer
    assert count == len(listed) and named == ["model-best.h5"]
    assert {"wandb-metadata.json", "wandb-summary.json"} <= set(json_files)


@anywhere
def test_projects(answer: Any, on: str) -> None:
    assert answer[:2] == [["guide", "odd"], ["local", "guide"]] and answer[3] == "local"


@anywhere
def test_artifacts(answer: Any, on: str) -> None:
    attributes, aliases, entries, maker, users, versions, logged, used, collections, nothing = answer
    assert (attributes["name"], attributes["source_name"], aliases) == ("net:best", "net:v1", ["best", "latest"])
    assert (attributes["metadata"], attributes["size"]) == ({"layers": [4, 5]}, 3)
    assert (entries, maker, users) == (["model.h5"], "cnn", ["mlp"])
    assert versions == ["net:v1", "net:v0"] and sorted(logged) == ["net:v0", "net:v1"] and used == ["net:v1"]
    assert collections == ["net"] and nothing is False


@with_bytes
def test_artifact_bytes(answer: Any, on: str) -> None:
    assert answer == ["old", ["model.h5"]]


@anywhere
def test_sweeps(answer: Any, on: str, world: World) -> None:
    sweep, of_run, name, runs, _ = answer
    assert sweep["id"] == of_run == name == world.paths["sweep"].rpartition("/")[2] and runs == 3
    assert (sweep["name"], sweep["order"]) == ("the sweep", "-summary_metrics.val_acc")
    assert sweep["config"]["parameters"] == {"lr": {"values": [0.1, 0.2, 0.3]}}


@anywhere
def test_from_paths(answer: Any, on: str) -> None:
    assert answer == ["Project", "Run"]


# -- what a mirror adds, and what it refuses -----------------------------------------------------------------------


def test_the_examples_are_all_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert guide_examples.EXAMPLES.keys() <= tested


def test_specific_metrics_come_with_their_times(world: World) -> None:
    """The guide prints row["_timestamp"] beside a metric that was asked for with keys=[..]."""
    run = mirror.Api(world.copy.root).run(world.paths["cnn"])
    printed = [(row["_timestamp"], row["accuracy"]) for _, row in run.history(keys=["accuracy"]).iterrows()]
    every = [(row["_timestamp"], row["accuracy"]) for row in run.scan_history() if "accuracy" in row]
    assert printed == every and [value for _, value in printed] == [0.1, 0.3]


def test_bytes_that_are_not_mirrored(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = mirror.Api(world.copy.root).run(world.paths["short"]).file("model-best.h5")
    assert not file.held and file.size == len("the best weights")
    with pytest.raises(mirror.CommError, match=r"mirror sync local/guide/short --files.*online=True"):
        file.download()
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_arrive_damaged_are_not_kept(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manifest that passes the proxy has a wrong md5."""

    def lie(request: Request, body: Any) -> Any:
        return json.loads(json.dumps(body).replace(md5(b"the best weights"), md5(b"something else")))

    with proxied(world.server) as proxy:
        Copy(tmp_path / "m", proxy.url, world.server.key).sync("local/guide/short")
        proxy.after = lie
        monkeypatch.setenv("WANDB_BASE_URL", proxy.url)
        run = mirror.Api(tmp_path / "m", online=True, api_key=world.server.key).run("short")
        with pytest.raises(mirror.CommError, match=r"arrived damaged: its md5 is not"):
            run.file("model-best.h5").download(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_viewer_is_asked_online_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", world.server.url)
    assert mirror.Api(world.copy.root, online=True, api_key=world.server.key).viewer.username == "local"


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.mark.parametrize(
    "edit",
    [
        lambda run: run.summary.update({"key": 1}),
        lambda run: run.update(),
        lambda run: run.upload_file("file_name.extension"),
        lambda run: run.file("model-best.h5").delete(),
        lambda run: run.delete(),
        lambda run: setattr(run, "name", "new"),
    ],
)
def test_edits_are_refused(world: World, edit: Any) -> None:
    run = mirror.Api(world.copy.root).run(world.paths["short"])
    run.summary["accuracy"] = 0.9
    run.config["key"] = 1
    with pytest.raises(mirror.CommError, match=r"at their server, and this is a mirror"):
        edit(run)
    again = mirror.Api(world.copy.root).run(world.paths["short"])
    assert "accuracy" not in again.summary and "key" not in again.config and again.name == "the short"
