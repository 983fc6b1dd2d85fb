# SPDX-License-Identifier: Apache-2.0
"""Exporting a network for Paddle Inference, and making sure that it still gives the same answers."""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import yaml
from paddle.version import full_version as PADDLE_VERSION

from hmsa.datasets.classes import Classes
from hmsa.deploy.runtime import DEPLOY_FILE, Predictor
from hmsa.errors import DataError, UsageError, printable
from hmsa.inference.backends import open_predictor, program_of, writes_json
from hmsa.inference.programs import DYNAMIC_SHAPE, copy_on_cpu, on_cpu, simplified, write_program
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import Network, joint_logits
from hmsa.system.files import sha256, writable_folder

CHECKED_SHAPES = ((1, 3, 128, 192), (1, 3, 97, 161), (2, 3, 72, 104))
"""Where a network of any input size is compared: even and odd sizes, one image and two."""

MAX_DIFFERENCE = {"argmax": 1e-3, "softmax": 1e-3, "none": 1e-4}
"""Of the answer, as a share of the range of what is compared (see `check_parity`)."""

NOISE = 1e-5
"""What float32 itself may change, as a share of the largest value: it counts where a network's answers are alike."""

HEADER = """\
# What a program needs to run the model beside this file (docs/deployment.md has one of 15 lines): `transforms` turn an
# image of `channel_order`, uint8, into the input; Normalize is (pixel / pixel_divisor - mean) / std.
"""

_FILES = (DEPLOY_FILE, "model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info")


class ExportedNetwork(paddle.nn.Layer):
    """The model's fused answer, [N, 3, H, W] -> classes int32 [N, H, W], or float32 [N, K, H, W]."""

    def __init__(self, model: paddle.nn.Layer, output_op: str) -> None:
        super().__init__()
        self.model = model
        self.output_op = output_op

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        logits = self.model(image)["joint"]
        if self.output_op == "argmax":
            return paddle.argmax(logits, axis=1, dtype="int32")
        if self.output_op == "softmax":
            return F.softmax(logits, axis=1)
        return logits


def export(
    model: paddle.nn.Layer,
    save_dir: str | Path,
    *,
    output_op: str,
    transforms: Sequence[dict[str, Any]],
    classes: Optional[Classes] = None,
    input_shape: tuple[int | None, ...] = DYNAMIC_SHAPE,
    program: str | None = None,
) -> str:
    """Write model, parameters and `deploy.yaml`, once the written model has answered as the network does.

    Files of an earlier export in `save_dir` are replaced; other files are left alone, and so is the model. The two are
    compared on the CPU.

    Args:
        output_op: "argmax", "softmax" or "none".
        transforms: {type, **arguments} of what prepares an image.
        classes: their names and colours; "class 0", ... in PaddleSeg's palette without them.
        input_shape: N, C, H, W; None is any size.
        program: "pdmodel", the form that every reader of Paddle's models takes, "json", that of Paddle 3, or None: the
            first that this Paddle can write.

    Returns:
        One line that says where the comparison was made and what it measured, and one about replaced files if any were.

    Raises:
        UsageError: a size that cannot be, or a form that this Paddle does not have.
        DataError: the folder is not writable, the network cannot be traced, or the exported model gives other answers.
    """
    _check_input_shape(input_shape)
    if program == "json" and not writes_json():
        raise UsageError(f"a program of the form json needs Paddle 3, but this is {PADDLE_VERSION}; choose pdmodel")
    workplace = check_target(save_dir)
    with _disk_errors(save_dir), on_cpu(), tempfile.TemporaryDirectory(dir=workplace, prefix=".export-") as name:
        folder = Path(name)
        reference = copy_on_cpu(model)
        network = copy.deepcopy(reference)
        if isinstance(network, MscaleOCRNet):
            simplified(network)
        written = _write(network, output_op, folder / "model", input_shape, program)

        predictor = open_predictor(written, written.with_suffix(".pdiparams"))
        run = program_of(predictor)
        shapes = dict.fromkeys(
            tuple(fixed or side for fixed, side in zip(input_shape, checked)) for checked in CHECKED_SHAPES
        )
        measured = check_parity(joint_logits(reference), lambda image: run(image)[0], output_op, list(shapes))

        classes = classes or Classes.numbered(getattr(model, "num_classes", 0))
        entry = {
            "model": written.name,
            "params": "model.pdiparams",
            "transforms": list(transforms),
            "input_shape": list(input_shape),
            "output_op": output_op,
            "output_dtype": "int32" if output_op == "argmax" else "float32",
            "input_name": predictor.get_input_names()[0],
            "input_dtype": "float32",
            "input_layout": "NCHW",
            "channel_order": "RGB",
            "pixel_divisor": 255,
            "output_name": predictor.get_output_names()[0],
            "output_layout": "NHW" if output_op == "argmax" else "NCHW",
            "class_names": list(classes.names),
            "class_colors": [list(color) for color in classes.colors],
            "ignore_index": classes.ignore_index,
            "paddle_version": PADDLE_VERSION,
            "sha256": {name: sha256(folder / name) for name in (written.name, "model.pdiparams")},
        }
        text = yaml.safe_dump({"Deploy": entry}, sort_keys=False, default_flow_style=None)
        (folder / DEPLOY_FILE).write_text(HEADER + text, encoding="utf-8")
        return "\n".join([measured, *_move(folder, Path(save_dir))])


def check_target(save_dir: str | Path) -> Path:
    """The folder in which an export into `save_dir` is prepared: itself, or the one it will be made in.

    Raises:
        DataError: nothing can be written there, or a folder has the name of a file of the export.
    """
    target = Path(save_dir)
    for path in (target / name for name in _FILES):
        if path.is_dir():
            raise DataError(f"{path}: expected a file of an earlier export or nothing, found a folder; choose another")
    return writable_folder(target if target.exists() or target.is_symlink() else target.parent)


@contextlib.contextmanager
def _disk_errors(save_dir: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{save_dir}: cannot be written ({error.strerror}); choose another place") from error


def _write(
    model: paddle.nn.Layer, output_op: str, path: Path, input_shape: tuple[int | None, ...], program: str | None
) -> Path:
    """Write the network in the form asked for, or in the first of both that can be written; the program's file."""
    network = ExportedNetwork(model, output_op)
    network.eval()
    form = program or "pdmodel"
    try:
        return write_program(network, path, input_shape=input_shape, old_form=form == "pdmodel")
    except OSError:
        raise
    # Paddle raises whatever comes first.
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        problem = f"Paddle {PADDLE_VERSION} cannot write this network as {form} ({said[-1].strip():.200})"
        if program or not writes_json():
            raise DataError(f"expected a network that can be exported, but {problem}; try another form") from error
    print(printable(f"warning: {problem}: it is written as json, which fewer programs read"), file=sys.stderr)
    return _write(model, output_op, path, input_shape, "json")


def check_parity(network: Network, exported: Predictor, output_op: str, shapes: Sequence[Sequence[int]]) -> str:
    """Run an exported model and the network it was made from on the same images.

    Logits are compared as logits and probabilities as probabilities. A class may be another than the network's best
    where the network has two about equally good.

    Returns:
        What was measured, in a line.

    Raises:
        DataError: they differ by more than `MAX_DIFFERENCE` and `NOISE`.
    """
    kind = {"argmax": "classes", "softmax": "probabilities", "none": "logits"}[output_op]
    largest, pixels, ties = 0.0, 0, 0
    for shape in shapes:
        image = _image_like(shape)
        with paddle.no_grad():
            logits = network(paddle.to_tensor(image)).numpy()  # [N, K, H, W]
        answer = exported(image)
        where = "x".join(map(str, shape))
        expected_shape = logits[:, 0].shape if output_op == "argmax" else logits.shape
        if answer.shape != expected_shape:
            raise DataError(f"the exported model answers {answer.shape} instead of {expected_shape} at {where}")
        right = _softmax(logits) if output_op == "softmax" else logits
        if output_op == "argmax":
            label = answer
            difference = right.max(axis=1) - _chosen(right, label)  # 0 where both choose the same class
        else:
            label = answer.argmax(axis=1)
            difference = np.abs(answer - right).max(axis=1)
        allowed = MAX_DIFFERENCE[output_op] * np.ptp(right) + NOISE * np.abs(right).max()
        # Written so that NaN fails.
        wrong = int((~(difference <= allowed)).sum())
        if wrong:
            raise DataError(
                f"the exported model does not answer as the network does, at {where}: {kind} of {wrong} of "
                f"{label.size} pixels are wrong, by up to {difference.max() / np.ptp(right):.2g} of the range of "
                f"{'logits' if output_op == 'argmax' else kind}; nothing was written, as Paddle {PADDLE_VERSION} "
                "cannot run this model faithfully"
            )
        largest = max(largest, float(difference.max()))
        pixels, ties = pixels + label.size, ties + int((label != right.argmax(axis=1)).sum())
    measured = "" if output_op == "argmax" else f"{kind} differ by {largest:.2g} at most, "
    at = ", ".join("x".join(map(str, shape)) for shape in shapes)
    return f"equal to the network at {at}: {measured}{ties} of {pixels} pixels near a tie have another class"


def _chosen(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The value [N, H, W] of each pixel's class `label` [N, H, W] in `values` [N, K, H, W]; NaN for no class."""
    K = values.shape[1]
    found = np.take_along_axis(values, label.clip(0, K - 1)[:, np.newaxis], axis=1)[:, 0]
    return np.where((label >= 0) & (label < K), found, np.nan)


def _check_input_shape(shape: Sequence[int | None]) -> None:
    if len(shape) != 4 or shape[1] != 3 or any(side is not None and side < 1 for side in shape):
        sides = " ".join("-1" if side is None else str(side) for side in shape)
        raise UsageError(f"--input_shape should be N 3 H W, -1 for any number or size, but it is {sides}")


def _image_like(shape: Sequence[int]) -> np.ndarray:
    """Float32 [N, 3, H, W] with patches and noise, so that an answer has several classes."""
    N, C, H, W = shape
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(N * C, H // 16 + 1, W // 16 + 1))
    smooth = np.stack([cv2.resize(patch, (W, H)) for patch in patches]).reshape(N, C, H, W)
    return (smooth + rng.normal(scale=0.2, size=(N, C, H, W))).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes of [N, K, H, W], in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _move(source: Path, target: Path) -> list[str]:
    """Move an export in. Without `deploy.yaml`, which goes first and comes last, a folder is not an export.

    Returns:
        A line that names what was there of an earlier export, if anything was.
    """
    replaced = []
    target.mkdir(exist_ok=True)
    for path in (target / name for name in _FILES):
        with contextlib.suppress(FileNotFoundError):
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.lstat().st_mtime))
            path.unlink()
            replaced.append(f"{path.name} of {written}")
    for path in sorted(source.iterdir(), key=lambda path: path.name == DEPLOY_FILE):
        path.replace(target / path.name)
    return [f"replaced in {target}: {', '.join(replaced)}"] if replaced else []
