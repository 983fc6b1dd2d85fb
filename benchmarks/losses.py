# SPDX-License-Identifier: Apache-2.0
"""The eight losses of the recipe, forward and backward, on four outputs [1, 19, 512, 1024]."""

from hmsa.environment import prepare

prepare()
import paddle  # noqa: E402
from paddleseg.models import losses as paddleseg_losses  # noqa: E402
from timing import compare  # noqa: E402

from hmsa.losses import BootstrappedCrossEntropyLoss, DiceLoss, WeightedLoss  # noqa: E402

WEIGHTS = {"joint": 1.0, "joint_aux": 0.4, "low": 0.05, "high": 0.05}
OPTIONS = {"min_K": 100000, "loss_th": 0.05}


def main() -> None:
    paddle.seed(0)
    outputs = {name: paddle.randn([1, 19, 512, 1024]) for name in WEIGHTS}
    for logits in outputs.values():
        logits.stop_gradient = False
    labels = paddle.randint(0, 19, [1, 512, 1024])
    terms = {"dice": DiceLoss(), "bootstrapped": BootstrappedCrossEntropyLoss(**OPTIONS)}
    loss = WeightedLoss(terms=terms, weights=WEIGHTS)
    theirs = [paddleseg_losses.DiceLoss(), paddleseg_losses.BootstrappedCrossEntropyLoss(**OPTIONS)]

    def run_theirs() -> None:
        # Repaired: PaddleSeg's DiceLoss writes to its labels, so each loss gets labels of its own.
        values = [w * term(outputs[name], labels.clone()) for name, w in WEIGHTS.items() for term in theirs]
        paddle.add_n(values).backward()

    compare(
        "eight losses, forward and backward, 4 x [1, 19, 512, 1024]",
        ours=lambda: loss(outputs, labels)[0].backward(),
        theirs=run_theirs,
        their_name="paddleseg 2.8.0",
    )


if __name__ == "__main__":
    main()
