# SPDX-License-Identifier: Apache-2.0
"""The network and its parts."""

import hmsa.system.prepared  # noqa: F401

from hmsa.models.hierarchical import OUTPUTS, MscaleOCRNet
from hmsa.models.hrnet import BACKBONES, HRNet

__all__ = ["BACKBONES", "OUTPUTS", "HRNet", "MscaleOCRNet"]
