"""The server's key catalogue of a history (`historyKeys`): how long rows are, where they end, what is in them."""

from __future__ import annotations

import hashlib

from mirror.wandb.transport import loads

_NUMBER_BYTES = 28
"""A usual key, its number and the punctuation between them."""
_OTHER_BYTES = 2000
"""Texts, lists, histograms and media may be of any length; what is taken for it until it is seen."""
_NUMBERS = {"number", "bool", "nil"}
_PLAIN = {"number", "bool", "string"}


class KeyCatalogue:
    """`{"lastStep": 999, "keys": {"loss": {"typeCounts": [{"type": "number", "count": 1000}], ..}}}`, as far
    as it is there: old servers and young runs have none."""

    def __init__(self, text: str | None) -> None:
        try:
            document = loads(text) if text else None
        except ValueError:
            document = None
        document = document if isinstance(document, dict) else {}
        last = document.get("lastStep")
        self.last_step = int(last) if isinstance(last, int | float) and abs(last) < 2**62 else None
        self._numbers = self._others = 0
        self._without_strings: set[str] = set()
        self._types: dict[str, set[str]] = {}
        self._cells: dict[str, int] = {}
        keys = document.get("keys")
        for key, entry in keys.items() if isinstance(keys, dict) else ():
            counts = entry.get("typeCounts") if isinstance(entry, dict) else None
            counts = [c for c in counts if isinstance(c, dict)] if isinstance(counts, list) else []
            for c in counts:
                if isinstance(c.get("count"), int):
                    if c.get("type") in _NUMBERS:
                        self._numbers += c["count"]
                    else:
                        self._others += c["count"]
            self._cells[key] = sum(c["count"] for c in counts if isinstance(c.get("count"), int))
            self._types[key] = {str(c.get("type")) for c in counts}
            if counts and all(c.get("type") != "string" for c in counts):
                self._without_strings.add(key)

    @property
    def shape(self) -> str:
        """A digest of the last step and of how often each key was logged; empty if the catalogue does not tell.

        Another one for as many rows means other rows. Types and last values are left out: a server may tell them in
        another way once it has exported a history.
        """
        if not self._cells:
            return ""
        said = repr((self.last_step, sorted(self._cells.items())))
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

    @property
    def exportable(self) -> bool:
        """Whether an export can tell every value of this history apart: no nulls (which look like missing keys), no
        dictionaries (which look like dotted keys), one plain type a key."""
        return bool(self._types) and all(
            len(types) == 1 and types <= _PLAIN and "." not in key for key, types in self._types.items()
        )

    def row_bytes(self, lines: int | None) -> int | None:
        """About how many bytes a row has as JSON; None if the catalogue does not tell."""
        cells = self._numbers + self._others
        if not cells or not lines:
            return None
        return 40 + (self._numbers * _NUMBER_BYTES + self._others * _OTHER_BYTES) // lines

    def string_is_nonfinite(self, key: str) -> bool:
        """True for keys that never held a string: their "NaN" and "Infinity" are numbers."""
        return key in self._without_strings
