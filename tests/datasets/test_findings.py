# SPDX-License-Identifier: Apache-2.0
"""Data sets that are wrong in one way each, and the sentence that says so."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.datasets import findings as module
from hmsa.datasets.cityscapes import CLASSES as CITYSCAPES
from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.findings import ERRORS, NOTES, WARNINGS, all_findings, quick_findings, warnings_before_training
from hmsa.datasets.survey import survey
from hmsa.errors import DataError
from hmsa.toy.shapes import write_shapes

NUMBERS = {50: 1, 100: 2, 200: 3}
NAMES = ("background", "disc", "square", "triangle")
COLORS = ((0, 0, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0))
NAMED = Classes(NAMES, COLORS)
RAW = Classes(NAMES[:3], COLORS[:3], values=((0,), (50,), (100,)))


def dataset(pairs: list, classes: Classes, **options: Any) -> SegmentationDataset:
    return SegmentationDataset(pairs=pairs, classes=classes, training=True, **options)


def shapes(folder: Path, masks: str = "values", count: int = 8) -> list:
    write_shapes(folder, masks=masks, count=count)
    images = sorted((folder / "images").iterdir())
    return [(str(image), str(folder / f"masks/{image.stem}.png")) for image in images]


def each_mask(change: Callable[[np.ndarray], Any]) -> Callable[[list], None]:
    """Writes something else in place of every mask."""

    def apply(pairs: list) -> None:
        for _, path in pairs:
            changed = change(np.asarray(Image.open(path)))
            (changed if isinstance(changed, Image.Image) else Image.fromarray(changed)).save(path, "PNG")

    return apply


def numbered(mask: np.ndarray) -> np.ndarray:
    return np.select([mask == value for value in NUMBERS], list(NUMBERS.values())).astype(np.uint8)


def from_one(mask: np.ndarray) -> np.ndarray:
    return numbered(mask) + 1


def smoothed(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    width, height = image.size
    return image.resize((width // 2, height // 2), Image.Resampling.BILINEAR).resize(
        image.size, Image.Resampling.BILINEAR
    )


def label_ids(mask: np.ndarray) -> np.ndarray:
    ids = np.select([mask == value for value in NUMBERS], [11, 21, 26], 7).astype(np.uint8)
    for row, value in enumerate((23, 8, 17, 33, 4, 24, 20)):
        ids[row] = value
    return ids


def instances(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(1, 9999, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:height, :width].astype(
        np.uint16
    )


def mostly_ignored(mask: np.ndarray) -> np.ndarray:
    label = numbered(mask)
    label[: len(label) * 19 // 20] = 255
    label[-1, :4] = range(4)
    return label


def first_is(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[list], None]:
    def apply(pairs: list) -> None:
        each_mask(numbered)(pairs)
        each_mask(change)(pairs[:1])

    return apply


def jpeg_masks(pairs: list) -> None:
    for _, path in pairs:
        image = Image.open(path)
        image.load()
        image.save(path, "JPEG")


def first_image(change: Callable[[str], None]) -> Callable[[list], None]:
    def apply(pairs: list) -> None:
        each_mask(numbered)(pairs)
        change(pairs[0][0])

    return apply


def rewrite(**options: Any) -> Callable[[str], None]:
    def apply(path: str) -> None:
        image = Image.open(path)
        image.load()
        options.get("change", lambda same: same)(image).save(
            path, options.get("form", "JPEG"), **options.get("as_", {})
        )

    return apply


def exif_turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def twice(pairs: list) -> None:
    each_mask(numbered)(pairs)
    Path(pairs[3][0]).write_bytes(Path(pairs[0][0]).read_bytes())
    size = Image.open(pairs[0][0]).size
    Image.fromarray(np.resize(np.arange(4, dtype=np.uint8), (size[1], size[0]))).save(pairs[3][1])


def saved_again(pairs: list) -> None:
    each_mask(numbered)(pairs)
    rewritten = Image.open(pairs[0][0])
    rewritten.load()
    rewritten.save(pairs[3][0], quality=70)
    Path(pairs[3][1]).write_bytes(Path(pairs[0][1]).read_bytes())


def darkened(pairs: list) -> None:
    each_mask(numbered)(pairs)
    for image, _ in pairs:
        rewrite(change=lambda opened: opened.point(lambda value: value // 90))(image)


class Wrong(NamedTuple):
    classes: Classes
    change: Callable[[list], Any]
    sentence: str
    masks: str = "values"
    lines: int = 0


FOUR = Classes.numbered(4)
CASES = {
    "binary_masks": Wrong(
        Classes.numbered(2), len, "8 of 8 masks hold 0 and 255 alone, of which 255 is taken for ignored", "binary", 3
    ),
    "color_masks": Wrong(FOUR, len, "as they are in colours: paste these lines", "colors", 5),
    "label_ids": Wrong(CITYSCAPES, each_mask(label_ids), "they are Cityscapes' label ids, not train ids", lines=21),
    "smoothed_masks": Wrong(FOUR, each_mask(smoothed), r"lie at edges alone.*without smoothing \(anti-aliasing\)"),
    "too_few_classes": Wrong(Classes.numbered(3), each_mask(numbered), r"set model.num_classes .* to 4"),
    "unknown_values": Wrong(
        FOUR, len, r"not name, \[50, 100, 200\], as they hold the values 0, 50, 100, 200: paste", lines=5
    ),
    "masks_stored_in_colors": Wrong(
        FOUR,
        each_mask(lambda mask: Image.fromarray(numbered(mask)).convert("RGB")),
        "8 of 8 masks are stored with red, green and blue, though they are grey: paste",
        lines=5,
    ),
    "nothing_labelled": Wrong(FOUR, each_mask(lambda mask: mask * 0 + 255), "hold ignored pixels alone"),
    "one_class": Wrong(FOUR, each_mask(lambda mask: mask * 0 + 2), "hold no class but class 2, so"),
    "absent_classes": Wrong(Classes.numbered(6), each_mask(numbered), "the 8 masks lack class 4, class 5: .* add"),
    "much_ignored": Wrong(FOUR, each_mask(mostly_ignored), r"9\d\.\d% of the pixels of the 8 masks are ignored: check"),
    "ignored_masks": Wrong(FOUR, first_is(lambda mask: mask * 0 + 255), "1 of 8 masks hold ignored pixels alone"),
    "mostly_ignored_masks": Wrong(
        FOUR,
        first_is(lambda m: np.where(np.indices(m.shape)[0] < 2, m, 255).astype("u1")),
        "1 of 8 masks are ignored but for less than a tenth",
    ),
    "some_background_masks": Wrong(NAMED, first_is(lambda mask: mask * 0), "1 of 8 masks hold no class but back"),
    "background_masks": Wrong(
        NAMED,
        lambda pairs: (each_mask(numbered)(pairs), each_mask(lambda mask: mask * 0)(pairs[:6])),
        "6 of 8 masks hold no class but background: fine.*; leave some out",
    ),
    "missing_files": Wrong(FOUR, first_image(lambda path: Path(path).unlink()), "1 file .* is missing: correct"),
    "unreadable_images": Wrong(FOUR, first_image(lambda path: Path(path).write_bytes(b"x")), "1 image cannot be read"),
    "unreadable_masks": Wrong(
        FOUR,
        lambda pairs: (each_mask(numbered)(pairs), Path(pairs[0][1]).write_bytes(Path(pairs[0][1]).read_bytes()[:60])),
        "1 mask cannot be read: replace",
    ),
    "masks_of_another_format": Wrong(FOUR, jpeg_masks, "8 masks are no PNGs: export them anew as PNG"),
    "different_sizes": Wrong(FOUR, first_is(lambda mask: mask[:-3]), "1 mask is not as large as its image: pair them"),
    "masks_of_turned_images": Wrong(
        FOUR, first_image(rewrite(as_={"exif": exif_turned()})), "1 mask lies on an image as it is stored"
    ),
    "several_kinds_of_images": Wrong(
        FOUR, first_image(rewrite(change=lambda image: image.convert("L"))), r"several kinds \(1 grey, 7 RGB\)"
    ),
    "alpha": Wrong(
        FOUR,
        first_image(rewrite(change=lambda image: image.convert("RGBA"), form="PNG")),
        "1 of 8 images have an alpha",
    ),
    "sixteen_bits": Wrong(
        FOUR,
        first_image(rewrite(change=lambda i: Image.fromarray(np.asarray(i)[..., 0].astype("u2") * 257), form="PNG")),
        "1 of 8 images have 16 bits, which become 8",
    ),
    "dark_images": Wrong(
        FOUR,
        darkened,
        "images are nearly black",
    ),
    "turned_images": Wrong(
        FOUR,
        lambda pairs: (
            each_mask(numbered)(pairs),
            rewrite(as_={"exif": exif_turned()})(pairs[0][0]),
            each_mask(lambda mask: np.rot90(mask, -1))(pairs[:1]),
        ),
        "1 of 8 images are turned upright as their EXIF data say",
    ),
    "equal_images": Wrong(FOUR, twice, "1 of 8 images are there more than once, byte for byte"),
    "different_masks_of_equal_images": Wrong(
        FOUR, twice, "1 of 8 images are there more than once, with different masks"
    ),
    "near_images": Wrong(FOUR, saved_again, "1 of 8 images look nearly as another one does"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_wrong_data_set_ends_in_its_sentence(tmp_path, kind):
    case = CASES[kind]
    pairs = shapes(tmp_path, case.masks)
    case.change(pairs)
    found = {f.kind: f for f in all_findings({"train": survey(dataset(pairs, case.classes))})}
    assert kind in found, list(found)
    finding = found[kind]
    assert re.search(case.sentence, finding.sentence), finding.sentence
    assert finding.dataset == "train" and len(finding.lines) == case.lines
    errors = [other for other in found if other in ERRORS]
    assert errors == ([kind] if kind in ERRORS else [])  # one fault, one error


def test_every_kind_is_tried_here():
    others = {"unusable_dataset", "small_images", "large_images", "leaks", "near_leaks"}  # below, and in the command's
    assert {*ERRORS, *WARNINGS, *NOTES} == CASES.keys() | others


@pytest.mark.parametrize(
    ("masks", "classes", "change"),
    [
        ("binary", Classes.numbered(2), len),
        ("binary", Classes(("nothing", "thing"), ((1, 2, 3), (4, 5, 6))), len),
        ("values", FOUR, len),
        ("values", Classes.numbered(2), len),
        ("values", NAMED, len),
        ("values", RAW, len),
        ("values", FOUR, each_mask(from_one)),
        ("colors", FOUR, len),
        ("colors", NAMED, len),
        ("colors", Classes(NAMES, COLORS, values=((0,), (50,), (100,), (200,))), len),
        ("values", CITYSCAPES, each_mask(label_ids)),
    ],
)
def test_the_lines_that_are_to_be_pasted_put_it_right(tmp_path, masks, classes, change):
    pairs = shapes(tmp_path, masks)
    change(pairs)
    (error,) = [f for f in all_findings({"train": survey(dataset(pairs, classes))}) if f.severity == "error"]
    pasted = yaml.safe_load("\n".join(error.lines))

    def plain(values: list) -> tuple:
        return tuple(tuple(value) if isinstance(value, list) else value for value in values)

    given = pasted.get("classes")
    repaired = Classes(
        names=tuple(entry["name"] for entry in given) if given else classes.names,
        colors=tuple(tuple(entry["color"]) for entry in given) if given else classes.colors,
        values=tuple(plain(entry["values"]) for entry in given) if given else classes.values,
        ignored=plain(pasted.get("ignore", [])),
    )
    after = all_findings({"train": survey(dataset(pairs, repaired))})
    assert [f.sentence for f in after if f.severity == "error"] == []
    if len(repaired) == len(classes) and classes.names != Classes.numbered(len(classes)).names and masks != "colors":
        assert repaired.names == classes.names
    assert dataset(pairs, repaired)[0]["label"].max() > 0


def test_a_stray_value_is_ignored_or_corrected(tmp_path):
    pairs = shapes(tmp_path, count=12)
    each_mask(numbered)(pairs)
    each_mask(lambda mask: np.where(np.indices(mask.shape).sum(axis=0) == 0, 77, mask).astype(np.uint8))(pairs[4:5])
    (error,) = all_findings({"train": survey(dataset(pairs, FOUR))})
    assert error.sentence.startswith(
        "1 of 12 masks hold values that the recipe does not name, [77]: correct these masks"
    )
    assert error.names == (pairs[4][1],)
    assert yaml.safe_load("\n".join(error.lines))["ignore"] == [255, 77]


def test_another_number_for_ignored_pixels(tmp_path):
    pairs = shapes(tmp_path)
    each_mask(mostly_ignored)(pairs)
    (error,) = all_findings({"train": survey(dataset(pairs, Classes.numbered(4, ignore_index=254)))})
    pasted = yaml.safe_load("\n".join(error.lines))
    assert [entry["values"] for entry in pasted["classes"]] == [[0], [1], [2], [3]] and pasted["ignore"] == [255]


def test_colours_that_the_recipe_has_keep_their_names(tmp_path):
    (error,) = all_findings({"train": survey(dataset(shapes(tmp_path, "colors"), NAMED))})
    entries = yaml.safe_load("\n".join(error.lines))["classes"]
    assert [(entry["name"], tuple(entry["values"][0])) for entry in entries] == list(zip(NAMES, COLORS))


def test_both_data_sets_are_told_of_at_once(tmp_path):
    parts = {name: dataset(shapes(tmp_path / name), FOUR) for name in ("train", "val")}
    (error,) = [f for f in all_findings({n: survey(d) for n, d in parts.items()}) if f.severity == "error"]
    assert error.dataset == "train and val" and error.count == 16


def test_images_in_both_data_sets(tmp_path):
    train, val = (shapes(tmp_path / name) for name in ("train", "val"))
    for pairs in (train, val):
        each_mask(numbered)(pairs)
    for image, _ in val[:6]:  # drawn from the same seed: now others
        Image.fromarray(cv2.GaussianBlur(np.asarray(Image.open(image))[::-1, ::-1], (0, 0), 1)).save(image)
    again = Image.open(val[6][0])
    again.load()
    again.save(val[6][0], quality=60)

    found = all_findings({"train": survey(dataset(train, FOUR)), "val": survey(dataset(val, FOUR))})
    assert [(f.kind, f.dataset, f.count) for f in found] == [("leaks", "", 1), ("near_leaks", "", 1)]
    assert found[0].names == (f"{val[7][0]} = {train[7][0]}",)
    assert found[1].names == (f"{val[6][0]} = {train[6][0]}",)


@pytest.mark.parametrize(
    ("crop", "kinds"),
    [([256, 192], []), ([800, 800], ["small_images"]), ([32, 16], ["large_images"]), (None, [])],
)
def test_sizes_against_what_is_cut_out(tmp_path, crop, kinds):
    pairs = shapes(tmp_path)
    each_mask(numbered)(pairs)
    found = all_findings({"train": survey(dataset(pairs, FOUR))}, crop_size=crop)
    assert [f.kind for f in found] == kinds
    assert all("crop_size" in f.sentence for f in found)


def test_what_others_stand_in_for_is_a_warning(tmp_path):
    pairs = shapes(tmp_path)
    each_mask(numbered)(pairs)
    for image, _ in pairs[:2]:
        Path(image).write_bytes(b"")
    found = {"train": survey(dataset(pairs, FOUR))}
    for limit, severity in ((0, "error"), (1, "error"), (2, "warning")):
        (finding,) = all_findings(found, bad_sample_limit=limit)
        assert (finding.kind, finding.severity) == ("unreadable_images", severity)


# --- Before training. ---


def test_training_does_not_begin_on_nothing(tmp_path):
    binary = dataset(shapes(tmp_path, "binary"), Classes.numbered(2))
    with pytest.raises(DataError) as raised:
        warnings_before_training({"train": binary})
    lines = str(raised.value).splitlines()
    assert re.match(
        r"train, such as .*shapes_000.png: 8 of 8 masks hold 0 and 255 alone, .* paste these lines", lines[0]
    )
    pasted = yaml.safe_load("\n".join(lines[1:]))
    assert [entry["values"] for entry in pasted["classes"]] == [[0], [255]]


def test_training_begins_where_255_is_said_to_be_ignored(tmp_path):
    classes = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)), values=((0,), (1,)), ignored=(255,))
    told = warnings_before_training({"train": dataset(shapes(tmp_path, "binary"), classes)})
    assert len(told) == 1 and "hold no class but a" in told[0]


def test_a_few_bad_masks_are_left_to_what_stands_in_for_them(tmp_path):
    pairs = shapes(tmp_path)
    each_mask(numbered)(pairs[1:])
    with pytest.raises(DataError, match=r"shapes_000\.png: 1 of 8 masks hold values that the recipe does not name"):
        warnings_before_training({"train": dataset(pairs, FOUR)})
    (told,) = warnings_before_training({"train": dataset(pairs, FOUR, bad_sample_limit=3)})
    assert "1 of 8 masks" in told


def test_some_masks_and_no_image_are_read(tmp_path, monkeypatch):
    pairs = shapes(tmp_path)
    each_mask(numbered)(pairs)
    for image, _ in pairs:
        Path(image).unlink()
    assert quick_findings({"train": dataset([(mask, mask) for _, mask in pairs], FOUR)}) == []
    monkeypatch.setattr(module, "QUICK_MASKS", 3)
    (finding,) = quick_findings({"train": dataset([(mask, mask) for _, mask in pairs], Classes.numbered(5))})
    assert finding.sentence.startswith("the 3 masks looked at lack class 4")


def test_files_that_are_none_do_not_stop_it(tmp_path):
    pairs = shapes(tmp_path)
    each_mask(numbered)(pairs)
    content = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(content, "PNG")
    Path(pairs[0][1]).write_bytes(content.getvalue()[:40])
    Path(pairs[1][1]).unlink()
    assert quick_findings({"train": dataset(pairs, FOUR)}) == []
