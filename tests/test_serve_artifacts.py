"""Artifacts with the real SDK: logged, used, listed, changed and deleted; the server is killed in between."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from artifact_wire import CREATE, Logging, ask, contents, digest, fetched, refused, versions
from serving import Server, client, serving

from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ArtifactUse, ItemKey
from mirror.store import Reader, Writer

FILES = {
    "a.txt": b"hello",
    "empty": b"",
    "dir/nested/deep.bin": bytes(range(256)) * 50,
    "dir/ünï cödé 文件 😀.txt": "ä".encode(),
    "odd/-rf": b"x",
    "odd/a+b&c=d#e?f%41 'g'.txt": b"y",
    "odd/.hidden": b"z",
    "twin-1": b"same bytes",
    "twin-2": b"same bytes",
    **{f"many/{n:03d}.txt": f"file {n}".encode() for n in range(200)},
}
"""What is logged: name in the artifact -> bytes."""

METADATA = {"n": 1, "big": 2**60, "f": 0.1, "text": 'ü \u2028 "q"', "none": None, "deep": {"a": [1, {"b": []}]}}


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    for name, data in FILES.items():
        path = home / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (home / "far.bin").write_bytes(b"far away")
    with serving(home / "mirror") as found:
        yield found


LOG = """
import datetime, json, pathlib, sys, wandb
home, metadata = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
seen = {}
run = wandb.init(project="p", id="maker")

def made(extra=None, **options):
    artifact = wandb.Artifact("data", type="dataset", description="about\\nit", metadata=metadata)
    artifact.add_dir(str(home / "in"))
    if extra:
        with artifact.new_file("extra/new.txt") as out:
            out.write(extra)
    return run.log_artifact(artifact, **options).wait()

run.log({"x": 1})
run.log({"x": 2})
first = made(aliases=["best", "first"], tags=["red", "blue"])
again = made(aliases=["best"])
second = made("more", aliases=["best"])
seen["ids"] = [first.id, again.id == first.id, second.id == first.id]
seen["versions"] = [a.version for a in (first, again, second)]
seen["first"] = [first.digest, first.size, first.state, first.history_step, first.metadata == metadata]

refs = wandb.Artifact("refs", type="dataset")
refs.add_reference((home / "far.bin").as_uri(), name="local.bin")
refs.add_reference("https://example.com/x.bin", name="web.bin", checksum=False)
refs.add_reference("hdfs://cluster/y.bin", name="other.bin")
refs.add_reference(first.get_entry("a.txt"), name="from-data.txt")
refs.ttl = datetime.timedelta(days=3)
run.log_artifact(refs).wait()

table = wandb.Table(columns=["i", "text", "maybe"], data=[[1, "ü", None], [2, "b", 0.5]])
tables = wandb.Artifact("tables", type="results")
tables.add(table, "preds")
run.log_artifact(tables).wait()
other = wandb.Artifact("more-tables", type="results")
other.add(table, "again")  # a reference into `tables`, by the client's own name for it
run.log_artifact(other).wait()
run.log({"shown": wandb.Table(columns=["k"], data=[[7]])})

grows = wandb.Artifact("grows", type="dataset")
grows.add_file(str(home / "in/a.txt"), name="one.txt")
run.log_artifact(grows).wait()
more = wandb.Artifact("grows", type="dataset", incremental=True)
more.add_file(str(home / "in/empty"), name="two.txt")
seen["incremental"] = run.log_artifact(more).wait().version
run.finish()

draft = wandb.Api().artifact("p/grows:v1").new_draft()
draft.add_file(str(home / "far.bin"), name="three.txt")
draft.remove("one.txt")
run = wandb.init(project="p", id="drafter")
seen["draft"] = run.log_artifact(draft).wait().version
try:
    wrong = wandb.Artifact("data", type="model")
    wrong.add_file(str(home / "far.bin"))
    run.log_artifact(wrong).wait()
except Exception as exc:
    seen["wrong type"] = str(exc)
run.finish()
print(json.dumps(seen))
"""

READ = """
import json, pathlib, sys, wandb
from wandb.apis.public import Artifacts
home = pathlib.Path(sys.argv[1])
seen = {}
run = wandb.init(project="p", id="user", settings=wandb.Settings(silent=True))
best = run.use_artifact("data:best")
first = run.use_artifact("data:v0", type="dataset")
try:
    run.use_artifact("data:v0", type="model")
except Exception as exc:
    seen["wrong type"] = str(exc)
try:
    run.use_artifact("data:nobody")
except Exception as exc:
    seen["no alias"] = str(exc)
out = first.download(root=str(home / "out"))
first.verify(root=out)
best.download(root=str(home / "some"), path_prefix="dir/nested")
seen["one"] = pathlib.Path(best.get_entry("extra/new.txt").download(root=str(home / "one"))).read_text()
run.use_artifact("refs:latest").get_path("local.bin").download(root=str(home / "refs"))
run.use_artifact("refs:latest").get_path("from-data.txt").download(root=str(home / "refs"))
seen["table"] = [wandb.Api().artifact("p/tables:latest").get("preds").columns,
                 wandb.Api().artifact("p/tables:latest").get("preds").data]
seen["same table"] = wandb.Api().artifact("p/more-tables:latest").get("again").data
run.finish()

api = wandb.Api()
def about(a):
    return {"version": a.version, "aliases": sorted(a.aliases), "tags": sorted(a.tags), "description": a.description,
            "metadata": a.metadata, "size": a.size, "digest": a.digest, "state": a.state, "type": a.type,
            "file_count": a.file_count, "history_step": a.history_step, "is_link": a.is_link,
            "qualified_name": a.qualified_name, "source": a.source_qualified_name, "id": a.id,
            "ttl": a.ttl and a.ttl.total_seconds(), "by": a.logged_by().id, "used": [r.id for r in a.used_by()],
            "created": a.created_at, "linked": [x.name for x in a.linked_artifacts]}
seen["v0"] = about(api.artifact("p/data:v0"))
seen["best"] = about(api.artifact("local/p/data:best"))
seen["default"] = api.artifact("p/data").version
seen["refs"] = about(api.artifact("p/refs:v0"))
seen["ref entries"] = {n: e.ref for n, e in api.artifact("p/refs:v0").manifest.entries.items()}
seen["manifest"] = {n: [e.digest, e.size] for n, e in api.artifact("p/data:v0").manifest.entries.items()}
seen["files"] = {f.name: [f.size, f.md5] for f in api.artifact("p/data:v0").files(per_page=70)}
seen["two files"] = [f.name for f in api.artifact("p/data:v0").files(names=["a.txt", "empty"])]
seen["file total"] = len(api.artifact("p/data:v0").files())
seen["pages"] = [a.version for a in api.artifacts("dataset", "p/data", per_page=1)]
seen["oldest"] = [a.version for a in api.artifacts("dataset", "p/data", order="+createdAt")]
seen["tagged"] = [a.version for a in api.artifacts("dataset", "p/data", tags=["red"])]
def filtered(filters):
    return [a.version for a in Artifacts(api._service_api, "local", "p", "data", "dataset", filters=filters)]
seen["filtered"] = [filtered(f) for f in (
    {"state": "COMMITTED", "tags": "red"}, {"tags": {"$in": ["none"]}}, {"createdAt": {"$gt": "2020-01-01T00:00:00Z"}})]
try:
    filtered({"host": "x"})
except Exception as exc:
    seen["bad filter"] = str(exc)
seen["total"] = len(api.artifacts("dataset", "p/data"))
seen["types"] = sorted(t.name for t in api.artifact_types("p"))
seen["type"] = api.artifact_type("dataset", "p").name
seen["collections"] = sorted(c.name for c in api.artifact_collections("p", "dataset", per_page=2))
kind = api.artifact_type("dataset", "p")
some = {"name": {"$regex": "^(g|r)"}}
seen["some"] = [[c.name for c in kind.collections(filters=some, order=o)] for o in ("name", "-name")]
collection = api.artifact_collection("dataset", "p/data")
seen["collection"] = [collection.name, collection.type, collection.description, list(collection.tags),
                      sorted(collection.aliases), collection.is_sequence(), len(list(collection.artifacts()))]
seen["exists"] = [api.artifact_exists("p/data:v1"), api.artifact_exists("p/data:v9"), api.artifact_exists("p/no:v0"),
                  api.artifact_collection_exists("p/data", "dataset"),
                  api.artifact_collection_exists("p/no", "dataset")]
seen["logged"] = sorted(a.name for a in api.run("p/maker").logged_artifacts(per_page=2))
seen["used"] = sorted(a.name for a in api.run("p/user").used_artifacts())
seen["none"] = [len(api.run("p/user").logged_artifacts()), len(api.run("p/drafter").used_artifacts())]
seen["grown"] = {v: sorted(api.artifact(f"p/grows:{v}").manifest.entries) for v in ("v0", "v1", "v2")}
for v in ("v1", "v2"):
    api.artifact(f"p/grows:{v}").download(root=str(home / v))
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def logged(server: Server, home: Path) -> Any:
    return client(server, LOG, str(home), json.dumps(METADATA))


@pytest.fixture(scope="module")
def seen(server: Server, home: Path, logged: Any) -> Any:
    """What the SDK reads, from a server that was killed after everything was logged."""
    server.kill()
    server.start()
    return client(server, READ, str(home), WANDB_ENTITY="local")


def test_versions_are_numbered_and_the_identical_is_no_new_one(logged: Any) -> None:
    assert logged["versions"] == ["v0", "v0", "v1"] and logged["ids"][1:] == [True, False]
    assert (logged["incremental"], logged["draft"]) == ("v1", "v2")
    assert logged["first"] == [digest(contents(FILES)), sum(map(len, FILES.values())), "COMMITTED", 1, True]
    assert "type" in logged["wrong type"]


def test_a_version_is_read_as_it_was_logged(seen: Any, logged: Any) -> None:
    first, best = seen["v0"], seen["best"]
    expected = {
        "version": "v0", "aliases": ["first"], "tags": ["blue", "red"], "description": "about\nit",
        "metadata": METADATA, "size": sum(map(len, FILES.values())), "digest": digest(contents(FILES)),
        "state": "COMMITTED", "type": "dataset", "file_count": len(FILES), "history_step": 1, "is_link": False,
        "qualified_name": "local/p/data:v0", "source": "local/p/data:v0", "id": logged["ids"][0], "ttl": None,
        "by": "maker", "used": ["user"], "linked": [],
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert (best["version"], best["aliases"]) == ("v1", ["best", "latest"])
    more = contents(FILES | {"extra/new.txt": b"more"})
    assert best["digest"] == digest(more) and seen["default"] == "v1"
    assert seen["refs"]["ttl"] == 3 * 24 * 3600
    assert seen["manifest"] == {name: [md5(data), len(data)] for name, data in FILES.items()}


def test_downloads_are_the_bytes_that_were_logged(seen: Any, home: Path) -> None:
    def found(folder: str) -> dict[str, bytes]:
        return {str(p.relative_to(home / folder)): p.read_bytes() for p in (home / folder).rglob("*") if p.is_file()}

    assert found("out") == FILES
    assert found("some") == {"dir/nested/deep.bin": FILES["dir/nested/deep.bin"]}
    assert seen["one"] == "more"
    assert found("refs") == {"local.bin": b"far away", "from-data.txt": b"hello"}
    assert seen["grown"] == {"v0": ["one.txt"], "v1": ["one.txt", "two.txt"], "v2": ["three.txt", "two.txt"]}
    assert found("v1") == {"one.txt": b"hello", "two.txt": b""}
    assert found("v2") == {"three.txt": b"far away", "two.txt": b""}


def test_a_table_comes_back_through_its_artifact(seen: Any) -> None:
    data = [[1, "ü", None], [2, "b", 0.5]]
    assert seen["table"] == [["i", "text", "maybe"], data] and seen["same table"] == data


def test_references_are_kept_and_not_fetched(seen: Any, home: Path, logged: Any) -> None:
    found = seen["ref entries"]
    artifact = base64.b64decode(logged["ids"][0]).hex()
    assert found == {
        "local.bin": (home / "far.bin").as_uri(),
        "web.bin": "https://example.com/x.bin",
        "other.bin": "hdfs://cluster/y.bin",
        "from-data.txt": f"wandb-artifact://{artifact}/a.txt",
    }


def test_listings(seen: Any) -> None:
    assert seen["files"] == {name: [len(data), md5(data)] for name, data in FILES.items()}
    assert sorted(seen["two files"]) == ["a.txt", "empty"] and seen["file total"] == len(FILES)
    assert (seen["pages"], seen["oldest"], seen["tagged"], seen["total"]) == (["v1", "v0"], ["v0", "v1"], ["v0"], 2)
    assert seen["filtered"] == [["v0"], [], ["v1", "v0"]] and "cannot be asked of artifacts" in seen["bad filter"]
    assert seen["types"] == ["dataset", "results", "run_table"] and seen["type"] == "dataset"
    assert seen["collections"] == ["data", "grows", "refs"]
    assert seen["some"] == [["grows", "refs"], ["refs", "grows"]]
    assert seen["collection"] == ["data", "dataset", None, [], ["best", "first", "latest", "v0", "v1"], True, 2]
    assert seen["exists"] == [True, False, False, True, False]


def test_lineage(seen: Any) -> None:
    names = "data:v0 data:v1 grows:v0 grows:v1 more-tables:v0 refs:v0 run-maker-shown:v0 tables:v0"
    assert seen["logged"] == names.split()
    assert seen["used"] == ["data:v0", "data:v1", "refs:v0"] and seen["none"] == [0, 0]
    assert seen["best"]["used"] == ["user"]
    assert "type" in seen["wrong type"] and "nobody" in seen["no alias"]


EDIT = """
import datetime, json, sys, wandb
seen = {}
api = wandb.Api()
a = api.artifact("p/data:v0")
a.description, a.tags = "new words", ["blue", "green"]
a.metadata = {"other": [1]}
a.aliases = ["prod", "best"]
a.ttl = datetime.timedelta(hours=1)
a.save()
b = wandb.Api().artifact("p/data:v0")
seen["edited"] = [b.description, sorted(b.tags), b.metadata, sorted(b.aliases), b.ttl.total_seconds(),
                  b.digest == a.digest]
b.ttl = None
b.save()
seen["no ttl"] = wandb.Api().artifact("p/data:v0").ttl
seen["moved"] = sorted(wandb.Api().artifact("p/data:v1").aliases)

def attempt(name, do):
    try:
        do()
        seen[name] = None
    except Exception as exc:
        seen[name] = f"{type(exc).__name__}: {exc}"

attempt("delete with aliases", lambda: wandb.Api().artifact("p/data:v1").delete())
attempt("link", lambda: wandb.Api().artifact("p/data:v1").link("portfolio"))
attempt("registry", lambda: wandb.Api().artifact("p/data:v1").link("wandb-registry-model/x"))
wandb.Api().artifact("p/data:v1").delete(delete_aliases=True)
attempt("deleted", lambda: wandb.Api().artifact("p/data:v1"))
seen["left"] = [x.version for x in wandb.Api().artifacts("dataset", "p/data")]

c = wandb.Api().artifact_collection("dataset", "p/data")
c.description, c.tags, c.name = "a collection", ["team"], "renamed"
c.save()
c.tags = ["team", "two"]
c.type = "corpus"
c.save()
d = wandb.Api().artifact_collection("corpus", "p/renamed")
seen["collection"] = [d.name, d.description, sorted(d.tags), d.type, [v.name for v in d.artifacts()]]
attempt("old name", lambda: wandb.Api().artifact("p/data:v0"))
seen["types"] = sorted(t.name for t in wandb.Api().artifact_types("p"))

run = wandb.init(project="p", id="later")
new = wandb.Artifact("renamed", type="corpus")
with new.new_file("x.txt") as out:
    out.write("x")
seen["next"] = run.log_artifact(new).wait().version
run.finish()
wandb.Api().run("p/drafter").delete(delete_artifacts=True)
attempt("deleted with its run", lambda: wandb.Api().artifact("p/grows:v2"))
seen["others"] = [x.version for x in wandb.Api().artifacts("dataset", "p/grows")]
e = wandb.Api().artifact_collection("dataset", "p/refs")
e.delete()
attempt("deleted collection", lambda: wandb.Api().artifact("p/refs:v0"))
seen["collections"] = sorted(x.name for x in wandb.Api().artifact_collections("p", "dataset"))
print(json.dumps(seen))
"""


def test_changes(server: Server, seen: Any) -> None:
    found = client(server, EDIT, WANDB_ENTITY="local")
    assert found["edited"] == ["new words", ["blue", "green"], {"other": [1]}, ["best", "prod"], 3600, True]
    assert found["no ttl"] is None and found["moved"] == ["latest"]
    assert "`latest`" in found["delete with aliases"] and "delete_aliases" in found["delete with aliases"]
    assert "no registries" in found["link"] and "organization" in found["registry"]
    assert "not found" in found["deleted"] and found["left"] == ["v0"]
    assert found["collection"] == ["renamed", "a collection", ["team", "two"], "corpus", ["renamed:v0"]]
    assert "not found" in found["old name"] and found["types"] == ["corpus", "dataset", "results", "run_table"]
    assert found["next"] == "v2"  # the number of a deleted version is not given again
    assert "not found" in found["deleted with its run"] and found["others"] == ["v1", "v0"]
    assert "not found" in found["deleted collection"] and found["collections"] == ["grows"]
    with Reader(server.root) as reader:
        rows = reader.connect().execute(
            "select collection, version, state, deleted_at is null from artifacts "
            "where collection in ('data', 'renamed', 'refs') order by all"
        )
        assert rows.fetchall() == [
            ("refs", 0, "DELETED", False),
            ("renamed", 0, "COMMITTED", True),
            ("renamed", 1, "DELETED", False),
            ("renamed", 2, "COMMITTED", True),
        ]


# -- mirrored from elsewhere ------------------------------------------------------------------------------

ELSEWHERE = "api.wandb.ai"


def _mirrored(root: Path) -> dict[str, bytes]:
    """Put an artifact with three entries as a sync does; the bytes of one of them are held."""
    from mirror.store.blobs import incoming

    with incoming(root / "blobs" / "sha256") as sink:
        sink.write(b"held")
        blob = sink.keep()

    def key(name: str) -> ItemKey:
        return ItemKey(ELSEWHERE, name, "team", "theirs")

    entries = [
        ArtifactEntry("held.txt", blob.md5, 4, sha256=blob.sha256, birth_id="x", extra='{"k": [1]}'),
        ArtifactEntry("not held.bin", md5(b"gone"), 4),
        ArtifactEntry("ref", "etag", 9, "s3://bucket/key"),
    ]
    with Writer(root) as writer:
        writer.put_item(ArtifactCollection(key("c"), "dataset", "old", "from afar", ("t",)))
        for version in range(2):
            artifact = Artifact(
                key(f"QXJ0aWZhY3Q6{version}"), "dataset", "old", version, "COMMITTED", f"{version}" * 32,
                ("latest",) if version else (), size=17, file_count=3, run_entity="team", run_project="theirs",
                run_id="r1", entries=entries, uses=[ArtifactUse("team", "theirs", "gone")],
            )  # fmt: skip
            writer.put_item(artifact)
    return {"held.txt": b"held"}


USE_MIRRORED = """
import json, pathlib, sys, wandb
run = wandb.init(project="mine", entity="me", id="local-run")
a = run.use_artifact("team/theirs/old:latest")
out = {"version": a.version, "entries": {n: [e.digest, e.size, e.ref, e.extra] for n, e in a.manifest.entries.items()}}
out["held"] = pathlib.Path(a.get_entry("held.txt").download(root=sys.argv[1])).read_text()
try:
    a.get_entry("not held.bin").download(root=sys.argv[1])
except Exception as exc:
    out["not held"] = str(exc)
a.description = "mine now"
try:
    a.save()
except Exception as exc:
    out["save"] = str(exc)
run.finish()
out["used"] = [x.qualified_name for x in wandb.Api().run("me/mine/local-run").used_artifacts()]
out["listed"] = [x.version for x in wandb.Api().artifacts("dataset", "team/theirs/old")]
out["collection"] = wandb.Api().artifact_collection("dataset", "team/theirs/old").description
print(json.dumps(out))
"""


def test_a_mirrored_artifact_is_used_by_a_local_run_and_cannot_be_changed(tmp_path: Path) -> None:
    root = tmp_path / "mirror"
    held = _mirrored(root)
    with serving(root) as server:
        found = client(server, USE_MIRRORED, str(tmp_path / "out"))
        assert found["entries"] == {
            "held.txt": [md5(b"held"), 4, None, {"k": [1]}],
            "not held.bin": [md5(b"gone"), 4, None, {}],
            "ref": ["etag", 9, "s3://bucket/key", {}],
        }
        assert (found["version"], found["held"]) == ("v1", held["held.txt"].decode())
        assert "404" in found["not held"]
        assert ELSEWHERE in found["save"]
        assert found["used"] == ["team/theirs/old:v1"] and found["listed"] == ["v1", "v0"]
        assert found["collection"] == "from afar"
        # No version of one's own gets between those of another source.
        there = {"entityName": "team", "projectName": "theirs", "artifactTypeName": "dataset"}
        logging = Logging(server, "old", {"x": b"x"}, **there)
        assert ELSEWHERE in refused(server, CREATE, i=logging.input)
    with Reader(root) as reader:
        uses = reader.connect().execute("select version, run_entity, run_id from artifact_uses order by all").fetchall()
        assert uses == [(0, "team", "gone"), (1, "me", "local-run"), (1, "team", "gone")]


# -- who may see what -------------------------------------------------------------------------------------

SEE = """query($id: ID!, $c: ID!, $client: ID!) { artifact(id: $id) { id } artifactCollection(id: $c) { id }
    clientIDMapping(clientID: $client) { serverID }
    project(name: "p", entityName: "local") { artifactCollection(name: "secret") { id } } }"""


def test_what_one_may_not_see_does_not_exist(server: Server, logged: Any) -> None:
    from mirror.server.access.users import Users

    logging = Logging(server, "secret", {"x": b"a secret"})
    done = logging.all()
    collection = server.graphql(
        'query { project(name: "p", entityName: "local") { artifactCollection(name: "secret") { id } } }'
    )["project"]["artifactCollection"]["id"]
    key = Users(server.root).add("stranger", [])
    asked = {"id": done["id"], "c": collection, "client": logging.input["clientID"]}
    mine = server.graphql(SEE, **asked)
    assert mine["artifact"] and mine["artifactCollection"] and mine["clientIDMapping"] == {"serverID": done["id"]}
    theirs = ask(server, SEE, key, **asked)["data"]
    assert theirs == {"artifact": None, "artifactCollection": None, "clientIDMapping": None, "project": None}
    hashed = hashlib.md5(b"a secret").hexdigest()
    url = f"{server.url}/artifactsV2/default/local/p/secret/x/{hashed}/x"
    assert requests.get(url, auth=("api", key), timeout=300).status_code == 404
    assert requests.get(url, auth=("api", server.key), timeout=300).content == b"a secret"
    for text, given in (
        ("deleteArtifact(input: {artifactID: $id}) { artifact { id } }", {"id": done["id"]}),
        ("commitArtifact(input: {artifactID: $id}) { artifact { id } }", {"id": done["id"]}),
        ('updateArtifact(input: {artifactID: $id, description: "x"}) { artifact { id } }', {"id": done["id"]}),
        ("deleteArtifactSequence(input: {artifactSequenceID: $id}) { artifactCollection { id } }", {"id": collection}),
    ):
        answer = ask(server, f"mutation($id: ID!) {{ {text} }}", key, **given)
        assert "there is no" in answer["errors"][0]["message"], answer
    assert fetched(server, done["id"]) == {"x": b"a secret"} and len(versions(server, "secret")) == 1


OFFLINE = """
import json, wandb
run = wandb.init(project="p", entity="local", id="offline", mode="offline")
for text in ("first", "second"):
    artifact = wandb.Artifact("made-offline", type="t")
    with artifact.new_file("x.txt") as out:
        out.write(text)
    run.log_artifact(artifact, aliases=[text])
run.finish()
print(json.dumps(run.dir))
"""


def test_artifacts_of_an_offline_run_come_with_wandb_sync_and_only_once(server: Server) -> None:
    folder = Path(client(server, OFFLINE)).parent
    for _ in range(2):
        command = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(folder)]
        subprocess.run(command, env=os.environ | server.env, check=True, capture_output=True, timeout=300)
    held = versions(server, "made-offline")
    assert [[a["alias"] for a in v["aliases"]] for v in held] == [["second", "latest", "v1"], ["first", "v0"]]
    assert [fetched(server, v["id"]) for v in held] == [{"x.txt": b"second"}, {"x.txt": b"first"}]
