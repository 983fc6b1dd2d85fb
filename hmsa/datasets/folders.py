# SPDX-License-Identifier: Apache-2.0
"""Images and masks in folders, without any list: paired by their names, and divided into parts by a seed."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, Optional

from hmsa.datasets.bands import suffixes_of
from hmsa.datasets.dataset import Pair, SegmentationDataset
from hmsa.datasets.find import search
from hmsa.datasets.images import IMAGE_SUFFIXES
from hmsa.datasets.lists import ListDataset, listed
from hmsa.errors import DataError

BY_FOLDER = "folder"
"""What `group_by` says where images of one folder stay together."""


class Split(NamedTuple):
    """How names are divided: the shares for evaluation and test, the rest is trained on."""

    val: float
    test: float
    seed: int
    group_by: Optional[str]  # BY_FOLDER, or a regular expression whose group stays together


def own_dataset(
    *,
    mode: Literal["train", "val", "test"],
    dataset_root: str,
    image_dir: Optional[str],
    label_dir: Optional[str],
    image_pattern: str,
    label_pattern: str,
    split: Optional[Mapping[str, Any]],
    train_path: Optional[str],
    val_path: Optional[str],
    test_path: Optional[str],
    separator: Optional[str],
    **common: Any,
) -> SegmentationDataset:
    """The data set `Dataset` of recipes: of folders where there is an `image_dir`, else of lists."""
    common = {"mode": mode, "dataset_root": dataset_root, **common}
    if image_dir is None or label_dir is None:
        paths = {"train_path": train_path, "val_path": val_path, "test_path": test_path}
        return ListDataset(**paths, separator=separator, **common)
    patterns = {"image_pattern": image_pattern, "label_pattern": label_pattern}
    return FolderDataset(image_dir=image_dir, label_dir=label_dir, **patterns, split=split, **common)


class FolderDataset(SegmentationDataset):
    """The images below `image_dir`, each with the mask of its name below `label_dir`, both relative to `dataset_root`.

    `mode` chooses the part of a `split`, and whether the samples are shuffled and their labels transformed along
    ("train") or neither. Without a split it is all there is. See `folder_pairs` and `parts`.

    Args:
        common: what every data set takes, see `SegmentationDataset`.
    """

    def __init__(
        self,
        *,
        mode: Literal["train", "val", "test"],
        dataset_root: str,
        image_dir: str,
        label_dir: str,
        image_pattern: str,
        label_pattern: str,
        split: Optional[Mapping[str, Any]],
        **common: Any,
    ) -> None:
        root = Path(dataset_root)
        folders, suffixes = (root / image_dir, root / label_dir), suffixes_of(common.get("in_channels", 3))
        pairs = folder_pairs(*folders, image_pattern, label_pattern, suffixes=suffixes)
        names = parts(pairs, Split(**split))[mode] if split else list(pairs)
        super().__init__(pairs=[pairs[name] for name in names], training=mode == "train", **common)


# --- Pairs ---


class Pattern(NamedTuple):
    """A file's name around one `*`. One that does not end in an image's suffix is about the name without it."""

    start: str
    end: str
    with_suffix: bool

    @classmethod
    def of(cls, text: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Pattern:
        start, _, end = _composed(text).partition("*")
        suffix = PurePath(f"x{end}").suffix
        with_suffix = suffix.lower() in suffixes
        return cls(start, end.removesuffix(suffix) + suffix.lower() if with_suffix else end, with_suffix)

    def stem(self, path: PurePath) -> Optional[str]:
        """What `*` stands for in the name of a file; None where the name does not fit."""
        name = _composed(path.stem + path.suffix.lower() * self.with_suffix)
        rest = name[len(self.start) : len(name) - len(self.end)]
        return rest if rest and name == f"{self.start}{rest}{self.end}" else None


def folder_pairs(
    image_dir: Path,
    label_dir: Path,
    image_pattern: str = "*",
    label_pattern: str = "*",
    *,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
) -> dict[str, Pair]:
    """Image and mask by what `*` stands for in the patterns, behind the folders below theirs; in the names' order.

    All folders below are searched; hidden files and results of predictions are left out, see `find.search`. Suffixes
    may be in any case, and names be written as macOS does. In one folder, a file that fits both patterns belongs to the
    one with more letters, or if they are equal is a mask where it is a PNG.

    Args:
        suffixes: of files that are images, in lower case.

    Raises:
        DataError: naming all (at most 20) that lack a partner, or share their name with another.
    """
    images, labels = _files(image_dir, but=label_dir, suffixes=suffixes), _files(label_dir, but=image_dir)
    in_one = image_dir.samefile(label_dir)
    of_image, of_label = Pattern.of(image_pattern, suffixes), Pattern.of(label_pattern)
    if in_one:
        images = [path for path in images if not _is_label(path, of_image, of_label)]
        labels = [path for path in labels if _is_label(path, of_image, of_label)]

    named_images, named_labels = _named(images, image_dir, of_image), _named(labels, label_dir, of_label)
    for folder, what, key, found in (
        (image_dir, "images", "image_pattern", named_images),
        (label_dir, "masks", "label_pattern", named_labels),
    ):
        if not found:
            pattern = image_pattern if what == "images" else label_pattern
            remedy = (
                "name the masks' own folder, or tell both apart by their patterns" if in_one else "correct the folder"
            )
            raise DataError(
                f"{folder} should hold {what} whose names fit {pattern!r}, but it holds none: {remedy} ({key})"
            )
    _check_names(named_images, named_labels, image_dir, label_dir)
    return {name: (str(named_images[name][0]), str(named_labels[name][0])) for name in sorted(named_images)}


def _files(folder: Path, but: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All images below a folder, but for those in another below it."""
    if not folder.is_dir():
        raise DataError(f"{folder} should be a folder of images or masks, but is none: correct it, or dataset_root")
    found = [path for path in search(folder, "**") if path.suffix.lower() in suffixes and not path.is_dir()]
    return [path for path in found if but not in path.parents] if folder in but.parents else found


def _is_label(path: Path, of_image: Pattern, of_label: Pattern) -> bool:
    """Whether a file in the folder of both is a mask."""
    fits = of_image.stem(path), of_label.stem(path)
    if None in fits:
        return fits[1] is not None
    letters = len(of_label.start + of_label.end) - len(of_image.start + of_image.end)
    return letters > 0 or (letters == 0 and path.suffix.lower() == ".png")


def _named(paths: Iterable[Path], folder: Path, pattern: Pattern) -> dict[str, list[Path]]:
    """Files by the folders they are in and what `*` stands for: "city/0001"."""
    named = defaultdict(list)
    for path in paths:
        stem = pattern.stem(path)
        if stem is not None:
            named[_composed((path.relative_to(folder).parent / stem).as_posix())].append(path)
    return named


def _check_names(
    images: Mapping[str, Sequence[Path]], labels: Mapping[str, Sequence[Path]], image_dir: Path, label_dir: Path
) -> None:
    """DataError if a name is one of several files, or of an image or of a mask alone."""
    twice = [" and ".join(map(str, paths)) for found in (images, labels) for paths in found.values() if len(paths) > 1]
    if twice:
        raise DataError(
            f"every name should be that of one image and one mask, but {len(twice)} stand for several files: "
            f"{listed(twice)}; remove or rename one of each, or choose by image_pattern and label_pattern, such as "
            '"*.png"'
        )
    without_label = [str(images[name][0]) for name in sorted(images.keys() - labels.keys())]
    without_image = [str(labels[name][0]) for name in sorted(labels.keys() - images.keys())]
    lonely = without_label + without_image
    if lonely:
        raise DataError(
            f"every image in {image_dir} should have a mask of its name in {label_dir} and the reverse, but "
            f"{len(without_label)} of {len(images)} images have none, and {len(without_image)} of {len(labels)} masks "
            f"no image: {listed(lonely)}; add or remove what is left over, or say by image_pattern and label_pattern "
            'what else is in the names, such as "*_mask.png"'
        )


def _composed(name: str) -> str:
    """A name with its accents in the letters, as all but macOS write it."""
    return unicodedata.normalize("NFC", name)


# --- Parts ---


def parts(names: Collection[str], split: Split) -> dict[str, list[str]]:
    """The names of "train", "val" and "test", each in the order given.

    Where a group of names goes is said by a hash of it and the seed: on every machine the same, and whatever else there
    is, as long as no part is empty, which then takes the group that is nearest. The shares are therefore of what chance
    gives: of few groups, val may be a bit more or less.

    Raises:
        DataError: fewer groups than parts, or names that `group_by` does not fit.
    """
    groups = _groups(names, split.group_by)
    wanted = 1 + (split.val > 0) + (split.test > 0)
    if len(groups) < wanted:
        group = {None: "image", BY_FOLDER: "folder"}.get(split.group_by, "group of images")
        raise DataError(
            f"split should find at least {wanted} {group}s, one for every part, but there {_are(len(groups), group)}: "
            + ("add images" if split.group_by is None else "set another group_by, or none to divide single images")
        )

    places = {group: _place(group, split.seed) for group in groups}
    ordered = sorted(groups, key=lambda group: (places[group], group))
    val = sum(place < split.val for place in places.values())
    test = sum(split.val <= place < split.val + split.test for place in places.values())
    val, test = max(val, split.val > 0), max(test, split.test > 0)
    while val + test >= len(groups):
        val, test = (val - 1, test) if val > test else (val, test - 1)

    bounds = {"val": (0, val), "test": (val, val + test), "train": (val + test, len(groups))}
    part_of = {group: part for part, (first, end) in bounds.items() for group in ordered[first:end]}
    chosen: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    group_of = {name: group for group, members in groups.items() for name in members}
    for name in names:
        chosen[part_of[group_of[name]]].append(name)
    return chosen


def _groups(names: Iterable[str], group_by: Optional[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    strange = []
    for name in names:
        if group_by is None or group_by == BY_FOLDER:
            groups[name if group_by is None else PurePath(name).parent.as_posix()].append(name)
            continue
        match = re.search(group_by, name)
        if match is None or match[1] is None:
            strange.append(name)
        else:
            groups[match[1]].append(name)
    if strange:
        raise DataError(
            f"split.group_by should fit every name, such as {strange[0]!r}, but {group_by!r} does not fit "
            f"{len(strange)}: {listed(strange)}; correct it"
        )
    return groups


def _place(group: str, seed: int) -> float:
    """Where in 0..1 a group lies: as good as drawn, and the same everywhere."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _are(count: int, what: str) -> str:
    return f"is 1 {what}" if count == 1 else f"are {count} {what}s"
