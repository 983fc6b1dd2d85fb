# SPDX-License-Identifier: Apache-2.0
"""What masks hold, and which classes that makes: numbers, 0 and 255, grey values, colours, Cityscapes' label ids."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

import cv2
import numpy as np
from PIL import Image, ImageColor
from tqdm import tqdm

from hmsa.config.fields import MAX_CLASSES_WITH_VALUES
from hmsa.datasets import cityscapes
from hmsa.datasets.classes import Value
from hmsa.datasets.images import read_mask
from hmsa.errors import DataError

_CREAM = (224, 224, 192)  # between things in Pascal VOC's masks
_FEW_PIXELS = 0.002  # share of a value that may be one of smoothed edges
_MANY_VALUES, _MANY_NUMBERS = 8, 40  # from which on edges are looked for, and where they are 0, 1, 2, ...
_THIN, _EDGE, _WIDE_EDGE = 11, 5, 9  # pixels across, below which a region is a border, or an edge
_NAMES = {tuple(ImageColor.getrgb(name)): name for name in sorted(ImageColor.colormap)}


class SmoothedError(DataError):
    """Masks hold values that lie at edges alone."""


# --- What they hold ---


@dataclass
class Found:
    """What some masks hold."""

    pixels: Counter[Value] = field(default_factory=Counter)  # of every value
    of_mask: dict[str, frozenset[Value]] = field(default_factory=dict)  # the values of each file
    inside: Counter[Value] = field(default_factory=Counter)  # pixels that are in no thin region, of 255 and cream
    channels: bool = False  # whether masks are stored with red, green and blue, though they may be grey
    palette: Optional[dict[Value, tuple[int, int, int]]] = None  # the colours of an index, where all have the same

    @property
    def in_colors(self) -> bool:
        """Whether they hold colours, else numbers."""
        return any(isinstance(value, tuple) for value in self.pixels)

    def share(self, value: Value) -> float:
        """Of all pixels."""
        return self.pixels[value] / sum(self.pixels.values())

    def holding(self, *values: Value) -> list[str]:
        """The masks that hold any of these."""
        return [path for path, there in self.of_mask.items() if not there.isdisjoint(values)]


def look(paths: Sequence[str], max_pixels: Optional[int] = None) -> Found:
    """Read masks, in threads. DataError names one that cannot be read."""
    in_colors = False
    modes = [_mode(path) for path in paths]
    if any(mode[0] not in "LPI1" for mode, _ in modes):
        in_colors = any(mask.ndim == 3 for mask in _read(paths, max_pixels, colors=False))
    found = Found(channels=any(mode not in ("L", "P", "I", "I;16", "1") for mode, _ in modes))
    for path, mask in zip(paths, _read(paths, max_pixels, colors=in_colors)):
        counts = counts_of(mask)
        found.pixels.update(counts)
        found.of_mask[path] = frozenset(counts)
        for value in found.of_mask[path] & {255, _CREAM}:
            found.inside[value] += _inside([mask], [value], _THIN)
    palettes = {palette for _, palette in modes}
    if len(palettes) == 1 and not found.in_colors and None not in palettes:
        found.palette = dict(enumerate(palettes.pop() or ()))
    return found


def _read(paths: Sequence[str], max_pixels: Optional[int], *, colors: bool) -> Iterable[np.ndarray]:
    """The masks, in their order; no more of them in memory than threads."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as executor, tqdm(total=len(paths), unit="mask", disable=None) as progress:
        for first in range(0, len(paths), 2 * threads):
            some = paths[first : first + 2 * threads]
            for mask in executor.map(lambda path: read_mask(path, max_pixels, colors=colors), some):
                progress.update()
                yield mask


def _mode(path: str) -> tuple[str, Optional[tuple[tuple[int, int, int], ...]]]:
    """Pillow's word for how the pixels are stored, and the colours of a palette."""
    try:
        with Image.open(path) as image:
            flat = image.getpalette() if image.mode == "P" else None
            return image.mode, tuple(zip(flat[0::3], flat[1::3], flat[2::3])) if flat else None
    except Exception:  # damaged: `read_mask` says how
        return "L", None


def counts_of(mask: np.ndarray) -> dict[Value, int]:
    """Pixels of each value of a mask as `read_mask` gives it."""
    if mask.ndim == 2 and mask.dtype == np.uint8:
        counts = np.bincount(mask.ravel(), minlength=256)
        return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    if mask.ndim == 2:
        values, counts = np.unique(mask, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist()))
    flat = mask.reshape(-1, 3).astype(np.int32)
    codes, counts = np.unique(flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2], return_counts=True)
    return {(code >> 16, code >> 8 & 255, code & 255): count for code, count in zip(codes.tolist(), counts.tolist())}


def _inside(masks: Iterable[np.ndarray], values: Sequence[Value], across: int) -> int:
    """Pixels of any of these values whose surroundings, so many pixels across, are such pixels too."""
    count = 0
    for mask in masks:
        if mask.ndim == 3:
            wide = mask.astype(np.int32)
            mask = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        numbers = [v if isinstance(v, int) else v[0] << 16 | v[1] << 8 | v[2] for v in values]
        region = np.isin(mask, numbers).astype(np.uint8)
        count += int(cv2.erode(region, np.ones((across, across), np.uint8), borderValue=1).sum())
    return count


# --- Which classes that makes ---


class Class(NamedTuple):
    """A class as masks have it."""

    name: str
    values: tuple[Value, ...]
    color: Optional[tuple[int, int, int]] = None


@dataclass
class Kind:
    """What masks mean."""

    words: str  # what they are, for people
    classes: list[Class]
    ignored: list[Value] = field(default_factory=list)
    numbered: bool = False  # whether they hold class numbers, so that a recipe need not say values
    named: bool = False  # whether the names are known
    remarks: list[str] = field(default_factory=list)


def kind_of(found: Found) -> Kind:
    """Which classes the values of masks are.

    Raises:
        DataError: nothing to tell apart, values of smoothed edges, or more than a network has classes.
    """
    values = sorted(found.pixels)
    if len(values) < 2:
        only = _shown(values[0])
        raise DataError(
            f"the masks should tell two classes apart at least, but all {len(found.of_mask)} hold {only} alone: check "
            "that these are the masks"
        )
    label_ids = _cityscapes(found, values)
    if label_ids:
        return label_ids
    _check_edges(found, values)
    ignored = _ignored(found, values)
    values = [value for value in values if value not in ignored]
    if len(values) > MAX_CLASSES_WITH_VALUES:
        raise DataError(
            f"the masks should hold a value for each class, at most {MAX_CLASSES_WITH_VALUES}, but they hold "
            f"{len(values)}, as masks of single things (instances) do: take those of classes"
        )
    if found.in_colors:
        classes = [Class(_color_name(value), (value,), value) for value in values if isinstance(value, tuple)]
        kind = Kind(f"{len(classes)} colours", classes)
    else:
        kind = _of_numbers(found, values)
    kind.ignored = ignored
    if ignored:
        kind.remarks.append(
            f"{_shown(ignored[0])} ({found.share(ignored[0]):.1%} of all pixels) is taken for what does not count: "
            "move it from ignore into classes if it is a class"
        )
    return kind


def _of_numbers(found: Found, values: Sequence[Value]) -> Kind:
    colors: dict[Value, tuple[int, int, int]] = found.palette or {}
    if len({colors.get(value) for value in values}) < len(values):
        colors = {}  # which would not tell them apart
    classes = [Class(f"class {value}", (value,), colors.get(value)) for value in values]
    if len(values) == 2 and values[0] == 0:
        classes = [only._replace(name=name) for only, name in zip(classes, ("background", "foreground"))]
    if list(values) == list(range(len(values))):
        words = f"class numbers 0 to {len(values) - 1}" + " (of a palette)" * bool(found.palette)
        return Kind(words, classes, numbered=not found.channels)
    return Kind(f"the values {', '.join(map(str, values[:12]))}{', ...' * (len(values) > 12)}", classes)


def _ignored(found: Found, values: Sequence[Value]) -> list[Value]:
    """255 beside class numbers or as thin borders, and Pascal VOC's cream."""
    value: Value = _CREAM if found.in_colors else 255
    rest = [other for other in values if other != value]
    if value not in values or len(rest) < 2:
        return []
    numbers = isinstance(rest[-1], int) and rest[-1] < 2 * len(rest)
    return [value] if numbers or found.inside[value] < 0.05 * found.pixels[value] else []


def _cityscapes(found: Found, values: Sequence[Value]) -> Optional[Kind]:
    """Cityscapes' label ids, or its colours."""
    labels = cityscapes.CLASSES
    ids = labels.raw_values or ()
    known: dict[Value, int] = {number: index for index, number in enumerate(ids)}
    others: set[Value] = set(cityscapes.LABEL_IDS)
    if found.in_colors:
        known = {color: index for index, color in enumerate(labels.colors)}
        others = set(cityscapes.COLORS)
    present = [value for value in values if value in known]
    in_name = "labelids" in next(iter(found.of_mask)).lower()
    gaps = list(values) != list(range(len(values))) and len(present) >= 8 and found.share(7) > 0
    if not set(values) <= others or not (gaps or in_name or (found.in_colors and len(present) >= 5)):
        return None
    ordered = sorted(present, key=lambda value: known[value])
    classes = [Class(labels.names[known[value]], (value,), labels.colors[known[value]]) for value in ordered]
    kind = Kind(f"Cityscapes' {'colours' if found.in_colors else 'label ids'}", classes, named=True)
    kind.ignored = sorted(others - set(present))
    kind.remarks.append("what Cityscapes does not evaluate, and its classes that do not occur, stand in ignore")
    return kind


def _check_edges(found: Found, values: Sequence[Value]) -> None:
    """SmoothedError if most of the values are those of smoothed edges."""
    rare = [value for value in values if found.share(value) < _FEW_PIXELS]
    few = len(values) <= _MANY_VALUES or (len(values) <= _MANY_NUMBERS and list(values) == list(range(len(values))))
    if few or len(rare) < len(values) / 2:
        return
    paths = found.holding(*rare)[:5]
    masks = list(_read(paths, None, colors=found.in_colors))
    inside = _inside(masks, rare, _EDGE if len(values) <= MAX_CLASSES_WITH_VALUES else _WIDE_EDGE)
    pixels = sum(count for mask in masks for value, count in counts_of(mask).items() if value in set(rare))
    if inside > 0.05 * pixels:
        return
    main = [value for value in values if value not in rare]
    shown = ", ".join(map(_shown, main[:8]))
    raise SmoothedError(
        f"the masks should hold a value for each class, but they hold {len(values)}, of which {len(rare)} lie at edges "
        f"alone, as after smoothing, resizing or JPEG (the others are {shown}): export them anew without smoothing "
        "(anti-aliasing) and resize them with nearest neighbour; or write the classes and their colours into a file (a "
        'line each, such as "road 128 64 128") and run hmsa convert voc-colours --masks '
        f"{Path(paths[0]).parent} --classes FILE --nearest --output FOLDER"
    )


def _color_name(color: Value) -> str:
    name = _NAMES.get(color) if isinstance(color, tuple) else None
    return name or "#{:02x}{:02x}{:02x}".format(*color if isinstance(color, tuple) else (0, 0, 0))


def _shown(value: Value) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
