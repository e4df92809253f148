"""What rows, summaries and manifests say of artifacts, made to lead to their copies at another server.

Media that came out of an artifact name it by the server's own id, as in `wandb-artifact://<hex>/dir/im.image-file.json`
(`artifact_path`, and `filenames` of lists of images; wandb 0.31): another server knows no such id, and gives the copy
one of its own when it is made. But it also knows a copy by the id its client made up for it, which can be told before:
so what was `wandb-artifact://<hex>/` becomes `wandb-client-artifact://<that id>/`, which W&B reads alike. Entries of
manifests must name servers' ids, and are sent when what they lead to is there. Bytes of tables name no server's ids.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mirror.importers.client_ids import ClientIds, own_ids
from mirror.importers.places import Namespace
from mirror.query.sql import asking
from mirror.wandb.artifacts import server_ids
from mirror.wandb.filestream import LONGEST_LINE

if TYPE_CHECKING:
    from mirror.importers.run import Destination
    from mirror.store import Reader
    from mirror.wandb.client import Client

_SERVER, _CLIENT = "wandb-artifact://", "wandb-client-artifact://"
_NAMED = re.compile(r'"wandb-(client-)?artifact://([0-9a-zA-Z]+)(?=[:/])')
"""A string that names an artifact, in JSON text."""

REFERENCE = re.compile(r"wandb-artifact://([0-9a-fA-F]+)/(.*)", re.S)
"""What an entry of a manifest refers to: an artifact's storage id (see `storage_id_of`) and the path in it."""

Artifact = tuple[str, str]
"""Source and storage id."""


class References:
    """Where references of a mirror lead at a server. `destination` is its canonical name, `place` says where projects
    go. Used by several threads."""

    def __init__(self, reader: Reader, destination: str, place: Callable[[Namespace], Namespace]) -> None:
        self._reader = reader
        self._destination = destination
        self._place = place
        self._held: dict[Artifact, tuple[Namespace, str] | None] = {}

    def copy_of(self, source: str, storage_id: str) -> tuple[Namespace, str] | None:
        """Where an artifact is held here, and the id under which its copy is known there; None if it is not held."""
        if (source, storage_id) not in self._held:
            with asking(self._reader) as connection:
                found = connection.execute(
                    "select entity, project, collection from raw.artifacts_live where source = ? and storage_id = ? "
                    "and deleted_at is null and state = 'COMMITTED'",
                    [source, storage_id],
                ).fetchone()
            copy = None
            if found is not None:
                here = Namespace(found[0], found[1])
                copy = here, own_ids(source, storage_id, here, self._destination, self._place(here), found[2])[0]
            self._held[source, storage_id] = copy
        return self._held[source, storage_id]

    def text(self, source: str, text: str) -> str:
        """JSON text of a row, a value or a summary, with the references of its media leading to copies; those to
        artifacts that are not held stay as they are. What was led once stays, too."""
        return led(text, lambda name: self._client_name(source, name))

    def _client_name(self, source: str, name: str) -> str | None:
        hexed, _, path = name.removeprefix(_SERVER).partition("/")
        if not name.startswith(_SERVER) or (storage_id := storage_id_of(hexed)) is None:
            return None
        copy = self.copy_of(source, storage_id)
        return None if copy is None else f"{_CLIENT}{copy[1]}/{path}"


@dataclass
class Leading:
    """The references of what is sent to a server. `coming` are the projects whose artifacts are sent with their runs:
    of others it is asked whether they are there. Used by several threads."""

    references: References
    client: Client
    reader: Reader
    coming: Callable[[str, Namespace], bool] = lambda source, here: False
    _there: dict[str, bool] = field(default_factory=dict)
    _ids: dict[Artifact, ClientIds] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of_run(self, source: str, here: Namespace) -> OfRun:
        return OfRun(self, source, here)

    def is_there(self, names: Iterable[str]) -> None:
        """Ask which of these clients' ids the server knows."""
        new = [name for name in dict.fromkeys(names) if name not in self._there]
        known = server_ids(self.client, new) if new else {}
        self._there |= {name: name in known for name in new}

    def leads(self, source: str, here: Namespace, name: str) -> bool:
        """Whether the server knows an artifact by a client's id, or will, when all is sent."""
        return self._there.get(name, False) or (self.coming(source, here) and name in self.ids(source, here).known)

    def ids(self, source: str, here: Namespace) -> ClientIds:
        with self._lock:
            if (source, here.path) not in self._ids:
                self._ids[source, here.path] = ClientIds(self.reader, source, here)
            return self._ids[source, here.path]


def leading_to(there: Destination, reader: Reader, place: Callable[[Namespace], Namespace]) -> Leading:
    """The references of what is sent to a destination, which may know them already."""
    return there.leading or Leading(References(reader, there.client.source, place), there.client, reader)


class OfRun:
    """The same for one run. `led` counts references that lead to copies now, `left` those that lead nowhere there."""

    def __init__(self, leading: Leading, source: str, here: Namespace) -> None:
        self._leading = leading
        self._source = source
        self._here = here
        self.led = 0
        self.left = 0
        self._own = leading.client.source == source

    def lines(self, lines: list[str]) -> list[str]:
        return [self.text(line) if "artifact://" in line else line for line in lines]

    def text(self, text: str) -> str:
        """JSON text of a row or a summary as it is to stand there."""
        named = [(bool(client), name) for client, name in _NAMED.findall(text)]
        if not named:
            return text
        references, ask = self._leading.references, []
        for client, name in named:
            if client:
                ask += [] if self._own or self._is_coming(self._here) else [name]
            elif (storage_id := storage_id_of(name)) and (copy := references.copy_of(self._source, storage_id)):
                ask += [] if self._is_coming(copy[0]) else [copy[1]]
        self._leading.is_there(ask)
        became: list[str] = []

        def lead(name: str) -> str | None:
            moved = self._lead(name)
            became.append("left" if moved is None else "same" if moved == name else "led")
            return moved

        made = led(text, lead)
        fits = len(made) * 4 <= LONGEST_LINE or len(made.encode()) <= LONGEST_LINE
        self.led += became.count("led") if fits else 0
        self.left += became.count("left") + (0 if fits else became.count("led"))
        return made if fits else text

    def _is_coming(self, here: Namespace) -> bool:
        return self._leading.coming(self._source, here)

    def _lead(self, name: str) -> str | None:
        """What the reference is there: itself if it leads somewhere as it is; None if it leads nowhere."""
        if name.startswith(_CLIENT):
            own = re.split("[:/]", name.removeprefix(_CLIENT), maxsplit=1)[0]
            latest = name.removeprefix(f"{_CLIENT}{own}").startswith(":")  # of the collection: goes with the other
            return name if latest or self._own or self._leading.leads(self._source, self._here, own) else None
        hexed, _, path = name.removeprefix(_SERVER).partition("/")
        storage_id = storage_id_of(hexed)
        copy = self._leading.references.copy_of(self._source, storage_id) if storage_id else None
        if copy is None or not (self._is_coming(copy[0]) or self._leading.leads(self._source, copy[0], copy[1])):
            return name if self._own else None
        return f"{_CLIENT}{copy[1]}/{path}"


def led(text: str, lead: Callable[[str], str | None]) -> str:
    """JSON text with every string in a W&B object (a dictionary with a `_type`) as `lead` says; None leaves it."""
    from mirror.store.jsontext import parse, write

    if "artifact://" not in text:
        return text
    try:
        value, exact = parse(text)
    except (ValueError, RecursionError):
        return text
    changed = False

    def walk(value: Any, typed: bool) -> Any:
        nonlocal changed
        if isinstance(value, dict):
            typed = typed or isinstance(value.get("_type"), str)
            return {key: walk(one, typed) for key, one in value.items()}
        if isinstance(value, list):
            return [walk(one, typed) for one in value]
        if not (typed and type(value) is str and value.startswith((_SERVER, _CLIENT))):
            return value
        moved = lead(value)
        changed |= moved is not None and moved != value
        return value if moved is None else moved

    made = walk(value, False)
    return write(made, exact) if changed else text


def storage_id_of(hexed: str) -> str | None:
    """The storage id that a reference names in hex; None if it is none."""
    try:
        return base64.b64encode(bytes.fromhex(hexed)).decode() or None
    except ValueError:
        return None
