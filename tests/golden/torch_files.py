# SPDX-License-Identifier: Apache-2.0
"""Writes torch_*.pth, and torch_expected.npz with what is in them, with PyTorch (recorded with 2.13.0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
backbone = nn.Sequential()
backbone.add_module("conv1", nn.Conv2d(3, 4, 3, bias=False))
backbone.add_module("bn1", nn.BatchNorm2d(4))
network = nn.Sequential()
network.add_module("backbone", backbone)
network = nn.DataParallel(network)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
network(torch.randn(2, 3, 5, 5)).square().sum().backward()
optimizer.step()

folder = Path(__file__).parent
parts = {"epoch": 174, "state_dict": network.state_dict()}
torch.save(parts, folder / "torch_backbone_legacy.pth", _use_new_zipfile_serialization=False)
torch.save(parts, folder / "torch_backbone_zip.pth")

state = network.state_dict()
numbers = torch.randn(6, 4)
state["shared.whole"] = numbers
state["shared.again"] = numbers
state["shared.part"] = numbers[2:5]
state["shared.transposed"] = numbers.t()
state["shared.columns"] = numbers[:, 1:3]
state["shared.expanded"] = numbers[0, 0].expand(3, 2)
state["parameter"] = nn.Parameter(torch.randn(3))
state["half"] = torch.randn(5).half()
state["bfloat16"] = torch.randn(5).bfloat16()
state["double"] = torch.randn(2).double()
state["long"] = torch.tensor([1, -(2**40)])
state["bool"] = torch.tensor([True, False])
state["scalar"] = torch.tensor(2.5)
state["empty"] = torch.zeros(0, 3)
checkpoint = {
    "epoch": 174,
    "mean_iu": np.float64(0.85),
    "command": "train.py --dataset cityscapes",
    "state_dict": state,
    "optimizer": optimizer.state_dict(),
}

torch.save(checkpoint, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)
torch.save(checkpoint, folder / "torch_zip.pth")
exact = {torch.bfloat16: torch.float32, torch.bool: torch.uint8}
np.savez_compressed(
    folder / "torch_expected.npz",
    **{name: tensor.detach().to(exact.get(tensor.dtype, tensor.dtype)).numpy() for name, tensor in state.items()},
)
