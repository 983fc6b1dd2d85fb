# SPDX-License-Identifier: Apache-2.0
"""Transforms of images and labels, under PaddleSeg's names and in its distribution.

A transform is a callable `(sample, rng) -> sample`. The sample is a dict: `img` [H, W, 3] RGB, uint8 0..255
(float32 after `Normalize`), and, listed in `gt_fields`, the label images [H, W] that move with it.
`trans_info` collects what has to be undone for a prediction at the image's own size: ("resize" | "padding",
(height, width) before). Sizes in the constructors are (width, height), as in PaddleSeg's YAML; defaults and bounds
of their arguments stand in `hmsa.components`.

PaddleSeg carries images as float32 from the first transform on; here they stay uint8, which is several
times faster. A resized value is therefore rounded at once, where PaddleSeg drops its fraction in
`RandomDistort`.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from hmsa.errors import DataError

Sample = dict[str, Any]
Transform = Callable[[Sample, np.random.Generator], Sample]


def _apply(sample: Sample, change: Callable, of_image: Any = None, of_label: Any = None) -> Sample:
    """`change` the image and every label that moves with it; beside the array it gets what differs between them."""
    sample["img"] = change(sample["img"], of_image)
    for key in sample.get("gt_fields", ()):
        sample[key] = change(sample[key], of_label)
    return sample


def _resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to `size` (height, width): bilinear for the image, nearest for labels."""

    def resize(array: np.ndarray, how: int) -> np.ndarray:
        return cv2.resize(array, size[::-1], interpolation=how)

    return _apply(sample, resize, cv2.INTER_LINEAR, cv2.INTER_NEAREST)


def _resize_corner(array: np.ndarray, size: tuple[int, int], kept: tuple[int, int], interpolation: int) -> np.ndarray:
    """The first `kept` rows and columns of `array` resized to `size` (height, width), without making the others.

    OpenCV counts pixels from the top left corner: what is left out above or on the left would shift the rest by a
    part of a pixel, what is left out below or on the right changes nothing.
    """
    before = array.shape[:2]
    scale = tuple(new / old for new, old in zip(size, before))
    # Two more rows and columns than needed: bilinear interpolation looks at the next one.
    used = tuple(min(math.ceil(k / s) + 2, old) for k, s, old in zip(kept, scale, before))
    if used == before or used == tuple(round(u * s) for u, s in zip(used, scale)):
        # The second: OpenCV copies what keeps its size, however far along the whole would have been stretched.
        resized = cv2.resize(array, size[::-1], interpolation=interpolation)
    else:
        corner = array[: used[0], : used[1]]
        resized = cv2.resize(corner, None, fx=scale[1], fy=scale[0], interpolation=interpolation)
    return resized[: kept[0], : kept[1]]


def _pad(sample: Sample, size: tuple[int, int], image_value: float, label_value: int) -> Sample:
    """Pad at the bottom and on the right to at least `size` (height, width)."""
    height, width = sample["img"].shape[:2]
    bottom, right = max(size[0] - height, 0), max(size[1] - width, 0)
    if not bottom and not right:
        return sample
    # uint8 images cannot hold PaddleSeg's 127.5; it becomes 127 there too, once colours are distorted.
    value = int(image_value) if sample["img"].dtype == np.uint8 else image_value

    def pad(array: np.ndarray, value: Any) -> np.ndarray:
        return cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value)

    return _apply(sample, pad, (value, value, value), label_value)


class ResizeStepScaling:
    """Scale image and label by one random factor, drawn evenly from min, min + step, ..., max.

    A step of 0 draws from the whole interval.
    """

    def __init__(self, *, min_scale_factor: float, max_scale_factor: float, scale_step_size: float) -> None:
        self.range = (min_scale_factor, max_scale_factor)
        self.factors = None
        if scale_step_size > 0:
            # As PaddleSeg counts: a step that does not divide the interval is stretched until it does.
            steps = int((max_scale_factor - min_scale_factor) / scale_step_size + 1)
            self.factors = np.linspace(min_scale_factor, max_scale_factor, steps)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _resize(sample, self.draw_size(sample["img"].shape[:2], rng))

    def draw_size(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """The new (height, width) of an image of `size`."""
        factor = float(rng.uniform(*self.range) if self.factors is None else rng.choice(self.factors))
        return max(round(factor * size[0]), 1), max(round(factor * size[1]), 1)


class RandomPaddingCrop:
    """Cut a window of `crop_size` (width, height) at random, padding at the bottom and right if needed.

    With a `category_max_ratio` below 1, a window is drawn again, up to `loop_times` times, while one class has that
    share or more of its pixels, or all of them; pixels of `ignore_index` do not count.
    """

    def __init__(
        self,
        *,
        crop_size: Sequence[int],
        im_padding_value: float,
        label_padding_value: int,
        category_max_ratio: float,
        ignore_index: int,
        loop_times: int,
    ) -> None:
        self.size = (crop_size[1], crop_size[0])
        self.padding_values = (im_padding_value, label_padding_value)
        self.category_max_ratio = category_max_ratio
        self.ignore_index = ignore_index
        self.loop_times = loop_times if category_max_ratio < 1 else 0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = self.size
        looks = self.loop_times if "label" in sample.get("gt_fields", ()) else 0
        if looks:  # padding counts with the classes
            sample = _pad(sample, self.size, *self.padding_values)
        top, left = self.draw_corner(sample["img"].shape[:2], rng)
        for _ in range(looks):
            if self._is_varied(sample["label"][top : top + height, left : left + width]):
                break
            top, left = self.draw_corner(sample["img"].shape[:2], rng)

        sample = _apply(sample, lambda array, _: array[top : top + height, left : left + width])
        return _pad(sample, self.size, *self.padding_values)

    def draw_corner(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Top and left of the window in an image of `size` (height, width)."""
        top, left = (int(rng.integers(max(there - wanted, 0) + 1)) for there, wanted in zip(size, self.size))
        return top, left

    def _is_varied(self, label: np.ndarray) -> bool:
        """Whether more than one class is in a window, and none has too large a share."""
        classes, counts = np.unique(label, return_counts=True)
        counts = counts[classes != self.ignore_index]
        return len(counts) > 1 and counts.max() / counts.sum() < self.category_max_ratio


class ScaledCrop:
    """`ResizeStepScaling` and the `RandomPaddingCrop` after it in one: the same draws and the same pixels.

    Much of what the crop would throw away is never resized. `fused` puts it in place of the two.
    """

    def __init__(self, scaling: ResizeStepScaling, crop: RandomPaddingCrop) -> None:
        self.scaling, self.crop = scaling, crop

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        size = self.scaling.draw_size(sample["img"].shape[:2], rng)
        top, left = self.crop.draw_corner(size, rng)
        kept = min(top + self.crop.size[0], size[0]), min(left + self.crop.size[1], size[1])

        def crop(array: np.ndarray, how: int) -> np.ndarray:
            return _resize_corner(array, size, kept, how)[top:, left:]

        sample = _apply(sample, crop, cv2.INTER_LINEAR, cv2.INTER_NEAREST)
        return _pad(sample, self.crop.size, *self.crop.padding_values)


def fused(transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    """The transforms with every scaling right before a crop replaced by `ScaledCrop`: the same result, sooner.

    A crop that looks at the label stays, as it needs the whole label scaled.
    """
    result: list[Transform] = []
    for transform in transforms:
        before = result[-1] if result else None
        if (
            isinstance(before, ResizeStepScaling)
            and isinstance(transform, RandomPaddingCrop)
            and not transform.loop_times
        ):
            result[-1] = ScaledCrop(before, transform)
        else:
            result.append(transform)
    return tuple(result)


class RandomHorizontalFlip:
    """Mirror left to right with probability `prob`."""

    def __init__(self, *, prob: float) -> None:
        self.prob = prob

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.prob:
            return sample
        return _apply(sample, lambda array, _: cv2.flip(array, 1))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale all values by `factor` (1 changes nothing). uint8 [H, W, 3] in and out, fractions dropped."""
    return _weighted_sum(image, factor, image, 0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distance from the image's mean grey by `factor`. uint8 [H, W, 3] in and out."""
    grey = math.floor(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _weighted_sum(image, factor, image, 0, grey * (1 - factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale each pixel's distance from its own grey by `factor`. uint8 [H, W, 3] in and out."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _weighted_sum(image, factor, grey, 1 - factor)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by `shift` 255ths of the circle. uint8 [H, W, 3] in and out.

    As PaddleSeg does through PIL, down to the hue's wrap-around at 256 on a circle of 255 steps. OpenCV
    counts 256 steps a circle, hence the factors, and rounds hue and saturation to nearest where PIL drops
    fractions: strongly coloured pixels differ by a level or two on average.
    """
    turned = np.trunc(np.arange(256) * (255 / 256) + shift).astype(np.int64) % 256
    table = (np.rint(turned * (256 / 255)).astype(np.int64) % 256).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), table), hsv, 0)
    # OpenCV's own code for the way back takes half the time of the Intel library's; the switch is each thread's own.
    with_ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    finally:
        cv2.ipp.setUseIPP(with_ipp)


def _weighted_sum(
    image: np.ndarray, weight: float, other: np.ndarray, other_weight: float, offset: float = 0.0
) -> np.ndarray:
    """weight * image + other_weight * other + offset, cut to 0..255 without fractions, as PIL does."""
    # OpenCV rounds to nearest; just under one half less drops the fraction.
    return cv2.addWeighted(image, weight, other, other_weight, offset - 0.499)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale each pixel's distance from its smoothed surroundings by `factor`. uint8 [H, W, 3] in and out."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))


class RandomDistort:
    """Distort brightness, contrast, saturation, hue and sharpness, each with its probability, in random order.

    Args:
        options: of each of the five its `<name>_prob`, and its `<name>_range`: factors are drawn evenly from
            1 - range .. 1 + range, the hue's shift from -range .. range (255 is the whole circle).
    """

    def __init__(self, **options: float) -> None:
        self.steps = []
        for function in (brightness, contrast, saturation, hue, sharpness):
            half_range, probability = (options[f"{function.__name__}_{what}"] for what in ("range", "prob"))
            if function is not sharpness or probability > 0:  # else nothing is drawn for it
                self.steps.append((function, 0.0 if function is hue else 1.0, half_range, probability))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = np.asarray(sample["img"], np.uint8)
        for index in rng.permutation(len(self.steps)):
            function, centre, half_range, probability = self.steps[index]
            if rng.random() < probability:
                image = function(image, rng.uniform(centre - half_range, centre + half_range))
        sample["img"] = image
        return sample


class Normalize:
    """(value / 255 - mean) / std by channel, as float32 [H, W, 3].

    The memory is laid out [3, H, W], so the transposition a network wants afterwards copies nothing.
    """

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.factors = tuple(1 / (255 * s) for s in std)
        self.offsets = tuple(-m / s for m, s in zip(mean, std))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample["img"]
        planes = np.empty((3, *image.shape[:2]), np.float32)
        plane = np.empty(image.shape[:2], image.dtype)  # one for the three channels
        for channel, (factor, offset) in enumerate(zip(self.factors, self.offsets)):
            cv2.extractChannel(image, channel, plane)
            cv2.addWeighted(plane, factor, plane, 0, offset, planes[channel], cv2.CV_32F)  # factor * plane + offset
        sample["img"] = planes.transpose(1, 2, 0)  # [H, W, 3], a view
        return sample


class Padding:
    """Pad at the bottom and on the right to `target_size` (width, height); a larger image is an error."""

    def __init__(self, *, target_size: Sequence[int], im_padding_value: float, label_padding_value: int) -> None:
        self.size = (target_size[1], target_size[0])
        self.padding_values = (im_padding_value, label_padding_value)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["img"].shape[:2]
        if height > self.size[0] or width > self.size[1]:
            raise DataError(
                f"{sample.get('image_path', 'an image')} should be at most {self.size[1]}x{self.size[0]} (width x "
                f"height) for Padding, but it is {width}x{height}: enlarge target_size or put a Resize before it"
            )
        sample["trans_info"].append(("padding", (height, width)))
        return _pad(sample, self.size, *self.padding_values)


class Resize:
    """Resize to `target_size` (width, height), bilinear (labels: nearest).

    `keep_ratio` fits the image inside that box instead; `size_divisor` rounds both sides up to multiples.
    """

    def __init__(self, *, target_size: Sequence[int], keep_ratio: bool, size_divisor: int | None) -> None:
        self.size = (target_size[1], target_size[0])
        self.keep_ratio = keep_ratio
        self.size_divisor = size_divisor or 1

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        before = sample["img"].shape[:2]
        height, width = self.size
        if self.keep_ratio:
            # As PaddleSeg: the box may be turned, its long side bounds the image's long side.
            ratio = min(max(self.size) / max(before), min(self.size) / min(before))
            height, width = max(round(before[0] * ratio), 1), max(round(before[1] * ratio), 1)
        height, width = (math.ceil(side / self.size_divisor) * self.size_divisor for side in (height, width))
        sample["trans_info"].append(("resize", before))
        return _resize(sample, (height, width))


class PaddleSegTransform:
    """One of PaddleSeg's own transforms, `sample -> sample`, made to draw from our random generator.

    Theirs draw from the global generators of `random` and `numpy`: those are seeded for the call and put back
    afterwards, one call at a time.
    """

    _lock = threading.Lock()

    def __init__(self, transform: Callable[[Sample], Sample]) -> None:
        self.transform = transform

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        seed = int(rng.integers(2**32))
        with self._lock:
            before = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            try:
                sample = self.transform(sample)
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002
        sample["img"] = np.ascontiguousarray(sample["img"])  # theirs return mirrored views
        return sample
