# SPDX-License-Identifier: Apache-2.0
"""What training sees, to look at: a sheet of crops as the loader gives them, and an image after each transform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.transforms import (
    Normalize,
    PaddleSegTransform,
    RandomDistort,
    RandomHorizontalFlip,
    RandomPaddingCrop,
    ResizeStepScaling,
    Sample,
    Transform,
    divisor_of,
)
from hmsa.errors import printable
from hmsa.visualize import color_palette, highlight, legend, lettering

_COLUMNS, _CELL, _LINE, _GAP = 4, 320, 20, 12  # pixels, but for the first
_MUTED = (96, 96, 96)
_IGNORED = (128, 128, 128)


# --- Crops. ---


@dataclass(frozen=True)
class Crop:
    """What the loader gives of one image, ready to be drawn."""

    path: str  # of the image
    image: np.ndarray  # uint8 [H, W, 3] RGB, see `hmsa.datasets.bands.displayed`
    label: np.ndarray  # int [H, W]
    is_coarse: Optional[bool] = None  # auto-labelled; None where the data set does not tell such images apart


def denormalised(image: np.ndarray, transforms: Sequence[Any], stored: np.dtype) -> np.ndarray:
    """An image as it was before `Normalize`, for people to look at: uint8 [H, W, 3].

    Args:
        image: float32 [H, W, C].
        transforms: what was done to it; all but `Normalize` is left as it is.
        stored: of the numbers in the file, which say by what they were divided.
    """
    values = image.astype(np.float64)
    divisor = divisor_of(np.empty((0, 0, image.shape[2]), stored))
    for transform in reversed(transforms):
        if isinstance(transform, Normalize):
            values = (values * transform.std + transform.mean) * divisor
    if stored.kind == "u":
        values = np.clip(np.rint(values), 0, np.iinfo(stored).max)
    return displayed(values.astype(stored))


def crop_of(batch: dict[str, Any], dataset: SegmentationDataset) -> Crop:
    """The crop in a batch of one that the loader made of a data set."""
    path, image = batch["image_path"][0], batch["img"][0].transpose(1, 2, 0)
    stored = np.dtype(np.uint8)  # as all images of three channels
    if dataset.in_channels != 3:
        stored = read_bands(path, dataset.in_channels, dataset.max_image_pixels)[0].dtype
    is_coarse = path in {image for image, _ in dataset.coarse_pairs} if dataset.coarse_per_epoch else None
    return Crop(path, denormalised(image, dataset.transforms, stored), batch["label"][0], is_coarse)


def sheet(title: str, crops: Iterable[Crop], classes: Classes, opacity: float) -> Image.Image:
    """Crops in rows, with their labels laid over, each above its file and what is to know of it; then a legend.

    Files are called by their names, or by their paths where two are called the same.
    """
    cells, present = [], set()
    for crop in crops:
        share = f"{percent((crop.label == classes.ignore_index).mean())} ignored"
        kind = {None: "", True: " · coarse, auto-labelled", False: " · fine"}[crop.is_coarse]
        cells.append(Cell(_overlay(crop.image, crop.label, classes, opacity), crop.path, [share + kind]))
        present.update(np.unique(crop.label).tolist())

    paths = {cell.name for cell in cells}
    if len({Path(path).name for path in paths}) == len(paths):
        cells = [replace(cell, name=Path(cell.name).name) for cell in cells]
    return draw_page(title, cells, _legend(present, classes))


def percent(share: float) -> str:
    """A share of 1, such that only nothing is 0 % and only all is 100 %."""
    if 0 < share < 0.01:
        return "< 1 %"
    return f"{min(round(100 * share), 99) if share < 1 else 100} %"


# --- Transforms. ---


@dataclass(frozen=True)
class Stage:
    """An image after one of its transforms."""

    name: str
    drawn: str  # what was done, with the numbers that were drawn
    image: np.ndarray  # uint8 [H, W, 3] RGB
    label: np.ndarray  # int [H, W]


class Recorder:
    """A generator of random numbers that notes what it gives: the same numbers as without it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.given: list[Any] = []

    def __getattr__(self, method: str) -> Any:
        def draw(*arguments: Any, **options: Any) -> Any:
            self.given.append(getattr(self._rng, method)(*arguments, **options))
            return self.given[-1]

        return draw


def stages(
    sample: Sample, transforms: Sequence[Transform], names: Sequence[str], rng: np.random.Generator
) -> list[Stage]:
    """A sample as it was read, and after each transform, which draw from `rng`.

    Args:
        names: of the transforms.
    """
    stored = sample["img"].dtype
    found = [Stage("as it is read", _size(sample), displayed(sample["img"]), sample["label"].copy())]
    for number, (transform, name) in enumerate(zip(transforms, names), 1):
        before, recorder = _size(sample), Recorder(rng)
        sample = transform(sample, recorder)  # type: ignore[arg-type]  # has the methods of a generator
        image = sample["img"]
        shown = denormalised(image, transforms[:number], stored) if image.dtype != stored else displayed(image)
        drawn = described(transform, recorder.given)
        size = _size(sample)
        parts = [drawn, f"{before} to {size}" if size != before else ""]
        found.append(Stage(name, "; ".join(part for part in parts if part), shown.copy(), sample["label"].copy()))
    return found


def described(transform: Transform, given: Sequence[Any]) -> str:
    """What a transform has done, by the random numbers that it was given."""
    if isinstance(transform, ResizeStepScaling):
        return f"factor {given[0]:.3g}"
    if isinstance(transform, RandomPaddingCrop):
        top, left = given[-2:]
        again = f", drawn {len(given) // 2} times" if len(given) > 2 else ""
        return f"from row {top}, column {left}{again}"
    if isinstance(transform, RandomHorizontalFlip):
        done = "mirrored" if given[0] < transform.prob else "not mirrored"
        return f"{done}: {given[0]:.2f} was drawn, prob is {transform.prob:g}"
    if isinstance(transform, RandomDistort):
        return _distortions(transform, given)
    if isinstance(transform, Normalize):
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (transform.mean, transform.std))
        return f"mean {mean}; std {std}; shown as before it"
    if isinstance(transform, PaddleSegTransform):
        return f"PaddleSeg's, seed {given[0]}"
    return ""


def _distortions(transform: RandomDistort, given: Sequence[Any]) -> str:
    order, *numbers = given
    rest, done = iter(numbers), []
    for index in order:
        function, _, _, probability = transform.steps[index]
        if next(rest) < probability:
            done.append(f"{function.__name__} {next(rest):.3g}")
    return ", ".join(done) or "nothing drawn"


def _size(sample: Sample) -> str:
    height, width = sample["img"].shape[:2]
    return f"{width}x{height}"


def stages_sheet(title: str, found: Sequence[Stage], classes: Classes, opacity: float) -> Image.Image:
    """The stages in their order, all to one scale, with their labels laid over; then a legend."""
    longest = max(side for stage in found for side in stage.image.shape[:2])
    cells = [
        Cell(
            _overlay(stage.image, stage.label, classes, opacity, longest),
            f"{number}  {stage.name}",
            _wrapped(stage.drawn),
        )
        for number, stage in enumerate(found)
    ]
    present = {number for stage in found for number in np.unique(stage.label).tolist()}
    return draw_page(title, cells, _legend(present, classes), columns=3)


# --- Drawing. ---


@dataclass(frozen=True)
class Cell:
    picture: Image.Image
    name: str
    lines: Sequence[str]


def _overlay(
    image: np.ndarray, label: np.ndarray, classes: Classes, opacity: float, longest: Optional[int] = None
) -> Image.Image:
    """An image with the colours of its label, no larger than a cell, ignored pixels hatched.

    Args:
        longest: what becomes as long as a cell; without it, the image's own longer side.
    """
    factor = _CELL / (longest or max(image.shape[:2]))
    factor = factor if factor < 1 else int(factor)
    size = tuple(max(round(side * factor), 1) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    ignored = cv2.resize((label == classes.ignore_index).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    numbers = cv2.resize(label.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)

    palette = color_palette(class_colors=classes.colors)
    shown = highlight(small, numbers, palette, opacity, plain=classes.background)
    rows, columns = np.indices(ignored.shape)
    stripe = (rows + columns) % 10 < 4
    shown[ignored] = np.rint(0.5 * small[ignored] + 0.5 * np.array(_IGNORED))
    shown[ignored & stripe] = np.rint(0.4 * small[ignored & stripe] + 0.6 * 255)
    return Image.fromarray(shown)


def _legend(present: set[int], classes: Classes) -> tuple[list[str], list[Any]]:
    """Names and colours of the numbers that labels hold."""
    shown = [number for number in range(len(classes)) if number in present and number != classes.ignore_index]
    names, colors = [classes.names[number] for number in shown], [classes.colors[number] for number in shown]
    if classes.ignore_index in present:
        names, colors = [*names, "ignored (striped)"], [*colors, _IGNORED]
    return list(map(printable, names)), colors


def draw_page(
    title: str, cells: Sequence[Cell], entries: tuple[list[str], list[Any]], columns: int = _COLUMNS
) -> Image.Image:
    columns = min(columns, len(cells))
    rows = [cells[place : place + columns] for place in range(0, len(cells), columns)]
    tops = [max(cell.picture.height for cell in row) for row in rows]
    heights = [top + _LINE * (1 + max(len(cell.lines) for cell in row)) + 2 * _GAP for top, row in zip(tops, rows)]
    width = max(columns * (_CELL + _GAP) + _GAP, 2 * _CELL)
    foot = Image.fromarray(legend(*entries, width=width - 2 * _GAP))

    page = Image.new("RGB", (max(width, foot.width + 2 * _GAP), 3 * _LINE + sum(heights) + foot.height + _GAP), "white")
    draw, letters = ImageDraw.Draw(page), lettering()
    draw.text((_GAP, _LINE), shortened(title, page.width - 2 * _GAP), "black", letters, anchor="lm")
    top = 2 * _LINE
    for row, height, below in zip(rows, heights, tops):
        for column, cell in enumerate(row):
            left = _GAP + column * (_CELL + _GAP)
            page.paste(cell.picture, (left, top))
            for number, (line, color) in enumerate([(cell.name, "black"), *((line, _MUTED) for line in cell.lines)]):
                place = (left, top + below + _LINE * number + _LINE // 2 + 4)
                draw.text(place, shortened(line, _CELL), color, letters, anchor="lm")
        top += height
    page.paste(foot, (_GAP, top))
    return page


def shortened(text: str, width: int) -> str:
    """A text of at most so many pixels, with an ellipsis in its middle if it was longer."""
    text, letters = printable(text), lettering()
    kept = len(text)
    shown = text
    while letters.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown


def _wrapped(text: str) -> list[str]:
    """The words of a text in lines as wide as a cell."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and lettering().getlength(longer) <= _CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
