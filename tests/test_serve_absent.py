"""What `mirror serve` has nothing of answers as a server without it: nothing there, or the SDK's own error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server, client, serving

SDK = """
import json, wandb
api = wandb.Api()
with wandb.init(project="p", id="r") as run:
    run.log({"a": 1})
    run.alert("title \\u00fc", "text", level="WARN")
got = {}
def tries(name, what):
    try:
        found = what()
        got[name] = ["ok", list(found) if hasattr(found, "__next__") else found]
    except Exception as e:
        got[name] = ["error", f"{type(e).__name__}: {e}"]
tries("api_keys", lambda: api.viewer.api_keys)
tries("user", lambda: api.user("ada@x"))
tries("users", lambda: api.users("ada"))
tries("team", lambda: [m.username for m in api.team("local").members])
tries("organization", lambda: api.organization("org"))
tries("registries", lambda: api.registries(organization="org"))
tries("registry", lambda: api.registry("x", organization="org"))
tries("run_queue", lambda: api.run_queue("local", "q").id)
tries("queued_run", lambda: api.queued_run("local", "p", "q", "1").state)
tries("job", lambda: api.job("local/p/j:v0"))
tries("jobs", lambda: api.list_jobs("local", "p"))
tries("reports", lambda: list(api.reports("local/p")))
tries("sweeps", lambda: list(api.project("p", "local").sweeps()))
tries("sweep", lambda: api.sweep("local/p/none"))
tries("sweeps_filtered", lambda: list(api.project("p", "local").sweeps(filters={"state": "x"})))
tries("artifact_types", lambda: list(api.artifact_types("local/p")))
tries("artifact", lambda: api.artifact("local/p/none:v0"))
tries("project", lambda: api.project("none", "local").id)
tries("runs", lambda: list(api.runs("local/none")))
tries("run", lambda: api.run("local/p/none"))
tries("projects", lambda: list(api.projects("other")))
tries("automations", lambda: list(api.automations("local")))
tries("integrations", lambda: list(api.integrations("local")))
tries("create_user", lambda: api.create_user("a@b.c"))
tries("create_run_queue", lambda: api.create_run_queue("q", "local-process", "local"))
tries("create_custom_chart", lambda: api.create_custom_chart("local", "c", "c", "vega2", "private", {}))
print(json.dumps(got))
"""

NOTHING: dict[str, Any] = {
    "api_keys": [], "user": None, "users": [], "team": [], "jobs": [], "reports": [], "sweeps": [],
    "artifact_types": [], "projects": [],
}  # fmt: skip
ERRORS = {
    "organization": "not found", "registries": "not enabled on this wandb server", "registry": "not enabled",
    "run_queue": "Cannot query field", "queued_run": "Cannot query field", "job": "not found",
    "sweep": "Could not find sweep", "sweeps_filtered": "not supported on this W&B server", "artifact": "not found",
    "project": "not found", "runs": "Could not find project", "run": "Could not find run",
    "automations": "Unknown type", "integrations": "Cannot query field", "create_user": "Cannot query field",
    "create_run_queue": "Cannot query field", "create_custom_chart": "Cannot query field",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("absent") / "mirror") as found:
        yield found


def test_every_method_of_the_api_answers(server: Server) -> None:
    got = client(server, SDK)
    assert {name: value for name, (kind, value) in got.items() if kind == "ok"} == NOTHING
    for name, said in ERRORS.items():
        assert got[name][0] == "error" and said.lower() in got[name][1].lower(), (name, got[name])
    assert got.keys() == NOTHING.keys() | ERRORS.keys()
    assert "Traceback" not in server.log.read_text()


def test_an_alert_is_kept(server: Server) -> None:
    server.upsert("p", "alerting")
    alert = "mutation A($i: NotifyScriptableRunAlertInput!) { notifyScriptableRunAlert(input: $i) { success } }"
    i = {
        "entityName": "local",
        "projectName": "p",
        "runName": "alerting",
        "title": "hot\n",
        "text": "x",
        "severity": "ERROR",
    }
    assert server.graphql(alert, i=i)["notifyScriptableRunAlert"] == {"success": True}
    kept = [json.loads(line) for line in (server.root / "live" / "alerts.jsonl").read_text().splitlines()]
    said = [(a["run_id"], a["severity"], a["title"], a["text"]) for a in kept]
    assert said[-1] == ("alerting", "ERROR", "hot\n", "x")
    if len(said) > 1:  # by the SDK, in the test above
        assert said[0] == ("r", "WARN", "title ü", "text")
    for wrong in ({"runName": "none"}, {"text": "x" * 20_000}):
        answer = server.post("/graphql", {"query": alert, "variables": {"i": i | wrong}})
        assert answer.json()["errors"] and "internal" not in answer.text
    assert len((server.root / "live" / "alerts.jsonl").read_text().splitlines()) == len(kept)
    server.kill()
    server.start()  # what lies beside the runs does not disturb a start
    assert server.graphql("{ viewer { username } }")["viewer"]
