# SPDX-License-Identifier: Apache-2.0
"""From folders of images and masks to a recipe that trains as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

import hmsa
from hmsa import draft
from hmsa.builder import build_dataset, build_model
from hmsa.commands import convert, init
from hmsa.datasets.bands import read_bands
from hmsa.datasets.classes import Classes
from hmsa.datasets.folders import Split, parts
from hmsa.errors import DataError, UsageError
from hmsa.toy.shapes import KINDS, write_shapes
from hmsa.visualize import DISTINCT_COLORS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    for masks in ("values", "colors", "binary", "labelme"):
        write_shapes(root / masks, masks=masks, count=10)
    return root


def run(folder: Path, *flags: object, images: str = "images", masks: str | None = "masks") -> Path:
    output = folder / "recipe.yml"
    given = [
        "--images",
        folder / images,
        *(["--masks", folder / masks] if masks else []),
        "--output",
        output,
        "--force",
    ]
    init.main(init.make_parser().parse_args([str(word) for word in (*given, *flags)]))
    return output


@pytest.mark.parametrize(
    ("masks", "values", "flags"),
    [
        ("values", [[0], [50], [100], [200]], ["--classes", "ground,disc, square,triangle"]),
        ("values", [[50], [100], [200]], ["--classes", "ignore,disc,square,triangle"]),
        ("colors", [[[0, 0, 0]], [[0, 0, 255]], [[0, 255, 0]], [[255, 0, 0]]], []),
        ("binary", [[0], [255]], []),
    ],
)
def test_a_recipe_for_every_form_of_masks_trains(shapes, tmp_path, masks, values, flags, capsys):
    path = run(shapes / masks, "--seed", 3, *flags)
    config = hmsa.load_config(path)
    assert [of.values for of in config.classes or ()] == values
    colors = [tuple(of.color or ()) for of in config.classes or ()]
    of_masks = [tuple(of[0]) for of in values if masks == "colors"]
    assert colors == (of_masks or [*DISTINCT_COLORS[: len(values)]])
    assert (config.ignore.values if config.ignore else []) == [0] * (flags[-1:] == ["ignore,disc,square,triangle"])

    train, val = (build_dataset(config, part) for part in ("train", "val"))
    assert len(train) + len(val) == 10 and not {*train.pairs} & {*val.pairs}
    labels = [train[index]["label"] for index in range(len(train))]
    assert set(np.unique(labels)) - {255} == set(range(len(values)))
    assert build_model(config).num_classes == len(values)
    out = capsys.readouterr().out
    assert f"hmsa check-data --config {path}\n" in out and f"hmsa train --config {path} --do_eval " in out


def labelme_masks(folder: Path) -> None:
    """What the message about polygons says to do."""
    with pytest.raises(UsageError, match=r"found 10 files of labelme's polygons, such as shapes_000\.json") as error:
        run(folder, masks=None)
    command = str(error.value).split("run hmsa convert ")[1].split(", and then")[0]
    assert command == f"labelme --annotations {folder}/images --output {folder}/images_masks"
    args = convert.make_parser().parse_args(command.split())
    convert.main(args)


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["values", "colors", "binary", "labelme"])
def test_a_few_iterations_of_what_it_writes(shapes, tmp_path, masks):
    sys.path.insert(0, str(ROOT))
    import train

    if masks == "labelme":
        labelme_masks(shapes / masks)
    path = run(shapes / masks, masks="images_masks/masks" if masks == "labelme" else "masks")
    if masks == "labelme":
        names = {of.name for of in hmsa.load_config(path).classes or ()}
        assert names == {"background", *(kind.name for kind in KINDS)}
    small = ["model.ocr_mid_channels=16", "model.ocr_key_channels=8", "lr_scheduler.warmup_iters=0"]
    flags = ["--config", str(path), "--iters", "3", "--batch_size", "2", "--save_dir", str(tmp_path / "run")]
    crop = "train_dataset.transforms.1.crop_size=[64, 64]"
    train.main(train.make_parser().parse_args([*flags, "--do_eval", "--opts", crop, *small]))
    assert (tmp_path / "run/best_model/ema.pdparams").is_file()


def test_weights_bring_their_network_and_are_tried_out(shapes, tmp_path, capsys):
    path = run(shapes / "values")
    opts = ["model.ocr_mid_channels=16", "model.scales=[0.5,1.0,2.0]", "model.num_classes=5", "classes=null"]
    config = hmsa.load_config(path, [*opts, "train_dataset=null", "val_dataset=null"])
    folder = tmp_path / "best model"
    folder.mkdir()
    (folder / "config.yml").write_text(config.dump(), encoding="utf-8")
    paddle.save(build_model(config).state_dict(), str(folder / "model.pdparams"))
    capsys.readouterr()
    started = hmsa.load_config(run(shapes / "values", "--weights", folder))
    assert (started.model.ocr_mid_channels, started.model.scales) == (16, [0.5, 1.0, 2.0])
    assert started.model.pretrained == str(folder) and "tensors; not fitting: " in capsys.readouterr().out
    (tmp_path / "other.pdparams").write_bytes(b"no weights")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"other\.pdparams"):
        run(shapes / "values", "--weights", tmp_path / "other.pdparams")
    assert path.read_bytes() == before


def test_the_script_says_what_comes_next_and_replaces_nothing(shapes, tmp_path):
    folder = shapes / "binary"
    command = [sys.executable, str(ROOT / "tools/init.py"), "--images", folder / "images", "--masks", folder / "masks"]
    first, second = (
        subprocess.run([*command, "--output", tmp_path / "my recipe.yml"], capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert "10 images with masks" in first.stdout and f"--config '{tmp_path}/my recipe.yml'" in first.stdout
    assert second.returncode == 2 and "replace it by --force" in second.stderr


def test_names_come_from_the_table_beside_the_masks(shapes, tmp_path):
    folder = tmp_path / "mine"
    write_shapes(folder, count=6)
    numbers = {0: 0, **{kind.value: number for number, kind in enumerate(KINDS, 1)}}
    for path in (folder / "masks").iterdir():
        mask = np.vectorize(numbers.get)(np.asarray(Image.open(path))).astype(np.uint8)
        Image.fromarray(mask).save(path)
    (folder / "classes.txt").write_text("ground 0 0 0\ndisc 0 0 255\nsquare 255 0 0\ntriangle 0 255 0\nstar 1 1 1\n")
    config = hmsa.load_config(run(folder))
    assert [of.name for of in config.classes or ()] == ["ground", "disc", "square", "triangle", "star"]
    assert config.model.num_classes == 5 and not any(of.values for of in config.classes or ())
    with pytest.raises(UsageError, match=r"a name for each of the 4 values 0, 1, 2, 3, found 2 \(a, b\)"):
        run(folder, "--classes", "a,b")


def test_names_are_asked_on_a_terminal(shapes, monkeypatch):
    answers = iter(["ground", "", "ignore", "Dreieck: spitz"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    config = hmsa.load_config(run(shapes / "values"))
    assert [of.name for of in config.classes or ()] == ["ground", "class 50", "Dreieck: spitz"]
    assert config.ignore and config.ignore.values == [100]


@pytest.mark.parametrize(
    ("image", "label", "patterns"),
    [
        ("*", "*", ("*", "*")),
        ("*", "*_mask", ("*", "*_mask")),
        ("img_*", "mask_*", ("img_*", "mask_*")),
        ("*_leftImg8bit", "*_gtFine_labelIds", ("*_leftImg8bit", "*_gtFine_labelIds")),
        ("IMG-*", "IMG-*.jpg", ("*", "*.jpg")),
        ("*", "seg*", ("*", "seg*")),
    ],
)
def test_patterns_of_names_are_guessed(tmp_path, image, label, patterns):
    for folder, pattern, suffix in (("photos", image, ".jpg"), ("masks", label, ".png")):
        for number in (1, 2, 10, 11, 110):
            path = tmp_path / folder / "a b" / (pattern.replace("*", str(number)) + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(path)
    assert draft.guess_patterns(tmp_path / "photos", tmp_path / "masks") == patterns
    if label == "*_gtFine_labelIds":  # beside other files of the same names
        for path in list((tmp_path / "masks").rglob("*.png")):
            for other in ("color", "instanceIds"):
                path.with_name(path.name.replace("labelIds", other)).write_bytes(path.read_bytes())
        assert draft.guess_patterns(tmp_path / "photos", tmp_path / "masks") == patterns


@pytest.mark.parametrize("image", ["*.jpg", "*.png"])
def test_images_and_masks_in_one_folder(tmp_path, image):
    write_shapes(tmp_path / "apart", masks="binary", count=6)
    (tmp_path / "all").mkdir()
    for path in (tmp_path / "apart/images").iterdir():
        Image.open(path).save(tmp_path / "all" / image.replace("*", path.stem))
        ending = "" if image == "*.jpg" else "_mask"
        (tmp_path / f"apart/masks/{path.stem}.png").rename(tmp_path / f"all/{path.stem}{ending}.png")
    config = hmsa.load_config(run(tmp_path, images="all", masks=None))
    assert len(build_dataset(config, "train")) + len(build_dataset(config, "val")) == 6


def test_folders_named_train_and_val_stay_what_they_are(tmp_path):
    write_shapes(tmp_path / "all", count=6)
    for number, path in enumerate(sorted((tmp_path / "all").rglob("*.*"))):
        target = tmp_path / path.parent.name / ("val" if number % 6 < 2 else "train") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    config = hmsa.load_config(run(tmp_path))
    assert (len(build_dataset(config, "train")), len(build_dataset(config, "val"))) == (4, 2)


def test_a_sample_of_many_masks_is_read(shapes, monkeypatch, capsys):
    monkeypatch.setattr(draft, "MAX_MASKS", 5)
    text = run(shapes / "values").read_text()
    assert "5 masks, a sample, hold the values 0, 50, 100, 200" in capsys.readouterr().out
    assert "(5 of 10 masks were read)" in text


def test_two_hundred_images_take_seconds(tmp_path):
    write_shapes(tmp_path, count=200)
    start = time.process_time()
    run(tmp_path)
    assert time.process_time() - start < 10


def test_wrong_turns_are_a_sentence(shapes, tmp_path):
    values = shapes / "values"
    for flags, message in (
        (["--group-by", "(.)(.)"], r"--group-by: expected folder, null, or a regular expression"),
        (["--group-by", "folder"], r"split should find at least 2 folders.*there is 1 folder"),
        (["--label-pattern", "mask"], r"--label-pattern: expected a file's name with one \*"),
        (["--label-pattern", "*_mask"], r"masks should hold masks whose names fit '\*_mask'"),
        (["--weights", "gone.pdparams"], r"--weights: expected a file of weights, found none"),
        (["--classes", "a,a,b,c"], r"at least two names that differ, found 'a' twice"),
        (["--classes", "a,ignore,ignore,ignore"], r"at least two names that differ, found 1"),
        (["--classes", "a,,b,c"], r"--classes: expected a name at every place, found none at 2"),
        (["--classes", "gone.txt"], r"--classes: expected names a,b,c or a file of them, found no file gone\.txt"),
    ):
        with pytest.raises((UsageError, DataError), match=message):
            run(values, *flags)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"images should hold images whose names fit '\*', but it holds none"):
        run(tmp_path)
    Image.new("RGB", (9, 8)).save(tmp_path / "images/a.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"but 1 are not: \S+a\.png is 8x8, its image 9x8; pair them"):
        run(tmp_path)
    (tmp_path / "images/a.jpg").write_text("no image")
    Image.new("L", (8, 8)).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.jpg should be a readable image, but: cannot identify"):
        run(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.jpg")
    with pytest.raises(DataError, match=r"the masks should tell two classes apart at least, but all 1 hold 0 alone"):
        run(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "masks/a.png", "JPEG")
    with pytest.raises(DataError, match=r"a\.png should be a mask, but: it is a JPEG file.* export masks anew as PNG"):
        run(tmp_path)
    for word in ("0", "100", "x", "-1", "nan"):
        with pytest.raises(SystemExit):
            init.make_parser().parse_args(["--images", "x", "--val", word])


def test_folders_are_looked_for_where_a_person_means_them(shapes):
    values = shapes / "values"
    with pytest.raises(UsageError, match=r"--images: \S+gone: expected a folder, found none: correct the path"):
        run(values, images="gone")
    with pytest.raises(UsageError, match=r"--masks: \S+\.png: expected a folder, found a file: name the folder"):
        run(values, masks=f"masks/{next((values / 'masks').iterdir()).name}")
    with pytest.raises(UsageError, match=r"above those of images .*: give --images \S+/images --masks \S+/masks$"):
        run(values, images=".", masks=None)
    with pytest.raises(DataError, match=r"should hold masks .*: name the masks' own folder, or tell both apart"):
        run(values, masks=None)


def test_masks_of_turned_images_are_told_from_those_of_others(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 8)).save(tmp_path / "images/a.jpg", exif=exif)
    Image.new("L", (9, 8)).save(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"which EXIF turns: save the images upright .* and turn the masks likewise"):
        run(tmp_path)


def test_names_that_nobody_gave_and_few_images_to_evaluate_on_are_told(shapes, capsys):
    run(shapes / "values", "--val", 0.4, "--seed", 1)
    said = capsys.readouterr().out
    assert "they are called class 0, class 50, class 100, class 200: give --classes, or change the recipe" in said
    assert "warning: chance gave" not in said
    seed = next(n for n in range(50) if _evaluated(shapes / "values", n) < 3)
    capsys.readouterr()
    run(shapes / "values", "--val", 0.4, "--seed", seed)
    assert "of 4 images to evaluate on: try another --seed, or a larger --val" in capsys.readouterr().out


def _evaluated(folder: Path, seed: int) -> int:
    names = [path.stem for path in (folder / "images").iterdir()]
    return len(parts(names, Split(0.4, 0.0, seed, None))["val"])


def _with_images(shapes: Path, folder: Path, convert) -> Path:
    """The same masks, and images made of the same by `convert`, which writes to a path without a suffix."""
    shutil.copytree(shapes / "values/masks", folder / "masks")
    (folder / "images").mkdir()
    for path in sorted((shapes / "values/images").iterdir()):
        convert(np.array(Image.open(path).convert("RGB")), folder / "images" / path.stem)
    return folder


@pytest.mark.parametrize("form", ["grey", "grey of 16 bits", "4 bands", "5 bands of 16 bits"])
def test_images_that_are_no_photographs_get_their_channels_and_what_they_hold(shapes, tmp_path, form, capsys):
    def convert(image, path):
        if form == "grey":
            Image.fromarray(image).convert("L").convert("RGB").save(path.with_suffix(".jpg"))
        elif form == "grey of 16 bits":
            Image.fromarray(image[..., 0].astype(np.uint16) * 9).save(path.with_suffix(".png"))
        else:
            bands = image[..., [0, 1, 2, 0]] if form == "4 bands" else image[..., [0, 1, 2, 0, 1]].astype(np.uint16)
            layout = {"extrasamples": ["unspecified"] * (bands.shape[2] - 3), "planarconfig": "contig"}
            pytest.importorskip("tifffile").imwrite(path.with_suffix(".tif"), bands, photometric="rgb", **layout)

    recipe = yaml.safe_load(run(_with_images(shapes, tmp_path / "set", convert)).read_text())
    channels = {"grey": 3, "grey of 16 bits": 1, "4 bands": 4, "5 bands of 16 bits": 5}[form]
    assert recipe.get("in_channels", 3) == channels
    (normalize,) = recipe["val_dataset"]["transforms"]
    config = hmsa.load_config(tmp_path / "set/recipe.yml")
    images = np.concatenate([read_bands(a, channels)[0].reshape(-1, channels) for a, _ in _pairs(config)])
    scale = 65535 if images.dtype == np.uint16 else 255
    np.testing.assert_allclose(normalize["mean"], images.mean(0) / scale, atol=1e-4)
    np.testing.assert_allclose(normalize["std"], np.maximum(images.std(0) / scale, 1e-4), atol=1e-4)
    assert "mean and std are measured, of 10" in capsys.readouterr().out
    image = build_dataset(config, "train")[0]["img"]
    assert channels in image.shape


def _pairs(config):
    return [*build_dataset(config, "train").pairs, *build_dataset(config, "val").pairs]


@pytest.mark.parametrize("weights", [None, "my weights.pdparams"])
@pytest.mark.parametrize("machine", [draft.Machine(False, 0), draft.Machine(True, 0), draft.Machine(True, 80 * 2**30)])
@pytest.mark.parametrize("sizes", [[(28, 28)], [(300, 200), (140, 320)], [(4000, 3000)], [(2048, 1024)]])
def test_plans_fit_images_and_machine(tmp_path, machine, sizes, weights):
    write_shapes(tmp_path, masks="binary", count=5)
    found = draft.survey(str(tmp_path / "images"), str(tmp_path / "masks"), (None, None), 0)
    found.sizes = sizes * 5
    for train in (4, 100, 30000):
        plan = draft.planned(found, (train, 1), machine, weights=weights)
        assert plan.on_cpu is not machine.gpu and all(side % 32 == 0 and side >= 64 for side in plan.crop)
        assert 1 <= plan.batch <= 8 and plan.interval <= plan.iters
        kind = init_kind(found)
        naming = draft.Naming(kind.classes, kind.ignored, kind.numbered)
        split = draft.Split(0.2, 0, 0, None)
        text = draft.recipe(found, kind, naming, plan, split=split, weights=weights)
        path = tmp_path / "recipe.yml"
        path.write_text(text)
        config = hmsa.load_config(path)
        assert config.model.pretrained == weights and config.iters == plan.iters
        assert yaml.safe_load(text)["train_dataset"]["split"] == {"val": 0.2, "seed": 0}
        assert max(map(len, text.splitlines())) <= 120
        path.write_text(text.replace("# class_w", "class_w").replace("# early_s", "early_s"))
        more = hmsa.load_config(path)
        assert more.class_weights == "auto" and more.early_stopping
    assert isinstance(init_classes(config), Classes)


def init_kind(found):
    from hmsa.datasets.kinds import kind_of

    return kind_of(found.masks)


def init_classes(config):
    from hmsa.builder import classes

    return classes(config)
