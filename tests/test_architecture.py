"""The folder list is the architecture: a room knows the rooms to its left and nothing to its right."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mirror"
GROUND = {
    "records", "manifests", "forks", "errors", "paths", "credentials", "resources", "pool", "portions", "memory",
    "__init__",
}  # fmt: skip
ALLOWED = {
    "wandb": set(),
    "sources": {"wandb"},
    "store": set(),
    "sync": {"wandb", "sources", "store"},
    "query": {"store"},
    "objects": {"query", "store", "wandb"},  # wandb/ for Api(online=True) alone
    "importers": {"wandb", "sources", "store", "sync", "query"},
    "verify": {"wandb", "sources", "store", "query", "importers"},
    "server": {"query", "store"},
    "api": {"query", "store"},
    "filters": {"query"},
    "demo": {"api", "query", "store"},
    "cli": {"sources", "sync", "verify", "store", "query", "objects", "importers", "server", "api", "filters", "demo"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of this package that a module imports, at its top or inside a function, but for types alone."""
    return {parts[1] for name in names(path) if (parts := name.split("."))[0] == "mirror" and len(parts) > 1}


def names(path: Path) -> list[str]:
    """Everything a module imports but for types alone, as `package.module.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here in GROUND or here == "__main__":
        # mirror/__init__.py hands out names of all rooms, but imports none of them itself.
        assert here == "__main__" or imported(path) <= GROUND
        return
    known = imported(path) & (ALLOWED.keys() | GROUND)
    assert known - {here} - GROUND - {"__version__"} <= ALLOWED[here], f"{here} must not know {known}"


def test_every_room_is_in_the_list() -> None:
    assert {room(path) for path in MODULES} == ALLOWED.keys() | GROUND | {"__main__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_hold_one_concept(path: Path) -> None:
    assert "util" not in path.stem and "helper" not in path.stem
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_only_one_module_knows_each_foreign_name() -> None:
    """GraphQL is spoken in wandb/ and server/, and by the demo's substitute for the SDK."""
    speakers = {room(p) for p in MODULES if "query " in p.read_text() and "graphql" in p.read_text().lower()}
    assert speakers <= {"wandb", "server", "demo", "records", "errors"}


def test_modules_that_ask_import_in_no_circle() -> None:
    modules = {path.stem: path for path in (PACKAGE / "query").glob("*.py")}
    prefix = "mirror.query."
    graph = {
        stem: {name.removeprefix(prefix).split(".")[0] for name in names(path) if name.startswith(prefix)}
        & modules.keys()
        for stem, path in modules.items()
    }
    assert graph["columns"] and list(TopologicalSorter(graph).static_order())  # CycleError names the circle
