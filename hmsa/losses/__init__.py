# SPDX-License-Identifier: Apache-2.0
"""Losses on named outputs."""

import hmsa.prepared  # noqa: F401

from hmsa.losses.bootstrapped_cross_entropy import BootstrappedCrossEntropyLoss
from hmsa.losses.dice import DiceLoss
from hmsa.losses.weighted import WeightedLoss

__all__ = ["BootstrappedCrossEntropyLoss", "DiceLoss", "WeightedLoss"]
