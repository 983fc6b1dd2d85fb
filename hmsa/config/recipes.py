# SPDX-License-Identifier: Apache-2.0
"""Recipes that ship with the package, and how they are named: without a path, with or without the ending."""

from __future__ import annotations

import os
from pathlib import Path

from hmsa.errors import nearest

_INSTALLED = Path(__file__).parents[1] / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"
"""Where they are: `configs/` of the sources, which an installation has inside the package."""

SCHEMA = FOLDER / "schema.json"
"""For editors, see `hmsa.config.reference`."""


def names() -> list[str]:
    """What can be given in place of a path; fragments for `_base_` after the recipes."""
    files = [*sorted(FOLDER.glob("*.yml")), *sorted(FOLDER.glob("_base_/*.yml"))]
    return [file.relative_to(FOLDER).with_suffix("").as_posix() for file in files]


def find(name: str, folder: str | Path = "") -> str:
    """The file that a recipe's name means, seen from `folder`: one there, else one that ships; with or without .yml.

    `configs/`, where those that ship lie in the sources, may stand before their names. What is not found is returned
    as the path that it would be.
    """
    path = Path(folder, name)
    shipped = FOLDER / Path(name).as_posix().removeprefix("configs/")
    for found in (path, Path(f"{path}.yml"), shipped, Path(f"{shipped}.yml")):
        if os.path.isfile(found):  # noqa: PTH113 (False also for a name that no file can have)
            return str(found)
    return str(path)


def advice(path: str) -> str:
    """What to do about a recipe that is not there."""
    wanted = Path(path).name.removesuffix(".yml")
    beside = {file.stem: str(file) for file in sorted(Path(path).parent.glob("*.yml"))} if "\0" not in path else {}
    ships = {Path(name).name: f"{name}, which ships" for name in names()}
    near = nearest(wanted, [*beside, *ships])
    if near:
        return f"did you mean {beside.get(near) or ships[near]}?"
    return f"check the path, or name one that ships ({', '.join(name for name in names() if '/' not in name)})"
