"""`mirror.toml` in a mirror's root: what `mirror sync` without a PATH pulls, entry by entry."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mirror.errors import MirrorError, UsageError

NAME = "mirror.toml"
_OPTIONS = {
    "paths": "paths", "base_url": "base_url", "filter": "filter_", "since": "since", "state": "states",
    "exclude": "exclude", "files": "files", "artifacts": "artifacts", "media": "media", "all_bytes": "all_bytes",
    "what": "what",
}  # fmt: skip
"""Keys of an entry, and the parameters of `mirror sync` they stand for."""
_LISTS = {"paths", "state", "exclude", "files", "artifacts", "what"}
_FLAGS = {"media", "all_bytes"}
_EXAMPLE = 'a line `[[sync]]` and below it `paths = ["my-team/my-project"]`'


class _File:
    """A configuration as it was read; errors name the file, the line and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(
                f"name a PATH, such as ENTITY/PROJECT, or write what is to be synced regularly into `{path}`: "
                f"{_EXAMPLE}"
            ) from None
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"`{path}` cannot be read: {e}") from e
        self.found = _loaded(path, self.text)

    def refuse(self, message: str, entry: int | None = None, key: str | None = None) -> NoReturn:
        line = self._line(entry, key)
        raise UsageError(f"`{self.path}`{f', line {line}' if line else ''}: {message}")

    def _line(self, entry: int | None, key: str | None) -> int | None:
        """Where a key of an entry is written, if it stands on a line of its own."""
        current, header = -1, None
        for number, line in enumerate(self.text.splitlines(), 1):
            if re.match(r"\s*\[\[\s*sync\s*\]\]", line):
                current += 1
                header = number if current == entry else header
            named = key is not None and re.match(rf"""\s*\[?\[?\s*["']?{re.escape(key)}["']?\s*[=\]]""", line)
            if named and (entry is None or current == entry):
                return number
        return header


def _loaded(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"`{path}` is no TOML: {e}") from e


def read(root: Path) -> list[dict[str, Any]]:
    """The entries of a root's `mirror.toml`, as parameters of `mirror sync`. Raises UsageError."""
    file = _File(root / NAME)
    for key in file.found:
        if key != "sync":
            file.refuse(f"unknown key `{key}`: entries are written below [[sync]]", None, key)
    entries = file.found.get("sync", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        file.refuse("`sync` is no list of tables: write [[sync]], in double brackets", None, "sync")
    if not entries:
        file.refuse(f"nothing to sync: write {_EXAMPLE}")
    return [_entry(file, number, entry, root) for number, entry in enumerate(entries)]


def _entry(file: _File, number: int, entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    from mirror.cli.selection import moment
    from mirror.sources.parts import chosen
    from mirror.sync.wanted import WantedBytes

    given: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in _OPTIONS:
            near = get_close_matches(key, _OPTIONS, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(_OPTIONS)}"
            file.refuse(f"unknown key `{key}`; {hint}", number, key)
        given[_OPTIONS[key]] = _value(file, number, key, value)
    if not given.get("paths"):
        file.refuse(f"entry {number + 1} names no `paths`: write {_EXAMPLE}", number)
    now = datetime.now(timezone.utc)
    checks: dict[str, Callable[[Any], object]] = {
        "paths": _checked_paths,
        "since": lambda text: moment(text, now),
        "filter": _checked_filter,
        "what": chosen,
        "artifacts": lambda texts: WantedBytes(artifacts=texts),
    }
    if any(text.startswith("mlflow:") for text in given["paths"]):
        del checks["filter"]  # MLflow's filters are in a language of its own
    for key, check in checks.items():
        if key in entry:
            try:
                check(given[_OPTIONS[key]])
            except MirrorError as e:
                file.refuse(f"`{key}`: {e}", number, key)
    given["paths"] = tuple(_below(root, text) for text in given["paths"])
    return given


def _value(file: _File, number: int, key: str, value: Any) -> Any:
    import json

    if key == "filter" and isinstance(value, dict):
        return json.dumps(value)
    if key in _FLAGS:
        if not isinstance(value, bool):
            file.refuse(f"`{key}` is neither true nor false: write {key} = true", number, key)
        return value
    if key not in _LISTS:
        if not isinstance(value, str):
            file.refuse(f"`{key}` is no text: write it in quotes", number, key)
        return value
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        file.refuse(f'`{key}` is no list of texts: write {key} = ["..."]', number, key)
    return tuple(values)


def _checked_paths(texts: tuple[str, ...]) -> None:
    from mirror.paths import local_path, parse

    for text in texts:
        if not text.startswith("mlflow:") and local_path(text) is None:
            parse(text)


def _checked_filter(text: str) -> None:
    from mirror.cli.selection import server_filter

    server_filter(text, None, (), datetime.now(timezone.utc))


def _below(root: Path, text: str) -> str:
    """A folder of this machine counts from the mirror's root, wherever the command is called."""
    return str(root.absolute() / text) if text in (".", "..") or text.startswith(("./", "../")) else text


def sync_regularly(ctx: click.Context, root: Path) -> NoReturn:
    """Sync every entry of the root's `mirror.toml`; ends the command, with 1 if one of them failed."""
    from mirror.cli.stopping import stopping
    from mirror.cli.sync import command

    entries = read(root)
    for parameter in command.params:
        name = parameter.name
        if name in _OPTIONS.values() and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} needs a PATH: name one, or write it into `{root / NAME}`")
    stop: threading.Event = ctx.ensure_object(threading.Event)
    watch = ctx.params["watch"]
    if watch and ctx.params["dry_run"]:
        raise UsageError("--watch syncs again and again, --dry-run not at all: leave out one of them")
    with stopping(stop):
        while True:
            failed = False
            for entry in entries:
                try:
                    ctx.invoke(command, **ctx.params | {"watch": None} | entry)
                except click.exceptions.Exit as e:
                    failed |= bool(e.exit_code)
                if stop.is_set():
                    break
            if watch is None or stop.is_set() or stop.wait(watch):
                break
    if watch is not None:
        click.echo("Stopped. Everything fetched so far is in the mirror.", err=True)
    ctx.exit(int(failed and watch is None))
