"""Sweeps, artifact collections, artifacts and reports in the store."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.records import (
    Artifact,
    ArtifactCollection,
    ArtifactEntry,
    ArtifactUse,
    Item,
    ItemKey,
    Report,
    Sweep,
)
from mirror.store import Reader, Writer
from mirror.store.items import KIND, sweep_columns
from mirror.store.repair import repair

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
CONFIG = {
    "method": "bayes",
    "metric": {"name": "val/löss", "goal": "minimize"},
    "parameters": {"lr": {"values": [1, 2.5]}},
}


def key(name: str) -> ItemKey:
    return ItemKey("api.wandb.ai", name, "team", "proj")


def entries(n: int) -> list[ArtifactEntry]:
    return [ArtifactEntry(f"dir/{i:06d} ü.bin", f"md5-{i}", i, extra=json.dumps({"i": i})) for i in range(n)]


SWEEP = Sweep(key("s"), "abc", "A sweep", None, "RUNNING", yaml.dump(CONFIG), 0.5, 7, "jo", AT, AT)
COLLECTION = ArtifactCollection(key("c"), "model", "net", "a net", ("x", "y"), AT, AT)
ARTIFACT = Artifact(
    key("a"), "model", "net", 3, "COMMITTED", "d1g", ("latest", "best"), ("t",), "about", '{"a": NaN}', 10**13, 2, 5,
    run_entity="team", run_project="proj", run_id="r1", created_at=AT, updated_at=AT,
    entries=entries(2), uses=[ArtifactUse("team", "proj", "r2", "input")],
)  # fmt: skip
REPORT = Report(key("r"), "vw1", "runs", "Title", None, '{"blocks": []}', "jo", AT, AT)
ALL: list[Item] = [SWEEP, COLLECTION, ARTIFACT, REPORT]


def rows(root: Path, query: str) -> list[dict[str, Any]]:
    with Reader(root) as reader:
        return reader.connect().sql(query).to_arrow_table().to_pylist()


def put(root: Path, *items: Item) -> None:
    with Writer(root) as w:
        for item in items:
            w.put_item(item)


def segments(root: Path) -> set[Path]:
    return set((root / "data").rglob("*.parquet"))


def test_items_come_back_as_they_were_put(tmp_path: Path) -> None:
    put(tmp_path / "m", *ALL)
    [sweep] = rows(tmp_path / "m", "select * from sweeps")
    assert (sweep["sweep_id"], sweep["name"], sweep["state"]) == ("abc", "A sweep", "RUNNING")
    assert (sweep["best_loss"], sweep["run_count"]) == (0.5, 7)
    assert sweep["config_raw"] == yaml.dump(CONFIG) and json.loads(sweep["config"]) == CONFIG
    assert (sweep["method"], sweep["metric"], sweep["goal"]) == ("bayes", "val/löss", "minimize")
    [collection] = rows(tmp_path / "m", "select * from artifact_collections")
    assert (collection["collection"], collection["tags"], collection["created_at"]) == ("net", ["x", "y"], AT)
    [artifact] = rows(tmp_path / "m", "select * from artifacts")
    assert artifact["aliases"] == ["latest", "best"] and artifact["metadata"] == '{"a": NaN}'
    assert (artifact["size"], artifact["version"], artifact["run_id"]) == (10**13, 3, "r1")
    held = rows(tmp_path / "m", "select path, digest, size, extra, version from artifact_entries order by path")
    assert held == [
        {"path": e.path, "digest": e.digest, "size": e.size, "extra": e.extra, "version": 3} for e in entries(2)
    ]
    [use] = rows(tmp_path / "m", "select * from artifact_uses")
    assert (use["run_entity"], use["run_project"], use["run_id"], use["used_as"]) == ("team", "proj", "r2", "input")
    [report] = rows(tmp_path / "m", "select * from reports")
    assert (report["title"], report["spec"], report["deleted_at"]) == ("Title", '{"blocks": []}', None)


def test_an_equal_item_writes_nothing_and_a_change_one_row(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, *ALL)
    before = segments(root)
    put(root, *ALL)
    assert segments(root) == before
    put(root, replace(ARTIFACT, aliases=("best",), entries=None, uses=None))
    made = segments(root) - before
    assert {p.parts[-3] for p in made} == {"artifacts"}
    assert rows(root, "select aliases from artifacts") == [{"aliases": ["best"]}]
    assert len(rows(root, "select * from artifact_entries")) == 2
    assert len(rows(root, "select * from artifact_uses")) == 1


def test_new_entries_replace_old_ones_and_fewer_uses_are_fewer(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, ARTIFACT)
    put(root, replace(ARTIFACT, entries=entries(25_000), uses=[]))
    [count] = rows(root, "select count(*) as n, sum(size) as s from artifact_entries")
    assert count == {"n": 25_000, "s": sum(range(25_000))}
    assert rows(root, "select * from artifact_uses") == []


def test_several_changes_in_one_commit_end_with_the_last(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        rid = w.put_item(SWEEP)
        assert w.put_item(replace(SWEEP, state="PAUSED")) == rid
        w.drop_item("sweeps", SWEEP.key, at=AT)
        w.put_item(REPORT)
        w.drop_item("reports", REPORT.key, at=AT)
        w.put_item(REPORT)
    assert rows(root, "select state, deleted_at from sweeps") == [{"state": "PAUSED", "deleted_at": AT}]
    assert rows(root, "select deleted_at from reports") == [{"deleted_at": None}]


@pytest.mark.parametrize("item", ALL, ids=lambda item: KIND[type(item)])
def test_a_dropped_item_keeps_what_was_known_and_can_come_back(tmp_path: Path, item: Item) -> None:
    root, kind = tmp_path / "m", KIND[type(item)]
    put(root, item)
    old = rows(root, f"select * exclude (deleted_at, mirrored_at) from {kind}")
    with Writer(root) as w:
        w.drop_item(kind, item.key)
        w.drop_item(kind, key("nobody"))
    assert rows(root, f"select * exclude (deleted_at, mirrored_at) from {kind}") == old
    assert rows(root, f"select deleted_at is null as live from {kind}") == [{"live": False}]
    with Writer(root) as w:
        assert w.items(kind, "api.wandb.ai", "team", "proj")[item.key.storage_id].deleted
        w.put_item(item)
    assert rows(root, f"select * exclude (mirrored_at) from {kind}") == [row | {"deleted_at": None} for row in old]


def test_missing_is_counted_until_the_item_is_seen_again(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, SWEEP)
    for n in (1, 2):
        with Writer(root) as w:
            assert w.missed_item("sweeps", SWEEP.key) == n
    put(root, SWEEP)
    with Writer(root) as w:
        assert w.missed_item("sweeps", SWEEP.key) == 1


def test_many_versions_are_compacted_to_the_live_one(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for n in range(25):
        put(root, replace(ARTIFACT, aliases=(f"a{n}",), entries=entries(n)), replace(SWEEP, run_count=n))
    with Reader(root) as reader:
        assert len(reader.snapshot.files("artifacts")) < 12
        assert len(reader.snapshot.files("artifact_entries")) < 12
    assert rows(root, "select aliases from artifacts") == [{"aliases": ["a24"]}]
    assert len(rows(root, "select * from artifact_entries")) == 24
    assert rows(root, "select run_count from sweeps") == [{"run_count": 24}]


def test_repair_rebuilds_the_identities_of_items(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, *ALL)
    put(root, replace(ARTIFACT, aliases=("new",)))
    before = {kind: rows(root, f"select * from {kind}") for kind in KIND.values()}
    parts = {name: rows(root, f"select * from {name}") for name in ("artifact_entries", "artifact_uses")}
    (root / "catalog.sqlite").unlink()
    (root / "snapshot.json").unlink()
    repair(root)
    assert {kind: rows(root, f"select * from {kind}") for kind in KIND.values()} == before
    assert {name: rows(root, f"select * from {name}") for name in parts} == parts
    put(root, replace(ARTIFACT, aliases=("newer",)), replace(SWEEP, state="FINISHED"))
    assert rows(root, "select aliases from artifacts") == [{"aliases": ["newer"]}]
    assert rows(root, "select state from sweeps") == [{"state": "FINISHED"}]


def test_items_lost_with_a_damaged_file_are_written_again(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, *ALL)
    for path in (root / "data" / "artifact_entries").rglob("*.parquet"):
        path.chmod(0o600)
        path.write_bytes(b"rubbish")
    repair(root)
    assert rows(root, "select * from artifact_entries") == []
    put(root, ARTIFACT)
    assert len(rows(root, "select * from artifact_entries")) == 2


def test_a_store_of_the_first_release_is_upgraded(tmp_path: Path) -> None:
    root = tmp_path / "m"
    put(root, SWEEP)
    with sqlite3.connect(root / "catalog.sqlite") as db:
        db.execute("drop table items")
        for column in ("missing", "deleted_at"):
            db.execute(f"alter table projects drop column {column}")
        db.execute("drop index runs_by_id")
        db.execute("drop index runs_merged")
        for column in ("origin", "merged_into", "judged"):
            db.execute(f"alter table runs drop column {column}")
        db.execute("update meta set value = '1' where key = 'schema_version'")
    put(root, REPORT)
    assert len(rows(root, "select * from reports")) == 1


@pytest.mark.parametrize(
    ("raw", "method"),
    [("method: grid", "grid"), ("{", None), ("- 1\n- 2", None), ("", None), ("method: [grid]", None), (None, None)],
)
def test_a_sweep_configuration_of_any_shape_is_kept(tmp_path: Path, raw: str | None, method: str | None) -> None:
    put(tmp_path / "m", replace(SWEEP, config=raw))
    assert rows(tmp_path / "m", "select config_raw, method from sweeps") == [{"config_raw": raw, "method": method}]


def test_yaml_that_would_explode_is_kept_as_text_only() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [" + ", ".join([f"*{before}"] * 10) + "]\n"
    assert sweep_columns(bomb) == {"config": None, "method": None, "metric": None, "goal": None}
    assert json.loads(sweep_columns("x: [.nan, .inf, 2026-01-01]")["config"] or "") == {
        "x": ["NaN", "Infinity", "2026-01-01"]
    }
