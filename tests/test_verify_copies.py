"""Copies on another server that are kept true: what changed at the source since is sent again, and verified.

Two real servers. What a copy must be like is written down by hand, or read at the source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from commanding import Done, call
from serving import Server, serving
from syncing import Copy, log_run, logged

Pushed = Callable[..., Done]
Verified = Callable[..., tuple[Done, dict[str, Any]]]

UPSERT = "mutation U($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { id name } } }"
SWEEPS = """query S($p: String!) { project(name: $p) { sweeps { edges { node {
    name displayName description config state runCount } } } } }"""
GRID = "method: grid\nparameters:\n  x:\n    values: [1, 2]\n"


@pytest.fixture(scope="module")
def there(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server things are sent to."""
    with serving(tmp_path_factory.mktemp("there") / "served", key=server.key) as found:
        yield found


@pytest.fixture(scope="module")
def copy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy") / "m", server.url, server.key)


@pytest.fixture
def push(there: Server, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Pushed:
    monkeypatch.setenv("MIRROR_DST_API_KEY", there.key)

    def run(*args: str, code: int = 0) -> Done:
        done = call("push", *args, "--to", there.url, root=copy.root)
        assert done.code == code and "Traceback" not in done.err, done
        return done

    return run


@pytest.fixture
def verify(there: Server, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Verified:
    monkeypatch.setenv("WANDB_API_KEY", there.key)

    def run(*args: str, against: str = there.url) -> tuple[Done, dict[str, Any]]:
        done = call("verify", *args, "--against", against, "--format", "json", root=copy.root)
        assert "Traceback" not in done.err, done
        return done, json.loads(done.out)["against"] if done.out else {}

    return run


def told(found: dict[str, Any]) -> set[tuple[str, ...]]:
    return {(one["where"].split("/", 2)[-1], one["stream"], one["key"]) for one in found["listed"]}


def sweep_of(server: Server, project: str, **fields: str) -> dict[str, str]:
    given = {"entityName": "local", "projectName": project} | fields
    found: dict[str, str] = server.graphql(UPSERT, i=given)["upsertSweep"]["sweep"]
    return found


def sweeps_there(server: Server, project: str) -> list[dict[str, Any]]:
    return [edge["node"] for edge in server.graphql(SWEEPS, p=project)["project"]["sweeps"]["edges"]]


def test_copies_of_sweeps_follow_their_originals(
    server: Server, there: Server, copy: Copy, push: Pushed, verify: Verified
) -> None:
    given = {"config": GRID, "displayName": "first", "description": "why"}
    sweep, other = sweep_of(server, "turn", **given, state="RUNNING"), sweep_of(server, "turn", **given, state="PAUSED")
    log_run(server, "turn", "one", logged(2), sweep=sweep["name"])
    copy.sync("local/turn")
    push("local/turn")
    before = {held["description"]: held for held in sweeps_there(there, "turn")}
    assert [held["state"] for held in before.values()] == ["FINISHED", "PAUSED"] and len(before) == 2

    changed = {"config": GRID.replace("2", "é"), "displayName": "second", "description": "", "state": "STOPPED"}
    sweep_of(server, "turn", id=sweep["id"], **changed)
    sweep_of(server, "turn", id=other["id"], displayName="")
    copy.sync("local/turn")
    done, found = verify("local/turn")
    names = ("name", "description", "state", "config")
    assert done.code == 1 and told(found) == {
        *((f"sweeps/{sweep['name']}", "sweeps", name) for name in names), (f"sweeps/{other['name']}", "sweeps", "name"),
    }  # fmt: skip
    push("local/turn")
    done, found = verify("local/turn")
    assert done.code == 0 and found["compared"]["sweeps"] == 2, found
    after = {held["name"]: held for held in sweeps_there(there, "turn")}
    first, second = before.values()
    assert after.keys() == {first["name"], second["name"]}  # the same copies
    mark = f"Copied from {copy.url.removeprefix('http://')}/local/turn/sweeps/{sweep['name']}"
    assert after[first["name"]] == first | changed | {"description": mark} and first["runCount"] == 1
    assert after[second["name"]] == second | {"displayName": ""}
