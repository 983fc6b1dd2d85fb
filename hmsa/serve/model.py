# SPDX-License-Identifier: Apache-2.0
"""An export as a server needs it: its tensors, files of images made into its input, its answers made into pictures."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np

from hmsa import builder
from hmsa.datasets.bands import displayed
from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.given import pixels_of
from hmsa.datasets.transforms import fused
from hmsa.deploy.runtime import DEPLOY_FILE, Deployment
from hmsa.errors import DataError, OversizedError, UsageError
from hmsa.inference.averaging import undo_transforms
from hmsa.serve.batching import Answers
from hmsa.serve.refusal import Refusal
from hmsa.system.device import as_tensor
from hmsa.visualize import color_palette, overlay, pseudo_color

Picture = Literal["label", "color", "overlay", "confidence"]
PICTURES = get_args(Picture)
"""What an image can be answered with."""

_PROBE = 64  # pixels a side, of an image to try a model with
_SMALLEST = 16  # where an export does not say what its smallest scale needs
_OPACITY = 0.4  # of colours in overlays, as in predict.py

# What undoes a resize is computed by Paddle, whose state is one for all threads.
_paddle_lock = threading.Lock()


@dataclass(frozen=True)
class Tensor:
    """An input or an output: `dtype` by NumPy's name, of `shape` -1 is any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """An image that was read."""

    image: np.ndarray  # as `pixels_of` gives it
    input: np.ndarray  # as the network takes it, a batch of one
    trans_info: list[Any]  # what was done to its size


class ServedModel:
    """An open export, and what stands around it.

    Args:
        run: images as the export takes them -> its outputs by name; called from one thread at a time.
        deployment: what its deploy.yaml says.
        name: by which clients ask for it.
        platform: what runs it, for its metadata.
        max_pixels: of a request, in all its images.

    Raises:
        UsageError: an export that cannot be asked for pictures, as its images are resized and its answers cannot be;
            or whose images have more pixels than a request may.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Answers],
        deployment: Deployment,
        *,
        name: str,
        platform: str = "hmsa",
        max_pixels: int = 1 << 21,
    ) -> None:
        self._run, self.deployment = run, deployment
        self.name, self.platform, self.max_pixels = name, platform, max_pixels
        self.in_channels = deployment.side("C") or 3
        self._transforms = fused(builder.exported_transforms(deployment.transforms, where=DEPLOY_FILE))
        self._colors = color_palette((), deployment.class_colors)
        self._try()

    def _try(self) -> None:
        """An image through all of it, before any client's."""
        least = max(_PROBE, self.deployment.min_size or 0)
        sides = (self.deployment.side("H") or least, self.deployment.side("W") or least)
        prepared = self._prepared(np.zeros((*sides, self.in_channels), np.uint8))
        if self.deployment.output_op == "argmax" and any(kind == "resize" for kind, _ in prepared.trans_info):
            raise UsageError(
                "expected an export whose answers can be resized, as its transforms resize images, found one of class "
                "numbers: export with output_op softmax"
            )
        pixels = (self.deployment.side("N") or 1) * (self.deployment.side("H") or 0) * (self.deployment.side("W") or 0)
        if pixels > self.max_pixels:
            raise UsageError(
                f"expected an export for images of at most {self.max_pixels} pixels in all, found one for {pixels}: "
                "set max_pixels higher"
            )
        self.label(prepared, self.run(prepared.input))

    def run(self, images: np.ndarray) -> Answers:
        """Answers to images as the network takes them; where it takes a fixed number, the last stands for those that
        lack."""
        count, fixed = len(images), self.deployment.side("N")
        if fixed is None or count == fixed:
            return self._run(images)
        whole = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
        return {name: answer[:count] for name, answer in self._run(whole).items()}

    # --- Tensors: of any number of images, whatever the network takes. ---

    @property
    def input(self) -> Tensor:
        deployment = self.deployment
        shape = tuple(-1 if side is None else side for side in deployment.input_shape[1:])
        return Tensor(deployment.input_name, deployment.input_dtype, (-1, *shape))

    @property
    def outputs(self) -> list[Tensor]:
        deployment = self.deployment
        known = {"N": -1, **{axis: deployment.side(axis) or -1 for axis in "HW"}}
        known["C"] = len(deployment.class_names) or -1
        return [
            Tensor(
                output.name,
                output.dtype,
                tuple(len(output.scales) or -1 if axis == "S" else known[axis] for axis in output.layout),
            )
            for output in deployment.outputs
        ]

    def check(self, shape: tuple[int, ...]) -> None:
        """Refusal unless the network takes images of this shape, and they are not too many pixels."""
        try:
            self.deployment.check_images((self.deployment.side("N") or shape[0], *shape[1:]))
        except DataError as error:
            raise Refusal(400, str(error)) from None
        sides = dict(zip(self.deployment.input_layout, shape))
        if self.deployment.min_size is None and min(sides["H"], sides["W"]) < _SMALLEST:
            raise Refusal(
                400,
                f"expected images of at least {_SMALLEST} pixels each way, found {sides['W']}x{sides['H']}: enlarge "
                "them",
            )
        count = self.deployment.side("N") or sides["N"]  # others stand in for what lacks
        if count * sides["H"] * sides["W"] > self.max_pixels:
            raise Refusal(
                413,
                f"expected at most {self.max_pixels} pixels in all, found {count} images of {sides['W']}x"
                f"{sides['H']}: send less at once",
            )

    # --- Images. ---

    def read(self, data: bytes | bytearray) -> Prepared:
        """The file of an image, made into the network's input. Refusal if it cannot be."""
        try:
            prepared = self._prepared(pixels_of(data, "the image", self.max_pixels, self.in_channels))
        except DataError as error:
            if isinstance(error.__cause__, OversizedError):
                raise Refusal(413, f"the image is too large: {error.__cause__}; send a smaller one") from None
            raise Refusal(400, str(error)) from None
        self.check(prepared.input.shape)
        return prepared

    def _prepared(self, image: np.ndarray) -> Prepared:
        sample = transformed_image(image, self._transforms, "the image")
        array = sample["img"]
        if self.deployment.input_layout == "NHWC":
            array = array.transpose(1, 2, 0)
        batch = np.ascontiguousarray(array[np.newaxis], self.deployment.input_dtype)
        return Prepared(image, batch, sample["trans_info"])

    # --- Answers, of one image. ---

    def label(self, prepared: Prepared, answers: Answers) -> np.ndarray:
        """The class of every pixel, uint8 [H, W], as predict.py gives it."""
        first = next(iter(answers.values()))[0]
        if self.deployment.output_op == "argmax":
            return self._undone(first[np.newaxis], prepared)[0].astype(np.uint8)
        return self._undone(first, prepared).argmax(axis=0).astype(np.uint8)

    def confidence(self, prepared: Prepared, answers: Answers) -> np.ndarray:
        """The probability of every pixel's class, float32 [H, W]."""
        if "confidence" in answers:
            return self._undone(answers["confidence"], prepared)[0]
        assert self.gives_confidence
        scores = self._undone(next(iter(answers.values()))[0], prepared)
        best = scores.max(axis=0)
        return best if self.deployment.output_op == "softmax" else 1 / np.exp(scores - best).sum(axis=0)

    @property
    def gives_confidence(self) -> bool:
        named = any(output.name == "confidence" for output in self.deployment.outputs)
        return named or self.deployment.output_op != "argmax"

    def _undone(self, scores: np.ndarray, prepared: Prepared) -> np.ndarray:
        """[C, h, w] -> [C, H, W], at the image's own size."""
        if not prepared.trans_info:
            return scores
        with _paddle_lock:
            whole = as_tensor(scores[np.newaxis].astype(np.float32))
            return undo_transforms(whole, prepared.trans_info, prepared.image.shape[:2])[0].numpy()

    def picture(self, kind: Picture, prepared: Prepared, answers: Answers) -> bytes:
        """A PNG of one of `PICTURES`: class numbers in grey, the same with a palette, colours over the image, or
        confidences, of which 255 is 1."""
        if kind == "confidence":
            return _png(np.rint(255 * self.confidence(prepared, answers)).astype(np.uint8))
        label = self.label(prepared, answers)
        if kind == "label":
            return _png(label)
        if kind == "overlay":
            mixed = overlay(displayed(prepared.image), label, self._colors, 1 - _OPACITY)
            return _png(cv2.cvtColor(mixed, cv2.COLOR_RGB2BGR))
        buffer = io.BytesIO()
        pseudo_color(label, self._colors).save(buffer, "PNG")
        return buffer.getvalue()


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()
