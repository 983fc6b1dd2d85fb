# SPDX-License-Identifier: Apache-2.0
"""Looking into a network of several scales: what each of them says, and how much of the answer it decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle import Tensor

from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, class_softmax, undo_transforms
from hmsa.inference.network import FusedNetwork


@dataclass(frozen=True)
class Insight:
    """What happens inside a network for one image; of every scale, the smallest first.

    All is averaged over tiles, flips and outer scales as the answer is, so that the shares still sum to 1.
    """

    scores: Tensor  # [1, K, H, W], see `class_scores`
    attention: dict[float, np.ndarray]  # float32 [H, W]: how much of a scale's answer is taken, see `fuse_scales`
    decided: dict[float, np.ndarray]  # float32 [H, W]: what share of the answer is its, see `decided_shares`
    scales: dict[float, np.ndarray]  # uint8 [H, W]: the classes that it gives alone; empty unless asked for


def look_into(
    network: FusedNetwork,
    image: Tensor,
    options: InferenceOptions,
    *,
    trans_info: Iterable[tuple[str, Sequence[int]]] = (),
    size: Sequence[int] | None = None,
    alone: bool = False,
) -> Insight:
    """Run a network once, and keep what it is put together from.

    Args:
        image: float32 [1, C, h, w], normalised.
        trans_info, size: see `undo_transforms`.
        alone: whether the scales are asked for what they say alone, which takes memory for their logits.
    """
    count = len(network.scales)
    answers = 1 + count * alone  # groups of logits in what the network gives

    def parts(found: Tensor) -> list[Tensor]:
        """The groups of logits, [N, K, h, w] each, and the maps [N, 2 S, h, w]."""
        classes = (found.shape[1] - 2 * count) // answers
        return paddle.split(found, [classes] * answers + [2 * count], axis=1)

    def softmax(found: Tensor) -> Tensor:
        *logits, maps = parts(found)
        return paddle.concat([*map(class_softmax, logits), maps], axis=1)

    with paddle.no_grad():
        found = class_scores(partial(network.inside, alone=alone), image, options, softmax)
        scores, *each, maps = parts(undo_transforms(found, trans_info, size))
        attention, decided = maps[0].numpy().reshape([2, count, *maps.shape[2:]])

    return Insight(
        scores=scores,
        attention=dict(zip(network.scales, attention)),
        decided=dict(zip(network.scales, decided)),
        scales=dict(zip(network.scales, map(best_classes, each))),
    )
