# SPDX-License-Identifier: Apache-2.0
"""Pictures with labels: reading, checking, the list of an epoch, and one sample by its number."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from PIL import Image, ImageOps

from hmsa.errors import DataError, UsageError
from hmsa.transforms import Sample, Transform, fused

Pair = tuple[str, Optional[str]]

# Keys that keep the streams of random numbers apart: a sample's is (seed, epoch, position).
_FINE_ORDER, _COARSE_ORDER = 1, 2


def read_image(path: str | Path) -> np.ndarray:
    """The picture as uint8 [H, W, 3] RGB, turned upright as its EXIF data say. DataError if unreadable."""
    data = _read_bytes(path)
    if _is_whole_png_or_jpeg(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.asarray(ImageOps.exif_transpose(_open_with_pillow(path, data)).convert("RGB"))


def read_label(path: str | Path) -> np.ndarray:
    """The label picture as integers [H, W]; with a palette, the indices. DataError if unreadable."""
    label = np.asarray(_open_with_pillow(path, _read_bytes(path)))
    if label.ndim != 2 or label.dtype.kind not in "bui":
        raise DataError(
            f"{path} should be a label picture with one channel of class numbers, but it has the shape "
            f"{label.shape} and the type {label.dtype}: save it as a grey or a palette PNG"
        )
    return label


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} should be a readable picture, but: {error.strerror or error}") from error


def _is_whole_png_or_jpeg(data: bytes) -> bool:
    """Whether OpenCV may decode it: it is quicker than Pillow, but makes up what is missing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" in data[-64:]
    return data.startswith(b"\xff\xd8\xff") and b"\xff\xd9" in data[-64:]


def _open_with_pillow(path: str | Path, data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    # Pillow's decoders raise these on damaged files of one format or another.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no picture format is recognised" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DataError(f"{path} should be a readable picture, but: {reason}") from error
    return image


class SegmentationDataset:
    """An endless stream of samples over pairs of picture and label.

    Sample number i is sample `i % len` of epoch `i // len`, and depends on (seed, i) alone. `len` is an
    epoch: every pair of `pairs` once and `int(coarse_multiple * len(pairs))` of `coarse_pairs`, drawn without
    repetition until all have been seen, then reshuffled.

    A sample is a dict: `img` float32 [3, H, W] as the transforms leave it; `label` int64 [H, W] of class
    numbers, unless the pair has none; `trans_info`, what a prediction has to undo; `image_path`. With
    `label_transforms` the label is transformed along with the picture (training), without it keeps its own
    size (evaluation).
    """

    def __init__(
        self,
        *,
        pairs: Sequence[Pair],
        num_classes: int,
        shuffle: bool,
        label_transforms: bool,
        transforms: Sequence[Transform] = (),
        coarse_pairs: Sequence[Pair] = (),
        coarse_multiple: float = 0.0,
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        ignore_index: int = 255,
    ) -> None:
        if not pairs:
            raise DataError("a data set should hold at least one picture, but there is none: check dataset_root")
        self.pairs = tuple(pairs)
        self.coarse_pairs = tuple(coarse_pairs)
        self.coarse_per_epoch = int(coarse_multiple * len(self.pairs))
        if self.coarse_per_epoch and not self.coarse_pairs:
            raise DataError(
                f"coarse_multiple {coarse_multiple:g} asks for coarse pictures, but there are none: "
                "add them or set coarse_multiple to 0"
            )
        self.transforms = fused(transforms)
        self.shuffle = shuffle
        self.seed = seed
        self.num_classes = num_classes
        self.class_names = tuple(class_names or (f"class {index}" for index in range(num_classes)))
        self.ignore_index = ignore_index
        self.label_transforms = label_transforms
        # Neighbouring samples, two epochs at most, come from several threads.
        self._recent_epoch = functools.lru_cache(maxsize=2)(self.epoch)

    @classmethod
    def from_paddleseg(
        cls,
        dataset: Any,
        *,
        transforms: Sequence[Transform] = (),
        shuffle: bool,
        label_transforms: bool,
        seed: int = 0,
    ) -> SegmentationDataset:
        """The files of one of PaddleSeg's data sets, in place of its reading and its transforms."""
        from paddleseg.datasets import Dataset

        name = type(dataset).__name__
        if getattr(type(dataset), "__getitem__", None) is not Dataset.__getitem__:
            raise UsageError(
                f"PaddleSeg's {name} prepares its labels in its own way, which cannot be taken over: "
                "convert the labels to class numbers once and use the type Dataset with lists of files"
            )
        return cls(
            pairs=[(image, label) for image, label in dataset.file_list],
            num_classes=dataset.num_classes,
            ignore_index=dataset.ignore_index,
            transforms=transforms,
            shuffle=shuffle,
            label_transforms=label_transforms,
            seed=seed,
        )

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.pairs) + self.coarse_per_epoch

    def epoch(self, epoch: int) -> list[Pair]:
        """The pairs of an epoch in their order: a pure function of (seed, epoch)."""
        pairs = [*self.pairs, *self._coarse(epoch)]
        if not self.shuffle:
            return pairs
        order = np.random.default_rng((self.seed, epoch, 0, _FINE_ORDER)).permutation(len(pairs))
        return [pairs[index] for index in order]

    def _coarse(self, epoch: int) -> list[Pair]:
        """This epoch's share of the coarse pairs, which are shuffled and dealt out round after round."""
        total = len(self.coarse_pairs)
        drawn: list[Pair] = []
        first, last = epoch * self.coarse_per_epoch, (epoch + 1) * self.coarse_per_epoch
        while first < last:
            round_, start = divmod(first, total)
            stop = min(total, start + last - first)
            order = np.random.default_rng((self.seed, round_, 0, _COARSE_ORDER)).permutation(total)
            drawn += [self.coarse_pairs[index] for index in order[start:stop]]
            first += stop - start
        return drawn

    def __getitem__(self, index: int) -> Sample:
        epoch, position = divmod(index, len(self))
        pair = self._recent_epoch(epoch)[position]
        return self.load(pair, np.random.default_rng((self.seed, epoch, position)))

    def load(self, pair: Pair, rng: np.random.Generator) -> Sample:
        """Read, check and transform one pair. DataError names the file if it cannot be used."""
        image_path, label_path = pair
        sample: Sample = {"img": read_image(image_path), "trans_info": [], "gt_fields": []}
        sample["image_path"] = image_path
        if label_path is not None:
            sample["label"] = self._read_checked_label(label_path, image_path, sample["img"].shape[:2])
            if self.label_transforms:
                sample["gt_fields"].append("label")
        for transform in self.transforms:
            sample = transform(sample, rng)
        sample["img"] = np.ascontiguousarray(sample["img"].transpose(2, 0, 1), np.float32)
        if label_path is not None:
            sample["label"] = sample["label"].astype(np.int64)
        return sample

    def _read_checked_label(self, path: str, image_path: str, size: tuple[int, int]) -> np.ndarray:
        label = read_label(path)
        if label.shape != size:
            raise DataError(
                f"{path} should be as large as its picture {image_path}, {size[1]}x{size[0]} (width x "
                f"height), but it is {label.shape[1]}x{label.shape[0]}: "
                "pair it with the right picture or make it anew"
            )
        if label.dtype == np.uint8:
            present = np.flatnonzero(cv2.calcHist([label], [0], None, [256], [0, 256]))
        else:
            present = np.unique(label)
        wrong = [int(v) for v in present if v != self.ignore_index and not 0 <= v < self.num_classes]
        if wrong:
            raise DataError(
                f"{path} should hold class numbers 0..{self.num_classes - 1} and {self.ignore_index} for "
                f"ignored pixels, but it holds {', '.join(map(str, wrong))}: convert the label (to train "
                "ids, not label ids) or correct num_classes"
            )
        if label.dtype != np.uint8:
            # What OpenCV can resize and pad, with room for any class number and ignore_index.
            return label.astype(np.uint8 if max(self.num_classes, self.ignore_index) < 256 else np.int16)
        return label
