# SPDX-License-Identifier: Apache-2.0
"""What the numbers in label maps stand for, and what masks hold in their place."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import cv2
import numpy as np

from hmsa.config.text import one_line
from hmsa.visualize import distinct_colors

Value = Union[int, tuple[int, int, int]]
"""What a mask's pixel holds: a number, 0 to 65535, or a colour, red, green and blue."""


@dataclass(frozen=True)
class Classes:
    """The K classes of label maps: number k has the k-th name and colour.

    Where masks hold other values than class numbers, `values` are those of each class, several being merged, and
    `ignored` those of pixels that do not count: all numbers, or all colours.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # red, green, blue, each 0 to 255
    ignore_index: int = 255  # in labels: of pixels that belong to no class
    raw_values: Optional[tuple[int, ...]] = None  # 0 to 255, what label-id images are written with, if with others
    values: Optional[tuple[tuple[Value, ...], ...]] = None
    ignored: tuple[Value, ...] = ()
    categories: tuple[str, ...] = ()  # of each class, where they are grouped

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.colors) == len(self.raw_values or self.names)
        assert len(self.values or self.names) == len(self.categories or self.names) == len(self.names)

    @classmethod
    def numbered(cls, count: int, ignore_index: int = 255) -> Classes:
        """Classes of which nothing is known: "class 0", ... in colours that are easy to tell apart."""
        names = tuple(f"class {index}" for index in range(count))
        return cls(names=names, colors=distinct_colors(count), ignore_index=ignore_index)

    def __len__(self) -> int:
        """How many there are, K."""
        return len(self.names)

    @property
    def background(self) -> tuple[int, ...]:
        """Numbers of the classes that are named so, where overlays show the image alone."""
        return tuple(k for k, name in enumerate(self.names) if name.strip("_ ").casefold() == "background")

    @property
    def in_colors(self) -> bool:
        """Whether masks hold colours."""
        return any(isinstance(value, tuple) for value in [*self.ignored, *(v for of in self.values or () for v in of)])


def class_numbers(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """The label of a mask that holds `classes.values`: uint8 [H, W] of class numbers and `ignore_index`.

    Args:
        mask: uint8 or uint16 [H, W], or of colours uint8 [H, W, 3] RGB.

    Raises:
        ValueError: naming the values in it that mean nothing, as `values:` has them.
    """
    assert mask.ndim == (3 if classes.in_colors else 2)
    table, unknown = _table(classes)
    if mask.ndim == 2 and mask.dtype == np.uint8:
        label = cv2.LUT(mask, table[:256])
    else:
        label = np.empty(mask.shape[:2], np.uint8)
        for rows in (slice(first, first + 64) for first in range(0, len(mask), 64)):  # whose codes stay in the cache
            np.take(table, _codes(mask[rows]), mode="clip", out=label[rows])
    if (label == unknown).any():
        strange = np.unique(_codes(mask)[label == unknown])
        raise ValueError(named([_value(code, mask.ndim == 3) for code in strange[:10].tolist()], len(strange)))
    return label


def named(values: Sequence[Value], count: int) -> str:
    """Values as a recipe has them, such as "[7, 9] and 3 more" of `count` in all."""
    written = ", ".join(str(list(value)) if isinstance(value, tuple) else str(value) for value in values)
    return f"[{written}]" + (f" and {count - len(values)} more" if count > len(values) else "")


def recipe_lines(entries: Iterable[Mapping[str, Any]], ignored: Sequence[Value] = (), *, note: str = "") -> list[str]:
    """`classes:` of a recipe, a line for each entry's name, color and values, or those that it has, and `ignore:`."""
    keys = ("name", "color", "values")
    rows = [{key: entry[key] for key in keys if entry.get(key) is not None} for entry in entries]
    lines = [f"classes:  # {note}" if note else "classes:", *(f"  - {one_line(row)}" for row in rows)]
    return [*lines, f"ignore: {one_line(ignored)}"] if ignored else lines


@functools.lru_cache(maxsize=4)
def _table(classes: Classes) -> tuple[np.ndarray, int]:
    """The label of every value that there can be, uint8 [2^16], of colours [2^24]; and what means no class."""
    assert classes.values is not None
    unknown = next(
        number for number in range(255, -1, -1) if number not in (*range(len(classes)), classes.ignore_index)
    )
    table = np.full(2**24 if classes.in_colors else 2**16, unknown, np.uint8)
    for number, values in enumerate(classes.values):
        table[[_code(value) for value in values]] = number
    table[[_code(value) for value in classes.ignored]] = classes.ignore_index
    return table, unknown


def _codes(mask: np.ndarray) -> np.ndarray:
    """The place of each pixel's value in the table, [H, W]."""
    if mask.ndim == 2:
        return mask
    opaque = cv2.cvtColor(mask, cv2.COLOR_RGB2RGBA)  # four bytes, which make one number
    return opaque.view("<u4")[..., 0] & 0xFFFFFF


def _code(value: Value) -> int:
    return value if isinstance(value, int) else value[0] | value[1] << 8 | value[2] << 16


def _value(code: int, is_color: bool) -> Value:
    return (code & 255, code >> 8 & 255, code >> 16) if is_color else code
