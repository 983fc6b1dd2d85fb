# SPDX-License-Identifier: Apache-2.0
"""The YAML of PaddleSeg's CityscapesSOTA, in this project's words.

Their file differs in four places: `model.n_scales`, a `learning_rate` section with the decay inside, lower-case names,
and losses listed by position for a network that returns its four outputs once per loss.

Every file is translated as it is read, before it is laid over its bases, so a file of one dialect can inherit from a
file of the other. `--opts` are applied to the translated tree; their keys may be of either dialect, except that losses
are then addressed by name.
"""

from __future__ import annotations

import reprlib
from typing import Any

from hmsa.errors import UsageError

OUTPUTS = ("joint", "joint_aux", "low", "high")
"""The network's training outputs, in the order the reference returns them."""

_KEYS = {
    "model.n_scales": "model.scales",
    "learning_rate.value": "lr_scheduler.learning_rate",
    "learning_rate.decay": "lr_scheduler",
}
_OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD", "adam": "Adam", "adamw": "AdamW"}
_SCHEDULERS = {"poly": "PolynomialDecay"}
_LOSSES = {"diceloss": "DiceLoss", "bootstrappedcrossentropyloss": "BootstrappedCrossEntropyLoss"}


def native_key(key: str) -> str:
    """A dotted key of either dialect -> the native one."""
    for theirs, ours in _KEYS.items():
        if key == theirs or key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    return key


def to_native(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """A file's tree in either dialect -> a new, native one; what is native already stays as it is.

    Raises:
        UsageError: a value given in both dialects, or positional losses that named ones cannot express.
    """
    tree = dict(tree)
    for theirs, ours in _KEYS.items():
        _move(tree, theirs, ours, source)
    if tree.get("learning_rate") == {}:
        del tree["learning_rate"]
    for section, names in (("optimizer", _OPTIMIZERS), ("lr_scheduler", _SCHEDULERS)):
        if isinstance(tree.get(section), dict):
            tree[section] = _renamed(tree[section], names)
    if isinstance(tree.get("loss"), dict):
        tree["loss"] = _named_losses(tree["loss"], source)
    return tree


def _move(tree: dict[str, Any], theirs: str, ours: str, source: str) -> None:
    """Move the value at `theirs` to `ours`, in place; the mappings on the way are copied first."""
    section, _, key = theirs.partition(".")
    if not isinstance(tree.get(section), dict) or key not in tree[section]:
        return
    rest = dict(tree[section])
    value = rest.pop(key)
    tree[section] = rest
    section, _, key = ours.partition(".")
    moved = {key: value} if key else value
    present = {} if tree.get(section) is None else tree[section]
    if not isinstance(present, dict) or not isinstance(moved, dict):
        raise UsageError(f"{source}: expected {theirs} and {section} to be mappings, found other values: correct them")
    twice = sorted(set(moved) & set(present))
    if twice:
        raise UsageError(
            f"{source}: expected one value, found both {theirs} (PaddleSeg's key) and {section}.{twice[0]}: remove one"
        )
    tree[section] = {**present, **moved}


def _renamed(spec: Any, names: dict[str, str]) -> Any:
    """A component with its `type` in our spelling, if it is one of theirs in lower case."""
    name = spec.get("type") if isinstance(spec, dict) else None
    ours = names.get(name.replace("_", "")) if isinstance(name, str) else None
    return {**spec, "type": ours} if ours else spec


def _named_losses(loss: dict[str, Any], source: str) -> dict[str, Any]:
    """Losses by position -> by output name.

    Position i weighs output i modulo 4, as `types` and `coef` name one loss after the other, each on all four outputs.
    """
    types, coef = loss.get("types"), loss.get("coef")
    if not isinstance(types, list):
        return loss
    types = [_renamed(spec, _LOSSES) for spec in types]
    if not isinstance(coef, list):
        return {**loss, "types": types}

    count = len(OUTPUTS)
    if len(types) == 1:
        types = types * count
    groups = [types[i : i + count] for i in range(0, len(types), count)]
    weights = [coef[i : i + count] for i in range(0, len(coef), count)]
    complete = len(coef) > 0 and len(coef) % count == 0 and len(types) == len(coef)
    if not complete or any(g != [g[0]] * count for g in groups) or any(w != weights[0] for w in weights):
        raise UsageError(
            f"{source}: expected loss.coef as a mapping from {', '.join(OUTPUTS)} to weights, or {count} weights for "
            f"each loss and every loss of loss.types {count} times in a row with the same weights, found "
            f"{len(types)} types and coef {reprlib.repr(coef)}: name the outputs, e.g. coef: {{joint: 1.0, "
            "joint_aux: 0.4}"
        )
    return {**loss, "types": [g[0] for g in groups], "coef": dict(zip(OUTPUTS, weights[0]))}
