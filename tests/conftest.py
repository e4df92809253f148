"""Fixtures of the sync tests, the examples that Hypothesis draws, how many workers there are, and the order of files:
those with slow tests go first and those with few tests last, so that no worker is left alone with a long one at the
end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from serving import Server, serving
from syncing import Copy, Proxy, proxied

# The same examples each time, however slow the machine is; MIRROR_EXAMPLES=random draws others.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("MIRROR_EXAMPLES") or "same")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An empty server; modules that need another one have a fixture of their own."""
    with serving(tmp_path_factory.mktemp("served") / "mirror") as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture
def copy(proxy: Proxy, server: Server, tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy", proxy.url, server.key)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """`-n auto` is three workers for two cores: tests wait about a third of their time, for disks, for servers and for
    the pauses of W&B's SDK."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores * 3 // 2 if cores > 1 else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -count[item.path]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The SDK's service of this process, if a test has used the SDK in it, is not the one of processes that others
    start: it holds run ids, and the settings it was started with."""
    os.environ.pop("WANDB_SERVICE", None)
