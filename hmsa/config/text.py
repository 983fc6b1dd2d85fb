# SPDX-License-Identifier: Apache-2.0
"""YAML as recipes use it: plain values, every key once, bounded in size and depth."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from hmsa.errors import shown

MAX_CHARACTERS = 100_000
"""Of a recipe with its bases, also with every alias written out; real ones have some thousands."""

MAX_LEVELS = 32
"""Of mappings and lists in one another, and of files on one another."""


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML for recipes: `1e-4` is a number, a date is a text, a mapping's keys are texts and given once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # Makes an alias to a node inside itself an error.
        self.room_to_merge = MAX_CHARACTERS

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:  # such as `!!bool x`
            raise yaml.YAMLError(f"a value that cannot be read on line {_line(node)} ({error})") from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"a !!map on line {_line(node)} that is none")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == _MERGE:  # `<<: *anchor`, whose keys may be overridden
                found = self.construct_object(value_node, deep=True)
                parts = found if isinstance(found, list) else [found]
                if not all(isinstance(part, dict) for part in parts):
                    raise yaml.YAMLError(f"<< on line {line} with something else than mappings to merge: correct it")
                self.room_to_merge -= sum(map(len, parts))
                if self.room_to_merge < 0:
                    raise yaml.YAMLError(f"more keys than a recipe can have, merged on line {line}: write less")
                for part in reversed(parts):
                    merged.update(part)
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {shown(key)} on line {line}, which is not a text: put it in quotes")
            if key in own:
                raise yaml.YAMLError(f"the key {shown(key)} twice in one mapping, again on line {line}: remove one")
            own[key] = self.construct_object(value_node, deep=True)
        return {**merged, **own}

    def construct_small_int(self, node: Any) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.YAMLError(f"a number of more than 63 bits on line {_line(node)}: correct it")
        return value

    def construct_number(self, node: Any) -> float:
        value = self.construct_yaml_float(node)
        if math.isnan(value):
            raise yaml.YAMLError(f"a value that is not a number, .nan, on line {_line(node)}: correct it")
        return value

    def refuse(self, node: Any) -> None:
        raise yaml.YAMLError(f"the tag {shown(node.tag)} on line {_line(node)}, which recipes do not use: remove it")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


_PLAIN_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")]
_Loader.yaml_constructors = {
    **{tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN_TAGS},
    "tag:yaml.org,2002:int": _Loader.construct_small_int,
    "tag:yaml.org,2002:float": _Loader.construct_number,
    _MERGE: yaml.SafeLoader.construct_yaml_str,  # where it is a value
    None: _Loader.refuse,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (*_PLAIN_TAGS, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse(text: str, level: int = 0) -> Any:
    """YAML text -> None, bool, int, float, str, lists and dicts of them; nothing is in two places.

    `level` is how many mappings and lists it will stand in.

    Raises:
        yaml.YAMLError: with what was found in its text.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters: write less")
    try:
        return _written_out(yaml.load(text, Loader=_Loader), [MAX_CHARACTERS], level)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels of nesting: flatten it") from error


def _written_out(value: Any, room: list[int], level: int) -> Any:
    """A copy with every alias written out, as long as there is room: `room[0]` characters and values are left."""
    if level > MAX_LEVELS:
        raise yaml.YAMLError("too many levels of nesting: flatten it")
    room[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if room[0] < 0:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters with every alias written out: write less")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise yaml.YAMLError(f"half a character in {shown(value)}: correct it")
    if isinstance(value, list):
        return [_written_out(part, room, level + 1) for part in value]
    if isinstance(value, dict):
        return {_written_out(key, room, level): _written_out(part, room, level + 1) for key, part in value.items()}
    return value
