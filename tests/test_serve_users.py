"""Users of `mirror serve`: keys of their own, teams, and nothing of what is closed to them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from serving import SERVE, Server, client, serving
from starting import run_mirror

from mirror.errors import MirrorError
from mirror.server.access.users import USERS_FILE, Users
from mirror.store import Writer

VIEWER = "{ viewer { username entity teams { edges { node { name } } } } }"
DELETE = "mutation D($i: DeleteRunInput!) { deleteRun(input: $i) { success } }"
CONFIG = "{method: random, parameters: {a: {value: 1}}}"
UPSERT_SWEEP = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id name } } }"


def command(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_mirror(["serve", "user", *args, "--mirror", str(root)])


def added(root: Path, name: str, *teams: str) -> str:
    done = command(root, "add", name, *(word for team in teams for word in ("--team", team)))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class As:
    """A client with a key of its own."""

    def __init__(self, server: Server, key: str) -> None:
        self.server, self.key = server, key

    def ask(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        return requests.post(f"{self.server.url}/graphql", json=body, auth=("api", self.key), timeout=300).json()

    def data(self, query: str, **variables: Any) -> Any:
        answer = self.ask(query, **variables)
        assert "errors" not in answer, answer
        return answer["data"]

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(f"{self.server.url}{path}", json=body, auth=("api", self.key), timeout=300)

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.server.url}{path}", auth=("api", self.key), timeout=300)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("users") / "mirror"
    Writer(root).close()
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with serving(root) as found:
        yield found


@pytest.fixture(scope="module")
def ada(server: Server) -> As:
    return As(server, added(server.root, "ada", "vision"))


@pytest.fixture(scope="module")
def bob(server: Server) -> As:
    return As(server, added(server.root, "bob", "nlp", "shared"))


@pytest.fixture(scope="module")
def secret(server: Server) -> dict[str, str]:
    """A live run and one that has ended, a sweep and a file in the team `nlp`; returns ids."""
    made = {}
    for name in ("live", "ended"):
        made[name] = server.upsert("p", name, "nlp", config='{"k": {"value": "confidential"}}')["id"]
        line = json.dumps({"_step": 0, "loss": 1})
        server.stream("p", name, "nlp", files={"wandb-history.jsonl": {"offset": 0, "content": [line]}})
        query = """mutation F($i: CreateRunFilesInput!) { createRunFiles(input: $i) { files { uploadUrl } } }"""
        i = {"entityName": "nlp", "projectName": "p", "runName": name, "files": ["f.txt"]}
        (file,) = server.graphql(query, i=i)["createRunFiles"]["files"]
        assert requests.put(file["uploadUrl"], data=b"x", timeout=300).ok
        made[f"{name} url"] = file["uploadUrl"]
    server.stream("p", "ended", "nlp", complete=True, exitcode=0)
    sweep = server.graphql(UPSERT_SWEEP, i={"entityName": "nlp", "projectName": "p", "config": CONFIG})
    made["sweep"], made["sweep name"] = (sweep["upsertSweep"]["sweep"][k] for k in ("id", "name"))
    return made


# -- keys -------------------------------------------------------------------------------------------------


def test_a_user_is_told_who_he_is(server: Server, ada: As) -> None:
    assert ada.data(VIEWER)["viewer"] == {
        "username": "ada", "entity": "ada", "teams": {"edges": [{"node": {"name": "vision"}}]}
    }  # fmt: skip
    assert server.graphql(VIEWER)["viewer"]["username"] == "local"


def test_keys_are_kept_as_hashes_only(server: Server, ada: As) -> None:
    path = server.root / USERS_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert ada.key not in path.read_text() and len(ada.key) == 40
    for file in server.root.rglob("*"):
        if file.is_file():
            assert ada.key.encode() not in file.read_bytes(), file
    listed = command(server.root, "list").stdout
    assert "ada\tvision\t" in listed and ada.key not in listed


def test_changes_hold_while_the_server_runs(server: Server) -> None:
    cy = As(server, added(server.root, "cy"))
    assert cy.data(VIEWER)["viewer"]["username"] == "cy"
    assert command(server.root, "teams", "cy", "vision", "nlp").returncode == 0
    assert [e["node"]["name"] for e in cy.data(VIEWER)["viewer"]["teams"]["edges"]] == ["nlp", "vision"]
    new = command(server.root, "key", "cy").stdout.strip()
    assert cy.ask(VIEWER)["data"] == {"viewer": None}
    assert As(server, new).data(VIEWER)["viewer"]["username"] == "cy"
    assert command(server.root, "remove", "cy").returncode == 0
    assert As(server, new).ask(VIEWER)["data"] == {"viewer": None}
    assert As(server, new).post("/graphql", {"query": "{ models { edges { node { name } } } }"}).status_code == 401


def test_a_key_may_be_brought_along(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k" * 40 + "\n")
    done = command(server.root, "add", "dee", "--api-key-file", str(file))
    assert done.returncode == 0 and "k" * 40 not in done.stdout + done.stderr
    assert As(server, "k" * 40).data(VIEWER)["viewer"]["username"] == "dee"
    again = command(server.root, "add", "eve", "--api-key-file", str(file))
    assert again.returncode == 2 and "belongs to a user already" in again.stderr
    file.write_text("short")
    assert command(server.root, "key", "dee", "--api-key-file", str(file)).returncode == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("add", "ada"), "there is a user `ada` already"),
        (("add", "a/b"), "cannot be the name of a user"),
        (("add", ".."), "cannot be the name of a user"),
        (("add", "vision"), "is a team (of `ada`)"),
        (("add", "new", "--team", "ada"), "`ada` is a user, not a team"),
        (("add", "new", "--team", "x y"), "cannot be the name of a team"),
        (("remove", "nobody"), "there is no user `nobody`"),
        (("key", "nobody"), "there is no user `nobody`"),
        (("teams", "nobody", "x"), "there is no user `nobody`"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(server: Server, ada: As, args: tuple[str, ...], said: str) -> None:
    done = command(server.root, *args)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
    assert "new" not in Users(server.root).all()


def test_a_folder_without_a_mirror_and_a_damaged_list(tmp_path: Path) -> None:
    done = command(tmp_path / "none", "add", "ada")
    assert done.returncode == 1 and "mirror" in done.stderr and not (tmp_path / "none").exists()
    early = subprocess.run([*SERVE, "--mirror", "x", "user", "list"], capture_output=True, text=True, timeout=300)
    assert early.returncode == 2 and "after the words" in early.stderr
    Writer(tmp_path / "m").close()
    (tmp_path / "m" / USERS_FILE).write_text('{"users": [{"name": 1}]}')
    with pytest.raises(MirrorError, match="damaged"):
        Users(tmp_path / "m").by_key("k" * 40)


# -- what one may not see does not exist ------------------------------------------------------------------

RUN = "id name config history(samples: 10) files { edges { node { name } } }"


def test_closed_runs_do_not_exist_by_path(server: Server, ada: As, bob: As, secret: dict[str, str]) -> None:
    query = """{ project(name: "p", entityName: "nlp") { name runCount
      live: run(name: "live") { RUN } ended: run(name: "ended") { RUN }
      runs(first: 10) { edges { node { name } } } sweeps { edges { node { name } } } } }""".replace("RUN", RUN)
    assert ada.data(query) == {"project": None}
    seen = bob.data(query)["project"]
    assert seen["runCount"] == 2 and "confidential" in seen["live"]["config"]
    assert seen == server.graphql(query)["project"]
    assert ada.data('{ models(entityName: "nlp") { edges { node { name } } } }') == {"models": {"edges": []}}
    assert ada.data('{ entity(name: "nlp") { name } }') == {"entity": None}
    assert bob.data('{ entity(name: "nlp") { name } }') == {"entity": {"name": "nlp"}}


def test_the_same_listing_is_not_shared_between_users(server: Server, ada: As, bob: As, secret: dict[str, str]) -> None:
    filtered = """{ project(name: "p", entityName: "nlp") {
      runs(filters: "{\\"config.k\\": \\"confidential\\"}") { edges { node { name } } } } }"""
    for _ in range(2):  # whoever asks first
        assert ada.data(filtered) == {"project": None}
        assert len(bob.data(filtered)["project"]["runs"]["edges"]) == 2
    server.upsert("mine", "a", "vision", config='{"k": {"value": "confidential"}}')
    own = filtered.replace('"p"', '"mine"').replace("nlp", "vision")
    assert [e["node"]["name"] for e in ada.data(own)["project"]["runs"]["edges"]] == ["a"]
    assert len(server.graphql(filtered)["project"]["runs"]["edges"]) == 2


@pytest.mark.parametrize("run", ["live", "ended"])
def test_closed_runs_cannot_be_changed_by_their_ids(server: Server, ada: As, secret: dict[str, str], run: str) -> None:
    upsert = "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    attempts = [
        (DELETE, {"id": secret[run]}),
        (upsert, {"id": secret[run], "notes": "mine now"}),
        (upsert, {"entityName": "nlp", "modelName": "p", "name": run, "notes": "mine now"}),
        (upsert, {"entityName": "nlp", "modelName": "p", "name": "another"}),
        ("mutation S($i: StopRunInput!) { stopRun(input: $i) { success } }", {"id": secret[run]}),
        ("mutation S($i: UpdateRunStateInput!) { updateRunState(input: $i) { success } }",
         {"id": secret[run], "state": "failed"}),
        ("mutation F($i: CreateRunFilesInput!) { createRunFiles(input: $i) { files { uploadUrl } } }",
         {"entityName": "nlp", "projectName": "p", "runName": run, "files": ["x"]}),
        ("mutation M($i: UpsertModelInput!) { upsertModel(input: $i) { inserted } }",
         {"entityName": "nlp", "name": "p", "description": "x"}),
        (UPSERT_SWEEP, {"id": secret["sweep"], "state": "CANCELED"}),
        (UPSERT_SWEEP, {"entityName": "nlp", "projectName": "p", "config": CONFIG}),
        ("mutation A($i: CreateAgentInput!) { createAgent(input: $i) { agent { id } } }",
         {"host": "h", "sweep": secret["sweep name"], "entityName": "nlp", "projectName": "p"}),
    ]  # fmt: skip
    for mutation, given in attempts:
        answer = ada.ask(mutation, i=given)
        text = json.dumps(answer.get("errors"))
        assert answer.get("errors") and ("there is no" in text or "not found" in text), (mutation, answer)
        assert "internal error" not in text
    query = 'query R($n: String!) { project(name: "p", entityName: "nlp") { runCount run(name: $n) { notes state } } }'
    again = server.graphql(query, n=run)
    assert again["project"]["runCount"] == 2 and again["project"]["run"]["notes"] is None
    assert again["project"]["run"]["state"] == ("running" if run == "live" else "finished")


@pytest.mark.parametrize("run", ["live", "ended"])
def test_closed_runs_cannot_be_reached_over_http(
    server: Server, ada: As, bob: As, secret: dict[str, str], run: str
) -> None:
    assert ada.post(f"/files/nlp/p/{run}/file_stream", {"complete": True, "exitcode": 1}).status_code == 404
    assert ada.get(f"/files/nlp/p/{run}/f.txt").status_code == 404
    put = requests.put(f"{server.url}/upload/nlp/p/{run}/f.txt", data=b"y", auth=("api", ada.key), timeout=300)
    assert put.status_code == 404
    assert bob.get(f"/files/nlp/p/{run}/f.txt").content == b"x"


def test_closed_reports_do_not_exist(server: Server, ada: As, bob: As) -> None:
    upsert = "mutation U($i: UpsertViewInput!) { upsertView(input: $i) { view { id } } }"
    new = {"entityName": "nlp", "projectName": "p", "displayName": "secret plan", "spec": "{}"}
    assert "not found" in json.dumps(ada.ask(upsert, i=new)["errors"])
    report = bob.data(upsert, i=new)["upsertView"]["view"]["id"]
    view = "query V($id: ID!) { view(id: $id) { displayName user { username } } }"
    assert ada.data(view, id=report) == {"view": None}
    assert bob.data(view, id=report)["view"] == {"displayName": "secret plan", "user": {"username": "bob"}}
    assert "there is no report" in json.dumps(ada.ask(upsert, i={"id": report, "displayName": "x"})["errors"])
    delete = "mutation D($i: DeleteViewInput!) { deleteView(input: $i) { success } }"
    assert "there is no report" in json.dumps(ada.ask(delete, i={"id": report})["errors"])
    assert bob.data(delete, i={"id": report})["deleteView"]["success"] is True


def test_a_closed_run_cannot_be_forked_or_rewound(server: Server, ada: As, secret: dict[str, str]) -> None:
    upsert = "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    config = json.dumps({"_wandb": {"value": {"branch_point": {"run_id": "ended", "step": 0}}}})
    i = {"entityName": "nlp", "modelName": "p", "name": "fork", "config": config}
    assert "not found" in json.dumps(ada.ask(upsert, i=i)["errors"])
    rewind = "mutation R($i: RewindRunInput!) { rewindRun(input: $i) { rewoundRun { id } } }"
    i = {"entityName": "nlp", "projectName": "p", "runName": "ended", "metricName": "_step", "metricValue": 0}
    assert "there is no run" in json.dumps(ada.ask(rewind, i=i)["errors"])


def test_a_user_logs_to_his_own_entity_and_his_teams(server: Server, ada: As) -> None:
    upsert = "mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { bucket { project { entity { name } } } } }"
    for given, entity in ((None, "ada"), ("ada", "ada"), ("vision", "vision")):
        i = {"modelName": "own", "name": f"r{given}"} | ({"entityName": given} if given else {})
        made = ada.data(upsert, i=i)["upsertBucket"]["bucket"]["project"]["entity"]["name"]
        assert made == entity
    query = '{ project(name: "own", entityName: "ada") { run(name: "rada") { user { username } } } }'
    assert ada.data(query)["project"]["run"]["user"]["username"] == "ada"


SDK = """
import json, wandb
with wandb.init(project="sdk", id="hers", entity="vision") as run:
    run.log({"x": 1})
    artifact = wandb.Artifact("a", type="t")
    with artifact.new_file("f") as out:
        out.write("1")
    run.log_artifact(artifact)
api = wandb.Api()
said = []
for what in (lambda: api.run("nlp/p/ended"), lambda: list(api.runs("nlp/p")), lambda: api.sweep("nlp/p/none"),
             lambda: wandb.init(project="p", entity="nlp", settings=wandb.Settings(init_timeout=90))):
    try:
        what()
        said.append(None)
    except Exception as e:
        said.append(f"{type(e).__name__}: {e}")
print(json.dumps([api.default_entity, api.viewer.username, [r.id for r in api.runs("vision/sdk")], said,
                  api.artifact("vision/sdk/a:v0").id]))
"""


def test_the_sdk_with_a_users_key(server: Server, ada: As, bob: As, secret: dict[str, str]) -> None:
    entity, name, runs, said, artifact = client(server, SDK, WANDB_API_KEY=ada.key)
    assert (entity, name, runs) == ("ada", "ada", ["hers"])
    assert all(said), said
    assert "`nlp` not found" in said[3]
    query = "query A($id: ID!) { artifact(id: $id) { digest } }"
    assert bob.data(query, id=artifact) == {"artifact": None}
    assert ada.data(query, id=artifact)["artifact"] and server.graphql(query, id=artifact)["artifact"]
    named = '{ project(name: "sdk", entityName: "vision") { artifact(name: "a:v0") { id } } }'
    assert bob.data(named) == {"project": None}
    use = "mutation U($i: UseArtifactInput!) { useArtifact(input: $i) { artifact { id } } }"
    bob.data("mutation U($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }",
             i={"modelName": "p", "name": "r", "entityName": "bob"})  # fmt: skip
    i = {"entityName": "bob", "projectName": "p", "runName": "r", "artifactID": artifact}
    assert "there is no artifact" in json.dumps(bob.ask(use, i=i)["errors"])
    manifest = "query M($id: ID!) { artifact(id: $id) { currentManifest { file { directUrl } } } }"
    url = ada.data(manifest, id=artifact)["artifact"]["currentManifest"]["file"]["directUrl"]
    assert requests.get(url, timeout=300).ok  # signed, as links to a bucket are
    assert requests.get(url.partition("?")[0], auth=("api", bob.key), timeout=300).status_code in (401, 403, 404)
