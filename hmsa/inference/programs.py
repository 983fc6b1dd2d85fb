# SPDX-License-Identifier: Apache-2.0
"""A network at one scale as two programs: written, opened, and compared with the network they were made from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, cast

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.version import full_version as PADDLE_VERSION

from hmsa.errors import DataError, HmsaError
from hmsa.inference.backends import BACKENDS, form_of
from hmsa.inference.fold import copy_on_cpu, simplified
from hmsa.inference.tracing import convert_to_onnx, program_file, write_program
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import ScaleNetwork
from hmsa.system.device import as_tensor, on_cpu, on_gpu

PARTS = {"logits": False, "attended": True}
"""The two programs, and whether each gives attention beside logits."""

CHECKED_SIZES = ((128, 192), (97, 161))
"""Where new programs are compared with the network they were made from: an even and an odd (height, width)."""

MAX_DIFFERENCE = 1e-4
"""Of logits and attention, relative to the largest."""


class AtScale(nn.Layer):
    """[N, C, h, w] -> logits [N, K, h', w'], or these and the attention [N, 1, h', w']."""

    def __init__(self, model: MscaleOCRNet, attention: bool) -> None:
        super().__init__()
        self.model = model
        self.attention = attention

    def forward(self, image: Tensor) -> Any:
        logits, weight = self.model.at_scale(image, self.attention)
        return (logits, weight) if self.attention else logits


def open_programs(folder: Path, backend: str, precision: str = "fp32") -> ScaleNetwork:
    """The network at one scale, run by a backend from the programs in a folder, each opened when it is first wanted."""
    open_program = BACKENDS[backend].open
    assert open_program is not None
    opened = functools.cache(lambda name: open_program(program_file(folder / name), precision))

    def run(x: Tensor, attention: bool) -> tuple[Tensor, Optional[Tensor]]:
        logits, *weight = map(as_tensor, opened("attended" if attention else "logits")(x.numpy()))
        return logits, weight[0] if weight else None

    return run


def write_programs(model: MscaleOCRNet, folder: Path, form: str) -> None:
    """Write the two programs of a simplified network to `folder`, in the form "paddle" or "onnx"."""
    for name, attention in PARTS.items():
        part = AtScale(model, attention)
        part.eval()
        write_program(part, folder / name, input_shape=(None, model.in_channels, None, None))
    if form == "onnx":
        convert_to_onnx(*(folder / name for name in PARTS))


def write_checked_programs(
    model: MscaleOCRNet,
    folder: Path,
    backend: str,
    write: Optional[Callable[[MscaleOCRNet, Path, str], None]] = None,
) -> ScaleNetwork:
    """Write the programs of a network for a backend, and make sure that they answer as the network does.

    They are written and compared on the CPU, whatever device runs them later; the network itself is left as it is.

    Args:
        write: what writes them instead of `write_programs`.

    Raises:
        DataError: they do not, or the network cannot be exported.
    """
    form = form_of(backend)
    assert form is not None
    with on_cpu():
        twin = copy_on_cpu(model)
        images = [paddle.randn([1, model.in_channels, *size]) for size in CHECKED_SIZES]
        with paddle.no_grad():
            expected = [twin.at_scale(image, True) for image in images]

        try:
            (write or write_programs)(simplified(twin), folder, form)
            programs = open_programs(folder, backend)
            check_programs(programs, images, expected)
        except HmsaError:
            raise
        # Paddle and the converter raise whatever comes first, among others where a source file was edited meanwhile.
        except Exception as error:
            raise DataError(
                f"expected a network that the backend {backend} can run, but: {error}", settings=["backend"]
            ) from error
    return open_programs(folder, backend) if on_gpu() else programs


def check_programs(programs: ScaleNetwork, images: Sequence[Tensor], expected: Sequence[Any]) -> None:
    """DataError if a backend's logits or attention differ from the network's own by more than `MAX_DIFFERENCE`."""
    for image, answers in zip(images, expected):
        found = [programs(image, False)[0], *programs(image, True)]
        for ours, right in zip(cast(Any, found), [answers[0], *answers]):
            # In NumPy, as Paddle 2.6's maximum leaves out NaN.
            difference = float(np.abs((ours - right).numpy()).max() / np.abs(right.numpy()).max())
            if not difference <= MAX_DIFFERENCE:
                raise DataError(
                    f"the backend should answer as the network does, but at {image.shape} it differs by "
                    f"{difference:.2g} of the largest value: use the backend eager with Paddle {PADDLE_VERSION}",
                    settings=["backend"],
                )
