"""Artifacts logged by the real SDK at one server, mirrored, pushed to another, read there by the real `wandb.Api()`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from liar import Action, Answer, Request
from pushing import Lab, logged_lab, opened
from serving import Server, client, serving
from syncing import Copy, Proxy, proxied
from wandb.sdk.artifacts._internal_artifact import sanitize_artifact_name

from mirror.importers.account import Account, Totals
from mirror.importers.artifacts import push_artifacts
from mirror.importers.places import Namespace
from mirror.importers.push import PushProgress
from mirror.store import Reader
from mirror.wandb import artifact_bytes

pytestmark = pytest.mark.slow

LOG = r"""
import json, os, pathlib, sys, wandb
folder = pathlib.Path(os.environ["WANDB_DIR"]) / "made"
folder.mkdir(exist_ok=True)
files = {"a.txt": b"a", "dir/\u00fc & #?.bin": bytes(range(256)), "empty": b""}
for name, data in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
with wandb.init(project="p", id="maker") as run:
    for n in range(3):
        a = wandb.Artifact("net", type="model", description=f"the {n}th", metadata={"n": n, "deep": {"x": [1, None]}})
        a.add_dir(str(folder))
        with a.new_file("n.txt") as f:
            f.write(str(n))
        logged = run.log_artifact(a, aliases=["best"] if n == 1 else None, tags=["t", f"t{n}"])
        logged.wait()
    other = wandb.Artifact("data", type="dataset")
    other.add_reference("store://bucket/key/x.csv", name="far.csv")
    other.add(wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, None]]), "t")
    other.add_reference(logged.get_entry("n.txt").ref_url(), name="near.txt")
    run.log_artifact(other).wait()
    run.log_artifact(wandb.Artifact("void", type="other")).wait()
    for data in ([[1]], [[1]], [[1], [2]]):
        run.log({key: wandb.Table(columns=["c"], data=data) for key in ("tab", "t \u00fc/b")})
with wandb.init(project="p", id="user") as run:
    run.use_artifact("net:best")
    run.use_artifact("data:latest")
with wandb.init(project="p", id="left-behind") as run:
    run.use_artifact("net:v0")
    a = wandb.Artifact("alone", type="model")
    with a.new_file("x") as f:
        f.write("x")
    run.log_artifact(a).wait()
api = wandb.Api()
c = api.artifact_collection("model", "local/p/net")
c.description = "a net"
c.tags = ["good"]
c.save()
"""

READ = r"""
import json, os, hashlib, sys, wandb, pathlib
api = wandb.Api()
found = {}
for kind in api.artifact_types(sys.argv[1]):
    for c in kind.collections():
        for a in c.artifacts():
            to = pathlib.Path(os.environ["WANDB_DIR"]) / "down" / c.name / a.version
            entries = {}
            for name, entry in a.manifest.entries.items():
                if not (entry.ref or "").startswith("store:"):
                    a.get_entry(name).download(root=str(to))
                path = to / name
                entries[name] = [entry.digest, entry.size, (entry.ref or "").split("://")[0],
                                 hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None]
            maker = a.logged_by()
            found[f"{c.name}:{a.version}"] = {
                "type": a.type, "digest": a.digest, "aliases": sorted(a.aliases), "tags": sorted(a.tags),
                "metadata": a.metadata, "description": a.description, "size": a.size, "entries": entries,
                "logged_by": maker.id if maker else None, "used_by": sorted(r.id for r in a.used_by()),
                "collection": [c.description, sorted(c.tags)],
            }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with logged_lab(tmp_path_factory.mktemp("lab"), LOG, READ, "local/p", mirrored=["local/p"]) as lab:
        yield lab


@contextmanager
def destination(place: Path) -> Iterator[Server]:
    """A server that has two of the three runs."""
    place.mkdir()
    with serving(place / "m") as there:
        for run_id in ("maker", "user"):
            there.upsert("q", run_id)
        yield there


class Recorded(PushProgress):
    def __init__(self) -> None:
        self.announced: list[tuple[str, int, int]] = []
        self.moved = self.ended_things = 0

    def things(self, what: str, number: int, nbytes: int) -> None:
        self.announced.append((what, number, nbytes))

    def bytes(self, nbytes: int) -> None:
        self.moved += nbytes

    def thing(self, account: Account) -> None:
        self.ended_things += 1


def push(lab: Lab, there: Server, url: str | None = None, **more: Any) -> Totals:
    with Reader(lab.copy.root) as reader:
        ((source,),) = reader.connect().execute("select distinct source from artifacts").fetchall()
        return push_artifacts(
            reader, source, Namespace("local", "p"), opened(there, url),
            {Namespace("local", "p"): Namespace("local", "q")}, run_name=lambda run: ("local", "q", run[2]), **more,
        )  # fmt: skip


def moved(logged: dict[str, Any]) -> dict[str, Any]:
    """What must be read at the destination: everything, but a run that is not there logged and used nothing."""
    there: dict[str, Any] = json.loads(json.dumps(logged).replace("left-behind", "-"))
    for version in there.values():
        version["used_by"] = [run for run in version["used_by"] if run != "-"]
        version["logged_by"] = None if version["logged_by"] == "-" else version["logged_by"]
    return there


def test_everything_arrives_and_what_does_not_is_said(lab: Lab, tmp_path: Path) -> None:
    assert set(lab.logged) >= {"net:v0", "net:v1", "net:v2", "data:v0", "void:v0", "alone:v0"}
    assert lab.logged["net:v1"]["aliases"] == ["best"] and lab.logged["net:v0"]["used_by"] == ["left-behind"]
    assert lab.logged["data:v0"]["entries"]["near.txt"][2:] == ["wandb-artifact", hashlib.sha256(b"2").hexdigest()]
    with destination(tmp_path / "there") as there:
        progress = Recorded()
        totals = push(lab, there, progress=progress)
        assert not totals.failures and not totals.errors, totals
        nbytes = sum(version["size"] for version in lab.logged.values())
        assert progress.announced == [("artifacts to local/q", len(lab.logged), nbytes)]
        assert (progress.moved, progress.ended_things) == (nbytes, len(lab.logged))
        assert totals.done == len(lab.logged) and totals.counts["artifacts"] == len(lab.logged)
        assert {pair: held[:2] for pair, held in totals.notes.items()} == {
            ("lost", "logged by"): (1, 1), ("lost", "used by"): (1, 1),
        }  # fmt: skip
        assert client(there, READ, "local/q") == moved(lab.logged)
        shown = tables(lab.source, "p", "tab") | tables(lab.source, "p", "t ü/b")
        assert len(shown) == 6
        for name, (collection, version) in shown.items():
            found = there.graphql("query C($i: ID!) { clientIDMapping(clientID: $i) { serverID } }", i=name)
            query = "query A($i: ID!) { artifact(id: $i) { artifactSequence { name } versionIndex } }"
            copy = there.graphql(query, i=found["clientIDMapping"]["serverID"])["artifact"]
            assert (copy["artifactSequence"]["name"], copy["versionIndex"]) == (collection, version)
        again = push(lab, there)
        assert (again.done, again.skipped) == (0, len(lab.logged))
        anew = push(lab, there, incremental=False)
        assert anew.done == len(lab.logged) and client(there, READ, "local/q") == moved(lab.logged)


def test_what_is_cut_short_goes_on_and_makes_nothing_twice(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of request fails once for each artifact, half of them after the server has done what was asked, and
    the first places for bytes are too old. Larger files go in parts."""
    monkeypatch.setattr(artifact_bytes, "IN_PARTS_FROM", 200)
    monkeypatch.setattr(artifact_bytes, "PART", 100)
    progress, old = Recorded(), set[str]()
    with destination(tmp_path / "there") as there, proxied(there) as proxy:
        seen: dict[str, int] = {}

        def before(request: Request) -> Action | None:
            kind = operation(request)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] % 3 == 1:
                if seen[kind] % 2:
                    forward(proxy, there, request)
                return Answer(503, "<Error><Code>SlowDown</Code></Error>")
            path = request.path.split("?")[0]
            if kind == "PUT" and path not in old and re.search("/(file|part)/", path):
                old.add(path)
                return Answer(403, "<Error><Code>ExpiredToken</Code></Error>")
            return None

        proxy.before = before
        totals = push(lab, there, proxy.url, progress=progress)
        assert not totals.failures and not totals.errors, totals
        assert progress.moved == sum(version["size"] for version in lab.logged.values())
        assert {path.split("/part/")[1].split("/")[1] for path in old if "/part/" in path} >= {"1", "2", "3"}
        assert {
            "completeMultipartUploadArtifact",
            "createArtifact",
            "createArtifactManifest",
            "createArtifactFiles",
            "commitArtifact",
            "PUT",
        } <= set(seen)
        assert client(there, READ, "local/q") == moved(lab.logged)


def tables(server: Server, project: str, key: str) -> dict[str, tuple[str, int]]:
    """How the rows of the run name the tables they show -> the collection, and which version these are."""
    query = f'query Q {{ project(name: "{project}") {{ run(name: "maker") {{ history(samples: 100) }} }} }}'
    rows = [json.loads(line) for line in server.graphql(query)["project"]["run"]["history"]]
    cells = [row[key] for row in rows if key in row]
    assert [cell["nrows"] for cell in cells] == [1, 1, 2]
    collection = sanitize_artifact_name(f"run-maker-{key}")
    return {cell["artifact_path"].split("/")[2]: (collection, cell["nrows"] - 1) for cell in cells}


def operation(request: Request) -> str:
    if request.path != "/graphql":
        return request.method
    query: str = request.json["query"]
    return query.split("{")[1].split("(")[0].strip() if query.startswith("mutation") else "query"


def forward(proxy: Proxy, there: Server, request: Request) -> None:
    import requests

    kept = {k: v for k, v in request.headers.items() if k in ("Authorization", "Content-Type")}
    requests.request(request.method, there.url + request.path, data=request.body, headers=kept, timeout=180)


def test_without_its_bytes_a_version_is_a_failure(lab: Lab, tmp_path: Path) -> None:
    bare = Copy(tmp_path / "bare", lab.source.url, lab.source.key)
    bare.sync("local/p")
    with destination(tmp_path / "there") as there:
        totals = push(Lab(lab.source, bare, lab.logged), there)
        failed = {account.path.split("/")[-1]: account.error or "" for account in totals.failures}
        assert set(failed) == {name for name in lab.logged if name != "void:v0"}
        assert "--artifacts 'model/net:*'" in failed["net:v0"]
        assert set(client(there, READ, "local/q")) == {"void:v0"}
        noted = [json.loads(line) for line in (bare.root / "artifact_failures.jsonl").read_text().splitlines()]
        assert {line["src_path"].split("/")[-1] for line in noted} == set(failed)
