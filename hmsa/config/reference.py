# SPDX-License-Identifier: Apache-2.0
"""What a recipe may hold, for editors (a JSON schema) and for readers (Markdown).

Both are made of the Specs: their keys, types, bounds and defaults, and the sentence below each key. What a component
does is said by the class that it names. Nothing here is needed to read a recipe.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from hmsa.components import KINDS, NetworkSpec
from hmsa.config import dialect
from hmsa.config.fields import Component, Section
from hmsa.config.schema import ClassSpec, Config, IgnoreSpec, InferenceSpec, LossSpec

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"

LISTED = ("transform", "loss")
"""Kinds that stand in lists, where each says its type and all it needs; mappings may inherit that from a base."""

PLURALS = {"model": "networks", "dataset": "data sets", "loss": "losses"}
"""Of kinds that do not end in an s more."""


# --- The JSON schema. ---


def json_schema() -> Schema:
    """The JSON schema of a recipe's file, which need not be whole, as the rest may come from files in `_base_`."""
    _, found = models_json_schema([(spec, "validation") for spec in specs()])
    definitions = found["$defs"]
    for spec in specs():
        _complete(definitions[spec.__name__], spec)
    _add_other_forms(definitions)

    for kind, table in KINDS.items():
        for name, (spec, place) in table.items():
            definitions[name] = _component(definitions[spec.__name__], name, spec, place)
        definitions[kind] = _union(kind, list(table))
    root = definitions.pop("Config")
    root["properties"]["model"] = {"kind": "model", "description": sentence(Config, "model")}
    del root["properties"]["_inherited_"]
    said = {"title": "Recipe of hmsa", "description": "Sizes are [width, height]."}
    whole = {"$schema": DRAFT, **root, **said}
    whole = _tidied({**whole, "$defs": definitions})

    used = _used(whole, whole["$defs"])
    return {**whole, "$defs": {name: schema for name, schema in whole["$defs"].items() if name in used}}


def specs() -> list[type[Section]]:
    """The Specs of the recipe, of its components and of the sections in them, each once."""
    found: dict[type[Section], None] = {Config: None}
    for table in KINDS.values():
        found.update(dict.fromkeys(spec for spec, _ in table.values()))
    for spec in list(found):
        found.update(dict.fromkeys(_sections_in(spec)))
    return list(found)


def _sections_in(spec: type[Section]) -> Iterator[type[Section]]:
    for field in spec.model_fields.values():
        for part in _named_by(field.annotation):
            yield part
            yield from _sections_in(part)


def _named_by(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _named_by(part)


def _complete(schema: Schema, spec: type[Section]) -> None:
    """Add to a Spec's schema, in place, what its keys are; what a base may give is not required."""
    for key, value in schema["properties"].items():
        value["description"] = sentence(spec, key)
        if isinstance(value.get("default"), dict):
            del value["default"]  # of a section whose keys have theirs
        if key != key.lower():
            schema["properties"] = {**schema["properties"], key.lower(): _former(value, key.lower(), key)}
    _allow_inherited(schema)

    listed = {ClassSpec, *(listed for kind in LISTED for listed, _ in KINDS[kind].values())}
    required = [key for key in schema.pop("required", ()) if key == key.lower() and spec in listed]
    if required:
        schema["required"] = required


def _allow_inherited(schema: Schema) -> None:
    described = "false drops what this mapping would inherit."
    schema["properties"]["_inherited_"] = {"type": "boolean", "description": described}


def _former(schema: Schema, theirs: str, ours: str) -> Schema:
    """Of a key that PaddleSeg's files have in place of ours."""
    return {**schema, "description": f"PaddleSeg's word for {ours}.", "deprecated": True}


def _add_other_forms(definitions: dict[str, Schema]) -> None:
    """Add, in place, PaddleSeg's words, and the forms of values that reading a recipe brings into the usual one."""
    numbers = {"type": "array", "items": {"type": "number"}}
    root, network, loss, inference = (
        definitions[spec.__name__]["properties"] for spec in (Config, NetworkSpec, LossSpec, InferenceSpec)
    )
    name = {"type": "string"}
    bases = "File or files that this one is laid over, seen from its folder; recipes that ship go without a path."
    base = {"anyOf": [name, {"type": "array", "items": name}], "description": bases}
    definitions["Config"]["properties"] = root = {"_base_": base, **root}
    rate = {
        "value": _former({"type": "number"}, "value", "lr_scheduler.learning_rate"),
        "decay": _former({"kind": "scheduler"}, "decay", "lr_scheduler"),
    }
    root["learning_rate"] = _former({"type": "object", "properties": rate}, "learning_rate", "lr_scheduler")
    network["n_scales"] = _former(network["scales"], "n_scales", "scales")

    values = definitions[IgnoreSpec.__name__]["properties"]["values"]
    root["ignore"]["anyOf"].append({key: value for key, value in values.items() if key != "description"})
    root["freeze"]["anyOf"].append({"type": "string"})
    scales = inference["scales"]
    inference["scales"] = {
        "anyOf": [{key: scales.pop(key) for key in ("type", "items", "minItems")}, {"type": "number"}],
        **scales,
    }
    weight = loss["coef"]["additionalProperties"]
    outputs: Schema = {"type": "object", "properties": dict.fromkeys(dialect.OUTPUTS, weight)}
    _allow_inherited(outputs)
    described = "PaddleSeg's form: a weight for each loss on each output."
    by_position = {**numbers, "description": described, "deprecated": True}
    by_name = {**outputs, "additionalProperties": False}
    loss["coef"] = {"anyOf": [by_name, by_position], "description": loss["coef"]["description"]}


def _component(schema: Schema, name: str, spec: type[Component], place: str) -> Schema:
    """The schema of a component of this name, from that of its Spec."""
    described = _what_it_does(place) or schema.get("description", "")
    own = {"const": name, "description": sentence(spec, "type")}
    return {**schema, "properties": {**schema["properties"], "type": own}, "description": described}


def _union(kind: str, names: list[str]) -> Schema:
    """The schema of a component of this kind: that of its type if it is one of ours, else nothing is checked here."""
    ours = [{"$ref": f"#/$defs/{name}"} for name in names]
    cases: list[Schema] = [
        {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": reference}
        for name, reference in zip(names, ours)
    ]
    if kind not in LISTED:
        cases.append({"if": {"not": {"required": ["type"]}}, "then": {"anyOf": ours}})
    described = f"Name of a {kind} of this project, or of PaddleSeg's or Paddle's, whose keys editors do not check."
    return {
        "type": "object",
        "properties": {"type": {"anyOf": [{"enum": names}, {"type": "string"}], "description": described}},
        **({"required": ["type"]} if kind in LISTED else {}),
        "allOf": cases,
    }


def _tidied(node: Any) -> Any:
    """A copy with kinds as references, without pydantic's titles, and with every description on one line."""
    if isinstance(node, list):
        return [_tidied(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: value for key, value in node.items() if key != "title" or "$schema" in node or isinstance(value, dict)}
    if isinstance(node.get("kind"), str):
        node = {"$ref": f"#/$defs/{node.pop('kind')}", **node}
    if isinstance(node.get("description"), str):
        node["description"] = " ".join(node["description"].split())
    return {key: _tidied(value) for key, value in node.items()}


def _used(schema: Schema, definitions: dict[str, Schema]) -> set[str]:
    """Names of the definitions that a schema refers to, by way of others too."""
    used: set[str] = set()
    found = _references(schema)
    while found - used:
        used |= found
        found = set().union(*(_references(definitions[name]) for name in found))
    return used


def _references(schema: Schema) -> set[str]:
    own = {key: value for key, value in schema.items() if key != "$defs"}
    return set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(own)))


# --- Sentences. ---


@cache
def _tree(module: str) -> ast.Module:
    """The source of a module of this project, which is not imported: that may load Paddle."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _sentences(module: str, name: str) -> dict[str, str]:
    """Key -> the text below it, of a class in a module's source."""
    body = next((n.body for n in ast.walk(_tree(module)) if isinstance(n, ast.ClassDef) and n.name == name), [])
    return {
        key.target.id: text.value.value
        for key, text in zip(body, body[1:])
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def sentence(spec: type[Section], key: str) -> str:
    """What a key is: the text below it in its Spec, or in one that this is made from; "" if there is none."""
    homes = (home for home in spec.__mro__ if home.__module__.startswith("hmsa."))
    texts = (_sentences(home.__module__, home.__name__).get(key, "") for home in homes)
    return next(filter(None, texts), "")


def _what_it_does(place: str) -> str:
    """The first paragraph of what stands at "module:attribute", if that is of this project and has one."""
    module, _, name = place.partition(":")
    if not module.startswith("hmsa."):
        return ""
    nodes = (node for node in ast.walk(_tree(module)) if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    text = next((ast.get_docstring(node) or "" for node in nodes if node.name == name), "")
    return re.sub(":$", ".", text.partition("\n\n")[0])


# --- Markdown. ---


INTRODUCTION = """# Configuration

Every key of a recipe: what it may hold, its default, and what it is. Keys without a default that cannot be null must
be given, in the recipe or in a file that `_base_` names. `_inherited_: false` in a mapping drops what it would inherit.
Sizes are [width, height]. Paths of data and weights are relative to where the command runs.

This page is written by `hmsa schema --markdown`. The JSON schema for editors has the same sentences: `hmsa schema`
prints it, and a recipe whose first line is `# yaml-language-server: $schema=<path of the schema>` is completed and
checked while it is written. PaddleSeg's words for keys are taken as well; `configs/README.md` says which."""


def markdown() -> str:
    """The page docs/configuration.md."""
    schema = json_schema()
    definitions = schema["$defs"]
    parts = [INTRODUCTION, "## The recipe", _table(schema)]
    for key, value in schema["properties"].items():
        for name in _own_sections(value, definitions):
            parts += [f"## `{key}`", definitions[name].get("description", ""), _table(definitions[name])]
    for kind, table in KINDS.items():
        parts.append(f"## {_plural(kind).capitalize()}")
        for names in _alike(definitions, list(table)):
            component = definitions[names[0]]
            heading = ", ".join(f"`{name}`" for name in names)
            parts += [f"### {heading}", component.get("description", ""), _table(component)]
            for key, value in component["properties"].items():
                for name in _own_sections(value, definitions):
                    parts += [f"#### `{key}`", definitions[name].get("description", ""), _table(definitions[name])]
    return "\n\n".join(filter(None, parts)) + "\n"


def _plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


def _own_sections(value: Schema, definitions: dict[str, Schema]) -> list[str]:
    """The sections, which are no components, that a key holds."""
    if value.get("deprecated"):
        return []
    parts = [value, value.get("items", {}), *value.get("anyOf", ())]
    parts += [part["items"] for part in parts if isinstance(part.get("items"), dict)]
    names = (str(part.get("$ref", "")).rpartition("/")[2] for part in parts)
    return list(dict.fromkeys(name for name in names if name and name not in KINDS))


def _alike(definitions: dict[str, Schema], names: list[str]) -> list[list[str]]:
    """Names of components, together where they differ by nothing else."""
    groups: dict[str, list[str]] = {}
    for name in names:
        schema = {**definitions[name], "properties": {**definitions[name]["properties"], "type": None}}
        groups.setdefault(str(schema), []).append(name)
    return list(groups.values())


def _table(schema: Schema) -> str:
    rows = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for key, value in schema["properties"].items():
        if key not in ("type", "_inherited_") and not value.get("deprecated"):
            default = f"`{_plain(value['default'])}`" if value.get("default") is not None else ""
            rows.append(f"| `{key}` | {_values(value)} | {default} | {value['description']} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _values(schema: Schema) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        forms = [form for form in schema["anyOf"] if not form.get("deprecated")]
        return ", or ".join(dict.fromkeys(map(_values, forms)))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        anchor = _plural(name).replace(" ", "-")
        return f"one of the [{_plural(name)}](#{anchor})" if name in KINDS else "mapping, below"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{_plain(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        least, most, items = schema.get("minItems"), schema.get("maxItems"), schema["items"]
        count = f"{most} " if least == most and most else f"{least} to {most} " if most else ""
        return f"list of {count}{items.get('description') or _plural_of_values(_values(items))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of names to {_plural_of_values(_values(schema['additionalProperties']))}"
    if kind == "object":
        return "mapping of " + ", ".join(f"`{key}`" for key in schema.get("properties", {}) if key != "_inherited_")
    words = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    return words.get(str(kind), str(kind or "anything")) + _bounds(schema)


def _plural_of_values(words: str) -> str:
    first, bracket, rest = words.partition(" (")
    return f"{first}s{bracket}{rest}" if first.split()[-1] in ("number", "text") else words.replace("one of ", "", 1)


_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _bounds(schema: Schema) -> str:
    """Those that a person meets."""
    limits = {key: f"{value:g}" for key, value in schema.items() if key in _LIMITS and abs(value) < 1e6}
    if len(limits) < 2:
        return "".join(f" ({_LIMITS[key]} {value})" for key, value in limits.items())
    low = limits.get("minimum") or f"above {limits['exclusiveMinimum']}"
    high = limits.get("maximum") or f"below {limits['exclusiveMaximum']}"
    return f" ({low} to {high})"


def _plain(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
