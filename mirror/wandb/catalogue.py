"""The server's key catalogue of a history (`historyKeys`): how long rows are, where they end, what is in them."""

from __future__ import annotations

from mirror.wandb.transport import loads

_BYTES_PER_CELL = 28
"""A usual key, its number and the punctuation between them."""


class KeyCatalogue:
    """`{"lastStep": 999, "keys": {"loss": {"typeCounts": [{"type": "number", "count": 1000}], ..}}}`, as far
    as it is there: old servers and young runs have none (PROTOCOL 2.3)."""

    def __init__(self, text: str | None) -> None:
        try:
            document = loads(text) if text else None
        except ValueError:
            document = None
        document = document if isinstance(document, dict) else {}
        last = document.get("lastStep")
        self.last_step = int(last) if isinstance(last, int | float) and abs(last) < 2**62 else None
        self.cells = 0
        self._without_strings: set[str] = set()
        keys = document.get("keys")
        for key, entry in keys.items() if isinstance(keys, dict) else ():
            counts = entry.get("typeCounts") if isinstance(entry, dict) else None
            counts = [c for c in counts if isinstance(c, dict)] if isinstance(counts, list) else []
            self.cells += sum(c["count"] for c in counts if isinstance(c.get("count"), int))
            if counts and all(c.get("type") != "string" for c in counts):
                self._without_strings.add(key)

    def row_bytes(self, lines: int | None) -> int | None:
        """About how many bytes a row has as JSON; None if the catalogue does not tell."""
        if not self.cells or not lines:
            return None
        return 40 + _BYTES_PER_CELL * -(-self.cells // lines)

    def string_is_nonfinite(self, key: str) -> bool:
        """True for keys that never held a string: their "NaN" and "Infinity" are numbers."""
        return key in self._without_strings
