# SPDX-License-Identifier: Apache-2.0
"""Images with labels: checking, the list of an epoch, and one sample by its number."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np

from hmsa.datasets.bands import read_bands
from hmsa.datasets.classes import Classes, class_numbers
from hmsa.datasets.images import read_label, read_mask, strange_values
from hmsa.datasets.transforms import Sample, Transform, fused
from hmsa.errors import DataError, UsageError, printable

Pair = tuple[str, Optional[str]]

# Keys that keep the streams of random numbers apart: a sample's is (seed, epoch, position).
_FINE_ORDER, _COARSE_ORDER, _REPLACEMENT = 1, 2, 3


def transformed(sample: Sample, transforms: Sequence[Transform], rng: np.random.Generator) -> Sample:
    """What the network takes of a sample that was read: `img` float32 [3, H, W], `label` int64 [H, W]."""
    for transform in transforms:
        sample = transform(sample, rng)
    sample["img"] = np.ascontiguousarray(sample["img"].transpose(2, 0, 1), np.float32)
    if "label" in sample:
        sample["label"] = sample["label"].astype(np.int64)
    return sample


def transformed_image(image: np.ndarray, transforms: Sequence[Transform], name: str) -> Sample:
    """What the network takes of an image to predict, [H, W, C], which is left as it is; the same every time."""
    sample: Sample = {"img": image.copy(), "trans_info": [], "gt_fields": [], "image_path": name}
    return transformed(sample, transforms, np.random.default_rng(0))


@dataclass(eq=False)
class SegmentationDataset:
    """An endless stream of samples over pairs of image and label.

    Sample number i is sample `i % len` of epoch `i // len`, and depends on (seed, i) alone. `len` is an
    epoch: every pair of `pairs` once and `int(coarse_multiple * len(pairs))` of `coarse_pairs`, drawn without
    repetition until all have been seen, then reshuffled.

    A sample is a dict: `img` float32 [C, H, W] as the transforms leave it; `label` int64 [H, W] of class
    numbers, unless the pair has none; `trans_info`, what a prediction has to undo; `image_path`. In training
    the epochs are shuffled and labels transformed along with their images; else labels keep their own size.

    A sample whose files cannot be used is a DataError. With `bad_sample_limit`, one drawn from the same epoch stands in
    for it, which depends on (seed, i) and on the state of the files alone; it is warned about and kept in `skipped`,
    and more than so many of them are a DataError.

    An image that its EXIF data turn is taken with a label of the turned size. A label as large as the stored pixels,
    which a turn by 180 degrees or a square image leaves open, may lie elsewhere than the image: a DataError.
    """

    pairs: Sequence[Pair]
    classes: Classes
    training: bool
    transforms: Sequence[Transform] = ()
    coarse_pairs: Sequence[Pair] = ()
    coarse_multiple: float = 0.0
    seed: int = 0
    bad_sample_limit: Optional[int] = None
    max_image_pixels: Optional[int] = None
    in_channels: int = 3  # C of the images

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("a data set should hold at least one image, but there is none: check dataset_root")
        self.coarse_per_epoch = int(self.coarse_multiple * len(self.pairs))
        assert self.coarse_pairs or not self.coarse_per_epoch
        self.transforms = fused(self.transforms)
        self.skipped: dict[str, str] = {}  # the images that others stood in for so far, in this process, and why
        self._skipping = threading.Lock()
        # Neighbouring samples, two epochs at most, come from several threads.
        self._recent_epoch = functools.lru_cache(maxsize=2)(self.epoch)

    @classmethod
    def from_paddleseg(cls, dataset: Any, *, classes: Classes, **options: Any) -> SegmentationDataset:
        """The files of one of PaddleSeg's data sets, in place of its reading and its transforms.

        Args:
            options: see the class.
        """
        from paddleseg.datasets import Dataset

        name = type(dataset).__name__
        if getattr(type(dataset), "__getitem__", None) is not Dataset.__getitem__:
            raise UsageError(
                f"PaddleSeg's {name} prepares its labels in its own way, which cannot be taken over: "
                "convert the labels to class numbers once and use the type Dataset with lists of files"
            )
        return cls(
            pairs=[(image, label) for image, label in dataset.file_list],
            classes=replace(classes, ignore_index=dataset.ignore_index),
            **options,
        )

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.pairs) + self.coarse_per_epoch

    def epoch(self, epoch: int) -> list[Pair]:
        """The pairs of an epoch in their order: a pure function of (seed, epoch)."""
        pairs = [*self.pairs, *self._coarse(epoch)]
        if not self.training:
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
        sample, rng = self.untransformed(index)
        return transformed(sample, self.transforms, rng)

    def untransformed(self, index: int) -> tuple[Sample, np.random.Generator]:
        """Sample number `index` as it was read, and what its transforms draw from."""
        epoch, position = divmod(index, len(self))
        sample = self._read_or_replace(self._recent_epoch(epoch), epoch, position)
        return sample, np.random.default_rng((self.seed, epoch, position))

    def _read(self, pair: Pair) -> Sample:
        """Read and check one pair. DataError names the file if it cannot be used."""
        image_path, label_path = pair
        image, orientation = read_bands(image_path, self.in_channels, self.max_image_pixels)
        sample: Sample = {"img": image, "trans_info": [], "gt_fields": [], "image_path": image_path}
        if label_path is not None:
            sample["label"] = self._read_checked_label(label_path, image_path, image, orientation)
            if self.training:
                sample["gt_fields"].append("label")
        return sample

    def _read_or_replace(self, pairs: Sequence[Pair], epoch: int, position: int) -> Sample:
        """The pair at `position`, or the first usable one of the epoch's in an order drawn for this position."""
        # What was found bad before is tried again: what stands in must not depend on what this process has seen.
        for pair in self._candidates(pairs, epoch, position):
            try:
                return self._read(pair)
            except DataError as error:
                if self.bad_sample_limit is None:
                    raise
                if self._skip(pair[0], str(error)) > self.bad_sample_limit:
                    break
        reasons = list(self.skipped.values())
        raise DataError(
            f"expected at most {self.bad_sample_limit} images that cannot be used (bad_sample_limit), and others to "
            f"stand in for them, found {len(reasons)}: correct them, or raise the limit; the first are: "
            f"{'; '.join(reasons[:3])}"
        )

    def _candidates(self, pairs: Sequence[Pair], epoch: int, position: int) -> Iterator[Pair]:
        yield pairs[position]
        order = np.random.default_rng((self.seed, epoch, position, _REPLACEMENT)).permutation(len(pairs))
        yield from (pairs[index] for index in order)

    def _skip(self, path: str, reason: str) -> int:
        """Note an image that cannot be used, and say so the first time; returns how many there are."""
        with self._skipping:
            if path not in self.skipped:
                self.skipped[path] = reason
                sys.stderr.write(printable(f"warning: another image stands in for {path}: {reason}") + "\n")
            return len(self.skipped)

    def _read_checked_label(self, path: str, image_path: str, image: np.ndarray, orientation: int) -> np.ndarray:
        """The label of an image [H, W, C], which has been turned from EXIF's `orientation`."""
        label, size = self.read_label(path), image.shape[:2]
        stored = size[::-1] if orientation >= 5 else size
        if orientation != 1 and label.shape == stored:
            raise DataError(
                f"{path} should be drawn on the upright image, but its image {image_path} is stored turned (EXIF "
                f"orientation {orientation}), and the label's size does not show that it was drawn on the upright one: "
                "save the image upright, without the tag, and the label to match"
            )
        if label.shape != size:
            raise DataError(
                f"{path} should be as large as its image {image_path}, {size[1]}x{size[0]} (width x "
                f"height), but it is {label.shape[1]}x{label.shape[0]}: "
                "pair it with the right image or make it anew"
            )
        return label

    def read_label(self, path: str) -> np.ndarray:
        """The class numbers in a label file, [H, W], of a type that OpenCV can resize and pad.

        Raises:
            DataError: it cannot be read, or holds other numbers or colours.
        """
        classes = self.classes
        if classes.values is not None:
            mask = read_mask(path, self.max_image_pixels, colors=classes.in_colors)
            if mask.ndim == 3 and not classes.in_colors:
                raise DataError(
                    f"{path} should hold numbers, as values in classes are, but it holds colours: write them as "
                    "[red, green, blue], or save the mask in grey"
                )
            try:
                return class_numbers(mask, classes)
            except ValueError as error:
                raise DataError(
                    f"{path} should hold the values of classes and ignore, but it holds others: write {error} into the "
                    "values of a class, or of ignore for pixels that do not count"
                ) from error

        label = read_label(path, self.max_image_pixels)
        K, ignored = len(classes), classes.ignore_index
        strange = strange_values(label, {*range(K), ignored})
        if strange:
            raise DataError(
                f"{path} should hold class numbers 0..{K - 1} and {ignored} for ignored pixels, but it holds "
                f"{strange}: convert the label (to train ids, not label ids), say by values in classes what means "
                "which class, or correct num_classes"
            )
        return label.astype(np.uint8 if max(K, ignored) < 256 else np.int32, copy=False)
