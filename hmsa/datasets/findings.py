# SPDX-License-Identifier: Apache-2.0
"""What a person should know of a data set before it is trained on: a sentence each, with what to do."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from hmsa.config.text import one_line
from hmsa.datasets import cityscapes
from hmsa.datasets.classes import Classes, Value, named, recipe_lines
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.kinds import Kind, SmoothedError, kind_of, look
from hmsa.datasets.lists import listed
from hmsa.datasets.similar import near_pairs
from hmsa.datasets.survey import MAX_NAMES, MOSTLY, Survey, spread, survey
from hmsa.errors import DataError

OF_SINGLE_FILES = (
    *("missing_files", "unreadable_images", "unreadable_masks", "masks_of_another_format", "different_sizes"),
    *("masks_of_turned_images", "masks_stored_in_colors", "color_masks", "label_ids", "smoothed_masks"),
    *("too_few_classes", "unknown_values"),
)
ERRORS = ("unusable_dataset", *OF_SINGLE_FILES, "binary_masks", "nothing_labelled", "one_class")
"""Kinds of findings with which a training fails or learns nothing."""

WARNINGS = (
    *("absent_classes", "much_ignored", "ignored_masks", "mostly_ignored_masks", "background_masks"),
    *("small_images", "large_images", "several_kinds_of_images", "alpha", "dark_images"),
    *("equal_images", "different_masks_of_equal_images", "leaks", "near_leaks"),
)
"""Kinds with which it learns less than it could, or its scores say less than they seem to."""

NOTES = ("turned_images", "sixteen_bits", "some_background_masks", "near_images")
"""Kinds that are as well meant so."""

QUICK_MASKS = 200
"""That `quick_findings` reads."""

_BACKGROUND = {"background", "class 0", "unlabeled", "unlabelled", "other", "others", "void", "nothing", "none"}
_SAMPLE = 100  # masks by which the kind of masks is told
_DARK = 5.0  # of 255
_LEAST_FILLED, _MANY = 0.5, 0.2  # of what is cut out; of the images
_LEAST_SEEN = 0.02  # of an image
_FEW = 0.1  # of the masks, which are rather wrong themselves
_MAX_IGNORED = 50  # values that are offered as ones to ignore


@dataclass(frozen=True)
class Finding:
    """What was found in one data set, or between both."""

    kind: str
    dataset: str  # "train", "val", or "" for both
    sentence: str  # what is so, and what to do
    count: int = 0  # files, or classes
    names: tuple[str, ...] = ()  # of the first files, or of classes
    lines: tuple[str, ...] = ()  # of YAML, for the recipe
    tolerated: bool = False  # whether other images stand in for these (on_bad_sample: skip)

    @property
    def severity(self) -> str:
        """One of "error", "warning", "note"."""
        if self.kind in ERRORS and not self.tolerated:
            return "error"
        return "note" if self.kind in NOTES else "warning"


def all_findings(
    surveys: Mapping[str, Survey],
    *,
    crop_size: Optional[Sequence[int]] = None,
    max_pixels: Optional[int] = None,
    bad_sample_limit: int = 0,
) -> list[Finding]:
    """Everything that two surveys, "train" and "val", or one of them show; what is worse comes first.

    Args:
        crop_size: width and height of what is cut out of images as they are in their files, if anything is.
        max_pixels: see `read_mask`.
        bad_sample_limit: images to train on that others may stand in for.
    """
    found: list[Finding] = []
    for name, of in surveys.items():
        found += [*_unusable(name, of), *_strange_masks(name, of), *_images(name, of)]
        if crop_size and name == "train":
            found += _crop(of, *crop_size)
    found += [*mask_findings(surveys, max_pixels), *_equal_images(surveys)]
    bad = [finding for finding in found if finding.kind in OF_SINGLE_FILES]
    if {finding.dataset for finding in bad} == {"train"}:
        tolerated = sum(finding.count for finding in bad) <= min(bad_sample_limit, len(surveys["train"].pairs) - 1)
        found = [replace(finding, tolerated=tolerated and finding in bad) for finding in found]
    order = [*ERRORS, *WARNINGS, *NOTES]
    return sorted(found, key=lambda finding: order.index(finding.kind))


def quick_findings(datasets: Mapping[str, SegmentationDataset]) -> list[Finding]:
    """What some masks, at most `QUICK_MASKS` of each data set, say of classes and ignored pixels, in seconds.

    Args:
        datasets: "train", "val", or both.
    """
    return _quick_findings(datasets, quick_surveys(datasets))


def quick_surveys(datasets: Mapping[str, SegmentationDataset]) -> dict[str, Survey]:
    """What `quick_findings` looks at."""
    return {name: survey(of, max_pairs=QUICK_MASKS, masks_only=True) for name, of in datasets.items()}


def _quick_findings(datasets: Mapping[str, SegmentationDataset], surveys: Mapping[str, Survey]) -> list[Finding]:
    limits = [of.max_image_pixels for of in datasets.values()]
    return list(mask_findings(surveys, limits[0] if limits else None))


def warnings_before_training(
    datasets: Mapping[str, SegmentationDataset], surveys: Optional[Mapping[str, Survey]] = None
) -> list[str]:
    """`quick_findings` for people.

    Args:
        surveys: `quick_surveys`, where they are there already.

    Raises:
        DataError: nothing is labelled, or masks cannot be used that no others stand in for (`bad_sample_limit`).
    """
    found = _quick_findings(datasets, surveys or quick_surveys(datasets))
    skips = datasets["train"].bad_sample_limit is not None
    fatal = ("binary_masks", "nothing_labelled", *(() if skips else OF_SINGLE_FILES))
    for finding in (finding for finding in found if finding.kind in fatal):
        such_as = f", such as {finding.names[0]}" if finding.names else ""
        raise DataError(f"{finding.dataset}{such_as}: {finding.sentence}", *finding.lines)
    return [f"{finding.dataset}: {finding.sentence}" for finding in found]


# --- Files ---

_UNUSABLE = {  # kind -> of one, of several, what to do
    "missing_files": (
        "file that the data set names is missing",
        "files that the data set names are missing",
        "correct the list, or dataset_root",
    ),
    "unreadable_images": ("image cannot be read", "images cannot be read", "replace or remove them"),
    "unreadable_masks": ("mask cannot be read", "masks cannot be read", "replace them, or remove their images too"),
    "masks_of_another_format": (
        "mask is no PNG",
        "masks are no PNGs",
        "export them anew as PNG, which keeps numbers as they are (JPEG has changed them; hmsa convert "
        "voc-colours turns what it left of colours into classes)",
    ),
    "different_sizes": (
        "mask is not as large as its image",
        "masks are not as large as their images",
        "pair them with the right images, or make them anew in the images' sizes",
    ),
    "masks_of_turned_images": (
        "mask lies on an image as it is stored, which EXIF turns",
        "masks lie on images as they are stored, which EXIF turns",
        "save these images upright and without the tag (mogrify -auto-orient), and the masks to match",
    ),
}


def _unusable(name: str, of: Survey) -> Iterator[Finding]:
    for kind, (one, several, remedy) in _UNUSABLE.items():
        if of.count(kind):
            count = of.count(kind)
            yield Finding(kind, name, f"{count} {one if count == 1 else several}: {remedy}", *_named(of, kind))


def _named(of: Survey, kind: str) -> tuple[int, tuple[str, ...]]:
    return of.named[kind].count, tuple(of.named[kind].first)


# --- Masks ---


def mask_findings(surveys: Mapping[str, Survey], max_pixels: Optional[int] = None) -> Iterator[Finding]:
    """What the values of masks say: some that mean nothing, classes that do not occur, pixels that are ignored."""
    binary = _are_binary(surveys.values())
    troubled = {name: of for name, of in surveys.items() if binary or any(map(of.count, _MEANINGLESS))}
    if troubled:
        yield _recognised(troubled, max_pixels)
    for name, of in surveys.items():
        if of.masks and name not in troubled:
            yield from _of_classes(name, of)


def _of_classes(name: str, of: Survey) -> Iterator[Finding]:
    """What masks lack in which every value means something."""
    names = of.classes.names
    looked_at = f"the {of.masks} masks" + " looked at" * of.sampled
    there = np.flatnonzero(of.class_pixels)
    if not len(there):
        text = f"{looked_at} hold ignored pixels alone, so that nothing is learnt: {_CHECK_VALUES}"
        yield Finding("nothing_labelled", name, text, of.masks)
        return
    if len(there) == 1 and name == "train" and not of.sampled:
        text = f"{looked_at} hold no class but {names[there[0]]}, so that nothing is learnt: {_CHECK_VALUES}"
        yield Finding("one_class", name, text, of.masks)
        return

    absent = tuple(names[number] for number in np.flatnonzero(of.class_images == 0))
    if absent:
        text = f"{looked_at} lack {listed(absent, 8)}: {_ABSENT[name]}"
        yield Finding("absent_classes", name, text, len(absent), absent)
    if of.ignored_pixels > MOSTLY * of.pixels:
        share = f"{of.ignored_pixels / of.pixels:.1%}"
        yield Finding("much_ignored", name, f"{share} of the pixels of {looked_at} are ignored: {_CHECK_VALUES}")


_MEANINGLESS = ("strange_masks", "masks_stored_in_colors")
_ABSENT = {
    "train": "what is not seen is not learnt, so add images that show it, or take it out of the classes",
    "val": "what does not occur has no IoU, and counts as 0 in the mean over all classes, so add images that show it, "
    "or divide them otherwise (such as by another split.seed)",
}
_CHECK_VALUES = "check what the masks hold against values in classes and ignore (or ignore_index)"


def _are_binary(surveys: Collection[Survey]) -> bool:
    """Whether masks hold 0 and 255 alone, and the recipe takes 255 for ignored pixels."""
    takes = all(of.classes.values is None and of.classes.ignore_index == 255 for of in surveys)
    return takes and {value for of in surveys for value in of.values} == {0, 255}


class _Trouble(NamedTuple):
    """Masks whose values the recipe does not name, or does not name as they are meant."""

    classes: Classes
    strange: list[Value]  # values of no class, the most frequent first
    binary: bool  # whether they are of 0 and 255
    count: int  # masks
    of: int
    names: list[str]  # of the first
    readable: list[str]  # all masks

    @property
    def holding(self) -> str:
        """The beginning of a sentence."""
        some = f"{self.count} of {self.of} masks"
        return some + (
            f" hold values that the recipe does not name, {named(self.strange[:10], len(self.strange))}"
            if self.strange
            else ""
        )


def _trouble(surveys: Collection[Survey]) -> _Trouble:
    strange = list(dict.fromkeys(value for of in surveys for value in of.strange))
    binary = _are_binary(surveys)
    kinds = _MEANINGLESS if strange else _MEANINGLESS[1:]
    readable = [str(pair[1]) for of in surveys for pair, digests in zip(of.pairs, of.digests) if digests[1]]
    return _Trouble(
        classes=next(iter(surveys)).classes,
        strange=strange,
        binary=binary,
        count=sum(of.masks if binary else max(map(of.count, kinds)) for of in surveys),
        of=sum(of.masks for of in surveys),
        names=[path for of in surveys for kind in kinds if kind in of.named for path in of.named[kind].first]
        or readable[:MAX_NAMES],
        readable=readable,
    )


def _recognised(surveys: Mapping[str, Survey], max_pixels: Optional[int]) -> Finding:
    """What masks are of which the recipe does not name the values, and the lines that make it name them."""
    trouble = _trouble(list(surveys.values()))
    found = partial(Finding, dataset=" and ".join(surveys), count=trouble.count, names=tuple(trouble.names[:MAX_NAMES]))
    holding, strange, classes = trouble.holding, trouble.strange, trouble.classes
    try:
        kind = kind_of(look(sorted({*trouble.names, *spread(trouble.readable, _SAMPLE)}), max_pixels))
    except SmoothedError as error:
        return found("smoothed_masks", sentence=f"{holding}: {error}")
    except DataError as error:  # of one value alone, or of too many
        return found("unknown_values", sentence=f"{holding}: {error}")

    highest = max((value for of in kind.classes for value in of.values if isinstance(value, int)), default=-1)
    alike = strange and all(isinstance(value, tuple) == classes.in_colors for value in strange)
    if alike and classes.values is not None and len(strange) <= _MAX_IGNORED:
        text = f"{holding}: write them into the values of a class, or paste this for pixels that do not count"
        return found("unknown_values", sentence=text, lines=(f"ignore: {one_line([*classes.ignored, *strange])}",))
    if alike and trouble.count <= _FEW * trouble.of and len(strange) <= _MAX_IGNORED:
        text = f"{holding}: correct these masks, or paste these lines, by which such pixels do not count"
        return found("unknown_values", sentence=text, lines=_lines(_ignoring(strange, classes)))
    if alike and kind.numbered and highest >= len(classes):
        text = (
            f"{holding}, as they hold {kind.words}: set model.num_classes (and num_classes of the data sets) to "
            f"{highest + 1}, and name as many classes where they are named"
        )
        return found("too_few_classes", sentence=text)
    return _with_values(found, trouble, kind)


def _with_values(found: Callable[..., Finding], trouble: _Trouble, kind: Kind) -> Finding:
    """The finding for masks of a known kind, whose classes the recipe is to give values."""
    values = {value for of in kind.classes for value in of.values}
    in_colors = any(isinstance(value, tuple) for value in values)
    if trouble.binary:
        label = "binary_masks"
        said = " hold 0 and 255 alone, of which 255 is taken for ignored pixels, so that nothing is learnt"
    elif values == {0, 255}:
        label, said = "binary_masks", ", as they hold 0 and 255"
    elif in_colors:
        label, said = "color_masks", ", as they are in colours"
    elif kind.named:
        label, said = "label_ids", f", as they are {kind.words}, not train ids"
    elif trouble.strange:
        label, said = "unknown_values", f", as they hold {kind.words}"
    else:
        label, said = "masks_stored_in_colors", " are stored with red, green and blue, though they are grey"

    known = _classes_of(kind, trouble.classes, in_colors=in_colors)
    remedy = "paste these lines into the recipe (in place of its classes, if it has any)"
    if len(known) != len(trouble.classes):
        remedy += f", and set model.num_classes (and num_classes of the data sets) to {len(known)}"
    if len(known) > 2 and not kind.named and known.names != trouble.classes.names:
        remedy += ", and give the classes their names"
    elif len(known) > 2 and not kind.named and not in_colors:
        remedy += ", after a look at which value is which class"
    return found(label, sentence=f"{trouble.holding}{said}: {remedy}", lines=_lines(known))


def _ignoring(strange: Sequence[Value], classes: Classes) -> Classes:
    """Classes whose numbers are the values of masks, and of which some more values do not count."""
    K = len(classes)
    ignored = [value for value in (classes.ignore_index, *strange) if not (isinstance(value, int) and value < K)]
    return replace(classes, values=tuple((number,) for number in range(K)), ignored=tuple(ignored))


def _classes_of(kind: Kind, classes: Classes, *, in_colors: bool) -> Classes:
    """The classes of masks of a known kind, under the recipe's names where it is clear which is which."""
    found: dict[str, Any] = {
        "values": tuple(tuple(of.values) for of in kind.classes),
        "ignored": tuple(kind.ignored),
    }
    if kind.named and not in_colors and len(classes) == len(cityscapes.CLASSES):
        raw = cityscapes.CLASSES.raw_values or ()
        others = tuple(sorted(cityscapes.LABEL_IDS - set(raw)))
        return replace(cityscapes.CLASSES, values=tuple((value,) for value in raw), ignored=others)
    if in_colors and {value for of in kind.classes for value in of.values} <= set(classes.colors):
        return replace(classes, **{**found, "values": tuple((color,) for color in classes.colors)})
    if not in_colors and _has_names(classes) and len(classes) == len(kind.classes):
        return replace(classes, **found)
    palette = Classes.numbered(len(kind.classes)).colors
    colors = tuple(of.color or color for of, color in zip(kind.classes, palette))
    return Classes(names=tuple(of.name for of in kind.classes), colors=colors, **found)


def _has_names(classes: Classes) -> bool:
    return classes.names != Classes.numbered(len(classes)).names


def _lines(classes: Classes) -> tuple[str, ...]:
    """`classes:` and `ignore:` of a recipe, with the values of masks."""
    rows = zip(classes.names, classes.colors, classes.values or ())
    return tuple(recipe_lines([dict(zip(("name", "color", "values"), row)) for row in rows], classes.ignored))


def _strange_masks(name: str, of: Survey) -> Iterator[Finding]:
    """Masks of which little can be learnt."""
    if not of.class_pixels[1:].any():  # which is told of them all
        return
    if of.count("ignored_masks"):
        count, names = _named(of, "ignored_masks")
        text = f"{count} of {of.masks} masks hold ignored pixels alone: remove them and their images, or label them"
        yield Finding("ignored_masks", name, text, count, names)
    if of.count("mostly_ignored_masks"):
        count, names = _named(of, "mostly_ignored_masks")
        text = f"{count} of {of.masks} masks are ignored but for less than a tenth: look whether that is meant so"
        yield Finding("mostly_ignored_masks", name, text, count, names)

    first = of.classes.names[0]
    count = of.count("background_masks")
    if count and count < of.masks and (len(of.classes) == 2 or first.lower() in _BACKGROUND):
        kind = "background_masks" if 2 * count > of.masks else "some_background_masks"
        remedy = "fine, if nothing else is to be seen in their images"
        if kind == "background_masks":
            remedy += "; leave some out, so that the other classes are seen more often"
        text = f"{count} of {of.masks} masks hold no class but {first}: {remedy}"
        yield Finding(kind, name, text, *_named(of, "background_masks"))


# --- Images ---


def _images(name: str, of: Survey) -> Iterator[Finding]:
    """What should be known of how images are stored."""
    total = sum(of.stored.values())

    def stored(*parts: str) -> int:
        return sum(count for kind, count in of.stored.items() if any(part in kind for part in parts))

    there = {kind: stored(kind) for kind in ("grey", "RGB", "palette", "CMYK") if stored(kind)}
    if len(there) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in there.items())
        text = (
            f"images are of several kinds ({listed}), which all become RGB: fine, if those to predict on are mixed, too"
        )
        yield Finding("several_kinds_of_images", name, f"{text}, else save them alike", total)
    if stored("alpha"):
        text = (
            f"{stored('alpha')} of {total} images have an alpha channel, which is left out, so that what it hides is "
            "seen: save them without, on the background that is meant"
        )
        yield Finding("alpha", name, text, stored("alpha"))
    if stored("16 bit"):
        text = (
            f"{stored('16 bit')} of {total} images have 16 bits, which become 8 by value / 257: fine, if they fill the "
            "whole range, else scale them to it"
        )
        yield Finding("sixteen_bits", name, text, stored("16 bit"))
    mean = 255 * of.mean_and_std()[0].mean()
    if mean < _DARK:
        text = (
            f"images are nearly black (their mean is {mean:.1f} of 255): check that they are no masks, and scale those "
            "of 10 to 14 bits to the whole range"
        )
        yield Finding("dark_images", name, text, total)
    turned = sum(count for orientation, count in of.orientations.items() if orientation != 1)
    if turned:
        text = (
            f"{turned} of {total} images are turned upright as their EXIF data say, and so are those to predict on: "
            "look in the sheet of samples whether masks fit"
        )
        yield Finding("turned_images", name, text, turned)


def _crop(of: Survey, width: int, height: int) -> Iterator[Finding]:
    """How the sizes of images fit what is cut out of them."""
    if not of.sizes:
        return
    total = sum(of.sizes.values())
    shown = f"{width}x{height}"
    every = [[size[side] for size, count in of.sizes.items() for _ in range(count)] for side in (0, 1)]
    middle = [int(statistics.median_low(sides)) for sides in every]

    filled = {size: min(size[0], width) * min(size[1], height) / (width * height) for size in of.sizes}
    small = sum(count for size, count in of.sizes.items() if filled[size] < _LEAST_FILLED)
    if small > _MANY * total:
        fitting = [max(side // 32 * 32, 64) for side in middle]
        text = (
            f"{small} of {total} images fill less than half of crop_size {shown}, the rest is padding: set "
            f"crop_size to {fitting} or so, which is the middle size"
        )
        yield Finding("small_images", "train", text, small)
    share = width * height / (middle[0] * middle[1])
    if share < _LEAST_SEEN:
        text = (
            f"crop_size {shown} shows {share:.1%} of an image of {middle[0]}x{middle[1]} (the middle size): make the "
            "images smaller first (a Resize among the transforms), or crop_size larger"
        )
        yield Finding("large_images", "train", text, total)


# --- Images that are the same ---


def _equal_images(surveys: Mapping[str, Survey]) -> Iterator[Finding]:
    """Images that are there twice in a data set, or in both."""
    if not surveys:
        return
    every = list(surveys.values())
    part = np.repeat(np.arange(len(every)), [len(of.pairs) for of in every])  # [N], as all below
    paths = [pair[0] for of in every for pair in of.pairs]
    images, masks = np.concatenate([of.digests for of in every]).T
    near = near_pairs(np.concatenate([of.thumbnails for of in every]))

    equal = _equal(images)
    first, later = equal.T
    differing = equal[(masks[first] != masks[later]) & (masks[first] != 0) & (masks[later] != 0)]
    near = near[images[near[:, 0]] != images[near[:, 1]]]
    inside = (("equal_images", equal), ("different_masks_of_equal_images", differing), ("near_images", near))
    between = (("leaks", equal), ("near_leaks", near))

    def told(kind: str, dataset: str, pairs: np.ndarray, total: int) -> Iterator[Finding]:
        if len(pairs):
            count = len(np.unique(pairs[:, 1]))
            names = tuple(f"{paths[later]} = {paths[first]}" for first, later in pairs[:MAX_NAMES].tolist())
            yield Finding(kind, dataset, f"{count} of {total} {_TWICE[kind]}", count, names)

    for number, name in enumerate(surveys):
        for kind, pairs in inside:
            yield from told(kind, name, pairs[(part[pairs] == number).all(axis=1)], len(every[number].pairs))
    for kind, pairs in between:
        yield from told(kind, "", pairs[part[pairs[:, 0]] != part[pairs[:, 1]]], len(every[-1].pairs))


_TWICE = {
    "equal_images": "images are there more than once, byte for byte: remove what is too much",
    "different_masks_of_equal_images": "images are there more than once, with different masks: remove the wrong ones",
    "near_images": "images look nearly as another one does (saved again, or a moment later): fine, if that is meant so",
    "leaks": "images to evaluate on are trained on, byte for byte, so that the scores are too good: take them out "
    "of one of the two",
    "near_leaks": "images to evaluate on look nearly as one that is trained on, so that the scores are too good: keep "
    "such groups on one side (by split.group_by, or in the lists)",
}


def _equal(digests: np.ndarray) -> np.ndarray:
    """Pairs of equal numbers but 0, int64 [M, 2], each later place with the first one."""
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    pairs = np.stack([first[group.ravel()], np.arange(len(digests))], axis=1)
    return pairs[(pairs[:, 0] != pairs[:, 1]) & (digests != 0)]
