# SPDX-License-Identifier: Apache-2.0
"""A data set of four bands in 16 bits, from its statistics to an exported model that answers as the network does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

import hmsa
from hmsa.builder import build_model, build_transforms, inference_transforms
from hmsa.commands import check_data
from hmsa.config.reading import load_config
from hmsa.datasets.bands import read_bands
from hmsa.datasets.statistics import channel_statistics
from hmsa.deploy.runtime import load_predictor
from hmsa.errors import DataError, UsageError
from hmsa.weights.loading import load_weights

sys.path.insert(0, str(Path(__file__).parent.parent))
import export
import predict
import train
import val

pytestmark = pytest.mark.slow

tifffile = pytest.importorskip("tifffile")

C, H, W = 4, 72, 100


def draw(folder: Path, count: int) -> None:
    """Grey land with a disc that only the fourth band shows, and its mask."""
    rng = np.random.default_rng(0)
    for index in range(count):
        mask = cv2.circle(np.zeros((H, W), np.uint8), rng.integers(25, 50, 2).tolist(), 18, 1, -1)
        image = rng.integers(9000, 12000, (H, W, C)).astype(np.uint16)
        image[..., 3] += mask * np.uint16(30000)
        options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw"}
        tifffile.imwrite(folder / f"{index}.tif", image, **options)
        Image.fromarray(mask).save(folder / f"{index}.png")
    (folder / "list.txt").write_text("".join(f"{index}.tif {index}.png\n" for index in range(count)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, recipe.yml, and what a few iterations of training have left in run/."""
    root = tmp_path_factory.mktemp("bands")
    draw(root, 6)
    found = channel_statistics(sorted(root.glob("*.tif")), in_channels=C, num_workers=2)
    normalize = {"type": "Normalize", "mean": found.mean, "std": found.std}
    dataset = {"type": "Dataset", "dataset_root": str(root)}
    recipe = {
        "in_channels": C,
        "iters": 6,
        "batch_size": 2,
        "model": {
            "type": "MscaleOCRNet",
            "num_classes": 2,
            "backbone": {"type": "HRNet_W18_NV_Small_V1", "in_channels": C},
            "scales": [0.5, 1.0],
            "ocr_mid_channels": 16,
            "ocr_key_channels": 8,
            "attention_mid_channels": 8,
        },
        "train_dataset": {
            **dataset,
            "train_path": "list.txt",
            "img_channels": C,
            "transforms": [
                {"type": "ResizeStepScaling", "min_scale_factor": 0.75, "max_scale_factor": 1.5, "scale_step_size": 0},
                {"type": "RandomPaddingCrop", "crop_size": [96, 96], "im_padding_value": [40, 40, 40, 90]},
                {"type": "RandomHorizontalFlip"},
                normalize,
            ],
        },
        "val_dataset": {**dataset, "val_path": "list.txt", "transforms": [normalize]},
        "optimizer": {"type": "AdamW"},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.003, "end_lr": 0.0},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": {"joint": 1.0, "high": 0.5}},
    }
    (root / "recipe.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command(train, root, "--save_dir", root / "run", "--do_eval", "--num_workers", 2, "--log_iters", 2)
    return root


def command(script, root: Path, *arguments: object) -> None:
    script.main(script.make_parser().parse_args(["--config", str(root / "recipe.yml"), *map(str, arguments)]))


def test_it_trains_and_evaluates(run: Path, tmp_path: Path) -> None:
    before = build_model(load_config(run / "recipe.yml"))
    weight = paddle.load(str(run / "run/best_model/model.pdparams"))["backbone.conv1.weight"]
    assert weight.shape == [64, C, 3, 3]
    change = np.abs((weight - before.backbone.conv1.weight).numpy()).max(axis=(0, 2, 3))
    assert (change > 1e-4).all()  # all bands train

    weights, output = run / "run/best_model", tmp_path / "found.json"
    command(val, run, "--model_path", weights, "--engine", "inference", "--output", output)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert np.sum(found["confusion_matrix"]) == 6 * H * W and found["config"]["in_channels"] == C


def test_it_predicts_and_shows_the_first_three_bands(run: Path, tmp_path: Path) -> None:
    for index in (0, 1):
        np.save(tmp_path / f"{index}.npy", read_bands(run / f"{index}.tif", C)[0])
    (tmp_path / "notes.txt").write_text("no image")
    command(
        predict, run, "--model_path", run / "run/best_model", "--image_path", tmp_path, "--save_dir", tmp_path / "a"
    )

    label = np.asarray(Image.open(tmp_path / "a/pseudo_color_prediction/0.png"))
    assert label.shape == (H, W)
    overlay = np.asarray(Image.open(tmp_path / "a/added_prediction/0.npy.png"))
    assert overlay.shape == (H, W, 3) and np.ptp(overlay) > 100  # stretched: 9000 to 12000 of 65535 would be 12 of 255


def test_the_export_answers_as_the_network(run: Path, tmp_path: Path) -> None:
    weights = run / "run/best_model"
    with pytest.raises(UsageError, match="the input shape should be N 4 H W"):
        command(export, run, "--model_path", weights, "--save_dir", tmp_path / "no", "--input_shape", 1, 3, 64, 96)
    command(export, run, "--model_path", weights, "--save_dir", tmp_path / "model", "--output_op", "none")

    entry = yaml.safe_load((tmp_path / "model/deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    assert entry["input_shape"] == [None, C, None, None]
    assert entry["pixel_divisor"]["uint16"] == 65535

    config = load_config(run / "recipe.yml")
    model = build_model(config)
    load_weights(model, weights)
    model.eval()
    sample = {"img": read_bands(run / "0.tif", C)[0], "trans_info": [], "gt_fields": []}
    for transform in build_transforms(inference_transforms(config)):
        sample = transform(sample, np.random.default_rng(0))
    given = np.ascontiguousarray(sample["img"].transpose(2, 0, 1)[np.newaxis])
    mean, std = (np.array(entry["transforms"][0][key])[:, None, None] for key in ("mean", "std"))
    stored = tifffile.imread(run / "0.tif").transpose(2, 0, 1)
    np.testing.assert_allclose(given[0], (stored / entry["pixel_divisor"]["uint16"] - mean) / std, atol=1e-4)

    logits = model(paddle.to_tensor(given))["joint"].numpy()
    np.testing.assert_allclose(load_predictor(tmp_path / "model")(given), logits, atol=1e-4 * np.ptp(logits))


def test_check_data_measures_and_shows_them(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(run / "recipe.yml"), "--output", str(tmp_path), "--statistics"]
    check_data.main(check_data.make_parser().parse_args(arguments))
    found = channel_statistics(sorted(run.glob("*.tif")), in_channels=C)
    printed = capsys.readouterr().out
    assert f"mean: [{', '.join(f'{value:.4f}' for value in found.mean)}]" in printed
    assert "4 channels of uint16" in printed and np.ptp(np.asarray(Image.open(tmp_path / "samples.png"))) == 255


def test_a_segmenter_takes_files_and_arrays(run: Path, tmp_path: Path) -> None:
    segmenter = hmsa.Segmenter(run / "run/best_model", engine="eager")
    result = segmenter(run / "0.tif")
    image = read_bands(run / "0.tif", C)[0]
    for given in (image, (run / "0.tif").read_bytes()):
        np.testing.assert_array_equal(segmenter(given).confidence, result.confidence)
    assert np.asarray(result.overlay()).shape == (H, W, 3)
    with pytest.raises(
        UsageError, match=r"to be uint8, uint16 or float32 \[H, W, 4\], as .* found uint8 \[72, 100, 3\]"
    ):
        segmenter(np.zeros((H, W, 3), np.uint8))

    weights = run / "run/best_model"
    command(export, run, "--model_path", weights, "--save_dir", tmp_path / "model", "--output_op", "softmax")
    exported = hmsa.Segmenter(tmp_path / "model")(run / "0.tif")
    np.testing.assert_allclose(exported.probabilities, result.probabilities, atol=1e-3)


def test_a_file_of_other_bands_is_named(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", np.zeros((H, W, 5), np.uint16))
    (tmp_path / "list.txt").write_text(f"five.npy {run}/0.png\n")
    place = [f"val_dataset.dataset_root={tmp_path}", f"val_dataset.val_path={tmp_path}/list.txt"]
    with pytest.raises(DataError, match=r"five\.npy should be .* it has 5 channels, where in_channels .* says 4; set"):
        command(val, run, "--model_path", run / "run/best_model", "--engine", "eager", "--opts", *place)
