# SPDX-License-Identifier: Apache-2.0
"""What a data set holds: a table for people, JSON for programs, and a sheet of samples to look at."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.classes import Classes, Value
from hmsa.datasets.dataset import Pair
from hmsa.datasets.findings import Finding
from hmsa.datasets.images import read_mask
from hmsa.datasets.survey import Survey, meaning, spread
from hmsa.errors import DataError, printable
from hmsa.visualize import color_palette, highlight

SHEET_SAMPLES = 12

_MAX_LISTED = 256  # values and sizes in the JSON
_MAX_NAMED = 5  # files, in the table
_UNKNOWN = (255, 0, 255)
_CELL, _LINE, _MARGIN = (240, 180), 18, 8  # pixels


# --- For people ---


def table(surveys: Mapping[str, Survey], findings: Sequence[Finding]) -> str:
    """Classes, sizes and kinds of files of every data set, and what was found."""
    parts = [_classes(surveys)] if surveys else []
    parts += [line for name, of in surveys.items() for line in _files(name, of)]
    for finding in findings:
        parts.append(f"\n{finding.severity}: {finding.dataset + ': ' * bool(finding.dataset)}{finding.sentence}")
        parts += [f"    {line}" for line in finding.lines]
        named = finding.names if finding.kind != "absent_classes" else ()
        parts += [f"  - {name}" for name in named[:_MAX_NAMED]]
        if named and finding.count > _MAX_NAMED:
            parts.append(f"  - and {finding.count - min(_MAX_NAMED, len(named))} more")
    if not findings:
        parts.append("\nnothing is wrong")
    return "\n".join(_printable(line) for part in parts for line in part.split("\n"))


def _printable(line: str) -> str:
    blanks = len(line) - len(line.lstrip(" "))
    return " " * blanks + printable(line[blanks:])


def _classes(surveys: Mapping[str, Survey]) -> str:
    grid = Table("class")
    for name in surveys:
        for what in ("pixels", "images"):
            grid.add_column(f"{name} {what}", justify="right")
    some = next(iter(surveys.values()))
    for number, class_name in enumerate(some.classes.names):
        cells = []
        for of in surveys.values():
            cells += [_share(int(of.class_pixels[number]), of.pixels), str(of.class_images[number])]
        grid.add_row(class_name, *cells)
    for what, counts in (
        ("(ignored)", [of.ignored_pixels for of in surveys.values()]),
        ("(no class)", [of.strange_pixels for of in surveys.values()]),
    ):
        if any(counts):
            shares = [_share(count, of.pixels) for count, of in zip(counts, surveys.values())]
            grid.add_row(what, *(cell for share in shares for cell in (share, "")))
    text = io.StringIO()
    Console(file=text, width=100, markup=False, emoji=False).print(grid)
    return text.getvalue().rstrip("\n")


def _share(count: int, total: int) -> str:
    if count == 0:
        return "-"
    share = 100 * count / total
    return f"{share:.2f} %" if share >= 0.005 else "< 0.01 %"


def _files(name: str, of: Survey) -> list[str]:
    some = f" of {of.of}" if of.sampled else ""
    sizes = _sizes(of.sizes)
    between = ""
    if sizes:
        low, middle, high = ("x".join(map(str, sizes[key])) for key in ("smallest", "median", "largest"))
        between = f", {low}" if low == high else f", {low} to {high}, the middle {middle}, {len(of.sizes)} sizes"
    kinds = ", ".join(f"{count} {kind}" for kind, count in of.stored.most_common(6))
    masks = ", ".join(f"{count} {kind}" for kind, count in of.masks_stored.most_common(6))
    return [
        f"{name}: {len(of.pairs)}{some} pairs{between}",
        *([f"{name}: images {kinds}; masks {masks}"] if kinds or masks else []),
    ]


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, list[int]]:
    """Width and height of the image with the fewest pixels, the middle one, and the one with the most."""
    if not sizes:
        return {}
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    place = np.searchsorted(np.cumsum([sizes[size] for size in ordered]), sum(sizes.values()) / 2)
    found = {"smallest": ordered[0], "median": ordered[int(place)], "largest": ordered[-1]}
    return {key: list(size) for key, size in found.items()}


def statistics_lines(of: Survey) -> list[str]:
    """The measured mean and standard deviation of the images, as the recipe's transform."""
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in of.mean_and_std())
    return ["- type: Normalize", f"  mean: [{mean}]", f"  std: [{std}]"]


# --- For programs ---


def to_json(
    surveys: Mapping[str, Survey], findings: Sequence[Finding], *, config: str, seconds: float
) -> dict[str, Any]:
    """Everything for a program to read.

    Args:
        config: path of the recipe.
    """
    some = next(iter(surveys.values()), None)
    return {
        "config": config,
        "classes": _described(some.classes) if some else [],
        "datasets": {name: _facts(of) for name, of in surveys.items()},
        "findings": [
            {"severity": finding.severity, **asdict(finding), "names": [*finding.names], "lines": [*finding.lines]}
            for finding in findings
        ],
        "seconds": seconds,
    }


def _described(classes: Classes) -> list[dict[str, Any]]:
    values = classes.values or [None] * len(classes)
    return [
        {"name": name, "color": list(color), "values": None if of is None else list(map(_plain, of))}
        for name, color, of in zip(classes.names, classes.colors, values)
    ]


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _facts(of: Survey) -> dict[str, Any]:
    mean, std = of.mean_and_std()
    names = of.classes.names
    sizes = of.sizes.most_common(_MAX_LISTED)
    values = of.values.most_common(_MAX_LISTED)
    return {
        "pairs": of.of,
        "looked_at": len(of.pairs),
        "masks": of.masks,
        "pixels": of.pixels,
        "class_pixels": dict(zip(names, of.class_pixels.tolist())),
        "class_images": dict(zip(names, of.class_images.tolist())),
        "ignored_pixels": of.ignored_pixels,
        "unknown_pixels": of.strange_pixels,
        "values": [
            {"value": _plain(value), "pixels": count, "masks": of.masks_of_value[value]} for value, count in values
        ],
        "sizes": {
            **_sizes(of.sizes),
            "different": len(of.sizes),
            "most_frequent": [{"size": list(size), "images": count} for size, count in sizes],
        },
        "stored": dict(of.stored),
        "masks_stored": dict(of.masks_stored),
        "orientations": {str(orientation): count for orientation, count in sorted(of.orientations.items())},
        "mean": _numbers(mean),
        "std": _numbers(std),
        "named": {kind: {"count": named.count, "first": named.first} for kind, named in sorted(of.named.items())},
    }


def _numbers(values: np.ndarray) -> Optional[list[float]]:
    return None if np.isnan(values).any() else values.round(6).tolist()


# --- To look at ---


def sheet(
    surveys: Mapping[str, Survey], max_pixels: Optional[int] = None, in_channels: int = 3
) -> Optional[Image.Image]:
    """Samples of every data set: images with the colours of their masks laid over, and a legend.

    What the recipe does not name is chequered; ignored pixels, and those of a background, show the image. None where no
    pair can be read.
    """
    count = SHEET_SAMPLES // max(len(surveys), 1)
    cells = []
    for name, of in surveys.items():
        for pair in spread([pair for pair in of.pairs if pair[1]], count):
            cell = _sample(pair, of.classes, max_pixels, in_channels)
            if cell is not None:
                cells.append((f"{name}: {pair[0].replace(chr(92), '/').rpartition('/')[2]}", cell))
    if not cells:
        return None
    rows = [cells[place : place + 2] for place in range(0, len(cells), 2)]
    heights = [_LINE + max(cell.height for _, cell in row) + _MARGIN for row in rows]
    column = 2 * _CELL[0] + 2 * _MARGIN
    some = next(iter(surveys.values()))
    legend = _legend(some.classes, 2 * column, any(of.strange_pixels for of in surveys.values()))

    page = Image.new("RGB", (2 * column, sum(heights) + legend.height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    top = 0
    for row, height in zip(rows, heights):
        for left, (title, cell) in zip((_MARGIN, column + _MARGIN), row):
            draw.text((left, top + 2), printable(title)[-70:], "black", font)
            page.paste(cell, (left, top + _LINE))
        top += height
    page.paste(legend, (0, top))
    return page


def _sample(pair: Pair, classes: Classes, max_pixels: Optional[int], in_channels: int) -> Optional[Image.Image]:
    """The image and, beside it, its overlay; None if they cannot be read or do not fit."""
    try:
        image = displayed(read_bands(pair[0], in_channels, max_pixels)[0])
        mask = read_mask(pair[1] or "", max_pixels, colors=classes.in_colors)
    except DataError:
        return None
    if image.shape[:2] != mask.shape[:2]:
        return None
    scale = min(_CELL[0] / image.shape[1], _CELL[1] / image.shape[0])
    size = max(int(image.shape[1] * scale), 1), max(int(image.shape[0] * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    label, strange = _label(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), classes)

    plain = (classes.ignore_index, *classes.background)
    shown = highlight(small, label, color_palette(class_colors=classes.colors), 0.6, plain=plain)
    shown[strange] = _UNKNOWN
    rows, columns = np.indices(label.shape)
    shown[strange & ((rows // 3 + columns // 3) % 2 == 0)] = 0
    cell = Image.new("RGB", (2 * _CELL[0], size[1]), "white")
    cell.paste(Image.fromarray(small), (0, 0))
    cell.paste(Image.fromarray(shown), (_CELL[0], 0))
    return cell


def _label(mask: np.ndarray, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, uint8 [H, W], and bool [H, W] of what means nothing."""
    known = meaning(classes)
    values, inverse = np.unique(mask.reshape(-1, *mask.shape[2:]), axis=0, return_inverse=True)
    keys: list[Any] = [tuple(value) if mask.ndim == 3 else value for value in values.tolist()]
    numbers = np.array([known.get(key, classes.ignore_index) for key in keys], np.uint8)
    strange = np.array([key not in known for key in keys])
    inverse = inverse.reshape(mask.shape[:2])
    return numbers[inverse], strange[inverse]


def _legend(classes: Classes, width: int, with_unknown: bool) -> Image.Image:
    """Names beside their colours, in columns."""
    entries = [*zip(classes.names, classes.colors), *([("(no class)", _UNKNOWN)] if with_unknown else [])]
    columns = max(width // 190, 1)
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (width, rows * _LINE + 2 * _MARGIN), "white")
    draw, font = ImageDraw.Draw(legend), ImageFont.load_default(12)
    for place, (name, color) in enumerate(entries):
        left, top = place % columns * 190 + _MARGIN, place // columns * _LINE + _MARGIN
        draw.rectangle((left, top, left + 14, top + 14), fill=tuple(color), outline="black")
        draw.text((left + 20, top), printable(name)[:24], "black", font)
    return legend
