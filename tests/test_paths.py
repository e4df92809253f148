"""Every spelling of an entity, a project or a run, and the names of hosts."""

from __future__ import annotations

import pytest

from mirror.errors import UsageError
from mirror.paths import WandbPath, api_url, app_url, canonical_source, netrc_machines, parse

SAAS = "https://api.wandb.ai"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("team", WandbPath("team")),
        ("team/", WandbPath("team")),
        ("team/project", WandbPath("team", "project")),
        (" /team/project/\n", WandbPath("team", "project")),
        ("team/my project", WandbPath("team", "my project")),
        ("team/project/1a2b3c4d", WandbPath("team", "project", "1a2b3c4d")),
        ("team/project/runs/1a2b3c4d", WandbPath("team", "project", "1a2b3c4d")),
        ("team/project:1a2b3c4d", WandbPath("team", "project", "1a2b3c4d")),
        ("team/project/runs", WandbPath("team", "project")),
        ("team/project/sweeps/xyz", WandbPath("team", "project", None, "xyz")),
        ("project:1a2b3c4d", WandbPath(None, "project", "1a2b3c4d")),
        ("project/runs/1a2b3c4d", WandbPath(None, "project", "1a2b3c4d")),
        ("https://wandb.ai/team", WandbPath("team", base_url=SAAS)),
        ("https://wandb.ai/team/projects", WandbPath("team", base_url=SAAS)),
        ("https://wandb.ai/team/project", WandbPath("team", "project", base_url=SAAS)),
        ("https://wandb.ai/team/project/workspace?nw=abc", WandbPath("team", "project", base_url=SAAS)),
        ("https://wandb.ai/team/my%20project/table", WandbPath("team", "my project", base_url=SAAS)),
        (
            "https://wandb.ai/team/project/runs/1a2b3c4d/overview?x=1#top",
            WandbPath("team", "project", "1a2b3c4d", base_url=SAAS),
        ),
        ("wandb.ai/team/project/runs/r1", WandbPath("team", "project", "r1", base_url=SAAS)),
        ("https://forge.coreweave.com/wandb/team/project", WandbPath("team", "project", base_url=SAAS)),
        (
            "https://forge.coreweave.com/wandb/team/project/runs/r1/logs",
            WandbPath("team", "project", "r1", base_url=SAAS),
        ),
        ("https://wandb.ai/team/project/sweeps/xyz", WandbPath("team", "project", None, "xyz", SAAS)),
        (
            "http://127.0.0.1:8080/team/project/runs/r1",
            WandbPath("team", "project", "r1", base_url="http://127.0.0.1:8080"),
        ),
        ("127.0.0.1:8080/team/project", WandbPath("team", "project", base_url="http://127.0.0.1:8080")),
        ("https://W.Example.ORG/Team/P", WandbPath("Team", "P", base_url="https://w.example.org")),
        (
            "https://example.org/tools/wandb/team/project/runs/r1",
            WandbPath("team", "project", "r1", base_url="https://example.org/tools/wandb"),
        ),
    ],
)
def test_paths_and_urls(text: str, expected: WandbPath) -> None:
    assert parse(text) == expected


def test_two_parts_are_a_project_or_a_run_as_the_caller_wants() -> None:
    assert parse("a/b") == WandbPath("a", "b")
    assert parse("a/b", want="run", entity="me") == WandbPath("me", "a", "b")
    assert parse("a", want="project", entity="me") == WandbPath("me", "a")
    assert parse("r", want="run", entity="me", project="p") == WandbPath("me", "p", "r")
    assert parse("e/p/r", want="run", entity="me") == WandbPath("e", "p", "r")


def test_defaults_fill_in_only_what_was_not_written() -> None:
    assert parse("p:r", entity="me") == WandbPath("me", "p", "r")
    assert parse("e/p:r", entity="me") == WandbPath("e", "p", "r")


def test_the_path_prefix_of_the_server_in_use_is_no_entity() -> None:
    url = "https://example.org/wandb/team/project"
    assert parse(url).entity == "wandb"
    assert parse(url, base_url="https://example.org/wandb") == WandbPath(
        "team", "project", base_url="https://example.org/wandb"
    )


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "/", "a//b", "a/b/c/d", "a/:b", "a/b:", "a\x1b[31m/b", "ftp://wandb.ai/a", "http://",
        "https://wandb.ai", "https://wandb.ai/", "https://user:secret@wandb.ai/a/b", "http://host:port/a/b",
        "http://[::1/a",
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused_with_the_next_step(text: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(text)
    assert "\x1b" not in str(e.value)
    assert "secret" not in str(e.value)
    assert "entity" in str(e.value) or "WANDB_API_KEY" in str(e.value) or "http" in str(e.value)


@pytest.mark.parametrize(
    ("url", "api", "source", "app"),
    [
        ("https://api.wandb.ai", SAAS, "api.wandb.ai", "https://wandb.ai"),
        ("https://wandb.ai/", SAAS, "api.wandb.ai", "https://wandb.ai"),
        ("https://api.forge.coreweave.com", SAAS, "api.wandb.ai", "https://wandb.ai"),
        ("https://forge.coreweave.com/wandb", SAAS, "api.wandb.ai", "https://wandb.ai"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        (
            "https://W.example.org:443",
            "https://w.example.org:443",
            "w.example.org",
            "https://w.example.org:443",
        ),
        ("https://api.lab.example", "https://api.lab.example", "api.lab.example", "https://app.lab.example"),
        ("http://h/wandb/", "http://h/wandb", "h/wandb", "http://h/wandb"),
        ("http://[::1]:90", "http://[::1]:90", "[::1]:90", "http://[::1]:90"),
    ],
)
def test_hosts(url: str, api: str, source: str, app: str) -> None:
    assert api_url(url) == api
    assert canonical_source(url) == source
    assert app_url(url) == app


def test_no_host_is_refused() -> None:
    for url in ("example", "", "file:///etc/passwd"):
        with pytest.raises(UsageError):
            api_url(url)


def test_netrc_machines_try_the_exact_name_first() -> None:
    assert netrc_machines("http://127.0.0.1:8080") == ["127.0.0.1:8080", "127.0.0.1"]
    assert netrc_machines("https://wandb.ai")[0] == "api.wandb.ai"
