"""docs/serve.md says what of the SDK's API is answered; it is made by calling all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "serve_coverage.py"


@pytest.mark.slow
def test_what_is_said_to_be_answered_is_answered() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
