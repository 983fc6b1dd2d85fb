# SPDX-License-Identifier: Apache-2.0
"""The eight losses of the recipe, forward and backward, on four outputs [1, 19, 1024, 2048]."""

from __future__ import annotations

from typing import Any, Callable

import theirs
from timing import Run, measure, memory, row, times

SHAPE = (1, 19, 1024, 2048)


def ours() -> Run:
    from hmsa.system.environment import prepare

    prepare()
    from hmsa.losses import WeightedLoss
    from hmsa.losses.bootstrapped_cross_entropy import BootstrappedCrossEntropyLoss
    from hmsa.losses.dice import DiceLoss

    common = {"weight": None, "ignore_index": 255}
    terms = {
        "dice": DiceLoss(smooth=1.0, **common),
        "bootstrapped": BootstrappedCrossEntropyLoss(**theirs.BOOTSTRAPPED, **common),
    }
    loss = WeightedLoss(terms=terms, weights=theirs.WEIGHTS)
    return forward_backward(lambda outputs, labels: loss(outputs, labels)[0])


def paddleseg() -> Run:
    return forward_backward(lambda outputs, labels: theirs.total_loss(list(outputs.values()), labels))


def forward_backward(loss: Callable[[dict[str, Any], Any], Any]) -> Run:
    import paddle

    paddle.seed(0)
    outputs = {name: paddle.randn(SHAPE) for name in theirs.WEIGHTS}
    for logits in outputs.values():
        logits.stop_gradient = False
    labels = paddle.randint(0, SHAPE[1], [SHAPE[0], *SHAPE[2:]])

    def run() -> None:
        loss(outputs, labels).backward()
        for logits in outputs.values():
            logits.clear_gradient(False)  # gives the memory back

    return run


def main() -> None:
    measured = measure({"theirs": paddleseg, "ours": ours})
    what = f"eight losses, forward and backward, 4 x {list(SHAPE)}"
    row(f"{what}: time", "paddleseg 2.8.0", *times(measured))
    row(f"{what}: memory", "paddleseg 2.8.0", *memory(measured))


if __name__ == "__main__":
    main()
