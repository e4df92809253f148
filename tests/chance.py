"""Seeds of tests that draw what happens."""

from __future__ import annotations

import os
import random


def seed(variable: str, usual: int = 1) -> int:
    """The usual one, so that a run of all tests tells of the program and not of luck; the environment variable gives
    another one, or draws one (`random`). Printed, for tests that fail."""
    asked = os.environ.get(variable) or str(usual)
    found = random.randrange(10**6) if asked == "random" else int(asked)
    print(f"{variable}={found}")
    return found
