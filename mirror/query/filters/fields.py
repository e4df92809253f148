"""The names filters and orders may use, and which column or document each one means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches

from mirror.errors import UsageError
from mirror.query.filters.tree import Attribute, Document

MAX_PARTS = 20

_ATTRIBUTES = {
    Attribute("name", "run_id", "text"): ("name", "id", "run_id"),  # W&B's `name` is the run id
    Attribute("display_name", "name", "text"): ("display_name",),
    Attribute("state", "state", "text"): ("state",),
    Attribute("group", "group", "text"): ("group",),
    Attribute("job_type", "job_type", "text"): ("job_type",),
    Attribute("username", "username", "text"): ("username", "user.username", "user"),
    Attribute("sweep", "sweep", "text"): ("sweep", "sweep_name"),
    Attribute("created_at", "created_at", "time"): ("created_at",),
    Attribute("heartbeat_at", "heartbeat_at", "time"): ("heartbeat_at",),
    Attribute("updated_at", "updated_at", "time"): ("updated_at",),
    Attribute("tags", "tags", "tags"): ("tags",),
    Attribute("duration", "duration", "duration"): ("duration",),
    Attribute("host", "host", "text"): ("host",),
    Attribute("notes", "notes", "text"): ("notes",),
    Attribute("commit", "commit", "text"): ("commit",),
    Attribute("entity", "entity", "text"): ("entity",),
    Attribute("project", "project", "text"): ("project",),
}

# Attribute names are matched without case and underscores: `State`, `displayName` and `job_type` all occur.
_BY_NAME = {_name.replace("_", ""): field for field, names in _ATTRIBUTES.items() for _name in names}
_SPELLINGS = [name for names in _ATTRIBUTES.values() for name in names]
_SUMMARY_ROOTS = ("summarymetrics", "summary")
SUMMARY_NOTICE = "`{0}` is read as `summary_metrics.{1}`; W&B's server knows only that name"
_REFUSED_BY_SERVER = {
    "job_type": "W&B's server knows no column of that name; write `jobType`",  # "Unknown column", seen
    "run_id": "W&B's server knows no column of that name; write `name`, which is the run id",
    "id": "matches nothing on W&B's server; write `name`, which is the run id",  # wandb#5122
}
_SUBSCRIPT = re.compile(r'\["(?:[^"\\]|\\.)*"\]')
_SUBSCRIPTED = re.compile(rf"(\w+)((?:{_SUBSCRIPT.pattern})+)")
_EMPTY_PART = 'empty part in field path; write the names between single dots, or {0}["name"] for any name'


def resolve(
    name: str, refuse: type[UsageError] = UsageError, *, server_compat: bool = False
) -> tuple[Attribute | Document, str | None]:
    """The field a name means, and a notice if the name is one that W&B's server would refuse.

    Names with dots and empty names are spelled exactly as JSON strings in brackets: `config["a.b"]["c"]`.
    Raises UsageError: an unknown name (with a near match), an empty part, too many parts; with `server_compat` also
    a name that W&B's server does not take.
    """
    attribute = _BY_NAME.get(_plain(name))
    if attribute is not None:
        if server_compat and name.lower() in _REFUSED_BY_SERVER:
            raise refuse(f"{name}: {_REFUSED_BY_SERVER[name.lower()]}")
        return attribute, None
    root, rest, parts, exact = _split(name)
    plain = _plain(root)
    if plain != "config" and plain not in _SUMMARY_ROOTS:
        raise refuse(_unknown(name, root))
    if "" in parts and not exact:
        raise refuse(f"{name}: {_EMPTY_PART.format(root)}")
    if len(parts) > MAX_PARTS:
        raise refuse(f"{name[:60]}...: {len(parts)} parts in field path, at most {MAX_PARTS} are taken")
    if exact and server_compat:
        raise refuse(f"{name}: W&B's server knows no names in brackets; write {root}.<key>")
    if plain == "config":
        # The wire wraps config values: `config.lr.value` and `config.lr` are the same place (wandb#9406).
        wrapped = parts[1:2] == ("value",) and not exact
        return Document("config", parts[:1] + parts[2:] if wrapped else parts, exact or server_compat), None
    notice = SUMMARY_NOTICE.format(name, rest or "<key>") if plain == "summary" else None
    if notice is not None and server_compat:
        raise refuse(f"{name}: unknown field; use 'summary_metrics.{rest or '<key>'}'")
    return Document("summary", parts, exact or server_compat), notice


def _split(name: str) -> tuple[str, str, tuple[str, ...], bool]:
    """Root, the rest as text, the names in it, and whether they stand exactly as written."""
    found = _SUBSCRIPTED.fullmatch(name)
    if found is not None:
        try:
            quoted = [json.loads(part[0][1:-1], strict=False) for part in _SUBSCRIPT.finditer(found[2])]
            "".join(quoted).encode()
            return found[1], found[2], tuple(quoted), True
        except ValueError:  # no JSON strings: a name like any other
            pass
    root, _, rest = name.partition(".")
    return root, rest, tuple(rest.split(".")) if rest or name.endswith(".") else (), False


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _unknown(name: str, root: str) -> str:
    if _plain(root) == "keysinfo":
        return f"{name}: filters know no logged keys; ask the view `metrics` with SQL"
    if _plain(root) == "tags":
        return f'{name}: unknown field; write {{"tags": "{name.partition(".")[2]}"}} for runs with that tag'
    known = [*_SPELLINGS, "config.<key>", "summary_metrics.<key>"]
    near = near_match(root, known)
    hint = f"did you mean '{near}'?" if near else f"known are {', '.join(known)}"
    return f"{name}: unknown field; {hint}"


def near_match(word: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely means."""
    by_plain = {_plain(k.partition(".<")[0]): k for k in known}
    found = get_close_matches(_plain(word), by_plain, n=1, cutoff=0.6)
    return by_plain[found[0]] if found else None
