# SPDX-License-Identifier: Apache-2.0
"""Parts of a network, by the names of its attributes: left as they are, or trained at a rate of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import hmsa.system.prepared  # noqa: F401

from paddle import nn

from hmsa.errors import UsageError, shown, suggest


def find_parts(model: nn.Layer, names: Iterable[str]) -> dict[str, nn.Layer]:
    """The parts of these names, such as "backbone" or "backbone.stage4".

    Raises:
        UsageError: there is no part of a name, or nothing to train in it.
    """
    parts = {name: part for name, part in model.named_sublayers() if any(True for _ in part.parameters())}
    for name in names:
        if name not in parts:
            whole = [known for known in parts if "." not in known]
            beside = [known for known in parts if known.rpartition(".")[0] == name.rpartition(".")[0]]
            raise UsageError(f"expected a part of the network, found {shown(name)}: {suggest(name, beside or whole)}")
    return {name: parts[name] for name in names}


def freeze(model: nn.Layer, names: Iterable[str]) -> None:
    """Leave parts of the network as they are: their parameters, and the running statistics of their normalisations,
    which normalise by these in training too.

    Dropout goes on. To be called before anything looks for what is trained: the optimizer, the step.

    Raises:
        UsageError: see `find_parts`; or nothing would be left to train.
    """
    for part in find_parts(model, names).values():
        for parameter in part.parameters():
            parameter.stop_gradient = True
        for layer in part.sublayers(include_self=True):
            _use_running_statistics(layer)
    if all(parameter.stop_gradient for parameter in model.parameters()):
        raise UsageError("expected a part that is trained, found none: leave one out")


def _use_running_statistics(layer: Any) -> None:
    if hasattr(layer, "_use_global_stats"):
        layer._use_global_stats = True
    if type(layer) is nn.SyncBatchNorm:  # whose kernel has no such mode: Paddle asks for BatchNorm in its place
        cast(Any, layer).__class__ = nn.BatchNorm2D


def scale_rates(model: nn.Layer, factors: Mapping[str, float]) -> list[str]:
    """Train parts at the schedule's rate times a factor. Where one part lies in another, that of the inner one counts.

    To be called after the optimizer is made, as some set the factor themselves.

    Returns:
        The parts in which nothing is trained.

    Raises:
        UsageError: see `find_parts`.
    """
    parts = find_parts(model, factors)
    for name, part in sorted(parts.items()):  # inner ones after those that they lie in
        for parameter in part.parameters():
            parameter.optimize_attr["learning_rate"] = factors[name]
    return [name for name, part in parts.items() if all(parameter.stop_gradient for parameter in part.parameters())]
