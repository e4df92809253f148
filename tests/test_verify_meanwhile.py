"""`mirror verify` while others write the mirror, when it is interrupted, and of mirrors that hold nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commanding import call
from liar import Answer, Request
from serving import Server
from syncing import MIRROR, Copy, Proxy, log_run, logged, operation_of

import mirror

WRITE = """
import sys, mirror
from mirror.records import Project, Run, RunKey
n = 0
while True:
    with mirror.open(sys.argv[1], write=True) as m:
        m.put_projects([Project("here", "e", "p")])
        key = RunKey("here", str(n), "e", "p", f"r{n}")
        m.put_runs([Run(key, state="finished", config='{"a":{"value":1}}')])
        m.put_history(key, [{"_step": i, "x": i / 3} for i in range(200)])
    n += 1
    print(n, flush=True)
"""


def test_a_mirror_that_is_being_written_is_whole(tmp_path: Path) -> None:
    """Another process commits run after run; each look finds what was there at one moment, and nothing wrong."""
    root = tmp_path / "m"
    with (tmp_path / "count").open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITE, str(root)], stdout=out)
    try:
        end = time.monotonic() + 300
        while not (tmp_path / "count").read_text().count("\n") > 1:
            assert time.monotonic() < end and writer.poll() is None
            time.sleep(0.05)
        seen = []
        while len(seen) < 4 or (seen[-1] == seen[0] and time.monotonic() < end):
            done = call("verify", "--format", "json", root=root)
            found = json.loads(done.out)["store"]
            assert done.code == 0 and found["ok"], found
            assert found["compared"]["rows"] == 200 * found["compared"]["runs"]
            seen.append(found["compared"]["runs"])
        assert seen[-1] > seen[0] and seen == sorted(seen)
    finally:
        writer.kill()
        writer.wait(300)


def test_an_interrupted_comparison_says_so(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """The server asks for a pause of ten minutes: nobody waits for that after Ctrl-C."""
    log_run(server, "slow", "one", logged(3))
    copy = Copy(tmp_path / "m", proxy.url, server.key)
    copy.sync("local/slow")

    def pause(request: Request) -> Answer | None:
        asks = operation_of(request) == "Runs"
        return Answer(429, {}, {"Retry-After": "600"}) if asks else None

    proxy.reset()
    proxy.before = pause
    command = [*MIRROR, "verify", "--against", proxy.url, "--deletable", "--mirror", str(copy.root)]
    process = subprocess.Popen(command, env=copy.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while not proxy.operations["Runs"]:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 1 and "Interrupted" in err and "Traceback" not in err, (out, err)
    assert "0 of 0 originals could be deleted" in out


@pytest.mark.parametrize("empty", [True, False])
def test_mirrors_that_hold_nothing(tmp_path: Path, empty: bool) -> None:
    if empty:
        with mirror.open(tmp_path / "m", write=True):
            pass
    done = call("verify", root=tmp_path / "m")
    assert "Traceback" not in done.err
    assert done.code == (0 if empty else 1) and ("no difference" in done.out) is empty, done
