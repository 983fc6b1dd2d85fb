# SPDX-License-Identifier: Apache-2.0
"""Whether an exported model still answers as the network that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Optional

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from hmsa.datasets.transforms import Normalize
from hmsa.deploy.network import Answer
from hmsa.errors import DataError
from hmsa.inference.averaging import class_scores, logits_of
from hmsa.inference.fold import copy_on_cpu
from hmsa.inference.network import FusedNetwork
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import joint_logits
from hmsa.toy.street import street

CHECKED_SHAPES = ((1, 3, 128, 192), (1, 3, 97, 161), (2, 3, 72, 104))
"""Where a network of any input size is compared: even and odd sizes, one image and two."""

MAX_DIFFERENCE = {"label": 1e-3, "probabilities": 1e-3, "logits": 1e-4}
"""Of an answer, as a share of the range of what is compared (see `compare`)."""

ABSOLUTE = 1e-4
"""Of probabilities, confidence and attention, whatever their range."""

NOISE = 1e-5
"""What float32 itself may change, as a share of the largest value: it counts where a network's answers are alike."""

LEAST_EQUAL = {"fp32": 0.9999, "fp16": 0.9, "int8": 0.5}
"""The share of labels that an export must have in common with the network, in fp32 without pixels whose two best
classes float32 does not tell apart; with fewer, what rounds does not round any more."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Case:
    """Images, and what the network itself answers.

    Attributes:
        images: as the export takes them.
        scores: logits or, where those are averaged, probabilities [N, K, H, W]: the largest is the class.
        answers: by the names of the export's outputs.
    """

    images: np.ndarray
    scores: np.ndarray
    answers: dict[str, np.ndarray]

    @property
    def where(self) -> str:
        return "x".join(map(str, self.images.shape))


@dataclass
class Agreement:
    """How an export's answers compare with the network's: labels that differ, and the largest difference of numbers."""

    pixels: int = 0
    other: int = 0
    clear: int = 0  # of the other ones, those of pixels where the network's scores are further apart than `NOISE`
    largest: Optional[float] = None
    of: str = ""  # of which output it is

    def add(self, label: np.ndarray, scores: np.ndarray) -> None:
        """Labels [N, H, W] beside the network's scores [N, K, H, W]."""
        self.pixels += label.size
        self.other += int((label != scores.argmax(axis=1)).sum())
        self.clear += int((~(lacking(label, scores) <= NOISE * np.abs(scores).max())).sum())

    def widen(self, difference: float, name: str) -> None:
        if self.largest is None or not difference <= self.largest:
            self.largest, self.of = difference, name

    @property
    def equal(self) -> float:
        """The share of labels that are those of the network."""
        return 1 - self.other / self.pixels

    def __str__(self) -> str:
        labels = f"{100 * self.equal:.6g} % of labels equal"
        return labels if self.largest is None else f"{labels}, largest difference {self.largest:.2g}"


def make_cases(
    model: nn.Layer,
    answer: Answer,
    shapes: Sequence[Sequence[int]],
    *,
    normalize: Optional[tuple[Sequence[float], Sequence[float]]] = None,
) -> list[Case]:
    """What a network answers to drawn streets of these shapes (N, C, H, W), computed on the CPU without any program.

    Args:
        normalize: mean and std of its transforms; ImageNet's without them.
    """
    twin = copy_on_cpu(model)
    cases = []
    for shape in shapes:
        pixels = streets(shape)  # uint8 [N, H, W, C]
        x = _normalized(pixels, normalize)
        images = pixels if answer.normalize else x
        with paddle.no_grad():
            cases.append(Case(images, *_answers(twin, answer, paddle.to_tensor(x))))
    return cases


def _answers(model: nn.Layer, answer: Answer, image: paddle.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    averaging = answer.averaging
    scores = class_scores(joint_logits(model), image, averaging)
    is_probability = averaging.averages_probabilities
    # In float64, as differences are looked for.
    wide = scores.astype("float64")
    probabilities = (wide if is_probability else F.softmax(wide, axis=1)).numpy()

    found: dict[str, np.ndarray] = {}
    for output in answer.outputs(model):
        name = output["name"]
        if name == "label":
            found[name] = scores.numpy().argmax(axis=1)
        elif name == "probabilities":
            found[name] = probabilities
        elif name == "logits":
            found[name] = logits_of(scores, averaging).numpy()
        elif name == "confidence":
            found[name] = probabilities.max(axis=1)
        else:
            assert isinstance(model, MscaleOCRNet)
            fused = FusedNetwork(model.at_scale, scales=model.scales, align_corners=model.align_corners)
            seen = class_scores(fused.inside, image, replace(averaging, average="logits"))
            found[name] = paddle.split(seen, [-1, len(model.scales), len(model.scales)], axis=1)[1].numpy()
    return scores.numpy(), found


def compare(
    cases: Sequence[Case],
    session: Callable[[np.ndarray], dict[str, np.ndarray]],
    *,
    reader: str,
    precision: str = "fp32",
) -> Agreement:
    """Run an exported model on images whose answers are known.

    In fp32, logits are compared as logits and probabilities as probabilities, and a class may be another than the
    network's best where the network has two about equally good, of few pixels. In a format that rounds, labels are
    counted.

    Args:
        reader: what runs which format, for the message.

    Raises:
        DataError: they differ by more than `MAX_DIFFERENCE`, `ABSOLUTE` and `NOISE` allow, or than `LEAST_EQUAL`.
    """
    agreement = Agreement()
    for case in cases:
        found = session(case.images)
        for name, expected in case.answers.items():
            if name not in found or found[name].shape != expected.shape:
                shape = found[name].shape if name in found else "nothing"
                raise DataError(f"the exported model answers {shape} instead of {expected.shape} at {case.where}")
            if precision == "fp32":
                _check(name, found[name], case, reader)
            if name == "label":
                agreement.add(found[name], case.scores)
                continue
            difference = float(np.abs(found[name] - expected).max())
            agreement.widen(difference / (np.ptp(expected) or 1.0) if name == "logits" else difference, name)
            if name in ("probabilities", "logits"):
                # Where float32 gives probabilities, it tells apart less than in logits.
                scores = expected if name == "probabilities" else case.scores
                agreement.add(found[name].argmax(axis=1), scores)

    other = agreement.clear if precision == "fp32" else agreement.other
    if not 1 - other / agreement.pixels >= LEAST_EQUAL[precision] or not np.isfinite(agreement.largest or 0):
        raise DataError(
            f"the exported model does not answer as the network does: in {reader}, {agreement}; nothing was written"
        )
    return agreement


def lacking(label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By how much the score of a pixel's label is below the best one, [N, H, W]: 0 where it is the best, NaN where the
    label is no class."""
    is_chosen = label[:, np.newaxis] == np.arange(scores.shape[1])[:, np.newaxis, np.newaxis]
    return scores.max(axis=1) - np.fmax.reduce(np.where(is_chosen, scores, np.nan), axis=1)


def _check(name: str, answer: np.ndarray, case: Case, reader: str) -> None:
    """DataError if an answer is too far from the network's."""
    right = case.answers[name]
    if name == "label":
        right = case.scores
        difference = lacking(answer, right)
    else:
        difference = np.abs(answer - right)

    allowed = MAX_DIFFERENCE.get(name, np.inf) * np.ptp(right)
    if name not in ("label", "logits"):
        allowed = min(allowed, ABSOLUTE)
    allowed += NOISE * np.abs(right).max()
    wrong = int((~(difference <= allowed)).sum())  # written so that NaN fails
    if wrong:
        of = "labels" if name == "label" else name
        largest = difference.max() / (np.ptp(right) or 1)
        raise DataError(
            f"the exported model does not answer as the network does, at {case.where}: {of} of {wrong} of "
            f"{difference.size} pixels are wrong, by up to {largest:.2g} of the range of "
            f"{'logits' if name == 'label' else name}; nothing was written, as {reader} cannot run this model "
            "faithfully"
        )


# --- Images. ---


def streets(shape: Sequence[int]) -> np.ndarray:
    """Drawn streets, uint8 [N, H, W, C], for a shape (N, C, H, W), each of another street.

    Of other than three channels, each is one of red, green and blue.
    """
    N, C, H, W = shape
    images = [cv2.resize(_street(number % 4), (W, H), interpolation=cv2.INTER_AREA) for number in range(N)]
    return np.stack(images)[..., np.arange(C) % 3]


@cache
def _street(number: int) -> np.ndarray:
    _, image = street(np.random.default_rng(number), 192, 288)
    return image


def _normalized(pixels: np.ndarray, normalize: Optional[tuple[Sequence[float], Sequence[float]]]) -> np.ndarray:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W], as the transform `Normalize` makes it."""
    C = pixels.shape[3]
    mean, std = normalize or (
        [_IMAGENET[0][channel % 3] for channel in range(C)],
        [_IMAGENET[1][i % 3] for i in range(C)],
    )
    transform, rng = Normalize(mean=mean, std=std), np.random.default_rng(0)
    return np.stack([transform({"img": image}, rng)["img"].transpose(2, 0, 1) for image in pixels])
