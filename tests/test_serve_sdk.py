"""Every GraphQL text that the installed `wandb` sends for runs, projects, files, sweeps and artifact logging is
valid here. A new release of the SDK that asks for more fails this test by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from graphql import parse, validate

from mirror.server.execution import schema

GENERATED = ["wandb.apis._generated.operations", "wandb.sdk.artifacts._generated.operations"]
HAND_WRITTEN = ["apis/public/runs.py", "apis/public/files.py", "apis/public/summary.py", "apis/public/reports.py"]

OUT_OF_SCOPE = {
    # users, teams and keys of an organization
    "CreateInvite", "CreateServiceAccount", "CreateTeam", "CreateUserFromAdmin", "DeleteApiKey", "DeleteInvite",
    "GenerateApiKey",
    # registries
    "CreateRegistryMembers", "DeleteRegistry", "DeleteRegistryMembers", "FetchAdvancedRegistryFeatures",
    "FetchRegistries", "FetchRegistry", "RegistryCollections", "RegistryTeamMembers",
    "RegistryUserMembers", "RegistryVersions", "RenameRegistry", "UpdateTeamRegistryRole", "UpdateUserRegistryRole",
    "UpsertRegistry",
}  # fmt: skip

CORE_OUT_OF_SCOPE = {
    "CreateCustomChart",
    "CreateDefaultResourceConfig", "CreateRunQueue", "EnqueueSweepRun",
    "UpsertRunQueue",
}  # fmt: skip
"""What the Go sidecar can send for sweeps that a client schedules, launch queues and charts."""


def python_operations() -> Iterator[tuple[str, str]]:
    for module in GENERATED:
        found = importlib.import_module(module)
        for name in found.__all__:
            text = getattr(found, name)
            yield re.findall(r"(?:query|mutation) (\w+)", text)[0], text


def hand_written_operations() -> Iterator[tuple[str, str]]:
    """Queries in string literals of modules, with the run fragments they name put in."""
    from wandb.apis.public import runs
    from wandb.apis.public.files import FILE_FRAGMENT

    fragments = {"RunFragment": runs.RUN_FRAGMENT, "RunFilesFragment": FILE_FRAGMENT}
    fragments["LightweightRunFragment"] = runs.LIGHTWEIGHT_RUN_FRAGMENT
    for path in HAND_WRITTEN:
        source = (Path(wandb.__file__).parent / path).read_text()
        for text in re.findall(r'"""(?:#graphql)?\s*((?:query|mutation) \w+.*?)"""', source, re.DOTALL):
            text = text.replace("{fragment_name}", "RunFragment").replace("{{", "{").replace("}}", "}")
            if "deleteArtifacts" in text:  # made with str.format
                text = text.replace("$id: ID!,\n                {}", "$id: ID!").replace(
                    "id: $id,\n                    {}", "id: $id"
                )
            text = re.sub(r"^\s*\{(fragment|FILE_FRAGMENT|\})?\}?\s*$", "", text, flags=re.MULTILINE)
            for node in ("history", "events") if "run(name: $name) { {}(" in text else ("",):
                whole = text.replace("{}(", f"{node}(")
                used = [f for name, f in fragments.items() if f"...{name}" in whole]
                yield re.findall(r"(?:query|mutation) (\w+)", whole)[0], balanced(whole) + "\n".join(used)


def core_operations() -> Iterator[tuple[str, str]]:
    """Queries in the Go sidecar, found in its bytes: they are stored as indented text."""
    data = (Path(wandb.__file__).parent / "bin" / "wandb-core").read_bytes()
    for match in re.finditer(
        rb"\n((?:query|mutation) [A-Z]\w+ [({](?:[^\0]*?\n)\}\n(?:fragment [^\0]*?\n\}\n)*)", data
    ):
        text = match[1].decode("utf-8", "replace")
        yield text.split()[1].strip("{("), text


def balanced(text: str) -> str:
    text = text.rstrip()
    while text.count("}") > text.count("{") and text.endswith("}"):
        text = text[:-1].rstrip()
    return text + "\n"


def problems(text: str) -> list[str]:
    return [error.message for error in validate(schema(), parse(text))]


OPERATIONS = [(n, t) for n, t in [*python_operations(), *hand_written_operations()] if n not in OUT_OF_SCOPE]


@pytest.mark.parametrize(("name", "text"), OPERATIONS, ids=[f"{i}-{n}" for i, (n, _) in enumerate(OPERATIONS)])
def test_what_the_python_part_asks_is_understood(name: str, text: str) -> None:
    assert problems(text) == []


def test_what_the_go_sidecar_asks_is_understood() -> None:
    found = dict(core_operations())
    assert {"UpsertBucket", "RunResumeStatus", "HistoryPage", "RunParquetHistory", "CreateRunFiles", "Viewer"} <= set(
        found
    )
    assert {name: p for name, text in found.items() if name not in CORE_OUT_OF_SCOPE and (p := problems(text))} == {}


def test_what_is_out_of_scope_is_still_refused_here() -> None:
    """When one of these works, it leaves the list."""
    found = dict(python_operations())
    assert [name for name in OUT_OF_SCOPE if name in found and not problems(found[name])] == []


def test_the_hand_written_queries_are_found() -> None:
    names = {name for name, _ in hand_written_operations()}
    assert {"Runs", "Run", "RunState", "UpsertBucket", "DeleteRun", "RunSampledHistory", "RunFullHistory"} <= names
    assert {"RunFiles", "deleteFiles", "CreateRunFiles", "RunHistoryKeys", "ProjectViews"} <= names
