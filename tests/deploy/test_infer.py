# SPDX-License-Identifier: Apache-2.0
"""deploy/python/infer.py, run where this project cannot be imported."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import yaml
from awaken import awaken
from numpy.testing import assert_array_equal
from paddle.version import full_version as PADDLE_VERSION
from PIL import Image

from hmsa.datasets.images import read_image
from hmsa.datasets.transforms import Normalize, Padding, Resize
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import rows_of
from hmsa.inference.averaging import best_classes, undo_transforms

ROOT = Path(__file__).parents[2]
MEAN_STD = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NORMALIZE = {"type": "Normalize", **MEAN_STD}
FORMATS = ["paddle", "openvino"] if PADDLE_VERSION.startswith("2") else ["paddle", "onnx", "openvino"]
ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
FAST = ENGINES[FORMATS[1]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(find_spec, ("openvino", "onnxruntime", "onnx", "paddle2onnx"))),
        reason="engines need packages: pip install .[onnx,openvino]",
    ),
]

START = """
import runpy, sys
sys.modules["hmsa"] = sys.modules["paddleseg"] = None  # so that importing them fails
sys.argv = ["infer.py", *sys.argv[1:]]
runpy.run_path("infer.py", run_name="__main__")
"""


def command(*words):
    return [sys.executable, "-I", "-c", START, *map(str, words)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that has a copy of infer.py and nothing else."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(ROOT / "deploy/python/infer.py", folder)
    return folder


@pytest.fixture
def infer(place):
    def run(*words, status=0):
        done = subprocess.run(command(*words), cwd=place, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        return done.stdout, done.stderr

    return run


class Local(paddle.nn.Layer):
    """Classes depend on the pixels beside alone, so that tiles can be the same as the whole."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, image):
        return {"joint": self.conv(image)}


def local_network():
    return awaken(Local(), 5)


@pytest.fixture(scope="module")
def network(make_tiny_network):
    return make_tiny_network()


def exported_to(folder, network, formats, **options):
    options = {"output_op": "argmax", "transforms": [NORMALIZE], **options}
    export(network, folder, ExportOptions(formats=rows_of(formats, ["fp32"]), **options))
    return folder


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    return exported_to(tmp_path_factory.mktemp("exported"), network, FORMATS[:2])


def written_by_hand(folder, op, shape=("N", 3, "H", "W")):
    """An export of `Local` that takes no time: classes ("argmax") or logits ("none")."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    state = local_network().state_dict()
    tensors = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in state.items()]
    nodes = [helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["logits"], pads=[1] * 4)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 4, *shape[2:]])]
    if op == "argmax":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
        outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, [shape[0], *shape[2:]])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "local", inputs, outputs, tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    deploy = {
        "model": "model.pdmodel",
        "params": "model.pdiparams",
        "transforms": [NORMALIZE],
        "input_shape": [side if isinstance(side, int) else None for side in shape],
        "output_op": op,
        "formats": [{"format": "onnx", "precision": "fp32", "files": ["model.onnx"]}],
        "sha256": {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
    }
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": deploy}))
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """(folder of classes, folder of logits) of the same network."""
    place = tmp_path_factory.mktemp("local")
    return [written_by_hand(place / op, op) for op in ("argmax", "none")]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven images of every kind that predict.py reads."""
    folder = tmp_path_factory.mktemp("ten")
    patches = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))
    street = np.array(patches.resize((256, 128), Image.Resampling.BILINEAR))

    def save(pixels, name, **options):
        Image.fromarray(pixels).save(folder / name, **options)

    save(street, "even.png")
    save(street[:64, :96], "even.webp", lossless=True)
    save(street[:97, :161], "odd.bmp")
    save(street[..., 1], "grey.png")
    save(np.ascontiguousarray(street[:, 40:112]), "portrait.jpg")
    save(street[60:80, 100:120], "20x20.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(street[:101, :203], "turned.jpg", exif=exif)
    save(street[:93, :203], "turned_in_tiff.tif", exif=exif)
    Image.fromarray(street).quantize(64).save(folder / "palette.png", transparency=3)
    deep = street[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(folder / "deep.png"), deep - (deep > 25_700).astype(np.uint16) * 90)
    opacity = np.broadcast_to(np.arange(256, dtype=np.uint8), street.shape[:2])
    save(np.dstack([street, opacity]), "rgba.png")
    return folder


NAMES = {"even.webp": "even.webp.png"}
"""Of results, where it is not the stem."""


def expected(network, path, *transforms):
    """The classes of an image, as `predict.py` computes them."""
    sample = {"img": read_image(path), "trans_info": []}
    for transform in (*transforms, Normalize(**MEAN_STD)):
        sample = transform(sample, np.random.default_rng())
    x = np.ascontiguousarray(sample["img"].transpose(2, 0, 1)[np.newaxis])
    with paddle.no_grad():
        return best_classes(undo_transforms(network(paddle.to_tensor(x))["joint"], sample["trans_info"]))


def labels_in(folder, path):
    return np.array(Image.open(folder / "id" / NAMES.get(path.name, f"{path.stem}.png")))


@pytest.mark.parametrize(
    "engine", [FAST, *[pytest.param(name, marks=pytest.mark.slow) for name in ("paddle", "openvino") if name != FAST]]
)
def test_the_labels_are_those_of_predictions(infer, exported, images, network, engine, tmp_path):
    said, _ = infer(exported, images, "--engine", engine, "--save", "id,color,overlay", "--output", tmp_path)
    assert engine in said
    colors = np.array(yaml.safe_load((exported / "deploy.yaml").read_text())["Deploy"]["class_colors"], np.uint8)
    seen, equal = 0, 0
    for path in images.iterdir():
        label, right = labels_in(tmp_path, path), expected(network, path)
        assert label.shape == right.shape, path
        seen, equal = seen + right.size, equal + (label == right).sum()
        colored = np.array(Image.open(tmp_path / "color" / NAMES.get(path.name, f"{path.stem}.png")))
        assert_array_equal(colored, colors[label])
    assert equal >= 0.9999 * seen
    assert len(list((tmp_path / "overlay").iterdir())) == 11
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1] == [*map(str, [0, *colors[0].tolist()]), "class 0"]
    assert len(rows) == 6


def test_preprocessing_inside_extra_outputs_and_logits(infer, network, images, tmp_path):
    for name, options in {
        "softmax": {"preprocess": True, "with_confidence": True, "with_attention": True},
        "none": {},
    }.items():
        folder = exported_to(tmp_path / name, network, FORMATS, output_op=name, **options)
        for engine in dict.fromkeys(["paddle", FAST, "openvino"]):
            result = tmp_path / name / engine
            infer(folder, images, "--engine", engine, "--save", "id,confidence", "--output", result)
            for path in images.iterdir():
                right = expected(network, path)
                assert (labels_in(result, path) == right).mean() >= 0.9999
                sure = np.array(Image.open(result / "confidence" / NAMES.get(path.name, f"{path.stem}.png")))
                assert sure.shape == right.shape
                assert sure.min() >= 255 // 5
    # The one is computed by the network, the other of logits.
    one, other = (np.array(Image.open(tmp_path / n / FAST / "confidence/even.png"), int) for n in ("softmax", "none"))
    assert np.abs(one - other).max() <= 1


def test_transforms_are_applied_and_undone(infer, images, local, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(local[1], folder)
    described = yaml.safe_load((folder / "deploy.yaml").read_text())
    sizes = {
        "Resize": {"target_size": [96, 80], "keep_ratio": True, "size_divisor": 8},
        "Padding": {"target_size": [160, 160]},
    }
    described["Deploy"]["transforms"] = [*({"type": kind, **size} for kind, size in sizes.items()), NORMALIZE]
    (folder / "deploy.yaml").write_text(yaml.safe_dump(described))
    infer(folder, images / "even.png", "--save", "id", "--output", tmp_path)
    steps = [
        Resize(target_size=[96, 80], keep_ratio=True, size_divisor=8),
        Padding(target_size=[160, 160], im_padding_value=127.5, label_padding_value=255),
    ]
    right = expected(local_network(), images / "even.png", *steps)
    assert (labels_in(tmp_path, images / "even.png") == right).mean() >= 0.9999


@pytest.mark.parametrize("op", [0, 1], ids=["classes", "logits"])
def test_tiles_are_the_whole(infer, local, images, op, tmp_path):
    paths = [images / "even.png", images / "20x20.png", images / "turned.jpg"]
    infer(local[op], *paths, "--save", "id", "--output", tmp_path / "whole")
    infer(local[op], *paths, "--tile", 40, 50, "--overlap", 13, "--save", "id", "--output", tmp_path / "tiles")
    for path in paths:
        whole, tiles = (labels_in(tmp_path / name, path) for name in ("whole", "tiles"))
        assert len(np.unique(whole)) > 1
        assert (whole == tiles).mean() >= (1 if op == 0 else 0.9995)


def test_memory_is_bounded_by_tiles(place, local, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6000, 8000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=0)
    words = command(local[1], tmp_path / "large.png", "--tile", 512, 512, "--save", "id", "--output", tmp_path)
    measured = "import resource, subprocess, sys; assert not subprocess.call(sys.argv[1:]); "
    measured += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", measured, *words], cwd=place, stdout=subprocess.PIPE, text=True)
    # Logits of the whole are 768 MB and its pixels as float32 576 MB; the file, and Pillow with its pixels, are 620 MB.
    assert int(done.stdout.split()[-1]) < 850_000, done.stdout


def test_a_fixed_size_is_tiled_filled_up_or_resized(infer, images, tmp_path):
    network, folder = local_network(), written_by_hand(tmp_path / "fixed", "argmax", (2, 3, 48, 64))
    said, _ = infer(folder, images, "--overlap", 6, "--save", "id", "--output", tmp_path / "tiles")
    assert "takes 64 x 48 pixels: larger images are cut into tiles" in said
    said, _ = infer(folder, images, "--fit", "resize", "--save", "id", "--output", tmp_path / "resized")
    assert "images are resized" in said
    for path in images.iterdir():
        right = expected(network, path)
        assert labels_in(tmp_path / "resized", path).shape == right.shape
        if min(right.shape) > 48:
            assert_array_equal(labels_in(tmp_path / "tiles", path), right)
    _, told = infer(folder, images, "--tile", 64, 64, status=2)
    assert "expected --tile 64 48" in told
    _, told = infer(folder, images, "--fit", "resize", "--overlap", 6, status=2)
    assert "found --fit resize" in told


def test_one_side_is_fixed(infer, images, tmp_path):
    folder = written_by_hand(tmp_path / "fixed", "none", (1, 3, 48, "W"))
    words = [folder, images / "even.png", images / "20x20.png", "--save", "id", "--output"]
    said, _ = infer(*words, tmp_path / "resized", "--fit", "resize")
    assert "takes any x 48 pixels: images are resized" in said
    network = local_network()
    for name, width in {"even": 256, "20x20": 20}.items():
        path = images / f"{name}.png"
        resize = Resize(target_size=[width, 48], keep_ratio=False, size_divisor=None)
        assert (labels_in(tmp_path / "resized", path) == expected(network, path, resize)).mean() >= 0.999
    infer(*words, tmp_path / "tiles", "--tile", 64, 48, "--overlap", 6)
    tiles, right = labels_in(tmp_path / "tiles", images / "even.png"), expected(network, images / "even.png")
    assert (tiles == right).mean() >= 0.9995
    _, told = infer(*words, tmp_path, "--tile", 64, 64, status=2)
    assert "expected --tile WIDTH 48" in told


def test_a_tflite_program_gets_its_layout(infer, place, local, images, tmp_path):
    """With a module in the place of the engine, as TensorFlow is not for this environment."""
    folder = tmp_path / "export"
    shutil.copytree(local[0], folder)
    (folder / "model.tflite").write_bytes(b"")
    described = yaml.safe_load((folder / "deploy.yaml").read_text())
    described["Deploy"]["formats"] = [
        {
            "format": "tflite",
            "precision": "fp32",
            "files": ["model.tflite"],
            "input_layout": "NHWC",
            "output_layouts": ["NHW"],
        }
    ]
    (folder / "deploy.yaml").write_text(yaml.safe_dump(described))
    package = tmp_path / "site/ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.0'")
    (package / "interpreter.py").write_text(
        "class Interpreter:\n"
        "    def __init__(self, path, num_threads): pass\n"
        "    def get_signature_runner(self): return self\n"
        "    def get_input_details(self): return {'x': {'shape': [1, 128, 256, 3]}}\n"
        "    def __call__(self, x): return {'label': (x[..., 0] > 0).astype('int32')}\n"
    )
    words = command(folder, images / "even.png", "--save", "id", "--output", tmp_path)
    words[3] = f"import sys; sys.path.insert(0, {str(package.parent)!r})\n" + words[3]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    red = read_image(images / "even.png")[..., 0]
    assert_array_equal(labels_in(tmp_path, images / "even.png"), red / 255 > 0.485)


@pytest.mark.parametrize("suffix, codec", [(".mp4", "mp4v"), (".avi", "MJPG")])
def test_a_video(infer, local, images, suffix, codec, tmp_path):
    path = tmp_path / f"drive{suffix}"
    street = cv2.imread(str(images / "even.png"))[:101, :201]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 12, (202, 102))
    for shift in range(20):
        writer.write(cv2.copyMakeBorder(np.roll(street, 3 * shift, 1), 0, 1, 0, 1, cv2.BORDER_REPLICATE))
    writer.release()
    infer(local[0], path, "--save", "id,overlay", "--output", tmp_path / "out")
    found = cv2.VideoCapture(str(tmp_path / "out/overlay" / path.name))
    assert found.get(cv2.CAP_PROP_FRAME_COUNT) == 20
    assert found.get(cv2.CAP_PROP_FPS) == 12
    if suffix == ".avi":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        _, told = infer(local[0], path, "--save", "overlay", "--output", tmp_path / "cut", status=1)
        assert "of its 20 frames can be read" in told
    assert len(list((tmp_path / "out/id/drive").glob("*.png"))) == 20
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_files(place, local, images, number, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for count in range(3000):
        (many / f"{count}.png").symlink_to(images / "even.png")
    process = subprocess.Popen(command(local[0], many, "--output", tmp_path / "out"), cwd=place, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not list((tmp_path / "out").glob("color/*1.png")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"stopped early, what is written is whole" in told
    assert b"Traceback" not in told
    written = list((tmp_path / "out").glob("*/*.*"))
    assert 2 <= len(written) < 6000
    assert not [path for path in written if path.suffix == ".partial"]
    for path in written[:200]:
        Image.open(path).load()


def test_what_fails_is_told_and_the_others_are_done(infer, local, images, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.png").write_bytes(b"")
    (bad / "half.png").write_bytes((images / "even.png").read_bytes()[:3000])
    (bad / "text.jpg").write_text("no image")
    (bad / "half.jpg").write_bytes((images / "portrait.jpg").read_bytes()[:1500])
    flipped = bytearray((images / "even.png").read_bytes())
    flipped[400] ^= 255
    (bad / "flipped.png").write_bytes(flipped)
    Image.new("1", (14_000, 13_000)).save(bad / "large.png")  # more than Pillow's own limit
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(bad / "deep.tif")
    (bad / "lost.png").symlink_to(tmp_path / "nowhere")
    (bad / "dead.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    shutil.copy(images / "even.png", bad / "a\x1b[31mgood.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(bad / "pipe.png")
    out = tmp_path / "out"
    _, told = infer(local[0], bad, bad / "dead.mp4", tmp_path / "none", "--save", "id", "--output", out, status=1)
    lines = told.splitlines()
    reasons = {
        "empty.png": "no image format is recognised",
        "half.png": "ends too early",
        "half.jpg": "it is damaged or ends too early (",
        "flipped.png": "the checksum of its chunk 'IDAT' is wrong",
        "text.jpg": "no image format is recognised (PNG, JPEG",
        "large.png": "pixels are more than 89478485: give --tile, or cut it",
        "deep.tif": "more than 8 bits",
        "lost.png": "no ordinary file",
        "pipe.png": "no ordinary file",
        "dead.mp4": "none that OpenCV can open",
        "none": "found nothing of this name",
    }
    for name, reason in reasons.items():
        assert any(line.startswith("failed: ") and name in line and reason in line for line in lines), (name, told)
    assert "written 1 to" in lines[-1]
    assert "failed 11" in lines[-1]
    assert [path.name for path in (out / "id").iterdir()] == ["a\x1b[31mgood.png"]


def test_results_do_not_replace_each_other(infer, local, images, tmp_path):
    ours = tmp_path / "ours"
    (ours / "deeper").mkdir(parents=True)
    for name in ("even.png", "deeper/even.png"):
        shutil.copy(images / "even.png", ours / name)
    Image.open(images / "even.png").save(ours / "even.jpg")
    said, _ = infer(local[0], ours, ours / "deeper/even.png", images / "even.png", "--save", "id", "--output", tmp_path)
    results = {str(path.relative_to(tmp_path / "id")) for path in (tmp_path / "id").rglob("*.png")}
    assert results == {"even.png", "even.jpg.png", "deeper/even.png", "even-2.png"}
    assert "results of 2 images have longer names, as others have theirs: even.jpg as even.jpg.png" in said


@pytest.mark.parametrize("kind", ["folder", "list", "image", "frames"])
def test_results_replace_no_file_of_another(infer, local, images, kind, tmp_path):
    mine = {
        "folder": "color/even.png",
        "list": "classes.csv",
        "image": "id/even.png",
        "frames": "id/camera0/000000.png",
    }
    file, given = tmp_path / mine[kind], [tmp_path]
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(images / "even.png", tmp_path)
    shutil.copy(images / "even.png", file)
    if kind in ("image", "frames"):  # results of an earlier run that are given
        (tmp_path / "classes.csv").write_text("number,red,green,blue,name\n")
        given = [file, "--camera", 0]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    _, told = infer(local[0], *given, "--save", "id", "--output", tmp_path, status=1)
    assert "give another --output" in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_what_is_left_out_is_told(infer, local, images, tmp_path):
    for name in ("even.png", ".hidden.png", "drive.mp4"):
        shutil.copy(images / "even.png", tmp_path / name)
    for name in ("a.txt", "b.txt", "c"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(images)
    told = [
        "found 1 image; left out 1 hidden, 1 link to folders",
        "2 other files (.txt)",
        "1 other file (without ending)",
    ]
    told.append("1 video, to be given one by one")
    for earlier in ([], ["1 result of an earlier run"]):
        said, _ = infer(local[0], tmp_path, "--save", "id", "--output", tmp_path)
        assert all(text in said for text in told + earlier), said


def test_a_second_run_does_not_take_results_for_images(infer, local, images, tmp_path):
    shutil.copy(images / "even.png", tmp_path)
    for _ in range(2):
        _, told = infer(local[0], tmp_path, "--output", tmp_path / "out")
        assert "written 1 to" in told


def test_tiles_lift_the_limit_of_pixels(infer, local, images, tmp_path):
    """As far as the header, of an image without pixels."""

    def chunk(kind, content):
        checked = kind + content
        return len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 14_000, 13_000, 1, 0, 0, 0, 0))
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    _, told = infer(local[0], path, "--tile", 512, 512, "--output", tmp_path, status=1)
    assert "it is damaged or ends too early (" in told


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
def test_output_that_cannot_be_written(place, local, images, tmp_path):
    words = command(local[0], images / "even.png", "--output", tmp_path)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(words, cwd=place, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("infer.py: standard output: cannot be used (No space left on device)")
    assert len(done.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, cwd=place, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


WRONG = {
    "expected images, a folder, a video or --camera N": ([], 2),
    "--save to be of": (["a.png", "--save", "colour"], 2),
    "--overlap from 0": (["a.png", "--tile", "64", "64", "--overlap", "64"], 2),
    "expected --overlap together with --tile": (["*.py", "--overlap", "8"], 2),
    "expected --fit resize with an export of a fixed size": (["*.py", "--fit", "resize"], 2),
    "found an empty text": (["a.png", ""], 2),
    "argument --output: expected a path, found an empty text": (["a.png", "--output", ""], 2),
    "expected --camera to be 0 or more": (["--camera", "-3"], 2),
    "bf16 with --engine openvino, found onnxruntime": (["*.py", "--precision", "bf16", "--engine", "onnxruntime"], 2),
    "to be at least 1": (["a.png", "--tile", "0", "64"], 2),
    "one a core, found 100000": (["a.png", "--threads", "100000"], 2),
    "invalid choice: 'nix'": (["a.png", "--engine", "nix"], 2),
    "files for an engine in int8, found onnx fp32": (["a.png", "--precision", "int8"], 2),
    "files for tflite in fp32, found": (["a.png", "--engine", "tflite"], 2),
    "found nothing of this name": (["a.png"], 1),
    "found no image": (["*.nothing"], 1),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_commands(infer, local, sentence):
    words, status = WRONG[sentence]  # *.py are files, which are opened after all options are checked
    _, told = infer(local[0], *words, status=status)
    assert sentence in told.splitlines()[0]
    assert len(told.splitlines()) <= 2


def test_confidence_of_classes_alone(infer, local, images):
    _, told = infer(local[0], images, "--save", "confidence", status=2)
    assert "--with_confidence or --output_op softmax" in told


BROKEN = {
    "No such file": None,
    "expected what export.py writes": "Deploy: [",
    "longer than 65536 bytes": "#" * 70_000,
    "expected model to be": "Deploy: {output_op: argmax}",
    "expected params to be the name of a file beside it": {"params": "../y"},
    "RandomDistort": {"transforms": [{"type": "RandomDistort"}]},
    "expected transforms to be a list with a type each, found None": {"transforms": None},
    "such that Normalize can be done": {"transforms": [{"type": "Normalize", "mean": [0.5] * 3, "std": [0, 1, 1]}]},
    "expected input_shape to be four sides": {"input_shape": [None, 3, None]},
    "expected input_shape to be of three channels": {"input_shape": [None, 4, None, None]},
    "expected input_layout to be NCHW or NHWC, found 'ABCD'": {"input_layout": "ABCD"},
    "expected input_dtype to be float32 or uint8, found 'int99'": {"input_dtype": "int99"},
    "expected output_op to be one of argmax, softmax, none": {"output_op": "best"},
    "expected outputs to be one of NHW first": {"outputs": [{"name": "label", "layout": "QQ"}]},
    "expected min_size to be a number of pixels, found 'a'": {"min_size": "a"},
    "expected channel_order to be RGB": {"channel_order": "BGR"},
    "expected sha256 to be a text for each file, found None": {"sha256": None},
    "expected class_colors to be": {"class_colors": [[300, 0, 0]]},
    "expected formats to be": {"formats": [{"format": "onnx", "precision": "fp32", "files": ["../x"]}]},
    "expected paddle_version to be such as 3.2.2, found 'abc'": {"paddle_version": "abc"},
    "found a damaged or another file": {"sha256": {"model.onnx": "0" * 64}},
    "cannot open it": b"damaged",
    "found a folder, a pipe or a device": "pipe",
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_broken_exports(infer, local, images, sentence, tmp_path):
    change, folder = BROKEN[sentence], tmp_path / "export"
    shutil.copytree(local[0], folder)
    path, file = folder / "deploy.yaml", folder / "model.onnx"
    described = yaml.safe_load(path.read_text())
    if change is None:
        path.unlink()
    elif change == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif isinstance(change, str):
        path.write_text(change)
    else:
        if isinstance(change, bytes):
            file.write_bytes(change)
            change = {"sha256": {file.name: hashlib.sha256(change).hexdigest()}}
        described["Deploy"].update(change)
        path.write_text(yaml.safe_dump(described))
    _, told = infer(folder, images, status=1)
    (line,) = (line for line in told.splitlines() if line.startswith("infer.py: "))  # OpenVINO adds lines of its own
    assert sentence in line


def test_what_older_exports_leave_out(infer, local, images, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(local[0], folder)
    described = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    kept = ("model", "params", "transforms", "input_shape", "output_op", "formats")
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": {key: described[key] for key in kept}}))
    infer(folder, images / "even.png", "--save", "id", "--output", tmp_path)


def test_it_imports_nothing_of_this_project():
    text = (ROOT / "deploy/python/infer.py").read_text(encoding="utf-8")
    assert "import hmsa" not in text
    assert "from hmsa" not in text
