# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recipe, in sentences: where, what was expected and found, what to do."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from hmsa.config import dialect
from hmsa.config.schema import (
    _SECTIONS,
    OUR_SPECS,
    AnyDatasetSpec,
    AnySchedulerSpec,
    Config,
    LossTermSpec,
    OptimizerSpec,
    Origins,
    Section,
    TransformSpec,
)
from hmsa.errors import dotted, shown, suggest

MAX_PROBLEMS = 20
"""That are told at once."""


def _suggest_key(name: str, at: str, section: type[Section], tree: dict[str, Any]) -> str:
    """What to do about a key, found at `at`, that its section does not have.

    It may be near one that the section has, stand in another component of this kind, or in another section.
    """
    if not difflib.get_close_matches(name.lower(), section.model_fields):
        owners = [_type_name(spec) for spec in _alternatives(section) if name in spec.model_fields]
        if owners:
            return f"it is for the type {' or '.join(owners)}, not for {_type_name(section)}: remove it, or change type"
        if name in dialect.REMEDIES:
            return dialect.REMEDIES[name]
        elsewhere = [f"{path}.{name}" for path in _SECTIONS if name in _section_in_force(path, tree).model_fields]
        if name in Config.model_fields:
            elsewhere.append(f"{name} at the top level")
        if elsewhere and at not in elsewhere:
            return f"did you mean {' or '.join(elsewhere)}?"
    return suggest(name, section.model_fields)


def _alternatives(section: type[Section]) -> list[type[Section]]:
    """All components of the kind of this one."""
    unions = (TransformSpec, AnyDatasetSpec, OptimizerSpec, AnySchedulerSpec, LossTermSpec)
    kinds = [[get_args(tagged)[0] for tagged in get_args(get_args(union)[0])] for union in unions]
    return next((kind for kind in kinds if section in kind), [])


def _type_name(section: type[Section]) -> str:
    return get_args(section.model_fields["type"].annotation)[0]


def _section_in_force(path: str, tree: dict[str, Any]) -> type[Section]:
    """What a section's type in the recipe says; our first component of the kind where it says nothing."""
    given = tree.get(path)
    name = given.get("type") if isinstance(given, dict) else None
    return OUR_SPECS.get(name, Section) if isinstance(name, str) else _SECTIONS[path]


def _sentence(details: Any, tree: dict[str, Any], origins: Origins) -> str:
    """One of pydantic's error records as a sentence: where, what was expected and found, what to do."""
    *parts, last = details["loc"]
    location = [part for part in parts if not str(part).startswith("type:")]
    if details["type"] == "extra_forbidden" or not str(last).startswith("type:"):
        location.append(last)
    key, source = dotted(location), origins.of(location)
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        parent = str(parts[-1]) if parts else ""
        section = OUR_SPECS.get(parent.partition(":")[2]) or _SECTIONS.get(parent, Config)
        return f"{source}: expected only known keys, found {key}: {_suggest_key(str(last), key, section, tree)}"
    if kind == "missing":
        return f"{source}: expected {key} to be given, found nothing: add it"

    expected = details["msg"].replace("Input should be ", "").replace("Value error, ", "")
    expected = {
        "model_type": "a mapping (`key: value` lines)",
        "dict_type": "a mapping (`key: value` lines)",
        "list_type": "a list",
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "bool_type": "true or false",
        "too_short": f"at least {details.get('ctx', {}).get('min_length')} long",
        "too_long": f"at most {details.get('ctx', {}).get('max_length')} long",
        "string_too_short": "a text that is not empty",
    }.get(kind, expected)
    remedy = "correct it"
    names = re.findall(r"'([^']*)'", details["ctx"]["expected"]) if kind == "literal_error" else ()
    if names:
        remedy = suggest(shown(found), names)
    return f"{source}: expected {key} to be {expected}, found {shown(found)}: {remedy}"
