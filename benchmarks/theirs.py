# SPDX-License-Identifier: Apache-2.0
"""PaddleSeg 2.8.0's own network and losses, as pip installs them; what cannot run is repaired here, and said so."""

from __future__ import annotations

from typing import Any

WEIGHTS = {"joint_aux": 0.4, "joint": 1.0, "low": 0.05, "high": 0.05}  # in the order of their outputs
BOOTSTRAPPED = {"min_K": 100000, "loss_th": 0.05}


def network(scales: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Any:
    """HRNet-W48 with OCR head and scale attention, newly initialised."""
    from paddleseg.models import MscaleOCRNet
    from paddleseg.models.backbones import HRNet_W48

    return MscaleOCRNet(num_classes=19, backbone=HRNet_W48(), backbone_indices=[0], mscale=list(scales))


def total_loss(logits: list[Any], labels: Any) -> Any:
    """The eight losses of the recipe.

    Repaired: DiceLoss writes to its labels, so that each loss gets labels of its own; the bootstrapped cross-entropy
    fails on images of no more than min_K pixels, so that small ones need a smaller min_K.
    """
    import paddle
    from paddleseg.models.losses import BootstrappedCrossEntropyLoss, DiceLoss

    pixels = labels.shape[-1] * labels.shape[-2]
    bootstrapped = {**BOOTSTRAPPED, "min_K": min(BOOTSTRAPPED["min_K"], pixels // 2)}
    terms = [DiceLoss(), BootstrappedCrossEntropyLoss(**bootstrapped)]
    return paddle.add_n(
        [weight * term(output, labels.clone()) for output, weight in zip(logits, WEIGHTS.values()) for term in terms]
    )
