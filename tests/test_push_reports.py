"""Reports of one server, mirrored and pushed to another: what they show there is the copies."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving
from syncing import MIRROR, Copy

from mirror.credentials import Credential
from mirror.importers.account import Totals
from mirror.importers.places import Namespace
from mirror.importers.reports import push_reports
from mirror.importers.run import Destination
from mirror.store import Reader
from mirror.wandb.client import Client
from mirror.wandb.transport import Transport

UPSERT = "mutation U($i: UpsertViewInput!) { upsertView(input: $i) { view { id name } } }"
LIST = """query L { project(name: "q", entityName: "team") { allViews(viewType: "runs", first: 50) { edges { node {
  id name displayName description spec } } } } }"""
HERE, PLACE = Namespace("local", "p"), Namespace("team", "q")


def spec(host: str, at: Namespace, run: dict[str, Any]) -> dict[str, Any]:
    """A report as wandb-workspaces writes one, about a run of a project on a server."""
    return {
        "version": 5,
        "big": 2**60 + 1,
        "blocks": [
            {"type": "paragraph", "children": [{"text": "\u00fc <b> local/p"}, {"type": "link",
              "url": f"{host}/{at.entity}/{at.project}/runs/{run['name']}", "children": [{"text": "a run"}]}]},
            {"type": "link", "url": f"{host}/local/p2/runs/{run['name']}"},
            {"type": "panel-grid", "metadata": {"runSets": [
                {"name": "Run set", "project": {"name": at.project, "entityName": at.entity},
                 "selections": {"root": 0, "tree": [run["id"]]},
                 "filters": {"op": "AND", "filters": [
                     {"key": {"section": "run", "name": "name"}, "op": "IN", "value": [run["name"]]},
                     {"key": {"section": "config", "name": "name"}, "op": "=", "value": "old"}]}},
                {"name": "another's", "project": {"name": "p", "entityName": "other"}}],
                "colors": {run["id"]: "#fff"}}},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("reports") / "source") as server:
        run = server.upsert("p", "old")
        for name, content in (("n1", json.dumps(spec(server.url, HERE, run))), ("n2", '{"blocks": [ ]}')):
            server.graphql(
                UPSERT,
                i={"entityName": "local", "projectName": "p", "type": "runs", "name": name, "displayName": f"T{name}",
                   "description": "about", "spec": content},
            )  # fmt: skip
        yield server


def push(copy: Copy, there: Server, **more: Any) -> Totals:
    to = Client(Transport(there.url, Credential(there.key, "a test"), writable=True))
    with Reader(copy.root) as reader:
        ((name,),) = reader.connect().execute("select distinct source from reports").fetchall()
        return push_reports(
            reader,
            name,
            HERE,
            Destination(to),
            {HERE: PLACE},
            run_name=lambda run: ("team", "q", f"{run[2]}-2"),
            **more,
        )


def shown(there: Server) -> dict[str, dict[str, Any]]:
    return {e["node"]["name"]: e["node"] for e in there.graphql(LIST)["project"]["allViews"]["edges"]}


def test_reports_lead_to_the_copies(source: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", source.url, source.key)
    copy.sync("local/p")
    with serving(tmp_path / "there", "--entity", "team") as there:
        run = there.upsert("q", "old-2", "team")
        totals = push(copy, there)
        assert not totals.failures and not totals.errors and totals.done == 2, totals
        held = shown(there)
        expected = spec(there.url, PLACE, run)
        expected["blocks"][1]["url"] = f"{source.url}/local/p2/runs/old"
        assert json.loads(held["n1"]["spec"]) == expected
        assert held["n2"]["spec"] == '{"blocks": [ ]}'
        assert {(r["displayName"], r["description"]) for r in held.values()} == {("Tn1", "about"), ("Tn2", "about")}
        assert push(copy, there).skipped == 2
        assert push(copy, there, incremental=False).done == 2
        assert {name: r["id"] for name, r in shown(there).items()} == {name: r["id"] for name, r in held.items()}


def test_a_project_without_runs_is_sent_with_its_description(source: Server, tmp_path: Path) -> None:
    query = "mutation M($i: UpsertModelInput!) { upsertModel(input: $i) { inserted } }"
    source.graphql(query, i={"entityName": "local", "name": "bare", "description": "an *idea*"})
    content = {"entityName": "local", "projectName": "bare", "type": "runs", "name": "n3", "spec": "{}"}
    source.graphql(UPSERT, i=content | {"displayName": "T"})
    copy = Copy(tmp_path / "copy", source.url, source.key)
    copy.sync("local/bare")
    with serving(tmp_path / "there", "--entity", "team") as there:
        command = [*MIRROR, "push", "local/bare", "--to", there.url, "--remap", "local/bare=team/q"]
        env = os.environ | {"MIRROR_DST_API_KEY": there.key, "NETRC": "/dev/null"}
        done = subprocess.run(
            [*command, "--mirror", str(copy.root)], env=env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0 and "1 reports sent" in done.stdout, done
        query = 'query P { project(name: "q", entityName: "team") { description } }'
        assert there.graphql(query)["project"]["description"] == "an *idea*"
        assert [report["displayName"] for report in shown(there).values()] == ["T"]
