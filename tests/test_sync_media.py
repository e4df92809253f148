"""What the real SDK logs as media, tables, histograms, artifacts: synced with its bytes, asked in SQL, given back."""

from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from liar import Answer, Request, Reset
from serving import Server, client, serving
from starting import Started, run_mirror
from syncing import Copy, Proxy

import mirror
from mirror.errors import QueryError, UsageError
from mirror.query.sql import execute
from mirror.records import Run, RunKey
from mirror.store import Reader

pytestmark = pytest.mark.slow
BIG = random.Random(7).randbytes(6_000_000)
FILES = {"a.bin": BIG, "sub/b.txt": b"hi", "ä ö.txt": "ü".encode(), "empty": b"", "n" * 200 + "/" + "m" * 100: b"long",
         "Case": b"one", "case": b"two"}  # fmt: skip
LOG = """
import hashlib, json, sys, wandb, numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
run = wandb.init(project="p", id="r1", settings=wandb.Settings(console="off", x_disable_meta=True))
images = np.random.default_rng(1).integers(0, 255, (9, 4, 4, 3), dtype=np.uint8)
counts = np.array([3, 0, 5])
for step in range(3):
    run.log({
        "img": wandb.Image(images[3 * step], caption=f"c{step}"),
        "imgs": [wandb.Image(images[3 * step + i], caption=f"c{i}") for i in (1, 2)],
        "h": wandb.Histogram(np_histogram=(counts + step, np.array([-1.0, 0.1, 0.5, 2.0]))),
        "t": wandb.Table(columns=["a", "A", "x", "a"], allow_mixed_types=True,
                         data=[[step, 2.5, "NaN", None], [2, float("nan"), [1, "s"], True]]),
        "nest": {"html": wandb.Html("<b>x</b>")},
    })
    run.log({"with images": wandb.Table(columns=["img", "n"], data=[[wandb.Image(images[step]), 2**60 + step]])})
run.summary["last"] = wandb.Histogram(np_histogram=([1, 2], [0.0, 1.0, 2.0]))
first = wandb.Artifact("ds", "dataset")
first.add_dir(str(folder))
first.add(wandb.Table(columns=["k", "v"], data=[[i, i / 4] for i in range(5)]), "tab")
first.add(wandb.Table(columns=["k", "w"], data=[[i, str(i)] for i in range(3)]), "other")
first.add(wandb.JoinedTable("tab.table.json", "other.table.json", "k"), "both")
first.add(wandb.Table(columns=["k"], data=[[1], [2]]), "parts/one")
first.add(wandb.Table(columns=["z", "k"], data=[["x", 3]]), "parts/two")
first.add(wandb.data_types.PartitionedTable("parts"), "all")
run.log_artifact(first).wait()
more = wandb.Artifact("ds", "dataset", incremental=True)
(folder.parent / "new.txt").write_text("new")
more.add_file(str(folder.parent / "new.txt"))
run.log_artifact(more).wait()
elsewhere = wandb.Artifact("refs", "dataset")
elsewhere.add_reference("https://example.com/x", name="elsewhere", checksum=False)
run.log_artifact(elsewhere).wait()
linked = wandb.Artifact("linked", "dataset")
linked.add_reference(first.get_entry("sub/b.txt"), "b")
run.log_artifact(linked, aliases=["best"]).wait()
run.finish()
print(json.dumps([hashlib.sha256(image.tobytes()).hexdigest() for image in images]))
"""
DOWNLOAD = """
import hashlib, json, sys, wandb
from pathlib import Path
found = {}
for name in sys.argv[2:]:
    folder = Path(wandb.Api().artifact(name).download(root=f"{sys.argv[1]}/{name.replace(':', '_')}",
                                                      allow_missing_references=True))
    found[name] = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
                   for p in folder.rglob("*") if p.is_file()}
print(json.dumps(found))
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("logged") / "files"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        client(server, LOG, str(folder), timeout=900)
        yield server


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A mirror with all bytes."""
    copy = Copy(tmp_path_factory.mktemp("whole") / "m", server.url, server.key)
    copy.sync("local/p", "--all-bytes")
    return copy


def ask(copy: Copy, sql: str) -> list[tuple[Any, ...]]:
    """What a user gets, out of the sandbox."""
    with Reader(copy.root) as reader:
        return execute(reader, sql).fetchall()


def downloads(proxy: Proxy) -> list[Request]:
    return [r for r in proxy.requests if r.method == "GET" and "/artifact-manifests/" not in r.path]


def blobs(copy: Copy) -> dict[str, int]:
    found = {p.name: p.stat().st_size for p in (copy.root / "blobs").rglob("*") if p.is_file()}
    for name in found:
        assert sha256((copy.root / "blobs" / "sha256" / name[:2] / name).read_bytes()) == name
    return found


# -- bytes ------------------------------------------------------------------------------------------------------


def test_every_byte_is_held_and_given_back(whole: Copy, server: Server, tmp_path: Path) -> None:
    assert ask(whole, "select count(*) from files where sha256 is null") == [(0,)]
    lacking = ask(whole, "select ref from artifact_entries where sha256 is null")
    assert lacking == [("https://example.com/x",)]  # recorded, never followed
    held = dict(ask(whole, "select path, sha256 from artifact_entries where collection = 'ds' and version = 0"))
    assert {name: held[name] for name in FILES} == {name: sha256(data) for name, data in FILES.items()}
    api = mirror.Api(str(whole.root))
    folder = Path(api.artifact("local/p/ds:v0").download(str(tmp_path / "v0")))
    assert {n: (folder / n).read_bytes() for n in FILES} == FILES
    assert (
        Path(api.artifact("local/p/ds:v0").get_path("sub/b.txt").download(str(tmp_path / "one"))).read_bytes() == b"hi"
    )
    linked = Path(api.artifact("local/p/linked:best").download(str(tmp_path / "linked")))
    assert (linked / "b").read_bytes() == b"hi"  # a reference to an artifact that the mirror holds
    run = api.run("local/p/r1")
    for file in run.files():
        file.download(str(tmp_path / "run")).close()
        assert (tmp_path / "run" / file.name).read_bytes() == requests.get(
            f"{server.url}/files/local/p/r1/{file.name}", auth=("api", server.key), timeout=300
        ).content


def test_a_client_downloads_the_same_from_the_served_mirror(whole: Copy, server: Server, tmp_path: Path) -> None:
    query = "select distinct 'local/p/' || collection || ':latest' from artifacts where collection like '%images%'"
    names = ["local/p/ds:v0", "local/p/ds:v1", "local/p/linked:best", *ask(whole, query)[0]]
    with serving(whole.root, "--read-only") as again:
        here = client(again, DOWNLOAD, str(tmp_path / "here"), *names)
    there = client(server, DOWNLOAD, str(tmp_path / "there"), *names)
    assert here == there and here["local/p/linked:best"] == {"b": sha256(b"hi")}
    assert here["local/p/ds:v1"].keys() == here["local/p/ds:v0"].keys() | {"new.txt"}


def test_globs_choose_versions_and_nothing_comes_twice(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")
    assert not blobs(copy)
    copy.sync("local/p", "--artifacts", "dataset/d*:v1")
    held = dict(ask(copy, "select path, sha256 from artifact_entries where collection = 'ds' and version = 1"))
    assert held["new.txt"] == sha256(b"new") and held["a.bin"] == sha256(BIG)
    assert ask(copy, "select count(*) from artifact_entries where version = 0 and sha256 is not null") == [(0,)]
    proxy.requests.clear()
    copy.sync("local/p", "--artifacts", "dataset/ds")
    assert not downloads(proxy)  # v0 holds nothing that v1 does not
    assert ask(copy, "select count(*) from artifact_entries where collection = 'ds' and sha256 is null and ref is null") == [(0,)]  # fmt: skip  # noqa: E501
    copy.sync("local/p", "--media")
    assert ask(copy, "select count(*) from media where not held") == [(0,)]
    assert ask(copy, "select count(*) from artifact_entries where type = 'run_table' and sha256 is null") == [(0,)]
    proxy.requests.clear()
    before = copy.files()
    copy.sync("local/p", "--full", "--media", "--artifacts", "dataset/ds")
    assert not downloads(proxy) and copy.files() == before
    done = copy.sync("local/p", "--artifacts", "dataset", ok=False)
    assert done.exit_code == 2 and "TYPE/NAME" in done.stderr


def test_mirror_toml_names_bytes_too(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.root.mkdir()
    text = '[[sync]]\npaths = ["local/p"]\nartifacts = ["dataset/linked:best"]\nmedia = '
    (copy.root / "mirror.toml").write_text(text + "1\n")
    assert "`media` is neither true nor false" in copy.sync(ok=False).stderr
    (copy.root / "mirror.toml").write_text(text + "true\n")
    copy.sync()
    assert ask(copy, "select count(*) from media where not held") == [(0,)]
    assert ask(copy, "select path from artifact_entries where type = 'dataset' and sha256 is not null") == [("b",)]


# -- a bad connection -------------------------------------------------------------------------------------------


def cut(proxy: Proxy, server: Server, name: str, after: int) -> None:
    """Let every download of `name` bring `after` bytes and break off."""

    def before(request: Request) -> Answer | None:
        if request.method != "GET" or name not in request.path:
            return None
        headers = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
        found = requests.get(server.url + request.path, headers=headers, timeout=300)
        kept = {k: v for k, v in found.headers.items() if k == "content-range"}
        body = found.content
        return Answer(found.status_code, body[:after], kept, promise=len(body) if len(body) > after else None)

    proxy.before = before


def ranges(proxy: Proxy) -> list[str | None]:
    return [r.headers.get("Range") for r in downloads(proxy) if "a.bin" in r.path]


def test_a_connection_that_breaks_is_gone_on_with(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    cut(proxy, server, "a.bin", after=1_100_000)
    copy.sync("local/p", "--artifacts", "dataset/ds:v0")
    assert blobs(copy)[sha256(BIG)] == len(BIG)
    asked = ranges(proxy)
    starts = [int((text or "bytes=0-").removeprefix("bytes=").rstrip("-")) for text in asked]
    assert len(asked) >= 5 and starts == sorted(starts) and starts[-1] > 5_000_000


def test_a_killed_download_is_gone_on_with(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")

    def half_then_nothing(request: Request) -> Answer | Reset | None:
        if request.method != "GET" or "a.bin" not in request.path:
            return None
        if "Range" in request.headers:
            return Reset()
        return Answer(200, BIG[:4_000_000], promise=len(BIG))

    proxy.before = half_then_nothing
    process = Started(
        copy.arguments("local/p", "--artifacts", "dataset/ds:v0"), env=copy.environ(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 300
    while not any(r for r in ranges(proxy)) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait(300)
    partial = max((copy.root / "blobs").rglob("partial-*"), key=lambda path: path.stat().st_size)
    assert partial.stat().st_size > 3_000_000  # small files may just be under way, too
    proxy.reset()
    copy.sync("local/p", "--artifacts", "dataset/ds:v0")
    (asked,) = ranges(proxy)
    assert asked is not None and int(asked.removeprefix("bytes=").rstrip("-")) > 3_000_000
    assert blobs(copy)[sha256(BIG)] == len(BIG) and not list((copy.root / "blobs").rglob("*.tmp"))


def test_damage_is_mended_once_then_said(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")
    damaged: list[str] = []

    def flip(request: Request) -> Answer | None:
        name = request.path.split("?")[0]
        if request.method != "GET" or "metadata" in name or "manifest" in name:
            return None
        if name not in damaged or "b.txt" in name:
            damaged.append(name)
            data = requests.get(server.url + request.path, timeout=300).content
            return Answer(200, bytes([data[0] ^ 1]) + data[1:] if data else b"x")
        return None

    proxy.before = flip
    done = copy.sync("local/p", "--artifacts", "dataset/ds:v0", ok=False)
    assert done.exit_code == 1 and done.stderr.count("Error:") == 1
    assert "artifact `ds:v0`: file `sub/b.txt`: the bytes that came are not those with md5" in done.stderr
    lacking = ask(copy, "select path from artifact_entries where version = 0 and collection = 'ds' and sha256 is null")
    assert lacking == [("sub/b.txt",)]
    assert not list((copy.root / "blobs").rglob("*.tmp"))
    blobs(copy)


def test_names_of_files_never_are_paths(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    names = {"config.yaml": "../../evil.yaml", "requirements.txt": "/tmp/mirror-evil.txt"}

    def renamed(request: Request, body: Any) -> Any:
        text = json.dumps(body)
        for plain, hostile in names.items():
            text = text.replace(f'"name": "{plain}"', f'"name": "{hostile}"')
        return json.loads(text)

    def back(request: Request) -> None:
        if request.path == "/graphql":
            for plain, hostile in names.items():
                request.body = request.body.replace(hostile.encode(), plain.encode())

    proxy.after, proxy.before = renamed, back
    copy = Copy(tmp_path / "deep" / "er" / "m", proxy.url, server.key)
    copy.root.parent.mkdir(parents=True)
    copy.sync("local/p", "--files", "*")
    held = dict(ask(copy, "select name, sha256 from files"))
    assert held.keys() >= set(names.values()) and all(held.values())
    assert {p for p in tmp_path.rglob("*") if p.is_file() and copy.root not in p.parents} == set()
    assert not Path("/tmp/mirror-evil.txt").exists()
    run = mirror.Api(str(copy.root)).run("local/p/r1")
    for hostile in names.values():
        with pytest.raises(UsageError):
            run.file(hostile).download(root=tmp_path / "out")


# -- SQL --------------------------------------------------------------------------------------------------------


def test_histograms_are_bins_and_counts(whole: Copy) -> None:
    found = ask(whole, "select step, bin, bin_left, bin_right, count from histograms where key = 'h' and stream = 'history' order by step, bin")  # fmt: skip  # noqa: E501
    edges = [-1.0, 0.1, 0.5, 2.0]
    counts = [3, 0, 5]
    assert found == [(2 * s, b, edges[b], edges[b + 1], counts[b] + s) for s in range(3) for b in range(3)]
    last = "select bin_left, bin_right, count from histograms where stream = 'summary' and key = 'last' order by bin"
    assert ask(whole, last) == [(0.0, 1.0, 1.0), (1.0, 2.0, 2.0)]


def test_packed_histograms_are_bins_and_counts(tmp_path: Path) -> None:
    cell = {"_type": "histogram", "packedBins": {"min": -1.5, "size": 0.25, "count": 2}, "values": [4, 6.5]}
    odd = {"_type": "histogram", "bins": "none", "values": None}
    nan = {"_type": "histogram", "bins": [0, 1], "values": ["NaN"]}
    key = RunKey("local", "1", "e", "p", "r")
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([Run(key)])
        m.put_history(key, [{"_step": 0, "h": cell, "odd": odd, "n": nan}])
    with Reader(tmp_path / "m") as reader:
        got = execute(
            reader, "select bin_left, bin_right, count from histograms where key = 'h' order by bin"
        ).fetchall()
        assert got == [(-1.5, -1.25, 4.0), (-1.25, -1.0, 6.5)]
        ((count,),) = execute(reader, "select count from histograms where key = 'n'").fetchall()
        assert math.isnan(count)
        assert execute(reader, "select * from histograms where key = 'odd'").fetchall() == []


def test_media_are_listed(whole: Copy) -> None:
    images = ask(whole, "select step, type, item, caption, size, sha256, blob, path from media where key = 'img' and stream = 'history' order by step")  # fmt: skip  # noqa: E501
    assert [row[:4] for row in images] == [(2 * s, "image-file", 0, f"c{s}") for s in range(3)]
    for _, _, _, _, size, said, blob, path in images:
        assert said == blob and blobs(whole)[blob] == size and path.startswith("media/images/img_")
    several = ask(whole, "select step, item, caption, held from media where key = 'imgs' and stream = 'history' order by step, item")  # fmt: skip  # noqa: E501
    assert several == [(2 * s, i, f"c{i + 1}", True) for s in range(3) for i in range(2)]
    assert ask(whole, "select distinct type from media where key = 'nest.html'") == [("html-file",)]


def test_tables_are_read_by_name(whole: Copy) -> None:
    with Reader(whole.root) as reader:
        found = execute(reader, 'select * from "table:local/p/r1:t"')
        assert found.columns == ["a", "A_1", "x", "a_2"] and found.types == ["BIGINT", "DOUBLE", "VARCHAR", "BOOLEAN"]
        (a, b, x, c), second = found.fetchall()
        assert (a, b, x, c) == (2, 2.5, '"NaN"', None)
        assert second[0] == 2 and math.isnan(second[1]) and json.loads(second[2]) == [1, "s"] and second[3] is True
    assert ask(whole, 'select a from "table:local/p/r1:t@0" order by 1') == [(0,), (2,)]
    (name,) = ask(whole, "select name from tables where collection like '%images%' and version = 1")[0]
    ((media, n),) = ask(whole, f'select img, n from "{name}"')
    assert json.loads(media)["_type"] == "image-file" and n == 2**60 + 1
    assert ask(whole, 'select sum(v) from "table:local/p/ds:latest/tab"') == [(2.5,)]
    assert ask(whole, 'select v, w from "table:local/p/ds:v0/both.joined-table.json" order by 1') == [
        (0.0, "0"), (0.25, "1"), (0.5, "2")
    ]  # fmt: skip
    listed = ask(
        whole, "select key, step, row_count, json_array_length(fields) from tables where key = 't' order by step"
    )
    assert listed == [("t", 2 * s, 2, 4) for s in range(3)]


def test_commands_tell_of_tables_and_bytes(whole: Copy, tmp_path: Path) -> None:
    def said(*args: str) -> str:
        return run_mirror([*args, "--mirror", str(whole.root)], check=True).stdout

    listed = {row["name"]: row for row in json.loads(said("tables", "local/p", "--format", "json"))}
    assert listed["table:local/p/ds:v0/tab.table.json"] | {"note": None} == {
        "name": "table:local/p/ds:v0/tab.table.json", "rows": 5, "columns": 2, "column names": "k, v", "note": None
    }  # fmt: skip
    for name in listed:
        assert ask(whole, f'select count(*) from "{name}"') == [(listed[name]["rows"],)]
    (project,) = json.loads(said("status", "--format", "json"))["projects"]
    assert project["bytes"] == project["bytes_held"] > 2 * len(BIG)
    assert "of it held); the biggest" in said("show", "local/p/r1")


def test_a_purge_takes_bytes_and_tables_along(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p", "--all-bytes")
    assert blobs(copy) and any((copy.root / "tables").rglob("*.parquet"))
    (copy.root / "blobs" / "sha256" / "partial-0.tmp").write_bytes(BIG[:1000])
    run_mirror(["purge", "local/p", "--yes", "--mirror", str(copy.root)], check=True)
    left = [p for name in ("blobs", "tables") for p in (copy.root / name).rglob("*") if p.is_file()]
    assert not left


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("table:local/p/r1:tt", "did you mean `table:local/p/r1:t"),
        ("table:local/p", "names no table"),
        ("table:local/p/ds:v0", "holds 6 tables"),
        ("table:" + "0" * 64, "does not hold the bytes"),
    ],
)
def test_tables_that_are_not_there(whole: Copy, name: str, why: str) -> None:
    with pytest.raises(QueryError, match=why):
        ask(whole, f'select * from "{name}"')


def test_a_table_without_its_bytes_says_how_to_get_them(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p")
    with pytest.raises(QueryError, match="`mirror sync local/p/r1 --media` fetches them"):
        ask(copy, 'select * from "table:local/p/r1:t"')
    copy.sync("local/p/r1", "--media")
    assert ask(copy, 'select count(*) from "table:local/p/r1:t"') == [(2,)]
