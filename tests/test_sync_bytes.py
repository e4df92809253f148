"""`mirror sync --files`: bytes of run files into the mirror, checked, kept once, given back."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from liar import Answer, Request
from serving import Server, serving
from syncing import Copy, Proxy

import mirror

pytestmark = pytest.mark.slow
CONTENT = {
    "models/a.ckpt": random.Random(1).randbytes(300_000),
    "models/b.ckpt": b"small",
    "same.ckpt": b"small",
    "ä ö.txt": "ünïcode".encode(),
    "empty.bin": b"",
}
SDK = """
import sys, wandb
from pathlib import Path
run = wandb.init(project="p", id="r1", settings=wandb.Settings(console="off", x_disable_meta=True))
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if path.is_file():
        run.save(str(path), base_path=sys.argv[1], policy="now")
run.log({"x": 1})
run.finish()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("files")
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        done = subprocess.run(
            [sys.executable, "-c", SDK, str(folder)], env=os.environ | server.env, text=True, timeout=300,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield server


def held(copy: Copy) -> dict[str, bytes]:
    """The bytes the mirror holds, by file name; their place is their hash."""
    found = {}
    for name, sha256 in copy.sql("select name, sha256 from files where sha256 is not null"):
        data = (copy.root / "blobs" / "sha256" / sha256[:2] / sha256).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256
        found[name] = data
    return found


def downloads(proxy: Proxy) -> list[str]:
    return [r.path for r in proxy.requests if r.method == "GET" and "metadata" not in r.path]


def test_only_what_matches_is_fetched_and_only_once(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/p")
    assert held(copy) == {} and not downloads(proxy)
    copy.sync("local/p", "--files", "models/*", "--files", "*.txt")
    found = held(copy)
    found.pop("requirements.txt", None)  # the SDK's own
    assert found == {n: d for n, d in CONTENT.items() if n.startswith("models/") or n.endswith(".txt")}
    proxy.requests.clear()
    copy.sync("local/p/r1", "--files", "*.ckpt")
    assert held(copy).keys() - {"requirements.txt"} == {"models/a.ckpt", "models/b.ckpt", "same.ckpt", "ä ö.txt"}
    assert not downloads(proxy)  # the same bytes are held under another name
    proxy.requests.clear()
    before = copy.files()
    copy.sync("local/p", "--full", "--files", "*.ckpt")
    assert not downloads(proxy) and copy.files() == before


def test_downloads_come_from_the_mirror(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p")
    run = mirror.Api(str(copy.root)).run("local/p/r1")
    with pytest.raises(mirror.CommError, match=r"mirror sync local/p/r1 --files same.ckpt"):
        run.file("same.ckpt").download(root=tmp_path / "out")
    copy.sync("local/p/r1", "--files", "same.ckpt", "--files", "empty.bin")
    run = mirror.Api(str(copy.root)).run("local/p/r1")
    for name in ("same.ckpt", "empty.bin"):
        run.file(name).download(root=tmp_path / "out").close()
        assert (tmp_path / "out" / name).read_bytes() == CONTENT[name]


def test_damaged_bytes_are_refused_and_fetched_next_time(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", proxy.url, server.key)

    def damaged(request: Request) -> Answer | None:
        return Answer(200, b"other bytes") if request.method == "GET" and "a.ckpt" in request.path else None

    proxy.before = damaged
    done = copy.sync("local/p", "--files", "*.ckpt", ok=False)
    assert "`models/a.ckpt`: the bytes that came are not those with md5" in done.stderr
    assert held(copy).keys() == {"models/b.ckpt", "same.ckpt"}
    assert not list((copy.root / "blobs").rglob("*.tmp"))
    proxy.before = lambda request: None
    copy.sync("local/p", "--files", "*.ckpt")
    assert held(copy)["models/a.ckpt"] == CONTENT["models/a.ckpt"]


def test_a_changed_manifest_keeps_the_bytes_of_files_that_stay(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p", "--files", "*")
    assert held(copy).items() >= CONTENT.items()
    code = "import sys, wandb; wandb.Api().run('local/p/r1').upload_file(sys.argv[1], root=sys.argv[2])"
    (tmp_path / "more.bin").write_bytes(b"more")
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "more.bin"), str(tmp_path)], env=os.environ | server.env,
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    copy.sync("local/p", "--full")
    assert [n for (n,) in copy.sql("select name from files where name = 'more.bin'")] == ["more.bin"]
    assert held(copy).items() >= CONTENT.items() and "more.bin" not in held(copy)
