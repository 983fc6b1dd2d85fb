# SPDX-License-Identifier: Apache-2.0
"""Exporting a network for Paddle Inference: traced, compared with itself, described, and only then put in its place."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle
import paddle.nn.functional as F
import yaml
from paddle.version import full_version as PADDLE_VERSION

from hmsa.datasets.classes import Classes
from hmsa.deploy.parity import CHECKED_SHAPES, check_parity
from hmsa.deploy.runtime import DEPLOY_FILE, read_deployment
from hmsa.errors import DataError, UsageError, printable
from hmsa.inference.fold import copy_on_cpu, simplified
from hmsa.inference.paddle_inference import open_predictor, program_of
from hmsa.inference.tracing import DYNAMIC_SHAPE, write_program, writes_json
from hmsa.models import MscaleOCRNet
from hmsa.models.hierarchical import joint_logits
from hmsa.system.device import on_cpu
from hmsa.system.files import disk_errors, sha256, writable_folder

HEADER = """\
# What a program needs to run the model beside this file (docs/deployment.md has one of 15 lines): `transforms` turn an
# image of `channel_order`, uint8, into the input; Normalize is (pixel / pixel_divisor - mean) / std.
"""

_FILES = (DEPLOY_FILE, "model.json", "model.pdmodel", "model.pdiparams")


@dataclass(frozen=True)
class ExportOptions:
    """How a network is written, and what `deploy.yaml` says about its images and classes.

    Raises:
        UsageError: a size that cannot be, or a form that this Paddle does not have.
    """

    output_op: str  # "argmax", "softmax" or "none"
    transforms: Sequence[dict[str, Any]]  # {type, **arguments} of what prepares an image
    classes: Optional[Classes] = None  # "class 0", ... in PaddleSeg's palette without them
    input_shape: tuple[Optional[int], ...] = DYNAMIC_SHAPE  # N, C, H, W; None is any size
    program: Optional[str] = None  # "pdmodel", which every reader of Paddle's models takes, or "json", that of Paddle 3

    def __post_init__(self) -> None:
        shape = self.input_shape
        if len(shape) != 4 or shape[1] != 3 or any(side is not None and side < 1 for side in shape):
            sides = " ".join("-1" if side is None else str(side) for side in shape)
            raise UsageError(
                f"the input shape should be N 3 H W, -1 for any number or size, but it is {sides}",
                settings=["input_shape"],
            )
        if self.program == "json" and not writes_json():
            raise UsageError(
                f"a program of the form json needs Paddle 3, but this is {PADDLE_VERSION}; choose pdmodel",
                settings=["program"],
            )


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


def export(model: paddle.nn.Layer, save_dir: str | Path, options: ExportOptions) -> str:
    """Write model, parameters and `deploy.yaml`, once the written model has answered as the network does.

    Files of an earlier export in `save_dir` are replaced; other files are left alone, and so is the model. The two are
    compared on the CPU.

    Returns:
        One line that says where the comparison was made and what it measured, and one about replaced files if any were.

    Raises:
        DataError: see `check_target`; or the network cannot be traced, or the exported model gives other answers.
    """
    target = Path(save_dir)
    workplace = check_target(target)
    with disk_errors(target), on_cpu(), tempfile.TemporaryDirectory(dir=workplace, prefix=".export-") as name:
        folder = Path(name)
        program = trace(model, folder / "model", options)
        predictor = open_predictor(program, program.with_suffix(".pdiparams"))

        # A size that is fixed in the export takes the place of the checked ones.
        run = program_of(predictor)
        shapes = [tuple(fixed or side for fixed, side in zip(options.input_shape, known)) for known in CHECKED_SHAPES]
        network = joint_logits(copy_on_cpu(model))
        measured = check_parity(network, lambda image: run(image)[0], options.output_op, list(dict.fromkeys(shapes)))

        entry = describe(model, program, predictor, options)
        text = yaml.safe_dump({"Deploy": entry}, sort_keys=False, default_flow_style=None)
        (folder / DEPLOY_FILE).write_text(HEADER + text, encoding="utf-8")
        return "\n".join([measured, *publish(folder, target)])


def trace(model: paddle.nn.Layer, path: Path, options: ExportOptions) -> Path:
    """Write the network in the form asked for, or in the first of both that can be written -> the program's file."""
    network = copy_on_cpu(model)
    if isinstance(network, MscaleOCRNet):
        simplified(network)
    forms = [options.program] if options.program else ["pdmodel", *["json"] * writes_json()]
    for form in forms:
        exported = ExportedNetwork(network, options.output_op)
        exported.eval()
        try:
            return write_program(exported, path, input_shape=options.input_shape, old_form=form == "pdmodel")
        except OSError:
            raise
        # Paddle raises whatever comes first.
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            problem = f"Paddle {PADDLE_VERSION} cannot write this network as {form} ({said[-1].strip():.200})"
            if form == forms[-1]:
                raise DataError(
                    f"expected a network that can be exported, but {problem}; try another form", settings=["program"]
                ) from error
            said = f"warning: {problem}: it is written as json, which fewer programs read"
            print(printable(said), file=sys.stderr)
    raise AssertionError("the last form returns or raises")


def describe(model: paddle.nn.Layer, program: Path, predictor: Any, options: ExportOptions) -> dict[str, Any]:
    """What `deploy.yaml` says of the program that was written and of the parameters beside it."""
    params = program.with_suffix(".pdiparams")
    is_label = options.output_op == "argmax"
    classes = options.classes or Classes.numbered(getattr(model, "num_classes", 0))
    return {
        "model": program.name,
        "params": params.name,
        "transforms": list(options.transforms),
        "input_shape": list(options.input_shape),
        "output_op": options.output_op,
        "output_dtype": "int32" if is_label else "float32",
        "input_name": predictor.get_input_names()[0],
        "input_dtype": "float32",
        "input_layout": "NCHW",
        "channel_order": "RGB",
        "pixel_divisor": 255,
        "output_name": predictor.get_output_names()[0],
        "output_layout": "NHW" if is_label else "NCHW",
        "class_names": list(classes.names),
        "class_colors": [list(color) for color in classes.colors],
        "ignore_index": classes.ignore_index,
        "paddle_version": PADDLE_VERSION,
        "sha256": {file.name: sha256(file) for file in (program, params)},
    }


def publish(source: Path, target: Path) -> list[str]:
    """Move an export in. Without `deploy.yaml`, which goes first and comes last, a folder is not an export.

    Returns:
        A line that names what was there of an earlier export, if anything was.
    """
    target.mkdir(exist_ok=True)
    earlier = _earlier_export(target)
    replaced = [f"{file.name} of {datetime.fromtimestamp(file.lstat().st_mtime):%Y-%m-%d %H:%M}" for file in earlier]
    for path in earlier:
        path.unlink()
    for path in sorted(source.iterdir(), key=lambda path: path.name == DEPLOY_FILE):
        path.replace(target / path.name)
    return [f"replaced in {target}: {', '.join(replaced)}"] if replaced else []


def check_target(save_dir: str | Path) -> Path:
    """The folder in which an export into `save_dir` is prepared: itself, or the one it will be made in.

    Raises:
        DataError: nothing can be written there, or something that no earlier export wrote has the name of its files.
    """
    target = Path(save_dir)
    with disk_errors(target):
        _earlier_export(target)
    return writable_folder(target if target.exists() or target.is_symlink() else target.parent)


def _earlier_export(target: Path) -> list[Path]:
    """The files of an earlier export in a folder, `deploy.yaml` first: those that it names, and itself.

    Raises:
        DataError: another file, or a folder, has one of their names.
    """
    there = [path for path in (target / name for name in _FILES) if os.path.lexists(path)]
    ours = set()
    with contextlib.suppress(DataError):
        deployment = read_deployment(target)
        ours = {DEPLOY_FILE, deployment.model, deployment.params, *deployment.sha256}

    for path in there:
        if path.is_dir() or path.name not in ours:
            found = "a folder" if path.is_dir() else f"one that no {DEPLOY_FILE} there describes"
            raise DataError(
                f"{path}: expected a file of an earlier export or nothing, found {found}; move it away, or choose "
                "another folder",
                settings=["save_dir"],
            )
    return there
