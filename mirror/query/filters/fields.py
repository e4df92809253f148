"""The names filters and orders may use, and which column or document each one means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from mirror.errors import UsageError
from mirror.query.filters.tree import Attribute, Document, Field

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


def resolve(name: str, refuse: type[UsageError] = UsageError) -> tuple[Field, str | None]:
    """The field a name means, and a notice if the name is one that W&B's server would refuse.

    Raises UsageError: an unknown name (with a near match), an empty part, too many parts.
    """
    attribute = _BY_NAME.get(_plain(name))
    if attribute is not None:
        return attribute, None
    root, _, rest = name.partition(".")
    parts = tuple(rest.split(".")) if rest or name.endswith(".") else ()
    plain = _plain(root)
    if plain == "config" or plain in _SUMMARY_ROOTS:
        if "" in parts:
            raise refuse(f"{name}: empty part in field path; write the names between single dots")
        if len(parts) > MAX_PARTS:
            raise refuse(f"{name[:60]}...: {len(parts)} parts in field path, at most {MAX_PARTS} are taken")
        if plain == "config":
            # The wire wraps config values: `config.lr.value` and `config.lr` are the same place (wandb#9406).
            return Document("config", parts[:1] + parts[2:] if parts[1:2] == ("value",) else parts), None
        notice = SUMMARY_NOTICE.format(name, rest or "<key>") if plain == "summary" else None
        return Document("summary", parts), notice
    raise refuse(_unknown(name, root))


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
