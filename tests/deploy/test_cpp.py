# SPDX-License-Identifier: Apache-2.0
"""deploy/cpp, built with sanitizers: it gives what predict.py gives, or a sentence."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sysconfig
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from built import SOURCE, build
from packaging.version import Version
from paddle.version import full_version as PADDLE_VERSION
from PIL import Image

from hmsa.datasets.classes import Classes
from hmsa.datasets.find import ImageFile, find_images
from hmsa.datasets.images import read_image
from hmsa.datasets.transforms import Normalize
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.network import Answer, ExportedNetwork
from hmsa.engine.predict import Results, predict
from hmsa.errors import DataError
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.tracing import convert_to_onnx, write_program, writes_json
from hmsa.visualize import color_palette

openvino = pytest.importorskip("openvino", reason="deploy/cpp needs OpenVINO: pip install .[openvino]")

ROOT = Path(__file__).parents[2]
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


def change_sha256(folder, value):
    path = folder / "deploy.yaml"
    path.write_text(yaml.safe_dump({"Deploy": yaml.safe_load(path.read_text())["Deploy"] | {"sha256": value}}))


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
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
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
        seen += len(np.unique(np.asarray(expected)))
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


@pytest.mark.parametrize("output_op", ["softmax", "none"])
def test_scores_become_labels(program, network, images, predicted, output_op, tmp_path):
    folder = exported_as(network, tmp_path / "export", output_op)
    check(program(folder, *images, "--output", tmp_path), tmp_path, predicted, images)


def test_onnx(program, network, exported, images, predicted, tmp_path):
    """In both engines that read it."""
    if not writes_json() or find_spec("paddle2onnx") is None:
        pytest.skip("ONNX is written by Paddle 3 with paddle2onnx: pip install .[onnx]")
    write_program(ExportedNetwork(network, Answer("argmax")), tmp_path / "model")
    convert_to_onnx(tmp_path / "model")
    shutil.copy(exported / "deploy.yaml", tmp_path)
    describe(tmp_path, formats=[{"format": "onnx", "precision": "fp32", "files": ["model.onnx"]}])
    for engine in program.engines:
        given = ("--output", tmp_path / engine, "--engine", engine)
        check(program(tmp_path, *images, *given), tmp_path / engine, predicted, images)


def test_paddle(exported, images, predicted, tmp_path):
    """On the library inside the Python package, as Paddle's C++ archive cannot be had from a package registry.

    The library is the archive's, but for parts in Python; the package has no headers, so a file beside this one says
    what the program needs of them.
    """
    package = Path(paddle.__file__).parent
    python = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY"))
    if python.suffix != ".so" or Version(PADDLE_VERSION) < Version("3.2"):
        pytest.skip("Paddle's library is used by itself from 3.2 on, and where Python has a shared library")
    (tmp_path / "archive/paddle/lib").mkdir(parents=True)
    (tmp_path / "archive/paddle/include").symlink_to(Path(__file__).parent / "paddle_include")
    (tmp_path / "archive/paddle/lib/libpaddle_inference.so").symlink_to(package / "base/libpaddle.so")
    folders = [python.parent, package / "libs", package / "base"]
    linker = ["--no-as-needed", str(python), "--unresolved-symbols=ignore-in-shared-libs"]
    linker += [f"{option},{folder}" for folder in folders for option in ("-rpath", "-rpath-link")]
    given = f"-DCMAKE_EXE_LINKER_FLAGS=-Wl,{','.join(linker)}"
    run = build(tmp_path / "build", f"-DPADDLE_DIR={tmp_path / 'archive'}", given)
    given = ("--output", tmp_path, "--engine", "paddle", "--threads", "2")
    check(run(exported, *images, *given), tmp_path, predicted, images)


def failed(done, status, *words):
    """That the program ended with this status and one sentence that has these words."""
    assert done.returncode == status, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("hmsa_infer: ") and all(word in line for word in words), line


def test_a_wrong_command_line_is_a_sentence(program, exported, images, tmp_path):
    output = ("--output", tmp_path)
    for arguments, words in {
        ("--engine", "tensorrt"): ["openvino, onnxruntime, paddle", "tensorrt"],
        ("--engine", "paddle"): ["built without paddle", "-DPADDLE_DIR"],
        ("--threads", "two"): ["--threads", "two"],
        ("--threads=0",): ["from 1 to 1024"],
        ("--outptu", "x"): ["unknown option --outptu"],
        ("--engine",): ["--engine needs a value"],
        ("--overlay=yes",): ["--overlay takes no value"],
        ("--output=x",): ["--output is given twice"],
        (images[0],): ["would both be written as"],
    }.items():
        failed(program(exported, images[0], *output, *arguments), 2, *words)
    assert program(exported, images[0]).returncode == program().returncode == program(exported, *output).returncode == 2
    assert program("--help").returncode == 0 and "usage: hmsa_infer" in program("--help").stdout
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_full_is_told(program, exported, images, tmp_path):
    for arguments in (["--help"], [exported, images[0], "--output", tmp_path]):
        with open("/dev/full", "w") as full:  # noqa: PTH123
            done = subprocess.run(
                [program.path, *arguments], env=program.environment, stdout=full, stderr=subprocess.PIPE, text=True
            )
        failed(done, 1, "standard output")


def test_a_folder_is_searched_and_its_results_are_named_as_by_predictions(program, exported, images, tmp_path):
    given = tmp_path / "given"
    good = next(path for path in images if path.name == "plain.png")
    names = ["b.png", "b.JPG", "deep/a.png", "deep/er/c.jpeg", ".hidden/x.png", "notes.txt", f"{LABELS}/b.png"]
    for name in names:
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good, given / name)
    (given / "deep/round").symlink_to(given)
    (given / "other").symlink_to(given / "deep")

    done = program(f"{exported}/", f"{given}/", "--output", tmp_path / "output", "--overlay")
    assert (done.returncode, done.stderr) == (0, "")
    assert "found 4 images below" in done.stdout and "left out 1 other file\n" in done.stdout
    expected = {str(file.label_name) for file in find_images(str(given))}
    assert len(expected) == 4
    for folder in (LABELS, OVERLAYS):
        top = tmp_path / "output" / folder
        assert {str(path.relative_to(top)) for path in top.rglob("*.png")} == expected
    (tmp_path / "empty").mkdir()
    failed(program(exported, tmp_path / "empty", "--output", tmp_path / "output"), 1, "expected PNG or JPEG")


def test_the_readme_shows_how_to_use_it_in_another_program(exported, images, tmp_path):
    readme = (SOURCE / "README.md").read_text()
    for name, kind in {"CMakeLists.txt": "cmake", "app.cpp": "cpp"}.items():
        text = readme.split(f"```{kind}\n")[1].split("```")[0]
        (tmp_path / name).write_text(text)
    (tmp_path / "hmsa").symlink_to(SOURCE)
    settings = [f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}"]
    for command in (["-S", tmp_path, "-B", tmp_path / "build", *settings], ["--build", tmp_path / "build"]):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
    done = subprocess.run([tmp_path / "build/app", exported, images[0]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "class" in done.stdout


def test_an_unusable_export_is_a_sentence(program, exported, images, tmp_path):
    def run(change, *arguments):
        folder = tmp_path / "export"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported, folder)
        change(folder)
        return program(folder, images[0], "--output", tmp_path / "output", *arguments)

    def write(name, content):
        return lambda folder: (folder / name).write_bytes(content)

    def damage(name):
        def flip(folder):
            content = bytearray((folder / name).read_bytes())
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)

        return flip

    failed(run(shutil.rmtree), 1, "deploy.yaml", "No such file")
    failed(run(write("deploy.yaml", b"Deploy: [")), 1, "deploy.yaml", "export again")
    failed(run(write("deploy.yaml", b"")), 1, "deploy.yaml", "export again")
    failed(run(write("deploy.yaml", b"\xff\x00" * 99)), 1, "deploy.yaml", "export again")
    failed(run(write("deploy.yaml", b"[" * 60000)), 1, "deploy.yaml", "export again")
    failed(run(write("deploy.yaml", b"#" * 70000)), 1, "deploy.yaml", "longer")
    for name in ("model.pdmodel", "model.pdiparams"):
        failed(run(lambda folder, name=name: (folder / name).unlink()), 1, name, "No such file")
        failed(run(damage(name)), 1, name, "damaged")
    failed(run(lambda folder: None, "--precision", "int8"), 1, "openvino reads in int8", "paddle in fp32")

    def described(**changes):
        return lambda folder: describe(folder, **changes)

    failed(run(described(formats=[{"format": "paddle", "precision": "fp32", "files": ["../x", "y"]}])), 1, "../x")
    failed(run(described(transforms=[{"type": "Resize"}])), 1, "more than Normalize")
    text = (exported / "deploy.yaml").read_bytes()
    failed(run(write("deploy.yaml", text[: text.index(b"sha256")])), 1, "sha256 should be the hashes")
    failed(run(lambda folder: change_sha256(folder, "x")), 1, "sha256 should be the hashes")
    failed(run(lambda folder: change_sha256(folder, {})), 1, "model.pdmodel: expected its hash")
    failed(run(described(input_shape=[1, 3, 64, None])), 1, "anyx64", "16bit.png")
    failed(run(described(min_size=100)), 1, "at least 100 pixels", "16bit.png")
    failed(run(described(channel_order="as stored")), 1, "not RGB")

    def spoil(folder):
        (folder / "model.pdmodel").write_bytes(b"x" * 1000)
        describe(folder)

    failed(run(spoil), 1, "openvino cannot open it")
    assert not list((tmp_path / "output" / LABELS).iterdir())


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "formats": ["x", None],
        "files": [["model.pdmodel"], "x"],
        "transforms": ["x", None],
        "mean": ["x", None, [1, 2], [0, 0, float("nan")]],
        "std": [None, [1, 1, 0]],
        "pixel_divisor": [0, "x", float("inf")],
        "input_name": [None],
        "input_dtype": ["float16"],
        "input_layout": ["NCHH", None],
        "input_shape": ["x", [None, 3, None], [None, 3, -1, None], [2, 3, None, None], [None, 4, None, None]],
        "min_size": [0, "x"],
        "class_colors": ["x", [[300, 0, 0]], [[-1, 0, 0]], [[1, 2]], [[0, 0, 0]] * 257],
    }.items(),
)
def test_a_wrong_value_of_a_description_is_named_not_replaced(program, exported, images, key, values, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    for value in values:
        changes = {key: value}
        if key in ("mean", "std"):
            changes = {"transforms": [{"type": "Normalize", **NORMALIZE, key: value}]}
        if key == "files":
            changes = {"formats": [{"format": "paddle", "precision": "fp32", "files": value}]}
        describe(folder, **changes)
        failed(program(folder, images[0], "--output", tmp_path / "output"), 1, f"deploy.yaml: its {key} ")
    assert not (tmp_path / "output").exists()


def test_what_an_earlier_export_does_not_record_has_a_default(program, exported, images, predicted, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    entry = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    kept = ("model", "params", "transforms", "input_shape", "output_op", "class_colors")
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": {key: entry[key] for key in kept}}))
    check(program(folder, images[0], "--output", tmp_path), tmp_path, predicted, images[:1])


def test_an_unusable_image_is_a_sentence_and_the_others_are_done(program, exported, images, tmp_path):
    good = next(path for path in images if path.name == "plain.png")
    png, jpeg = good.read_bytes(), next(path for path in images if path.suffix == ".jpg").read_bytes()
    huge_png = png[:16] + struct.pack(">II", 100000, 100000) + png[24:29]
    huge_png += struct.pack(">I", zlib.crc32(huge_png[12:29])) + png[33:]
    frame = jpeg.index(b"\xff\xc0") + 5
    bad = {
        "missing": None,
        "empty": b"",
        "text": b"not an image",
        "cut": png[: len(png) // 2],
        "end": png[:-12],
        "checksum": png[:60] + bytes([png[60] ^ 1]) + png[61:],
        "huge": huge_png,
        "cut_jpeg": jpeg[: len(jpeg) // 2],
        "huge_jpeg": jpeg[:frame] + struct.pack(">HH", 65000, 65000) + jpeg[frame + 4 :],
        "wide_jpeg": jpeg[:frame] + struct.pack(">HH", 8000, 8000) + jpeg[frame + 4 :],
        "start_jpeg": jpeg[:30],
    }
    given = tmp_path / "given"
    given.mkdir()
    for name, content in bad.items():
        if content is not None:
            (given / f"{name}.png").write_bytes(content)
    os.mkfifo(given / "pipe.png")
    paths = [given / f"{name}.png" for name in (*bad, "pipe")]

    done = program(exported, *paths, good, "--output", tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == len(paths), done.stderr
    for path, line in zip(paths, lines):
        assert line.startswith(f"hmsa_infer: failed: {path} should be "), line
        if path.stem not in ("missing", "pipe"):
            with pytest.raises(DataError):
                read_image(path)
    assert [path.name for path in (tmp_path / LABELS).iterdir()] == ["plain.png"]


def test_what_cannot_be_written_is_a_sentence_and_leaves_nothing(program, exported, images, tmp_path):
    (tmp_path / "file").write_text("")
    failed(program(exported, images[0], "--output", tmp_path / "file"), 1, "file", "choose another")
    (tmp_path / LABELS / "16bit.png").mkdir(parents=True)
    failed(program(exported, images[0], "--output", tmp_path), 1, "16bit.png: cannot be written")
    assert [path.name for path in (tmp_path / LABELS).iterdir()] == ["16bit.png"]


def test_random_damage_is_read_as_predictions_read_it_or_refused(program, exported, images, tmp_path):
    """No fault of memory whatever the bytes are."""
    rng = np.random.default_rng(1)
    for path in images:
        content = bytearray(path.read_bytes())
        for number in range(6):
            damaged = content.copy()
            for place in rng.integers(0, len(damaged), 1 + number):
                damaged[place] = rng.integers(256)
            (tmp_path / f"{path.stem}{number}.png").write_bytes(damaged)
    paths = sorted(tmp_path.glob("*.png"))
    done = program(exported, *paths, "--output", tmp_path)
    assert done.returncode == 1
    assert all(line.startswith("hmsa_infer: failed: ") for line in done.stderr.splitlines()), done.stderr
