# SPDX-License-Identifier: Apache-2.0
"""YAML as recipes use it: plain values, every key once, bounded in size and depth."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hmsa.errors import shown

MAX_CHARACTERS = 100_000
"""Of a recipe with its bases, also with every alias written out; real ones have some thousands."""

MAX_LEVELS = 32
"""Of mappings and lists in one another."""

_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = [*(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")), _MERGE]
_TAGS = {
    yaml.ScalarNode: _SCALARS,
    yaml.SequenceNode: ["tag:yaml.org,2002:seq"],
    yaml.MappingNode: ["tag:yaml.org,2002:map"],
}


class _Loader(yaml.SafeLoader):
    """YAML for recipes: `1e-4` is a number, a date is a text, a mapping's keys are texts and given once."""

    room = MAX_CHARACTERS  # for what is still to come, every alias written out

    def value(self, node: yaml.Node, level: int) -> Any:
        """What a node stands for that is in so many mappings and lists; aliases are written out, so a loop ends too."""
        self.room -= 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.room < 0:
            raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters with every alias written out: write less")
        if level > MAX_LEVELS:
            raise yaml.YAMLError("too many levels of nesting: flatten it")
        if node.tag not in _TAGS[type(node)]:
            raise yaml.YAMLError(f"the tag {shown(node.tag)} {_place(node)}, which recipes do not use: remove it")

        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, level + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(part, level + 1) for part in node.value]
        value = self.construct_object(node)
        if value != value or (isinstance(value, int) and abs(value) >= 2**63):
            raise yaml.YAMLError(f"no number, or one of more than 63 bits, {_place(node)}: correct it")
        if isinstance(value, str):
            value.encode()  # which half a character ("\ud800") does not survive
        return value

    def _mapping(self, node: yaml.MappingNode, level: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:  # `<<: *anchor`, whose keys may be overridden
                found = self.value(value_node, level)
                for part in found if isinstance(found, list) else [found]:
                    merged = {**part, **merged}
                continue
            key = self.value(key_node, level)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {shown(key)} {_place(key_node)}, which is not a text: put it in quotes")
            if key in own:
                raise yaml.YAMLError(f"the key {shown(key)} twice in one mapping, again {_place(key_node)}: remove one")
            own[key] = self.value(value_node, level)
        return {**merged, **own}


def _place(node: yaml.Node) -> str:
    return f"on line {node.start_mark.line + 1}"


_Loader.add_constructor(_MERGE, _Loader.construct_yaml_str)  # where `<<` is a value
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _SCALARS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def one_line(value: Any) -> str:
    """A value as YAML on one line, from which `parse` reads it; tuples become lists."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return text.strip()[1:-1]


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(text: str, level: int = 0) -> Any:
    """YAML text -> None, bool, int, float, str, lists and dicts of them; nothing is in two places.

    `level` is how many mappings and lists it will stand in.

    Raises:
        yaml.YAMLError: with what was found in its text, on one line.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters: write less")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.value(node, level)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels of nesting: flatten it") from error
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:  # such as `!!bool x`
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise yaml.YAMLError(" ".join(str(error).split())) from error
