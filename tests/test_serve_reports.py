"""Reports on `mirror serve`: made, listed, changed, read and deleted, by GraphQL, the SDK and wandb-workspaces."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server, client, serving

from mirror.records import ItemKey, Report
from mirror.store import Reader, Writer

UPSERT = """mutation U($i: UpsertViewInput!) { upsertView(input: $i) {
  inserted view { id name type displayName description spec project { name entityName } } } }"""
DELETE = "mutation D($i: DeleteViewInput!) { deleteView(input: $i) { success pendingDrafts } }"
VIEW = "query V($id: ID!) { view(id: $id) { name displayName description type spec user { username } createdAt } }"
LIST = """query L($t: String, $n: String, $p: String = "p") { project(name: $p, entityName: "local") {
  allViews(viewType: $t, viewName: $n, first: 50) { edges { node { id name displayName } } } } }"""
SPEC = json.dumps({"version": 5, "blocks": [{"type": "paragraph", "children": [{"text": "ü <b>"}]}], "n": 2**60})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("reports") / "mirror"
    writer = Writer(root)
    writer.put_item(Report(ItemKey("api.wandb.ai", "VmlldzoxMjM=", "local", "far"), "r1", title="theirs", spec=SPEC))
    writer.commit()
    writer.close()
    with serving(root) as found:
        yield found


def made(server: Server, **fields: Any) -> dict[str, Any]:
    given = {"entityName": "local", "projectName": "p", "type": "runs", "spec": SPEC} | fields
    found: dict[str, Any] = server.graphql(UPSERT, i=given)["upsertView"]
    return found


def test_a_report_is_made_changed_and_deleted(server: Server) -> None:
    first = made(server, displayName="One", description="about")
    assert first["inserted"] and first["view"]["project"] == {"name": "p", "entityName": "local"}
    report_id = first["view"]["id"]
    view = server.graphql(VIEW, id=report_id)["view"]
    assert (view["displayName"], view["description"], view["type"], view["spec"]) == ("One", "about", "runs", SPEC)
    assert view["user"] == {"username": "local"} and view["createdAt"]
    again = server.graphql(UPSERT, i={"id": report_id, "displayName": "Two", "spec": '{"blocks": []}'})["upsertView"]
    assert (again["inserted"], again["view"]["displayName"], again["view"]["name"]) == (
        False,
        "Two",
        first["view"]["name"],
    )
    server.kill()
    server.start()
    view = server.graphql(VIEW, id=report_id.rstrip("="))["view"]  # as links carry it
    assert (view["displayName"], view["description"], view["spec"]) == ("Two", "about", '{"blocks": []}')
    with Reader(server.root) as reader:
        rows = reader.connect().execute("select title, spec, deleted_at from reports where project = 'p'").fetchall()
    assert rows == [("Two", '{"blocks": []}', None)]
    assert server.graphql(DELETE, i={"id": report_id, "deleteDrafts": True})["deleteView"]["success"] is True
    assert server.graphql(VIEW, id=report_id) == {"view": None}
    assert server.graphql(LIST)["project"]["allViews"]["edges"] == []


def test_reports_are_listed_by_type_and_name(server: Server) -> None:
    for n in range(3):
        made(server, projectName="many", displayName=f"r{n}", name=f"n{n}")
    made(server, projectName="many", displayName="draft", type="runs/draft")
    made(server, projectName="many", displayName="space", type="project-view", name="nw-abc-v")

    def listed(**given: Any) -> list[str]:
        found = server.graphql(LIST, p="many", **given)["project"]["allViews"]["edges"]
        return [e["node"]["displayName"] for e in found]

    assert listed(t="runs") == ["r0", "r1", "r2"] and listed(t="runs", n="n1") == ["r1"] == listed(t="runs", n="r1")
    assert listed(t="project-view") == ["space"] and len(listed()) == 5
    again = made(server, projectName="many", displayName="renamed", name="n1")
    assert again["inserted"] is False and listed(t="runs") == ["r0", "renamed", "r2"]


def test_bad_reports_are_refused(server: Server) -> None:
    for given, said in (
        ({"spec": "no json"}, "no JSON object"),
        ({"spec": None}, "needs a `spec`"),
        ({"id": "bm90aGluZw==", "spec": "{}"}, "there is no report"),
        ({"projectName": "a/b"}, "cannot be the name of a project"),
    ):
        i = {"entityName": "local", "projectName": "p", "spec": "{}"} | given
        text = server.post("/graphql", {"query": UPSERT, "variables": {"i": i}}).text
        assert said in text and "internal error" not in text
    for gone in ("bm90aGluZw==", "%%%", ""):
        text = server.post("/graphql", {"query": DELETE, "variables": {"i": {"id": gone}}}).text
        assert "there is no report" in text


def test_a_mirrored_report_is_read_only(server: Server) -> None:
    (edge,) = server.graphql(LIST, p="far")["project"]["allViews"]["edges"]
    assert server.graphql(VIEW, id=edge["node"]["id"])["view"]["spec"] == SPEC
    for query, i in ((UPSERT, {"id": edge["node"]["id"], "displayName": "mine"}), (DELETE, {"id": edge["node"]["id"]})):
        text = server.post("/graphql", {"query": query, "variables": {"i": i}}).text
        assert "mirrored from `api.wandb.ai`" in text


SDK = """
import json, wandb
api = wandb.Api()
found = list(api.reports("local/sdk"))
named = list(api.reports("local/sdk", name="second"))
report = found[0]
print(json.dumps([[r.display_name for r in found], [r.display_name for r in named], report.description, report.spec,
                  report.user["username"], report.url]))
"""


def test_the_sdk_lists_reports(server: Server) -> None:
    for n in ("first", "second"):
        made(server, projectName="sdk", displayName=n, description=f"the {n}")
    titles, named, description, spec, user, url = client(server, SDK)
    assert titles == ["first", "second"] and named == ["second"]
    assert (description, spec, user) == ("the first", json.loads(SPEC), "local") and "/local/sdk/reports/first--" in url


WORKSPACES = """
import json
import wandb_workspaces.reports.v2 as wr
report = wr.Report(project="ww", entity="local", title="A title", description="words",
                   blocks=[wr.H1("Head"), wr.P("text \\u00fc"),
                           wr.PanelGrid(panels=[wr.LinePlot(x="Step", y=["loss"])])])
report.save()
url = report.url
again = wr.Report.from_url(url)
said = [again.title, again.description, [type(b).__name__ for b in again.blocks], again.blocks[1].text]
again.title = "Another"
again.save()
said.append(wr.Report.from_url(url).title)
again.delete()
try:
    wr.Report.from_url(url)
    said.append(None)
except Exception as e:
    said.append(type(e).__name__)
print(json.dumps(said))
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed")
def test_wandb_workspaces_saves_and_reads_reports(server: Server) -> None:
    title, description, blocks, text, changed, gone = client(server, WORKSPACES)
    assert (title, description, changed) == ("A title", "words", "Another")
    assert blocks == ["H1", "P", "PanelGrid"] and "text ü" in json.dumps(text, ensure_ascii=False)
    assert gone is not None
