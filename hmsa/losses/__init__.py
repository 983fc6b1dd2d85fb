# SPDX-License-Identifier: Apache-2.0
"""Losses on named outputs."""

import hmsa.system.prepared  # noqa: F401

from hmsa.losses.bootstrapped_cross_entropy import BootstrappedCrossEntropyLoss
from hmsa.losses.cross_entropy import CrossEntropyLoss, OhemCrossEntropyLoss
from hmsa.losses.dice import DiceLoss
from hmsa.losses.foreign import ForeignLoss
from hmsa.losses.weighted import MixedLoss, WeightedLoss

__all__ = [
    "BootstrappedCrossEntropyLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "ForeignLoss",
    "MixedLoss",
    "OhemCrossEntropyLoss",
    "WeightedLoss",
]
