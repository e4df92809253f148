"""What changes at a source behind the mirror's back: the next sync has all of it, asks for little else, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from artifact_wire import Logging, versions
from commanding import call, ok
from serving import Server, client, serving
from syncing import Copy, Proxy, log_run, logged, operation_of, same

from mirror.records import Fetched, Project, Run
from mirror.server.history.keys import KeyCatalogue
from mirror.store import LOCAL_SOURCE, Reader, Writer
from mirror.store.versions import run_of

STARTED = json.dumps({"lr": {"value": 0.1}, "deep": {"value": {"a/b": [1, 2]}}, "_wandb": {"value": {"t": {"1": [1]}}}})
"""A config as of a run that a client really started."""

BY_SDK = """
import wandb
with wandb.init(project="behind", id="resumed", resume="must") as run:
    run.log({"x": 100})
with wandb.init(project="behind", id="rewound", resume_from="rewound?_step=9") as run:
    run.log({"x": 200})
with wandb.init(project="behind", id="rewound-same", resume_from="rewound-same?_step=24") as run:
    for i in range(5):
        run.log({"x": 300 + i})
with wandb.init(project="behind", id="forked", fork_from="parent?_step=4") as run:
    run.log({"x": 400})
api = wandb.Api()
run = api.run("local/behind/edited")
run.config["lr"] = 0.5
run.config["new"] = "é"
run.name, run.notes, run.tags = "another name", "looked at", ["best", "ü"]
run.summary["best"] = 7
run.update()
api.run("local/behind/deleted").delete()
print("null")
"""


@contextmanager
def behind(server: Server, *purged: str) -> Iterator[Writer]:
    """The server's own mirror, while it is down: for what the wire has no mutation for. `purged` paths go after it."""
    server.stop()
    with Writer(server.root) as writer:
        yield writer
    if purged:
        ok("purge", *purged, "--yes", root=server.root)
    server.start()


def move(writer: Writer, project: str, run_id: str, to: str) -> None:
    """Give a run another project, as "Move" in W&B's workspace does: it keeps its storage id."""
    run = held_run(writer, project, run_id)
    writer.put_run(replace(run, key=replace(run.key, project=to)))


def held_run(writer: Writer, project: str, run_id: str) -> Run:
    held = next(k for k in writer.known(local(writer), "local", project).values() if k.run_id == run_id)
    with Reader(writer.layout.root) as reader:
        cursor = reader.connect().execute("select * from raw.runs_live where rid = ?", [held.rid])
        return run_of(dict(zip([d[0] for d in cursor.description], cursor.fetchone() or (), strict=True)))


def local(writer: Writer) -> str:
    """What a server calls the runs that were logged to it."""
    return f"{LOCAL_SOURCE}-{writer.store_id[:12]}"


def asked_runs(proxy: Proxy) -> list[str]:
    """The runs whose documents were asked for."""
    return sorted(
        value
        for request in proxy.requests
        if operation_of(request) == "RunDocuments"
        for name, value in request.json["variables"].items()
        if name[0] == "n" and name[1:].isdigit()
    )


def seen(copy: Copy, *names: str) -> set[tuple[Any, ...]]:
    """Rows of `changes` but those of the first sync."""
    return set(copy.sql(
        f"select {', '.join(names)} from changes where seen_at > (select min(seen_at) from changes)"
    ))  # fmt: skip


def x_of(rows: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [(row["_step"], row["x"]) for row in rows]


def test_all_that_changed_behind_the_back_is_there_after_the_next_sync(
    server: Server, proxy: Proxy, copy: Copy
) -> None:
    rows = [{"_step": i, "_timestamp": 1.7e9 + i, "x": i} for i in range(30)]
    fillers = [f"filler{i:02}" for i in range(20)]
    others = ["edited", "grouped", "resumed", "rewound", "rewound-same", "parent", "deleted", "moved"]
    for name in [*fillers, *others]:
        log_run(server, "behind", name, rows, config=STARTED, summary={"x": 29})
    copy.sync("local/behind")
    assert seen(copy, "*") == set()
    new = copy.sql("select name, field, before, after from changes where kind = 'run' and change = 'new'")
    assert sorted(new) == [(name, None, None, None) for name in sorted([*fillers, *others])]
    copy.sync("local/behind")
    client(server, BY_SDK)
    server.upsert("behind", "grouped", groupName="a group", notes="a note")
    with behind(server) as writer:
        move(writer, "behind", "moved", "elsewhere")
    proxy.reset()
    copy.sync("local/behind", "local/elsewhere")

    # Only what changed was asked for, and a twentieth of what did not.
    asked = asked_runs(proxy)
    changed = {"edited", "grouped", "resumed", "rewound", "rewound-same", "forked", "moved"}
    assert changed <= set(asked) and set(asked) - changed <= {*fillers, "parent"}
    assert len(asked) == len(changed) + 2, asked  # of 21 unchanged ones
    assert proxy.operations["RunDocuments"] <= 4 and proxy.operations["RunRows"] <= 8, proxy.operations

    held = copy.runs("behind")
    edited = held["edited"]
    assert (edited["name"], edited["notes"], edited["tags"]) == ("another name", "looked at", ["best", "ü"])
    assert json.loads(edited["config"]) == {"lr": 0.5, "deep": {"a/b": [1, 2]}, "new": "é"}
    assert json.loads(edited["summary"])["best"] == 7
    assert (held["grouped"]["group"], held["grouped"]["notes"]) == ("a group", "a note")
    before = [(i, i) for i in range(30)]
    assert x_of(copy.rows("behind", "resumed")) == [*before, (30, 100)]
    assert x_of(copy.rows("behind", "rewound")) == [*before[:10], (10, 200)]
    assert x_of(copy.rows("behind", "rewound-same")) == [*before[:25], *((25 + i, 300 + i) for i in range(5))]
    assert x_of(copy.rows("behind", "forked")) == [*before[:5], (5, 400)]
    assert (held["forked"]["fork_run_id"], held["forked"]["fork_step"]) == ("parent", 4)
    assert held["parent"]["fork_run_id"] is None and held["rewound"]["fork_run_id"] is None
    same(copy.rows("behind", "parent"), rows)
    assert "moved" not in held
    same(copy.rows("elsewhere", "moved"), rows)
    assert copy.sql("select count(*) from raw.history where rid = ?", copy.runs("elsewhere")["moved"]["rid"]) == [
        (4 * 30 - 30,)  # the keys of 30 rows, once: nothing was written again
    ]

    runs = {row for row in seen(copy, "name", "change", "field", "before", "after") if row[0] not in fillers}
    assert {row for row in runs if row[0] == "edited"} >= {
        ("edited", "edited", "name", "edited", "another name"),
        ("edited", "edited", "notes", None, "looked at"),
        ("edited", "edited", "tags", "[]", '["best", "ü"]'),
        ("edited", "edited", "config/lr", "0.1", "0.5"),
        ("edited", "edited", "config/new", None, '"é"'),
        ("edited", "edited", "summary/best", None, "7"),
    }
    assert {row for row in runs if row[0] == "grouped"} == {
        ("grouped", "edited", "group", None, "a group"),
        ("grouped", "edited", "notes", None, "a note"),
    }
    histories = {row for row in runs if row[1] in ("resumed", "rewound", "rewritten", "moved") or row[2] == "fork"}
    assert histories == {
        ("resumed", "resumed", "history", "30", "31"),
        ("rewound", "rewound", "history", "30", "11"),
        ("rewound-same", "rewritten", "history", "30", "30"),
        ("forked", "new", "fork", None, "parent?_step=4"),
        ("moved", "moved", "path", "local/behind", "local/elsewhere"),
    }
    assert ("elsewhere", "new", None, None, None) in runs

    # What is deleted is believed when it is missing twice.
    assert held["deleted"]["deleted_at"] is None
    proxy.reset()
    done = copy.sync("local/behind")
    assert "1 deleted at the source" in done.stdout
    assert copy.runs("behind")["deleted"]["deleted_at"] is not None
    assert set(asked_runs(proxy)) <= {*fillers, *others, "forked"} and len(asked_runs(proxy)) == 2
    assert ("deleted", "deleted", None) in seen(copy, "name", "change", "field")
    count = copy.sql("select count(*) from changes")
    copy.sync("local/behind", "local/elsewhere")
    assert copy.sql("select count(*) from changes") == count  # nothing happened, nothing is said


def test_another_past_of_the_same_length_with_the_same_end(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Neither the number of rows nor the last one tells; the server's catalogue of keys does, at no request."""
    rows = logged(30)
    for name in ("r", "untouched"):
        log_run(server, "past", name, rows)
    copy.sync("local/past")
    other = [row | {"late": 1} if 10 <= row["_step"] < 20 else row for row in rows]
    catalogue = KeyCatalogue()
    catalogue.add([json.dumps(row) for row in other])
    with behind(server) as writer:
        run = held_run(writer, "past", "r")
        writer.begin(run.key, "history")
        writer.append(run.key, "history", [json.dumps(row) for row in other])
        writer.publish(run.key, "history", Fetched("history", "serve", got=30, total=30))
        writer.put_run(replace(run, history_keys=catalogue.text(), updated_at=datetime.now(timezone.utc)))
    proxy.reset()
    copy.sync("local/past")
    same(copy.rows("past", "r"), other)
    same(copy.rows("past", "untouched"), rows)
    assert seen(copy, "name", "change", "field", "before", "after") == {("r", "rewritten", "history", "30", "30")}
    proxy.reset()
    copy.sync("local/past", "--full")
    assert proxy.operations["RunRows"] <= 2  # the last rows of both, not all of them
    ((gen,),) = copy.sql("select history_gen from raw.live where run_id = 'r'")
    assert gen == 2


def test_changes_are_listed_and_chosen(server: Server, copy: Copy) -> None:
    for name in ("a", "b"):
        log_run(server, "listed", name, logged(3), config=STARTED)
    copy.sync("local/listed")
    server.upsert("listed", "a", displayName="x\x1b[31m\n" + "y" * 1000, tags=["t"])
    copy.sync("local/listed")
    found = json.loads(ok("changes", "--format", "json", root=copy.root))
    assert [(row["path"], row["change"], row["field"]) for row in found] == [
        ("local/listed", "new", None),
        ("local/listed/a", "new", None),
        ("local/listed/b", "new", None),
        ("local/listed/a", "edited", "name"),
        ("local/listed/a", "edited", "tags"),
    ]
    assert found[3]["before"] == "a" and len(found[3]["after"]) == 200 and found[3]["after"].endswith("y...")
    assert "\x1b" not in ok("changes", root=copy.root)

    def count(*options: str) -> int:
        return len(json.loads(ok("changes", *options, "--format", "json", root=copy.root)))

    assert count("local/listed/a") == 3 and count("local/listed/b") == 1 and count("local") == 5
    assert count("--kind", "project") == 1 and count("--change", "edited") == 2 and count("--since", "1h") == 5
    assert count("--since", "2099-01-01") == 0
    assert count("--source", found[0]["source"]) == 5 and count("--source", "other.example", "--kind", "run") == 0
    assert json.loads(ok("changes", "-n", "2", "--format", "json", root=copy.root)) == found[:2]
    for options, code, said in (
        (["local/nowhere"], 1, "holds nothing of `local/nowhere`"),
        (["--since", "soon"], 2, "is no time"),
        (["--kind", "thing"], 2, "thing"),
    ):
        done = call("changes", *options, root=copy.root)
        assert done.code == code and said in done.err, done


def test_one_row_however_much_there_is(server: Server, copy: Copy) -> None:
    """A run of many rows and many fields is one row when it is new, and one when it is resumed."""
    config = {f"key{i}": {"value": i} for i in range(3000)} | {"_wandb": {"value": {}}}
    log_run(server, "large", "r", logged(20_000), config=json.dumps(config), summary={f"s{i}": i for i in range(3000)})
    copy.sync("local/large")
    assert copy.sql("select kind, change, field from changes order by kind") == [
        ("project", "new", None), ("run", "new", None),
    ]  # fmt: skip
    summary = {f"s{i}": i + 1 for i in range(3000)}
    log_run(server, "large", "r", logged(20_000, 20_000), offset=20_000, summary=summary)
    copy.sync("local/large")
    assert seen(copy, "change", "field", "before", "after") == {("resumed", "history", "20000", "40000")}
    changed = config | {f"key{i}": {"value": -1} for i in range(3000)}
    server.upsert("large", "r", config=json.dumps(changed))
    copy.sync("local/large")
    fields = [row for row in seen(copy, "change", "field", "after") if row[0] == "edited"]
    assert len(fields) == 21 and ("edited", "config", "... and 2,980 more fields") in fields


def test_runs_that_go_on_are_no_news_but_their_end_is(server: Server, copy: Copy) -> None:
    log_run(server, "goes", "r", logged(10), summary={"loss": 1}, finish=False)
    copy.sync("local/goes")
    log_run(server, "goes", "r", logged(10, 10), offset=10, summary={"loss": 2}, finish=False)
    copy.sync("local/goes")
    assert seen(copy, "*") == set()
    log_run(server, "goes", "r", logged(1, 20), offset=20, summary={"loss": 3})
    copy.sync("local/goes")
    assert seen(copy, "name", "change", "field", "before", "after") == {("r", "edited", "state", "running", "finished")}


def test_a_run_that_is_back_is_said_to_be(server: Server, proxy: Proxy, copy: Copy) -> None:
    for i in range(11):
        log_run(server, "again", f"r{i:02}", logged(2))
    copy.sync("local/again")

    def hide(request: Any, body: Any) -> Any:
        project = body["data"].get("project") or {}
        if "runs" in project:
            project["runs"]["edges"] = [e for e in project["runs"]["edges"] if e["node"]["name"] != "r05"]
            project["runCount"] = 10
        for alias, node in project.items():  # nor is it there when it is asked for by name
            if isinstance(node, dict) and node.get("name") == "r05":
                project[alias] = None
        return json.dumps(body).encode()

    proxy.after = hide
    copy.sync("local/again")
    copy.sync("local/again")
    proxy.reset()
    copy.sync("local/again")
    assert copy.sql("select change from changes where name = 'r05' order by seen_at") == [
        ("new",), ("deleted",), ("returned",),
    ]  # fmt: skip
    assert copy.runs("again")["r05"]["deleted_at"] is None
    same(copy.rows("again", "r05"), logged(2))


def test_a_project_is_renamed_and_another_one_deleted(server: Server, proxy: Proxy, copy: Copy) -> None:
    for name in ("old-name", "doomed"):
        for i in range(3):
            log_run(server, name, f"r{i}", logged(5))
    copy.sync("local")
    rid = copy.runs("old-name")["r0"]["rid"]
    ((made,),) = copy.sql("select created_at from projects where project = 'old-name'")
    with behind(server, "local/old-name", "local/doomed") as writer:
        for i in range(3):
            move(writer, "old-name", f"r{i}", "new-name")
        writer.put_project(Project(local(writer), "local", "new-name", created_at=made))
    copy.sync("local")
    run = copy.runs("new-name")["r0"]
    assert run["rid"] == rid and copy.runs("old-name") == {}
    assert copy.sql("select count(*) from raw.history where rid = ?", rid) == [(25,)]  # 5 rows of 5 keys, once
    same(copy.rows("new-name", "r0"), logged(5))
    renamed = ("project", "renamed", "local/old-name", "local/new-name")
    assert renamed in seen(copy, "kind", "change", "before", "after")
    assert ("run", "moved") not in seen(copy, "kind", "change")
    gone = "select project from projects where deleted_at is not null order by 1"
    assert copy.sql(gone) == [("old-name",)]
    done = copy.sync("local", ok=False)  # twice it was not there, but much of what there is
    assert "projects of `local` are gone" in done.stderr and "--accept-deletions" in done.stderr
    copy.sync("local", "--accept-deletions")
    assert copy.sql(gone) == [("doomed",), ("old-name",)]
    assert ("project", "deleted", "doomed") in seen(copy, "kind", "change", "name")
    assert copy.runs("doomed")["r0"]["deleted_at"] is None  # its runs stay as they were
    (line,) = (line for line in ok("status", root=copy.root).splitlines() if "local/doomed" in line)
    assert line.rstrip().endswith("deleted at the source")
    log_run(server, "doomed", "r9", logged(5))
    copy.sync("local", ok=None)
    assert copy.sql(gone) == [("old-name",)]
    assert ("project", "returned", "doomed") in seen(copy, "kind", "change", "name")


def test_a_renamed_project_whose_storage_ids_are_made_of_names(server: Server, proxy: Proxy, copy: Copy) -> None:
    """As on W&B's cloud: the runs are the ones they were all the same."""
    log_run(server, "other", "r0", logged(1))  # of the same run id, but made at another time
    for i in range(3):
        log_run(server, "named", f"r{i}", logged(5))
    copy.sync("local/other", "local/named")
    rids = {name: run["rid"] for name, run in copy.runs("named").items()}
    ((made,),) = copy.sql("select created_at from projects where project = 'named'")
    with behind(server, "local/named") as writer:
        for i in range(3):
            move(writer, "named", f"r{i}", "renamed")
        writer.put_project(Project(local(writer), "local", "renamed", created_at=made))

    def other_ids(request: Any, body: Any) -> Any:
        project = body["data"].get("project") or {}
        runs = [edge["node"] for edge in (project.get("runs") or {}).get("edges", ())]
        for run in [*runs, *(node for alias, node in project.items() if alias[0] == "r" and alias[1:].isdigit())]:
            run["id"] = f"{run['id']}-{project.get('name')}"
        return body

    proxy.reset()
    proxy.after = other_ids
    copy.sync("local/renamed")
    held = copy.runs("renamed")
    assert {name: run["rid"] for name, run in held.items()} == rids and copy.runs("named") == {}
    assert all(run["storage_id"].endswith("-renamed") for run in held.values())
    assert copy.sql("select count(*) from raw.history where rid = ?", rids["r0"]) == [(25,)]
    for name in rids:
        same(copy.rows("renamed", name), logged(5))
    assert ("project", "renamed", "local/named", "local/renamed") in seen(copy, "kind", "change", "before", "after")
    assert copy.sql("select project from projects where deleted_at is not null") == [("named",)]
    assert copy.runs("other")["r0"]["rid"] not in rids.values()
    count = copy.sql("select count(*) from changes")
    copy.sync("local/renamed")
    assert copy.sql("select count(*) from changes") == count


def test_what_cannot_be_reached_is_not_deleted(server: Server, proxy: Proxy, copy: Copy) -> None:
    """A project of somebody else's entity may only be closed to the key."""
    log_run(server, "closed", "r", logged(2), entity="others")
    copy.sync("others/closed")

    def after(request: Any, body: Any) -> Any:
        if (request.json.get("variables") or {}).get("project") == "closed":
            body["data"]["project"] = None
        return body

    proxy.after = after
    for _ in range(3):
        copy.sync("others/closed", "--accept-deletions", ok=False)
    assert copy.sql("select count(*) from projects where deleted_at is not null") == [(0,)]
    assert copy.sql("select count(*) from changes where change = 'deleted'") == [(0,)]


def test_edits_of_artifacts_are_listed_by_field(server: Server, copy: Copy) -> None:
    artifact = Logging(server, "edited-art", {"a.txt": b"a"}).all()["id"]
    for i in range(10):
        Logging(server, f"more{i}", {"a.txt": b"a"}).all()
    copy.sync("local/p")
    new = set(copy.sql("select kind, name from changes where change = 'new'"))
    assert {("project", "p"), ("artifact", "edited-art:v0"), ("collection", "edited-art")} <= new
    server.graphql(
        'mutation($id: ID!) { updateArtifact(input: {artifactID: $id, description: "better"}) { artifact { id } } }',
        id=artifact,
    )
    copy.sync("local/p")
    assert seen(copy, "kind", "name", "change", "field", "before", "after") == {
        ("artifact", "edited-art:v0", "edited", "description", None, "better")
    }
    server.graphql(
        "mutation($id: ID!) { deleteArtifact(input: {artifactID: $id, deleteAliases: true}) { artifact { id } } }",
        id=artifact,
    )
    copy.sync("local/p")
    copy.sync("local/p")
    gone = seen(copy, "kind", "name", "change") - {("artifact", "edited-art:v0", "edited")}
    assert ("artifact", "edited-art:v0", "deleted") in gone and {change for _, _, change in gone} == {"deleted"}


def test_uses_that_were_declared_here_outlive_a_sync(server: Server, copy: Copy) -> None:
    """The mirror serves, too, and a run logged to it used a mirrored artifact: its source knows nothing of that."""
    use = "mutation U($i: UseArtifactInput!) { useArtifact(input: $i) { artifact { id } } }"

    def used(at: Server, project: str, run: str, artifact: str) -> None:
        log_run(at, project, run, logged(1))
        at.graphql(use, i={"entityName": "local", "projectName": project, "runName": run, "artifactID": artifact})

    def uses() -> set[tuple[str, str]]:
        return set(copy.sql("select run_project, run_id from artifact_uses"))

    artifact = Logging(server, "net", {"a.txt": b"a"}).all()["id"]
    used(server, "p", "there", artifact)
    copy.sync("local/p")
    with serving(copy.root) as here:
        (version,) = versions(here, "net")
        used(here, "mine", "here", version["id"])
    assert uses() == {("p", "there"), ("mine", "here")}
    used(server, "p", "there too", artifact)
    copy.sync("local/p")
    assert uses() == {("p", "there"), ("p", "there too"), ("mine", "here")}
    files = copy.files()
    copy.sync("local/p")
    assert copy.files() == files
