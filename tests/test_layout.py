# SPDX-License-Identifier: Apache-2.0
"""Where things lie: imports go down from room to room, never in a circle, and tests mirror the rooms."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"errors", "former"},
    {"config", "models", "system"},
    {"distributed", "visualize", "toy"},
    {"weights", "datasets", "losses", "metrics", "optim"},
    {"inference"},
    {"builder", "draft", "engine", "deploy", "report"},
    {"segmenter", "serve"},
    {"hmsa", "cli"},
    {"commands", "__main__"},
]
"""Rooms, the lowest first. A room may import those below it, and those beside it as long as that is no circle. `former`
imports nothing itself: it looks names up, in any room, when somebody asks for one by its place of before."""

ALONE = {"models": {"errors"}, "toy": {"errors", "system"}}
"""Rooms that may import less than what lies below them."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.glob("hmsa/**/*.py"))}


def imports_of(module: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it; those for the type checker alone left out."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {name for name in found if name.partition(".")[0] == "hmsa"}


IMPORTS = {module: imports_of(module) for module in MODULES}


def room(module: str) -> str:
    name = module.split(".")[1] if "." in module else module
    return "config" if name == "components" else name  # what a recipe may name, and how it is read, are one room


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_module_is_in_a_room_and_every_room_exists():
    assert {room(module) for module in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert [name for name in sorted(IMPORTS[module]) if floor(name) > floor(module)] == []


@pytest.mark.parametrize("alone", ALONE)
def test_some_rooms_know_little(alone):
    known = {room(name) for module in MODULES if room(module) == alone for name in IMPORTS[module]}
    assert known - {alone} <= ALONE[alone]


def test_nothing_but_its_command_and_the_check_of_exports_draws_the_toy_world():
    drawing = {module for module in MODULES if room(module) != "toy" and "toy" in map(room, IMPORTS[module])}
    assert drawing == {"hmsa.commands.toy", "hmsa.deploy.parity"}


def test_neither_modules_nor_rooms_import_in_a_circle():
    tuple(TopologicalSorter(IMPORTS).static_order())  # else a CycleError, which names the circle
    rooms: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        rooms.setdefault(room(module), set()).update({room(name) for name in names} - {room(module)})
    tuple(TopologicalSorter(rooms).static_order())


def test_tests_mirror_the_rooms():
    folders = {path.name for path in (ROOT / "hmsa").iterdir() if (path / "__init__.py").exists()}
    assert {folder for folder in folders if not list((ROOT / "tests" / folder).glob("test_*.py"))} <= {"report"}
