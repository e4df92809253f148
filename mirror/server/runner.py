"""Starting and stopping the server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import uvicorn

from mirror.errors import UsageError
from mirror.memory import give_back
from mirror.server.access import patience
from mirror.server.access.auth import Hosts, find_key
from mirror.server.app import Server
from mirror.server.home import Home
from mirror.store.blobs import remove_leftovers


def serve(
    root: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key_file: Path | None = None,
    read_only: bool = False,
    entity: str = "local",
    crash_after: float = 300.0,
    export_after: float | None = None,
    allow_hosts: Iterable[str] = (),
    verbose: bool = False,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> None:
    """Serve the mirror at `root` until SIGINT or SIGTERM. `port` 0 takes a free one; `say` is told which.

    `export_after`: seconds between a run's end and its history export; None for no exports.
    """
    give_back()
    bound = _bind(host, port)
    try:
        home = Home(root, read_only=read_only, crash_after=crash_after, entity=entity)
        try:
            key, made, where = find_key(home.layout.root, api_key_file, read_only)
        except BaseException:
            home.close()
            raise
        if not read_only:
            remove_leftovers(home.layout.blobs)
        shown = f"[{host}]" if ":" in host else host
        base_url = f"http://{shown}:{bound.getsockname()[1]}"
        say(f"Serving {home.layout.root} at {base_url}{' (read-only)' if read_only else ''}, {where}.")
        say(f"  export WANDB_BASE_URL={base_url}")
        say(f"  export WANDB_API_KEY={made or '<your key>'}")
        patience.Protocol.room = patience.room()
        config = uvicorn.Config(
            Server(home, key, Hosts(host, allow_hosts), export_after=export_after).app(),
            log_level="info" if verbose else "warning",
            access_log=verbose,
            server_header=False,
            timeout_keep_alive=75,
            http=patience.Protocol,
            timeout_graceful_shutdown=10,
        )
        # uvicorn stops on these signals and then raises them again: a stop that was asked for is no failure.
        for asked in (signal.SIGINT, signal.SIGTERM):
            signal.signal(asked, lambda *_: None)
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as exc:
        found.close()
        raise UsageError(f"cannot listen on `{host}:{port}`: {exc}; choose another --port or --host") from exc
    found.set_inheritable(True)
    return found
