"""Where a key comes from, and where it may go.

The order is the SDK's: an argument, the environment variable WANDB_API_KEY, a netrc file. Keys are never
printed and never stored; messages say where a key was found, not what it is.
"""

from __future__ import annotations

import base64
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mirror.errors import TerminalSourceError
from mirror.paths import canonical_source, netrc_machines

VARIABLES = ("WANDB_API_KEY", "MIRROR_SRC_API_KEY", "MIRROR_DST_API_KEY")
"""Environment variables that hold keys: the SDK's, and those of the two servers of an import."""


@dataclass(frozen=True)
class Credential:
    """A key and the place it was found, fit for messages."""

    key: str = field(repr=False)
    origin: str

    @property
    def is_from_environment(self) -> bool:
        """Whether it stands in a variable, which goes before whatever `wandb login` writes."""
        return self.origin.split(" or ")[0] in VARIABLES


def find(base_url: str, *, key: str | None = None, environ: Mapping[str, str] | None = None) -> Credential:
    """The key for a server. Raises TerminalSourceError, with what to do, if there is none."""
    environ = os.environ if environ is None else environ
    if key:
        # Commands hand on what they found in a variable: name that, since they have no argument for keys.
        origin = " or ".join(name for name in VARIABLES if environ.get(name) == key) or "the argument"
        return Credential(_checked(key, origin), origin)
    if from_environment := environ.get("WANDB_API_KEY"):
        return Credential(_checked(from_environment, "WANDB_API_KEY"), "WANDB_API_KEY")
    if found := _from_netrc(base_url, environ):
        return found
    raise TerminalSourceError(
        f"no API key for `{canonical_source(base_url)}`: set WANDB_API_KEY (MIRROR_DST_API_KEY where things are sent "
        "to, MIRROR_SRC_API_KEY where they are imported from), or run "
        f"`wandb login --host {base_url}`, which puts the key into your netrc file"
    )


def _from_netrc(base_url: str, environ: Mapping[str, str]) -> Credential | None:
    for path in _netrc_files(environ):
        try:
            entries = netrc.netrc(str(path))
        except FileNotFoundError:
            continue
        except netrc.NetrcParseError as e:
            reason = f"{e.msg}, line {e.lineno}"
            raise TerminalSourceError(f"`{path}` is no netrc file ({reason}): mend it", e) from e
        except (OSError, UnicodeDecodeError) as e:
            message = f"`{path}` cannot be read ({e}): mend it, or set WANDB_API_KEY"
            raise TerminalSourceError(message, e) from e
        for machine in netrc_machines(base_url):
            # `entries.hosts`, not `authenticators()`: the netrc `default` entry is not meant for W&B.
            login = entries.hosts.get(machine)
            if login and login[2]:
                origin = f"{path} (machine {machine})"
                return Credential(_checked(login[2], origin), origin)
    return None


def _netrc_files(environ: Mapping[str, str]) -> list[Path]:
    if named := environ.get("NETRC"):
        return [Path(named).expanduser()]
    home = Path(environ.get("HOME") or Path.home())
    return [home / ".netrc", home / "_netrc"]


def _checked(key: str, origin: str) -> str:
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise TerminalSourceError(
            f"the API key from {origin} is no key: it is empty or holds spaces, line breaks or odd characters"
        )
    return key


class KeyAuth:
    """Passed as `auth=` of a request: adds the key to URLs under the base URL and to no others.

    A plain Authorization header would be replaced by what netrc says (requests does that to every request
    without `auth`); signed bucket URLs must not get the key at all.
    """

    def __init__(self, credential: Credential, base_url: str) -> None:
        token = base64.b64encode(f"api:{credential.key}".encode()).decode()
        self._header = f"Basic {token}"
        self._base = urlsplit(base_url)

    def covers(self, url: str) -> bool:
        """True for URLs under the base URL: same scheme, host and port, path below its path."""
        split = urlsplit(url)
        base_path = self._base.path.rstrip("/") + "/"
        return (
            split.scheme == self._base.scheme
            and split.hostname == self._base.hostname
            and _port(split) == _port(self._base)
            and (split.path + "/").startswith(base_path)
        )

    def __call__(self, request: Any) -> Any:
        request.headers.pop("Authorization", None)
        if self.covers(request.url):
            request.headers["Authorization"] = self._header
        return request


def _port(split: Any) -> int | None:
    return split.port or {"http": 80, "https": 443}.get(split.scheme)
