# SPDX-License-Identifier: Apache-2.0
"""Masks in colours, as Pascal VOC has them, and as drawing programs export them: a colour stands for a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hmsa.datasets.drawn.masks import Notes, Task, images_below, mask_name
from hmsa.datasets.drawn.tables import IGNORED, Color, Table
from hmsa.datasets.images import read_image
from hmsa.errors import DataError
from hmsa.visualize import palette

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_flat = [0, 0, 0, *palette(20)]  # PaddleSeg's palette is VOC's without the first colour

VOC = Table(tuple(_NAMES.split()), tuple(zip(_flat[0::3], _flat[1::3], _flat[2::3])))
"""The 21 classes of Pascal VOC 2012."""

BORDERS: tuple[Color, ...] = ((224, 224, 192), (255, 255, 255))
"""Cream, of the border around things in VOC, and white: ignored unless a class has the colour."""

_STRAY = IGNORED - 1
_SHOWN = 3  # colours of a file


class Coding(NamedTuple):
    """Colours and what they stand for."""

    colors: np.ndarray  # uint8 [n, 3] RGB
    values: np.ndarray  # uint8 [n], classes or IGNORED
    lookup: np.ndarray  # uint8 [2 ** 24], by the colour's 24 bits; _STRAY where it is none of `colors`


def coding(colors: Sequence[Color], ignored: Sequence[Color] = BORDERS) -> Coding:
    """Class k has the k-th colour. DataError if two have the same, as nothing tells them apart."""
    again = next((color for color in colors if list(colors).count(color) > 1), None)
    if again is not None:
        first, second = [place for place, color in enumerate(colors) if color == again][:2]
        raise DataError(f"classes {first} and {second} should differ in colour, but both have {again}: change one")
    if len(colors) >= _STRAY:
        raise DataError(f"expected fewer than {_STRAY} classes with a colour of their own, found {len(colors)}")
    extra = [color for color in ignored if color not in colors]
    table = np.array([*colors, *extra], np.uint8)
    values = np.array([*range(len(colors)), *[IGNORED] * len(extra)], np.uint8)
    lookup = np.full(1 << 24, _STRAY, np.uint8)
    lookup[_code(table)] = values
    return Coding(table, values, lookup)


def _code(colors: np.ndarray) -> np.ndarray:
    """int32 [...] of uint8 [..., 3]: red, green and blue as 24 bits."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def find(masks: Path, but: Iterable[Path] = ()) -> list[Path]:
    """All images below a folder; DataError if there is none."""
    paths = images_below(masks, but) if masks.is_dir() else []
    if not paths:
        found = "holds none" if masks.is_dir() else "is no folder"
        raise DataError(f"{masks} should hold masks, but it {found}: correct the path")
    return paths


def tasks(paths: Iterable[Path], root: Path, code: Coding, *, nearest: bool) -> list[Task]:
    """A mask of class numbers for each in colours, under the same name."""

    def task(path: Path) -> Task:
        return Task(
            mask_name(path.relative_to(root)), str(path), lambda notes: draw(path, code, notes, nearest=nearest)
        )

    return [task(path) for path in paths]


def draw(path: Path, code: Coding, notes: Notes, *, nearest: bool) -> np.ndarray:
    """The mask, uint8 [H, W]; colours of no class become IGNORED, or what the nearest colour stands for, and are noted.

    Without `nearest`, DataError if not one pixel has a colour of a class: it is no mask of these colours.
    """
    codes = _code(read_image(path))
    label = code.lookup[codes]
    is_stray = label == _STRAY
    if not is_stray.any():
        return label

    strays, places, counts = np.unique(codes[is_stray], return_inverse=True, return_counts=True)
    if is_stray.all() and not nearest:
        is_grey = (strays >> 16 == strays & 255).all() and (strays >> 8 & 255 == strays & 255).all()
        raise DataError(
            f"{path} should hold the classes' colours, but it holds none of them, only {_shown(strays, counts)}: "
            + ("its numbers may be class numbers already" if is_grey else "name the colours of the classes")
        )
    label[is_stray] = _nearest(strays, code)[places] if nearest else IGNORED
    what = f"{counts.sum()} pixels ({counts.sum() / label.size:.2%}) of {_shown(strays, counts)}"
    notes.add("given the nearest colour" if nearest else "colour of no class, ignored", what)
    return label


def _nearest(strays: np.ndarray, code: Coding) -> np.ndarray:
    """uint8 [n]: what the nearest colour stands for, by the distance in RGB, of each of n 24 bits."""
    colors = np.stack([strays >> 16, strays >> 8 & 255, strays & 255], axis=-1)
    best = np.full(len(strays), np.iinfo(np.int32).max, np.int32)
    value = np.full(len(strays), IGNORED, np.uint8)
    for color, meant in zip(code.colors.astype(np.int32), code.values):  # one at a time: n may be millions
        distance = ((colors - color) ** 2).sum(axis=-1)
        value[distance < best] = meant
        best = np.minimum(best, distance)
    return value


def _shown(codes: np.ndarray, counts: np.ndarray) -> str:
    """The most frequent colours."""
    order = np.argsort(-counts, kind="stable")[:_SHOWN].tolist()
    colors = [f"({c >> 16}, {c >> 8 & 255}, {c & 255}): {n}" for c, n in zip(codes[order].tolist(), counts[order])]
    more = f" and {len(codes) - _SHOWN} more colours" if len(codes) > _SHOWN else ""
    return ", ".join(colors) + more
