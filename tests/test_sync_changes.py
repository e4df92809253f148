"""What happens to runs between two syncs: they go on, start over, are edited, renamed, tagged, deleted."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import Any

from liar import Action, Request
from serving import Server
from syncing import Copy, Proxy, log_run, logged, operation_of, same, sampled

from mirror.records import Fetched
from mirror.store import LOCAL_SOURCE, Writer


def rewrite(server: Server, project: str, run_id: str, rows: list[dict[str, Any]]) -> None:
    """Give a run another history at its source, as a rewind does; the wire has no word for it, so this is done
    in the server's own mirror while it is down."""
    server.stop()
    with Writer(server.root) as writer:
        source = f"{LOCAL_SOURCE}-{writer.store_id[:12]}"  # what a server calls the runs that were logged to it
        (key,) = (k.key for k in writer.known(source, "local", project).values() if k.run_id == run_id)
        writer.begin(key, "history")
        writer.append(key, "history", [json.dumps(row) for row in rows])
        writer.publish(key, "history", Fetched("history", "serve", got=len(rows), total=len(rows)))
    server.start()


def generation(copy: Copy, project: str) -> int:
    """Of the history of a project's only run: 1 until it had to be read anew."""
    ((gen,),) = copy.sql("select history_gen from raw.live where project = ?", project)
    return int(gen)


def ranges(proxy: Proxy) -> list[tuple[int, int]]:
    """The step ranges that were asked for."""
    found = []
    for request in proxy.requests:
        if operation_of(request) == "RunRows":
            v = request.json["variables"]
            found += [(v[f"lo{i}"], v[f"hi{i}"]) for i in range(50) if f"lo{i}" in v]
    return found


def test_a_run_that_goes_on_is_read_from_its_last_row(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "goes-on", "r", logged(300), system=sampled(5), finish=False)
    copy.sync("local/goes-on")
    assert copy.runs("goes-on")["r"]["state"] == "running"
    proxy.reset()
    log_run(server, "goes-on", "r", logged(100, 300), offset=300, system=sampled(9))
    copy.sync("local/goes-on")
    run = copy.runs("goes-on")["r"]
    assert (run["state"], run["history_rows"], run["system_rows"]) == ("finished", 400, 9)
    assert generation(copy, "goes-on") == 1
    same(copy.rows("goes-on", "r"), logged(400))
    same(copy.rows("goes-on", "r", "system"), sampled(9))
    assert [lo for lo, _ in ranges(proxy)] == [299]


def test_new_rows_at_the_last_step_are_not_lost(server: Server, copy: Copy) -> None:
    rows = [{"_step": min(i, 5), "x": i} for i in range(10)]
    log_run(server, "same-step", "r", rows[:7], finish=False)
    copy.sync("local/same-step")
    log_run(server, "same-step", "r", rows[7:], offset=7)
    copy.sync("local/same-step")
    same(copy.rows("same-step", "r"), rows)


def test_equal_rows_logged_again_are_kept(server: Server, copy: Copy) -> None:
    rows = [{"_step": 5, "x": 1}] * 6
    log_run(server, "equal", "r", rows[:2], finish=False)
    copy.sync("local/equal")
    log_run(server, "equal", "r", rows[2:], offset=2)
    copy.sync("local/equal")
    same(copy.rows("equal", "r"), rows)


def test_a_run_that_starts_over_at_step_0_is_read_anew(server: Server, copy: Copy) -> None:
    log_run(server, "over", "r", logged(50), finish=False)
    copy.sync("local/over")
    log_run(server, "over", "r", logged(20), offset=50)
    copy.sync("local/over")
    run = copy.runs("over")["r"]
    assert (run["history_rows"], run["history_complete"]) == (70, True)
    assert generation(copy, "over") == 2
    same(copy.rows("over", "r"), logged(50) + logged(20))


def test_a_rewound_run_is_read_anew(server: Server, copy: Copy) -> None:
    log_run(server, "rewound", "r", logged(100))
    copy.sync("local/rewound")
    rewrite(server, "rewound", "r", logged(40))
    copy.sync("local/rewound")
    same(copy.rows("rewound", "r"), logged(40))
    rewrite(server, "rewound", "r", logged(40) + logged(80, 40, branch=2))
    copy.sync("local/rewound")
    same(copy.rows("rewound", "r"), logged(40) + logged(80, 40, branch=2))
    rewrite(server, "rewound", "r", [])
    copy.sync("local/rewound")
    assert copy.rows("rewound", "r") == []


def test_another_past_of_the_same_length_is_found_by_looking_again(server: Server, copy: Copy) -> None:
    log_run(server, "past", "r", logged(30))
    copy.sync("local/past")
    rewrite(server, "past", "r", logged(30, branch=2))
    copy.sync("local/past", "--full")
    same(copy.rows("past", "r"), logged(30, branch=2))


def test_edits_after_the_end_are_noticed(server: Server, copy: Copy) -> None:
    for name in ("tagged", "renamed", "noted", "untouched"):
        log_run(server, "edits", name, logged(3), config=json.dumps({"a": {"value": 1}}))
    copy.sync("local/edits")
    server.upsert("edits", "tagged", tags=["best"])
    server.upsert("edits", "renamed", displayName="another name")
    server.upsert("edits", "noted", notes="looked at")
    done = copy.sync("local/edits")
    runs = copy.runs("edits")
    assert runs["tagged"]["tags"] == ["best"]
    assert runs["renamed"]["name"] == "another name"
    assert runs["noted"]["notes"] == "looked at"
    assert [runs[name]["history_rows"] for name in runs] == [3, 3, 3, 3]
    assert "0 new, 3 changed" in done.stdout


def test_what_a_listing_does_not_show_is_found_in_turn(server: Server, proxy: Proxy, copy: Copy) -> None:
    """A config is edited at a server whose listing does not show that: a twentieth is looked at per sync."""
    for i in range(40):
        log_run(server, "turns", f"r{i:02}", [], config=json.dumps({"a": {"value": 1}}))
    copy.sync("local/turns")
    hidden = ("updatedAt", "heartbeatAt")

    def hide(request: Request, body: Any) -> Any:
        for edge in (body["data"].get("project") or {}).get("runs", {}).get("edges", []):
            edge["node"].update(dict.fromkeys(hidden))
        for name, node in (body["data"].get("project") or {}).items():
            if name.startswith("r") and isinstance(node, dict) and "name" in node:
                node.update(dict.fromkeys(hidden))
        return json.dumps(body).encode()

    proxy.after = hide
    copy.sync("local/turns")
    for i in range(40):
        server.upsert("turns", f"r{i:02}", config=json.dumps({"a": {"value": 2}}))
    seen = []
    for _ in range(3):
        copy.sync("local/turns")
        configs = copy.sql("select config from runs where project = 'turns'")
        seen.append(sum(json.loads(config)["a"] == 2 for (config,) in configs))
    assert seen == [2, 4, 6]
    copy.sync("local/turns", "--full")
    configs = copy.sql("select distinct config from runs where project = 'turns'")
    assert [json.loads(config) for (config,) in configs] == [{"a": 2}]


def delete(server: Server, project: str, run_id: str) -> None:
    run = server.graphql(
        "query R($p: String!, $r: String!) { project(name: $p, entityName: \"local\") { run(name: $r) { id } } }",
        p=project, r=run_id,
    )["project"]["run"]  # fmt: skip
    mutation = "mutation D($i: DeleteRunInput!) { deleteRun(input: $i) { clientMutationId } }"
    server.graphql(mutation, i={"id": run["id"]})


def test_a_deleted_run_is_marked_after_two_complete_listings(server: Server, copy: Copy) -> None:
    for i in range(12):
        log_run(server, "deleted", f"r{i:02}", logged(2))
    copy.sync("local/deleted")
    delete(server, "deleted", "r03")
    done = copy.sync("local/deleted")
    assert "1 not found" in done.stdout
    assert copy.runs("deleted")["r03"]["deleted_at"] is None
    done = copy.sync("local/deleted")
    assert "1 deleted at the source" in done.stdout
    assert copy.runs("deleted")["r03"]["deleted_at"] is not None
    same(copy.rows("deleted", "r03"), logged(2))
    first = copy.files()
    copy.sync("local/deleted")
    assert copy.files() == first


def test_many_deletions_must_be_accepted(server: Server, copy: Copy) -> None:
    for i in range(5):
        log_run(server, "purged", f"r{i}", logged(2))
    copy.sync("local/purged")
    delete(server, "purged", "r0")
    copy.sync("local/purged")
    done = copy.sync("local/purged", ok=False)
    assert "1 of 5 runs are gone" in done.stderr
    assert "--accept-deletions" in done.stderr
    assert copy.runs("purged")["r0"]["deleted_at"] is None
    copy.sync("local/purged", "--accept-deletions")
    assert copy.runs("purged")["r0"]["deleted_at"] is not None


def test_a_run_that_is_back_is_missing_from_the_start_again(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Missing once, back, missing once: that is not twice in a row."""
    for i in range(12):
        log_run(server, "back", f"r{i:02}", logged(2))
    copy.sync("local/back")

    def hide(request: Request, body: Any) -> Any:
        project = body["data"].get("project") or {}
        if "runs" in project:
            project["runs"]["edges"] = [e for e in project["runs"]["edges"] if e["node"]["name"] != "r05"]
            project["runCount"] = 11
        for alias, node in project.items():  # nor is it there when it is asked for by name
            if isinstance(node, dict) and node.get("name") == "r05":
                project[alias] = None
        return json.dumps(body).encode()

    for hidden in (True, False, True):
        proxy.after = hide if hidden else lambda request, body: json.dumps(body).encode()
        copy.sync("local/back")
    assert copy.runs("back")["r05"]["deleted_at"] is None
    copy.sync("local/back")
    assert copy.runs("back")["r05"]["deleted_at"] is not None
    proxy.after = lambda request, body: json.dumps(body).encode()
    copy.sync("local/back")
    assert copy.runs("back")["r05"]["deleted_at"] is None


def test_an_interrupted_sync_goes_on_where_it_stopped(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "interrupted", "r", logged(2000))
    process: subprocess.Popen[str] | None = None

    def interrupt(request: Request) -> Action | None:
        if proxy.operations["RunRows"] == 12 and process is not None:
            process.send_signal(signal.SIGTERM)
        if proxy.operations["RunRows"] > 12:  # what was asked beside it; the signal is to be heard before all is there
            time.sleep(0.3)
        return None

    proxy.before = interrupt
    process = subprocess.Popen(
        [*copy.command("local/interrupted"), "--page-size", "100"],
        env=copy.environ(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "run the same command again" in stderr
    held = copy.runs("interrupted")["r"]["history_rows"]
    assert 1000 <= held < 2000
    assert not copy.runs("interrupted")["r"]["history_complete"]
    proxy.reset()
    copy.sync("local/interrupted")
    assert min(lo for lo, _ in ranges(proxy)) == held - 1
    same(copy.rows("interrupted", "r"), logged(2000))


def test_an_interrupted_new_generation_leaves_the_old_one_visible(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "regen", "r", logged(500))
    copy.sync("local/regen")
    new = logged(2000, branch=2)
    rewrite(server, "regen", "r", new)
    process: subprocess.Popen[str] | None = None

    def interrupt(request: Request) -> Action | None:
        if proxy.operations["RunRows"] == 12 and process is not None:
            process.send_signal(signal.SIGINT)
        if proxy.operations["RunRows"] > 12:
            time.sleep(0.3)
        return None

    proxy.reset()
    proxy.before = interrupt
    process = subprocess.Popen(
        [*copy.command("local/regen"), "--page-size", "100"], env=copy.environ(), stderr=subprocess.DEVNULL
    )
    assert process.wait(300) == 1
    same(copy.rows("regen", "r"), logged(500))
    proxy.reset()
    copy.sync("local/regen")
    assert min(lo for lo, _ in ranges(proxy)) > 500
    same(copy.rows("regen", "r"), new)
