# SPDX-License-Identifier: Apache-2.0
"""Names and colours of classes: read from what people have, written as text and for a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from hmsa.datasets.classes import Classes, recipe_lines
from hmsa.datasets.images import read_bytes
from hmsa.datasets.lists import is_file
from hmsa.errors import DataError, UsageError
from hmsa.visualize import palette

IGNORED = 255
"""In masks: of pixels that belong to no class."""

MAX_CLASSES = 255  # the numbers below IGNORED

BACKGROUNDS = ("background", "_background_", "__background__")
"""Names of the class of all that nobody drew, in lower case: the second is labelme's."""

IGNORED_LABELS = ("__ignore__",)  # labelme's

Color = tuple[int, int, int]  # red, green, blue, each 0 to 255

_RGB = r"(?P<r>\d{1,3})[,;\s]+(?P<g>\d{1,3})[,;\s]+(?P<b>\d{1,3})"
_COLORED = (
    re.compile(rf"{_RGB}([,;\s]+(?P<name>.*))?"),
    re.compile(rf"(?P<name>.*?)[,;\s]+{_RGB}"),
    re.compile(rf"(?P<name>[^:]*):{_RGB}:.*"),  # CVAT's
)
_HEADERS = ("name,r,g,b", "r,g,b,name")


class Table(NamedTuple):
    """Classes by number, and their colours where these are known."""

    names: tuple[str, ...]
    colors: Optional[tuple[Color, ...]] = None


def read_table(path: Path) -> Table:
    """A class a line: `name`, `name R G B`, `R G B name`, or CVAT's `name:R,G,B:parts:actions`; # starts a comment.

    Commas and semicolons stand for blanks, and a first line may name the columns. DataError names every line that is no
    class.
    """
    names, colors, problems = [], [], []
    for place, text in _lines(path):
        if re.sub(r"[\s;,]+", ",", text.lower()) in _HEADERS:
            continue
        found = next(filter(None, (pattern.fullmatch(text) for pattern in _COLORED)), None)
        name = clean(found["name"] or "" if found else text)
        color = (int(found["r"]), int(found["g"]), int(found["b"])) if found else None
        if color and max(color) > 255:
            problems.append(f"{path}, line {place}: expected a colour of 0 to 255, found {color}: correct it")
        elif not name or name in names:
            what = f"{name!r} a second time" if name else "no name"
            problems.append(f"{path}, line {place}: expected the name of a class, found {what}: correct it")
        names.append(name)
        colors.append(color)
    if problems:
        raise DataError(*problems[:20])
    if not names:
        raise DataError(f"{path} should name a class on each line, but names none: write them")
    if None in colors and any(colors):
        raise DataError(
            f"{path} should give a colour (R G B) on every line or on none, but {names[colors.index(None)]!r} has "
            "none: add it"
        )
    return Table(tuple(names), tuple(colors) if any(colors) else None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that hold something, and their numbers from 1."""
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} should be a text in UTF-8, but: {error}; save it as UTF-8") from error
    for place, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield place, line.strip()


def given_table(given: Sequence[str]) -> Table:
    """A table from one text file, or from names."""
    if len(given) == 1 and is_file(Path(given[0])):
        return read_table(Path(given[0]))
    names = tuple(map(clean, given))
    if len(given) == 1 and Path(given[0]).suffix:
        raise DataError(f"{given[0]} should be a text file with a class a line, but there is none: correct the path")
    again = [name for name in names if names.count(name) > 1]
    if again:
        raise UsageError(f"expected every class once, found {again[0]!r} twice: leave one out")
    return Table(names)


def clean(label: str) -> str:
    """A name on one line, without blanks around it."""
    return " ".join(label.split())


def is_background(name: str) -> bool:
    """Whether it is one of BACKGROUNDS."""
    return name.casefold() in BACKGROUNDS


class Numbering(NamedTuple):
    """The classes of masks, and what pixels hold that nobody drew in."""

    classes: Classes
    unlabelled: int  # the class "background", or IGNORED
    numbers: dict[str, int]  # name or label -> class, or IGNORED


def number(table: Table, *, background: bool, ignored: Iterable[str] = ()) -> Numbering:
    """Number the classes of a table; with `background`, that class comes first unless the table has it.

    Labels in `ignored`, and labelme's `__ignore__`, are no classes.
    """
    ignored = {*ignored, *IGNORED_LABELS}
    rows = [
        (name, table.colors[place] if table.colors else None)
        for place, name in enumerate(table.names)
        if name not in ignored
    ]
    if background and not any(is_background(name) for name, _ in rows):
        rows.insert(0, ("background", (0, 0, 0)))
    if not 0 < len(rows) <= MAX_CLASSES:
        raise UsageError(f"expected 1 to {MAX_CLASSES} classes, found {len(rows)}: name those that matter")

    names = tuple(name for name, _ in rows)
    known = _default_colors(len(rows), is_background(names[0]))
    colors = tuple(color or default for (_, color), default in zip(rows, known))
    classes = Classes(names=names, colors=colors, ignore_index=IGNORED)
    place = next((place for place, name in enumerate(names) if is_background(name)), IGNORED)
    numbers = {**dict.fromkeys(ignored, IGNORED), **{name: k for k, name in enumerate(names)}}
    if place != IGNORED:
        numbers.update({name: place for name in BACKGROUNDS if name not in numbers})
    return Numbering(classes, place if background else IGNORED, numbers)


def ignored_colors(table: Table, ignored: Iterable[str]) -> list[Color]:
    """Those of the names that `number` takes for no classes."""
    return [color for name, color in zip(table.names, table.colors or ()) if name in {*ignored, *IGNORED_LABELS}]


def _default_colors(count: int, black_first: bool) -> list[Color]:
    """PaddleSeg's palette; behind a black background it is Pascal VOC's."""
    flat = [0, 0, 0, *palette(count)] if black_first else palette(count)
    return list(zip(flat[0::3], flat[1::3], flat[2::3]))[:count]


def names_text(classes: Classes) -> str:
    """A name a line, in the order of their numbers."""
    return "".join(f"{name}\n" for name in classes.names)


def recipe_text(classes: Classes) -> str:
    """The `classes:` of a recipe, as YAML."""
    note = f"{len(classes)}; in the masks, class number k is the k-th, {classes.ignore_index} is ignored"
    entries = [{"name": name, "color": color} for name, color in zip(classes.names, classes.colors)]
    return "\n".join(recipe_lines(entries, note=note)) + "\n"
