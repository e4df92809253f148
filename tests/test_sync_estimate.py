"""What `mirror sync --dry-run` says a sync will cost, held against what the sync then takes."""

from __future__ import annotations

import json
import random
import re

from serving import Server
from syncing import Copy, Proxy, log_run, logged, sampled
from test_sync_run import upload

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6}


def said(copy: Copy, *options: str) -> tuple[float, float]:
    """Requests and bytes that a dry run tells in its last line."""
    done = copy.sync("local/costs", "--dry-run", *options)
    found = re.search(r"About ([\d,]+) requests and ([\d.]+) (\w+),", done.stderr)
    assert found, done
    return float(found[1].replace(",", "")), float(found[2]) * UNITS[found[3]]


def took(copy: Copy) -> tuple[float, float]:
    ((requests, nbytes),) = copy.sql("select requests, bytes from sync_log order by started_at desc limit 1")
    return requests, nbytes


def within(factor: float, a: tuple[float, float], b: tuple[float, float]) -> bool:
    return all(x / factor <= y <= x * factor for x, y in zip(a, b, strict=True))


def test_an_estimate_is_near_to_what_a_sync_takes(server: Server, proxy: Proxy, copy: Copy) -> None:
    """Within a factor of 3 for a source nobody knows, of 2 for one that was synced from before; asking for both is
    cheap."""
    chance = random.Random(1)

    def log(first: int, last: int, rows: int) -> None:
        for i in range(first, last):
            config = {f"k{j}": {"value": chance.random()} for j in range(30)}
            log_run(server, "costs", f"r{i:03}", logged(rows), system=sampled(20), config=json.dumps(config))
            upload(server, "costs", f"r{i:03}", {"wandb-metadata.json": json.dumps({"host": f"h{i}"}).encode()})

    log(0, 40, 200)
    proxy.reset()
    before = said(copy)
    assert len(proxy.requests) <= 3
    copy.sync("local/costs")
    assert within(3, before, took(copy)), (before, took(copy))
    log(40, 70, 400)
    for i in range(10):
        log_run(server, "costs", f"r{i:03}", logged(300, 200), offset=200)
    before = said(copy)
    copy.sync("local/costs")
    assert within(2, before, took(copy)), (before, took(copy))
    requests, nbytes = said(copy)
    assert requests < 12 and nbytes < 400_000, (requests, nbytes)  # nothing to do but to look again at a twentieth
