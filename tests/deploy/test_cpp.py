# SPDX-License-Identifier: Apache-2.0
"""deploy/cpp, built with sanitizers: it gives what predict.py gives, or a sentence."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hmsa.datasets.classes import Classes
from hmsa.datasets.find import ImageFile
from hmsa.datasets.transforms import Normalize
from hmsa.deploy.export import ExportOptions, export
from hmsa.engine.predict import Results, predict
from hmsa.inference.averaging import InferenceOptions
from hmsa.visualize import color_palette

openvino = pytest.importorskip("openvino", reason="deploy/cpp needs OpenVINO: pip install .[openvino]")

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "deploy/cpp"
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COLORS = [(i, 2 * i, 255 - i) for i in range(5)]
LABELS, OVERLAYS = "pseudo_color_prediction", "added_prediction"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("cmake", "c++"))), reason="deploy/cpp needs cmake and g++: make system-packages"
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The arguments -> what the program did, its faults of memory among it."""
    build = tmp_path_factory.mktemp("build")
    settings = [f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}", "-DHMSA_SANITIZE=ON"]
    onnxruntime = os.environ.get("ONNXRUNTIME_DIR", ROOT / "build/onnxruntime")
    settings += ["-DCMAKE_BUILD_TYPE=Debug", f"-DONNXRUNTIME_DIR={onnxruntime}"]
    made = subprocess.run(["cmake", "-S", SOURCE, "-B", build, *settings], capture_output=True, text=True)
    if made.returncode and "Could NOT find" in made.stderr + made.stdout:
        pytest.skip("deploy/cpp needs libraries of the system: make system-packages")
    assert made.returncode == 0, made.stderr
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True, capture_output=True)
    # OpenVINO's TBB loads its libraries in a way that sanitizers allow.
    environment = os.environ | {"TBB_ENABLE_SANITIZERS": "1"}

    def run(*arguments):
        command = [build / "hmsa_infer", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    run.engines = [line.split()[2].strip(",") for line in made.stdout.splitlines() if line.startswith("-- With ")]
    return run


@pytest.fixture(scope="module")
def network(make_tiny_network):
    return make_tiny_network()


def exported_as(network, folder, output_op):
    classes = Classes(names=tuple("abcde"), colors=tuple(COLORS))
    transforms = [{"type": "Normalize", **NORMALIZE}]
    export(network, folder, ExportOptions(output_op=output_op, transforms=transforms, classes=classes))
    return folder


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    return exported_as(network, tmp_path_factory.mktemp("exported"), "argmax")


def describe(folder, **changes):
    """Write other values into deploy.yaml, and the hashes of what lies beside it."""
    path = folder / "deploy.yaml"
    entry = yaml.safe_load(path.read_text())["Deploy"] | changes
    files = [file for file in folder.iterdir() if file.name.startswith("model")]
    entry["sha256"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    path.write_text(yaml.safe_dump({"Deploy": entry}))


@pytest.fixture(scope="module")
def preprocessing(exported, tmp_path_factory):
    """An export that takes an image as it is: uint8 [1, H, W, 3]."""
    from openvino.preprocess import PrePostProcessor

    folder = tmp_path_factory.mktemp("preprocessing")
    steps = PrePostProcessor(openvino.Core().read_model(exported / "model.pdmodel"))
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    mean, std = ([255 * value for value in NORMALIZE[key]] for key in ("mean", "std"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
    openvino.save_model(steps.build(), folder / "model.xml", compress_to_fp16=False)
    shutil.copy(exported / "deploy.yaml", folder)
    files = [{"format": "openvino", "precision": "fp32", "files": ["model.xml", "model.bin"]}]
    shape = {"input_dtype": "uint8", "input_layout": "NHWC", "input_shape": [None, None, None, 3]}
    describe(folder, formats=files, transforms=[], **shape)
    return folder


def add_chunk(png, name, content):
    """A PNG with another chunk before its pixels."""
    start = png.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:start] + chunk + png[start:]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of every kind, smooth and noisy at once."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)

    def drawn(height, width, mode="RGB"):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.integers(-12, 12, (height, width, 3)), 0, 255)
        return Image.fromarray(noisy.astype(np.uint8)).convert(mode)

    def turned(orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif

    drawn(96, 160).save(folder / "plain.png")
    drawn(97, 161).save(folder / "odd.png")
    drawn(150, 70).save(folder / "portrait.jpg", quality=90)
    drawn(20, 20).save(folder / "20x20.png")
    drawn(77, 91, "L").save(folder / "grey.jpg")
    drawn(64, 96).quantize(64).save(folder / "palette.png", transparency=3)
    drawn(64, 96, "1").save(folder / "bits.png")
    drawn(60, 90, "RGBA").save(folder / "rgba.png")
    drawn(60, 90, "LA").save(folder / "grey_alpha.png")
    drawn(60, 90, "CMYK").save(folder / "cmyk.jpg")
    drawn(61, 93).save(folder / "progressive.jpg", progressive=True, subsampling=2, quality=70)
    for orientation in range(2, 9):
        drawn(48, 80).save(folder / f"turned{orientation}.jpg", exif=turned(orientation), subsampling=1)
    drawn(48, 80).save(folder / "turned.png", exif=turned(6))
    xmp = b'<x tiff:Orientation="8"/>'
    drawn(48, 80).save(folder / "xmp.jpg", xmp=xmp)
    deep = rng.integers(0, 65536, (40, 56), np.uint16)
    Image.fromarray(deep).save(folder / "16bit.png")

    # What says how colours are to be shown changes no number.
    drawn(40, 56).save(folder / "gamma.png")
    png = add_chunk((folder / "gamma.png").read_bytes(), b"gAMA", struct.pack(">I", 100000))
    (folder / "gamma.png").write_bytes(add_chunk(png, b"tRNS", struct.pack(">3H", 1, 2, 3)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def predicted(network, images, tmp_path_factory):
    """Folder of what predict.py writes for them, its overlays as PNG, too."""
    folder = tmp_path_factory.mktemp("predicted")
    files = [ImageFile(path, Path(f"{path.stem}.png"), Path(f"{path.stem}.png")) for path in images]
    results = Results(folder, color_palette(class_colors=COLORS))
    given = {"transforms": [Normalize(**NORMALIZE)], "options": InferenceOptions(), "progress": False}
    assert predict(lambda image: network(image)["joint"], files, results, **given) == []
    return folder


def check(done, output, predicted, images):
    assert (done.returncode, done.stderr[-6000:]) == (0, "")
    seen = 0
    for path in images:
        found, expected = (Image.open(folder / LABELS / f"{path.stem}.png") for folder in (output, predicted))
        assert found.mode == "P" and found.getpalette() == expected.getpalette()
        assert found.size == expected.size, path
        share = (np.asarray(found) == np.asarray(expected)).mean()
        assert share >= 0.9999, (path, share)
        seen += len(np.unique(expected))
    assert seen > 2 * len(images)
    assert len(list((output / LABELS).iterdir())) == len(images)


def test_labels_and_overlays_are_those_of_predictions(program, exported, images, predicted, tmp_path):
    done = program(exported, *images, "--output", tmp_path, "--overlay", "--threads", "2")
    check(done, tmp_path, predicted, images)
    for path in images:
        found, expected = (
            np.asarray(Image.open(folder / OVERLAYS / f"{path.stem}.png"), np.int16) for folder in (tmp_path, predicted)
        )
        assert np.abs(found - expected).max() <= 1, path
    assert done.stdout.count(" pixels, read in ") == len(images)


def test_an_export_that_normalises_itself(program, preprocessing, images, predicted, tmp_path):
    check(program(preprocessing, *images, "--output", tmp_path), tmp_path, predicted, images)
