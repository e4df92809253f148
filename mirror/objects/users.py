"""`User`: who made something."""

from __future__ import annotations

from mirror.objects.attrs import Attrs
from mirror.query.text import safe


class User(Attrs):
    """A user, as far as runs, sweeps and reports tell: the user name and the full name."""

    def __init__(self, username: str, name: str | None = None, email: str | None = None) -> None:
        self._username, self._name, self._email = username, name, email

    @property
    def username(self) -> str:
        return self._username

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def email(self) -> str | None:
        return self._email

    def __repr__(self) -> str:
        return safe(f"<User {self.email or self.username}>")
