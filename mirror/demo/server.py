"""The embedded server of the demo: a real `mirror serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from mirror.errors import MirrorError

_PATIENCE = 60.0


@contextlib.contextmanager
def embedded_server(root: Path) -> Iterator[dict[str, str]]:
    """Serve `root` on a free loopback port; yields the environment a client needs. Ends with the block."""
    with tempfile.TemporaryDirectory() as private:
        key = secrets.token_hex(20)
        key_file = Path(private) / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(key)
        command = ["serve", "--mirror", str(root), "--port", "0", "--api-key-file", str(key_file), "--entity", "demo"]
        process = subprocess.Popen(
            [sys.executable, "-m", "mirror", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield {"WANDB_BASE_URL": _address(process), "WANDB_API_KEY": key}
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = []
    give_up = threading.Timer(_PATIENCE, process.kill)
    give_up.start()
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"WANDB_BASE_URL=(http://\S+)", line):
                return found[1]
    finally:
        give_up.cancel()
    raise MirrorError("the embedded server did not start: " + " ".join("".join(said).split()))


def environment(server: dict[str, str], scratch: Path) -> dict[str, str]:
    """This process's environment, pointed at the server; the SDK's own files go to `scratch`."""
    places = {name: str(scratch) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")}
    return {**os.environ, **server, **places, "WANDB_SILENT": "true", "WANDB_MODE": "online"}
