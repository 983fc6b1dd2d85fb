# SPDX-License-Identifier: Apache-2.0
"""The YAML of PaddleSeg's CityscapesSOTA, in this project's words.

Their file differs in four places: `model.n_scales`, a `learning_rate` section with the decay inside, names in lower
case (of components, and of keys such as `min_K`), and losses listed by position for a network that returns its four
outputs once per loss.

Every file is translated as it is read, before it is laid over its bases, so a file of one dialect can inherit from a
file of the other. Options are applied to the translated tree; their keys may be of either dialect, except that losses
are then addressed by name.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from hmsa.errors import UsageError

OUTPUTS = ("joint", "joint_aux", "low", "high")
"""The network's training outputs, in the order the reference returns them."""

_KEYS = {
    "model.n_scales": "model.scales",
    "learning_rate.value": "lr_scheduler.learning_rate",
    "learning_rate.decay": "lr_scheduler",
}

REMEDIES = {
    "export": "an export takes the transforms of val_dataset, as with PaddleSeg 2.8: remove it",
    "distill_loss": "there is no distillation here: remove it",
    "to_static_training": "training is eager here: remove it",
    "auc_roc": "it is not computed here: remove it",
    "grad_clip_cfg": "write clip_grad_norm, which is ClipGradByGlobalNorm, or take PaddleSeg's type Momentum or Adam",
    "custom_cfg": "take PaddleSeg's type Momentum or Adam, which have it, or remove it",
    "use_nesterov": "take PaddleSeg's type Momentum, which has it, or remove it",
    "decay_steps": "the decay takes all iterations after the warm-up: remove it",
}
"""Keys of PaddleSeg that this project does not have, and what to do about them."""


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
    if isinstance(tree.get("loss"), dict):
        tree["loss"] = _named_losses(tree["loss"], source)
    return tree


def _move(tree: dict[str, Any], theirs: str, ours: str, source: str) -> None:
    """Move the value at `theirs` to `ours`, in place; the mappings on the way are copied first."""
    section, _, key = theirs.partition(".")
    if not isinstance(tree.get(section), dict) or key not in tree[section]:
        return
    tree[section] = dict(tree[section])
    value = tree[section].pop(key)
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


def folded(name: str) -> str:
    """A component's name without what its spellings differ by: DiceLoss, diceloss and dice_loss are one."""
    return name.replace("_", "").lower()


def spelled(tree: dict[str, Any], names: Iterable[str], keys: Mapping[str, str], source: str) -> dict[str, Any]:
    """A copy of the tree in which components and their keys are spelled as here.

    Args:
        tree: a file's tree in either dialect.
        names: the components of this project.
        keys: what keys are called here, by themselves in lower case. Those of other components stay as they are.
        source: the file, for messages.

    Raises:
        UsageError: a key in two spellings.
    """
    by_folded = {**{folded(name): name for name in names}, "poly": "PolynomialDecay"}

    def visit(node: Any, ours: bool) -> Any:
        if isinstance(node, list):
            return [visit(part, ours) for part in node]
        if not isinstance(node, dict):
            return node
        node = dict(node)
        if isinstance(node.get("type"), str):
            node["type"] = by_folded.get(folded(node["type"]), node["type"])
            ours = node["type"] in by_folded.values()
        for key in list(node) if ours else ():
            here = keys.get(key.lower(), key)
            if here != key and here in node:
                raise UsageError(f"{source}: expected one value, found both {key} and {here}: remove one")
            node[here] = node.pop(key)  # All are moved, so that they keep their order.
        return {key: visit(value, ours) for key, value in node.items()}

    return visit(tree, ours=True)


def _named_losses(loss: dict[str, Any], source: str) -> dict[str, Any]:
    """Losses by position -> by output name.

    Position i weighs output i modulo 4, as `types` and `coef` name one loss after the other, each on all four outputs.
    """
    types, coef = loss.get("types"), loss.get("coef")
    if not isinstance(types, list) or not isinstance(coef, list):
        return loss

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
