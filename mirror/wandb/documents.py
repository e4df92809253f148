"""Runs with their documents: attributes, config, summary, key catalogue and the first page of their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mirror.errors import TransientSourceError
from mirror.forks import branch_point
from mirror.records import FileEntry, Run, RunKey
from mirror.wandb.client import Client, Fields, next_cursor, nodes, when
from mirror.wandb.listing import LIGHT, fingerprint, key_of
from mirror.wandb.named import Named
from mirror.wandb.transport import NORMAL, Patience

HEAVY = ("user { name username }", "config", "summaryMetrics", "systemMetrics", "historyKeys", "fileCount")
FILES_AT_FIRST = 50
FILES_PER_PAGE = 1000

_FILE = ("id", "name", "url", "directUrl", "sizeBytes", "mimetype", "updatedAt", "md5")


@dataclass(frozen=True)
class Manifest:
    """The files of a run. `download_urls` are for fetching now: signed ones expire."""

    files: tuple[FileEntry, ...]
    download_urls: dict[str, str]
    next_page: str | None
    count: int | None


@dataclass(frozen=True)
class RunDocuments:
    run: Run
    fingerprint: str
    manifest: Manifest


def fetch_documents(
    client: Client,
    entity: str,
    project: str,
    run_ids: Sequence[str],
    *,
    patience: Patience = NORMAL,
    limit: int | None = None,
) -> tuple[list[RunDocuments | None], int]:
    """These runs, None for those that are gone, and the size of the answer in bytes. One request."""
    named = Named(run_ids)

    def build(f: Fields) -> str:
        files = f"files(first: {FILES_AT_FIRST}) {_files(f)}"
        return (
            f"query RunDocuments($entity: String!, $project: String!{named.declared}) {{"
            f" project(name: $project, entityName: $entity) {{ name entityName {named.asked('...documents')} }} }}"
            f" fragment documents on Run {{ id name {f.of('Run', (*LIGHT, *HEAVY, files))} }}"
        )

    asked = {"entity": entity, "project": project, **named.variables}
    data, size = client.ask(build, asked, patience=patience, limit=limit)
    shown = data.get("project") or {}
    found: list[RunDocuments | None] = []
    for node in named.answers(shown):
        if not isinstance(node, dict):
            found.append(None)
            continue
        key = key_of(client.project_of(shown, entity), node)
        found.append(
            RunDocuments(
                _run(client, key, node), fingerprint(node), manifest_of(node.get("files"), node.get("fileCount"))
            )
        )
    return found, size


def fetch_files(client: Client, key: RunKey, first: Manifest | None = None) -> Manifest:
    """The whole manifest of a run, from its first page on if that is known."""
    if first is not None and first.next_page is None:
        return first

    def build(f: Fields) -> str:
        return (
            "query RunFiles("
            "$entity: String!, $project: String!, $name: String!, $after: String, $first: Int!)"
            " { project(name: $project, entityName: $entity) { name entityName run(name: $name) { name"
            f" files(first: $first, after: $after) {_files(f)} }} }} }}"
        )

    files, urls = (list(first.files), dict(first.download_urls)) if first else ([], {})
    after, cursors = first.next_page if first else None, set[str | None]()
    while after not in cursors:
        cursors.add(after)
        variables = {
            "entity": key.entity, "project": key.project, "name": key.run_id, "after": after,
            "first": FILES_PER_PAGE,
        }  # fmt: skip
        data, _ = client.ask(build, variables)
        connection = ((data.get("project") or {}).get("run") or {}).get("files")
        if not isinstance(connection, dict):
            raise TransientSourceError("the list of files broke off: sync again")
        page = manifest_of(connection)
        files += page.files
        urls |= page.download_urls
        after = page.next_page
        if after is None:
            break
    return Manifest(tuple({f.name: f for f in files}.values()), urls, None, first.count if first else None)


def find_files(client: Client, key: RunKey, names: Sequence[str]) -> dict[str, str]:
    """Where to download files of a run, by name; those that are gone are left out."""
    found = find_manifest(client, key.entity, key.project, key.run_id, names)
    return {name: url for name, url in found.download_urls.items() if url and name in set(names)}


def find_manifest(client: Client, entity: str, project: str, run_id: str, names: Sequence[str]) -> Manifest:
    """A manifest of those files of a run that have these names."""
    return find_manifests(client, entity, project, [(run_id, names)])[0]


def find_manifests(
    client: Client, entity: str, project: str, wanted: Sequence[tuple[str, Sequence[str]]]
) -> list[Manifest]:
    """A manifest of the files that have these names, for each of some runs. One request."""

    def build(f: Fields) -> str:
        declared = "".join(f", $n{i}: String!, $f{i}: [String], $k{i}: Int!" for i in range(len(wanted)))
        asked = " ".join(
            f"r{i}: run(name: $n{i}) {{ name files(names: $f{i}, first: $k{i}) {{ ...files }} }}"
            for i in range(len(wanted))
        )
        return (
            f"query RunFilesByName($entity: String!, $project: String!{declared}) {{"
            f" project(name: $project, entityName: $entity) {{ name entityName {asked} }} }}"
            f" fragment files on FileConnection {_files(f)}"
        )

    variables: dict[str, Any] = {"entity": entity, "project": project}
    for i, (run_id, names) in enumerate(wanted):
        variables |= {f"n{i}": run_id, f"f{i}": list(names), f"k{i}": len(names)}
    data, _ = client.ask(build, variables)
    shown = data.get("project") or {}
    return [manifest_of((shown.get(f"r{i}") or {}).get("files")) for i in range(len(wanted))]


def _files(f: Fields) -> str:
    return f"{{ edges {{ cursor node {{ {f.of('File', _FILE)} }} }} pageInfo {{ endCursor hasNextPage }} }}"


def manifest_of(connection: Any, count: int | None = None) -> Manifest:
    """A page of files; `count` is how many there are in all, if it is known."""
    named = {str(node["name"]): node for node in nodes(connection) if node.get("name")}
    urls = {name: node.get("directUrl") or node.get("url") or "" for name, node in named.items()}
    return Manifest(tuple(_file(node) for node in named.values()), urls, next_cursor(connection), count)


def _file(node: dict[str, Any]) -> FileEntry:
    size = node.get("sizeBytes")  # an Int64, which some servers write as a string
    return FileEntry(
        name=node["name"],
        size=int(size) if isinstance(size, int) or (isinstance(size, str) and size.isdigit()) else None,
        md5=node.get("md5"),
        mimetype=node.get("mimetype"),
        updated_at=when(node.get("updatedAt")),
        storage_id=node.get("id"),
        url=node.get("url"),
    )


def _run(client: Client, key: RunKey, node: dict[str, Any]) -> Run:
    user = node.get("user") or {}
    fork = branch_point(_text(node.get("config"))) or (None, None)
    if fork[0] == key.run_id:  # a rewound run branches off from itself
        fork = (None, None)
    return Run(
        key=key,
        name=node.get("displayName"),
        state=node.get("state"),
        tags=tuple(t for t in node.get("tags") or () if isinstance(t, str)),
        group=node.get("group") or None,
        job_type=node.get("jobType") or None,
        notes=node.get("notes"),
        description=node.get("description"),
        user_name=user.get("name"),
        username=user.get("username"),
        created_at=when(node.get("createdAt")),
        heartbeat_at=when(node.get("heartbeatAt")),
        updated_at=when(node.get("updatedAt")),
        commit=node.get("commit"),
        host=node.get("host"),
        sweep=node.get("sweepName") or None,
        url=f"{client.pages}/{key.entity}/{key.project}/runs/{key.run_id}",
        config=_text(node.get("config")),
        summary=_text(node.get("summaryMetrics")),
        system_summary=_text(node.get("systemMetrics")),
        history_keys=_text(node.get("historyKeys")),
        history_line_count=node.get("historyLineCount"),
        events_line_count=node.get("eventsLineCount"),
        log_line_count=node.get("logLineCount"),
        fork_run_id=fork[0],
        fork_step=fork[1],
    )


def _text(value: Any) -> str | None:
    """JSON text as it came; JSON that the server decoded (historyKeys) becomes text again."""
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)
