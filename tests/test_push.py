"""Runs logged by the real SDK at one server, mirrored, pushed to another: what is read there is what was logged here.

The truth is what crossed the wire when the runs were logged, and what `wandb.Api()` reads of them at the source; the
destination is read by `wandb.Api()` and over plain GraphQL. What is not the same is listed here with its reason, and
the list the push itself prints must be equal to it.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from corpus import ENTITY, PROJECT, Truth
from serving import Server, serving
from syncing import MIRROR, Copy, Done, proxied
from test_exact import _posted, _windows, differences

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ORIGIN = "mirror_origin"
CROWD = 68
"""Runs that a generator draws, beside those of tests/corpus.py; MIRROR_CROWD_SEED draws others."""
REPEATED = {"repeated": 10, "samestep": 39}
"""Rows whose step another row had before them, as tests/corpus.py posts them."""


@dataclass
class Lab:
    source: Server
    there: Server
    copy: Copy
    truths: dict[str, Truth]
    lines: dict[str, list[str]]
    events: dict[str, list[str]]
    pushed: Done
    requests: list[str]


def push(copy: Copy, there: Server, *options: str, url: str | None = None) -> Done:
    """`mirror push` in a process of its own."""
    command = [*MIRROR, "push", f"{ENTITY}/{PROJECT}", "--to", url or there.url, "--mirror", str(copy.root), *options]
    env = os.environ | {"MIRROR_DST_API_KEY": there.key, "WANDB_API_KEY": "0" * 40, "NETRC": "/dev/null"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("push")
    (place / "a").mkdir()
    (place / "b").mkdir()
    with ExitStack() as stack:
        source = stack.enter_context(serving(place / "a" / "source"))
        proxy = stack.enter_context(proxied(source))
        env = os.environ | source.env | {"WANDB_BASE_URL": proxy.url}
        seed, half = os.environ.get("MIRROR_CROWD_SEED", "1"), CROWD // 2
        scripts: dict[str, list[str | Path]] = {  # beside each other: the SDK waits most of the time
            "truth": ["corpus.py", place / "truth"],
            "crowd": ["crowd.py", place / "crowd", seed, "0", str(half)],
            "more": ["crowd.py", place / "more", seed, str(half), str(CROWD)],
        }
        logging = [subprocess.Popen([sys.executable, HERE / name, *args], env=env) for name, *args in scripts.values()]
        assert [one.wait(900) for one in logging] == [0, 0, 0]
        truths: list[Truth] = [t for name in scripts for t in pickle.loads((place / name).read_bytes())]
        lines, events = _posted(proxy, "wandb-history.jsonl"), _posted(proxy, "wandb-events.jsonl")
        proxy.reset()
        copy = Copy(place / "mirror", proxy.url, source.key)
        copy.sync(f"{ENTITY}/{PROJECT}", "--files", "*", "--artifacts", "*/*")
        there = stack.enter_context(serving(place / "b" / "destination"))
        pushed = push(copy, there)
        asked = [r.json["query"] if r.path == "/graphql" else f"{r.method} {r.path}" for r in proxy.requests]
        yield Lab(source, there, copy, {t.run_id: t for t in truths}, lines, events, pushed, asked)


def rows_at(server: Server, run_id: str, field: str = "history") -> list[dict[str, Any]]:
    """Every row as the server gives it out, in its order."""
    query = f'query Q($n: String!) {{ project(name: "{PROJECT}") {{ run(name: $n) {{ {field}(samples: 100000) }} }} }}'
    return [json.loads(line) for line in server.graphql(query, n=run_id)["project"]["run"][field]]


def as_sent(lines: list[str]) -> list[dict[str, Any]]:
    """The rows of a run as they must arrive: with the next free step where theirs is not above the one before."""
    found: list[dict[str, Any]] = []
    last = -1
    for row in map(json.loads, lines):
        if row.get("_step", -1) <= last:
            row = row | {"_step": last + 1, f"{ORIGIN}/step": row["_step"]}
        last = row["_step"]
        found.append(row)
    return found


def test_every_row_of_every_run_arrives_as_it_was_logged(lab: Lab) -> None:
    assert lab.pushed.ok, lab.pushed
    assert len(lab.truths) >= 100
    assert sum(len(lab.lines.get(f"crowd{n}", [])) for n in range(CROWD)) > 5 * CROWD
    for run_id in lab.truths:
        wanted = as_sent(lab.lines.get(run_id, []))
        got = rows_at(lab.there, run_id)
        assert len(got) == len(wanted), run_id
        for ours, theirs in zip(wanted, got, strict=True):
            assert list(differences(ours, theirs)) == [], run_id
        assert sum(f"{ORIGIN}/step" in row for row in got) == REPEATED.get(run_id, 0)


def test_every_sample_of_system_metrics_arrives(lab: Lab) -> None:
    assert lab.events["system"]
    for run_id in lab.truths:
        wanted = [json.loads(line) for line in lab.events.get(run_id, [])]
        assert rows_at(lab.there, run_id, "events") == wanted


def read_api(server: Server, place: Path, lab: Lab) -> dict[str, dict[str, Any]]:
    """What `wandb.Api()` reads of every run, in a process with caches of its own."""
    place.mkdir()
    steps = {run_id: [int(row["_step"]) for row in as_sent(lab.lines.get(run_id, []))] for run_id in lab.truths}
    wanted = [(f"{ENTITY}/{PROJECT}/{run_id}", _windows(steps[run_id])) for run_id in lab.truths]
    (place / "wanted").write_bytes(pickle.dumps(wanted))
    env = os.environ | server.env | {"WANDB_CACHE_DIR": str(place / "cache"), "WANDB_DIR": str(place)}
    command = [sys.executable, HERE / "readback.py", place / "wanted", place / "found"]
    subprocess.run(command, env=env, check=True, timeout=900)
    return dict(zip(lab.truths, pickle.loads((place / "found").read_bytes()), strict=True))


def test_wandb_api_reads_the_same_at_both_ends(lab: Lab, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(read_api, end, tmp_path / end.root.name, lab) for end in (lab.source, lab.there)]
        here, there = (end.result() for end in ends)
    changed: dict[str, set[str]] = {}
    for run_id, ours in here.items():
        theirs = there[run_id]
        origin = theirs["config"].pop(ORIGIN)
        assert origin["path"] == f"{ENTITY}/{PROJECT}/{run_id}" and origin["state"] == ours["state"]
        for path, _, _ in differences(ours, theirs):
            changed.setdefault(str(path[0]), set()).add(run_id)
    # `killed`, `running`: W&B knows exit codes only. Rows: see as_sent, which the test above compares with.
    assert changed == {"rows": set(REPEATED)}


def noted(done: Done) -> dict[str, tuple[int, int]]:
    """What a push lists as changed or lost of runs: how many runs, and how many things."""
    of_runs, _, _ = done.stdout.partition(" artifacts sent")
    lines = [line.split() for line in of_runs.splitlines() if line.startswith(("changed", "lost"))]
    return {line[1]: (int(line[2].replace(",", "")), int(line[3].replace(",", ""))) for line in lines}


def not_the_same(lab: Lab) -> dict[str, tuple[int, int]]:
    """The same as found above, cell by cell: times nobody can set, steps that must ascend, a run that goes on."""
    every = len(lab.truths)
    return {"created": (every, every), "steps": (len(REPEATED), sum(REPEATED.values())), "state": (1, 1)}


def test_the_push_lists_what_it_could_not_keep(lab: Lab) -> None:
    assert noted(lab.pushed) == not_the_same(lab)
    assert "`running`" in lab.pushed.stdout


def test_files_arrive_byte_for_byte(lab: Lab) -> None:
    query = (
        "query F($p: String!) { project(name: $p) { runs(first: 200) { edges { node { name "
        "files(first: 1000) { edges { node { name md5 sizeBytes } } } } } } } }"
    )

    def files_at(server: Server) -> dict[str, list[tuple[str, str, int]]]:
        runs = [edge["node"] for edge in server.graphql(query, p=PROJECT)["project"]["runs"]["edges"]]
        of_run = {run["name"]: [edge["node"] for edge in run["files"]["edges"]] for run in runs}
        return {
            name: sorted((f["name"], f["md5"], int(f["sizeBytes"])) for f in found) for name, found in of_run.items()
        }

    here = files_at(lab.source)
    assert here == files_at(lab.there) and any("media/" in name for name, *_ in here["media"])


def test_nothing_is_written_at_the_source(lab: Lab) -> None:
    assert any("query" in asked for asked in lab.requests)
    assert [asked for asked in lab.requests if "mutation" in asked or asked.startswith(("PUT", "POST"))] == []


def test_what_is_there_is_not_sent_again(lab: Lab) -> None:
    with proxied(lab.there) as proxy:
        again = push(lab.copy, lab.there, url=proxy.url)
        # The proxy is another server to the ledger: everything is looked at, and found to be there.
        assert again.ok
        proxy.reset()
        third = push(lab.copy, lab.there, url=proxy.url)
        assert third.ok and f"0 runs sent to {proxy.url}, {len(lab.truths)} there already" in third.stdout
        assert not any("mutation" in r.body.decode() for r in proxy.requests) and len(proxy.requests) <= 15
    for run_id in lab.truths:
        assert len(rows_at(lab.there, run_id)) == len(lab.lines.get(run_id, []))


def test_a_rehearsed_import_lists_what_a_push_changes_and_reads_everything_back(lab: Lab) -> None:
    """`mirror import wandb --rehearse` from the source itself, into a server that the command starts."""
    command = [*MIRROR, "import", "wandb", f"{ENTITY}/{PROJECT}", "--src-base-url", lab.copy.url, "--rehearse"]
    env = lab.copy.environ() | {"MIRROR_SRC_API_KEY": lab.source.key, "MIRROR_DST_API_KEY": "no such key"}
    found = subprocess.run(
        [*command, "--mirror", str(lab.copy.root)], env=env, capture_output=True, text=True, timeout=900
    )
    done = Done(found.returncode, found.stdout, found.stderr)
    assert done.ok and "no difference" in done.stdout, done
    # The runs belong to whose key it is: nobody else is at a server that was just made.
    assert noted(done) == not_the_same(lab) | {"user": (len(lab.truths), len(lab.truths))}
    compared = next(line for line in done.stdout.splitlines() if line.startswith("Read back and compared"))
    rows = sum(map(len, (*lab.lines.values(), *lab.events.values())))
    assert f" {len(lab.truths)} runs" in compared and f" {rows:,} rows" in compared
    assert f" {sum(REPEATED.values())} rows with another step that say so" in compared


def test_a_push_of_some_runs_is_rehearsed(lab: Lab) -> None:
    command = [*MIRROR, "push", *(f"{ENTITY}/{PROJECT}/{run_id}" for run_id in REPEATED), "--rehearse"]
    env = os.environ | {"WANDB_API_KEY": "0" * 40, "NETRC": "/dev/null"}
    found = subprocess.run(
        [*command, "--mirror", str(lab.copy.root)], env=env, capture_output=True, text=True, timeout=300
    )
    done = Done(found.returncode, found.stdout, found.stderr)
    assert done.ok and "no difference" in done.stdout, done
    assert noted(done)["steps"] == (len(REPEATED), sum(REPEATED.values()))


def test_runs_are_not_sent_to_where_they_came_from(lab: Lab) -> None:
    refused = push(lab.copy, lab.source, url=lab.copy.url)
    assert refused.exit_code == 2 and "came from" in refused.stderr
