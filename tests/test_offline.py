"""Run folders against `wandb sync`: the same logs, read directly and sent through a real server, give the same cells.

The hostile corpus is logged with WANDB_MODE=offline (tests/offline_corpus.py). One mirror reads its folder; the
other is synced from a `mirror serve` to which `wandb sync` sent the same logs, past a proxy that notes what was
sent. What `wandb sync` changes on the way is listed with its reasons; a difference that is not listed fails, and so
does a listed one that no longer occurs.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from corpus import ENTITY, PROJECT, Truth
from logfiles import row, run_record, write_log
from offline_corpus import makers
from serving import serving
from syncing import Copy, Proxy, operation_of, proxied
from test_exact import ABSENT, Difference, Reason, _integral, differences, unexplained

from mirror.query.rows import rows as read_rows
from mirror.store import Reader

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

SYSTEM_CHANGES: dict[str, Reason] = {
    "integral floats become integers: the log has 0.0 where wandb sync sends 0": lambda path, a, b: _integral(
        path, a, b
    ),
}
"""What `wandb sync` changes in system metrics: (in the log, in the mirror of the server)."""

CONFIG_CHANGES: dict[str, Reason] = {
    "integral floats become integers": lambda path, a, b: _integral(path, a, b),
    "an empty dictionary is dropped": lambda path, a, b: a == {} and b is ABSENT,
}
"""What it changes in a config."""

SUMMARY_CHANGES: dict[str, Reason] = {
    "a value of null, which NaN set by hand also is in the log, is dropped": lambda path, a, b: (
        a is None and b is ABSENT
    ),
}
"""What it changes in a summary. In history it changes nothing."""


@dataclass
class Held:
    """What a mirror holds of a run."""

    attributes: dict[str, Any]
    history: list[dict[str, Any]]
    system: list[dict[str, Any]]
    own_config: dict[str, Any]

    def document(self, name: str) -> Any:
        return json.loads(self.attributes[name])


def held(copy: Copy) -> dict[str, Held]:
    """All runs of a mirror, read once."""
    found = {}
    with Reader(copy.root) as reader:
        cursor = reader.connect().execute("select * from runs")
        names = [d[0] for d in cursor.description]
        for row in cursor.fetchall():
            run = dict(zip(names, row, strict=True))
            query = "select config_raw from raw.runs where rid = ? order by gen desc limit 1"
            config = json.loads(reader.connect().execute(query, [run["rid"]]).fetchall()[0][0])
            history, system = list(read_rows(reader, run["rid"])), list(read_rows(reader, run["rid"], "system"))
            found[run["run_id"]] = Held(run, history, system, config["_wandb"]["value"])
    return found


@dataclass
class Lab:
    """The folder, what was logged into it, the mirror of the folder, and that of the server; what was sent there."""

    folder: Path
    truths: dict[str, Truth]
    local_copy: Copy
    remote_copy: Copy
    local: dict[str, Held]
    remote: dict[str, Held]
    sent: Proxy


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("offline")
    (place / "logs").mkdir()
    with serving(place / "served") as server, proxied(server) as proxy:
        env = os.environ | server.env | {"WANDB_BASE_URL": proxy.url}
        offline = env | {"WANDB_MODE": "offline", "WANDB_DIR": str(place / "logs")}
        command = [sys.executable, HERE / "offline_corpus.py", place / "truth"]
        subprocess.run(command, env=offline, cwd=place, check=True, timeout=300, capture_output=True)
        local = Copy(place / "local", server.url, server.key)
        local.sync(f"file:{place / 'logs' / 'wandb'}")
        folders = sorted((place / "logs" / "wandb").glob("offline-run-*"))
        first: dict[str, Path] = {}
        for folder in folders:  # offline-run-WHEN-ID, and -1 after it for the second one of a second
            run_id = folder.name.split("-", 3)[3]
            first.setdefault(run_id.removesuffix("-1") if run_id.removesuffix("-1") in first else run_id, folder)
        again = [folder for folder in folders if folder not in first.values()]  # resumed: after what they resume
        assert len(again) == 2  # `resumed` and `twice`
        for some in (first.values(), again):
            command = [sys.executable, "-m", "wandb", "sync", *some]
            subprocess.run(command, env=env, check=True, timeout=300, capture_output=True)
        remote = Copy(place / "remote", server.url, server.key)
        remote.sync(f"{ENTITY}/{PROJECT}")
        truths: list[Truth] = pickle.loads((place / "truth").read_bytes())
        by_id = {truth.run_id: truth for truth in truths}
        yield Lab(place / "logs" / "wandb", by_id, local, remote, held(local), held(remote), proxy)


RUNS = [make.__name__ for make in makers()]


@pytest.fixture(params=range(len(RUNS)), ids=RUNS)
def truth(request: pytest.FixtureRequest, lab: Lab) -> Truth:
    return list(lab.truths.values())[request.param]


def test_there_are_enough_hostile_runs(lab: Lab) -> None:
    assert len(lab.truths) >= 30
    assert set(lab.local) == set(lab.remote) == set(lab.truths)


def test_every_cell_of_the_history_is_the_same(lab: Lab, truth: Truth) -> None:
    """`wandb sync` counts on where rows share their step; the log's steps are kept here."""
    local, remote = lab.local[truth.run_id].history, lab.remote[truth.run_id].history
    if truth.run_id == "crowded":
        assert [row["_step"] for row in remote] == list(range(12))
        remote = [row | {"_step": row["_step"] // 3} for row in remote]
    assert len(local) == len(remote) == len(truth.rows)
    assert list(differences(remote, local)) == []


def test_three_rows_a_step_and_a_second_log_from_step_0_lose_nothing(lab: Lab) -> None:
    """Rows that have their steps in common stay rows of their own, in the order in which they were logged."""
    rows = lab.local["crowded"].history
    assert [(row["_step"], row["x"]) for row in rows] == [(i // 3, i + 0.5) for i in range(12)]
    assert [sum(f"only{k}" in row for row in rows) for k in range(3)] == [4, 4, 4]
    assert [row["x"] for row in lab.local["twice"].history] == [i + 0.5 for i in range(10)] + [
        i + 100.5 for i in range(10)
    ]


def changes(lab: Lab, run_id: str, used: dict[str, set[str]]) -> list[Difference]:
    """Differences between both mirrors, in all but the history, that have no reason; notes the reasons used."""
    local, remote = lab.local[run_id], lab.remote[run_id]
    left = unexplained(differences(local.system, remote.system), SYSTEM_CHANGES, used["system"])
    for name, reasons in (("config", CONFIG_CHANGES), ("summary", SUMMARY_CHANGES)):
        left += unexplained(differences(local.document(name), remote.document(name)), reasons, used[name])
    return left


def test_system_metrics_configs_and_summaries_are_the_same(lab: Lab, truth: Truth) -> None:
    assert changes(lab, truth.run_id, {"system": set(), "config": set(), "summary": set()}) == []


def test_every_reason_is_needed(lab: Lab) -> None:
    used: dict[str, set[str]] = {"system": set(), "config": set(), "summary": set()}
    for run_id in lab.truths:
        changes(lab, run_id, used)
    assert used == {"system": set(SYSTEM_CHANGES), "config": set(CONFIG_CHANGES), "summary": set(SUMMARY_CHANGES)}


def test_attributes_are_the_same(lab: Lab, truth: Truth) -> None:
    local, remote = lab.local[truth.run_id].attributes, lab.remote[truth.run_id].attributes
    for name in ("state", "notes", "group", "job_type", "commit", "host", "sweep", "tags", "history_rows"):
        assert local[name] == remote[name], name
    assert local["name"] == truth.name  # without a name the server gives one
    assert local["tags"] == truth.tags
    assert local["exit_code"] == (0 if truth.state == "finished" else 3)
    assert local["history_complete"] and local["history_lossless"] and local["history_road"] == "log"
    assert truth.began - 1 <= local["created_at"].timestamp() <= truth.ended + 1
    assert json.loads(local["metadata"]) == json.loads(remote["metadata"])


def test_the_sdk_s_own_part_of_the_config_is_the_same(lab: Lab, truth: Truth) -> None:
    """Definitions of metrics and telemetry by the numbers of W&B's messages, machines by the log's writer."""
    local, remote = lab.local[truth.run_id].own_config, lab.remote[truth.run_id].own_config
    assert list(local["e"].values()) == list(remote["e"].values())
    assert local["cli_version"] == remote["cli_version"] and local["t"].keys() <= remote["t"].keys()

    def named(own: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Definitions in no order, the place of an axis replaced by its name."""
        found = []
        for m in own["m"]:
            axis = own["m"][m["5"] - 1]["1"] if "5" in m else None
            found.append((m.get("1"), m.get("2"), axis, sorted(m["6"]), sorted(m["7"])))
        return sorted(found, key=str)

    assert named(local) == named(remote)
    assert len(local["m"]) == {"axes": 4, "axis": 2, "summaries": 1}.get(truth.run_id, 0)


def test_console_lines_are_those_that_were_printed(lab: Lab) -> None:
    lines = lab.local_copy.sql("select level, text, ts from logs where run_id = 'console' order by line")
    posts = [r for r in lab.sent.requests if r.path.endswith("/console/file_stream")]
    sent = [
        line for r in posts for line in ((r.json.get("files") or {}).get("output.log") or {"content": []})["content"]
    ]
    expected = [(line.get("level"), line["content"]) for line in map(json.loads, sent)]
    assert [(level, text) for level, text, _ in lines] == expected
    assert [text for _, text in expected][:3] == ["one line", "é 😀 \x1b[31mred\x1b[0m", "halves of a line"]
    truth = lab.truths["console"]
    assert all(truth.began - 1 <= ts.timestamp() <= truth.ended + 1 for _, _, ts in lines)


def test_files_on_disk_are_listed(lab: Lab) -> None:
    """Metadata, config and summary are files only `wandb sync` makes."""
    query = "select name, size, md5 from files where run_id = ? order by name"
    for run_id in ("plain", "media", "things", "console"):
        remote = {row for row in lab.remote_copy.sql(query, run_id) if row[0] not in MADE_BY_SYNC}
        assert set(lab.local_copy.sql(query, run_id)) == remote
    assert "weights.bin" in {row[0] for row in lab.local_copy.sql(query, "things")}


MADE_BY_SYNC = {"wandb-metadata.json", "wandb-summary.json", "config.yaml"}


def test_artifacts_are_those_that_were_sent(lab: Lab) -> None:
    inputs = [r.json["variables"]["input"] for r in lab.sent.requests if operation_of(r) == "CreateArtifact"]
    logged = lab.local_copy.sql(
        "select type, collection, digest, aliases, tags, description, metadata, run_id, storage_id from artifacts"
    )
    assert len(inputs) == len(logged) == 3
    by_id = {row[-1]: row for row in logged}
    for sent in inputs:
        kind, collection, digest, aliases, _, description, metadata, run_id, _ = by_id[sent["clientID"]]
        assert (kind, collection, digest) == (
            sent["artifactTypeName"],
            sent["artifactCollectionName"],
            sent["digest"],
        )
        assert sorted(aliases) == sorted(a["alias"] for a in sent["aliases"])
        assert (description, metadata, run_id) == (sent["description"], sent["metadata"], sent["runName"])
    query = "select path, size, ref from artifact_entries where path <> 'table.table.json'"
    entries = lab.local_copy.sql(query)
    assert sorted(entries, key=str) == [
        ("elsewhere", 0, "elsewhere://bucket/key"),
        ("weights.bin", 300, None),
    ]


def test_runs_that_a_server_gave_too_are_recognised(lab: Lab) -> None:
    """Into the mirror of the server: runs are the same if their first rows are, else they only share an id. All of them
    are shown once, and since `wandb sync` sent everything, the server's histories stay."""
    before = {run_id: found.history for run_id, found in held(lab.remote_copy).items()}
    done = lab.remote_copy.sync(str(lab.folder))
    server = lab.remote["plain"].attributes["source"]
    n = len(lab.truths) - 1  # all but the one in which `wandb sync` changes the steps
    assert f"`{ENTITY}/{PROJECT}/crowded` from {server} has the id of a run of this folder, but other" in done.stderr
    assert f"{n} of these runs are mirrored from {server}, too (`{ENTITY}/{PROJECT}/" in done.stderr
    sources = lab.remote_copy.sql("select source, count(*) from runs group by all order by 2")
    assert sources == [("offline", 1), (server, n + 1)]
    assert lab.remote_copy.sql("select count(*) from runs where origin like '%history%'") == [(0,)]
    query = "select run_id from runs where source = 'offline'"
    assert lab.remote_copy.sql(query) == [("crowded",)]
    after = {run_id: found for run_id, found in held(lab.remote_copy).items() if run_id != "crowded"}
    assert all(list(differences(found.history, before[run_id])) == [] for run_id, found in after.items())
    assert lab.remote_copy.sql("select count(*) from raw.merged") == [(n,)]
    write_log(lab.folder.parent / "others", "plain", [run_record("plain", PROJECT, ENTITY), row(0, x=9)])
    done = lab.remote_copy.sync(str(lab.folder.parent / "others"))
    assert f"`{ENTITY}/{PROJECT}/plain` from {server} has the id of a run of this folder, but other" in done.stderr
    assert len(lab.remote_copy.sql("select 1 from runs where run_id = 'plain'")) == 2


def test_a_second_sync_of_the_folder_changes_nothing_but_the_files_that_wandb_sync_made(lab: Lab) -> None:
    """`wandb sync` leaves files in the folder: they are listed now, no row is read again."""
    query = "select run_id, max(history_gen), max(history_rows) from raw.runs group by run_id order by run_id"
    before = lab.local_copy.sql(query)
    done = lab.local_copy.sync(str(lab.folder))
    assert "; 0 rows;" in done.stdout
    assert lab.local_copy.sql(query) == before
    names = {row[0] for row in lab.local_copy.sql("select name from files where run_id = 'plain'")}
    assert names >= MADE_BY_SYNC
    held = lab.local_copy.files()
    assert "0 new, 0 changed" in lab.local_copy.sync(str(lab.folder)).stdout
    assert lab.local_copy.files() == held
