# SPDX-License-Identifier: Apache-2.0
"""What a report needs of every image of an evaluation, noted as it goes by in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np
from paddle import Tensor

from hmsa.datasets.classes import Classes
from hmsa.distributed import ranks
from hmsa.inference.averaging import InferenceOptions, confidences, logits_of
from hmsa.metrics import divide
from hmsa.metrics.confusion import confusion_matrix
from hmsa.report.suspects import Suspects

SIZES = (("small", 0), ("medium", 32**2), ("large", 96**2))
"""Objects by the pixels that they have at least: COCO's bounds. An object is a connected component of the label."""

KEPT = 3
"""Images that are remembered for each pair of classes."""

LOOKED_INTO = 100
"""Images at most of which an evaluation finds out what each scale decides: it takes a little longer."""

UNIT = 2**20
"""Losses, IoUs and shares are rounded to multiples of 1 / UNIT, so that ranks add up exactly."""

_SEEN, _IOU, _ACCURACY, _LOSS = range(4)


@dataclass(frozen=True)
class Answer:
    """What a network says of an image of H x W pixels, and what is true."""

    index: int  # of the image, in its data set
    image_path: str
    label: np.ndarray  # uint8 [H, W], classes or `ignore_index`
    prediction: np.ndarray  # uint8 [H, W]
    scores: Tensor  # [1, K, H, W], see `class_scores`, made with `options`
    options: InferenceOptions
    confidence: Optional[np.ndarray] = None  # float32 [H, W], see `confidences`
    decided: Mapping[float, np.ndarray] = field(default_factory=dict)  # see `Insight`; empty unless asked for


class Notes:
    """Called with every `Answer` of an evaluation; `add_up` joins what the ranks have noted.

    Attributes:
        images: int64 [images, 4]: whether it was seen, and in units its mean IoU over the classes in its label, its
            accuracy, and its loss: the mean cross entropy of its labelled pixels.
        best_of_pair: int64 [K, K, KEPT, 2]: of a true and a predicted class, pixels and number of the images that have
            most of them.
        decided: int64 [S, K, 3]: units of pixels that each scale decided, by class and size of the object.
        objects, pixels, right: int64 [K, 3]: objects of the images that were looked into, their pixels, and those of
            them that are right.
        looked_into: how many images these are of.
    """

    def __init__(self, classes: Classes, images: int, scales: tuple[float, ...], folder: Path) -> None:
        """With how many images there are, the network's scales, and a folder for predictions and `Suspects`."""
        K = len(classes)
        self.classes, self.scales, self.folder = classes, scales, folder
        self.images = np.zeros((images, 4), np.int64)
        self.best_of_pair = np.zeros((K, K, KEPT, 2), np.int64)
        self.decided = np.zeros((len(scales), K, len(SIZES)), np.int64)
        self.objects, self.pixels, self.right = np.zeros((3, K, len(SIZES)), np.int64)
        self.looked_into = 0
        self.suspects = Suspects(folder, K, classes.ignore_index)

    def sample(self) -> frozenset[int]:
        """Numbers of the images to look into, evenly spaced: all, or `LOOKED_INTO`."""
        count = len(self.images)
        return frozenset(np.linspace(0, count - 1, min(count, LOOKED_INTO)).round().astype(int).tolist())

    def __call__(self, answer: Answer) -> None:
        K = len(self.classes)
        counts = confusion_matrix(answer.prediction, answer.label, K, self.classes.ignore_index)
        logits = logits_of(answer.scores, answer.options)[0].numpy()  # [K, H, W], once, as this copies them
        loss = mean_loss(answer, logits, self.classes.ignore_index)
        true, taken, hits = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
        there = true > 0
        if there.any():
            scores = (np.mean(divide(hits, true + taken - hits)[there]), hits.sum() / true.sum(), loss)
            self.images[answer.index] = [1, *np.rint(UNIT * np.array(scores)).astype(np.int64)]
            self.suspects.add(answer.index, loss, logits, answer.label)
        self._remember(counts, answer.index)

        if answer.decided:
            self.looked_into += 1
            self._look(answer)
        cv2.imwrite(str(self.prediction_file(answer.index)), answer.prediction, [cv2.IMWRITE_PNG_COMPRESSION, 1])

    def _remember(self, counts: np.ndarray, index: int) -> None:
        """Keep an image for each pair of classes of which it has more pixels than one of those kept."""
        worst = self.best_of_pair[:, :, -1, 0]
        more = counts > worst
        np.fill_diagonal(more, False)
        for pair in zip(*np.nonzero(more)):
            kept = np.vstack([self.best_of_pair[pair], np.array([counts[pair], index])])
            self.best_of_pair[pair] = kept[np.argsort(-kept[:, 0], kind="stable")][:KEPT]

    def _look(self, answer: Answer) -> None:
        """Add up what each scale decided, by class and size of the object."""
        shares = np.stack([answer.decided[scale] for scale in self.scales])  # [S, H, W]
        right = answer.prediction == answer.label
        for number in np.unique(answer.label):
            if number >= len(self.classes) or number == self.classes.ignore_index:
                continue
            _, components, found, _ = cv2.connectedComponentsWithStats((answer.label == number).astype(np.uint8))
            size_of = np.searchsorted([low for _, low in SIZES], found[:, cv2.CC_STAT_AREA], side="right") - 1
            self.objects[number] += np.bincount(size_of[1:], minlength=len(SIZES))

            inside = components > 0
            sizes = size_of[components[inside]]
            self.pixels[number] += np.bincount(sizes, minlength=len(SIZES))
            self.right[number] += np.bincount(sizes[right[inside]], minlength=len(SIZES))
            for scale, values in enumerate(shares):
                total = np.bincount(sizes, weights=values[inside], minlength=len(SIZES))
                self.decided[scale, number] += np.rint(UNIT * total).astype(np.int64)

    def add_up(self) -> None:
        """Join the notes of all ranks; all must call this."""
        if ranks.world_size() == 1:
            return
        own = (self.images, self.decided, self.objects, self.pixels, self.right, np.array(self.looked_into))
        total = ranks.all_reduce_sum(np.concatenate([part.ravel() for part in own]))
        parts = np.split(total, np.cumsum([part.size for part in own])[:-1])
        joined = [part.reshape(like.shape) for part, like in zip(parts, own)]
        self.images, self.decided, self.objects, self.pixels, self.right, looked_into = joined
        self.looked_into = int(looked_into)

        every = np.concatenate(ranks.all_gather(self.best_of_pair), axis=2)  # [K, K, ranks * KEPT, 2]
        order = np.argsort(-every[..., 0], axis=2, kind="stable")[..., :KEPT, None]
        self.best_of_pair = np.take_along_axis(every, order, axis=2)

    def prediction_file(self, index: int) -> Path:
        """Where the prediction of an image is, a PNG of class numbers."""
        return self.folder / f"{index}.png"

    @property
    def seen(self) -> np.ndarray:
        """Numbers of the images that have a labelled pixel."""
        return np.flatnonzero(self.images[:, _SEEN])

    @property
    def iou(self) -> np.ndarray:
        """Mean IoU of every image over the classes in its label."""
        return self.images[:, _IOU] / UNIT

    @property
    def accuracy(self) -> np.ndarray:
        """Share of every image's labelled pixels that are right."""
        return self.images[:, _ACCURACY] / UNIT

    @property
    def loss(self) -> np.ndarray:
        """Mean cross entropy of every image."""
        return self.images[:, _LOSS] / UNIT

    def shares(self) -> dict[str, dict[str, dict[str, float]]]:
        """What share of the pixels each scale decided: class ("all classes" for the sum) -> size, or "all" -> scale.

        Classes and sizes without a pixel are left out.
        """
        rows = {name: (self.decided[:, k], self.pixels[k]) for k, name in enumerate(self.classes.names)}
        rows = {"all classes": (self.decided.sum(axis=1), self.pixels.sum(axis=0)), **rows}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, (decided, pixels) in rows.items():
            columns = {"all": (decided.sum(axis=1), pixels.sum())}
            columns |= {size: (decided[:, place], pixels[place]) for place, (size, _) in enumerate(SIZES)}
            cells = {
                size: {f"{scale:g}": float(part / UNIT / count) for scale, part in zip(self.scales, parts)}
                for size, (parts, count) in columns.items()
                if count
            }
            if cells:
                found[name] = cells
        return found


def mean_loss(answer: Answer, logits: np.ndarray, ignore_index: int) -> float:
    """The mean cross entropy of an image's labelled pixels; 0 without any.

    Where the best class is the true one it is -log of the confidence; elsewhere the true class's logit lies below.

    Args:
        logits: of the answer, [K, H, W].
    """
    confidence = answer.confidence
    if confidence is None:
        confidence = confidences(answer.scores, answer.options)
    valid = answer.label != ignore_index
    if not valid.any():
        return 0.0
    total = -np.log(np.fmax(confidence[valid], 1e-12)).sum(dtype=np.float64)

    wrong = valid & (answer.label != answer.prediction)
    rows, columns = np.nonzero(wrong)
    best, true = (logits[classes[wrong], rows, columns] for classes in (answer.prediction, answer.label))
    total += np.nan_to_num(best - true, posinf=0).sum(dtype=np.float64)
    return float(np.clip(total / valid.sum(), 0, 1e6))
