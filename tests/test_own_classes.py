# SPDX-License-Identifier: Apache-2.0
"""A recipe with five classes of its own: their names and colours wherever classes are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from awaken import awaken
from PIL import Image

from hmsa.errors import DataError, UsageError
from hmsa.inference.video import Video, VideoWriter
from hmsa.visualize import DISTINCT_COLORS, heat, palette

sys.path.insert(0, str(Path(__file__).parent.parent))
import export
import predict
import val

NAMES = ["Straße", "[tree]", "sky", "class 0", "a: b"]
COLORS = [[9, 8, 7], None, [0, 0, 0], [255, 255, 255], [10, 20, 30]]
SHOWN = [9, 8, 7, *palette(2)[3:], 0, 0, 0, 255, 255, 255, 10, 20, 30]
CLASSES = [{"name": name, **({"color": color} if color else {})} for name, color in zip(NAMES, COLORS)]
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """recipe.yml, model.pdparams, and two images with labels of which 77 marks ignored pixels."""
    from hmsa.builder import build_model
    from hmsa.config.reading import load_config

    root = tmp_path_factory.mktemp("five")
    recipe = {
        "model": {
            "type": "MscaleOCRNet",
            "num_classes": 5,
            "backbone": {"type": "HRNet_W18_NV_Small_V1"},
            "scales": [1.0],
            "ocr_mid_channels": 16,
            "ocr_key_channels": 8,
            "attention_mid_channels": 8,
        },
        "classes": CLASSES,
        "val_dataset": {
            "type": "Dataset",
            "dataset_root": str(root),
            "val_path": str(root / "list.txt"),
            "ignore_index": 77,
            "transforms": [NORMALIZE],
        },
    }
    (root / "recipe.yml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")

    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(root / f"images/{name}.png"), rng.integers(0, 256, (64, 96, 3)))
        cv2.imwrite(str(root / f"{name}_label.png"), rng.choice([0, 1, 2, 4, 77], (64, 96)))
    (root / "list.txt").write_text("".join(f"images/{name}.png {name}_label.png\n" for name in "ab"))

    model = awaken(build_model(load_config(root / "recipe.yml")))
    paddle.save(model.state_dict(), str(root / "model.pdparams"))
    return root


def run(script, folder, *arguments):
    common = ["--config", str(folder / "recipe.yml"), "--model_path", str(folder / "model.pdparams")]
    script.main(script.make_parser().parse_args([*common, *map(str, arguments)]))


def test_table_and_json(folder, tmp_path, capsys):
    run(val, folder, "--engine", "eager", "--output", tmp_path / "found.json")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == NAMES

    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["class_names"] == NAMES
    assert list(found["iou"]) == list(found["boundary_iou"]) == NAMES
    labels = [cv2.imread(str(folder / f"{name}_label.png"), cv2.IMREAD_UNCHANGED) for name in "ab"]
    assert np.sum(found["confusion_matrix"]) == sum((label != 77).sum() for label in labels)
    assert found["config"]["classes"][0] == {"name": "Straße", "color": [9, 8, 7], "values": None}


@pytest.mark.parametrize("custom", [[], [1, 2, 3]])
def test_overlays_and_colour_maps(folder, tmp_path, custom):
    flags = ["--custom_color", *custom] if custom else []
    images = folder / "images"
    run(predict, folder, "--engine", "eager", "--image_path", images, "--save_dir", tmp_path, *flags)
    colors = [*custom, *SHOWN[len(custom) :], *palette(256)[15:]]
    with Image.open(tmp_path / "pseudo_color_prediction/a.png") as written:
        assert list(written.getpalette() or ()) == colors
        label = np.asarray(written)
    assert len(np.unique(label)) > 1

    overlay = cv2.imread(str(tmp_path / "added_prediction/a.png"))[:, :, ::-1].astype(float)
    image = cv2.imread(str(images / "a.png"))[:, :, ::-1]
    shown = np.array(colors).reshape(256, 3)[label]
    assert np.abs(overlay - (0.6 * image + 0.4 * shown)).max() <= 1


def test_label_files_are_written(folder, tmp_path, capsys):
    """The data set's own hold class numbers, and so do these; what is unknown gets a number that no class has."""
    out = tmp_path / "out"
    flags = ["--engine", "eager", "--label_ids", "--unknown_below", "0.9", "--legend", "--sheet", "--opacity", "1"]
    run(predict, folder, "--image_path", folder / "images", "--save_dir", out, *flags)
    said = "below 0.9 are unknown: 255 in colour maps, 255 in label_ids, in the colour 128 128 128"
    assert said in capsys.readouterr().out
    with Image.open(out / "label_ids/a.png") as written:
        assert written.mode == "L"
        label = np.asarray(written)
    with Image.open(out / "pseudo_color_prediction/a.png") as written:
        np.testing.assert_array_equal(written, label)
        colors = np.array(written.getpalette(), np.uint8).reshape(-1, 3)
    assert set(np.unique(label)) > {255} and (label < 5).any()
    assert colors[255].tolist() == [128, 128, 128]

    np.testing.assert_array_equal(cv2.imread(str(out / "added_prediction/a.png"))[:, :, ::-1], colors[label])
    legend = np.asarray(Image.open(out / "legend/legend.png"))
    for color in [*np.array(SHOWN).reshape(5, 3), colors[255]]:
        assert (legend == color).all(axis=2).sum() > 100
    colors[1] = DISTINCT_COLORS[1]  # where PaddleSeg's is not called for
    assert np.asarray(Image.open(out / "sheets/a.png"))[22:86, 104:200].tolist() == colors[label].tolist()

    run(predict, folder, "--engine", "eager", "--image_path", folder / "images", "--save_dir", tmp_path / "known")
    known = np.asarray(Image.open(tmp_path / "known/pseudo_color_prediction/a.png"))
    np.testing.assert_array_equal(label[label != 255], known[label != 255])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--opacity", "40"], "expected --opacity from 0 to 1, found 40"),
        (["--unknown_below", "0.2"], "expected --unknown_below above 0.2, which the best of 5 classes has at least"),
        (["--unknown_below", "60"], "and up to 1, found 60"),
    ],
)
def test_shares_out_of_range(folder, tmp_path, flags, error):
    with pytest.raises(UsageError, match=error):
        run(predict, folder, "--image_path", folder / "images", "--save_dir", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_video(folder, tmp_path, capsys):
    path = tmp_path / "my videö.mp4"
    images = [cv2.imread(str(folder / f"images/{name}.png"))[:, :, ::-1] for name in "ab"]
    with VideoWriter(path, 12.5) as writer:
        for image in images * 3:
            writer.write(image)
    flags = ["--engine", "eager", "--label_ids", "--sheet", "--unknown_below", "0.5"]
    for _ in range(2):
        run(predict, folder, "--image_path", path, "--save_dir", tmp_path / "out", *flags)
    printed = capsys.readouterr().out.splitlines()
    assert "found a video of 6 frames of 96x64, 12.5 a second; sound is not kept" in printed
    assert f"written 6 frames to {tmp_path}/out" in printed
    assert f"{tmp_path}/out/added_prediction/my videö.mp4 of an earlier run will be replaced" in printed

    frames = list(Video.open(path))
    overlays = Video.open(tmp_path / "out/added_prediction/my videö.mp4")
    assert (overlays.size, overlays.rate, overlays.frames) == ((64, 96), 12.5, 6)
    sheets = Video.open(tmp_path / "out/sheets/my videö.mp4")
    assert sheets.frames == 6 and sheets.size[1] >= 3 * 96
    labels = sorted((tmp_path / "out/label_ids/my videö.mp4").iterdir())
    assert [label.name for label in labels] == [f"{number:06}.png" for number in range(6)]

    expected = tmp_path / "frame.png"
    Image.fromarray(frames[4]).save(expected)
    run(predict, folder, "--image_path", expected, "--save_dir", tmp_path / "still", *flags)
    label = np.asarray(Image.open(tmp_path / "still/label_ids/frame.png"))
    np.testing.assert_array_equal(Image.open(labels[4]), label)


def test_a_damaged_video(folder, tmp_path, capsys):
    path = tmp_path / "cut.avi"
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with VideoWriter(path, 25) as writer:
        for _ in range(30):
            writer.write(image)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(
        DataError, match=r"should have 30 frames, as it says, but: \d+ of them can be read.*the results"
    ):
        run(predict, folder, "--engine", "eager", "--image_path", path, "--save_dir", tmp_path / "out")
    assert 10 < Video.open(tmp_path / "out/added_prediction/cut.avi").frames < 28

    path.write_bytes(data[:1000])
    with pytest.raises(DataError, match=r"cut\.avi should be a video, but: it is damaged"):
        run(predict, folder, "--engine", "eager", "--image_path", path, "--save_dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_saved(folder, tmp_path):
    out, words = tmp_path / "out", "confidence, attention,decided,scales,sheet"
    tiles = ["--is_slide", "--crop_size", "64", "64", "--stride", "32", "32"]
    flip = ["--aug_pred", "--flip_horizontal", "--opts", "test_config.average=softmax"]
    given = ["--engine", "eager", "--image_path", folder / "images", *tiles, *flip]
    run(predict, folder, *given, "--save_dir", out, "--save", words)
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    folders = ("confidence", "attention/scale_1", "decided/scale_1", "scales", "sheets")
    legends = {f"legend/{word}.png" for word in ("confidence", "attention", "decided")}
    assert made == {f"{name}/{image}.png" for name in folders for image in "ab"} | legends | {".hmsa_results"}
    decided = np.asarray(Image.open(out / "decided/scale_1/a.png"))
    assert decided.shape == (64, 96, 3) and (decided == heat(np.ones((1, 1)))[0, 0]).all()

    run(predict, folder, *given, "--save_dir", tmp_path / "both", "--save", "color", "--sheet")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"pseudo_color_prediction", "sheets"}
    with pytest.raises(UsageError, match=r"expected --save to be words such as color,overlay, .* found 'colour'"):
        run(predict, folder, *given, "--save", "colour,sheet")


def test_a_video_of_everything_that_is_saved(folder, tmp_path):
    with VideoWriter(tmp_path / "v.avi", 5) as writer:
        for name in "ab":
            writer.write(cv2.imread(str(folder / f"images/{name}.png"))[:, :, ::-1])
    given = ["--engine", "eager", "--image_path", tmp_path / "v.avi", "--save_dir", tmp_path / "out"]
    run(predict, folder, *given, "--save", "color,confidence,attention,scales,sheet")
    folders = ("pseudo_color_prediction", "confidence", "attention/scale_1", "scales", "sheets")
    assert {path.parent.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.avi")} == {
        *folders
    }
    for name in folders:
        assert Video.open(tmp_path / "out" / name / "v.avi").frames == 2


def test_an_exported_model(folder, tmp_path):
    run(export, folder, "--save_dir", tmp_path / "model", "--input_shape", 1, 3, 64, 96)
    entry = yaml.safe_load((tmp_path / "model/deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert entry["class_names"] == NAMES
    assert [value for color in entry["class_colors"] for value in color] == [
        *SHOWN[:3],
        *DISTINCT_COLORS[1],
        *SHOWN[6:],
    ]
    assert entry["ignore_index"] == 77
