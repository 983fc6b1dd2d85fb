# SPDX-License-Identifier: Apache-2.0
"""Exporting a network for Paddle Inference, and making sure that it still gives the same answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hmsa.prepared  # noqa: F401

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import yaml
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy.runtime import DEPLOY_FILE, load_predictor
from hmsa.engine.inference import Network, joint_logits
from hmsa.errors import DataError, UsageError
from hmsa.files import writable_folder
from hmsa.weight_files import sha256

DYNAMIC_SHAPE = (None, 3, None, None)
CHECKED_SHAPES = ((1, 3, 128, 192), (1, 3, 97, 161), (2, 3, 72, 104))
"""Where a network of any input size is compared: even and odd sizes, one picture and two."""

MOST_PROBABILITY_DIFFERENCE = 1e-3
MOST_TIE = 1e-3
"""Two logits this close, as a share of the range of all logits, may change places."""


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
    class_names: Sequence[str] = (),
    input_shape: tuple[int | None, ...] = DYNAMIC_SHAPE,
) -> str:
    """Write model, parameters and `deploy.yaml`, once the written model has answered as the network does.

    Files of an earlier export in `save_dir` are replaced; other files are left alone.

    Args:
        model: put into evaluation mode; its SyncBatchNorm layers become BatchNorm2D.
        output_op: "argmax", "softmax" or "none".
        transforms: {type, **arguments} of what prepares a picture.
        class_names: names of the K classes, if known.
        input_shape: N, C, H, W; None is any size.

    Returns:
        One line that says where the comparison was made and what it measured.

    Raises:
        UsageError: a size that cannot be.
        DataError: the folder is not writable, or the exported model gives other answers.
    """
    _check_input_shape(input_shape)
    save_dir = Path(save_dir)
    workplace = writable_folder(save_dir if save_dir.exists() else save_dir.parent)
    replace_sync_batch_norm(model)
    model.eval()
    with tempfile.TemporaryDirectory(dir=workplace, prefix=".export-") as name:
        folder = Path(name)
        spec = paddle.static.InputSpec(list(input_shape), "float32", "x")
        network = ExportedNetwork(model, output_op)
        network.eval()
        paddle.jit.save(paddle.jit.to_static(network, input_spec=[spec], full_graph=True), str(folder / "model"))
        # Paddle 3 writes model.json, Paddle 2 model.pdmodel.
        (program,) = (path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
        entry = {
            "model": program.name,
            "params": "model.pdiparams",
            "transforms": list(transforms),
            "input_shape": list(input_shape),
            "output_op": output_op,
            "output_dtype": "int32" if output_op == "argmax" else "float32",
            "paddle_version": PADDLE_VERSION,
            "sha256": {name: sha256(folder / name) for name in (program.name, "model.pdiparams")},
        }
        if class_names:
            entry["class_names"] = list(class_names)
        (folder / DEPLOY_FILE).write_text(yaml.safe_dump({"Deploy": entry}, sort_keys=False), encoding="utf-8")
        shapes = dict.fromkeys(
            tuple(fixed or side for fixed, side in zip(input_shape, checked)) for checked in CHECKED_SHAPES
        )
        measured = check_parity(joint_logits(model), folder, output_op, list(shapes))
        save_dir.mkdir(exist_ok=True)
        _move(folder, save_dir)
    return measured


def replace_sync_batch_norm(layer: paddle.nn.Layer) -> None:
    """Put BatchNorm2D with the same tensors in the place of every SyncBatchNorm below `layer`."""
    for parent in layer.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            if isinstance(child, paddle.nn.SyncBatchNorm):
                options: Any = {name: getattr(child, f"_{name}") for name in ("momentum", "epsilon", "data_format")}
                plain = paddle.nn.BatchNorm2D(child._mean.shape[0], **options)
                plain.set_state_dict(child.state_dict())
                plain.training = child.training
                parent.add_sublayer(name, plain)


def check_parity(network: Network, folder: Path, output_op: str, shapes: Sequence[Sequence[int]]) -> str:
    """Run an exported model and the network it was made from on the same pictures.

    Probabilities may differ by 1e-3 at most (not for argmax, which hides them), and the best class only where the
    network itself has two about equally good: logits within a thousandth of the range of all logits.

    Returns:
        What was measured, in a line.

    Raises:
        DataError: they differ by more.
    """
    exported = load_predictor(folder)
    difference, pixels, ties = 0.0, 0, 0
    for shape in shapes:
        image = _picture_like(shape)
        with paddle.no_grad():
            logits = network(paddle.to_tensor(image)).numpy()  # [N, K, H, W]
        answer = exported(image)
        where = "x".join(map(str, shape))
        expected_shape = logits[:, 0].shape if output_op == "argmax" else logits.shape
        if answer.shape != expected_shape:
            raise DataError(f"the exported model answers {answer.shape} instead of {expected_shape} at {where}")
        if output_op == "argmax":
            label = answer
        else:
            label = answer.argmax(axis=1)
            probabilities = answer if output_op == "softmax" else _softmax(answer)
            difference = float(np.maximum(difference, np.abs(probabilities - _softmax(logits)).max()))  # NaN stays
        chosen = np.take_along_axis(logits, label[:, np.newaxis], axis=1)  # [N, 1, H, W]
        gap = logits.max(axis=1, keepdims=True) - chosen  # 0 where both choose the same class
        # Both comparisons are written so that NaN fails.
        wrong = int((~(gap <= MOST_TIE * np.ptp(logits))).sum())
        if wrong or not difference <= MOST_PROBABILITY_DIFFERENCE:
            raise DataError(
                f"the exported model does not answer as the network does, at {where}: {wrong} of {gap.size} pixels "
                f"have another class, probabilities differ by {difference:.2g}; nothing was written, as Paddle "
                f"{PADDLE_VERSION} cannot run this model faithfully"
            )
        pixels, ties = pixels + gap.size, ties + int((gap > 0).sum())
    measured = "" if output_op == "argmax" else f"probabilities differ by {difference:.2g} at most, "
    at = ", ".join("x".join(map(str, shape)) for shape in shapes)
    return f"equal to the network at {at}: {measured}{ties} of {pixels} pixels near a tie have another class"


def _check_input_shape(shape: Sequence[int | None]) -> None:
    if len(shape) != 4 or shape[1] != 3 or any(side is not None and side < 1 for side in shape):
        sides = " ".join("-1" if side is None else str(side) for side in shape)
        raise UsageError(f"--input_shape should be N 3 H W, -1 for any number or size, but it is {sides}")


def _picture_like(shape: Sequence[int]) -> np.ndarray:
    """Float32 [N, 3, H, W] with patches and noise, so that an answer has several classes."""
    N, C, H, W = shape
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(N * C, H // 16 + 1, W // 16 + 1))
    smooth = np.stack([cv2.resize(patch, (W, H)) for patch in patches]).reshape(N, C, H, W)
    return (smooth + rng.normal(scale=0.2, size=(N, C, H, W))).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes of [N, K, H, W]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _move(source: Path, target: Path) -> None:
    """Move an export in. Without `deploy.yaml`, which goes first and comes last, a folder is not an export."""
    for name in (DEPLOY_FILE, "model.json", "model.pdmodel", "model.pdiparams", "model.pdiparams.info"):
        (target / name).unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == DEPLOY_FILE):
        path.replace(target / path.name)
