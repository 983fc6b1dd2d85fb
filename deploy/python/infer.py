#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Segment images, videos or what a camera sees with a network that export.py wrote.

One file, to be copied with the exported folder to any machine: it needs NumPy, PyYAML, Pillow or OpenCV, and the
package of one engine (README.md beside it has the commands). A model is a program: run only what you trust.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import sys
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Optional

os.environ.setdefault("GLOG_minloglevel", "2")  # of Paddle
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

# All before the engine: decoders of PNG that are loaded after Paddle 2.6 crash.
try:
    import numpy as np
    import yaml
except ImportError as error:
    sys.exit(f"infer.py: expected NumPy and PyYAML to be installed, but: {error}; pip install numpy pyyaml")
try:
    from PIL import Image
except ImportError:
    Image = None
try:
    import cv2
except ImportError:
    cv2 = None

IMAGES = tuple(f".{s}" for s in "png jpg jpeg jpe jfif mpo bmp tif tiff webp gif ppm pgm pnm".split())  # noqa: SIM905
VIDEOS = (".mp4", ".avi", ".mov", ".m4v", ".mkv", ".webm", ".mpg", ".mpeg")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # of Pillow's
KINDS = ("color", "overlay", "id", "confidence")
OPACITY = np.float32(0.4)  # of the colours in overlays
MAX_PIXELS = 89_478_485  # of an image without --tile, as in predict.py
MAX_TILED_PIXELS = 2**30  # with it, as OpenCV's
PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_JPEG_SIDE = 65_500
CSV_HEADER = "number,red,green,blue,name\n"
MAX_DEPLOY_BYTES = 1 << 16
LITE = ("ai_edge_litert", "tflite_runtime", "tensorflow")

Array = Any
"""A NumPy array."""


class Problem(Exception):
    """What a person can put right: a sentence that says what was expected, what was found and what to do."""

    status = 1


class WrongCommand(Problem):
    status = 2


def printable(text: object) -> str:
    """On one line, and what a terminal would obey spelt out: names of files may come from a stranger."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))


def say(text: str) -> None:
    """Tell on standard output, at once, as what comes next may take long."""
    print(printable(text), flush=True)


# --- The engines. ---


class Opened(NamedTuple):
    """A network that an engine has opened."""

    run: Callable[[Array], list[Array]]  # an input -> all outputs
    device: str
    input_shape: Optional[list[int]] = None  # where the engine tells it: TFLite's, in the layout of its entry


def open_openvino(files: list[Path], precision: str, threads: int, deploy: dict) -> Opened:
    import openvino

    # On processors that have bf16 it would compute in it without being asked.
    hint = "bf16" if precision == "bf16" else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(str(files[0]), "CPU", options).create_infer_request()
    return Opened(lambda x: [a.copy() for a in request.infer([x], share_inputs=True).to_tuple()], "CPU")


def open_onnxruntime(files: list[Path], precision: str, threads: int, deploy: dict) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3  # errors alone
    # On CUDA it would try every algorithm for each new size of an image, and round the numbers of fp32 to TF32.
    wanted = {
        "CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0},
        "CPUExecutionProvider": {},
    }
    known = onnxruntime.get_available_providers()
    providers = [(name, settings) for name, settings in wanted.items() if name in known]
    session = onnxruntime.InferenceSession(str(files[0]), options, providers=providers)
    source = session.get_inputs()[0].name
    return Opened(lambda x: session.run(None, {source: x}), session.get_providers()[0].partition("Exec")[0])


def open_paddle(files: list[Path], precision: str, threads: int, deploy: dict) -> Opened:
    warnings.filterwarnings("ignore", message="No ccache found")  # which compiling would need
    import paddle

    here, written = paddle.__version__, str(deploy["paddle_version"])
    release, newest = (list(map(int, re.findall(r"\d+", version)[:2])) for version in (here, written))
    if files[0].suffix == ".json" and newest > release:
        raise Problem(f"{files[0]}: written by Paddle {written}, which {here} cannot read: install {written} or newer")
    config = paddle.inference.Config(*map(str, files))
    config.disable_glog_info()
    if release >= [3, 0]:
        # Without the first, enable_memory_optim ends in an error; with the second, a program opens much sooner.
        config.enable_new_executor(True)
        config.enable_new_ir(True)
    config.enable_memory_optim()
    # The first two compute wrong numbers without a word (of .json and .pdmodel), the third takes minutes for nothing.
    config.delete_pass("reshape_transpose_matmul_fuse_pass")
    config.delete_pass("reshape_transpose_matmul_onednn_fuse_pass")
    config.delete_pass("conv_eltwiseadd_bn_fuse_pass")
    device = paddle.device.get_device()
    if device.startswith("gpu"):
        config.enable_use_gpu(256, 0)
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        if release == [3, 3]:
            config.delete_pass("onednn_placement_pass")  # with it, every bilinear resize fails
    predictor = paddle.inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(x: Array) -> list[Array]:
        source.reshape(x.shape)
        source.copy_from_cpu(x)
        predictor.run()
        answers = [result.copy_to_cpu() for result in results]
        predictor.clear_intermediate_tensor()
        return answers

    return Opened(run, device.upper())


def open_tflite(files: list[Path], precision: str, threads: int, deploy: dict) -> Opened:
    if find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    elif find_spec("tflite_runtime"):
        from tflite_runtime.interpreter import Interpreter
    else:
        from tensorflow.lite import Interpreter
    signature = Interpreter(str(files[0]), num_threads=threads).get_signature_runner()
    ((source, detail),) = signature.get_input_details().items()
    names = [output["name"] for output in deploy["outputs"]]

    def run_signature(x: Array) -> list[Array]:
        answers = signature(**{source: x})
        return [answers[name] for name in names]

    return Opened(run_signature, "CPU", [int(side) for side in detail["shape"]])


class Engine(NamedTuple):
    formats: tuple[str, ...]  # that it reads, the best first
    modules: tuple[str, ...]  # of which one is needed
    package: str  # that has one of them
    open: Callable[[list[Path], str, int, dict], Opened]


ENGINES = {
    "openvino": Engine(("openvino", "onnx", "paddle"), ("openvino",), "openvino", open_openvino),
    "onnxruntime": Engine(("onnx",), ("onnxruntime",), "onnxruntime", open_onnxruntime),
    "paddle": Engine(("paddle",), ("paddle",), "paddlepaddle", open_paddle),
    "tflite": Engine(("tflite",), LITE, "ai-edge-litert", open_tflite),
}
"""The fastest on a CPU first."""


# --- The exported folder. ---


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A file of an export: what is odd about it, or about what it says, becomes a sentence."""
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for a writer
            raise Problem(f"{path}: expected a file of an export, found a folder, a pipe or a device: copy it again")
        yield
    except OSError as error:
        raise Problem(f"{path}: expected a file of an export, but: {error.strerror}; copy the whole folder") from error
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Problem(f"{path}: expected what export.py writes, but: {error!r:.200}; export again") from error


def is_whole(value: object, least: int, most: int = 2**30) -> bool:
    return type(value) is int and least <= value <= most


def is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # not of nan


def is_list(value: object, *lengths: int, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and (not lengths or len(value) in lengths) and all(map(of, value))


def is_file_name(value: object) -> bool:
    return isinstance(value, str) and value.strip(".") != "" and not set(value) & set("/\\\0")


def is_text(value: object) -> bool:
    return isinstance(value, str)


def read_export(path: Path) -> dict[str, Any]:
    """What `deploy.yaml` says, with what older ones leave out. Problem names the key whose value cannot be used."""
    if path.stat().st_size > MAX_DEPLOY_BYTES:
        raise ValueError(f"it is longer than {MAX_DEPLOY_BYTES} bytes")
    said = yaml.safe_load(path.read_bytes())["Deploy"]
    if not isinstance(said, dict):
        raise TypeError("its Deploy holds no keys")

    def expect(is_right: bool, key: str, what: str) -> None:
        if not is_right:
            found = f"{said[key]!r:.100}" if key in said else "none"
            raise Problem(f"{path}: expected {key} to be {what}, found {found}: export again")

    for key in ("model", "params"):
        expect(is_file_name(said.get(key)), key, "the name of a file beside it")
    operations = ("argmax", "softmax", "none")
    expect(said.get("output_op") in operations, "output_op", f"one of {', '.join(operations)}")
    is_label = said["output_op"] == "argmax"

    first = {"name": "label", "layout": "NHW"} if is_label else {"name": "scores", "layout": "NCHW"}
    entry = {"format": "paddle", "precision": "fp32", "files": [said["model"], said["params"]]}
    deploy: dict[str, Any] = {"input_dtype": "float32", "input_layout": "NCHW", "sha256": {}, "paddle_version": "0.0"}
    deploy |= {"class_names": [], "class_colors": [], "channel_order": "RGB", "pixel_divisor": 255}
    deploy |= {**said, "min_size": 1 if said.get("min_size") is None else said["min_size"]}
    deploy |= {"outputs": said.get("outputs", []) or [first], "formats": said.get("formats", []) or [entry]}

    expect(deploy["input_dtype"] in ("float32", "uint8"), "input_dtype", "float32 or uint8")
    expect(deploy["input_layout"] in ("NCHW", "NHWC"), "input_layout", "NCHW or NHWC")
    shape = deploy.get("input_shape")
    is_shape = is_list(shape, 4, of=lambda side: side is None or side == -1 or is_whole(side, 1))
    expect(is_shape, "input_shape", "four sides, null where any is right")
    channels = shape[deploy["input_layout"].index("C")]
    expect(channels in (None, -1, 3), "input_shape", "of three channels, as predict.py alone takes others")
    expect(is_whole(deploy["min_size"], 1), "min_size", "a number of pixels")
    expect(deploy["channel_order"] == "RGB", "channel_order", "RGB, as predict.py alone takes others")
    expect(deploy["pixel_divisor"] == 255, "pixel_divisor", "255, as predict.py alone takes others")
    version = deploy["paddle_version"]
    expect(is_text(version) and re.match(r"\d+\.\d+", version) is not None, "paddle_version", "such as 3.2.2")

    hashes = deploy["sha256"]
    is_hashes = isinstance(hashes, dict) and all(map(is_text, [*hashes, *hashes.values()]))
    expect(is_hashes, "sha256", "a text for each file")
    expect(is_list(deploy["class_names"], of=is_text), "class_names", "a list of texts")
    is_colors = is_list(deploy["class_colors"], of=lambda c: is_list(c, 3, of=lambda v: is_whole(v, 0, 255)))
    expect(is_colors and len(deploy["class_colors"]) <= 256, "class_colors", "at most 256 times three of 0 to 255")

    layouts = ("NHW",) if is_label else ("NCHW", "NHWC")
    is_outputs = is_list(deploy["outputs"], of=lambda o: is_text(o["name"]) and is_text(o["layout"]))
    expect(is_outputs, "outputs", "a list with a name and a layout each")
    expect(deploy["outputs"][0]["layout"] in layouts, "outputs", f"one of {' or '.join(layouts)} first")
    expect(is_list(deploy["formats"], of=lambda e: is_entry(e, deploy, layouts)), "formats", "a list of what is there")
    expect(is_list(deploy.get("transforms"), of=is_text_keyed), "transforms", "a list with a type each")

    steps = [step["type"] for step in deploy["transforms"]]
    if not set(steps) <= {"Normalize", "Resize", "Padding"} or "Normalize" in steps[:-1]:
        expected = "expected Resize, Padding and at last Normalize as transforms"
        raise Problem(f"{path}: {expected}, found {', '.join(steps)}: do the others beforehand, or use predict.py")
    for step in deploy["transforms"]:
        expect(is_step(**step), "transforms", f"such that {step['type']} can be done")
    return deploy


def is_text_keyed(step: Any) -> bool:
    return isinstance(step, dict) and is_text(step.get("type")) and all(map(is_text, step))


def is_step(type: str, **said: Any) -> bool:
    """Whether an entry of `transforms` has numbers that can be computed with."""
    if type == "Normalize":
        mean, std = (said.get(key, [0.5] * 3) for key in ("mean", "std"))
        return is_list(mean, 3, of=is_finite) and is_list(std, 3, of=lambda v: is_finite(v) and v > 0)
    size, value = said.get("target_size", [512, 512]), said.get("im_padding_value", 127.5)
    is_size = is_list(size, 2, of=lambda side: is_whole(side, 1)) and size[0] * size[1] <= 2**30
    is_value = is_finite(value) or is_list(value, 3, of=is_finite)
    divisor = said.get("size_divisor")
    return is_size and is_value and (divisor is None or is_whole(divisor, 1, 2**16))


def is_entry(entry: Any, deploy: dict[str, Any], layouts: Sequence[str]) -> bool:
    """Whether an entry of `formats` can be opened, with layouts that are those of the network in another order."""
    outputs = entry.get("output_layouts", [])
    is_known = entry.get("input_layout") in (None, "NCHW", "NHWC") and is_list(outputs, of=is_text)
    is_known = is_known and (not outputs or (len(outputs) == len(deploy["outputs"]) and outputs[0] in layouts))
    is_named = is_text(entry["format"]) and is_text(entry["precision"])
    return is_known and is_named and bool(entry["files"]) and is_list(entry["files"], of=is_file_name)


def choose(deploy: dict, wanted: Optional[str], precision: str) -> tuple[str, dict]:
    """An engine, of those that are installed the fastest unless one is wanted, and its entry of `formats`."""
    able = [wanted] if wanted else ["openvino"] if precision == "bf16" else list(ENGINES)
    of_files = "fp32" if (precision, able) == ("bf16", ["openvino"]) else precision
    fitting = {}
    for name, entry in itertools.product(able, deploy["formats"]):
        form, formats = entry["format"], ENGINES[name].formats
        is_json = entry["files"][0].endswith(".json")  # Paddle 3's own
        if form in formats and entry["precision"] == of_files and not (is_json and name == "openvino"):
            fitting[name] = min(fitting.get(name, entry), entry, key=lambda e: formats.index(e["format"]))
    for name in fitting:
        if any(map(find_spec, ENGINES[name].modules)):
            return name, fitting[name]
    if fitting:
        packages = " or ".join(ENGINES[name].package for name in fitting)
        raise WrongCommand(f"expected {' or '.join(fitting)} to be installed, found none: pip install {packages}")
    there = ", ".join(f"{entry['format']} {entry['precision']}" for entry in deploy["formats"])
    again = "--format openvino" if precision == "bf16" else "--format and --precision"
    advice = f"choose another engine or precision, or export again with {again}"
    raise WrongCommand(f"expected files for {wanted or 'an engine'} in {precision}, found {there}: {advice}")


def open_export(folder: Path, deploy: dict, engine: str, entry: dict, precision: str, threads: int) -> Opened:
    """Open the files after comparing their hashes, as engines run what is left of a damaged one, or crash on it."""
    files = [folder / name for name in entry["files"]]
    for file in files:
        digest = hashlib.sha256()
        with reading(file), file.open("rb") as content:
            for block in iter(lambda: content.read(1 << 20), b""):
                digest.update(block)
        if deploy["sha256"].get(file.name, digest.hexdigest()) != digest.hexdigest():
            raise Problem(f"{file}: expected what export.py wrote, found a damaged or another file: copy it again")
    try:
        opened = ENGINES[engine].open(files, precision, threads, deploy)
    except Problem:
        raise
    except Exception as error:  # engines raise whatever comes first
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Problem(f"{files[0]}: {engine} cannot open it ({said:.200}): try another, or export again") from error
    module = next(sys.modules[name] for name in ENGINES[engine].modules if name in sys.modules)
    version = str(getattr(module, "__version__", "")).partition("-")[0]
    say(f"{files[0].name} ({precision}) by {engine} {version} on {opened.device}, {threads} threads")
    return opened


# --- Images. ---


def read_image(path: Path, max_pixels: int) -> Array:
    """The image as uint8 [H, W, 3] RGB, upright by its EXIF data, as predict.py reads it: of transparency the colours
    below it, of a PNG's 16 bits value / 257, of several pages the first. ValueError says why it cannot be read."""
    if not path.is_file():  # a pipe would wait for a writer, a device has no end
        raise ValueError("it is no ordinary file")
    data = path.read_bytes()
    if data.startswith(PNG_START):
        data = checked_png(data)
    try:
        image = opencv_image(data, turned=True) if Image is None else pillow_image(data, max_pixels)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # on damaged files decoders raise almost anything
        if Image is not None and isinstance(error, Image.DecompressionBombError):
            raise oversized("its", max_pixels) from error
        if Image is not None and isinstance(error, Image.UnidentifiedImageError):
            raise ValueError(f"no image format is recognised ({', '.join(FORMATS)}): replace or remove it") from error
        raise ValueError(f"it is damaged or ends too early ({error}): replace or remove it") from error
    if image.shape[0] * image.shape[1] > max_pixels:
        raise oversized(f"its {image.shape[1]}x{image.shape[0]}", max_pixels)
    return image


def oversized(found: str, max_pixels: int) -> ValueError:
    advice = "give --tile, or cut it" if max_pixels < MAX_TILED_PIXELS else "cut it"
    return ValueError(f"{found} pixels are more than {max_pixels}: {advice}")


def checked_png(data: bytes) -> bytes:
    """The chunks of a PNG that make its pixels, and its EXIF data, after comparing all checksums, some of which
    decoders leave out."""
    view, kind, start = memoryview(data), b"", len(PNG_START)
    kept = [view[:start]]
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if len(data) < max(end, start + 12):
            raise ValueError("it ends too early: replace or remove it")
        kind = data[start + 4 : start + 8]
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the checksum of its chunk {str(kind, 'latin-1')!r} is wrong: replace or remove it")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf"):
            kept.append(view[start:end])
        start = end
    return b"".join(kept)


def pillow_image(data: bytes, max_pixels: int) -> Array:
    """uint8 [H, W, 3] RGB, upright."""
    orientation = 1
    with Image.open(io.BytesIO(data), formats=FORMATS) as pil:
        if pil.width * pil.height > max_pixels:
            raise oversized(f"its {pil.width}x{pil.height}", max_pixels)
        if pil.format == "PNG" and data[24] == 16:
            image = opencv_image(data, turned=False)
        elif pil.mode[0] in "IF" or (pil.format == "TIFF" and max(pil.tag_v2.get(258, (1,))) > 8):
            raise ValueError("its channels have more than 8 bits, which are read of PNG alone: save it as a PNG")
        else:
            pil.load()
            pil.info.pop("transparency", None)
            image = np.asarray(pil if pil.mode == "RGB" else pil.convert("RGB"))
        # After the pixels: newer Pillows turn a TIFF while they load it, and then say that it is upright.
        with contextlib.suppress(Exception):  # on damaged EXIF data Pillow raises almost anything
            orientation = pil.getexif().get(0x0112)
    image = image.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else image
    rows, columns = (-1 if orientation in mirrored else 1 for mirrored in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(image[::rows, ::columns])


def opencv_image(data: bytes, turned: bool) -> Array:
    if cv2 is None:
        raise ValueError("16 bits a channel are read by OpenCV, which is not installed: pip install opencv-python")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | (0 if turned else cv2.IMREAD_IGNORE_ORIENTATION)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is not None and image.dtype == np.uint16 and data.startswith(PNG_START):
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if image is None or image.dtype != np.uint8:
        raise ValueError("it is damaged, or of a kind that OpenCV does not read: install Pillow, or save it as a PNG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encoded(image: Array, suffix: str) -> bytes:
    """uint8 [H, W, 3] RGB or [H, W] as .jpg or .png."""
    if cv2 is not None:
        options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_PNG_COMPRESSION, 3]
        return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, options)[1].tobytes()
    file = io.BytesIO()
    Image.fromarray(image).save(file, {".jpg": "JPEG", ".png": "PNG"}[suffix], quality=92, compress_level=3)
    return file.getvalue()


def resized(plane: Array, size: Sequence[int], nearest: bool = False) -> Array:
    """[H, W] or [H, W, 3] -> of `size` (height, width)."""
    if cv2 is None:
        raise ValueError("images are resized by OpenCV, which is not installed: pip install opencv-python")
    return cv2.resize(plane, tuple(size[::-1]), interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)


def filled(image: Array, size: Sequence[int], value: Any = None) -> Array:
    """uint8 [h, w, 3] -> of `size`, below and on the right filled with a value, or with its last row and column."""
    bottom, right = (side - there for side, there in zip(size, image.shape))
    result = np.pad(image, ((0, bottom), (0, right), (0, 0)), "edge")
    if value is not None:
        result[image.shape[0] :], result[:, image.shape[1] :] = value, value
    return result


# --- The network: an image in, maps out. ---


class Network:
    """An opened export with what is done to an image before and after it.

    Args:
        tile: (width, height) of the tiles that larger images are cut into; they overlap by `overlap` pixels, None is an
            eighth of a side.
        resize: whether every image is resized to the sides that are fixed, instead of cut into tiles.
        confidence: whether to answer it beside the classes.
    """

    def __init__(
        self, deploy: dict, entry: dict, opened: Opened, *, tile: Any, overlap: Any, resize: bool, confidence: bool
    ) -> None:
        self.engine, self.dtype = opened.run, deploy["input_dtype"]
        self.layout = entry.get("input_layout") or deploy["input_layout"]
        if opened.input_shape is None:
            sides = dict(zip(deploy["input_layout"], deploy["input_shape"]))
        else:
            sides = dict(zip(self.layout, opened.input_shape))
        self.copies = max(sides["N"] or 1, 1)
        self.fixed = [sides[axis] or -1 for axis in "HW"]  # -1 is any
        self.min_size, self.tile, self.overlap, self.resize = deploy["min_size"], tile, overlap, resize

        names = [output["name"] for output in deploy["outputs"]]
        self.layouts = entry.get("output_layouts") or [output["layout"] for output in deploy["outputs"]]
        self.is_label, self.is_probability = deploy["output_op"] == "argmax", deploy["output_op"] == "softmax"
        self.confidence = confidence
        self.outputs = [0]  # that are used, of all
        if confidence and "confidence" in names:
            self.outputs.append(names.index("confidence"))
        if confidence and self.is_label and len(self.outputs) == 1:
            advice = "leave confidence out of --save, or export again with --with_confidence or --output_op softmax"
            raise WrongCommand(f"expected an export that tells how sure it is, found one of classes alone: {advice}")

        # (value / 255 - mean) / std of all values 0 to 255 by channel, [3, 256].
        self.transforms = [step for step in deploy["transforms"] if step["type"] != "Normalize"]
        normalize = [step for step in deploy["transforms"] if step["type"] == "Normalize"]
        mean, std = [0] * 3, [1 / 255] * 3  # without it the values stay as they are
        if normalize:
            mean, std = (normalize[0].get(key, [0.5] * 3) for key in ("mean", "std"))
        self.table = np.array([np.arange(256) / (255 * s) - m / s for m, s in zip(mean, std)], np.float32)

    def __call__(self, image: Array) -> Array:
        """uint8 [H, W, 3] RGB -> uint8 [1, H, W], the classes, or [2, H, W] with confidence, 255 for certain."""
        image, undo = self.transformed(image)
        size = image.shape[:2]
        if min(size) < self.min_size:
            raise ValueError(f"{size[1]}x{size[0]} pixels are too few, at least {self.min_size} are needed each way")

        limits = self.tile[::-1] if self.tile else size
        sides = tuple(fixed if fixed > 0 else min(limit, side) for fixed, limit, side in zip(self.fixed, limits, size))
        if sides == size:
            return self.finished(restored(self.run(image), undo, self.is_label))
        return restored(self.in_tiles(image, sides), undo, True)

    def transformed(self, image: Array) -> tuple[Array, list]:
        """An image after Resize and Padding, and what to undo: what was done and the (height, width) before."""
        undo = []
        for step in self.transforms:
            before, (width, height) = image.shape[:2], step.get("target_size", (512, 512))
            undo.append((step["type"], before))
            if step["type"] == "Resize":
                if step.get("keep_ratio"):  # the box may be turned
                    ratio = min(max(width, height) / max(before), min(width, height) / min(before))
                    height, width = (max(round(side * ratio), 1) for side in before)
                divisor = step.get("size_divisor") or 1
                image = resized(image, [-(-side // divisor) * divisor for side in (height, width)])
            elif height < before[0] or width < before[1]:
                raise ValueError(f"{before[1]}x{before[0]} pixels are more than the {width}x{height} of Padding")
            else:
                image = filled(image, (height, width), np.array(step.get("im_padding_value", 127.5)).astype(np.uint8))
        if self.resize:
            before = image.shape[:2]
            undo.append(("Resize", before))
            image = resized(image, [fixed if fixed > 0 else side for fixed, side in zip(self.fixed, before)])
        return image, undo

    def run(self, image: Array) -> Array:
        """uint8 [h, w, 3] -> float32 [C, h, w]: classes (C = 1), probabilities or logits, and exported confidence."""
        x = image
        if self.dtype == "float32":
            x = np.stack([values[image[..., channel]] for channel, values in enumerate(self.table)], axis=-1)
        if self.layout == "NCHW":
            x = x.transpose(2, 0, 1)
        answers = self.engine(np.ascontiguousarray(np.stack([x] * self.copies)))

        planes = []
        for number in self.outputs:
            axes = self.layouts[number][1:]
            order = sorted(range(len(axes)), key=lambda axis: "HW".find(axes[axis]))  # channels first, if any
            plane = np.asarray(answers[number])[0].transpose(order).astype(np.float32, copy=False)
            if plane.shape[-2:] != image.shape[:2]:
                raise ValueError(f"the network answers {plane.shape} for {image.shape[:2]}: export again")
            planes.append(plane.reshape(-1, *image.shape[:2]))
        return planes[0] if len(planes) == 1 else np.concatenate(planes)

    def finished(self, planes: Array) -> Array:
        """`run`'s answer -> uint8 [1 or 2, h, w], a few rows at a time, which stay in the cache."""
        classes = len(planes) - len(self.outputs) + 1
        if classes > 256:
            raise ValueError(f"expected at most 256 classes, which fit into 8 bits, found {classes}")
        maps = np.empty((1 + self.confidence, *planes.shape[1:]), np.uint8)
        for top in range(0, planes.shape[1], 32):
            rows = slice(top, top + 32)
            scores = planes[:classes, rows]
            maps[0, rows] = scores[0] if self.is_label else scores.argmax(axis=0)
            if self.confidence:
                maps[1, rows] = np.rint(np.clip(self.certainty(scores, planes[-1, rows]), 0, 1) * 255)
        return maps

    def certainty(self, scores: Array, exported: Array) -> Array:
        """The probability [h, w] of the best class, of its output where there is one, else of `scores` [K, h, w]."""
        if len(self.outputs) > 1:
            return exported
        best = scores.max(axis=0)
        return best if self.is_probability else 1 / np.exp(scores - best).sum(axis=0)

    def in_tiles(self, image: Array, sides: Sequence[int]) -> Array:
        """An image in tiles of `sides` (height, width) -> uint8 [1 or 2, H, W].

        A block of the sum over tiles is finished as soon as no tile to come touches it. What remains is kept for the
        neighbour on the right and for the row below: [C, overlap, W] is all that is in memory besides a tile.
        """
        H, W = image.shape[:2]
        overlaps = [side // 8 if self.overlap is None else min(self.overlap, side - 1) for side in sides]
        rows, columns = (windows(*axis, hard=self.is_label) for axis in zip((H, W), sides, overlaps))
        maps = np.empty((1 + self.confidence, H, W), np.uint8)
        above = None  # what the rows of tiles before have left, [C, overlap, W]

        for (top, row_weights), next_row in zip(rows, [*rows[1:], None]):
            h = len(row_weights)
            done_rows = next_row[0] - top if next_row else h  # that no tile to come touches
            below, beside = None, None  # what this row of tiles, and the tile before, leave

            for (left, column_weights), next_column in zip(columns, [*columns[1:], None]):
                w = len(column_weights)
                done_columns = next_column[0] - left if next_column else w
                tile = filled(image[top : top + h, left : left + w], sides)
                planes = self.run(tile)[:, :h, :w] * (row_weights[:, np.newaxis] * column_weights)  # [C, h, w]
                if beside is not None:
                    planes[..., : beside.shape[2]] += beside

                done, beside = planes[..., :done_columns], planes[..., done_columns:]
                if above is not None:
                    done[:, : above.shape[1]] += above[..., left : left + done_columns]
                finished = self.finished(done[:, :done_rows])
                maps[:, top : top + done_rows, left : left + done_columns] = finished

                if below is None:
                    below = np.empty((len(planes), h - done_rows, W), np.float32)
                below[..., left : left + done_columns] = done[:, done_rows:]
            above = below
        return maps


def windows(length: int, side: int, overlap: int, hard: bool) -> list[tuple[int, Array]]:
    """The tiles of an axis: where each starts, and what each of its pixels counts; all tiles at a pixel count 1.

    The last is moved back to end with the image. Where they overlap, they count by half-waves of a cosine; if `hard`,
    the one whose middle is nearest counts alone.
    """
    if length <= side:
        return [(0, np.ones(length, np.float32))]
    starts = [*range(0, length - side, side - overlap), length - side]
    if hard:
        borders = [0, *((a + b + side) // 2 for a, b in zip(starts, starts[1:])), length]
        place = np.arange(side)
        tiles = [(s + place >= a) & (s + place < b) for s, a, b in zip(starts, borders, borders[1:])]
    else:
        wave, total = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2, np.zeros(length)
        for start in starts:
            total[start : start + side] += wave
        tiles = [wave / total[start : start + side] for start in starts]
    return [(start, tile.astype(np.float32)) for start, tile in zip(starts, tiles)]


def restored(planes: Array, undo: list, label: bool) -> Array:
    """[C, h, w] at its size before padding and resizing; with `label`, the first plane takes the nearest."""
    for kind, (height, width) in reversed(undo):
        if kind == "Padding":
            planes = planes[:, :height, :width]
        elif planes.shape[1:] != (height, width):
            planes = np.stack([resized(p, (height, width), label and not n) for n, p in enumerate(planes)])
    return planes


# --- What is segmented, and what is written. ---


class Item(NamedTuple):
    """An image, or a frame of a video."""

    source: str  # for messages
    name: str  # of its results, without a suffix
    load: Callable[[], Optional[Array]]  # uint8 [H, W, 3] RGB; None: there are no more frames


def has_results(output: Path) -> bool:
    """Whether this program has written to a folder before, which its classes.csv tells. Problem if files of another
    origin lie where results will."""
    path = output / "classes.csv"
    advice = "which results may replace: give another --output"
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(CSV_HEADER)) == CSV_HEADER.encode():
                return True
    if os.path.lexists(path):
        raise Problem(f"{path}: expected a file that infer.py wrote, found another, {advice}")
    for folder in (output / kind for kind in KINDS):
        if folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir()):
            raise Problem(f"{folder}: expected no files but those that infer.py wrote, found others, {advice}")
    return False


def find(given: str, results: set[str], left_out: Counter[str]) -> dict[Path, PurePath]:
    """The files of a path or a pattern, each with its path below what was given: of a folder all images below it. What
    is passed over there is counted in `left_out`: hidden, no image, or in a folder of `results` (real paths)."""
    path = root = Path(given)
    if path.is_dir():
        files = []
        for folder, folders, names in os.walk(
            path, onerror=lambda _: left_out.update(["folder{s} that cannot be read"])
        ):
            searched = []
            for name in folders:
                below = Path(folder, name)
                if name[0] == ".":
                    left_out["hidden"] += 1
                elif os.path.realpath(below) in results:
                    left_out["result{s} of an earlier run"] += sum(len(inside) for *_, inside in os.walk(below))
                elif below.is_symlink():
                    left_out["link{s} to folders"] += 1
                else:
                    searched.append(name)
            folders[:] = searched
            for name in names:
                suffix = PurePath(name).suffix.lower()
                if name[0] == ".":
                    left_out["hidden"] += 1
                elif name.lower().endswith(IMAGES):
                    files.append(Path(folder, name))
                elif suffix in VIDEOS:
                    left_out["video{s}, to be given one by one"] += 1
                else:
                    left_out[f"other file{{s}} ({suffix or 'without ending'})"] += 1
    elif path.is_file():
        files, root = [path], path.parent
    else:
        files = [file for file in map(Path, glob.glob(given, recursive=True)) if file.is_file()]  # noqa: PTH207
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if not files:
        found = "no image" if path.is_dir() or glob.has_magic(given) else "nothing of this name"
        raise Problem(f"{given}: expected images, a folder, a quoted pattern or a video, found {found}: correct it")
    return {Path(os.path.abspath(file)): file.relative_to(root) for file in sorted(files)}  # noqa: PTH100


def named(files: dict[Path, PurePath], output: Path, kinds: Sequence[str]) -> dict[Path, str]:
    """What the results of each file are called, without a suffix: as the file, or, where others differ in their suffix
    alone and it is no PNG, as the file with its own. No two are the same. Problem if one would replace an input."""

    def folded(name: object) -> str:  # some file systems take these for one
        return os.path.normcase(str(name)).casefold()

    def targets(name: str, kinds: Sequence[str], suffixes: Sequence[str]) -> set[str]:
        paths = itertools.product(kinds, suffixes)
        return {folded(os.path.realpath(output / kind / f"{name}{suffix}")) for kind, suffix in paths}

    stems = Counter(folded(below.with_suffix("")) for below in files.values())
    inputs = {folded(path) for file in map(Path, map(os.path.realpath, files)) for path in (file, *file.parents)}
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file, below in files.items():
        is_alone = stems[folded(below.with_suffix(""))] == 1 or below.suffix.lower() == ".png"
        first = str(below.with_suffix("") if is_alone else below)
        for name in itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2))):
            planned = targets(name, KINDS, (".png", ".jpg", ".mp4", ".avi"))
            if not planned & taken:
                break
        taken |= planned
        names[file] = name

        # Of a video, a folder of frames for each kind but overlay.
        suffixes = ("", ".mp4", ".avi") if below.suffix.lower() in VIDEOS else (".png", ".jpg")
        if targets(name, kinds, suffixes) & inputs:
            advice = "give another --output, or leave out what lies there"
            raise Problem(
                f"{file}: expected results beside the inputs, found that one would replace an input: {advice}"
            )
    return names


def counted(number: int, what: str) -> str:
    """Such as "2 images", of "image{s}"."""
    return f"{number} {what.replace('{s}', '' if number == 1 else 's')}"


class Video:
    """The frames of a file or of a camera, to be read in order."""

    def __init__(self, source: Any, name: str) -> None:
        if cv2 is None:
            raise Problem("expected OpenCV to be installed, which reads videos, found none: pip install opencv-python")
        self.source, self.name, self.frames_read = source, name, 0
        given = (str(source), cv2.CAP_FFMPEG) if isinstance(source, Path) else (source,)
        self.capture = cv2.VideoCapture(*given)
        if not self.capture.isOpened():
            raise Problem("expected a video or a camera, found none that OpenCV can open: try another")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else 25.0
        self.count = max(int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)  # 0 if unknown

    def load(self) -> Optional[Array]:
        """The next frame, uint8 [H, W, 3] RGB; None at the end."""
        done, frame = self.capture.read()
        self.frames_read += done
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if done else None

    def frames(self) -> Iterator[Item]:
        for number in itertools.count():
            yield Item(f"{self.source}, frame {number}", f"{self.name}/{number:06}", self.load)

    def check_whole(self) -> None:
        """ValueError if frames are missing; the counts of whole files may be wrong by a few."""
        if self.frames_read < self.count - max(3, self.count // 50):
            found = f"{self.frames_read} of its {self.count} frames can be read"
            raise ValueError(f"{found}, the others are damaged or missing: what is written ends there, replace it")

    def close(self) -> None:
        self.capture.release()


class VideoWriter:
    """A video that appears when it is closed, whole as far as it goes. Sides are made even, which codecs want."""

    def __init__(self, path: Path, rate: float, is_live: bool) -> None:
        self.path, self.rate = path, rate
        self.is_live = is_live  # frames come late, and are repeated to keep the time
        self.partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self.writer: Any = None
        self.frames, self.start = 0, time.monotonic()

    def write(self, frame: Array) -> None:
        """Add a frame, uint8 [H, W, 3] RGB."""
        frame = filled(frame, [side + side % 2 for side in frame.shape[:2]])
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter_fourcc(*("MJPG" if self.path.suffix == ".avi" else "mp4v"))
            self.writer = cv2.VideoWriter(str(self.partial.absolute()), codec, self.rate, frame.shape[1::-1])
        if not self.writer.isOpened():
            raise ValueError(f"a video of {frame.shape[1]}x{frame.shape[0]} pixels cannot be written: make it smaller")
        late = (time.monotonic() - self.start) * self.rate - self.frames if self.is_live else 1
        for _ in range(max(1, round(late))):
            self.writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            self.frames += 1

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()
        if self.partial.is_file():
            self.partial.replace(self.path)


class Results:
    """Writes OUTPUT/KIND/NAME.png, overlays as .jpg, and OUTPUT/classes.csv."""

    def __init__(self, output: Path, kinds: Sequence[str], deploy: dict) -> None:
        self.output, self.kinds = output, kinds
        # PaddleSeg's palette deals the bits of number + 1 out to red, green and blue in turn, from the highest down.
        bits = np.arange(1, 257)[:, np.newaxis, np.newaxis] >> np.arange(9).reshape(3, 3).T & 1
        self.colors = (bits << np.array([7, 6, 5])).sum(axis=2).astype(np.uint8)  # [256, 3]
        self.colors[: len(deploy["class_colors"])] = deploy["class_colors"] or 0
        classes = enumerate(zip(self.colors, deploy["class_names"]))
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows([number, *color, name] for number, (color, name) in classes)
        self.put(output / "classes.csv", (CSV_HEADER + table.getvalue()).encode())

    def write(self, name: str, image: Array, maps: Array, video: Optional[VideoWriter] = None) -> None:
        """What was found for an image, uint8 [H, W, 3]: its classes and perhaps confidence, uint8 [1 or 2, H, W]."""
        for kind in self.kinds:
            suffix = ".jpg" if kind == "overlay" and max(image.shape) <= MAX_JPEG_SIDE else ".png"
            if kind in ("id", "confidence"):
                made = maps[int(kind == "confidence")]
            else:
                made = self.colored(maps[0], image if kind == "overlay" else None)
            if kind == "overlay" and video is not None:
                video.write(made)
            else:
                self.put(self.output / kind / f"{name}{suffix}", encoded(made, suffix))

    def colored(self, label: Array, image: Optional[Array]) -> Array:
        """Colours, uint8 [H, W, 3], over an image, some rows at a time to save memory."""
        if image is None:
            return self.colors[label]
        overlay = np.empty_like(image)
        for top in range(0, len(image), 64):
            rows = slice(top, top + 64)
            overlay[rows] = np.rint(image[rows] * (1 - OPACITY) + self.colors[label[rows]] * OPACITY)
        return overlay

    def put(self, path: Path, content: bytes) -> None:
        """A file that appears when it is whole."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise Problem(f"{path}: cannot be written ({error.strerror}): give another --output") from error


class Progress:
    """A line that is written over; where standard error is no terminal, a line every ten seconds."""

    def __init__(self) -> None:
        self.start = self.told = time.monotonic()
        self.done, self.failed, self.total = 0, 0, 0

    def add(self) -> None:
        self.done, now = self.done + 1, time.monotonic()
        if now - self.told >= (0.2 if sys.stderr.isatty() else 10):
            self.told, of = now, f" of {self.total}" if self.total else ""
            self.show(f"{self.done}{of} done, {self.done / (now - self.start):.2g} a second", stays=False)

    def fail(self, source: object, error: BaseException) -> None:
        self.failed += 1
        reason = str(error) if isinstance(error, (Problem, ValueError)) else f"{type(error).__name__}: {error}"
        self.show(f"failed: {source}: {reason:.500}")

    def show(self, text: str, stays: bool = True) -> None:
        text = printable(text)
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            text = f"\r{text:{min(width, 60)}}" if stays else f"\r{text:60.60}"[:width]
        print(text, end="\n" if stays or not sys.stderr.isatty() else "", file=sys.stderr, flush=True)


def process(
    items: Iterator[Item], network: Network, write: Callable[..., None], progress: Progress, depth: int, workers: int
) -> None:
    """Segment images: while the network computes, the next `depth` are read and the last ones' results written."""
    loading: deque[tuple[Item, Future]] = deque()
    writing: deque[tuple[Item, Future]] = deque()

    def settle(rest: int) -> None:
        while len(writing) > rest:
            item, future = writing.popleft()
            try:
                future.result()
                progress.add()
            except Exception as error:
                progress.fail(item.source, error)

    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
        try:
            while True:
                more = itertools.islice(items, depth + 1 - len(loading))
                loading.extend((item, readers.submit(item.load)) for item in more)
                if not loading:
                    break
                item, future = loading.popleft()
                try:
                    image = future.result()
                    if image is None:
                        break
                    maps = network(image)
                except Exception as error:  # Pillow and engines raise almost anything; memory may be short
                    progress.fail(item.source, error)
                    continue
                writing.append((item, writers.submit(write, item.name, image, maps)))
                settle(depth)
        finally:
            for _, future in loading:
                future.cancel()
            settle(0)


# --- The command. ---


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise WrongCommand(f"{message} (--help lists what there is)")


def given_path(text: str) -> Path:
    if not text:  # which pathlib takes for the current folder
        raise argparse.ArgumentTypeError("expected a path, found an empty text")
    return Path(text)


def parse(words: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = Parser(prog="infer.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=given_path, help="the exported folder, with deploy.yaml")
    add("inputs", nargs="*", metavar="INPUT", help="images, folders, quoted patterns, videos")
    add("--camera", type=int, metavar="N", help="segment what camera N sees, until Ctrl-C")
    add("--output", type=given_path, default=Path("output"), metavar="DIR", help="(default: %(default)s)")
    text = f"of {', '.join(KINDS)} (default: %(default)s). color: classes in their colours; id: their numbers in grey; "
    text += "confidence: 0 to 255. Of a video the overlays become a video, the others an image for each frame"
    add("--save", default="color,overlay", metavar="A,B", help=text)
    add("--engine", choices=list(ENGINES), help="(default: the first of these that is installed and has its files)")
    add("--precision", default="fp32", choices=("fp32", "fp16", "int8", "bf16"), help="(default: fp32; bf16: openvino)")
    text = "cut larger images into tiles, to save memory, and take images of up to 2**30 pixels. Where tiles overlap, "
    text += "probabilities or logits are averaged, with weights that fall towards a tile's border like a cosine; of an "
    text += "export of classes alone, the tile decides whose middle is nearest"
    add("--tile", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help=text)
    add("--overlap", type=int, metavar="N", help="of tiles, in pixels (default: an eighth of a tile)")
    text = "for exports of a fixed size: cut larger images into tiles and fill up smaller ones, or resize all of them"
    add("--fit", choices=["tile", "resize"], default="tile", help=f"{text} (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="of the engine, at most one a core (default: one a core)")
    args = parser.parse_args(words)

    args.kinds = list(dict.fromkeys(kind.strip() for kind in args.save.split(",")))
    if not set(args.kinds) <= set(KINDS):
        parser.error(f"expected --save to be of {', '.join(KINDS)}, found {args.save}")
    if not args.inputs and args.camera is None:
        parser.error("expected images, a folder, a video or --camera N, found none")
    if not all(args.inputs):
        parser.error("expected images, a folder or a video as INPUT, found an empty text")
    if min(args.tile or [1]) < 1 or (args.threads is not None and args.threads < 1):
        parser.error("expected --tile and --threads to be at least 1")
    if args.camera is not None and args.camera < 0:
        parser.error(f"expected --camera to be 0 or more, found {args.camera}")
    if args.precision == "bf16" and args.engine not in (None, "openvino"):
        parser.error(f"expected --precision bf16 with --engine openvino, found {args.engine}: leave one out")
    if args.overlap is not None and not 0 <= args.overlap < min(args.tile or [sys.maxsize]):
        parser.error(f"expected --overlap from 0 to less than a side of a tile, found {args.overlap}")
    if Image is None and cv2 is None:
        parser.error("expected Pillow or OpenCV to be installed, found neither: pip install pillow")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if args.threads is not None and args.threads > cores:
        parser.error(f"expected --threads to be at most {cores}, one a core, found {args.threads}: give fewer")
    args.threads = args.threads or cores
    return args


def run(args: argparse.Namespace, progress: Progress) -> None:
    """Do what was asked for. Problem if that is impossible; what fails alone is counted."""
    path = args.folder / "deploy.yaml"
    with reading(path):
        deploy = read_export(path)
        engine, entry = choose(deploy, args.engine, args.precision)
    smallest = deploy["min_size"]
    if args.tile and min(args.tile) < smallest:
        found = "x".join(map(str, args.tile))
        raise WrongCommand(
            f"expected --tile of at least {smallest} {smallest} for this export, found {found}: enlarge it"
        )
    files = find_all(args, progress)
    camera = Path(f"camera{args.camera}.mp4")  # after which its results are named
    cameras = {} if args.camera is None else {camera: PurePath(camera)}
    names = named({**files, **cameras}, args.output, args.kinds)
    tell_longer_names(files, names)
    if not files and args.camera is None:
        return

    opened = open_export(args.folder, deploy, engine, entry, args.precision, args.threads)
    options = {"tile": args.tile, "overlap": args.overlap, "resize": args.fit == "resize"}
    with reading(path):
        network = Network(deploy, entry, opened, confidence="confidence" in args.kinds, **options)
    check_size_options(args, network.fixed)
    results = Results(args.output, args.kinds, deploy)

    videos = {path: names.pop(path) for path in [*files, *cameras] if path.suffix.lower() in VIDEOS}
    depth, limit = (1, MAX_TILED_PIXELS) if args.tile else (4, MAX_PIXELS)
    if Image is not None:
        Image.MAX_IMAGE_PIXELS = limit  # twice of which is refused before its header is read to the end
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    progress.start, progress.total = time.monotonic(), len(names)
    items = (Item(str(path), name, lambda path=path: read_image(path, limit)) for path, name in names.items())
    process(items, network, results.write, progress, depth, 2)

    for source, name in videos.items():
        if source in cameras:
            segment_video(args.camera, name, network, results, progress, 0)
        else:
            segment_video(source, name, network, results, progress, depth)


def find_all(args: argparse.Namespace, progress: Progress) -> dict[Path, PurePath]:
    """The files of all inputs, and a line on what was found and left out."""
    results = {os.path.realpath(args.output / kind) for kind in KINDS} if has_results(args.output) else set()
    files: dict[Path, PurePath] = {}
    left_out: Counter[str] = Counter()
    for given in args.inputs:
        try:
            files = {**find(given, results, left_out), **files}  # the first name counts
        except (OSError, ValueError, Problem) as error:  # ValueError: a name that no file can have
            progress.fail("input", error)
    if args.inputs:
        videos = sum(file.suffix.lower() in VIDEOS for file in files)
        found = [counted(len(files) - videos, "image{s}")] + [counted(videos, "video{s}")] * bool(videos)
        told = ", ".join(counted(number, what) for what, number in sorted(left_out.items()))
        say(f"found {' and '.join(found)}" + f"; left out {told}" * bool(told))
    return files


def tell_longer_names(files: dict[Path, PurePath], names: dict[Path, str]) -> None:
    longer = [(f.name, names[f]) for f, below in files.items() if names[f] != str(below.with_suffix(""))]
    if longer:
        told = ", ".join(f"{file} as {name}.png" for file, name in longer[:5])
        say(f"results of {counted(len(longer), 'image{s}')} have longer names, as others have theirs: {told}")


def check_size_options(args: argparse.Namespace, fixed: Sequence[int]) -> None:
    """WrongCommand for options that contradict the size that an export takes, (height, width), -1 for any, or have no
    effect; what is done to images of another size is said."""
    is_resized, (height, width) = args.fit == "resize", fixed
    if max(fixed) < 0:
        if is_resized:
            raise WrongCommand(
                "expected --fit resize with an export of a fixed size, found one of any size: leave it out"
            )
        if args.overlap is not None and not args.tile:
            raise WrongCommand("expected --overlap together with --tile, found it alone, without effect")
        return

    if args.tile and any(side not in (-1, tile) for side, tile in zip((width, height), args.tile)):
        wanted = " ".join(str(side) if side > 0 else tile for side, tile in ((width, "WIDTH"), (height, "HEIGHT")))
        raise WrongCommand(f"expected --tile {wanted}, as the size is fixed, found another: leave it out")
    is_cut = not is_resized or (args.tile and min(fixed) < 0)
    if args.overlap is not None and not is_cut:
        raise WrongCommand("expected --overlap where images are cut into tiles, found --fit resize: leave one out")
    if args.tile and not is_cut:
        raise WrongCommand("expected --tile where images are cut into tiles, found --fit resize: leave one out")
    how = "larger images are cut into tiles and smaller ones filled up (--fit resize resizes all)"
    sides = " x ".join(str(side) if side > 0 else "any" for side in (width, height))
    say(f"this export takes {sides} pixels: {'images are resized' if is_resized else how}")


def segment_video(source: Any, name: str, network: Network, results: Results, progress: Progress, depth: int) -> None:
    """Segment a video's file, or what a camera (its number) sees; what fails is counted."""
    is_live, before = not isinstance(source, Path), progress.done
    try:
        video = Video(source, name)
    except Problem as problem:
        progress.fail(name if is_live else source, problem)
        return

    progress.total = before + video.count if video.count else 0
    suffix = ".avi" if not is_live and source.suffix.lower() == ".avi" else ".mp4"
    writer = VideoWriter(results.output / "overlay" / f"{name}{suffix}", video.rate, is_live)
    try:  # by one reader and one writer, as frames are in order
        process(video.frames(), network, lambda *found: results.write(*found, writer), progress, depth, 1)
    finally:
        video.close()
        writer.close()
    try:
        if progress.done == before:
            raise ValueError("not one frame could be segmented: replace it")
        video.check_whole()
    except ValueError as error:
        progress.fail(source, error)


def main(words: Optional[Sequence[str]] = None) -> int:
    """The command. Returns its status: 0, 1 if something failed, 2 for a wrong command, 128 + N after signal N."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # once more ends at once
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    progress = Progress()
    try:
        args = parse(words)
        with contextlib.suppress(KeyboardInterrupt):
            run(args, progress)
        took = time.monotonic() - progress.start
        failed = f", failed {progress.failed}" * bool(progress.failed)
        stopped = "; stopped early, what is written is whole" * bool(signals)
        progress.show(f"written {progress.done} to {args.output} in {took:.1f} s{failed}{stopped}")
    except Problem as problem:
        progress.show(f"infer.py: {problem}")
        return problem.status
    except OSError as error:  # of what this program says, or of finding files
        with contextlib.suppress(OSError):
            if not isinstance(error, BrokenPipeError):  # whoever read it has gone
                where = error.filename or "standard output"
                progress.show(
                    f"infer.py: {where}: cannot be used ({error.strerror}): free space, or choose another place"
                )
        for stream in (sys.stdout, sys.stderr):  # what is left in them would fail once more at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1
    return 128 + signals[0] if signals else int(progress.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
