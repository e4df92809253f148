"""Changing what is on `mirror serve` through `wandb.Api()`: documents, attributes, files, states, deletion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server, client, serving

from mirror.records import FileEntry, Run, RunKey
from mirror.store import Reader, Writer

RUN = """query R($p: String!, $r: String!, $e: String = "local") { project(name: $p, entityName: $e) { run(name: $r) {
  id name displayName notes tags group jobType state config summaryMetrics stopped historyLineCount
  files { edges { node { id name sizeBytes md5 } } } } } }"""
ELSEWHERE = RunKey("api.wandb.ai", "UnVuOnYx", "team", "theirs", "far")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("edits") / "mirror"
    writer = Writer(root)
    writer.put_run(Run(ELSEWHERE, name="far away", state="finished", config='{"a": {"value": 1}}', summary="{}"))
    writer.put_files(ELSEWHERE, [FileEntry("a.txt", 1)])
    writer.commit()
    writer.close()
    with serving(root) as found:
        yield found


def held(server: Server, run: str, project: str = "p", entity: str = "local") -> dict[str, Any]:
    found: dict[str, Any] = server.graphql(RUN, p=project, r=run, e=entity)["project"]["run"]
    return found


def config_of(run: dict[str, Any]) -> dict[str, Any]:
    return {k: v["value"] for k, v in json.loads(run["config"]).items() if k != "_wandb"}


EDITS = """
import json, wandb
with wandb.init(project="p", id="edited", config={"lr": 0.1, "gone": 1, "nested": {"a": [1, 2]}}, name="before",
                tags=["old"], notes="first") as run:
    run.log({"loss": 0.5, "acc": 1})
    with open("model.txt", "w") as out:
        out.write("weights")
    run.save("model.txt", policy="now")

run = wandb.Api().run("local/p/edited")
run.config["lr"] = 0.25
run.config["new"] = {"deep": [1, None, "\\u00fc"], "big": 2**60}
del run.config["gone"]
run.display_name = "after"
run.notes = "second *line*"
run.tags = ["b", "a", "b c"]
run.group = "g2"
run.job_type = "eval"
run.update()
run.summary.update({"best": 0.25, "not": float("nan"), "nested": {"x": {"y": 1}}})
run.summary["later"] = "text"
run.summary.update()
with open("extra.json", "w") as out:
    out.write('{"a": 1}')
uploaded = run.upload_file("extra.json")
again = wandb.Api().run("local/p/edited")
got = json.load(again.file("extra.json").download(replace=True))
again.file("model.txt").delete()
print(json.dumps({
    "config": dict(again.config), "name": again.display_name, "notes": again.notes, "tags": sorted(again.tags),
    "group": again.group, "job": again.job_type, "state": again.state, "uploaded": [uploaded.name, uploaded.size],
    "got": got, "files": sorted(f.name for f in wandb.Api().run("local/p/edited").files()),
    "summary": again.summary._json_dict,
}))
"""


def test_a_run_is_edited_by_the_sdk(server: Server) -> None:
    found = client(server, EDITS)
    config = {"lr": 0.25, "nested": {"a": [1, 2]}, "new": {"deep": [1, None, "ü"], "big": 2**60}}
    assert found["config"] == config
    assert (found["name"], found["notes"], found["tags"]) == ("after", "second *line*", ["a", "b", "b c"])
    assert (found["group"], found["job"], found["state"]) == ("g2", "eval", "finished")
    summary = found["summary"]
    assert (summary["loss"], summary["best"], summary["nested"], summary["later"]) == (
        0.5, 0.25, {"x": {"y": 1}}, "text"
    )  # fmt: skip
    assert summary["not"] is None  # the SDK sends NaN as null here
    assert found["uploaded"] == ["extra.json", 8] and found["got"] == {"a": 1}
    assert "extra.json" in found["files"] and "model.txt" not in found["files"]
    run = held(server, "edited")
    assert config_of(run) == config and "_wandb" in json.loads(run["config"])
    assert run["historyLineCount"] == 1
    with Reader(server.root) as reader:
        query = "select name, notes, \"group\", job_type, state, json_extract_string(summary, '$.later') from runs"
        rows = reader.connect().execute(f"{query} where run_id = 'edited'").fetchall()
    assert rows == [("after", "second *line*", "g2", "eval", "finished", "text")]


@pytest.mark.parametrize("ended", [False, True], ids=["while it logs", "after its end"])
def test_edits_are_kept_wherever_the_run_is(server: Server, ended: bool) -> None:
    name = f"e{ended}"
    run_id = server.upsert("p", name, config='{"a": {"value": 1}}')["id"]
    row = json.dumps({"_step": 0, "x": 1})
    body: dict[str, Any] = {"files": {"wandb-history.jsonl": {"offset": 0, "content": [row]}}}
    if ended:
        body |= {"complete": True, "exitcode": 3}
    server.stream("p", name, **body)
    change = {"id": run_id, "tags": [], "notes": "", "summaryMetrics": '{"x": NaN, "s": "NaN"}', "displayName": "new"}
    server.graphql("mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }", i=change)
    for _ in range(2):
        run = held(server, name)
        summary = json.loads(run["summaryMetrics"])
        assert math.isnan(summary["x"]) and summary["s"] == "NaN"
        assert (run["displayName"], run["notes"], run["tags"]) == ("new", "", [])
        assert run["state"] == ("failed" if ended else "running") and run["historyLineCount"] == 1
        server.kill()
        server.start()


DELETE = """
import json, sys, wandb
run = wandb.init(project="p", id="doomed", settings=wandb.Settings(init_timeout=90))
artifact = wandb.Artifact("weights", type="model")
with artifact.new_file("w.txt") as out:
    out.write("1")
run.log_artifact(artifact)
run.finish()
api = wandb.Api()
api.run("local/p/doomed").delete(delete_artifacts=True)
said = []
for what in (lambda: wandb.Api().run("local/p/doomed"), lambda: wandb.Api().artifact("local/p/weights:v0"),
             lambda: wandb.init(project="p", id="doomed", settings=wandb.Settings(init_timeout=90))):
    try:
        what()
        said.append(None)
    except Exception as e:
        said.append(f"{type(e).__name__}: {e}")
print(json.dumps([said, [r.id for r in wandb.Api().runs("local/p") if r.id == "doomed"]]))
"""


def test_a_deleted_run_is_gone_and_its_id_is_refused(server: Server) -> None:
    (run, artifact, again), listed = client(server, DELETE)
    assert "doomed" in run and listed == []
    assert artifact is not None and "weights" in artifact
    assert "was deleted" in again and "choose another one" in again
    answer = server.stream("p", "doomed", complete=True, exitcode=0)
    assert answer.status_code == 404


STATES = """
import json, wandb
api = wandb.Api()
api.create_project("made", "local")
created = api.create_run(project="made", entity="local", run_id="created")
states = [wandb.Api().run("local/made/queued").state]
run = wandb.Api().run("local/made/queued")
run.update_state("failed"); states.append(wandb.Api().run("local/made/queued").state)
run = wandb.Api().run("local/made/queued")
run.update_state("pending"); states.append(wandb.Api().run("local/made/queued").state)
try:
    wandb.Api().run("local/made/queued").update_state("finished")
except Exception as e:
    states.append(str(e))
wandb.Api().run("local/made/created").stop()
project = wandb.Api().project("made", "local")
print(json.dumps({"states": states, "projects": [p.name for p in wandb.Api().projects("local")], "id": project.name}))
"""


def test_states_projects_and_stop(server: Server) -> None:
    server.upsert("made", "queued", state="pending")
    found = client(server, STATES)
    assert found["states"][:3] == ["pending", "failed", "pending"]
    assert "cannot be made `finished`" in found["states"][3]
    assert {"made", "p"} <= set(found["projects"]) and found["id"] == "made"
    assert held(server, "created", "made")["stopped"] is True
    assert held(server, "created", "made")["state"] == "running"


FOREIGN = """
import json, wandb
said = []
def tries(what):
    try:
        what()
        said.append(None)
    except Exception as e:
        said.append(str(e))
run = wandb.Api().run("team/theirs/far")
run.config["a"] = 2
tries(run.update)
tries(lambda: run.summary.update({"x": 1}))
tries(run.delete)
tries(run.stop)
open("b.txt", "w").write("b")
tries(lambda: run.upload_file("b.txt"))
tries(lambda: wandb.Api().run("team/theirs/far").file("a.txt").delete())
print(json.dumps([said, wandb.Api().run("team/theirs/far").config["a"]]))
"""


def test_what_was_mirrored_from_elsewhere_cannot_be_changed(server: Server) -> None:
    said, value = client(server, FOREIGN)
    assert len(said) == 6 and value == 1
    for text in said:
        assert text and "mirrored from `api.wandb.ai`" in text, said
