"""Logging into `mirror serve` with the real `wandb` SDK, and what the server holds afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server, client, serving

from mirror.store import Reader

RUN = """
query($p: String!, $r: String!) { project(name: $p, entityName: "local") { run(name: $r) {
  id name displayName state tags group jobType notes description host config summaryMetrics systemMetrics historyKeys
  historyLineCount eventsLineCount logLineCount history(samples: 100000) events(samples: 100000) createdAt heartbeatAt
  files(first: 1000) { edges { node { name sizeBytes md5 mimetype } } } user { username }
  logLines(first: 10000) { edges { node { number timestamp level line } } } } } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("logging") / "mirror", "--crash-after", "4") as found:
        yield found


def held(server: Server, project: str, run: str) -> dict[str, Any]:
    found: dict[str, Any] = server.graphql(RUN, p=project, r=run)["project"]["run"]
    return found


def count(server: Server, project: str, run: str) -> int:
    """Its rows; 0 while there is no such run."""
    found = (server.graphql(RUN, p=project, r=run)["project"] or {}).get("run")
    return int(found["historyLineCount"]) if found else 0


def rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in run["history"]]


def wait_for_state(server: Server, project: str, run: str, state: str, seconds: float = 300) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while (found := held(server, project, run))["state"] != state:
        assert time.monotonic() < end, f"{run} is {found['state']}, not {state}"
        time.sleep(0.1)
    return found


EVERYTHING = """
import json, sys
import numpy as np
import wandb
settings = wandb.Settings(x_stats_sampling_interval=0.2, x_stats_buffer_size=100)
run = wandb.init(project="p", id="all", name="a name", tags=["b", "a"], notes="some *notes*", group="g", job_type="j",
                 config={"lr": 0.1, "layers": [1, 2], "opt": {"name": "adam"}, "flag": True, "none": None},
                 settings=settings)
run.define_metric("epoch")
run.define_metric("val/*", step_metric="epoch", summary="min")
for i in range(20):
    print("line", i)
    run.log({"loss": 1 / (i + 1), "epoch": i // 5, "val/acc": i, "nested": {"a": {"b": i}}, "text": "t%d" % i})
print("to stderr", file=sys.stderr)
run.log({"image": wandb.Image(np.zeros((3, 5, 3), dtype=np.uint8)), "hist": wandb.Histogram([1, 2, 2, 3]),
         "table": wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, None]])})
run.config["later"] = 7
run.summary["best"] = 0.5
open("notes.txt", "w").write("hello")
run.save("notes.txt", policy="now")
import time
while len(run._system_metrics.get("cpu", ())) < 4:
    time.sleep(0.05)
run.finish()
print("null")
"""


def test_a_run_with_everything_arrives_whole(server: Server) -> None:
    client(server, EVERYTHING)
    run = wait_for_state(server, "p", "all", "finished")
    assert (run["displayName"], run["notes"], run["group"], run["jobType"]) == ("a name", "some *notes*", "g", "j")
    assert sorted(run["tags"]) == ["a", "b"]
    assert run["user"]["username"] == "local"
    config = {k: v["value"] for k, v in json.loads(run["config"]).items()}
    internal = config.pop("_wandb")
    assert config == {
        "lr": 0.1, "layers": [1, 2], "opt": {"name": "adam"}, "flag": True, "none": None, "later": 7
    }  # fmt: skip
    assert [m["1"] for m in internal["m"] if "1" in m] and any(m.get("2") == "val/*" for m in internal["m"])
    logged = rows(run)
    assert [r["_step"] for r in logged] == list(range(21)) and run["historyLineCount"] == 21
    for i, row in enumerate(logged[:20]):
        assert (row["loss"], row["epoch"], row["val/acc"]) == (1 / (i + 1), i // 5, i)
        assert (row["nested"], row["text"]) == ({"a": {"b": i}}, f"t{i}")
    media = logged[20]
    assert [media[k]["_type"] for k in ("image", "hist", "table")] == ["image-file", "histogram", "table-file"]
    summary = json.loads(run["summaryMetrics"])
    assert summary["best"] == 0.5 and summary["loss"] == 1 / 20 and summary["val/acc"] == {"min": 0}
    keys = run["historyKeys"]
    assert keys["lastStep"] == 20
    assert keys["keys"]["loss"]["typeCounts"] == [{"type": "number", "count": 20}]
    assert keys["keys"]["loss"]["monotonic"] is False and keys["keys"]["_step"]["monotonic"] is True
    assert keys["keys"]["nested.a.b"]["previousValue"] == 19
    assert keys["keys"]["image"]["typeCounts"] == [{"type": "image-file", "count": 1}]
    events = [json.loads(text) for text in run["events"]]
    assert len(events) == run["eventsLineCount"] >= 3
    assert any("system.cpu" in e for e in events)
    assert "system.cpu" in json.loads(run["systemMetrics"])
    lines = [e["node"] for e in run["logLines"]["edges"]]
    assert [n["number"] for n in lines] == list(range(len(lines))) and run["logLineCount"] == len(lines)
    assert [n["line"] for n in lines if n["line"].startswith("line ")] == [f"line {i}" for i in range(20)]
    assert all(n["timestamp"].endswith("Z") for n in lines)
    assert [n["level"] for n in lines if n["line"] == "to stderr"] == ["error"]
    files = {e["node"]["name"]: e["node"] for e in run["files"]["edges"]}
    assert {media["image"]["path"], media["table"]["path"], "notes.txt", "wandb-metadata.json"} <= set(files)
    assert files["notes.txt"]["sizeBytes"] == 5
    assert files["notes.txt"]["md5"] == "XUFAKrxLKna5cZ2REBfFkg=="  # base64 of the md5 of "hello"
    assert files[media["image"]["path"]]["mimetype"] == "image/png"


def test_the_artifact_of_a_table_is_kept_with_its_bytes(server: Server) -> None:
    client(
        server,
        "import wandb\nrun = wandb.init(project='p', id='table')\n"
        "run.log({'t': wandb.Table(columns=['a'], data=[[1], [2]])})\nrun.finish()",
    )
    with Reader(server.root) as reader:
        query = (
            "select e.sha256, a.state, a.type, a.version from artifact_entries e "
            "join artifacts a using (storage_id) where a.run_id = 'table'"
        )
        [(sha256, *rest)] = reader.connect().execute(query).fetchall()
    assert rest == ["COMMITTED", "run_table", 0]
    stored = json.loads((server.root / "blobs" / "sha256" / sha256[:2] / sha256).read_text())
    assert stored["data"] == [[1], [2]]


def test_a_model_logged_as_an_artifact_is_accepted_and_can_be_used(server: Server) -> None:
    seen = client(
        server,
        """
import json, wandb
run = wandb.init(project="p", id="model")
for text in ("one", "two", "two"):
    open("model.bin", "w").write(text)
    artifact = wandb.Artifact("net", type="model", metadata={"acc": 1})
    artifact.add_file("model.bin")
    run.log_artifact(artifact).wait()
    print(artifact.version)
run.finish()
print(json.dumps(artifact.version))
""",
    )
    assert seen == "v1"  # the same bytes twice are one version


def test_a_run_without_rows_or_config(server: Server) -> None:
    client(server, "import wandb\nwandb.init(project='p', id='empty').finish()")
    run = wait_for_state(server, "p", "empty", "finished")
    assert run["history"] == [] and run["historyKeys"] is None and run["historyLineCount"] == 0


def test_a_failing_run_is_failed(server: Server) -> None:
    script = "import wandb\nrun = wandb.init(project='p', id='fails')\nrun.log({'x': 1})\nraise ValueError('boom')"
    env = os.environ | server.env
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=server.env["WANDB_DIR"], timeout=300, capture_output=True
    )
    assert done.returncode == 1
    run = wait_for_state(server, "p", "fails", "failed")
    assert [r["x"] for r in rows(run)] == [1]
    with Reader(server.root) as reader:
        found = reader.connect().execute("select state, exit_code from runs where run_id = 'fails'").fetchone()
    assert found == ("failed", 1)


@pytest.mark.slow
def test_a_killed_client_leaves_a_crashed_run_with_what_was_acknowledged(server: Server) -> None:
    script = (
        "import itertools, time, wandb\n"
        "run = wandb.init(project='p', id='killed', settings=wandb.Settings(x_file_stream_transmit_interval=0.2))\n"
        "for i in itertools.count():\n    run.log({'x': i})\n    time.sleep(0.02)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | server.env,
        cwd=server.env["WANDB_DIR"],
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 300
        while (before := count(server, "p", "killed")) < 30:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, 9)  # the client and its sidecar, a session of their own
        process.wait(300)
    run = wait_for_state(server, "p", "killed", "crashed")
    logged = rows(run)
    assert [r["x"] for r in logged] == list(range(len(logged))) and len(logged) >= before
    # A crashed run whose client comes back goes on.
    row = json.dumps({"_step": 10**6, "x": -1})
    began = time.monotonic()
    server.stream("p", "killed", files={"wandb-history.jsonl": {"offset": len(logged), "content": [row]}})
    assert held(server, "p", "killed")["state"] == "running" or time.monotonic() - began > 4
    server.stream("p", "killed", complete=True, exitcode=0)
    run = wait_for_state(server, "p", "killed", "finished")
    assert [r["x"] for r in rows(run)] == [*range(len(logged)), -1]


RESUME = """
import json, sys
import wandb
mode, run_id, n = sys.argv[1:]
try:
    run = wandb.init(project="resume", id=run_id, resume=mode, config={"mode": mode, mode: 1})
except Exception as exc:
    print(json.dumps({"error": str(exc)}))
    raise SystemExit
first = run.starting_step
for i in range(int(n)):
    print("step", first + i)
    run.log({"x": first + i})
resumed = run.resumed
run.finish()
print(json.dumps({"first": first, "resumed": resumed}))
"""


def test_resume_allow_and_must_go_on_where_the_run_stopped(server: Server) -> None:
    assert client(server, RESUME, "allow", "r1", "5") == {"first": 0, "resumed": False}
    wait_for_state(server, "resume", "r1", "finished")
    assert client(server, RESUME, "allow", "r1", "3")["first"] == 5
    wait_for_state(server, "resume", "r1", "finished")
    assert client(server, RESUME, "must", "r1", "2") == {"first": 8, "resumed": True}
    run = wait_for_state(server, "resume", "r1", "finished")
    assert [r["_step"] for r in rows(run)] == list(range(10)) == [r["x"] for r in rows(run)]
    config = json.loads(run["config"])
    assert config["mode"]["value"] == "must" and config["allow"]["value"] == config["must"]["value"] == 1
    assert run["historyKeys"]["keys"]["x"]["typeCounts"] == [{"type": "number", "count": 10}]
    lines = [e["node"]["line"] for e in run["logLines"]["edges"]]
    assert [line for line in lines if line.startswith("step")] == [f"step {i}" for i in range(10)]


def test_resume_must_needs_a_run_and_never_needs_none(server: Server) -> None:
    assert "does not exist" in client(server, RESUME, "must", "absent", "1")["error"]
    client(server, RESUME, "never", "r2", "2")
    wait_for_state(server, "resume", "r2", "finished")
    assert "already exists" in client(server, RESUME, "never", "r2", "1")["error"]
    assert len(rows(held(server, "resume", "r2"))) == 2


def test_a_deleted_run_is_gone_and_its_id_is_not_used_again(server: Server) -> None:
    script = """
import json, wandb
wandb.init(project="gone", id="d1").finish()
run = wandb.Api().run("local/gone/d1")
run.delete()
seen = []
try:
    wandb.Api().run("local/gone/d1")
except Exception as exc:
    seen.append(str(exc))
try:
    wandb.init(project="gone", id="d1", settings=wandb.Settings(init_timeout=90))
except Exception as exc:
    seen.append(str(exc))
print(json.dumps(seen))
"""
    seen = client(server, script)
    assert len(seen) == 2 and "not find" in seen[0].lower(), seen
    assert "deleted" in seen[1], seen


def test_edits_through_the_api_stay_edits(server: Server) -> None:
    script = """
import json, wandb
run = wandb.init(project="edit", id="e1", config={"a": 1}, tags=["old"])
run.log({"x": 1})
run.finish()
run = wandb.Api().run("local/edit/e1")
run.config["b"] = [1, 2]
run.tags.append("new")
run.notes = "edited"
run.display_name = "renamed"
run.summary["y"] = 2
run.update()
open("late.txt", "w").write("late")
run.upload_file("late.txt")
again = wandb.Api().run("local/edit/e1")
print(json.dumps([again.state, again.config, again.tags, again.notes, again.name, again.summary["y"],
                  again.summary["x"], [f.name for f in again.files()][-4:]]))
"""
    state, config, tags, notes, name, y, x, files = client(server, script)
    assert (state, config, tags, notes) == ("finished", {"a": 1, "b": [1, 2]}, ["old", "new"], "edited")
    assert (name, y, x) == ("renamed", 2, 1)
    assert "late.txt" in files


@pytest.mark.slow
def test_twelve_clients_log_at_the_same_time(server: Server) -> None:
    script = (
        "import sys, wandb\n"
        "run = wandb.init(project='many', id=sys.argv[1], config={'n': int(sys.argv[1][1:])})\n"
        "for i in range(300): run.log({'x': i, 'me': sys.argv[1]})\nrun.finish()"
    )
    env, cwd = os.environ | server.env, server.env["WANDB_DIR"]
    processes = [subprocess.Popen([sys.executable, "-c", script, f"m{n}"], env=env, cwd=cwd) for n in range(12)]
    assert [p.wait(240) for p in processes] == [0] * 12
    for n in range(12):
        run = wait_for_state(server, "many", f"m{n}", "finished")
        assert [(r["x"], r["me"]) for r in rows(run)] == [(i, f"m{n}") for i in range(300)]
