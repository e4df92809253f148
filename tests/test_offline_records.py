"""What the SDK's log can hold: every kind of record is read, or it is said that it is not.

One log is written by the real SDK, with as many kinds as it writes without a server; kinds it writes only with one, or
wrote once, are added by hand. What is expected is what the script did.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from logfiles import exit_record, row, run_record, summary, write_log
from syncing import Copy, Done
from wandb.proto import wandb_internal_pb2 as pb

from mirror.sources.offline.framing import Log
from mirror.sources.offline.protobuf import decoded
from mirror.sources.offline.reading import DOCUMENT, SILENT

SCRIPT = """
import pathlib, wandb, wandb.sdk.interface.interface as interface
interface.MANIFEST_FILE_SIZE_THRESHOLD = 3  # longer manifests lie in a file, as those of 100,000 entries do
place = pathlib.Path.cwd()
run = wandb.init(project="kinds", entity="local", id="kinds", config={"a": 1, "n": {"x": {"y": 1}}}, tags=["t"])
run.define_metric("epoch")
run.define_metric("v/*", step_metric="epoch", summary="min")
run.define_metric("acc", step_metric="epoch", summary="max,mean,last,first", overwrite=True)
run.define_metric("lr", hidden=True, step_sync=False)
run.log({"epoch": 1, "v/loss": 0.5, "acc": 0.1, "n": {"m": {"k": 3}}})
run.log({"epoch": 2, "v/loss": 0.25, "acc": 0.5})
run.summary["gone"] = 1
run.summary["deep"] = {"a": {"b": 1}}
del run.summary["gone"]
run.config["late"] = 3
run.alert("Loss is up", "text")
run.mark_preempting()
(place / "w.bin").write_bytes(b"x" * 100)
run.save(str(place / "w.bin"), base_path=str(place), policy="now")
data = wandb.Artifact("data", "dataset", metadata={"k": 1})
data.add_file(str(place / "w.bin"))
run.log_artifact(data)
big = wandb.Artifact("big", "dataset")
with big.new_file("f.txt") as f:
    f.write("hello")
for i in range(6):
    big.add_reference(f"elsewhere://b/{i}", name=f"r{i}", checksum=False)
run.log_artifact(big)
part = wandb.Artifact("part", "dataset")
part.add_file(str(place / "w.bin"))
run.upsert_artifact(part, distributed_id="d1")
more = wandb.Artifact("more", "dataset", incremental=True)
more.add_file(str(place / "w.bin"))
run.log_artifact(more)
run.log({"t": wandb.Table(columns=["a"], data=[[1]]), "html": wandb.Html("<b>x</b>")})
print("a line")
run.finish(exit_code=3)
"""


@dataclass
class Lab:
    log: Path
    copy: Copy
    done: Done
    staging: Path

    def sql(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return self.copy.sql(query, *args)

    def config(self) -> dict[str, Any]:
        [(text,)] = self.sql("select config_raw from runs_raw where run_id = 'kinds'")
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    place = tmp_path_factory.mktemp("kinds")
    env = os.environ | {
        "WANDB_MODE": "offline", "WANDB_DIR": str(place), "WANDB_DATA_DIR": str(place / "data"),
        "WANDB_CACHE_DIR": str(place / "cache"), "WANDB_SILENT": "true", "WANDB_CONSOLE": "wrap",
        "WANDB_API_KEY": "k" * 40, "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", SCRIPT], env=env, cwd=place, check=True, timeout=300, capture_output=True)
    [log] = place.glob("wandb/offline-run-*/*.wandb")
    copy = Copy(place / "mirror", "http://127.0.0.1:9", "no-key")
    yield Lab(log, copy, copy.sync(str(place / "wandb"), "--all-bytes"), place / "data" / "artifacts" / "staging")


def kinds_of(log: Path) -> Counter[str]:
    return Counter(decoded(data).WhichOneof("record_type") for some in Log(log) for data in some)


ROWS = {"history", "summary", "stats", "output", "output_raw"}
"""Read by rows.py, console.py and as samples; the other tests are about them."""
TOLD = {"tbrecord", "files", "alert", "request", "output_logger"}
ITEMS = {"artifact", "use_artifact"}


def test_every_kind_that_the_protocol_knows_has_its_place() -> None:
    kinds = {field.name for field in pb.Record.DESCRIPTOR.oneofs_by_name["record_type"].fields}
    parts = [ROWS, TOLD, ITEMS, set(DOCUMENT), set(SILENT)]
    assert kinds == set().union(*parts) and sum(map(len, parts)) == len(kinds)


def test_the_sdk_wrote_them(lab: Lab) -> None:
    """As many as it writes without a server; the others are written by hand below."""
    lacking = {
        "output",
        "tbrecord",
        "request",
        "output_logger",
        "use_artifact",
        "final",
        "footer",
        "noop_link_artifact",
    }
    assert set(kinds_of(lab.log)) == (ROWS | TOLD | ITEMS | DOCUMENT | SILENT) - lacking


def test_definitions_of_metrics_are_in_the_config_as_the_sdk_sends_them(lab: Lab) -> None:
    """Fields by their numbers: 1 name, 2 glob, 5 place of the axis, 6 options (1 step_sync, 2 hidden, 3 defined), 7
    summaries (1 min, 2 max, 3 mean, 5 last, 8 first)."""
    defined = lab.config()["_wandb"]["value"]["m"]
    axis = 1 + next(i for i, m in enumerate(defined) if m.get("1") == "epoch")
    assert {"1": "epoch", "6": [3], "7": []} in defined
    assert {"2": "v/*", "5": axis, "6": [1], "7": [1]} in defined
    assert {"1": "acc", "5": axis, "6": [1, 3], "7": [1, 2, 3, 5, 8]} in [
        m | {"7": sorted([1, *m["7"]])} for m in defined if m.get("1") == "acc"
    ]
    assert {"1": "lr", "6": [2, 3], "7": []} in defined


def test_documents_are_what_the_script_left(lab: Lab) -> None:
    [(state, code, config, summed, tags)] = lab.sql("select state, exit_code, config, summary, tags from runs")
    assert (state, code, tags) == ("preempted", 3, ["t"])
    assert json.loads(config) == {"a": 1, "n": {"x": {"y": 1}}, "late": 3}
    found = json.loads(summed)
    assert "gone" not in found and found["deep"] == {"a": {"b": 1}} and found["n"] == {"m": {"k": 3}}
    assert found["v/loss"] == {"min": 0.25} and found["acc"] == {"max": 0.5, "mean": 0.3, "last": 0.5, "first": 0.1}
    assert lab.sql("select text from logs where text = 'a line'") == [("a line",)]


def test_what_is_not_kept_is_said(lab: Lab) -> None:
    for said in (
        "1 alerts that a server would have sent are not kept (`Loss is up`)",
        "1 artifacts only add files to a version that their log does not name: what they add is held (`more`)",
        "1 artifacts are parts of what several runs write together: the part of this run is held (`part`)",
    ):
        assert f"local/kinds/kinds: {said}" in lab.done.stderr
    assert "do not know" not in lab.done.stderr and "not in its folder" not in lab.done.stderr


def test_a_manifest_in_a_file_of_its_own_is_read(lab: Lab) -> None:
    query = "select path, size, ref from artifact_entries where collection = 'big' order by path"
    refs = [(f"r{i}", 0, f"elsewhere://b/{i}") for i in range(6)]
    assert lab.sql(query) == [("f.txt", 5, None), *refs]
    [manifest] = lab.staging.glob("artifact_manifests/*.gz")
    assert len(gzip.decompress(manifest.read_bytes()).splitlines()) == 7


@pytest.mark.parametrize("what", ["gone", "other"])
def test_a_manifest_that_is_gone_or_another_one_is_told(tmp_path: Path, what: str) -> None:
    manifest = tmp_path / "m.manifest_contents.jl.gz"
    if what == "other":
        with gzip.open(manifest, "wt") as f:
            f.write('{"path": "x", "digest": "y"}\n')
    record = pb.Record(num=2)
    record.artifact.name, record.artifact.type, record.artifact.client_id = "a", "t", "c1"
    record.artifact.digest, record.artifact.finalize = "0" * 32, True
    record.artifact.manifest.manifest_file_path = str(manifest)
    write_log(tmp_path / "wandb", "r", [run_record("r"), bytes(record.SerializeToString()), exit_record()])
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    done = copy.sync(str(tmp_path / "wandb"))
    assert "1 manifests of artifacts that lie in files of their own cannot be read" in done.stderr
    assert copy.sql("select collection, file_count from artifacts") == [("a", None)]


# Bytes


def test_bytes_of_files_and_artifacts_are_taken_from_this_machine(lab: Lab) -> None:
    files = next(lab.log.parent.glob("files"))
    held = dict(lab.sql("select name, sha256 from files"))
    assert {"w.bin", "output.log", "requirements.txt"} <= held.keys()
    assert sum(name.startswith("media/") for name in held) == 2
    for name, sha256 in held.items():
        assert blob(lab.copy, sha256) == (files / name).read_bytes()
    entries = lab.sql("select collection, path, sha256 from artifact_entries where ref is null order by all")
    assert len(entries) == 5
    for collection, path, sha256 in entries:
        expected = {"w.bin": b"x" * 100, "f.txt": b"hello"}.get(path) or (files / held_table(held)).read_bytes()
        if path != "t.table.json":  # the artifact's table is written anew, not the file beside it
            assert blob(lab.copy, sha256) == expected, collection


def held_table(held: dict[str, str]) -> str:
    return next(name for name in held if name.startswith("media/table"))


def blob(copy: Copy, sha256: str) -> bytes:
    [path] = (copy.root / "blobs").rglob(sha256)
    return path.read_bytes()


def test_only_files_with_the_digest_of_the_log_are_taken(tmp_path: Path) -> None:
    """A log from elsewhere may name any file of this machine."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    record = pb.Record(num=2)
    record.artifact.name, record.artifact.type, record.artifact.client_id = "a", "t", "c1"
    record.artifact.finalize = True
    for i, digest in enumerate(["", "1B2M2Y8AsgTpgAmY7PhCfg=="]):
        entry = record.artifact.manifest.contents.add()
        entry.path, entry.digest, entry.local_path, entry.size = f"../{i}", digest, str(secret), 6
    write_log(tmp_path / "wandb", "r", [run_record("r"), bytes(record.SerializeToString()), exit_record()])
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    done = copy.sync(str(tmp_path / "wandb"), "--all-bytes", ok=False)
    assert "`../0`" in done.stderr and "`../1`" in done.stderr
    assert copy.sql("select count(*) from artifact_entries where sha256 is not null") == [(0,)]
    assert not [p for p in copy.root.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]


# Kinds that the SDK does not write any more, or only with a server


def record_of(kind: str, **fields: Any) -> bytes:
    record = pb.Record(num=5)
    part = getattr(record, kind)
    part.SetInParent()
    for name, value in fields.items():
        setattr(part, name, value)
    return bytes(record.SerializeToString())


def test_kinds_of_other_times(tmp_path: Path) -> None:
    request = pb.Record(num=6)
    request.request.link_artifact.portfolio_name = "p"
    unknown = b"\x08\x07\xa2\x06\x00"  # field 100 of the next release, say 101: tag 0xaa06
    records = [
        run_record("old"),
        row(0, x=1),
        record_of("use_artifact", id="QXJ0aWZhY3Q6MQ==", type="dataset", name="mnist:v3"),
        record_of("tbrecord", log_dir="/logs/tb"),
        record_of("output", line="old line\n"),
        record_of("output_logger", line="logger"),
        record_of("noop_link_artifact"),
        record_of("final"),
        record_of("footer"),
        bytes(request.SerializeToString()),
        unknown.replace(b"\xa2\x06", b"\xaa\x06"),
        summary(kept=1, gone=2),
        summary(remove=["gone"]),
        exit_record(),
    ]
    files = pb.Record(num=7)
    files.files.files.add().path = "lost.bin"
    config = pb.Record(num=8)
    config.config.update.add().key = "kept"
    config.config.update[0].value_json = "1"
    config.config.update.add().key = "gone"
    config.config.update[1].value_json = '{"a": {"b": 2, "c": 3}}'
    remove = pb.Record(num=9)
    remove.config.remove.add().nested_key.extend(["gone", "a", "b"])
    more = [bytes(r.SerializeToString()) for r in (files, config, remove)]
    write_log(tmp_path / "wandb", "old", [*records[:-1], *more, records[-1]])
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    done = copy.sync(str(tmp_path / "wandb"))
    [(config_, summed, lines)] = copy.sql("select config, summary, logs_rows from runs")
    assert json.loads(config_) == {"kept": 1, "gone": {"a": {"c": 3}}}
    assert json.loads(summed)["kept"] == 1 and "gone" not in json.loads(summed)
    assert lines == 1 and copy.sql("select text from logs") == [("old line",)]
    assert copy.sql("select collection, version, run_id, run_entity from artifact_uses") == [
        ("mnist", 3, "old", "team")
    ]
    for said in (
        "`/logs/tb`: TensorBoard logs are not read",
        "1 lines of the SDK's own logger are not kept (`logger`)",
        "1 requests between the SDK's processes are not kept (`link_artifact`)",
        "1 records are of kinds that this `wandb` does not know (`?`)",
        "1 files that its log names are not in its folder (`lost.bin`)",
    ):
        assert said in done.stderr, said


def test_values_by_their_type_are_read(tmp_path: Path) -> None:
    """Newer messages may hold a value by its type instead of as JSON text."""
    record = pb.Record(num=2)
    record.history.step.num = 0
    values: dict[str, Any] = {
        "integer": 2**53 + 1, "number": 0.1, "text": 'q"', "boolean": True, "json": '{"a": [1]}', "none": None
    }  # fmt: skip
    for kind, value in values.items():
        item = record.history.item.add()
        item.key = kind
        if value is not None:
            setattr(item, kind, value)
        else:
            item.none = 1
    write_log(tmp_path / "wandb", "r", [run_record("r"), bytes(record.SerializeToString()), exit_record()])
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    copy.sync(str(tmp_path / "wandb"))
    assert copy.rows("logs", "r") == [values | {"json": {"a": [1]}, "_step": 0}]


def test_a_fork_says_from_where(tmp_path: Path) -> None:
    record = pb.Record.FromString(run_record("child"))
    record.run.branch_point.run, record.run.branch_point.value, record.run.branch_point.metric = "parent", 41, "_step"
    write_log(tmp_path / "wandb", "child", [bytes(record.SerializeToString()), row(42, x=1), exit_record()])
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    copy.sync(str(tmp_path / "wandb"))
    assert copy.sql("select fork_run_id, fork_step, history_rows from runs") == [("parent", 41, 1)]
