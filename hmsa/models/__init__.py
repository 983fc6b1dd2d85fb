# SPDX-License-Identifier: Apache-2.0
"""The network and its parts."""

from hmsa.models.hierarchical import OUTPUTS, MscaleOCRNet
from hmsa.models.hrnet import BACKBONES, HRNet

__all__ = ["BACKBONES", "OUTPUTS", "HRNet", "MscaleOCRNet"]
