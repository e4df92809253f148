"""Edits of runs through `mirror.Api(online=True)`: the server is written, read back, the mirror follows at once.

One real server; what it has afterwards is read with the real `wandb.Api()` and over plain HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guide_examples
import pytest
import requests
from commanding import call
from liar import Answer, Request
from serving import Server, client, serving
from syncing import Copy, log_run, logged, proxied

import mirror
from mirror.objects.editing import ConflictError
from mirror.store import Writer

CONFIG: dict[str, Any] = {
    "lr": {"value": 0.1, "desc": "learning rate"},
    "_wandb": {"value": {"t": {"1": [1]}, "m": [{"1": "a"}]}, "desc": None},
    "wandb_version": 1,
    "seed": {"value": 2**53 + 1, "desc": None},
    "opt": {"value": {"name": "adam", "x": 1.0}, "desc": None},
}
SUMMARY = '{"_step":2,"_wandb":{"runtime":3},"loss":0.25,"bad":NaN,"big":123456789012345678901,"word":"NaN","f":1.0}'
DOCUMENTS = """query($n: String!) { project(name: "p", entityName: "local") { run(name: $n) {
    displayName notes tags group jobType config summaryMetrics state
    files { edges { node { name md5 sizeBytes } } } } } }"""
CREATE = """mutation($r: String!, $f: [String!]!) { createRunFiles(input: {entityName: "local", projectName: "p",
    runName: $r, files: $f}) { files { uploadUrl } } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("edits") / "served") as found:
        yield found


@pytest.fixture(scope="module")
def copy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy") / "m", server.url, server.key)


FILES = {"a.png": b"png", "dir/b.png": b"png2", "c.txt": b"text"}
_PLACES = 30


class Place:
    """A run of its own for every test, at the server and in the mirror."""

    def __init__(self, server: Server, copy: Copy, name: str) -> None:
        self.server, self.copy, self.name = server, copy, name
        self.path = f"local/p/{name}"

    def make(self) -> None:
        log_run(
            self.server, "p", self.name, logged(3), finish=False, displayName="before", notes="old", tags=["a"],
            groupName="g", jobType="train", config=json.dumps(CONFIG),
        )  # fmt: skip
        body: dict[str, Any] = {
            "files": {"wandb-summary.json": {"offset": 0, "content": [SUMMARY]}},
            "complete": True,
            "exitcode": 0,
        }
        assert self.server.stream("p", self.name, **body).ok
        places = self.server.graphql(CREATE, r=self.name, f=list(FILES))["createRunFiles"]["files"]
        for place, data in zip(places, FILES.values(), strict=True):
            assert requests.put(place["uploadUrl"], data=data, timeout=300).ok

    def run(self, key: str | None = None) -> Any:
        return mirror.Api(self.copy.root, online=True, api_key=key or self.server.key).run(self.path)

    def there(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.graphql(DOCUMENTS, n=self.name)["project"]["run"]
        found["files"] = {e["node"]["name"]: e["node"] for e in found["files"]["edges"]}
        return found

    def here(self) -> dict[str, Any]:
        """The mirror's row, read anew."""
        return self.copy.runs("p")[self.name]


@pytest.fixture(scope="module")
def places(server: Server, copy: Copy) -> Iterator[Place]:
    found = [Place(server, copy, f"run{i}") for i in range(_PLACES)]
    for place in found:
        place.make()
    copy.sync("local/p")
    return iter(found)


@pytest.fixture
def place(places: Iterator[Place], server: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    return next(places)


def files_of(place: Place) -> set[str]:
    found = place.copy.sql("select name from files where run_id = ?", place.name)
    return {name for (name,) in found}


def test_config_and_attributes(place: Place) -> None:
    run = place.run()
    run.config["lr"] = 0.2
    run.config["new"] = {"deep": [1, 2.0, None, math.nan]}
    del run.config["opt"]
    run.name, run.notes, run.group, run.job_type = "after", "new\nnotes", "h", "eval"
    run.tags.append("b")
    segments = len(place.copy.files())
    run.update()
    there = place.there()
    expected = {key: value for key, value in CONFIG.items() if key != "opt"}
    expected |= {"lr": {"value": 0.2, "desc": "learning rate"}}
    config = json.loads(there["config"])
    assert config.pop("new")["value"].__repr__() == "{'deep': [1, 2.0, None, nan]}"
    assert config == expected and json.dumps(config["seed"]) == '{"value": 9007199254740993, "desc": null}'
    assert there["summaryMetrics"] == SUMMARY
    assert (there["displayName"], there["notes"], there["group"], there["jobType"]) == (
        "after",
        "new\nnotes",
        "h",
        "eval",
    )
    assert there["tags"] == ["a", "b"] and there["state"] == "finished"
    # The mirror has followed, in this object and for everybody.
    assert (run.config["lr"], "opt" in run.config, run.name, run.tags) == (0.2, False, "after", ["a", "b"])
    assert run.rawconfig["_wandb"] == CONFIG["_wandb"]["value"]
    row = place.here()
    assert (row["name"], row["notes"], row["tags"]) == ("after", "new\nnotes", ["a", "b"])
    assert place.copy.sql("select num from config where run_id = ? and path = '/lr'", place.name) == [(0.2,)]
    assert 0 < len(place.copy.files()) - segments <= 3  # runs, config: one small commit
    assert place.copy.rows("p", place.name) == logged(3)


def test_summary(place: Place) -> None:
    """A value, a rename, a key less, a histogram: what else stands there goes back to the last character."""
    run = place.run()
    run.summary["accuracy"] = 0.9
    run.summary["renamed"] = run.summary["loss"]
    del run.summary["loss"]
    run.summary.update({"histogram": mirror.Histogram([1, 2, 2, 5], num_bins=2), "long": 2**70})
    text = place.there()["summaryMetrics"]
    assert text == SUMMARY.replace('"loss":0.25,', "")[:-1] + (
        ',"accuracy":0.9,"renamed":0.25,"histogram":{"_type":"histogram","values":[3,1],"bins":[1.0,3.0,5.0]},'
        f'"long":{2**70}}}'
    )
    assert run.summary["accuracy"] == 0.9 and "loss" not in run.summary and run.summary["long"] == 2**70
    run.summary.update({"accuracy": 0.95})  # the same object goes on from there
    assert json.loads(place.there()["summaryMetrics"])["accuracy"] == 0.95
    assert place.copy.sql("select num from summary where run_id = ? and path = '/accuracy'", place.name) == [(0.95,)]


def test_nothing_to_write_asks_nobody(place: Place) -> None:
    run = place.run("x" * 40)  # which the server does not know
    run.config["lr"], run.summary["f"] = 0.1, 1.0
    run.update()
    run.config["lr"] = 0.3
    with pytest.raises(mirror.CommError):
        run.update()
    assert json.loads(place.there()["config"])["lr"]["value"] == 0.1


def test_types_are_kept(place: Place) -> None:
    """1 is not 1.0: an edit that only changes the type is an edit."""
    run = place.run()
    run.config["lr"] = 1
    run.summary["f"] = 1
    run.update()
    there = place.there()
    assert '"lr":{"value":1,' in there["config"].replace(" ", "") and '"f":1}' in there["summaryMetrics"]


@pytest.mark.parametrize("what", ["config", "summary", "name", "tags"])
def test_a_conflict_writes_nothing(place: Place, what: str) -> None:
    run = place.run()
    fields: dict[str, Any] = {
        "config": {"config": json.dumps(CONFIG | {"lr": {"value": 7}})},
        "summary": {"summaryMetrics": SUMMARY.replace("0.25", "7")},
        "name": {"displayName": "theirs"},
        "tags": {"tags": ["theirs"]},
    }
    place.server.upsert("p", place.name, **fields[what])
    before = place.there()
    run.notes = "mine"
    if what == "config":
        run.config["lr"] = 0.5
    elif what == "summary":
        run.summary["loss"] = 0.5
    else:
        setattr(run, what, ["mine"] if what == "tags" else "mine")
    with pytest.raises(ConflictError, match=r"changed at its server meanwhile.*7|theirs"):
        run.update()
    assert place.there() == before
    assert (place.here()["notes"], place.here()["name"]) == ("old", "before")


def test_what_others_changed_elsewhere_is_kept(place: Place) -> None:
    run = place.run()
    place.server.upsert("p", place.name, config=json.dumps(CONFIG | {"theirs": {"value": 1}}), notes="theirs")
    run.config["mine"] = 2
    run.update()
    config = json.loads(place.there()["config"])
    assert (config["theirs"]["value"], config["mine"]["value"], config["lr"]) == (1, 2, CONFIG["lr"])
    assert place.here()["notes"] == "theirs" and run.config["theirs"] == 1


def test_a_run_that_was_deleted_meanwhile(place: Place) -> None:
    run = place.run()
    run.config["lr"] = 0.5
    node = place.server.upsert("p", place.name)["id"]
    place.server.graphql("mutation($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }", id=node)
    with pytest.raises(mirror.errors.NotFoundError, match=r"has no run local/p/.* any more"):
        run.update()
    assert json.loads(place.here()["config"])["lr"] == 0.1


def test_a_server_of_this_machine_is_asked_without_tls(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror keeps the name of a server, not its scheme; nobody named one."""
    monkeypatch.delenv("WANDB_BASE_URL")
    run = mirror.Api(place.copy.root, online=True, api_key=place.server.key).run(place.path)
    run.config["lr"] = 0.75
    run.update()
    assert json.loads(place.here()["config"])["lr"] == 0.75
    monkeypatch.setenv("WANDB_BASE_URL", place.server.url.replace("http:", "https:"))
    run.config["lr"] = 1.5
    with pytest.raises(mirror.errors.SourceError, match=f"does not speak TLS: name it as `{place.server.url}`"):
        run.update()


def test_a_server_that_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxied(place.server) as proxy:
        copy = Copy(place.copy.root.parent / "refused", proxy.url, place.server.key)
        copy.sync(place.path)
        monkeypatch.setenv("WANDB_BASE_URL", proxy.url)

        def refuse(request: Request) -> Any:
            if proxy_operation(request) == "UpsertBucket":
                return Answer(403, b'{"errors":[{"message":"permission denied"}]}')
            return None

        proxy.before = refuse
        run = mirror.Api(copy.root, online=True, api_key=place.server.key).run(place.path)
        run.config["lr"] = 0.5
        with pytest.raises(mirror.CommError, match="permission denied"):
            run.update()
        assert json.loads(copy.runs("p")[place.name]["config"])["lr"] == 0.1

        # One that says yes and does something else.
        proxy.before = lambda request: None
        proxy.after = lambda request, body: json.loads(json.dumps(body).replace("0.5", "0.75"))
        with pytest.raises(mirror.CommError, match="gives back another"):
            run.update()
        assert json.loads(copy.runs("p")[place.name]["config"])["lr"] == 0.1


def proxy_operation(request: Request) -> str:
    from syncing import operation_of

    return operation_of(request)


def test_a_sync_that_runs_meanwhile_is_waited_for_by_nobody(place: Place) -> None:
    run = place.run()
    run.config["lr"] = 0.5
    with (
        Writer(place.copy.root) as writer,
        writer.lease(run.source, "local", "p"),
        pytest.raises(mirror.errors.LockedError),
    ):
        run.update()
    assert json.loads(place.there()["config"])["lr"]["value"] == 0.1
    run.update()
    assert json.loads(place.there()["config"])["lr"]["value"] == 0.5


@pytest.mark.parametrize(
    "edit",
    [
        lambda run: setattr(run, "name", 3),
        lambda run: setattr(run, "tags", "one"),
        lambda run: setattr(run, "state", "finished"),
        lambda run: run.config.update(x=object()) or run.update(),
        lambda run: run.config.update({"x": {1: 2}}) or run.update(),
        lambda run: run.upload_file("/does/not/exist", root="/does"),
        lambda run: run.upload_file("../outside"),
        lambda run: run.upload_file("."),
    ],
)
def test_what_cannot_be_written(place: Place, edit: Any) -> None:
    before = place.there()
    with pytest.raises(mirror.CommError):
        edit(place.run())
    assert place.there() == before


def test_files(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ü model.bin").write_bytes(bytes(range(256)) * 999)
    (tmp_path / "empty").write_bytes(b"")
    run = place.run()
    for name in ("sub/ü model.bin", "empty"):
        file = run.upload_file(name)
        data = (tmp_path / name).read_bytes()
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        assert (file.name, file.size, file.md5, file.held) == (name, len(data), md5, True)
        assert place.there()["files"][name]["md5"] == md5
    offline = mirror.Api(place.copy.root).run(place.path).file("sub/ü model.bin")
    with offline.download(tmp_path / "back"):
        assert (tmp_path / "back" / "sub" / "ü model.bin").read_bytes() == bytes(range(256)) * 999
    run.upload_file("sub/ü model.bin", root="sub")
    (tmp_path / "empty").write_bytes(b"now with content")
    assert run.upload_file("empty").size == 16
    run.file("c.txt").delete()
    assert "c.txt" not in place.there()["files"] and "c.txt" not in files_of(place)
    assert {"ü model.bin", "sub/ü model.bin", "empty", "a.png"} <= files_of(place)


def test_delete(place: Place) -> None:
    run = place.run()
    run.delete()
    assert place.server.graphql(DOCUMENTS, n=place.name)["project"]["run"] is None
    assert run.deleted_at is not None and place.here()["deleted_at"] is not None
    assert place.copy.rows("p", place.name) == logged(3)
    with pytest.raises(mirror.errors.NotFoundError):
        run.summary.update({"x": 3})


def test_offline_nothing_is_written(place: Place) -> None:
    before = place.there()
    run = mirror.Api(place.copy.root).run(place.path)
    for edit in (
        lambda: run.update(),
        lambda: run.summary.update({"x": 1}),
        lambda: setattr(run, "name", "new"),
        lambda: run.upload_file("x"),
        lambda: run.file("a.png").delete(),
        lambda: run.delete(),
    ):
        with pytest.raises(mirror.CommError, match=r"Api\(online=True\) writes there"):
            edit()
    assert place.there() == before


def test_the_command_for_files(place: Place) -> None:
    env = pytest.MonkeyPatch()
    env.setenv("WANDB_API_KEY", place.server.key)
    try:
        root = place.copy.root
        assert call("files", "ls", place.path, "*.png", "--format", "csv", root=root).out.splitlines()[1:] == [
            line
            for line in call("files", "ls", place.path, "--format", "csv", root=root).out.splitlines()
            if ".png" in line
        ]
        asked = call("files", "rm", place.path, "*.png", stdin="n\n", root=root)
        assert asked.code == 1 and "2 files" in asked.err and "Nothing was removed." in asked.err
        assert {"a.png", "dir/b.png"} <= place.there()["files"].keys()
        assert call("files", "rm", place.path, "*.jpg", "--yes", root=root).code == 1
        done = call("files", "rm", place.path, "*.png", "--yes", root=root)
        assert done.code == 0 and "2 files" in done.out
    finally:
        env.undo()
    assert {"a.png", "dir/b.png"}.isdisjoint(place.there()["files"]) and "c.txt" in place.there()["files"]
    assert {"a.png", "dir/b.png"}.isdisjoint(files_of(place)) and "c.txt" in files_of(place)


SCRIPT = """
import json, sys, wandb
run = wandb.Api().run(sys.argv[1])
print(json.dumps([run.config, run.summary._json_dict, run.name, run.tags, run.rawconfig["_wandb"],
                  [row["loss"] for row in run.scan_history()], [f.name for f in run.files()]]))
"""


class Online:
    """This package as the guides' scripts use wandb, but for the permission to write."""

    Histogram = mirror.Histogram

    @staticmethod
    def Api() -> mirror.Api:
        return mirror.Api(online=True)


@pytest.mark.slow
def test_the_editing_examples_of_the_guides(
    places: Iterator[Place], server: Server, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one, with the import line changed, leaves at the server what the real SDK leaves of an equal run."""
    mine, theirs = next(places), next(places)
    summary = {"summaryMetrics": '{"old_name":1.5,"_wandb":{"runtime":3},"x":2}', "config": '{"lr":{"value":0.1}}'}
    for place in (mine, theirs):
        server.upsert("p", place.name, **summary)
    copy.sync(mine.path)
    (tmp_path / "paths.json").write_text(json.dumps({"edited": theirs.path}))
    failed = client(server, GUIDES, str(tmp_path / "paths.json"), guide_examples.__file__)
    assert set(failed.values()) == {None}, failed
    monkeypatch.setenv("MIRROR_ROOT", str(copy.root))
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", server.key)
    monkeypatch.chdir(tmp_path)
    for example in guide_examples.EDITS.values():
        example(Online, {"edited": mine.path})
    found, expected = mine.there(), theirs.there()
    assert json.loads(found.pop("config")) == {"lr": {"value": 0.1}, "foo": {"value": 32, "desc": None}}
    assert json.loads(expected.pop("config")) == {n: {"value": v, "desc": None} for n, v in (("lr", 0.1), ("foo", 32))}
    assert json.loads(found["summaryMetrics"]) == {
        "_wandb": {"runtime": 3}, "x": 2, "accuracy": 0.9, "new_name": 1.5, "key": 1, "nested": {"deep": [1.5, None]},
        "histogram": {"_type": "histogram", "values": [3, 1], "bins": [1.0, 3.0, 5.0]},
    }  # fmt: skip
    for side in (found, expected):
        side["summaryMetrics"] = json.loads(side["summaryMetrics"])
        side["files"] = {name: file["md5"] for name, file in side["files"].items()}
    assert found == expected and {"file_name.extension", "c.txt"} == found["files"].keys()
    # And the mirror holds it all without another sync.
    row = mine.here()
    assert (row["name"], row["notes"], row["group"], row["tags"]) == ("a new name", "a note", "a group", ["a", "new"])
    assert json.loads(row["summary"]) == found["summaryMetrics"] and json.loads(row["config"]) == {"lr": 0.1, "foo": 32}
    assert files_of(mine) == found["files"].keys()


GUIDES = """
import runpy, sys
paths, script = sys.argv[1:]
sys.argv = [script, paths]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_the_real_client_reads_what_was_edited(place: Place, tmp_path: Path) -> None:
    run = place.run()
    run.config["lr"] = 0.3
    run.summary["loss"] = 0.125
    run.name = "ünïcode"
    run.tags += ["x"]
    run.update()
    (tmp_path / "n.txt").write_text("n")
    run.upload_file(str(tmp_path / "n.txt"), root=str(tmp_path))
    config, summary, name, tags, internal, rows, files = client(place.server, SCRIPT, place.path)
    assert config == {"lr": 0.3, "seed": 2**53 + 1, "opt": {"name": "adam", "x": 1.0}}
    assert (summary["loss"], summary["word"], summary["big"]) == (0.125, "NaN", 123456789012345678901)
    assert math.isnan(summary["bad"]) and summary["_wandb"] == {"runtime": 3}
    assert (name, tags, internal) == ("ünïcode", ["a", "x"], CONFIG["_wandb"]["value"])
    assert rows == [1.0, 0.5, 1 / 3] and "n.txt" in files


def test_the_next_sync_finds_nothing_to_do(place: Place) -> None:
    run = place.run()
    run.config["lr"] = 0.4
    run.update()
    before = place.copy.sql("select gen from raw.runs_live where run_id = ?", place.name)
    place.copy.sync(place.path)
    assert place.copy.sql("select gen from raw.runs_live where run_id = ?", place.name) == before
