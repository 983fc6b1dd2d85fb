# SPDX-License-Identifier: Apache-2.0
"""Images and masks in folders as people have them, and their division into parts."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from samples import LABEL, PICTURE, encoded

from hmsa.builder import build_dataset
from hmsa.config.reading import load_config
from hmsa.datasets.folders import Split, folder_pairs, parts
from hmsa.errors import DataError, UsageError

NORMALIZE = "{type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
RECIPE = """
model: {{type: MscaleOCRNet, num_classes: 4, backbone: {{type: HRNet_W18_NV_Small_V1}}}}
train_dataset: {{type: Dataset, {train}, transforms: [{normalize}]}}
val_dataset: {{type: Dataset, {val}, transforms: [{normalize}]}}
"""


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_label = "mask" in name or "label" in name
        path.write_bytes(encoded(LABEL if is_label else PICTURE, "PNG" if path.suffix.lower() == ".png" else "JPEG"))


def found(root: Path, images: str, labels: str, *patterns: str) -> dict[str, tuple[str, str | None]]:
    pairs = folder_pairs(root / images, root / labels, *patterns)
    return {
        name: (str(Path(image).relative_to(root)), str(Path(label or "").relative_to(root)))
        for name, (image, label) in pairs.items()
    }


def test_pairs_share_their_stem_and_the_folders_below(tmp_path):
    write(tmp_path, "photos/b.jpg", "photos/a.JPG", "photos/my town/ä 1.jpeg", "masks/b.png", "masks/a.PNG")
    write(tmp_path, "masks/my town/ä 1.png", "photos/.hidden.jpg", "masks/.b.png", "photos/notes.txt")
    write(tmp_path, "photos/added_prediction/a.jpg")
    assert found(tmp_path, "photos", "masks") == {
        "a": ("photos/a.JPG", "masks/a.PNG"),
        "b": ("photos/b.jpg", "masks/b.png"),
        "my town/ä 1": ("photos/my town/ä 1.jpeg", "masks/my town/ä 1.png"),
    }


def test_names_of_macos_are_the_same_names(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Grüße") for form in ("NFC", "NFD"))
    assert composed != apart
    write(tmp_path, f"photos/{apart}.jpg", f"masks/{composed}_mask.png")
    assert list(found(tmp_path, "photos", "masks", "*", "*_mask")) == [composed]
    assert list(found(tmp_path, "photos", "masks", unicodedata.normalize("NFD", "Grü*"), "Grü*_mask.png")) == ["ße"]


@pytest.mark.parametrize(
    ("image", "label", "patterns"),
    [
        ("img_*.jpg", "mask_*.png", ("img_*", "mask_*")),
        ("*.jpg", "*_mask.png", ("*", "*_mask.PNG")),
        ("*.jpg", "*.jpg.png", ("*.jpg", "*.jpg.png")),
        ("*.jpg", "*.png", ("*", "*")),
        ("*.png", "*_mask.png", ("*", "*_mask")),
        ("*.png", "mask *.png", ("*.png", "mask *.png")),
    ],
)
@pytest.mark.parametrize("folder", ["all", "all/masks", "masks"])
def test_patterns_say_what_else_is_in_the_names_also_in_one_folder(tmp_path, image, label, patterns, folder):
    names = ("0001", "0002_b", "x/0003")
    for name in names:
        *above, stem = name.split("/")
        write(tmp_path, "/".join(["all", *above, image.replace("*", stem)]))
        write(tmp_path, "/".join([folder, *above, label.replace("*", stem)]))
    assert sorted(found(tmp_path, "all", folder, *patterns)) == sorted(names)


def test_all_without_a_partner_are_named_at_once(tmp_path):
    write(tmp_path, "photos/a.jpg", "photos/b.jpg", "photos/c d.jpg", "masks/a.png", "masks/x/b.png")
    with pytest.raises(DataError, match="2 of 3 images have none, and 1 of 2 masks no image: ") as error:
        found(tmp_path, "photos", "masks")
    assert f": {tmp_path}/photos/b.jpg, {tmp_path}/photos/c d.jpg, {tmp_path}/masks/x/b.png; add" in str(error.value)
    write(tmp_path, *(f"photos/{index}.jpg" for index in range(30)))
    with pytest.raises(DataError, match=r"photos/26\.jpg and 13 more; add or remove"):
        found(tmp_path, "photos", "masks")


def test_one_name_of_two_files_is_a_sentence(tmp_path):
    write(tmp_path, "photos/a.jpg", "photos/a.png", "masks/a.png")
    with pytest.raises(DataError, match=r"1 stand for several files: \S+a\.jpg and \S+a\.png; remove or rename"):
        found(tmp_path, "photos", "masks")
    assert found(tmp_path, "photos", "masks", "*.jpg") == {"a": ("photos/a.jpg", "masks/a.png")}


def test_folders_without_what_is_looked_for(tmp_path):
    write(tmp_path, "photos/a.png", "photos/b.png", "masks/a.png")
    with pytest.raises(DataError, match=r"nowhere should be a folder of images or masks, but is none"):
        found(tmp_path, "photos", "nowhere")
    with pytest.raises(DataError, match=r"masks should hold masks whose names fit '\*_mask', but it holds none: corr"):
        found(tmp_path, "photos", "masks", "*", "*_mask")
    with pytest.raises(DataError, match=r"photos should hold images .* name the masks' own folder, or tell both apart"):
        found(tmp_path, "photos", "photos")


def test_the_parts_are_the_same_everywhere_and_for_ever():
    names = [f"{index:04d}" for index in range(20)]
    assert parts(names, Split(0.2, 0.1, 0, None)) == {
        "train": [name for name in names if name not in VAL + TEST],
        "val": VAL,
        "test": TEST,
    }
    assert parts(names, Split(0.2, 0.1, 1, None))["val"] != VAL


VAL, TEST = ["0000", "0001", "0004", "0013", "0016", "0017"], ["0008", "0010"]


def test_where_a_name_goes_depends_on_no_other_and_shares_are_met():
    names = [f"town{index % 7}/{index}" for index in range(2000)]
    few, many = (parts(names[:count], Split(0.2, 0.1, 3, None)) for count in (1000, 2000))
    for part, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert few[part] == [name for name in many[part] if name in names[:1000]]
        assert abs(len(many[part]) / 2000 - share) < 0.03
    more = parts(names, Split(0.3, 0.0, 3, None))
    assert set(many["val"]) < set(more["val"])


@pytest.mark.parametrize(
    ("group_by", "group"), [("folder", lambda name: name.split("/")[0]), (r"_(s\d)", lambda name: name[-4:-2])]
)
def test_groups_are_never_divided(group_by, group):
    names = [f"town{index % 5}/{index:02d}_s{index % 4}_x" for index in range(40)]
    for seed in range(20):
        found = parts(names, Split(0.3, 0.2, seed, group_by))
        groups = [{group(name) for name in found[part]} for part in ("train", "val", "test")]
        assert all(groups) and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert sorted(name for part in found.values() for name in part) == sorted(names)


def test_every_part_has_something_in_it():
    for seed in range(50):
        for share in (0.001, 0.5, 0.999):
            found = parts(["a", "b"], Split(share, 0, seed, None))
            assert len(found["train"]) == len(found["val"]) == 1
        assert all(map(len, parts(["a", "b", "c"], Split(0.49, 0.5, seed, None)).values()))
    with pytest.raises(DataError, match=r"at least 2 images, one for every part, but there is 1 image: add images"):
        parts(["a"], Split(0.2, 0, 0, None))
    with pytest.raises(DataError, match=r"at least 3 folders, .* but there are 2 folders: set another group_by"):
        parts(["a/1", "b/1"], Split(0.2, 0.2, 0, "folder"))
    with pytest.raises(DataError, match=r"such as 'b', but '\(\\\\d\)' does not fit 2: b, c; correct it"):
        parts(["a1", "b", "c"], Split(0.2, 0, 0, r"(\d)"))


FOLDERS = "dataset_root: {root}, image_dir: photos, label_dir: masks"


def recipe(root: Path, train: str = "", val: str | None = None) -> Path:
    texts = [FOLDERS.format(root=root) + text for text in (train, train if val is None else val)]
    path = root / "recipe.yml"
    path.write_text(RECIPE.format(train=texts[0], val=texts[1], normalize=NORMALIZE), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    names = [f"town{index % 4}/{index}" for index in range(12)]
    write(tmp_path, *(f"photos/{name}.jpg" for name in names), *(f"masks/{name}.png" for name in names))
    return tmp_path


def test_a_recipe_of_folders(root):
    config = load_config(recipe(root, ", split: {group_by: folder}"))
    train, val = (build_dataset(config, part) for part in ("train", "val"))
    assert train.training and not val.training
    assert len(train) + len(val) == 12 and len(val) % 3 == 0 and not {*train.pairs} & {*val.pairs}
    assert (val[0]["label"] == LABEL).all()
    test = build_dataset(load_config(recipe(root, ", split: {test: 0.2}"), ["val_dataset.mode=test"]), "val")
    assert 0 < len(test) < 12
    everything = load_config(recipe(root, ", image_pattern: '1*'", ", image_pattern: '4*'"))
    with pytest.raises(DataError, match="masks no image"):  # as all masks fit
        build_dataset(everything, "train")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (
            "",
            None,
            r"expected val_dataset\.split to say which images are evaluated on, .* write split: {val: 0\.2} into",
        ),
        (
            ", split: {val: 0.2}",
            "",
            r"expected val_dataset\.split and image_pattern to be those of train_dataset, .* no ",
        ),
        (", split: {seed: 1}", ", split: {seed: 2}", r"'seed': 2.* and .*'seed': 1.*: write the same into both"),
        (", split: {val: 0}", None, r"expected val_dataset to be given with a split\.val above 0, as mode is val"),
        (", split: {val: 0.5, test: 0.5}", None, r"train_dataset\.split to be given with val and test that leave"),
        (", split: {group_by: 'a('}", None, r"split\.group_by to be folder, null, or a regular expression with one"),
        (", split: {group_by: '\\d'}", None, r"split\.group_by to be folder, null, or a regular expression with one"),
        (", split: {vall: 0.2}", None, r"expected only known keys, found train_dataset\.split\.vall: did you mean val"),
        (", image_pattern: 'a/*'", None, r"image_pattern to be a file's name with one \* in it and no folder"),
        (", label_pattern: mask", None, r"label_pattern to be a file's name with one \*"),
        (", train_path: x.txt", None, r"train_dataset to be given with lists .* or with folders .*, not with both"),
    ],
)
def test_sections_that_cannot_be(root, train, val, message):
    with pytest.raises(UsageError, match=message):
        load_config(recipe(root, train, val))


def test_sections_that_would_share_images(root):
    (root / "masks/town0").mkdir(exist_ok=True)
    inner = ", image_dir: photos/town0, label_dir: masks/town0"
    path = recipe(root)
    text = path.read_text().replace(", image_dir: photos, label_dir: masks, transforms", inner + ", transforms")
    first, second = text.rsplit("val_dataset", 1)
    path.write_text(first.replace(inner, ", image_dir: photos, label_dir: masks") + "val_dataset" + second)
    with pytest.raises(UsageError, match=r"expected val_dataset\.image_dir to lie beside train_dataset\.image_dir"):
        load_config(path)
    path.write_text(first.replace("town0", "town1") + "val_dataset" + second)
    assert len(build_dataset(load_config(path), "train")) == 3


def test_without_folders_their_keys_have_no_effect(root):
    path = recipe(root, ", split: {val: 0.2}")
    path.write_text(path.read_text().replace("image_dir: photos, label_dir: masks, ", ""))
    with pytest.raises(UsageError, match="without which split and patterns have no effect"):
        load_config(path)
    path.write_text(path.read_text().replace("split: {val: 0.2}", "image_dir: photos"))
    with pytest.raises(UsageError, match="expected train_dataset to be given with both image_dir and label_dir"):
        load_config(path)
