"""Users of a server: who has which key, and in which teams he is. They lie in ROOT/serve-users.json, readable by its
owner alone, with salted hashes of the keys; a key is shown when it is made and never again.

A running server looks at the file with every request, so that changes hold at once.
"""

from __future__ import annotations

import json
import string
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from mirror.errors import NotFoundError, StoreError, UsageError
from mirror.server.access.asker import Asker
from mirror.server.access.auth import Key, checked_key, new_key
from mirror.store import Layout
from mirror.store.disk import explained, write_durably
from mirror.store.locks import held

USERS_FILE = "serve-users.json"
_NAME_LETTERS = set(string.ascii_letters + string.digits + "-_.")


@dataclass(frozen=True)
class User:
    """`teams` are entities he sees besides his own, which has his name."""

    name: str
    teams: tuple[str, ...]
    key: Key
    created_at: str

    def asker(self) -> Asker:
        return Asker(self.name, frozenset({self.name, *self.teams}))


class Users:
    """The users of one mirror."""

    def __init__(self, root: str | Path) -> None:
        self._layout = Layout(root)
        self._path = self._layout.root / USERS_FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}

    # -- reading ------------------------------------------------------------------------------------------

    def by_key(self, key: str) -> User | None:
        """Whose key it is."""
        return next((user for user in self.all().values() if user.key.matches(key)), None)

    def all(self) -> dict[str, User]:
        """The users by name, as they are now."""
        with self._lock:
            try:
                stat = self._path.stat()
            except FileNotFoundError:
                self._users, self._stamp = {}, None
                return self._users
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                self._users, self._stamp = self._read(), stamp
            return self._users

    def _read(self) -> dict[str, User]:
        try:
            found = json.loads(self._path.read_bytes())
            return {
                user["name"]: User(
                    user["name"],
                    tuple(user["teams"]),
                    Key(bytes.fromhex(user["salt"]), bytes.fromhex(user["sha256"])),
                    user["created_at"],
                )
                for user in found["users"]
            }
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise StoreError(
                f"the list of users `{self._path}` is damaged or not to be read: restore it, or remove it and add the "
                "users again"
            ) from exc

    # -- changing -----------------------------------------------------------------------------------------

    def add(self, name: str, teams: Iterable[str], key: str | None = None) -> str:
        """A new user; returns his key, a new one unless it is given. `UsageError` if the name is taken or is none."""
        _check_name("user", name)
        teams = _checked_teams(name, teams)
        with self._changing() as users:
            if name in users:
                raise UsageError(f"there is a user `{name}` already: `user teams` and `user key` change him")
            if member := next((u for u in users.values() if name in u.teams), None):
                raise UsageError(f"`{name}` is a team (of `{member.name}`): choose another name for the user")
            for team in teams:
                _check_not_a_user(team, users)
            chosen = _free_key(key, users)
            at = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
            users[name] = User(name, teams, Key.of(chosen), at)
        return chosen

    def remove(self, name: str) -> None:
        """His key is refused from now on. What he logged stays."""
        with self._changing() as users:
            del users[_known(name, users)]

    def set_teams(self, name: str, teams: Iterable[str]) -> None:
        """Replace the teams of a user."""
        teams = _checked_teams(name, teams)
        with self._changing() as users:
            for team in teams:
                _check_not_a_user(team, users)
            users[name] = replace(users[_known(name, users)], teams=teams)

    def set_key(self, name: str, key: str | None = None) -> str:
        """Replace a user's key; returns the new one. The old one is refused from now on."""
        with self._changing() as users:
            chosen = _free_key(key, users)
            users[name] = replace(users[_known(name, users)], key=Key.of(chosen))
        return chosen

    @contextmanager
    def _changing(self) -> Iterator[dict[str, User]]:
        self._layout.read_snapshot()  # says so if this is no mirror
        with explained("writing the list of users"), held(self._layout.root / "serve-users.lock"):
            users = dict(self.all())
            yield users
            listed = [
                {
                    "name": user.name,
                    "teams": list(user.teams),
                    "salt": user.key.salt.hex(),
                    "sha256": user.key.digest.hex(),
                    "created_at": user.created_at,
                }
                for user in users.values()
            ]
            text = json.dumps({"version": 1, "users": listed}, indent=1).encode()
            write_durably(self._path, lambda out: out.write(text), mode=0o600)


def _check_name(kind: str, name: str) -> None:
    if not name or len(name) > 128 or not set(name) <= _NAME_LETTERS or name in (".", ".."):
        raise UsageError(
            f"`{name[:150]}` cannot be the name of a {kind}: use 1 to 128 letters, digits, dashes, dots and underscores"
        )


def _checked_teams(name: str, teams: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(teams))
    for team in found:
        _check_name("team", team)
        if team == name:
            raise UsageError(f"`{name}` has an entity of that name anyway: leave it out of the teams")
    return found


def _check_not_a_user(team: str, users: dict[str, User]) -> None:
    if team in users:
        raise UsageError(f"`{team}` is a user, not a team: what he logs to his own entity is his alone")


def _known(name: str, users: dict[str, User]) -> str:
    if name not in users:
        raise NotFoundError(f"there is no user `{name}`: `mirror serve user list` shows who there is")
    return name


def _free_key(key: str | None, users: dict[str, User]) -> str:
    chosen = new_key() if key is None else checked_key(key, "given")
    if any(user.key.matches(chosen) for user in users.values()):
        raise UsageError("that key belongs to a user already: two users cannot share one")
    return chosen
