# SPDX-License-Identifier: Apache-2.0
"""The same few images after each evaluation: what the network says of them, and which scale decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.find import SHEETS
from hmsa.engine.predict import Prediction, Results, predicted
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.network import FusedNetwork
from hmsa.metrics import divide
from hmsa.models.hierarchical import Network

SIDE = 480
"""Pixels of a panel's longer side, at most."""

SHOWN = ("sheet", "attention", "decided")
"""What is shown of an image, see `hmsa.engine.predict.FOLDERS`."""


@dataclass(frozen=True)
class FixedImages:
    """Images of a data set in "val" mode, evenly spread over it.

    Attributes:
        count: how many, or all if it has fewer.
    """

    dataset: SegmentationDataset
    count: int
    options: InferenceOptions = field(default_factory=InferenceOptions)

    @property
    def numbers(self) -> list[int]:
        """Their places in the data set."""
        length = len(self.dataset)
        count = min(self.count, length)
        return [index * length // count for index in range(count)]

    def look(
        self, network: Network, show: Optional[Callable[[str, np.ndarray], None]] = None, *, first: bool = False
    ) -> dict[str, dict[str, float]]:
        """Look at them.

        Args:
            network: a `FusedNetwork` has attention, others have none.
            show: called with a name and a sheet, uint8 [h, w, 3] RGB, of each.
            first: whether the first is enough.

        Returns:
            scale -> class -> mean share of the answer that the scale decides, over the pixels of all images whose truth
            is the class, see `hmsa.models.hierarchical.decided_shares`; NaN where there are none. Empty without scales.
        """
        names = self.dataset.classes.names
        sums: dict[str, np.ndarray] = {}  # of each scale, float64 [K]
        pixels = np.zeros(len(names))

        for index in self.numbers[: 1 if first else None]:
            sample = self.dataset[index]
            label = sample["label"]
            wanted = SHOWN if isinstance(network, FusedNetwork) else ()
            found = predicted(network, sample, label.shape, self.options, wanted=wanted)

            valid = label != self.dataset.classes.ignore_index
            of_valid = label[valid].astype(np.int64)
            pixels += np.bincount(of_valid, minlength=len(names))
            for scale, shares in found.decided.items():
                weights = np.bincount(of_valid, weights=shares[valid], minlength=len(names))
                sums[f"{scale:g}"] = sums.get(f"{scale:g}", 0) + weights
            if show is not None:
                show(Path(sample["image_path"]).stem, self._sheet(sample["image_path"], found))

        return {scale: dict(zip(names, map(float, divide(total, pixels)))) for scale, total in sums.items()}

    def _sheet(self, path: str, found: Prediction) -> np.ndarray:
        """Image, prediction and overlay; below them the attention and the share of every scale."""
        classes = self.dataset.classes
        image, _ = read_bands(path, self.dataset.in_channels, self.dataset.max_image_pixels)
        height, width = found.label.shape
        share = min(SIDE / max(height, width), 1)
        size = max(round(width * share), 1), max(round(height * share), 1)

        def smaller(values: np.ndarray) -> np.ndarray:
            return cv2.resize(values, size, interpolation=cv2.INTER_AREA)

        shown = Prediction(
            cv2.resize(found.label, size, interpolation=cv2.INTER_NEAREST),
            attention={scale: smaller(values) for scale, values in found.attention.items()},
            decided={scale: smaller(values) for scale, values in found.decided.items()},
        )
        colors = [level for color in classes.colors for level in color]
        palette = [*colors, *[0] * (768 - len(colors))]
        results = Results(Path(), palette, SHOWN, names=classes.names, plain=classes.background)
        return results.pictures(smaller(displayed(image)), shown)[SHEETS]
