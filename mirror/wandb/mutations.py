"""What changes runs, projects and files on a W&B server. Every one is refused for a server not opened for writing.

The SDK declares each argument of a mutation as a variable of its own and never names an input type, so neither does
this: only what is given is mentioned, and a server need not know anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.errors import TerminalSourceError, TransientSourceError
from mirror.wandb.client import Client, Fields
from mirror.wandb.transport import NORMAL, Patience, RefusedQuery

_RUN_FIELDS = {
    "displayName": "String", "notes": "String", "description": "String", "groupName": "String", "jobType": "String",
    "tags": "[String!]", "config": "JSONString", "summaryMetrics": "JSONString", "commit": "String", "host": "String",
    "jobProgram": "String", "jobRepo": "String", "state": "String", "sweep": "String",
}  # fmt: skip
"""What `upsertBucket` takes beside the names, with the types the SDK declares (wandb 0.31)."""


class DeletedRunId(TerminalSourceError):
    """A run of that id was deleted on the server, which never gives an id to a second run."""


@dataclass(frozen=True)
class Bucket:
    """A run as `upsertBucket` answers: `inserted` if it was made, `lines` of history it holds, where told."""

    storage_id: str
    run_id: str
    entity: str
    project: str
    inserted: bool
    lines: int | None


def mutate(
    client: Client,
    name: str,
    given: Mapping[str, tuple[str, Any]],
    selection: str,
    *,
    patience: Patience = NORMAL,
) -> dict[str, Any]:
    """Run one mutation: argument -> (GraphQL type, value), those of None left out. Returns its payload.

    Raises RefusedQuery for what the server will not do, another SourceError if it cannot be asked.
    """
    given = {argument: pair for argument, pair in given.items() if pair[1] is not None}
    declared = ", ".join(f"${argument}: {kind}" for argument, (kind, _) in given.items())
    inputs = ", ".join(f"{argument}: ${argument}" for argument in given)
    title = name[:1].upper() + name[1:]
    text = f"mutation {title}({declared}) {{ {name}(input: {{ {inputs} }}) {{ {selection} }} }}"
    data, _ = client.ask(lambda _: text, {a: value for a, (_, value) in given.items()}, patience=patience)
    payload = data.get(name)
    return payload if isinstance(payload, dict) else {}


def upsert_run(
    client: Client,
    *,
    entity: str | None = None,
    project: str | None = None,
    run_id: str | None = None,
    storage_id: str | None = None,
    **fields: Any,
) -> Bucket:
    """Make a run, or change the one that is there: by entity, project and run id, or by `storage_id`.

    `fields` are those of `upsertBucket` (displayName, notes, groupName, jobType, tags, config, summaryMetrics, ...);
    None leaves a field as it is. `config` and `summaryMetrics` are the JSON texts of whole documents. Makes the
    project, too. Raises DeletedRunId.
    """
    unknown = fields.keys() - _RUN_FIELDS.keys()
    if unknown:
        raise ValueError(f"`{sorted(unknown)[0]}` is no field of a run")
    given: dict[str, tuple[str, Any]] = {
        "id": ("String", storage_id),
        "name": ("String", run_id),
        "modelName": ("String", project),
        "entityName": ("String", entity),
    } | {name: (_RUN_FIELDS[name], value) for name, value in fields.items()}
    shown = "bucket { id name historyLineCount project { name entity { name } } } inserted"
    try:
        payload = mutate(client, "upsertBucket", given, shown)
    except RefusedQuery as e:
        if run_id is not None and "deleted" in str(e).lower():
            raise DeletedRunId(
                f"`{client.source}` had a run `{entity}/{project}/{run_id}` that was deleted, and an id is not used "
                "twice there: choose a suffix for the ids of such runs (--deleted-suffix -2)",
                e,
            ) from e
        if e.status == 409:  # the SDK sends it again: two requests made the project at the same time
            raise TransientSourceError(str(e), e) from e
        raise
    bucket = payload.get("bucket") or {}
    if not isinstance(bucket.get("id"), str):
        raise TerminalSourceError(f"`{client.source}` did not say which run it made of `{run_id or storage_id}`")
    place = bucket.get("project") or {}
    return Bucket(
        bucket["id"],
        str(bucket.get("name") or run_id),
        str((place.get("entity") or {}).get("name") or entity),
        str(place.get("name") or project),
        bool(payload.get("inserted")),
        bucket.get("historyLineCount"),
    )


def delete_run(client: Client, storage_id: str, *, delete_artifacts: bool = False) -> None:
    """Delete a run. Its id is used up."""
    given = {"id": ("ID!", storage_id), "deleteArtifacts": ("Boolean", delete_artifacts)}
    _check(client, mutate(client, "deleteRun", given, "clientMutationId"), f"delete run `{storage_id}`")


def update_run_state(client: Client, storage_id: str, state: str) -> None:
    """Set a run to `pending` or `failed`, the only states a server lets others set."""
    payload = mutate(client, "updateRunState", {"id": ("ID!", storage_id), "state": ("String!", state)}, "success")
    _check(client, payload, f"make run `{storage_id}` {state}")


def stop_run(client: Client, storage_id: str) -> None:
    """Ask a run to stop."""
    _check(client, mutate(client, "stopRun", {"id": ("ID!", storage_id)}, "success"), f"stop run `{storage_id}`")


def delete_files(client: Client, file_ids: Sequence[str], project_id: int | None = None) -> None:
    """Delete files of runs by their storage ids. `project_id` is the number of their project (`Project.internalId`),
    which W&B's cloud wants to be told."""
    given = {"files": ("[ID!]!", list(file_ids)), "projectId": ("Int", project_id)}
    _check(client, mutate(client, "deleteFiles", given, "success"), f"delete {len(file_ids)} files")


def internal_project_id(client: Client, entity: str, project: str) -> int | None:
    """The number of a project, which `delete_files` wants; None where the server tells none."""

    def build(f: Fields) -> str:
        return (
            "query ProjectNumber($entity: String!, $project: String!) {"
            f" project(name: $project, entityName: $entity) {{ name {f.of('Project', ('internalId',))} }} }}"
        )

    data, _ = client.ask(build, {"entity": entity, "project": project})
    found = (data.get("project") or {}).get("internalId")
    return int(found) if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()) else None


def upsert_project(client: Client, entity: str, project: str, *, description: str | None = None) -> None:
    """Make a project, or change its description."""
    given = {
        "entityName": ("String", entity),
        "name": ("String", project),
        "description": ("String", description),
    }
    mutate(client, "upsertModel", given, "model { id name } inserted")


def upsert_sweep(
    client: Client,
    entity: str,
    project: str,
    *,
    storage_id: str | None = None,
    config: str | None = None,
    name: str | None = None,
    description: str | None = None,
    state: str | None = None,
) -> str:
    """Make a sweep from its YAML, or change the one with a storage id, where None leaves a field as it is; returns the
    id the server gave it. To make one is asked once: a second try might make two."""
    given = {
        "id": ("ID", storage_id),
        "entityName": ("String", entity),
        "projectName": ("String", project),
        "config": ("String", config),
        "displayName": ("String", name),
        "description": ("String", description),
        "state": ("String", state),
    }
    patience = NORMAL if storage_id else Patience(tries=1)
    payload = mutate(client, "upsertSweep", given, "sweep { id name }", patience=patience)
    made = (payload.get("sweep") or {}).get("name")
    if not isinstance(made, str):
        raise TerminalSourceError(f"`{client.source}` did not say which sweep it made")
    return made


def upsert_view(
    client: Client,
    entity: str,
    project: str,
    *,
    name: str,
    title: str | None,
    description: str | None,
    spec: str,
    kind: str = "runs",
) -> str:
    """Make or change a report by its name; returns its storage id. `spec` is JSON text, `kind` `runs` or
    `runs/draft`."""
    given = {
        "entityName": ("String", entity),
        "projectName": ("String", project),
        "type": ("String", kind),
        "name": ("String", name),
        "displayName": ("String", title),
        "description": ("String", description),
        "spec": ("String!", spec),
    }
    payload = mutate(client, "upsertView", given, "view { id name } inserted")
    return str((payload.get("view") or {}).get("id"))


def _check(client: Client, payload: Mapping[str, Any], what: str) -> None:
    if payload.get("success") is False:
        raise TerminalSourceError(f"`{client.source}` would not {what}: check that your key may change it")
