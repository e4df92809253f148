"""One parser for every way people write down an entity, a project or a run, and for the hosts they live on.

team                              an entity
team/project                      a project
team/project/1a2b3c4d             a run; also team/project/runs/1a2b3c4d and team/project:1a2b3c4d
project:1a2b3c4d                  a run of the default entity; also project/runs/1a2b3c4d
./wandb, file:wandb, x.wandb        files and folders of this machine (`local_path`)
https://wandb.ai/team/project/..  what a browser shows, on wandb.ai, forge.coreweave.com/wandb or a server
                                  of one's own; the host becomes the base URL
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from mirror.errors import UsageError

DEFAULT_BASE_URL = "https://api.wandb.ai"

_SAAS_SOURCE = "api.wandb.ai"
_SAAS_HOSTS = {
    "api.wandb.ai",
    "wandb.ai",
    "www.wandb.ai",
    "app.wandb.ai",
    "api.forge.coreweave.com",
    "forge.coreweave.com",
}
"""One deployment under several names (wandb 0.31, sdk/lib/urls.py: FORGE_HOSTS)."""

_FORGE_PREFIXES = (["api", "wandb"], ["wandb"])
_PROJECT_PAGES = {
    "artifacts", "automations", "groups", "jobs", "launch", "overview", "reports", "reportlist", "runs",
    "settings", "sweeps", "table", "users", "weave", "workspace",
}  # fmt: skip
_EXAMPLES = "write `entity`, `entity/project`, `entity/project/run` or a URL such as https://wandb.ai/entity/project"


@dataclass(frozen=True)
class WandbPath:
    """What a path names. A part that was not written is None; `base_url` is set by URLs only."""

    entity: str | None = None
    project: str | None = None
    run_id: str | None = None
    sweep_id: str | None = None
    base_url: str | None = None

    @property
    def text(self) -> str:
        return "/".join(p for p in (self.entity, self.project, self.run_id) if p is not None)


def parse(
    text: str,
    *,
    want: Literal["any", "project", "run"] = "any",
    entity: str | None = None,
    project: str | None = None,
    base_url: str | None = None,
) -> WandbPath:
    """Read a path or a URL.

    `want` settles what a short path means: `a/b` is entity/project for "any" and "project", project/run for
    "run". `entity` and `project` fill in parts that were not written; `base_url` is the server in use, whose
    path prefix, if it has one, is not mistaken for an entity in URLs. Raises UsageError.
    """
    given = text
    text = text.strip()
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise UsageError(f"`{given!r}` is no path: it holds control characters; {_EXAMPLES}")
    url = _as_url(text)
    path = _from_url(url, given, base_url) if url is not None else _from_parts(text, given, want)
    return replace(path, entity=path.entity or entity, project=path.project or project)


def local_path(text: str) -> Path | None:
    """The file or folder of this machine that a text names; None if it is a path on a server.

    Local are `file:PATH`, what begins with `/`, `./`, `../` or `~`, and the names of logs (`x.wandb`). A bare name is
    an entity, even if there is a folder of that name. Raises UsageError.
    """
    if text.startswith("file://"):
        url = urlsplit(text)
        if url.netloc not in ("", "localhost"):
            raise UsageError(f"`{text}` is on another machine: write file:///path or file:path")
        return Path(unquote(url.path))
    if text.startswith("file:"):
        if not text[5:]:
            raise UsageError("`file:` names no folder: write file:PATH")
        return Path(text[5:])
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")) or text.endswith(".wandb"):
        return Path(text)
    return None


def _as_url(text: str) -> SplitResult | None:
    """The URL a text is, also one without a scheme if its host can be nothing else."""
    try:
        if "://" in text:
            return urlsplit(text)
        first, slash, _ = text.partition("/")
        host, colon, port = first.partition(":")
        if host.lower() in _SAAS_HOSTS:
            return urlsplit(f"https://{text}")
        if slash and colon and port.isdigit() and (host == "localhost" or "." in host):
            return urlsplit(f"http://{text}")
    except ValueError as e:
        raise UsageError(f"`{text}` is no URL ({e}); {_EXAMPLES}") from e
    return None


def _from_parts(text: str, given: str, want: str) -> WandbPath:
    parts = text.strip("/").split("/")
    run_id = sweep_id = None
    if len(parts) > 2 and parts[-2] in ("runs", "sweeps"):
        kind, last = parts[-2], parts[-1]
        parts = parts[:-2]
        run_id, sweep_id = (last, None) if kind == "runs" else (None, last)
        want = "project"
    elif len(parts) > 2 and parts[-1] in ("runs", "sweeps"):
        parts = parts[:-1]
    elif ":" in parts[-1]:
        parts[-1], _, run_id = parts[-1].partition(":")
        want = "project"
    elif len(parts) == 3 or (want == "run" and len(parts) < 3):
        run_id = parts.pop()
        want = "project"
    written = [*parts, *(p for p in (run_id, sweep_id) if p is not None)]
    if len(parts) > 2 or not all(p.strip() for p in written):
        raise UsageError(f"`{given}` is no path of an entity, a project or a run; {_EXAMPLES}")
    if len(parts) == 2:
        return WandbPath(parts[0], parts[1], run_id, sweep_id)
    if want == "any":
        return WandbPath(entity=parts[0])
    return WandbPath(None, parts[0] if parts else None, run_id, sweep_id)


def _from_url(url: SplitResult, given: str, base_url: str | None) -> WandbPath:
    parts = [unquote(p) for p in url.path.split("/") if p]
    host = _host(url, given)
    prefix: list[str] = []
    known = urlsplit(base_url) if base_url else None
    if host in _SAAS_HOSTS:
        if "forge" in host:
            parts = next((parts[len(p) :] for p in _FORGE_PREFIXES if parts[: len(p)] == p), parts)
        server = DEFAULT_BASE_URL
    else:
        if known and known.netloc.lower() == url.netloc.lower():
            prefix = [p for p in known.path.split("/") if p]
        elif "runs" in parts[3:]:  # a server behind a path prefix shows itself in the URLs of runs only
            prefix = parts[: parts.index("runs", 3) - 2]
        if parts[: len(prefix)] == prefix:
            parts = parts[len(prefix) :]
        server = "/".join([f"{url.scheme}://{url.netloc}", *prefix])
        server = api_url(server)
    if not parts:
        raise UsageError(f"`{given}` names no entity; add one, e.g. {given.rstrip('/')}/entity/project")
    if len(parts) == 1 or parts[1] == "projects":
        return WandbPath(entity=parts[0], base_url=server)
    entity, project, rest = parts[0], parts[1], parts[2:]
    if len(rest) >= 2 and rest[0] == "runs":
        return WandbPath(entity, project, rest[1], base_url=server)
    if len(rest) >= 2 and rest[0] == "sweeps":
        return WandbPath(entity, project, None, rest[1], base_url=server)
    if not rest or rest[0] in _PROJECT_PAGES:
        return WandbPath(entity, project, base_url=server)
    if len(rest) == 1:
        return WandbPath(entity, project, rest[0], base_url=server)
    raise UsageError(f"`{given}` names no entity, project or run that could be told; {_EXAMPLES}")


def _host(url: SplitResult, given: str) -> str:
    try:
        host, _ = url.hostname, url.port
    except ValueError as e:
        raise UsageError(f"`{given}` is no URL ({e}); {_EXAMPLES}") from e
    if url.scheme.lower() not in ("http", "https") or not host:
        raise UsageError(f"`{given}` is no http or https URL; {_EXAMPLES}")
    if url.username or url.password:
        raise UsageError("the URL holds a user name or a password: leave it out and set WANDB_API_KEY")
    return host.lower()


def api_url(url: str) -> str:
    """The base URL of the API for the address of a server, its browser address included.

    `https://wandb.ai` and `https://forge.coreweave.com/wandb` become `https://api.wandb.ai`; no trailing
    slash. Raises UsageError.
    """
    text = url.strip()
    split = _as_url(text) or _as_url(text + "/")
    if split is None:
        raise UsageError(
            f"`{url}` is no http or https URL: write the server's address as https://host or http://host:port"
        )
    if _host(split, url) in _SAAS_HOSTS:
        return DEFAULT_BASE_URL
    return f"{split.scheme.lower()}://{split.netloc.lower()}{split.path.rstrip('/')}"


def app_url(base_url: str) -> str:
    """The address of the pages of a server, for its base URL (wandb 0.31, util.api_to_app_url)."""
    base = api_url(base_url)
    if base == DEFAULT_BASE_URL:
        return "https://wandb.ai"
    return base.replace("://api.", "://app.", 1)


def canonical_source(base_url: str) -> str:
    """The name under which a mirror keeps a server's runs: host, port unless it is the usual one, path.

    W&B's cloud has one name, `api.wandb.ai`, whichever of its hosts was used; `127.0.0.1:8080` keeps its
    port.
    """
    split = urlsplit(api_url(base_url))
    host = split.hostname or ""
    if host in _SAAS_HOSTS:
        return _SAAS_SOURCE
    if ":" in host:
        host = f"[{host}]"
    own = {"http": 80, "https": 443}[split.scheme]
    port = f":{split.port}" if split.port not in (None, own) else ""
    return f"{host}{port}{split.path}"


def netrc_machines(base_url: str) -> list[str]:
    """The `machine` names under which a netrc file may hold a server's key, the most exact first."""
    split = urlsplit(api_url(base_url))
    if split.hostname in _SAAS_HOSTS:
        return ["api.wandb.ai", "api.forge.coreweave.com", "wandb.ai", "forge.coreweave.com"]
    return list(dict.fromkeys([split.netloc, split.hostname or split.netloc]))
