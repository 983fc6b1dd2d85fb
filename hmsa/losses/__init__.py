# SPDX-License-Identifier: Apache-2.0
"""Losses on named outputs."""

import hmsa.system.prepared  # noqa: F401

from hmsa.losses.weighted import WeightedLoss as WeightedLoss
