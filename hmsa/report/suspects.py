# SPDX-License-Identifier: Apache-2.0
"""Labels that may be wrong, found by cleanlab's confident learning (Northcutt, Jiang, Chuang, JAIR 2021)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

GRID = (128, 256)
"""Rows and columns of pixels that are looked at in each image, evenly spaced."""

MAX_NUMBERS = 2**25
"""Probabilities, of 2 bytes, that are kept: those of the images with the highest loss."""

_LEAST = 12  # pixels of the grid that a region has at least
_PIXELS_AT_ONCE = 2**18

MISSING = (
    "Labels that may be wrong are looked for where the package cleanlab is installed: pip install 'hmsa[cleanlab]'."
)


@dataclass(frozen=True)
class Region:
    """Where a label may be wrong."""

    index: int  # of the image
    labelled: int  # the class that the label has there
    suggested: int  # the class that the network is sure of
    box: tuple[float, float, float, float]  # top, left, bottom, right, as shares of height and width
    confidence: float  # mean probability of the suggested class
    share: float  # of the image's pixels


class Suspects:
    """Keeps probabilities of the images with the highest loss, as files in a folder, and finds wrong labels there."""

    def __init__(self, folder: Path, num_classes: int, ignore_index: int) -> None:
        self.there = find_spec("cleanlab") is not None
        self.most = max(MAX_NUMBERS // (num_classes * GRID[0] * GRID[1]), 1)
        self._folder, self._ignore_index = folder, ignore_index
        self._kept: list[tuple[float, int]] = []  # a heap: loss, index

    def add(self, index: int, loss: float, logits: np.ndarray, label: np.ndarray) -> None:
        """Look at an image: logits [K, H, W], label uint8 [H, W]."""
        if not self.there or (len(self._kept) == self.most and loss <= self._kept[0][0]):
            return
        rows, columns = (np.arange(count) * side // count for count, side in zip(GRID, label.shape))
        looked_at = logits[:, rows[:, None], columns]  # [K, *GRID]
        powers = np.exp(looked_at - looked_at.max(axis=0))
        probabilities = (powers / powers.sum(axis=0)).astype(np.float16)
        np.savez(self._file(index), probabilities=probabilities, label=label[rows[:, None], columns])

        heapq.heappush(self._kept, (loss, index))
        if len(self._kept) > self.most:
            self._file(heapq.heappop(self._kept)[1]).unlink()

    def _file(self, index: int) -> Path:
        return self._folder / f"suspect-{index}.npz"

    def regions(self, most: int) -> list[Region]:
        """The regions that are most likely wrong, the largest and surest first, at most `most`; empty if none is."""
        if not self.there:
            return []
        find_label_issues = import_module("cleanlab.segmentation.filter").find_label_issues

        files = sorted(self._folder.glob("suspect-*.npz"))[: self.most]
        if not files:
            return []
        loaded = [np.load(file) for file in files]
        labels = np.stack([kept["label"] for kept in loaded]).astype(np.int64)  # [N, *GRID]
        probabilities = np.stack([kept["probabilities"] for kept in loaded])  # float16 [N, K, *GRID]
        best = probabilities.argmax(axis=1)
        valid = labels != self._ignore_index
        labels[~valid] = best[~valid]  # which is right, as far as anybody can tell
        issues = find_label_issues(labels, probabilities, batch_size=_PIXELS_AT_ONCE, n_jobs=1, verbose=False) & valid

        found: list[Region] = []
        for file, label, sure, issue, answer in zip(files, labels, probabilities, issues, best):
            index = int(file.stem.partition("-")[2])
            found += _regions(index, label, answer, sure.max(axis=0).astype(np.float32), issue)
        return sorted(found, key=lambda region: -region.confidence * region.share**0.5)[:most]


def _regions(
    index: int, label: np.ndarray, answer: np.ndarray, confidence: np.ndarray, issue: np.ndarray
) -> list[Region]:
    """Connected pixels of the same doubt, all arrays [*GRID]; of narrow ones, as edges have them, none."""
    found = []
    doubts = np.where(issue, label * 256 + answer, -1)
    for doubt in np.unique(doubts[issue]):
        where = (doubts == doubt).astype(np.uint8)
        for step in (cv2.MORPH_CLOSE, cv2.MORPH_OPEN):
            where = cv2.morphologyEx(where, step, np.ones((3, 3), np.uint8))
        count, components, stats, _ = cv2.connectedComponentsWithStats(where)
        for number in range(1, count):
            left, top, width, height, area = stats[number]
            if area < _LEAST:
                continue
            box = (top / GRID[0], left / GRID[1], (top + height) / GRID[0], (left + width) / GRID[1])
            sure = float(confidence[components == number].mean())
            found.append(Region(index, int(doubt) // 256, int(doubt) % 256, box, sure, area / issue.size))
    return found
