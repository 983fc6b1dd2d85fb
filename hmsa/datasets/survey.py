# SPDX-License-Identifier: Apache-2.0
"""What the files of a data set hold, gathered in threads: counters, hashes, and some names, however many files."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.classes import Classes, Value
from hmsa.datasets.dataset import Pair, SegmentationDataset
from hmsa.datasets.images import IMAGE_FORMATS, read_bytes, read_mask, read_upright
from hmsa.datasets.kinds import counts_of
from hmsa.datasets.lists import is_file
from hmsa.datasets.similar import SIDE, thumbnail
from hmsa.errors import DataError
from hmsa.system.environment import threads

MAX_NAMES = 20
"""Files that are named of each kind."""

MAX_VALUES = 2000
"""Values of masks that are counted one by one, beside those that the recipe names."""

MOSTLY = 0.9
"""Share of ignored pixels above which there is little to learn from."""

_PNG_CHANNELS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_MODES = {"1": "1 bit grey", "L": "8 bit grey", "LA": "8 bit grey with alpha", "P": "8 bit palette"} | {
    "RGB": "8 bit RGB",
    "RGBA": "8 bit RGB with alpha",
    "CMYK": "8 bit CMYK",
}


# --- One pair ---


class ImageFacts(NamedTuple):
    """Of an image that can be read."""

    size: tuple[int, int]  # width, height as it is to be seen
    stored: str  # "8 bit RGB"
    orientation: int  # EXIF's, 1 to 8
    digest: int  # of its bytes
    thumbnail: np.ndarray  # uint8 [SIDE, SIDE]
    moments: np.ndarray  # float64 [2, 3]: mean of the values and of their squares, of values 0 to 1


class MaskFacts(NamedTuple):
    """Of a mask that can be read."""

    size: tuple[int, int]
    stored: str
    digest: int
    values: dict[Value, int]  # pixels of each of the `MAX_VALUES` most frequent
    further: int  # pixels of other values


class Facts(NamedTuple):
    """Of a pair."""

    image: Optional[ImageFacts]
    mask: Optional[MaskFacts]
    problems: list[tuple[str, str]]  # kind and sentence, of what training could not use


def facts_of(pair: Pair, classes: Classes, max_pixels: Optional[int] = None, *, masks_only: bool = False) -> Facts:
    """Look at the files of a pair; nothing in them raises."""
    image_path, mask_path = pair
    problems: list[tuple[str, str]] = []
    image = mask = None
    paths = [path for path in pair if path is not None and not (masks_only and path == image_path)]
    missing = [path for path in paths if not is_file(Path(path))]
    problems += [("missing_files", path) for path in missing]
    if not masks_only and image_path not in missing:
        try:
            image = _image(image_path, max_pixels)
        except DataError as error:
            problems.append(("unreadable_images", str(error)))
    if mask_path is not None and mask_path not in missing:
        try:
            mask = _mask(mask_path, classes, max_pixels)
        except DataError as error:
            kind = "unreadable_masks" if _is_png(mask_path) else "masks_of_another_format"
            problems.append((kind, str(error) if kind == "unreadable_masks" else mask_path))
    if image and mask:
        problems += _misfit(image, mask, pair)
    return Facts(image, mask, problems)


def _image(path: str, max_pixels: Optional[int]) -> ImageFacts:
    data = read_bytes(path, max_pixels)
    pixels, orientation = read_upright(path, max_pixels)
    mean, deviation = (moment.reshape(-1) / 255 for moment in cv2.meanStdDev(pixels))
    return ImageFacts(
        size=(pixels.shape[1], pixels.shape[0]),
        stored=_stored(data),
        orientation=orientation,
        digest=_digest(data),
        thumbnail=thumbnail(pixels),
        moments=np.stack([mean, deviation**2 + mean**2]),
    )


def _mask(path: str, classes: Classes, max_pixels: Optional[int]) -> MaskFacts:
    data = read_bytes(path, max_pixels)
    pixels = read_mask(path, max_pixels, colors=classes.in_colors)
    values, further = counts_of(pixels), 0
    if len(values) > MAX_VALUES:  # of a mask that is none
        kept = dict(Counter(values).most_common(MAX_VALUES))
        further = sum(values.values()) - sum(kept.values())
        values = kept
    return MaskFacts((pixels.shape[1], pixels.shape[0]), _stored(data), _digest(data), values, further)


def _misfit(image: ImageFacts, mask: MaskFacts, pair: Pair) -> Iterator[tuple[str, str]]:
    """What `SegmentationDataset` says of a mask that does not lie on its image."""
    turned = image.size[::-1] if image.orientation >= 5 else image.size
    if image.orientation != 1 and mask.size == turned:
        yield "masks_of_turned_images", f"{pair[1]} (image {pair[0]}, EXIF orientation {image.orientation})"
    elif mask.size != image.size:
        sizes = ["x".join(map(str, size)) for size in (mask.size, image.size)]
        yield "different_sizes", f"{pair[1]} ({sizes[0]}, its image {sizes[1]})"


def _stored(data: bytes) -> str:
    """Bits and channels of a file that can be read, for people."""
    if data.startswith(b"\x89PNG"):
        return f"{data[24]} bit {_PNG_CHANNELS.get(data[25], '?')}"
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        return _MODES.get(str(image.mode), str(image.mode))


def _is_png(path: str) -> bool:
    try:
        return read_bytes(path).startswith(b"\x89PNG")
    except DataError:
        return True  # so that reading it says what is wrong


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


# --- All pairs ---


@dataclass
class Named:
    """How many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < MAX_NAMES:
            self.first.append(name)


@dataclass(eq=False)
class Survey:
    """What the pairs of one data set hold.

    A class that `ignore_index` is counts as ignored, as in training.
    """

    classes: Classes
    pairs: Sequence[Pair]  # that were looked at
    of: int  # pairs in the data set

    def __post_init__(self) -> None:
        K = len(self.classes)
        self.class_pixels = np.zeros(K, np.int64)
        self.class_images = np.zeros(K, np.int64)
        self.ignored_pixels = self.strange_pixels = 0
        self.values: Counter[Value] = Counter()  # pixels of every value, as far as `MAX_VALUES`
        self.masks_of_value: Counter[Value] = Counter()
        self.masks = 0  # that were read
        self.named: dict[str, Named] = {}  # what is wrong or strange, by its kind

        self.sizes: Counter[tuple[int, int]] = Counter()
        self.stored: Counter[str] = Counter()
        self.masks_stored: Counter[str] = Counter()
        self.orientations: Counter[int] = Counter()
        self.digests = np.zeros((len(self.pairs), 2), np.uint64)  # of image and mask; 0 where there is none
        self.thumbnails = np.zeros((len(self.pairs), SIDE, SIDE), np.uint8)
        self._moments, self._pixels = np.zeros((2, 3)), 0
        self._meaning = meaning(self.classes)

    @property
    def sampled(self) -> bool:
        """Whether these are some of all pairs."""
        return len(self.pairs) < self.of

    @property
    def pixels(self) -> int:
        """Of all masks."""
        return int(self.class_pixels.sum()) + self.ignored_pixels + self.strange_pixels

    @property
    def strange(self) -> list[Value]:
        """Values that are neither a class's nor ignored, the most frequent first."""
        return [value for value, _ in self.values.most_common() if value not in self._meaning]

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the pixels of all images, each float64 [3], of values 0 to 1; NaN if none could be read."""
        mean, square = self._moments / self._pixels if self._pixels else np.full((2, 3), np.nan)
        return mean, np.sqrt(np.maximum(square - mean**2, 0))

    def count(self, kind: str) -> int:
        """How many of a kind are in `named`."""
        return self.named[kind].count if kind in self.named else 0

    def note(self, kind: str, name: str) -> None:
        """One more of a kind."""
        self.named.setdefault(kind, Named()).add(name)

    def add(self, index: int, facts: Facts) -> None:
        """Count what was found of the pair of that number."""
        for kind, text in facts.problems:
            self.note(kind, text)
        if facts.image:
            self._add_image(index, facts.image)
        if facts.mask:
            self._add_mask(index, facts.mask)

    def _add_image(self, index: int, image: ImageFacts) -> None:
        self.sizes[image.size] += 1
        self.stored[image.stored] += 1
        self.orientations[image.orientation] += 1
        self.digests[index, 0] = image.digest
        self.thumbnails[index] = image.thumbnail
        pixels = image.size[0] * image.size[1]
        self._moments += pixels * image.moments
        self._pixels += pixels

    def _add_mask(self, index: int, mask: MaskFacts) -> None:
        path = self.pairs[index][1] or ""
        self.masks += 1
        self.masks_stored[mask.stored] += 1
        self.digests[index, 1] = mask.digest

        ignored, strange, there = 0, mask.further, np.zeros(len(self.classes), np.int64)
        for value, count in mask.values.items():
            number = self._meaning.get(value)
            if number is None:
                strange += count
            elif number == self.classes.ignore_index:
                ignored += count
            else:
                there[number] += count
            if value in self.values or number is not None or len(self.values) < MAX_VALUES:
                self.values[value] += count
                self.masks_of_value[value] += 1
        self.class_pixels += there
        self.class_images += there > 0
        self.ignored_pixels += ignored
        self.strange_pixels += strange

        total = sum(mask.values.values()) + mask.further
        if strange:
            self.note("strange_masks", path)
        elif ignored == total:
            self.note("ignored_masks", path)
        elif ignored > MOSTLY * total:
            self.note("mostly_ignored_masks", path)
        elif there[1:].sum() == 0:
            self.note("background_masks", path)
        if self.classes.values is None and ("RGB" in mask.stored or "alpha" in mask.stored):
            self.note("masks_stored_in_colors", path)


def meaning(classes: Classes) -> dict[Value, int]:
    """The number in labels of each value that has one."""
    if classes.values is None:
        return {**{number: number for number in range(len(classes))}, classes.ignore_index: classes.ignore_index}
    known: dict[Value, int] = {value: number for number, values in enumerate(classes.values) for value in values}
    return {**known, **dict.fromkeys(classes.ignored, classes.ignore_index)}


def survey(
    dataset: SegmentationDataset,
    *,
    max_pairs: Optional[int] = None,
    num_workers: Optional[int] = None,
    masks_only: bool = False,
    progress: str = "",
) -> Survey:
    """Look at every pair of a data set, or at `max_pairs` spread evenly over it.

    Args:
        num_workers: threads; without it, as many as there are cores for this process.
        masks_only: whether images are left unopened.
        progress: what a bar on a terminal is called; none without it.
    """
    every = [*dataset.pairs, *(dataset.coarse_pairs if dataset.coarse_per_epoch else ())]
    pairs = spread(every, max_pairs)
    found = Survey(dataset.classes, pairs, len(every))
    workers = num_workers or threads()

    def look(pair: Pair) -> Facts:
        return facts_of(pair, dataset.classes, dataset.max_image_pixels, masks_only=masks_only)

    with (
        ThreadPoolExecutor(workers) as executor,
        tqdm(total=len(pairs), desc=progress, unit="pair", disable=None if progress else True) as bar,
    ):
        waiting: deque[tuple[int, Future[Facts]]] = deque()
        for index, pair in enumerate(pairs):
            waiting.append((index, executor.submit(look, pair)))
            if len(waiting) > 4 * workers:
                first, future = waiting.popleft()
                found.add(first, future.result())
                bar.update()
        for first, future in waiting:
            found.add(first, future.result())
            bar.update()
    return found


def spread(pairs: Sequence[Any], count: Optional[int]) -> Sequence[Any]:
    """So many of them, the first and the last among them, at equal distances; all where there are no more."""
    if count is None or len(pairs) <= count:
        return pairs
    return [pairs[place] for place in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
