#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Label images, videos or a camera's frames with an exported network; this file is all it takes beside the export.

    python infer.py EXPORT photos/ --output labelled
    python infer.py EXPORT drive.mp4 --output labelled --save overlay --engine openvino

It needs numpy, opencv-python (or opencv-python-headless), pillow, pyyaml, and one engine: paddlepaddle, onnxruntime,
openvino, or ai-edge-litert for TFLite.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import io
import math
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Optional

import cv2
import numpy as np
import yaml
from PIL import Image, ImageOps

IMAGES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = {".avi": "MJPG", ".mp4": "mp4v", ".mov": "mp4v", ".m4v": "mp4v", ".mkv": "mp4v", ".webm": "mp4v"}
"""Endings of videos that are read -> the codec of what is written, as .avi or .mp4."""

KINDS = ("color", "overlay", "id", "confidence")
AHEAD = 3  # images that are decoded, or wait to be written, while the network runs
OVERLAP = 128  # pixels that neighbouring tiles share


class Problem(Exception):
    """What is wrong, in a sentence: expected, found, what to do."""


# --- The export. ---


class Export:
    """What `deploy.yaml` says of a folder that export.py wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "deploy.yaml"
        try:
            entry = yaml.safe_load(path.read_text(encoding="utf-8"))["Deploy"]
            self.transforms = list(entry["transforms"])
            self.shape = dict(zip(entry.get("input_layout", "NCHW"), entry["input_shape"]))
            self.output_op = entry["output_op"]
            names = {"argmax": "label", "softmax": "probabilities"}
            first = {"name": names.get(self.output_op, "logits")}
            self.outputs = [output["name"] for output in entry.get("outputs", [first])]
            paddle = {"format": "paddle", "precision": "fp32", "files": [entry["model"], entry["params"]]}
            self.formats = entry.get("formats") or [paddle]
        except OSError as error:
            raise Problem(f"{path}: expected what export.py wrote, but: {error.strerror}; name its folder") from None
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise Problem(f"{path}: expected what export.py writes, but: {error!r:.100}; export again") from None
        self.layout = entry.get("input_layout", "NCHW")
        self.is_uint8 = entry.get("input_dtype") == "uint8"
        self.divisor = entry.get("pixel_divisor", 255)
        self.names = entry.get("class_names", [])
        self.min_size = entry.get("min_size", 1)
        self.sha256 = entry.get("sha256", {})

        if self.shape["C"] != 3:
            raise Problem(f"{path}: expected a network for images of 3 channels, found {self.shape['C']}: use hmsa")
        self.colors = np.zeros((256, 3), np.uint8)
        for number, color in enumerate(entry.get("class_colors", [])[:256]):
            self.colors[number] = color

    @property
    def size(self) -> tuple[Optional[int], Optional[int]]:
        """(height, width) that the network takes; None is any."""
        return self.shape["H"], self.shape["W"]

    def find(self, engine: str, precision: str) -> Optional[dict[str, Any]]:
        """The files that an engine reads in a precision, the best first."""
        stored = "fp32" if precision == "bf16" else precision
        for form in ENGINES[engine].formats:
            for entry in self.formats:
                if (entry["format"], entry["precision"]) == (form, stored):
                    return entry
        return None

    def checked(self, entry: dict[str, Any]) -> list[Path]:
        """The files of an entry, whole and as export.py wrote them."""
        paths = [self.folder / name for name in entry["files"]]
        for path in paths:
            if not path.is_file():
                raise Problem(f"{path}: expected this file of the export, found none: copy the whole folder again")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if self.sha256.get(path.name, digest) != digest:
                raise Problem(
                    f"{path}: expected the file that export.py wrote, found another or a damaged one: copy it"
                )
        return paths


# --- Engines. ---

Run = Callable[[np.ndarray], "list[np.ndarray]"]
"""The input, as `deploy.yaml` describes it -> all outputs, in its order."""


@dataclass(frozen=True)
class Engine:
    formats: tuple[str, ...]  # that it reads, the best first
    package: str
    install: str
    open: Callable[..., Run]  # (files, threads, precision, entry)


def open_paddle(files: Sequence[Path], threads: int, precision: str, entry: dict[str, Any]) -> Run:
    import paddle
    from paddle.inference import Config, create_predictor

    version = [int(part) for part in paddle.version.full_version.split(".")[:2]]
    config = Config(*map(str, files))
    config.disable_glog_info()
    if version[0] >= 3:  # opens programs of either form in seconds
        config.enable_new_executor(True)
        config.enable_new_ir(True)
    config.enable_memory_optim()
    # Two that change what the network answers, and one that looks long for what is folded already.
    config.delete_pass("reshape_transpose_matmul_fuse_pass")
    config.delete_pass("reshape_transpose_matmul_onednn_fuse_pass")
    config.delete_pass("conv_eltwiseadd_bn_fuse_pass")
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        config.enable_use_gpu(256, 0)
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        if version == [3, 3]:  # it makes every bilinear resize fail
            config.delete_pass("onednn_placement_pass")

    predictor = create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    results = [predictor.get_output_handle(name) for name in predictor.get_output_names()]

    def run(given: np.ndarray) -> list[np.ndarray]:
        source.reshape(given.shape)
        source.copy_from_cpu(given)
        predictor.run()
        return [result.copy_to_cpu() for result in results]

    return run


def open_onnxruntime(files: Sequence[Path], threads: int, precision: str, entry: dict[str, Any]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    known = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    session = onnxruntime.InferenceSession(str(files[0]), options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda given: session.run(None, {name: given})


def open_openvino(files: Sequence[Path], threads: int, precision: str, entry: dict[str, Any]) -> Run:
    import openvino

    # Where the processor has bf16, it would compute in that unasked.
    hint = "bf16" if precision == "bf16" else "f32"
    hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(str(files[0]), "CPU", hints).create_infer_request()
    return lambda given: [output.copy() for output in request.infer([given], share_inputs=True).to_tuple()]


def open_tflite(files: Sequence[Path], threads: int, precision: str, entry: dict[str, Any]) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(files[0]), num_threads=threads).get_signature_runner()
    (name,) = runner.get_input_details()

    def run(given: np.ndarray) -> list[np.ndarray]:
        layout, outputs = entry["of"].layout, entry["of"].outputs
        turned = entry.get("input_layout", layout)
        given = given.transpose([layout.index(axis) for axis in turned])
        found = runner(**{name: np.ascontiguousarray(given)})
        wanted = {"label": "NHW", "confidence": "NHW", "attention": "NSHW"}
        answers = []
        for output, stored in zip(outputs, entry.get("output_layouts") or [wanted.get(o, "NCHW") for o in outputs]):
            axes = [stored.index(axis) for axis in wanted.get(output, "NCHW")]
            answers.append(found[output].transpose(axes))
        return answers

    return run


ENGINES = {
    "openvino": Engine(("openvino", "onnx", "paddle"), "openvino", "openvino", open_openvino),
    "onnxruntime": Engine(("onnx",), "onnxruntime", "onnxruntime", open_onnxruntime),
    "paddle": Engine(("paddle",), "paddle", "paddlepaddle", open_paddle),
    "tflite": Engine(("tflite",), "ai_edge_litert", "ai-edge-litert", open_tflite),
}
"""In the order in which one is chosen: the quicker ones on a CPU first."""


def open_network(export: Export, engine: Optional[str], precision: str, threads: int) -> tuple[Run, str]:
    """The network in the engine asked for, or in the best that is installed and finds its files -> and what runs it."""
    if precision == "bf16" and engine not in (None, "openvino"):
        raise Problem(f"expected bf16 with the engine openvino, found {engine}: leave one out")
    able = [name for name in ENGINES if export.find(name, precision) and (precision != "bf16" or name == "openvino")]
    chosen = engine or next((name for name in able if find_spec(ENGINES[name].package)), None)
    there = ", ".join(f"{entry['format']} {entry['precision']}" for entry in export.formats)
    if chosen is None and able:
        packages = " or ".join(ENGINES[name].install for name in able)
        raise Problem(
            f"{export.folder} holds {there}: expected an engine that reads one of them, found none: pip install "
            f"{packages}"
        )
    if chosen is None or chosen not in able:
        raise Problem(
            f"{export.folder}: expected files for {chosen or 'an engine'} in {precision}, found {there}: "
            "export them, or choose another engine or precision"
        )
    if not find_spec(ENGINES[chosen].package):
        raise Problem(
            f"the engine {chosen} needs a package that is not installed: pip install {ENGINES[chosen].install}"
        )

    entry = {**(export.find(chosen, precision) or {}), "of": export}
    files = export.checked(entry)
    try:
        run = ENGINES[chosen].open(files, threads, precision, entry)
    except Exception as error:  # engines raise whatever comes first
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise Problem(f"{files[0]}: expected a network that {chosen} can run, but: {last:.200}") from error
    return run, f"{chosen} ({entry['format']} {precision})"


# --- From an image to its labels. ---


@dataclass
class Answer:
    """What the network says of an image: class numbers, uint8 [H, W], and their probabilities, float32 [H, W]."""

    label: np.ndarray
    confidence: Optional[np.ndarray]


class Segmenter:
    """The network with all that comes before and after it.

    Args:
        tile: (height, width) of tiles that a larger image is cut into; of each its middle counts. None: whole images.
        overlap: pixels that neighbouring tiles share.
    """

    def __init__(self, export: Export, run: Run, tile: Optional[tuple[int, int]], overlap: int) -> None:
        self.export = export
        self.run = run
        fixed = export.size
        if tile and any(side not in (None, own) for side, own in zip(fixed, tile)):
            raise Problem(
                f"expected no --tile beside a network of the fixed size {fixed[1]}x{fixed[0]}, found "
                f"{tile[1]}x{tile[0]}: leave it out"
            )
        self.is_fixed = None not in fixed
        self.tile = fixed if self.is_fixed else tile
        self.overlap = min(overlap, *(side // 2 for side in self.tile)) if self.tile else 0
        normalize = [step for step in export.transforms if step["type"] == "Normalize"]
        if normalize:
            mean, std = (np.asarray(normalize[0][key], np.float64) for key in ("mean", "std"))
            self.factor = (1 / (export.divisor * std)).astype(np.float32)
            self.offset = (-mean / std).astype(np.float32)
        unknown = [step["type"] for step in export.transforms if step["type"] not in ("Normalize", "Resize", "Padding")]
        if unknown:
            raise Problem(
                f"expected transforms that are Normalize, Resize or Padding, found {unknown[0]}: use hmsa predict"
            )

    @property
    def gives_confidence(self) -> bool:
        return self.export.outputs[0] != "label" or "confidence" in self.export.outputs

    def __call__(self, image: np.ndarray) -> Answer:
        """Label an image, uint8 [H, W, 3] RGB."""
        prepared, undo = self._prepared(image)
        answer = self._whole(prepared) if self.tile is None else self._tiled(prepared)
        H, W = image.shape[:2]
        for kind, (height, width) in reversed(undo):
            for name in ("label", "confidence"):
                part = getattr(answer, name)
                if part is not None and kind == "padding":
                    setattr(answer, name, part[:height, :width])
                elif part is not None:
                    method = cv2.INTER_NEAREST if name == "label" else cv2.INTER_LINEAR
                    setattr(answer, name, cv2.resize(part, (width, height), interpolation=method))
        assert answer.label.shape == (H, W), "what the transforms did is undone"
        return answer

    def _prepared(self, image: np.ndarray) -> tuple[np.ndarray, list[tuple[str, tuple[int, int]]]]:
        """The image as the transforms resize and pad it, and its sizes before them."""
        undo = []
        for step in self.export.transforms:
            if step["type"] == "Normalize":
                continue
            H, W = image.shape[:2]
            width, height = step["target_size"]
            if step["type"] == "Resize":
                if step.get("keep_ratio"):
                    ratio = min(max(height, width) / max(H, W), min(height, width) / min(H, W))
                    height, width = max(round(H * ratio), 1), max(round(W * ratio), 1)
                divisor = step.get("size_divisor") or 1
                height, width = (math.ceil(side / divisor) * divisor for side in (height, width))
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
                undo.append(("resize", (H, W)))
            else:
                if height < H or width < W:
                    raise Problem(f"expected an image of at most {width}x{height}, found {W}x{H}: make it smaller")
                value = step.get("im_padding_value", 127.5)
                border = value if isinstance(value, (list, tuple)) else [value] * 3
                image = cv2.copyMakeBorder(image, 0, height - H, 0, width - W, cv2.BORDER_CONSTANT, value=border)
                undo.append(("padding", (H, W)))
        return image, undo

    def _whole(self, image: np.ndarray) -> Answer:
        """An image of a size that the network takes."""
        if min(image.shape[:2]) < self.export.min_size:
            raise Problem(
                f"expected an image of at least {self.export.min_size} pixels each way, found "
                f"{image.shape[1]}x{image.shape[0]}: enlarge it"
            )
        given = image[np.newaxis]
        if not self.export.is_uint8:
            given = (image.astype(np.float32) * self.factor + self.offset)[np.newaxis]
        if self.export.layout == "NCHW":
            given = given.transpose(0, 3, 1, 2)
        found = dict(zip(self.export.outputs, self.run(np.ascontiguousarray(given))))

        first = self.export.outputs[0]
        if first == "label":
            confidence = found.get("confidence")
            return Answer(found[first][0].astype(np.uint8), None if confidence is None else confidence[0])
        scores = found[first][0]  # [K, H, W]
        best = scores.max(axis=0)
        confidence = best if first == "probabilities" else 1 / np.exp(scores - best).sum(axis=0)
        return Answer(scores.argmax(axis=0).astype(np.uint8), confidence)

    def _tiled(self, image: np.ndarray) -> Answer:
        """An image in tiles, of which each decides about its middle; a smaller image is padded with its edge."""
        assert self.tile is not None
        H, W = image.shape[:2]
        if not self.is_fixed and self.tile[0] >= H and self.tile[1] >= W:
            return self._whole(image)
        label = np.empty((H, W), np.uint8)
        confidence = np.empty((H, W), np.float32) if self.gives_confidence else None
        rows, columns = (list(cuts(side, tile, self.overlap)) for side, tile in zip((H, W), self.tile))
        for top, first_row, last_row in rows:
            for left, first_column, last_column in columns:
                tile = image[top : top + self.tile[0], left : left + self.tile[1]]
                missing = [max(side - have, 0) * self.is_fixed for side, have in zip(self.tile, tile.shape)]
                if any(missing):
                    tile = cv2.copyMakeBorder(tile, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
                answer = self._whole(tile)
                place = np.s_[first_row:last_row, first_column:last_column]
                inside = np.s_[first_row - top : last_row - top, first_column - left : last_column - left]
                label[place] = answer.label[inside]
                if confidence is not None and answer.confidence is not None:
                    confidence[place] = answer.confidence[inside]
        return Answer(label, confidence)


def cuts(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Along one axis, of every tile: where it starts, and from where to where it decides."""
    starts = [0] if length <= tile else [*range(0, length - tile, tile - overlap), length - tile]
    ends = [(start + tile + following) // 2 for start, following in zip(starts, starts[1:])] + [length]
    return zip(starts, [0, *ends], ends)


# --- Reading. ---


@dataclass(frozen=True)
class Job:
    """An image, and the relative path of its results."""

    path: Path
    name: Path


def find_jobs(inputs: Iterable[str]) -> tuple[list[Job], list[Path]]:
    """The images, and the videos, that files, folders and patterns stand for."""
    images: list[tuple[Path, Path]] = []  # with the folder that results are named from
    videos = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = [(file, path) for file in sorted(path.rglob("*")) if file.is_file()]
        elif path.is_file():
            found = [(path, path.parent)]
        else:
            found = [(Path(file), Path(file).parent) for file in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207
        known = [pair for pair in found if pair[0].suffix.lower() in (*IMAGES, *VIDEOS)]
        if not known:
            what = f"{len(found)} files, none of them an image or a video" if found else "nothing of this name"
            raise Problem(f"{given}: expected images, a folder of them, a pattern or a video, found {what}: correct it")
        if len(known) < len(found):
            print(f"{given}: left out {len(found) - len(known)} files that are no images", file=sys.stderr)
        images += [pair for pair in known if pair[0].suffix.lower() in IMAGES]
        videos += [file for file, _ in known if file.suffix.lower() in VIDEOS]

    jobs, taken = [], set()
    for path, root in dict.fromkeys(images):
        name = path.relative_to(root).with_suffix(".png")
        number = 0
        while str(name).casefold() in taken:  # of another image, on some file systems
            number += 1
            name = path.relative_to(root).with_name(f"{path.name}{f'.{number}' if number > 1 else ''}.png")
        taken.add(str(name).casefold())
        jobs.append(Job(path, name))
    return jobs, videos


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB, upright as EXIF says; grey and palettes as colours, without transparency; 16 bits of a PNG
    by value / 257."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as pil:
            turn = pil.getexif().get(0x0112, 1)
            if pil.format == "PNG":
                flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
                image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
                if image is None:
                    raise ValueError("its pixels are damaged")
                if image.dtype == np.uint16:
                    image = cv2.convertScaleAbs(image, alpha=1 / 257)
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            elif pil.mode.startswith(("I", "F")):
                raise ValueError("its channels have more than 8 bits, which are read of PNG alone")
            else:
                pil.load()
                pil.info.pop("transparency", None)
                image = np.array(pil.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # of damaged files almost anything
        raise Problem(
            f"{path} should be a readable image, but: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if turn in range(2, 9):
        upright = Image.fromarray(image)
        upright.getexif()[0x0112] = turn
        image = np.array(ImageOps.exif_transpose(upright))
    return np.ascontiguousarray(image)


# --- Writing. ---


@dataclass(frozen=True)
class Results:
    """Where results go, a folder for each of `kinds`."""

    folder: Path
    kinds: tuple[str, ...]
    colors: np.ndarray  # uint8 [256, 3] RGB
    opacity: float

    def pictures(self, image: np.ndarray, answer: Answer) -> Iterator[tuple[str, Image.Image]]:
        """What is asked for, made of an image, uint8 [H, W, 3] RGB, and the answer to it."""
        for kind in self.kinds:
            if kind == "color":
                picture = Image.fromarray(answer.label, "P")
                picture.putpalette(self.colors.ravel().tolist())
            elif kind == "overlay":
                colors = self.colors[answer.label]
                picture = Image.fromarray(cv2.addWeighted(image, 1 - self.opacity, colors, self.opacity, 0))
            elif kind == "id":
                picture = Image.fromarray(answer.label)
            else:
                assert answer.confidence is not None
                picture = Image.fromarray(np.rint(255 * np.clip(answer.confidence, 0, 1)).astype(np.uint8))
            yield kind, picture

    def write(self, job: Job, image: np.ndarray, answer: Answer) -> None:
        for kind, picture in self.pictures(image, answer):
            target = self.folder / kind / job.name
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    picture.save(file, "PNG")
                Path(name).chmod(0o644)
                Path(name).replace(target)  # a result is whole, or not there
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise


class Progress:
    """One line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self.done = self.failed = 0
        self.begun = self.last = time.monotonic()
        self.is_live = sys.stderr.isatty()

    def step(self, *, ok: bool = True) -> None:
        self.done += ok
        self.failed += not ok
        now = time.monotonic()
        if now - self.last > (0.2 if self.is_live else 10):
            self.last = now
            of = f" of {self.total}" if self.total else ""
            rate = (self.done + self.failed) / max(now - self.begun, 1e-9)
            text = f"{self.done + self.failed}{of} {self.unit}, {rate:.2f} a second"
            print(
                f"\r{text}  " if self.is_live else text, end="" if self.is_live else "\n", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        if self.is_live:
            print(file=sys.stderr)


# --- The work: images are decoded and written in threads, while the network runs. ---


def label_images(jobs: Sequence[Job], segmenter: Segmenter, results: Results) -> int:
    """Label images and write the results -> how many failed."""
    progress = Progress(len(jobs), "images")
    writing: deque[tuple[Job, Future[None]]] = deque()

    def settle(least: int) -> None:
        while len(writing) > least:
            job, future = writing.popleft()
            report(job, future.exception())

    def report(job: Job, error: Optional[BaseException]) -> None:
        progress.step(ok=error is None)
        if error is not None:
            text = str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
            print(f"failed: {text if str(job.path) in text else f'{job.path}: {text}'}", file=sys.stderr)

    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as writer:
        loading: deque[tuple[Job, Future[np.ndarray]]] = deque()
        todo = iter(jobs)
        try:
            while True:
                while len(loading) < AHEAD and (job := next(todo, None)):
                    loading.append((job, readers.submit(read_image, job.path)))
                if not loading:
                    break
                job, future = loading.popleft()
                try:
                    image = future.result()
                    answer = segmenter(image)
                except Exception as error:  # of this image; the others can still be done
                    report(job, error)
                    continue
                writing.append((job, writer.submit(results.write, job, image, answer)))
                settle(AHEAD)
        finally:
            for _, future in loading:
                future.cancel()
            settle(0)
            progress.close()
            print(f"{progress.done} of {len(jobs)} images written to {results.folder}, {progress.failed} failed")
    return progress.failed


def label_frames(source: Any, name: str, segmenter: Segmenter, results: Results, limit: Optional[int]) -> None:
    """Label the frames of a video or a camera; a video for each kind of result. Ctrl-C ends a camera."""
    suffix = ".avi" if name.lower().endswith(".avi") else ".mp4"
    rate = source.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else 25.0
    progress = Progress(max(int(source.get(cv2.CAP_PROP_FRAME_COUNT)), 0), "frames")
    writers: dict[str, Any] = {}
    parts: dict[Path, Path] = {}

    def write(frame: np.ndarray, answer: Answer) -> None:
        for kind, picture in results.pictures(frame, answer):
            target = results.folder / kind / (name if name.lower().endswith(suffix) else name + suffix)
            if kind not in writers:
                target.parent.mkdir(parents=True, exist_ok=True)
                parts[target] = target.with_name(f".{target.stem}.part{suffix}")
                code = cv2.VideoWriter_fourcc(*VIDEOS[suffix])
                writers[kind] = cv2.VideoWriter(str(parts[target].absolute()), code, rate, picture.size)
                if not writers[kind].isOpened():
                    raise Problem(
                        f"{target}: expected a video that OpenCV can write, but it cannot: choose another folder"
                    )
            writers[kind].write(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR))

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending: Optional[Future[None]] = None
        try:
            following = reader.submit(source.read)
            while limit is None or progress.done < limit:
                done, frame = following.result()
                if not done:
                    break
                following = reader.submit(source.read)
                frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                answer = segmenter(frame)
                if pending:
                    pending.result()
                pending = writer.submit(write, frame, answer)
                progress.step()
        finally:
            if pending:
                pending.result()
            progress.close()
            for video in writers.values():
                video.release()
            for target, part in parts.items():
                part.replace(target)
            print(f"{progress.done} frames of {name} written to {results.folder}")
    if not progress.done:
        raise Problem(f"{name}: expected a video, but not one frame of it can be read: convert it to .mp4")


# --- The command line. ---


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="the folder that export.py wrote")
    parser.add_argument("inputs", nargs="*", help="images, folders, quoted patterns, videos")
    parser.add_argument("--camera", type=int, metavar="N", help="label the frames of this camera, until Ctrl-C")
    parser.add_argument("--frames", type=int, metavar="N", help="end a video or a camera after so many")
    parser.add_argument("--output", type=Path, default=Path("labelled"), help="folder of results (default: labelled)")
    parser.add_argument("--save", default="color,overlay", help=f"of {','.join(KINDS)} (default: color,overlay)")
    parser.add_argument("--engine", choices=ENGINES, help="(default: the first that is installed and finds its files)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8", "bf16"], help="(default: fp32)")
    parser.add_argument("--opacity", type=float, default=0.4, help="of colours in overlays, 0 to 1 (default: 0.4)")
    parser.add_argument("--tile", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="cut larger images into tiles")
    parser.add_argument("--overlap", type=int, default=OVERLAP, help=f"pixels that tiles share (default: {OVERLAP})")
    parser.add_argument(
        "--max_pixels", type=int, default=2 * (Image.MAX_IMAGE_PIXELS or 1), help="refuse larger images"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="to compute with (default: all cores)")
    args = parser.parse_args()

    args.kinds = tuple(dict.fromkeys(part.strip() for part in args.save.split(",")))
    wrong = [kind for kind in args.kinds if kind not in KINDS]
    if wrong:
        parser.error(f"--save: expected some of {', '.join(KINDS)}, found {wrong[0]!r}")
    if not args.inputs and args.camera is None:
        parser.error("expected images, a video or --camera, found none")
    if not 0 <= args.opacity <= 1:
        parser.error(f"--opacity: expected 0 to 1, found {args.opacity:g}")
    if args.threads < 1 or args.max_pixels < 1 or args.overlap < 0 or (args.tile and min(args.tile) < 32):
        parser.error(
            "expected --threads and --max_pixels of at least 1, --overlap of at least 0 and --tile of at least 32"
        )
    return args


def main() -> int:
    args = parse()
    Image.MAX_IMAGE_PIXELS = (args.max_pixels + 1) // 2  # Pillow refuses what has twice as many
    export = Export(args.export)
    jobs, videos = find_jobs(args.inputs)
    run, engine = open_network(export, args.engine, args.precision, args.threads)
    segmenter = Segmenter(export, run, tuple(reversed(args.tile)) if args.tile else None, args.overlap)

    if "confidence" in args.kinds and not segmenter.gives_confidence:
        raise Problem(
            f"{args.export}: expected a network that gives probabilities, found class numbers alone: "
            "export with --with_confidence or --output_op softmax"
        )
    if (videos or args.camera is not None) and {"id", "confidence"} & set(args.kinds):
        raise Problem(
            "expected --save color,overlay for videos, whose codecs change numbers, found id or confidence: leave them "
            "out"
        )
    size = f", in tiles of {segmenter.tile[1]}x{segmenter.tile[0]}" if segmenter.tile else ""
    print(f"{len(jobs)} images, {len(videos)} videos; {engine}, {args.threads} threads{size}", file=sys.stderr)
    inputs = {job.path.resolve() for job in jobs}
    taken = [job for job in jobs for kind in args.kinds if (args.output / kind / job.name).resolve() in inputs]
    if taken:
        raise Problem(
            f"{taken[0].path}: expected results elsewhere than the images, found the same files: choose "
            "another --output"
        )

    results = Results(args.output, args.kinds, export.colors, args.opacity)
    failed = label_images(jobs, segmenter, results) if jobs else 0
    for path in videos:
        with contextlib.closing(Capture(str(path.absolute()))) as source:
            label_frames(source.opened(str(path)), path.name, segmenter, results, args.frames)
    if args.camera is not None:
        with contextlib.closing(Capture(args.camera)) as source:
            label_frames(
                source.opened(f"camera {args.camera}"), f"camera{args.camera}.mp4", segmenter, results, args.frames
            )
    return 1 if failed else 0


class Capture:
    """A video or a camera that is closed in the end."""

    def __init__(self, source: Any) -> None:
        self.capture = cv2.VideoCapture(source, *([cv2.CAP_FFMPEG] if isinstance(source, str) else []))

    def opened(self, name: str) -> Any:
        if not self.capture.isOpened():
            raise Problem(
                f"{name}: expected a video or a camera that OpenCV can open, but it cannot: check or convert it"
            )
        return self.capture

    def close(self) -> None:
        self.capture.release()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what is written is whole", file=sys.stderr)
        sys.exit(130)
