"""`mirror sync` against `mirror serve`: what was logged is what is held, and the second sync does next to nothing."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from serving import Server
from syncing import Copy, Proxy, log_run, logged, proxied, same, sampled


def test_runs_with_everything_they_have(server: Server, copy: Copy) -> None:
    config = {"lr": {"value": 0.1, "desc": None}, "_wandb": {"value": {"cli_version": "0.31.0"}}}
    log_run(
        server, "whole", "r1", logged(200), system=sampled(30), summary={"loss": 0.005, "_step": 199},
        config=json.dumps(config), displayName="[/red] fine\nname", tags=["a", "b"], groupName="g", jobType="train",
        notes="some *notes*", commit="abc", host="node7",
    )  # fmt: skip
    done = copy.sync("local/whole")
    run = copy.runs("whole")["r1"]
    assert (run["name"], run["tags"], run["group"], run["job_type"]) == ("[/red] fine\nname", ["a", "b"], "g", "train")
    assert (run["notes"], run["state"], run["commit"], run["host"]) == ("some *notes*", "finished", "abc", "node7")
    assert run["history_rows"] == run["history_total"] == 200
    assert run["history_complete"] and run["history_lossless"]
    assert (run["system_rows"], run["system_got"], run["system_total"]) == (30, 30, 30)
    assert not run["system_sampled"]
    assert run["system_asked"] > 30
    assert json.loads(run["config"]) == {"lr": 0.1}
    assert run["url"] == f"{copy.url}/local/whole/runs/r1"
    same(copy.rows("whole", "r1"), logged(200))
    same(copy.rows("whole", "r1", "system"), sampled(30))
    assert "1 new" in done.stdout
    assert "200 rows" in done.stdout


def upload(server: Server, project: str, run_id: str, files: dict[str, bytes]) -> None:
    """Put files beside a run, as the SDK does."""
    query = (
        "mutation F($i: CreateRunFilesInput!) { createRunFiles(input: $i) { uploadHeaders files { name uploadUrl } } }"
    )
    wanted = {"entityName": "local", "projectName": project, "runName": run_id, "files": list(files)}
    for file in server.graphql(query, i=wanted)["createRunFiles"]["files"]:
        url = urljoin(server.url, file["uploadUrl"])
        assert requests.put(url, files[file["name"]], auth=("api", server.key), timeout=300).ok


def test_file_manifests_and_the_bytes_of_the_metadata(server: Server, copy: Copy) -> None:
    metadata = {"program": "train.py", "args": ["--lr", "0.1"], "git": {"commit": "abc"}, "note": "é"}
    files = {f"media/images/{i:03}.png": b"x" * i for i in range(70)}
    log_run(server, "files", "r", logged(3), finish=False)
    upload(server, "files", "r", {"wandb-metadata.json": json.dumps(metadata).encode()})
    upload(server, "files", "r", files)
    assert server.stream("files", "r", complete=True, exitcode=0).ok
    log_run(server, "files", "without", logged(3))
    copy.sync("local/files")
    run = copy.runs("files")["r"]
    assert json.loads(run["metadata"]) == metadata
    assert copy.runs("files")["without"]["metadata"] is None
    held = dict(copy.sql("select name, size from files where run_id = 'r'"))
    assert {name: held[name] for name in files} == {name: len(content) for name, content in files.items()}
    assert "wandb-metadata.json" in held

    # Nothing changed: not even looking at every run again fetches the metadata anew (viewer, listing, documents,
    # the second page of the files, rows), and a glance in passing leaves out the files.
    first = copy.files()
    assert "; 6 requests" in copy.sync("local/files", "--full").stdout
    assert "; 5 requests" in copy.sync("local/files").stdout
    assert copy.files() == first

    upload(server, "files", "r", {"wandb-metadata.json": json.dumps(metadata | {"note": "new"}).encode()})
    copy.sync("local/files", "--full")
    assert json.loads(copy.runs("files")["r"]["metadata"])["note"] == "new"


def test_a_second_sync_writes_no_file_and_asks_little(server: Server, proxy: Proxy, copy: Copy) -> None:
    for i in range(60):
        log_run(server, "unchanged", f"run{i:03}", logged(20), system=sampled(3), summary={"loss": i})
    copy.sync("local/unchanged")
    first = copy.files()
    for _ in range(3):
        proxy.reset()
        done = copy.sync("local/unchanged")
        assert copy.files() == first
        assert len(proxy.requests) <= 60 / 100 + 6, proxy.operations
        assert "0 new, 0 changed" in done.stdout
    checked = copy.sql("select count(*) from runs where project = 'unchanged'")
    assert checked == [(60,)]


def test_many_small_runs_share_requests(server: Server, proxy: Proxy, copy: Copy) -> None:
    """The target is 0.1 requests a run for 1,000 runs of 200 rows; here it is measured on 100 of them."""
    for i in range(100):
        log_run(server, "many", f"run{i:03}", logged(200), system=sampled(2))
    copy.sync("local/many")
    assert proxy.operations["RunDocuments"] + proxy.operations["RunRows"] <= 0.1 * 100, proxy.operations
    found = copy.sql("select count(*), sum(history_rows), bool_and(history_complete) from runs where project = 'many'")
    assert found == [(100, 20_000, True)]


TRAPS: dict[str, list[dict[str, Any] | str]] = {
    "empty": [],
    "one": [{"_step": 0, "a": 1}],
    "huge steps": [{"_step": i * 10**12 // 19, "x": i} for i in range(20)],
    "late start": [{"_step": 61_010 + i, "x": i} for i in range(500)],
    "gaps": [{"_step": i * i * 1000, "x": i} for i in range(300)],
    "repeated": [{"_step": i // 3, "x": i} for i in range(300)],
    "equal rows": [{"_step": 5, "x": 1}] * 7,
    "resumed at 0": [{"_step": i % 50, "x": i} for i in range(100)],
    "nested": [{"_step": i, "a": {"b": i}, "a.b": -i, "c": {}} for i in range(20)],
    "nonfinite": ['{"_step": 0, "x": NaN}', '{"_step": 1, "x": Infinity}', '{"_step": 2, "x": -Infinity, "s": "NaN"}'],
    "odd": [{"_step": 0, "": 1, "Loss": 1, "loss": 2, "é\t'\"": None, "big": 2**70, "t": True, "l": [1, "x", None]}],
    "no user keys": [{"_step": 0}, {"_step": 1}],
}


@pytest.fixture(scope="module")
def trapped(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Copy, Proxy]]:
    for i, rows in enumerate(TRAPS.values()):
        log_run(server, "traps", f"trap{i:02}", rows)
    with proxied(server) as proxy:
        copy = Copy(tmp_path_factory.mktemp("traps") / "copy", proxy.url, server.key)
        copy.sync("local/traps")
        yield copy, proxy


@pytest.mark.parametrize("name", TRAPS)
def test_histories_with_traps(trapped: tuple[Copy, Proxy], name: str) -> None:
    copy, _ = trapped
    run_id = f"trap{list(TRAPS).index(name):02}"
    run = copy.runs("traps")[run_id]
    rows = TRAPS[name]
    assert (run["history_rows"], run["history_total"], run["history_complete"]) == (len(rows), len(rows), True)
    expected = [json.loads(row) if isinstance(row, str) else row for row in rows]
    if name == "nonfinite":
        got = copy.rows("traps", run_id)
        assert [math.isnan(row["x"]) for row in got] == [True, False, False]
        assert [row["x"] for row in got[1:]] == [math.inf, -math.inf]
        assert got[2]["s"] == "NaN"
    else:
        same(copy.rows("traps", run_id), expected)


def test_huge_steps_cost_few_requests(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "huge", "r", TRAPS["huge steps"])
    copy.sync("local/huge")
    assert proxy.operations["RunRows"] <= 2, proxy.operations


def test_an_empty_project_and_one_run_of_a_project(server: Server, proxy: Proxy, copy: Copy) -> None:
    mutation = "mutation M($i: UpsertModelInput!) { upsertModel(input: $i) { inserted } }"
    server.graphql(mutation, i={"name": "nothing", "entityName": "local"})
    copy.sync("local/nothing")
    assert copy.runs("nothing") == {}
    log_run(server, "some", "a", logged(5))
    log_run(server, "some", "b", logged(5))
    copy.sync("local/some/b")
    assert set(copy.runs("some")) == {"b"}
    copy.sync(f"{proxy.url}/local/some/runs/a")
    assert set(copy.runs("some")) == {"a", "b"}


def test_a_whole_entity_and_several_paths(server: Server, copy: Copy) -> None:
    log_run(server, "first", "r", logged(3), entity="team")
    log_run(server, "second", "r", logged(4), entity="team")
    copy.sync("team")
    assert copy.sql("select project, history_rows from runs order by 1") == [("first", 3), ("second", 4)]
    log_run(server, "third", "r", logged(5), entity="other")
    done = copy.sync("team/first", "other/third", "team/second")
    assert "3 projects" in done.stdout


def test_pages_can_be_made_small(server: Server, proxy: Proxy, copy: Copy) -> None:
    log_run(server, "paged", "r", logged(1000))
    copy.sync("local/paged", "--page-size", "100", "--workers", "2")
    assert proxy.operations["RunRows"] >= 10
    same(copy.rows("paged", "r"), logged(1000))


def test_bars_on_a_terminal(server: Server, copy: Copy) -> None:
    """Names from outside reach the terminal as text, never as markup or as control codes."""
    log_run(server, "[red]loud", "r", logged(10), displayName="\x1b]0;owned\x07")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        copy.command("local/[red]loud", "-v"), env=copy.environ() | {"TERM": "xterm"}, stdout=follower, stderr=follower
    )
    os.close(follower)
    shown = b""
    with suppress(OSError):  # how a terminal ends on Linux
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert process.wait(300) == 0
    text = shown.decode()
    assert "local/[red]loud" in text
    assert "rows" in text
    assert "logged in as local" in text
    assert "10 rows" in text
    assert "\x1b]0" not in text
