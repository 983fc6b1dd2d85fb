# SPDX-License-Identifier: Apache-2.0
"""deploy/python/infer.py, alone: it gives what predict.py gives, in every engine, or a sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.datasets.find import ImageFile
from hmsa.datasets.transforms import Normalize
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import rows_of
from hmsa.engine.predict import Results, predict
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.tracing import writes_json
from hmsa.visualize import color_palette

SCRIPT = Path(__file__).parents[2] / "deploy/python/infer.py"
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
ENGINES = {"paddle": "paddle", "onnxruntime": "onnxruntime", "openvino": "openvino"}


def infer(*words, **options):
    """What the script did: -I and another folder leave nothing of this project to import."""
    command = [sys.executable, "-I", str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def written(network, folder, output_op="argmax", **options):
    transforms = [{"type": "Normalize", **NORMALIZE}]
    formats = rows_of([name for name in ("onnx", "openvino") if is_there(name)], ["fp32"])
    export(network, folder, ExportOptions(output_op=output_op, transforms=transforms, formats=formats, **options))
    return folder


def is_there(name):
    packages = {"onnx": ("paddle2onnx", "onnxruntime"), "openvino": ("openvino",)}[name]
    return all(map(find_spec, packages)) and (name != "onnx" or writes_json())


@pytest.fixture(scope="module")
def network(make_tiny_network):
    return make_tiny_network()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    return written(network, tmp_path_factory.mktemp("exported"), with_confidence=True)


@pytest.fixture(scope="module")
def labels(network, kinds_of_images, tmp_path_factory):
    """Name of an image -> its labels by predict.py."""
    folder = tmp_path_factory.mktemp("predicted")
    files = [ImageFile(path, Path(f"{path.stem}.png"), Path(f"{path.name}.png")) for path in kinds_of_images]
    given = {"transforms": [Normalize(**NORMALIZE)], "options": InferenceOptions(), "progress": False}
    assert predict(lambda image: network(image)["joint"], files, Results(folder, color_palette()), **given) == []
    found = folder / "pseudo_color_prediction"
    return {path.name: np.array(Image.open(found / f"{path.name}.png")) for path in kinds_of_images}


def result_of(output, kind, name):
    """A result, which has a longer name where two images differ in their ending alone."""
    long = output / kind / f"{name}.png"
    return np.array(Image.open(long if long.exists() else (output / kind / name).with_suffix(".png")))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_its_labels_are_those_of_predict(exported, kinds_of_images, labels, tmp_path, engine):
    if not find_spec(ENGINES[engine]) or (engine == "onnxruntime" and not is_there("onnx")):
        pytest.skip(f"{engine} is not installed, or this Paddle cannot write for it")
    done = infer(
        exported, kinds_of_images[0].parent, "--output", tmp_path, "--engine", engine, "--save", "id,confidence"
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(labels)} of {len(labels)} images" in done.stdout
    same = total = 0
    for name, label in labels.items():
        found = result_of(tmp_path, "id", name)
        assert found.shape == label.shape, name
        same, total = same + int((found == label).sum()), total + label.size
        assert result_of(tmp_path, "confidence", name).min() >= 255 // 5  # of five classes the best has a fifth
    assert same / total >= 0.9999


@pytest.mark.slow
def test_each_tile_decides_about_its_middle(network, tmp_path):
    exported = written(network, tmp_path / "exported", output_op="none")
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (9, 13, 3), np.uint8), (700, 450), interpolation=cv2.INTER_CUBIC)
    for name, part in {"large": image, "first": image[:256, :320], "last": image[194:, 380:]}.items():
        Image.fromarray(part).save(tmp_path / f"in/{name}.png")
    done = infer(
        exported, tmp_path / "in", "--output", tmp_path, "--save", "id,overlay", "--tile", 320, 256, "--overlap", 192
    )
    assert done.returncode == 0, done.stderr
    assert "in tiles of 320x256" in done.stderr

    tiled, first, last = (result_of(tmp_path, "id", f"{name}.png") for name in ("large", "first", "last"))
    # Tiles start at 0, 64, 128, 192, 194 and at 0, 128, 256, 380; between two the middle of what they share divides.
    assert (tiled[:160, :224] == first[:160, :224]).all()
    assert (tiled[321:, 478:] == last[127:, 98:]).all()
    assert result_of(tmp_path, "overlay", "large.png").shape == (450, 700, 3)


@pytest.mark.slow
def test_a_network_of_a_fixed_size_takes_images_of_any(network, kinds_of_images, tmp_path):
    exported = written(network, tmp_path / "exported", input_shape=(1, 3, 64, 96))
    done = infer(exported, kinds_of_images[0].parent, "--output", tmp_path / "out", "--save", "id")
    assert done.returncode == 0, done.stderr
    assert "in tiles of 96x64" in done.stderr
    for path in kinds_of_images:
        assert result_of(tmp_path / "out", "id", path.name).size


@pytest.mark.slow
def test_pixels_may_be_prepared_by_the_network(network, kinds_of_images, labels, tmp_path):
    exported = written(network, tmp_path / "exported", preprocess=True)
    done = infer(exported, kinds_of_images[0].parent, "--output", tmp_path / "out", "--save", "id")
    assert done.returncode == 0, done.stderr
    pairs = [(result_of(tmp_path / "out", "id", name), label) for name, label in labels.items()]
    same, total = (sum(counts) for counts in zip(*(((found == label).sum(), label.size) for found, label in pairs)))
    assert same / total >= 0.9999


@pytest.mark.slow
def test_videos_and_the_end_by_ctrl_c(exported, tmp_path):
    path = tmp_path / "drive.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for number in range(300):
        video.write(np.full((64, 96, 3), number % 256, np.uint8))
    video.release()

    done = infer(exported, path, "--output", tmp_path / "short", "--frames", 5)
    assert done.returncode == 0 and "5 frames of drive.avi written" in done.stdout, done.stderr
    assert cv2.VideoCapture(str(tmp_path / "short/overlay/drive.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 5

    command = [sys.executable, "-I", SCRIPT, exported, path, "--output", tmp_path / "long", "--save", "overlay"]
    running = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "long/overlay/.drive.part.avi"
    end = time.monotonic() + 120
    while not part.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in said) in [(130, False), (0, False)], said
    assert not part.exists() and (tmp_path / "long/overlay/drive.avi").stat().st_size > 0


def test_wrong_turns_end_in_a_sentence(network, kinds_of_images, tmp_path):
    exported = tmp_path / "exported"
    transforms = [{"type": "Normalize", **NORMALIZE}]
    export(network, exported, ExportOptions(output_op="argmax", transforms=transforms))
    photo, output = kinds_of_images[0], tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:200])

    for words, sentence in [
        ((tmp_path / "empty", photo), "expected what export.py wrote"),
        ((exported, tmp_path / "empty"), "expected images, a folder of them"),
        ((exported, "nothing*.png"), "found nothing of this name"),
        ((exported, photo, "--save", "colour"), "expected some of color, overlay, id, confidence, found 'colour'"),
        ((exported, photo, "--save", "confidence"), "found class numbers alone: export with --with_confidence"),
        ((exported, photo, "--engine", "tflite"), "expected files for tflite in fp32, found paddle fp32"),
        ((exported, photo, "--precision", "bf16", "--engine", "paddle"), "expected bf16 with the engine openvino"),
        ((exported, tmp_path / "broken.png"), "0 of 1 images"),
        ((exported,), "expected images, a video or --camera, found none"),
    ]:
        done = infer(*words, "--output", output)
        assert done.returncode in (1, 2) and sentence in done.stderr + done.stdout, (words, done.stderr)
        assert "Traceback" not in done.stderr

    entry = yaml.safe_load((exported / "deploy.yaml").read_text())
    (exported / entry["Deploy"]["params"]).write_bytes(b"damaged")
    done = infer(exported, photo, "--output", output)
    assert done.returncode == 1 and "found another or a damaged one" in done.stderr
    assert not list(output.rglob("*.png"))
