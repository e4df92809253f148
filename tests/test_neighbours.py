"""Many short runs are read together, and give what each of them logged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import asking
import pyarrow as pa
import pytest
from commanding import ok

import mirror
from mirror.errors import NotFoundError
from mirror.query import neighbours
from mirror.query.neighbours import Neighbours
from mirror.records import Fetched, Run
from mirror.store import Reader, Writer

KEYS = ["a", "b.c", "x/y", "Loss", "loss", "vast", "text"]
VALUES = [1, 2.5, True, None, "s", "", 2**53 + 1, 10**30, -0.0, [1, {"k": None}], {"b": {"c": 2.5}}, "é\u2028\t"]


def logged() -> dict[str, list[dict[str, Any]]]:
    """Rows by run id: runs without rows, of one row, of some, with repeated steps or without steps, of keys of their
    own, and one that is longer than all others together."""
    random = Random(7)
    made: dict[str, list[dict[str, Any]]] = {}
    for n in range(40):
        keys = [*random.sample(KEYS, random.randint(0, 5)), f"own{n}"]
        rows = [{k: random.choice(VALUES) for k in keys if random.random() < 0.7} for _ in range((0, 1, 3, 20)[n % 4])]
        made[f"r{n:02}"] = rows if n % 5 == 0 else [{"_step": i // 2} | row for i, row in enumerate(rows)]
    made["r13"] = [{"_step": i, "loss": i / 7} for i in range(3000)]
    return made


ROWS = logged()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("neighbours") / "m"
    with mirror.open(root, write=True) as m:
        for i, (name, rows) in enumerate(ROWS.items()):
            run = Run(asking.key(name, "many"), name=name if i % 2 else None, created_at=asking.T0)
            m.put_runs([run])
            m.put_history(run, [{"_step": 0, "old": 1}] if name == "r07" else rows)
    with Writer(root) as writer, writer.lease("lab.example", "team", "many"):  # r07 is rewound
        writer.put_run(Run(asking.key("r07", "many"), name="r07", created_at=asking.T0))
        writer.begin(asking.key("r07", "many"), "history")
        writer.append(asking.key("r07", "many"), "history", [json.dumps(row) for row in ROWS["r07"]])
        writer.publish(asking.key("r07", "many"), "history", Fetched("history", "rows"))
    return root


@pytest.fixture(params=[1, 4000, neighbours._GROUP_BYTES])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(neighbours, "_GROUP_BYTES", request.param)
    yield request.param


def leaves(row: dict[str, Any]) -> Iterator[str]:
    for key, value in row.items():
        yield from ((f"{key}.{inner}" for inner in leaves(value)) if isinstance(value, dict) else [key])


@pytest.mark.usefixtures("together")
def test_a_file_for_each_run(root: Path, tmp_path: Path) -> None:
    for format in ("jsonl", "arrow"):
        ok("export", "team/many", "--what", "history", "--format", format, "-o", tmp_path, root=root)
    for name, rows in ROWS.items():
        assert [json.loads(line) for line in (tmp_path / f"{name}.history.jsonl").open()] == rows
        with pa.ipc.open_file(tmp_path / f"{name}.history.arrow") as file:
            table = file.read_all()
        assert table.num_rows == len(rows)
        assert set(table.column_names) == ({leaf for row in rows for leaf in leaves(row)} or {"_step"})
        if name == "r13":
            assert table.to_pylist() == rows and table.schema.field("loss").type == pa.float64()


@pytest.mark.usefixtures("together")
def test_one_file_for_all(root: Path, tmp_path: Path) -> None:
    ok("export", "team/many", "--what", "history", "-o", tmp_path / "x.jsonl", root=root)
    found = [json.loads(line) for line in (tmp_path / "x.jsonl").open()]
    assert [(row["run_id"], row["row"]) for row in found] == [(name, row) for name in ROWS for row in ROWS[name]]
    assert all(row["name"] == (None if int(row["run_id"][1:]) % 2 == 0 else row["run_id"]) for row in found)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("slots", [50, 1 << 20])
def test_one_table_for_all(root: Path, tmp_path: Path, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.query.logged._SLOTS", slots)
    ok("export", "team/many", "--what", "history", "--keys", "loss,vast", "-o", tmp_path / "x.arrow", root=root)
    with pa.ipc.open_file(tmp_path / "x.arrow") as file:
        found = file.read_all()
    kept = [(name, row) for name in ROWS for row in ROWS[name] if "loss" in row or "vast" in row]
    assert found.column("run_id").to_pylist() == [name for name, _ in kept]
    assert found.column("_step").to_pylist() == [row.get("_step") for _, row in kept]
    for row, (_, was) in zip(found.to_pylist(), kept, strict=True):
        for key in ("loss", "vast"):  # columns of JSON, since values of all types are among them
            text, value = row.get(key), was.get(key)
            if isinstance(value, dict):
                text, value = row[f"{key}.b.c"], json.dumps(value["b"]["c"])
                assert float(text) == float(value)
            else:
                assert (None if text is None else json.loads(text)) == value and (text is None) == (key not in was)


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("format", ["csv", "parquet", "arrow"])
def test_a_key_that_no_row_has(root: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / f"x.{format}"
    ok("export", "team/many", "--what", "history", "--keys", "_step", "-o", out, root=root)
    assert out.stat().st_size


@pytest.mark.usefixtures("together")
def test_histories_of_many_runs(root: Path) -> None:
    runs = mirror.Api(root).runs("team/many")
    whole = [row | {"run_id": name} for name in ROWS for row in ROWS[name]]
    assert runs.histories(samples=None) == whole
    with pytest.warns(UserWarning, match=r"of \d+ rows"):
        few = runs.histories(samples=2)
    ends = [row | {"run_id": name} for name, rows in ROWS.items() for row in [*rows[:1], *rows[1:][-1:]]]
    assert few == ends
    with pytest.warns(UserWarning):
        losses = runs.histories(samples=None, keys=["loss"])
    both = ("_step", "loss")
    assert losses == [
        {key: row[key] for key in both} | {"run_id": name}
        for name in ROWS for row in ROWS[name] if row.keys() >= {*both}
    ]  # fmt: skip


def test_short_runs_are_asked_for_together(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Neighbours._ask

    def counted(self: Neighbours, query: str, rids: Any) -> Any:
        asked.append(query)
        return ask(self, query, rids)

    monkeypatch.setattr(Neighbours, "_ask", counted)
    monkeypatch.setattr(neighbours, "stretches", None)  # no run is asked for alone
    ok("export", "team/many", "--what", "history", "-o", tmp_path, root=root)
    assert len(list(tmp_path.iterdir())) == len(ROWS)
    assert len(asked) == 3  # what the runs weigh, their kinds of values, their cells


def test_a_run_that_is_gone(root: Path) -> None:
    with Reader(root) as reader, pytest.raises(NotFoundError, match="no longer holds some of the runs"):
        Neighbours(reader, [1, 2, 10**6]).kinds()
