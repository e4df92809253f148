"""What rows, summaries and manifests say of artifacts, logged by the real SDK, leads to the copies after a push."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commanding import call
from pushing import Lab, logged_lab, opened
from serving import Server, client, serving

from mirror.importers.everything import Everything, push_everything
from mirror.importers.places import Namespace
from mirror.importers.push import PushOptions
from mirror.query.runs import Selection, rids
from mirror.store import Reader

pytestmark = pytest.mark.slow

LOG = r"""
import json, wandb, numpy as np
def img(n): return wandb.Image(np.full((8, 8, 3), n, np.uint8), caption=f"c{n}")
def table(*values): return wandb.Table(columns=["a"], data=[[v] for v in values])
with wandb.init(project="a-data", id="maker") as run:
    a = wandb.Artifact("data", type="dataset")
    a.add(wandb.Table(columns=["a", "im"], data=[[1, img(1)], [2, img(2)]]), "t")
    a.add(img(3), "dir/\u00fc m")
    run.log_artifact(a).wait()
with wandb.init(project="train", id="user") as run:
    a = run.use_artifact("local/a-data/data:latest")
    im, t = a.get("dir/\u00fc m"), a.get("t")
    run.log({"t": t, "im": im, "plain": 1, "text": "wandb-artifact://" + "ab" * 20 + "/x"})
    run.log({"list": [im, im], "nested": {"deep": {"im": im}}, "note": {"path": im.to_json(run)["artifact_path"]}})
    run.log({"mixed": wandb.Table(columns=["im"], data=[[im], [img(9)]])})
    run.log({"joined": wandb.JoinedTable(t, table(1), "a")})
    for n in range(3):
        run.log({"pics": wandb.Table(columns=["im"], data=[[img(10 + n)]])})
    for n in (1, 1, 2):
        run.log({"often": table(n)})
    inc = wandb.Table(columns=["x"], log_mode="INCREMENTAL")
    for n in range(3):
        inc.add_data(n)
        run.log({"inc": inc})
    for n in range(2):
        own = wandb.Artifact("mine", type="dataset")
        shown = table(f"own{n}")
        own.add(shown, "o")
        run.log_artifact(own).wait()
        run.log({"shown": shown})
    run.summary["only"] = table("summary")
    run.summary["best"] = im
    run.config["data"] = a
"""

READ = r"""
import base64, hashlib, json, os, re, sys, requests, wandb
api = wandb.Api()
def ask(name):
    q = {"query": "query C($i: ID!) { clientIDMapping(clientID: $i) { serverID } }", "variables": {"i": name}}
    got = requests.post(os.environ["WANDB_BASE_URL"] + "/graphql", json=q, auth=("api", os.environ["WANDB_API_KEY"]))
    return (got.json()["data"]["clientIDMapping"] or {}).get("serverID")
def found(ref):
    scheme, name, path = re.fullmatch("wandb-(client-)?artifact://([0-9a-zA-Z]+)/(.*)", ref).groups()
    server = ask(name) if scheme else base64.b64encode(bytes.fromhex(name)).decode()
    try:
        art = api._artifact_from_id(server)
    except Exception:
        art = None
    if art is None:
        return "nowhere"
    with open(art.get_entry(path).download(), "rb") as f:
        got = hashlib.sha256(f.read()).hexdigest()[:16]
    value = art.get(path.rsplit(".", 2)[0])
    shown = getattr(value, "data", None) or getattr(value, "_caption", None)
    if isinstance(shown, list):
        shown = [[str(type(c)) if isinstance(c, wandb.Image) else c for c in row] for row in shown]
    return f"{art.project}/{art.name}/{path} {got} {shown}"
def walk(value, typed=False):
    if isinstance(value, dict):
        typed = typed or isinstance(value.get("_type"), str)
        return {k: walk(v, typed) for k, v in value.items() if k != "_latest_artifact_path"}
    if isinstance(value, (list, tuple)):
        return [walk(v, typed) for v in value]
    return found(value) if typed and isinstance(value, str) and value.startswith("wandb-") else value
run = api.run(sys.argv[1])
summary = json.loads(json.dumps(dict(run.summary), default=dict))
held = run.config["data"]
of_config = api._artifact_from_id(held["id"])
assert (of_config.version, of_config.collection.name) == (held["version"], held["sequenceName"]), held
made = {"config": f"{of_config.project}/{of_config.name} {of_config.digest}"}
made |= {"rows": [walk(row) for row in run.scan_history()], "summary": walk(summary)}
made["refs"] = sorted(
    f"{a.name}/{e.path} " + found(e.ref) for a in run.logged_artifacts() for e in a.manifest.entries.values()
    if (e.ref or "").startswith("wandb-artifact:"))
print(json.dumps(made))
"""
PLACE = {Namespace("local", "train"): Namespace("local", "train2")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    mirrored = ["local/a-data", "local/train"]
    with logged_lab(tmp_path_factory.mktemp("lab"), LOG, READ, "local/train/user", mirrored=mirrored) as lab:
        yield lab


def push(lab: Lab, there: Server, *kinds: str) -> Everything:
    with Reader(lab.copy.root) as reader:
        chosen = rids(reader, Selection((), None))
        return push_everything(reader, chosen, opened(there), PushOptions(2, remapping=PLACE), kinds=kinds)


def test_media_lead_to_the_same_bytes_there(lab: Lab, tmp_path: Path) -> None:
    text = str(lab.logged)
    assert len(lab.logged["rows"]) == 15 and "nowhere" not in text and len(lab.logged["refs"]) >= 3
    assert len(re.findall("a-data/data:v0/", text)) >= 10 and "train/mine:v1/o.table.json" in text
    assert [len(re.findall(f"run-user-pics:v{n}/pics", str(lab.logged["rows"]))) for n in range(3)] == [1, 1, 1]
    assert lab.logged["config"].startswith("a-data/data:v0 ")
    with serving(tmp_path / "there") as there:
        done = push(lab, there, "runs", "artifacts")
        assert done.ok, (done.failures, done.errors)
        notes = {pair: held[1] for pair, held in done.kinds["runs"].notes.items() if pair[1] == "references"}
        assert notes == {("changed", "references"): 12}
        assert not [pair for pair in done.kinds["artifacts"].notes if pair[1] == "reference"]
        got = client(there, READ, "local/train2/user")
        assert json.loads(json.dumps(got).replace("train2/", "train/")) == lab.logged
        compared = verified(lab, there, 0)["compared"]
        assert compared["references that lead to copies"] >= 3

        # A config that names the artifact as the source does, as before artifacts are there, is mended.
        (config,) = lab.copy.sql("select config_raw from runs_raw where run_id = 'user'")[0]
        told = json.loads(there.graphql(CONFIG)["project"]["run"]["config"])
        there.upsert("train2", "user", config=json.dumps(told | {"data": json.loads(config)["data"]}))
        (one,) = verified(lab, there, 1)["listed"]
        assert (one["where"], one["stream"], one["key"]) == ("local/train/user", "config", "/data/value/id")
        again = push(lab, there, "runs")
        assert (again.ok, again.kinds["runs"].skipped) == (True, 2)
        verified(lab, there, 0)


CONFIG = """query { project(name: "train2", entityName: "local") { run(name: "user") { config } } }"""


def verified(lab: Lab, there: Server, code: int) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", there.key)
        done = call("verify", "--against", there.url, "--format", "json", root=lab.copy.root)
    found: dict[str, Any] = json.loads(done.out)["against"]
    assert done.code == code, found
    return found
