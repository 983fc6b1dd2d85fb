# SPDX-License-Identifier: Apache-2.0
"""The check of a data set as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hmsa.commands import check_data
from hmsa.errors import DataError
from hmsa.toy.shapes import write_shapes

ROOT = Path(__file__).parents[2]
VALUES = [{"name": name, "values": [value]} for name, value in (("no", 0), ("disc", 50), ("square", 100), ("tri", 200))]


def write_recipe(folder: Path, num_classes: int, dataset: Any = None, **sections: Any) -> Path:
    """A recipe that trains, of a folder that `write_shapes` has drawn in, or of another data set."""
    folders = {"type": "Dataset", "image_dir": "images", "label_dir": "masks", "split": {"val": 0.3}}
    crop = [{"type": "RandomPaddingCrop", "crop_size": [64, 64]}, {"type": "Normalize"}]
    given = {"dataset_root": str(folder), **(dataset or folders)}
    recipe = {
        "model": {
            "type": "MscaleOCRNet",
            "num_classes": num_classes,
            "backbone": {"type": "HRNet_W18_NV_Small_V1"},
            "scales": [1.0],
            "ocr_mid_channels": 16,
            "ocr_key_channels": 8,
            "attention_mid_channels": 8,
        },
        "iters": 1,
        "train_dataset": {**given, "transforms": crop},
        "val_dataset": {**given, "transforms": [{"type": "Normalize"}]},
        "optimizer": {"type": "AdamW"},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.001},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": {"joint": 1.0}},
        **sections,
    }
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def check(recipe: Path, *flags: object) -> None:
    check_data.main(check_data.make_parser().parse_args(["--config", str(recipe), *map(str, flags)]))


def findings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("error:", "warning:", "note:"))]


def test_a_good_data_set(tmp_path, capsys):
    write_shapes(tmp_path, count=8)
    check(write_recipe(tmp_path, 4, classes=VALUES), "--output", tmp_path / "out", "--statistics")
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "data.json, samples.png" in said
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["no", "disc", "square", "tri"]

    facts = json.loads((tmp_path / "out/data.json").read_text())
    statistics = yaml.safe_load("\n".join(said[said.index("- type: Normalize") :].splitlines()[:3]))
    assert statistics == [
        {
            "type": "Normalize",
            **{key: [round(v, 4) for v in facts["datasets"]["train"][key]] for key in ("mean", "std")},
        }
    ]
    with Image.open(tmp_path / "out/samples.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == 992


def test_keys_of_the_json_stay(tmp_path):
    write_shapes(tmp_path, masks="binary", count=8)
    with pytest.raises(DataError, match="found 1 thing with which training fails or learns nothing"):
        check(write_recipe(tmp_path, 2), "--output", tmp_path / "out", "--max_images", 2)
    facts = json.loads((tmp_path / "out/data.json").read_text())
    assert list(facts) == ["config", "classes", "datasets", "findings", "seconds"]
    assert facts["classes"][0].keys() == {"name", "color", "values"}
    assert list(facts["datasets"]) == ["train", "val"]
    assert facts["datasets"]["val"].keys() == {
        *("pairs", "looked_at", "masks", "pixels", "class_pixels", "class_images", "ignored_pixels", "unknown_pixels"),
        *("values", "sizes", "stored", "masks_stored", "orientations", "mean", "std", "named"),
    }
    assert facts["datasets"]["train"]["looked_at"] == 2
    assert facts["datasets"]["train"]["values"][0].keys() == {"value", "pixels", "masks"}
    assert facts["datasets"]["train"]["sizes"].keys() == {"smallest", "median", "largest", "different", "most_frequent"}
    (finding,) = facts["findings"]
    assert finding.keys() == {
        *("severity", "kind", "dataset", "sentence", "count", "names", "lines", "tolerated"),
    }
    assert (finding["severity"], finding["kind"]) == ("error", "binary_masks")


def test_lists_with_files_that_are_missing(tmp_path, capsys):
    write_shapes(tmp_path, count=6)
    names = [f"shapes_{index:03d}" for index in range(6)]
    lines = [f"images/{name}.jpg masks/{name}.png" for name in names]
    (tmp_path / "train.txt").write_text("\n".join([*lines[:3], "images/gone.jpg masks/gone.png"]))
    (tmp_path / "val.txt").write_text("\n".join(lines[3:]))
    lists = {"type": "Dataset", "train_path": str(tmp_path / "train.txt"), "val_path": str(tmp_path / "val.txt")}
    recipe = write_recipe(tmp_path, 4, lists, classes=VALUES)
    with pytest.raises(DataError, match="found 1 thing"):
        check(recipe)
    assert findings(capsys) == [
        "error: train: 2 files that the data set names are missing: correct the list, or dataset_root"
    ]

    recipe = write_recipe(tmp_path, 4, lists, classes=VALUES, on_bad_sample="skip", bad_sample_limit=2)
    check(recipe)
    assert findings(capsys)[0].startswith("warning: train: 2 files")


@pytest.mark.parametrize("broken", ["list", "folder"])
def test_what_keeps_a_data_set_from_being_read(tmp_path, capsys, broken):
    write_shapes(tmp_path, count=4)
    dataset = None
    if broken == "list":
        (tmp_path / "list.txt").write_text("one\ntwo words and more\n")
        path = str(tmp_path / "list.txt")
        dataset = {"type": "Dataset", "train_path": path, "val_path": path}
    else:
        (tmp_path / "masks/shapes_001.png").unlink()
    with pytest.raises(DataError, match="found 2 things"):
        check(write_recipe(tmp_path, 4, dataset, classes=VALUES), "--output", tmp_path / "out")
    said = findings(capsys)
    assert len(said) == 2 and all("list.txt" in line or "shapes_001" in line for line in said)
    assert json.loads((tmp_path / "out/data.json").read_text())["findings"][0]["kind"] == "unusable_dataset"


def test_cityscapes(toy_root, tiny_recipe, tmp_path, capsys):
    check(tiny_recipe, "--output", tmp_path)
    facts = json.loads((tmp_path / "data.json").read_text())
    assert facts["datasets"]["train"]["pairs"] == 12  # fine and coarse
    assert not [line for line in findings(capsys) if line.startswith("error")]


def test_a_data_set_of_paddleseg(tmp_path, capsys):
    write_shapes(tmp_path, masks="binary", count=4)
    lines = [f"images/{path.stem}.jpg masks/{path.name}\n" for path in sorted((tmp_path / "masks").iterdir())]
    for mode, part in (("train", lines[:3]), ("val", lines[3:])):
        (tmp_path / f"{mode}_list.txt").write_text("".join(part))
    recipe = write_recipe(tmp_path, 2, {"type": "OpticDiscSeg"})
    text = yaml.safe_load(recipe.read_text())
    for mode in ("train", "val"):
        text[f"{mode}_dataset"]["mode"] = mode
    recipe.write_text(yaml.safe_dump(text))
    with pytest.raises(DataError, match="found 1 thing"):
        check(recipe)
    (said,) = findings(capsys)
    assert said.startswith("error: train and val: 4 of 4 masks hold 0 and 255 alone")


def test_names_of_any_kind(tmp_path, capsys):
    write_shapes(tmp_path, count=6)
    (tmp_path / "images/shapes_000.jpg").rename(tmp_path / "images/ein Bild ü.JPG")
    (tmp_path / "masks/shapes_000.png").rename(tmp_path / "masks/ein Bild ü.PNG")
    (tmp_path / "images/readme.txt").write_text("no image")
    check(
        write_recipe(tmp_path, 4, classes=[{**entry, "name": f"{entry['name']} ü"} for entry in VALUES]),
        "--output",
        tmp_path / "aus gabe",
    )
    assert "disc ü" in capsys.readouterr().out
    assert (tmp_path / "aus gabe/samples.png").is_file()


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_script_ends_with_a_status(tmp_path):
    write_shapes(tmp_path, masks="colors", count=4)
    result = run(ROOT / "tools/check_data.py", "--config", write_recipe(tmp_path, 4), folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "as they are in colours" in result.stdout and "put right what is called error above" in result.stderr


@pytest.mark.parametrize("masks", ["binary", "values"])
def test_training_ends_before_its_first_iteration(tmp_path, masks):
    write_shapes(tmp_path, masks=masks, count=4)
    recipe = write_recipe(tmp_path, {"binary": 2, "values": 4}[masks])
    result = run(ROOT / "train.py", "--config", recipe, "--save_dir", tmp_path / "run", folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "paste these lines into the recipe" in result.stderr and "values: [0]}" in result.stderr
    assert "iter 1" not in result.stdout


def test_training_begins_with_a_warning(tmp_path):
    write_shapes(tmp_path, count=4)
    classes = [*VALUES, {"name": "never", "values": [9]}]
    recipe = write_recipe(tmp_path, 5, classes=classes)
    flags = ("--do_eval", "--save_dir", tmp_path / "run", "--log_iters", 1)
    result = run(ROOT / "train.py", "--config", recipe, *flags, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("train", "val"):
        assert f"warning: {name}: the " in result.stdout and "lack never" in result.stdout
