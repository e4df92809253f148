"""Which key is used, where it is said to come from, and where it may go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mirror.credentials import Credential, KeyAuth, find
from mirror.errors import TerminalSourceError

KEY = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
LOCAL = "http://127.0.0.1:8080"


def netrc_at(home: Path, text: str, name: str = ".netrc") -> dict[str, str]:
    file = home / name
    file.write_text(text)
    file.chmod(0o600)
    return {"HOME": str(home)}


def test_argument_then_environment_then_netrc(tmp_path: Path) -> None:
    environ = netrc_at(tmp_path, f"machine 127.0.0.1:8080 login user password {OTHER}")
    assert find(LOCAL, environ=environ) == Credential(OTHER, f"{tmp_path}/.netrc (machine 127.0.0.1:8080)")
    environ["WANDB_API_KEY"] = KEY
    assert find(LOCAL, environ=environ) == Credential(KEY, "WANDB_API_KEY")
    assert find(LOCAL, key="a" * 40, environ=environ) == Credential("a" * 40, "the argument")
    environ["MIRROR_DST_API_KEY"] = "b" * 40
    found = find(LOCAL, key="b" * 40, environ=environ)
    assert found.origin == "MIRROR_DST_API_KEY" and found.is_from_environment


def test_netrc_entries_are_per_host(tmp_path: Path) -> None:
    environ = netrc_at(
        tmp_path,
        f"machine api.wandb.ai\n login user\n password {KEY}\nmachine localhost login user password {OTHER}\n",
    )
    assert find("https://wandb.ai", environ=environ).key == KEY
    assert find("https://api.forge.coreweave.com", environ=environ).key == KEY
    assert find("http://localhost:9", environ=environ).key == OTHER
    with pytest.raises(
        TerminalSourceError, match=r"no API key for `127\.0\.0\.1:8080`.*WANDB_API_KEY \(MIRROR_DST_API_KEY"
    ):
        find(LOCAL, environ=environ)


def test_the_default_entry_of_netrc_is_left_alone(tmp_path: Path) -> None:
    environ = netrc_at(tmp_path, "default login anonymous password me@example.org")
    with pytest.raises(TerminalSourceError, match="no API key"):
        find(LOCAL, environ=environ)


def test_netrc_variable_names_another_file(tmp_path: Path) -> None:
    netrc_at(tmp_path, f"machine 127.0.0.1 login user password {KEY}", "elsewhere")
    found = find(LOCAL, environ={"NETRC": str(tmp_path / "elsewhere"), "HOME": "/nonexistent"})
    assert found.key == KEY
    assert "elsewhere" in found.origin


def test_a_broken_netrc_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    environ = netrc_at(tmp_path, "machine 127.0.0.1 login user passwort x")
    with pytest.raises(TerminalSourceError, match=r"\.netrc` is no netrc file"):
        find(LOCAL, environ=environ)


@pytest.mark.parametrize("key", ["   ", "two words", "line\nbreak", "ключ"])
def test_what_is_no_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(TerminalSourceError) as e:
        find(LOCAL, environ={"WANDB_API_KEY": key})
    assert "WANDB_API_KEY" in str(e.value)
    assert key.strip() == "" or key.strip() not in str(e.value)


def test_a_key_is_not_in_any_repr() -> None:
    assert KEY not in repr(Credential(KEY, "WANDB_API_KEY"))
    assert KEY not in repr(KeyAuth(Credential(KEY, "x"), LOCAL))


@pytest.mark.parametrize(
    ("base", "url", "sent"),
    [
        (LOCAL, f"{LOCAL}/graphql", True),
        (LOCAL, f"{LOCAL}/files/e/p/r/x", True),
        (LOCAL, "http://127.0.0.1:8081/graphql", False),
        (LOCAL, "https://127.0.0.1:8080/graphql", False),
        (LOCAL, "http://127.0.0.1.evil.org:8080/graphql", False),
        ("https://h", "https://h:443/graphql", True),
        ("https://h/wandb", "https://h/wandb/graphql", True),
        ("https://h/wandb", "https://h/wandbit", False),
        ("https://h/wandb", "https://h/", False),
        ("https://api.wandb.ai", "https://storage.example/bucket/x?sig=1", False),
    ],
)
def test_the_key_goes_under_the_base_url_and_nowhere_else(base: str, url: str, sent: bool) -> None:
    request = SimpleNamespace(url=url, headers={"Authorization": "Basic from-netrc"})
    KeyAuth(Credential(KEY, "x"), base)(request)
    assert ("Authorization" in request.headers) is sent
    assert request.headers.get("Authorization") != "Basic from-netrc"
