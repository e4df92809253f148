"""`mirror sync` of sweeps, artifacts and reports: made by the real SDK, mirrored, compared with what was made."""

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
from liar import Answer, Request
from serving import Server, serving
from syncing import Copy, Proxy, log_run, operation_of

from mirror.records import manifest_digest

pytestmark = pytest.mark.slow

SDK = """
import json, sys, wandb
spec = json.loads(sys.stdin.read())
for name in ("maker", "user"):
    run = wandb.init(project="p", id=name, settings=wandb.Settings(console="off", x_disable_meta=True))
    for one in spec[name]:
        if "use" in one:
            run.use_artifact(one["use"])
            continue
        a = wandb.Artifact(one["name"], one["type"], description=one.get("description"), metadata=one.get("metadata"))
        for path, text in one["files"].items():
            with a.new_file(path, encoding="utf-8") as f:
                f.write(text)
        for ref, path in one.get("references", {}).items():
            a.add_reference(ref, name=path, checksum=False)
        run.log_artifact(a, aliases=one.get("aliases"), tags=one.get("tags")).wait()
    run.finish()
"""
NET = {
    "name": "net", "type": "model", "description": "ünïcode", "metadata": {"lr": 0.5, "deep": {"a": [1, None]}},
    "files": {"weights.bin": "x" * 1000, "dir/ä b.txt": "hello", "empty": ""},
    "references": {"unknown://bucket/key": "far.csv"},
    "aliases": ["best"], "tags": ["t1", "t2"],
}  # fmt: skip
SPEC: dict[str, list[dict[str, Any]]] = {
    "maker": [
        NET,
        NET | {"files": {"weights.bin": "y" * 10}, "aliases": ["latest", "prod"], "tags": []},
        {"name": "data", "type": "dataset", "files": {f"part/{i:03d}.csv": f"{i}\n" * i for i in range(120)}},
    ],
    "user": [{"use": "net:v0"}, {"use": "data:latest"}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        done = subprocess.run(
            [sys.executable, "-c", SDK], input=json.dumps(SPEC), env=os.environ | server.env, text=True,
            timeout=300, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield server


def md5(text: str) -> str:
    return base64.b64encode(hashlib.md5(text.encode(), usedforsecurity=False).digest()).decode()


def test_artifacts_are_mirrored_as_they_were_logged(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p")
    logged = {("model", "net", 0): SPEC["maker"][0], ("model", "net", 1): SPEC["maker"][1]}
    logged[("dataset", "data", 0)] = SPEC["maker"][2]
    names = "type, collection, version, state, description, metadata, aliases, tags, size, file_count, run_id, digest"
    found = {row[:3]: row[3:] for row in copy.sql(f"select {names} from artifacts")}
    assert found.keys() == logged.keys()
    for who, one in logged.items():
        state, description, metadata, aliases, tags, size, count, run_id, digest = found[who]
        entries = {path: (md5(text), len(text.encode()), None) for path, text in one["files"].items()}
        # The SDK's sidecar writes 0 for a size it does not know.
        entries |= {path: (ref, 0, ref) for ref, path in one.get("references", {}).items()}
        assert (state, description or None, run_id) == ("COMMITTED", one.get("description"), "maker")
        assert json.loads(metadata or "{}") == one.get("metadata", {})
        assert set(tags or ()) == set(one.get("tags") or ())
        expected = set(one.get("aliases") or ["latest"]) | ({"latest"} if who != ("model", "net", 0) else set())
        assert set(aliases) == expected - ({"latest"} if who == ("model", "net", 0) else set()), who
        assert (size, count) == (sum(s or 0 for _, s, _ in entries.values()), len(entries))
        held = copy.sql(
            "select path, digest, size, ref from artifact_entries where collection = ? and version = ?", who[1], who[2]
        )
        assert {path: (d, s, r) for path, d, s, r in held} == entries
        assert digest == manifest_digest((path, d) for path, (d, _, _) in entries.items())
    uses = copy.sql("select collection, version, run_project, run_id from artifact_uses order by collection")
    assert uses == [("data", 0, "p", "user"), ("net", 0, "p", "user")]
    collections = copy.sql("select type, collection from artifact_collections order by 1")
    assert [c for c in collections if c[0] in ("model", "dataset")] == [("dataset", "data"), ("model", "net")]


def test_a_second_sync_asks_a_little_and_writes_nothing(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")
    files = copy.files()
    proxy.reset()
    copy.sync("local/p")
    assert copy.files() == files
    asked = {name: n for name, n in proxy.operations.items() if "rtifact" in name or name in ("Sweeps", "Reports")}
    assert sum(asked.values()) <= 8, asked


def test_a_manifest_that_fails_is_said_and_fetched_next_time(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    broken: list[str] = []

    def before(request: Request) -> Answer | None:
        if request.method == "GET" and len(broken) < 1:
            broken.append(request.path)
            return Answer(200, b'{"contents": {"other": {"digest": "x"}}}')
        return None

    def only_manifests(request: Request) -> Answer | None:
        return before(request) if "/artifact-manifests/" in request.path else None

    proxy.before = only_manifests
    done = copy.sync("local/p", ok=False)
    assert broken and "the manifest of artifact" in done.stderr and "the server says" in done.stderr
    [(without,)] = copy.sql(
        "select count(*) from artifacts a where not exists (select 1 from artifact_entries e where "
        "e.collection = a.collection and e.version = a.version)"
    )
    assert without == 1
    proxy.reset()
    copy.sync("local/p")
    [(entries,)] = copy.sql("select count(*) from artifact_entries")
    assert entries == sum(len(one["files"]) + len(one.get("references", {})) for one in SPEC["maker"])


def test_what_is_gone_is_noted_after_two_complete_listings(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")

    def without_net(request: Request, body: Any) -> Any:
        if operation_of(request) == "ArtifactCollections":
            found = body["data"]["project"]["artifactType"]["artifactCollections"]
            found["edges"] = [e for e in found["edges"] if e["node"]["name"] != "net"]
        return body

    def live() -> set[tuple[Any, ...]]:
        return set(copy.sql("select collection, version from artifacts where deleted_at is null"))

    proxy.after = without_net
    copy.sync("local/p")
    assert live() == {("net", 0), ("net", 1), ("data", 0)}
    done = copy.sync("local/p", ok=False)  # so much of it is not believed unasked
    assert "2 of 3 artifacts are gone" in done.stderr and "--accept-deletions" in done.stderr
    assert live() == {("net", 0), ("net", 1), ("data", 0)}
    copy.sync("local/p", "--accept-deletions")
    assert live() == {("data", 0)}
    assert copy.sql("select count(*) from artifact_entries where collection = 'net'") == [(6,)]
    proxy.reset()
    copy.sync("local/p")
    assert live() == {("net", 0), ("net", 1), ("data", 0)}


def test_a_listing_that_is_cut_off_makes_nothing_gone(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")

    def cut_off(request: Request, body: Any) -> Any:
        if operation_of(request) == "ArtifactCollections":
            found = body["data"]["project"]["artifactType"]["artifactCollections"]
            found |= {"edges": [], "pageInfo": {"hasNextPage": True, "endCursor": None}}
        return body

    proxy.after = cut_off
    for _ in range(3):
        copy.sync("local/p")
    assert copy.sql("select count(*) from artifacts where deleted_at is null") == [(3,)]


def test_a_server_without_artifacts_loses_nothing_else(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    log_run(server, "q", "r1", [{"_step": 0, "x": 1}])
    copy = Copy(tmp_path / "m", proxy.url, server.key)

    def refusing(request: Request) -> Answer | None:
        for field in ("artifactTypes", "sweeps", "allViews"):
            if request.path == "/graphql" and f"{field}(" in request.json["query"]:
                message = f'Cannot query field "{field}" on type "Project".'
                return Answer(400, json.dumps({"errors": [{"message": message}]}).encode())
        return None

    proxy.before = refusing
    copy.sync("local/q")
    assert copy.sql("select run_id from runs") == [("r1",)]
