"""Imports that are interrupted, refused and repeated: in the end every row is there once, or it is said why not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commanding import Done as Called
from commanding import call
from faults import hurry
from killing import killed_at
from liar import Answer, Request, Reset
from serving import Server, serving
from starting import Started, run_mirror
from syncing import Copy, Proxy, log_run, logged, proxied, sampled

from mirror.errors import SourceError, UsageError
from mirror.importers import Namespace
from mirror.importers.wandb import WandbImporter

KILLS = 20
RUNS = {"plain": 300, "empty": 0, "long": 2500, "many": 20_000, "failed": 10, "killed": 3, "odd id.é": 5}
"""Run id -> rows. The rows of `long` are so long that they go out in several requests."""


def rows_of(run_id: str, count: int) -> list[dict[str, Any]]:
    more = {"text": "é" * 3000} if run_id == "long" else {}
    return logged(count, **more)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("source") / "mirror") as server:
        config = {"lr": {"value": 0.5}, "big": {"value": 2**53 + 1}, "_wandb": {"value": {"t": {"1": [1]}, "m": [{}]}}}
        for run_id, count in RUNS.items():
            fields = {"displayName": f"name of {run_id}", "tags": ["a", "é"], "notes": "n", "groupName": "g"}
            texts = [json.dumps(row, ensure_ascii=False) for row in rows_of(run_id, count)]
            log_run(
                server, "p", run_id, texts, system=sampled(7), finish=False, summary={"loss": 0.5},
                config=json.dumps(config), jobType="train", **fields,
            )  # fmt: skip
            code = 0 if run_id not in ("failed", "killed") else 3
            assert server.stream("p", run_id, files={"output.log": {"offset": 0, "content": ["one", "two"]}}).ok
            assert server.stream("p", run_id, complete=True, exitcode=code).ok
        log_run(server, "other", "plain", logged(3))
        yield server


@pytest.fixture(scope="module")
def copy(source: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = Copy(tmp_path_factory.mktemp("copy") / "mirror", source.url, source.key)
    copy.sync("local/p", "local/other")
    return copy


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "there").mkdir()
    with serving(tmp_path / "there" / "mirror") as server:
        yield server


@pytest.fixture
def ledger(copy: Copy) -> Iterator[Path]:
    yield copy.root
    for path in copy.root.glob("*_*.jsonl"):
        path.unlink()


def held(server: Server, project: str = "p") -> dict[str, dict[str, Any]]:
    query = (
        "query H($p: String!) { project(name: $p) { runs(first: 100) { edges { node { name displayName state config "
        "summaryMetrics historyLineCount eventsLineCount logLineCount tags group jobType history(samples: 100000) "
        "} } } } }"
    )
    edges = (server.graphql(query, p=project)["project"] or {"runs": {"edges": []}})["runs"]["edges"]
    return {edge["node"]["name"]: edge["node"] for edge in edges}


def check(server: Server, without: tuple[str, ...] = ()) -> None:
    """Every run is there with every row once, in order, with its values."""
    found = held(server)
    assert found.keys() == RUNS.keys() - set(without)
    for run_id, run in found.items():
        assert [json.loads(line) for line in run["history"]] == rows_of(run_id, RUNS[run_id]), run_id
        assert (run["historyLineCount"], run["eventsLineCount"], run["logLineCount"]) == (RUNS[run_id], 7, 2)
        assert run["displayName"] == f"name of {run_id}" and run["tags"] == ["a", "é"] and run["group"] == "g"
        config = json.loads(run["config"])
        assert config["big"] == {"value": 2**53 + 1} and config["_wandb"]["value"]["m"] == [{}]
        assert config["mirror_origin"]["value"]["path"] == f"local/p/{run_id}"
        assert json.loads(run["summaryMetrics"])["loss"] == 0.5
        assert run["state"] == ("failed" if run_id in ("failed", "killed") else "finished")


def arguments(copy: Copy, url: str, *options: str) -> list[str]:
    return ["push", "local/p", "--to", url, "--mirror", str(copy.root), *options]


def environment(server: Server) -> dict[str, str]:
    return os.environ | {"MIRROR_DST_API_KEY": server.key, "NETRC": "/dev/null"}


def push(copy: Copy, server: Server, *options: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    done = run_mirror(arguments(copy, url or server.url, *options), env=environment(server))
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_push_that_is_killed_again_and_again_doubles_and_loses_nothing(
    copy: Copy, there: Server, ledger: Path
) -> None:
    rnd = random.Random(6)
    killed, again = 0, list[str]()
    with proxied(there) as proxy:

        def start() -> Started:
            return Started(
                arguments(copy, proxy.url, "-q", "--workers", "2", *again),
                env=environment(there),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

        while killed < KILLS:  # die at one of the next requests, wherever in a run that is
            code = killed_at(proxy, rnd.randrange(1, 9), start, arrives=rnd.random() < 0.5)
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
            if code == 0:  # all is there before its time: look through it once more
                again = ["--again"]
        done = push(copy, there, url=proxy.url)
    assert done.returncode == 0, done.stderr
    check(there)
    successes = [line["src_path"] for line in lines(ledger / "run_successes.jsonl")]
    assert set(successes) == {f"local/p/{run_id}" for run_id in RUNS} and (again or len(successes) == len(RUNS))


class Faults:
    """Every third request of a kind fails, in another way each time."""

    def __init__(self) -> None:
        self.count = 0
        self.made: set[str] = set()

    def __call__(self, request: Request) -> Any:
        kind = "stream" if "file_stream" in request.path else "put" if request.method == "PUT" else "query"
        faults = {
            "stream": [Answer(429, {}, {"Retry-After": "0"}), Answer(500, "broken"), Answer(409, {"error": "conflict"}),
                       Answer(404, {"error": "no run"}), Reset(), Answer(200, '{"brok', promise=50)],
            "put": [Answer(503, "SlowDown"), Reset()],
            "query": [Answer(502, "bad gateway"), Reset(), Answer(429, {}, {"Retry-After": "0"})],
        }[kind]  # fmt: skip
        self.count += 1
        if self.count % 3:
            return None
        n = self.count // 3 % len(faults)
        self.made.add(f"{kind} {n}")
        return faults[n]


def test_a_destination_that_fails_in_every_way_has_everything_in_the_end(
    copy: Copy, there: Server, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("MIRROR_DST_API_KEY", there.key)
    with proxied(there) as proxy:
        proxy.before = faults = Faults()
        importer = importer_of(copy, proxy, there)
        assert importer.import_runs(runs=runs_of(copy)).ok
        assert len(faults.made) >= 6
    check(there)


def importer_of(copy: Copy, proxy: Proxy, there: Server, **options: Any) -> WandbImporter:
    return WandbImporter(copy.url, copy.key, proxy.url, there.key, root=copy.root, **options)


def runs_of(copy: Copy) -> list[Any]:
    from mirror.importers.run import mirrored_runs
    from mirror.store import Reader

    with Reader(copy.root) as reader:
        return mirrored_runs(reader, [run["rid"] for run in copy.runs("p").values()])


def test_what_keeps_failing_is_written_down_and_tried_again(copy: Copy, there: Server, ledger: Path) -> None:
    with proxied(there) as proxy:
        proxy.before = lambda r: Answer(403, {"error": "not yours"}) if "/many/file_stream" in r.path else None
        done = push(copy, there, url=proxy.url)
        assert done.returncode == 1
        assert "local/p/many" in done.stderr and "not yours" in done.stderr and "6 runs sent" in done.stdout
        (failure,) = lines(ledger / "run_failures.jsonl")
        assert failure["src_path"] == "local/p/many" and "not yours" in failure["problems"][0]
        assert len(lines(ledger / "run_successes.jsonl")) == len(RUNS) - 1
        proxy.before = lambda r: None
        again = push(copy, there, url=proxy.url)
    assert again.returncode == 0 and "1 runs sent" in again.stdout and "6 there already" in again.stdout
    check(there)


def test_a_run_that_was_deleted_there_needs_a_suffix(copy: Copy, there: Server, ledger: Path) -> None:
    assert push(copy, there).returncode == 0
    query = '{ project(name: "p") { run(name: "plain") { id } } }'
    storage_id = there.graphql(query)["project"]["run"]["id"]
    there.graphql("mutation D($i: DeleteRunInput!) { deleteRun(input: $i) { success } }", i={"id": storage_id})
    refused = push(copy, there)
    assert refused.returncode == 1 and "--deleted-suffix" in refused.stderr and "local/p/plain" in refused.stderr
    done = push(copy, there, "--deleted-suffix", "-2")
    assert done.returncode == 0 and "1 runs sent" in done.stdout and "6 there already" in done.stdout
    assert held(there)["plain-2"]["historyLineCount"] == RUNS["plain"]
    third = push(copy, there, "--deleted-suffix", "-2")
    assert "0 runs sent" in third.stdout and "7 there already" in third.stdout


def test_a_run_that_went_on_is_continued(source: Server, there: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", source.url, source.key)
    log_run(source, "growing", "r", logged(10), finish=False)
    copy.sync("local/growing")
    with proxied(there) as proxy:
        importer = importer_of(copy, proxy, there)
        assert importer.import_all([Namespace("local", "growing")]).ok
        log_run(source, "growing", "r", logged(5, start=10), offset=10)
        proxy.reset()
        assert importer.import_all(["local/growing"]).ok
        posts = [r.json for r in proxy.requests if "file_stream" in r.path]
    assert [p["files"]["wandb-history.jsonl"]["offset"] for p in posts if "wandb-history.jsonl" in p["files"]] == [10]
    run = held(there, "growing")["r"]
    assert [json.loads(line) for line in run["history"]] == logged(15) and run["state"] == "finished"


def test_another_run_of_the_same_id_is_left_alone(copy: Copy, there: Server, ledger: Path) -> None:
    log_run(there, "p", "plain", [{"_step": i, "mine": i} for i in range(3)] + [{"_step": 50, "mine": 4}])
    log_run(there, "p", "failed", logged(4))  # as far as it goes, the same: it is continued
    done = push(copy, there)
    assert done.returncode == 1 and "row 3 of `local/p/plain`" in done.stderr
    found = held(there)
    assert found["plain"]["historyLineCount"] == 4 and found["failed"]["historyLineCount"] == 10


def test_projects_are_renamed_and_never_sent_to_themselves(source: Server, there: Server, copy: Copy) -> None:
    importer = WandbImporter(source.url, source.key, source.url, source.key, root=copy.root)
    with pytest.raises(UsageError, match="sent to itself"):
        importer.import_all(["local/other"])
    importer = WandbImporter(source.url, source.key, there.url, there.key, root=copy.root)
    two = {"$or": [{"name": "failed"}, {"display_name": "name of empty"}]}
    chosen = importer.collect_runs(["local/p"], filters=two)
    assert {run.row["run_id"] for run in chosen} == {"failed", "empty"}
    assert {repr(run) for run in chosen} == {"<MirroredRun local/p/failed>", "<MirroredRun local/p/empty>"}
    nothing = importer.import_all("local/p", runs=False, artifacts=False, reports=False)
    assert nothing.ok and not any(totals.done for totals in nothing.kinds.values())
    new = Namespace("new-team", "renamed")
    assert importer.import_runs(runs=chosen, remapping={"local/p": new}).done == 2
    query = '{ project(name: "renamed", entityName: "new-team") { runs { edges { node { name } } } } }'
    edges = there.graphql(query)["project"]["runs"]["edges"]
    assert {edge["node"]["name"] for edge in edges} == {"failed", "empty"}
    clash = {Namespace("local", "p"): new, Namespace("local", "other"): new}
    with pytest.raises(UsageError, match="would both become"):
        importer.import_all(["local/p", "local/other"], remapping=clash)
    before = held(source, "other")
    for kind, host in (("artifacts", "127.0.0.1"), ("runs", "localhost"), ("reports", "localhost")):
        done = push(copy, source, "--what", kind, url=source.url.replace("127.0.0.1", host))
        assert done.returncode == 2 and "where it came from" in done.stderr, done
    assert held(source, "other") == before


def test_the_command_imports_rehearses_and_plans(source: Server, there: Server, tmp_path: Path) -> None:
    env = environment(there) | {"MIRROR_SRC_API_KEY": source.key}
    arguments = ["import", "wandb", "local/other", "--src-base-url", source.url, "--mirror", str(tmp_path / "m")]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        done = run_mirror([*arguments, *more], env=env)
        assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
        return done

    assert run().returncode == 2
    planned = run("--dry-run", "--dst-base-url", there.url)
    assert planned.returncode == 0 and "local/other" in planned.stdout and not (tmp_path / "m").exists()
    rehearsed = run("--rehearse")
    assert rehearsed.returncode == 0 and "1 runs sent" in rehearsed.stdout and "created" in rehearsed.stdout
    assert list((tmp_path / "m").glob("*_successes.jsonl")) == []
    assert held(there, "other") == {}
    done = run("--dst-base-url", there.url)
    assert done.returncode == 0 and held(there, "other")["plain"]["historyLineCount"] == 3
    assert "0 runs sent" in run("--dst-base-url", there.url).stdout


def test_what_cannot_work_is_said_before_anything_is_fetched_or_sent(
    source: Server, there: Server, tmp_path: Path
) -> None:
    root, keys = tmp_path / "m", {"MIRROR_SRC_API_KEY": source.key, "MIRROR_DST_API_KEY": there.key}

    def run(*more: str, src: str = source.url, **changed: str) -> Called:
        arguments = ["import", "wandb", "local/other", "--src-base-url", src, "--dst-base-url", there.url, *more]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**keys, "NETRC": "/dev/null", **changed}.items():
                patch.setenv(name, value)
            return call(*arguments, root=root)

    done = run(MIRROR_DST_API_KEY="f" * 40)
    assert done.code == 1 and "does not accept the API key from MIRROR_DST_API_KEY" in done.err
    assert run("--remap", "local/other").code == 2
    assert not root.exists()
    done = run(MIRROR_SRC_API_KEY="f" * 40)
    assert done.code == 1 and "the API key from MIRROR_SRC_API_KEY" in done.err and "Nothing was sent" in done.err
    assert "mirror sync" not in done.err
    done = run("--remap", "local/othr=local/new")
    assert done.code == 2 and "`local/othr`, a project the mirror does not hold" in done.err
    done = run(MIRROR_SRC_API_KEY="f" * 40)  # the mirror holds the project by now
    assert done.code == 1 and "Nothing was sent" in done.err and held(there, "other") == {}
    importer = WandbImporter(source.url, "f" * 40, there.url, there.key, root=tmp_path / "none")
    for read in (importer.import_all, importer.collect_runs):
        with pytest.raises(SourceError, match="does not accept the API key from the argument"):
            read(["local/other"])
    importer = WandbImporter(source.url, source.key, there.url, there.key, root=tmp_path / "none")
    for read in (importer.import_all, importer.collect_runs):
        with pytest.raises(SourceError, match="nowhere"):
            read("local/nowhere")


def test_emoji_in_names_are_replaced_where_a_server_refuses_them(source: Server, there: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy", source.url, source.key)
    log_run(source, "emoji", "r", logged(1), displayName="run 😀", notes="fine é")
    copy.sync("local/emoji")

    def refuse(request: Request) -> Any:
        variables = request.json.get("variables", {}) if request.path == "/graphql" else {}
        bad = any("😀" in str(variables.get(name)) for name in ("displayName", "notes"))
        return Answer(400, {"errors": [{"message": "Incorrect string value"}]}) if bad else None

    with proxied(there) as proxy:
        proxy.before = refuse
        totals = importer_of(copy, proxy, there).import_runs(["local/emoji"])
    assert totals.ok and ("changed", "displayName") in totals.notes
    run = held(there, "emoji")["r"]
    assert run["displayName"] == "run \ufffd"
    assert json.loads(run["config"])["mirror_origin"]["value"]["displayName"] == "run 😀"


def test_a_conflicting_netrc_entry_changes_nothing(
    source: Server, there: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1\nlogin user\npassword {'f' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_API_KEY", "e" * 40)
    importer = WandbImporter(source.url, source.key, there.url, there.key, root=tmp_path / "m")
    assert importer.import_all(["local/other"]).ok
    assert held(there, "other")["plain"]["historyLineCount"] == 3


def test_sweeps_get_new_ids_once_and_runs_belong_to_them(source: Server, there: Server, tmp_path: Path) -> None:
    mutation = "mutation S($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { name } } }"
    config = "method: random\nmetric: {name: loss, goal: minimize}\nparameters: {lr: {min: 0.1, max: 0.5}}\n"
    given = {"entityName": "local", "projectName": "sweeping", "config": config, "displayName": "search é"}
    sweep = source.graphql(mutation, i=given)["upsertSweep"]["sweep"]["name"]
    for run_id in ("one", "two"):
        log_run(source, "sweeping", run_id, logged(2), sweep=sweep)
    importer = WandbImporter(source.url, source.key, there.url, there.key, root=tmp_path / "m")
    totals = importer.import_runs(["local/sweeping"])
    assert totals.ok and totals.notes["changed", "sweep"][0] == 2
    assert importer.import_runs(["local/sweeping"], incremental=False).done == 2
    query = '{ project(name: "sweeping") { sweeps { edges { node { name displayName config runCount } } } } }'
    (edge,) = there.graphql(query)["project"]["sweeps"]["edges"]
    assert edge["node"]["displayName"] == "search é" and edge["node"]["config"] == config
    assert edge["node"]["name"] != sweep and edge["node"]["runCount"] == 2
    assert all(json.loads(run["config"])["mirror_origin"]["value"]["sweep"] == sweep
               for run in held(there, "sweeping").values())  # fmt: skip
