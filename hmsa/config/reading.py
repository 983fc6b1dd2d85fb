# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML files with `_base_`, options `key=value`, and the schema everything is checked against.

Reading a recipe takes milliseconds and does not import Paddle. Components of this project are checked down to their
arguments here; a `type` this module does not know is taken as it stands and looked up by `hmsa.builder`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hmsa.components import checked_specs
from hmsa.config import dialect, recipes
from hmsa.config.problems import MAX_PROBLEMS, SECTIONS, problems_between_sections, sentence
from hmsa.config.schema import Config, Origins
from hmsa.config.text import MAX_CHARACTERS, MAX_LEVELS, parse
from hmsa.errors import UsageError, dotted, shown

# --- Reading. ---


def load_config(path: str | os.PathLike[str], opts: Iterable[str] = (), *, opts_name: str = "opts") -> Config:
    """Read a recipe, lay it over its bases, apply `opts` ("dotted.key=YAML value"), and check all of it.

    `path` may be the name of a recipe that ships, such as "mscale_ocr_toy". `_base_` names one file or several,
    relative to the file it stands in, or such names; of several the first that has a key wins, as in PaddleSeg.
    Mappings are merged, lists replaced; `_inherited_: false` in a mapping drops what it would inherit.

    Raises:
        UsageError: one line for each problem found (at most 20), each naming its file, or `opts_name` for an option.
    """
    path = recipes.find(os.fspath(path))
    origins = Origins(opts_name)
    tree = _without_flags(_read_with_bases(path, (), [MAX_CHARACTERS], origins), path)
    for option in opts:
        key, value = _set_option(tree, option, opts_name)
        if origins.options.setdefault(key, value) != value:
            raise UsageError(
                f"{opts_name}: expected {dotted(key.split('.'))} once, by an option or by a flag of its own, found "
                f"both {shown(origins.options[key])} and {shown(value)}: leave one out"
            )
    tree = dialect.with_in_channels(_native(tree, path))
    for section, mode in (("train_dataset", "train"), ("val_dataset", "val")):
        if isinstance(tree.get(section), dict):
            tree[section] = {"mode": mode, **tree[section]}
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [sentence(detail, tree, origins) for detail in details[:MAX_PROBLEMS]]
        if len(details) > MAX_PROBLEMS:
            problems.append(f"{path}: expected a recipe, found {len(details) - MAX_PROBLEMS} more problems like these")
        raise UsageError(*problems) from error
    problems = [
        f"{origins.of(key.split('.'))}: expected {key} {problem}" for key, problem in problems_between_sections(config)
    ]
    if problems:
        raise UsageError(*problems)
    config._origins = origins
    return config


def _native(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """A file's tree in our words: PaddleSeg's keys moved, names in our spelling; what is native stays as it is."""
    return dialect.to_native(dialect.spelled(tree, checked_specs(), _keys(), source), source)


def _keys() -> dict[str, str]:
    """Keys of all sections as they are spelled, by themselves in lower case."""
    specs = (*checked_specs().values(), *SECTIONS.values(), Config)
    return {key.lower(): key for spec in specs for key in spec.model_fields}


def merge(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """`upper` laid over `lower`: mappings merge, anything else replaces; `_inherited_: false` replaces a mapping."""
    if upper.get("_inherited_") is False:
        return upper
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        merged[key] = merge(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _read(path: str, room: list[int]) -> dict[str, Any]:
    """One file's tree; `room[0]`, the bytes that may still be read, becomes smaller."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(room[0] + 1)
        room[0] -= len(data)
        if room[0] < 0:
            raise UsageError(
                f"{path}: expected a recipe of at most {MAX_CHARACTERS} bytes with its bases, found more: check that "
                "it is one"
            )
        tree = parse(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected YAML in UTF-8, found other bytes: check that it is a text file") from error
    except (FileNotFoundError, ValueError) as error:  # the second: a zero byte in the path
        raise UsageError(f"{path}: expected a YAML file, found none: {recipes.advice(path)}") from error
    except OSError as error:
        raise UsageError(f"{path}: expected a readable YAML file, found {error.strerror}: check the path") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: expected YAML, but found: {error}") from error
    if not isinstance(tree, dict):
        found = "an empty file" if tree is None else shown(tree)
        raise UsageError(f"{path}: expected `key: value` lines such as `model: ...`, found {found}: check the file")
    return tree


def _read_with_bases(path: str, above: tuple[str, ...], room: list[int], origins: Origins) -> dict[str, Any]:
    """The native tree of `path` laid over its bases; `above` are the files that led here, `room` see `_read`.

    All files are noted in `origins`.
    """
    if any(os.path.realpath(path) == os.path.realpath(other) for other in above):
        chain = " -> ".join((*above, path))
        raise UsageError(f"{path}: expected _base_ to end at some file, found a circle ({chain}): remove one _base_")
    tree = _read(path, room)
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    # A text that cannot be printed, such as one with a zero byte, is no file's name.
    if not isinstance(bases, list) or not all(isinstance(base, str) and base.isprintable() for base in bases):
        raise UsageError(
            f"{path}: expected _base_ to be a file name or a list of them, found {shown(bases)}: correct it"
        )
    tree = _native(tree, path)
    origins.files.append((path, _without_flags(tree, path)))
    files = [recipes.find(base, Path(path).parent) for base in bases]
    layers = [_read_with_bases(file, (*above, path), room, origins) for file in files]
    lower: dict[str, Any] = {}
    for layer in reversed(layers):
        lower = merge(layer, lower)
    return merge(tree, lower)


def _without_flags(tree: Any, path: str) -> Any:
    """A copy of the tree without `_inherited_`."""
    if isinstance(tree, list):
        return [_without_flags(value, path) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if not isinstance(tree.get("_inherited_", True), bool):
        found = shown(tree["_inherited_"])
        raise UsageError(f"{path}: expected _inherited_ to be true or false, found {found}: correct it")
    return {key: _without_flags(value, path) for key, value in tree.items() if key != "_inherited_"}


def _set_option(tree: dict[str, Any], option: str, opts_name: str) -> tuple[str, Any]:
    """Apply one "key=value" to the tree, in place -> its native dotted key, and the value."""
    key, equals, text = option.partition("=")
    parts = dialect.native_key(key).split(".")
    if not equals or not all(parts) or not key.isprintable() or len(parts) > MAX_LEVELS:
        raise UsageError(
            f"{opts_name}: expected key=value such as optimizer.weight_decay=0.001, found {shown(option)}: correct it"
        )
    try:
        value = parse(text, level=len(parts))
    except yaml.YAMLError as error:
        raise UsageError(
            f"{opts_name}: expected the value of {dotted(parts)} to be YAML, found {shown(text)}: {error}"
        ) from error

    parent: Any = tree
    for depth, part in enumerate(parts):
        above = dotted(parts[:depth])
        place: Any = part
        if not isinstance(parent, (dict, list)):
            raise UsageError(
                f"{opts_name}: expected {above} to be a mapping, found {shown(parent)} on the way to {dotted(parts)}: "
                "correct the key"
            )
        if isinstance(parent, list):
            if part not in map(str, range(len(parent))):
                raise UsageError(
                    f"{opts_name}: expected {above} to be followed by a position below {len(parent)}, found "
                    f"{dotted([part])} in {dotted(parts)}: correct it"
                )
            place = int(part)
        elif part not in parent and _keys().get(part.lower()) in parent:
            place = parts[depth] = _keys()[part.lower()]
        if depth == len(parts) - 1:
            parent[place] = value
        elif isinstance(parent, dict) and parent.get(place) is None:
            parent[place] = {}
        parent = parent[place]
    return ".".join(parts), value
