"""Logs that are torn, damaged, still written, rewound, or none at all: what is whole is kept, the rest is said."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from logfiles import BLOCK, HEADER, exit_record, framed, row, run_record, summary, write_log
from starting import run_mirror
from syncing import Copy, Done
from wandb.proto import wandb_internal_pb2 as pb

from mirror.errors import TerminalSourceError
from mirror.sources.offline.framing import Log
from mirror.sources.offline.rows import Records, by_protobuf


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")


def records_of(log: Log) -> list[bytes]:
    return [record for some in log for record in some]


# The framing


def random_records(seed: int, n: int = 60) -> list[bytes]:
    """Records of all lengths around the size of a block, each different from the others."""
    chosen = random.Random(seed)
    sizes = [chosen.choice([0, 1, 7, 100, 3000, BLOCK - 14, BLOCK - 8, BLOCK - 7, BLOCK, 3 * BLOCK]) for _ in range(n)]
    return [i.to_bytes(4, "big") + chosen.randbytes(size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("seed", range(5))
def test_records_of_any_length_come_back(tmp_path: Path, seed: int) -> None:
    records = random_records(seed)
    path = tmp_path / "x.wandb"
    path.write_bytes(HEADER + framed(records))
    log = Log(path)
    assert records_of(log) == records
    assert (log.torn, log.damage, log.offset) == (0, [], path.stat().st_size)


def ends(records: list[bytes]) -> list[int]:
    """Where each record ends in the log."""
    found, at = [], len(HEADER)
    for record in records:
        at += len(framed([record], at))
        found.append(at)
    return found


def test_a_log_torn_at_any_byte_of_its_last_blocks_keeps_every_whole_record(tmp_path: Path) -> None:
    """And a second reading, when the log is whole, goes on where the first one ended."""
    records = [row(i, x=i / 7, note="n" * (i % 50)) for i in range(600)] + [row(600, long="y" * 40_000), exit_record()]
    whole = HEADER + framed(records)
    after = ends(records)
    path = tmp_path / "x.wandb"
    chosen = random.Random(1)
    points = {*range(len(whole) - 700, len(whole)), *chosen.sample(range(len(whole) - 3 * BLOCK, len(whole)), 400)}
    points |= {edge + d for edge in range(BLOCK, len(whole), BLOCK) for d in range(-9, 9)}
    for size in sorted(p for p in points if 0 <= p < len(whole)):
        path.write_bytes(whole[:size])
        log = Log(path)
        kept = sum(end <= size for end in after)
        assert records_of(log) == records[:kept], size
        assert log.damage == []
        assert log.offset == (after[kept - 1] if kept else len(HEADER))
        assert log.torn == max(0, size - log.offset)
        path.write_bytes(whole)
        assert records_of(Log(path, log.offset)) == records[kept:], size


def test_a_flipped_bit_loses_the_record_it_is_in_and_no_other(tmp_path: Path) -> None:
    records = [row(i, x=i / 7) for i in range(700)] + [row(700, long="y" * 70_000)]
    records += [row(i, x=i / 7) for i in range(701, 900)] + [exit_record()]
    whole = HEADER + framed(records)
    after = ends(records)
    path = tmp_path / "x.wandb"
    chosen = random.Random(2)
    for at in [*chosen.sample(range(len(HEADER), len(whole)), 300), *range(BLOCK - 10, BLOCK + 10)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        log = Log(path)
        hit = next(i for i, end in enumerate(after) if at < end)
        kept = records_of(log)
        begin, end = (after[hit - 1] if hit else len(HEADER)), after[hit]
        if kept != records:  # bits of a block's padding do not matter
            assert kept == records[:hit] + records[hit + 1 :], at
            last = hit == len(records) - 1
            assert log.torn == (end - begin if last else 0)
            assert len(log.damage) == (not last)
            for found in log.damage:  # the padding of a block may belong to it
                assert begin <= found.start < begin + 7 and end <= found.end < end + 7


def test_zeros_at_the_end_are_no_records(tmp_path: Path) -> None:
    """A file system that was cut off may have grown a file without its content."""
    records = [row(i) for i in range(10)]
    path = tmp_path / "x.wandb"
    path.write_bytes(HEADER + framed(records) + bytes(5_000_000))
    log = Log(path)
    began = time.process_time()
    assert records_of(log) == records
    assert log.torn == 5_000_000
    assert time.process_time() - began < 5


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b":W&B\xe1\xbe\x01", b":W&", b"{}" * 100])
def test_what_is_no_log_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wandb"
    path.write_bytes(content)
    if HEADER.startswith(content):
        assert records_of(Log(path)) == []
    else:
        with pytest.raises(TerminalSourceError, match="no log of the W&B SDK"):
            records_of(Log(path))


# Rows and summaries by their bytes


def test_rows_made_in_place_equal_those_protobuf_makes() -> None:
    chosen = random.Random(3)
    keys = ["x", "a.b", "k" * 200, 'q"', "back\\slash", "tab\t", "é", "😀", "", "_timestamp", "n" * 127, "n" * 128]
    values: list[Any] = [0, -1.5, "text", 'a "quote"', None, True, [1, {"a": []}], {}, "v" * 127, "v" * 300, 2**60]
    records = []
    for i in range(400):
        picked = {chosen.choice(keys): chosen.choice([*values, {"in": {"ner": i}}]) for _ in range(chosen.randrange(6))}
        records.append(row(i, num=chosen.choice([1, 127, 128, 2**21, 2**40]), **picked))
    records.append(row(1, **{f"key{i}": i for i in range(3000)}))
    found = [json.loads(text) for text in Records(records).history()]
    assert found == [json.loads(by_protobuf(record)) for record in records]
    assert [r["_step"] for r in found[:400]] == list(range(400))


def test_the_last_update_of_a_summary_counts_and_removals_do_at_their_place() -> None:
    records = [summary(num=i + 1, a=i, b=f"b{i}", **({"once": 1} if i == 3 else {})) for i in range(50)]
    records += [summary(remove=["a", "once"]), summary(c=[1, 2]), summary(a="again")]
    state: dict[str, Any] = {}
    for path, text in Records(records).summary():
        if text is None:
            state.pop(path[0], None)
        else:
            state[path[0]] = json.loads(text)
    assert state == {"b": "b49", "c": [1, 2], "a": "again"}


def test_records_with_fields_before_what_they_hold_are_read_alike() -> None:
    plain = row(5, x=1.5)
    record = pb.Record.FromString(plain)
    moved = b"\x08\x02\xc2\x0c\x03\n\x01s" + plain[2:]
    found = Records([plain, moved, b"\x08\x01\xff", b""])
    assert list(map(json.loads, found.history())) == [{"_step": 5, "_timestamp": 1.7e9 + 5, "x": 1.5}] * 2
    assert found.unknown == 1
    assert record.history.step.num == 5


# Torn and growing logs in a mirror


def steps(copy: Copy, run_id: str = "r", project: str = "logs") -> list[int]:
    return [r["_step"] for r in copy.rows(project, run_id)]


def test_a_torn_log_is_kept_up_to_the_tear_and_gone_on_with(copy: Copy, tmp_path: Path) -> None:
    records = [run_record("r"), *(row(i, x=i / 3) for i in range(2000)), summary(best=1.5), exit_record(1)]
    log = write_log(tmp_path / "wandb", "r", records)
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2 + 5])
    done = copy.sync(str(tmp_path / "wandb"))
    assert "unfinished record" in done.stderr and str(log) in done.stderr
    run = copy.runs("logs")["r"]
    assert run["state"] == "running" and "unfinished record" in run["history_note"] and run["exit_code"] is None
    first = steps(copy)
    assert first == list(range(len(first))) and 900 < len(first) < 1100
    gen = copy.sql("select max(history_gen) from raw.runs")

    log.write_bytes(whole)
    done = copy.sync(str(tmp_path / "wandb"))
    assert f"{2000 - len(first):,} rows;" in done.stdout and "unfinished" not in done.stderr
    assert steps(copy) == list(range(2000))
    run = copy.runs("logs")["r"]
    assert (run["state"], run["exit_code"], run["history_note"]) == ("failed", 1, None)
    assert json.loads(run["summary"]) == {"best": 1.5}
    assert copy.sql("select max(history_gen) from raw.runs") == gen


def test_a_log_without_an_end_becomes_a_crashed_run(copy: Copy, tmp_path: Path) -> None:
    log = write_log(tmp_path / "wandb", "r", [run_record("r"), row(0)])
    copy.sync(str(tmp_path / "wandb"))
    assert copy.runs("logs")["r"]["state"] == "running"
    os.utime(log, (time.time() - 7200, time.time() - 7200))
    copy.sync(str(tmp_path / "wandb"))
    assert copy.runs("logs")["r"]["state"] == "crashed"


def test_a_damaged_log_keeps_what_is_whole_and_fails(copy: Copy, tmp_path: Path) -> None:
    records = [run_record("r"), *(row(i, x=i / 3) for i in range(100)), exit_record()]
    log = write_log(tmp_path / "wandb", "r", records)
    write_log(tmp_path / "wandb", "other", [run_record("other"), row(0), exit_record()])
    damaged = bytearray(log.read_bytes())
    damaged[ends(records)[50] + 20] ^= 4
    log.write_bytes(damaged)
    done = copy.sync(str(tmp_path / "wandb"), ok=False)
    assert done.exit_code == 1 and f"`{log}` is damaged from byte" in done.stderr
    assert steps(copy) == [*range(50), *range(51, 100)]
    run = copy.runs("logs")["r"]
    assert not run["history_complete"] and "damaged" in run["history_note"] and run["state"] == "finished"
    assert steps(copy, "other") == [0]


def test_another_log_in_the_place_of_one_that_was_read_is_read_anew(copy: Copy, tmp_path: Path) -> None:
    write_log(tmp_path / "wandb", "r", [run_record("r"), *(row(i, x="first") for i in range(50))])
    copy.sync(str(tmp_path / "wandb"))
    write_log(tmp_path / "wandb", "r", [run_record("r"), *(row(i, x="second") for i in range(60))])
    copy.sync(str(tmp_path / "wandb"))
    assert [r["x"] for r in copy.rows("logs", "r")] == ["second"] * 60


def test_rows_that_a_damaged_mirror_lost_are_read_again(copy: Copy, tmp_path: Path) -> None:
    write_log(tmp_path / "wandb", "r", [run_record("r"), *(row(i, x=i / 3) for i in range(50)), exit_record()])
    copy.sync(str(tmp_path / "wandb"))
    for segment in (copy.root / "data" / "history").rglob("*.parquet"):
        segment.unlink()
    run_mirror(["repair", "--mirror", str(copy.root)])
    copy.sync(str(tmp_path / "wandb"))
    assert steps(copy) == list(range(50))


# Several logs of a run


def test_logs_of_a_run_follow_each_other_by_the_time_they_began(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    later = [run_record("r", started=1_700_000_500), *(row(i, x=10 + i) for i in range(3)), exit_record()]
    first = [run_record("r", started=1_700_000_000), *(row(i, x=i) for i in range(3)), exit_record(1)]
    write_log(folder, "r", later, "offline-run-a-r")
    write_log(folder, "r", first, "offline-run-b-r")
    copy.sync(str(folder))
    assert [(r["_step"], r["x"]) for r in copy.rows("logs", "r")] == [(0, 0), (1, 1), (2, 2), (0, 10), (1, 11), (2, 12)]
    assert copy.runs("logs")["r"]["state"] == "finished"

    resumed = [run_record("r", started=1_700_000_900, resume=True), row(0, x=20), exit_record()]
    write_log(folder, "r", resumed, "offline-run-c-r")
    copy.sync(str(folder))
    assert [(r["_step"], r["x"]) for r in copy.rows("logs", "r")][-2:] == [(2, 12), (3, 20)]


def test_a_rewound_log_takes_back_the_rows_behind_its_point(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    write_log(folder, "r", [run_record("r"), *(row(i, x=i) for i in range(10)), exit_record()], "offline-run-a-r")
    copy.sync(str(folder))
    assert steps(copy) == list(range(10))
    head = pb.Record.FromString(run_record("r", started=1_700_000_500))
    head.run.branch_point.run, head.run.branch_point.metric, head.run.branch_point.value = "r", "_step", 4
    again = [head.SerializeToString(), *(row(i, x=100 + i) for i in range(5, 8)), exit_record()]
    write_log(folder, "r", again, "offline-run-b-r")
    copy.sync(str(folder))
    assert [(r["_step"], r["x"]) for r in copy.rows("logs", "r")] == [
        *((i, i) for i in range(5)),
        *((i, 100 + i) for i in range(5, 8)),
    ]


def test_a_forked_log_names_the_run_it_comes_from(copy: Copy, tmp_path: Path) -> None:
    head = pb.Record.FromString(run_record("child"))
    head.run.branch_point.run, head.run.branch_point.metric, head.run.branch_point.value = "parent", "_step", 4
    write_log(tmp_path / "wandb", "child", [head.SerializeToString(), row(5), exit_record()])
    copy.sync(str(tmp_path / "wandb"))
    assert "forked from run `parent` at step 4" in copy.runs("logs")["child"]["history_note"]
    assert steps(copy, "child") == [5]


# Who a run is


def test_entity_and_project_of_the_log_of_the_environment_and_of_the_options(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    write_log(folder, "r", [run_record("r", project="", entity=""), row(0), exit_record()])
    copy.env = {"WANDB_ENTITY": ""}
    copy.sync(str(folder))
    assert copy.sql("select source, entity, project, run_id from runs") == [("offline", "local", "uncategorized", "r")]
    copy.sync(str(folder), "--entity", "team", "--project", "named")
    assert copy.sql("select entity, project, history_rows from runs") == [("team", "named", 1)]
    assert len(copy.rows("named", "r")) == 1
    copy.env = {"WANDB_ENTITY": "from-env"}
    copy.sync(str(folder))
    assert copy.sql("select entity, project from runs") == [("from-env", "uncategorized")]


def test_runs_of_other_folders_are_not_gone(copy: Copy, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_log(tmp_path / name, name, [run_record(name), row(0), exit_record()])
        done = copy.sync(str(tmp_path / name))
        assert done.stderr == ""
    copy.sync(str(tmp_path / "two"))
    assert set(copy.runs("logs")) == {"one", "two"}


def test_a_run_folder_a_log_and_a_folder_above_are_ways_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "w" / "wandb", "r", [run_record("r"), row(0), exit_record()])
    monkeypatch.chdir(tmp_path / "w")
    ways = [str(log), str(log.parent), "./wandb", "file:wandb", f"file://{tmp_path}/w/wandb", ".", "../w"]
    ways.append(str(log.relative_to(tmp_path / "w")))
    copy = Copy(tmp_path / "mirror", "http://127.0.0.1:9", "no-key")
    for way in ways:
        assert "1 runs, " in copy.sync(way).stdout, way
    assert len(copy.sql("select 1 from runs")) == 1


def test_links_do_not_make_runs_twice(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    log = write_log(folder, "r", [run_record("r"), row(0), exit_record()])
    (folder / "latest-run").symlink_to(log.parent)
    (folder / "offline-run-link").symlink_to(log.parent)
    (folder / "offline-run-loop").symlink_to(folder)
    copy.sync(str(folder))
    assert steps(copy) == [0]


def test_online_logs_are_read_if_asked_for(copy: Copy, tmp_path: Path) -> None:
    write_log(tmp_path / "wandb", "r", [run_record("r"), row(0), exit_record()], "run-20260101_000000-r")
    done = copy.sync(str(tmp_path / "wandb"), ok=False)
    assert "--include-online" in done.stderr
    copy.sync(str(tmp_path / "wandb"), "--include-online")
    assert steps(copy) == [0]


# What cannot be read


def failing(copy: Copy, *paths: str) -> Done:
    done = copy.sync(*paths, ok=False)
    assert done.exit_code == 1
    return done


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    write_log(folder, "good", [run_record("good"), row(0), exit_record()])
    (folder / "offline-run-x-bad").mkdir()
    (folder / "offline-run-x-bad" / "run-bad.wandb").write_bytes(b"no log at all")
    (folder / "offline-run-x-empty").mkdir()
    headless = write_log(folder, "headless", [row(i) for i in range(1100)])
    write_log(folder, "young", [])
    done = failing(copy, str(folder), str(tmp_path / "nowhere"))
    assert "run-bad.wandb` is no log of the W&B SDK" in done.stderr
    assert f"`{headless}` holds no run record" in done.stderr
    assert f"there is no file or folder `{tmp_path / 'nowhere'}`" in done.stderr
    assert "names no run yet" in done.stderr
    assert set(copy.runs("logs")) == {"good"}


def test_a_folder_without_runs_is_said_to_be_one(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run folders" in failing(copy, str(tmp_path / "empty")).stderr


def test_a_log_that_may_not_be_read(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wandb"
    closed = write_log(folder, "closed", [run_record("closed"), row(0), exit_record()])
    write_log(folder, "open", [run_record("open"), row(0), exit_record()])
    closed.chmod(0)
    if os.access(closed, os.R_OK):  # root may read anything: let the system refuse it another way
        real = Path.open

        def refused(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self == closed:
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refused)
    done = failing(copy, str(folder))
    assert f"`{closed}` cannot be read: Permission denied" in done.stderr
    assert set(copy.runs("logs")) == {"open"}


def test_names_in_a_log_and_beside_it_may_be_anything(copy: Copy, tmp_path: Path) -> None:
    folder = tmp_path / "wandb"
    nasty = "../../x'; drop table runs --\x1b[31m"
    log = write_log(folder, "n", [run_record("n", project=nasty, display_name=nasty), row(0), exit_record()])
    files = log.parent / "files"
    (files / "deep" / "er").mkdir(parents=True)
    (files / "deep" / "er" / "a'b\n\x1b[31m.txt").write_bytes(b"abc")
    Path(os.fsdecode(os.fsencode(files) + b"/\xff.bin")).write_bytes(b"")
    (files / "linked").symlink_to(tmp_path / "outside.txt")
    (files / "nowhere").symlink_to(tmp_path / "nothing")
    (files / "folder").symlink_to(tmp_path)
    (tmp_path / "outside.txt").write_bytes(b"saved by a link")
    os.mkfifo(files / "pipe")
    done = copy.sync(str(folder))
    assert "\x1b" not in done.stdout + done.stderr
    found = dict(copy.sql("select name, size from files"))
    assert found == {"deep/er/a'b\n\x1b[31m.txt": 3, "\ufffd.bin": 0, "linked": 15}
    assert copy.runs(nasty)["n"]["name"] == nasty


def test_options_for_folders_need_one(copy: Copy) -> None:
    done = copy.sync("team/project", "--include-online", ok=False)
    assert done.exit_code == 2


def test_without_the_wandb_package_the_message_says_how_to_get_it(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirror.sources.offline import protobuf

    write_log(tmp_path / "wandb", "r", [run_record("r"), row(0)])
    monkeypatch.setitem(sys.modules, "wandb.proto", None)
    protobuf.messages.cache_clear()
    try:
        assert "pip install 'wandb-mirror[wandb]'" in failing(copy, str(tmp_path / "wandb")).stderr
    finally:
        protobuf.messages.cache_clear()


def test_a_dry_run_writes_nothing(copy: Copy, tmp_path: Path) -> None:
    write_log(tmp_path / "wandb", "r", [run_record("r"), row(0)])
    done = copy.sync(str(tmp_path / "wandb"), "--dry-run")
    assert "team/logs" in done.stdout
    assert not copy.root.exists()


# The SDK at work

LOGGING = """
import itertools, sys, time, wandb
run = wandb.init(project="live", id="live", entity="team", settings=wandb.Settings(silent=True, console="off"))
for i in itertools.count():  # until it is killed
    run.log({"i": i, "text": "x" * 50})
    if i == 3000:
        print("go", flush=True)
    time.sleep(0.0002)
"""


@pytest.mark.slow
def test_a_log_read_while_the_sdk_writes_it_and_after_it_was_killed(copy: Copy, tmp_path: Path) -> None:
    env = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", LOGGING], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    folder = str(tmp_path / "wandb")
    seen = []
    try:
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        end = time.monotonic() + 300
        while len(seen) < 4 or (len(set(seen)) == 1 and time.monotonic() < end):
            copy.sync(folder)
            seen.append(len(steps(copy, "live", "live")))
            time.sleep(0.3)
        assert process.poll() is None
        writing = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(300)
    log = next((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    _, alive = psutil.wait_procs(writing, timeout=300)  # the SDK's own process notices, maybe writing some more
    assert alive == []
    copy.sync(folder)
    found = copy.rows("live", "live")
    assert seen[0] > 0 and seen == sorted(seen) and len(set(seen)) > 1
    assert [r["i"] for r in found] == list(range(len(found))) and len(found) >= seen[-1]
    assert len(found) == sum(1 for r in records_of(Log(log)) if pb.Record.FromString(r).HasField("history"))
    assert copy.sql("select count(distinct history_gen) from raw.runs where history_rows > 0") == [(1,)]
