# SPDX-License-Identifier: Apache-2.0
"""What `deploy.yaml` says of an exported network, and running it with Paddle Inference."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np
import yaml
from packaging.version import Version
from paddle.version import full_version as PADDLE_VERSION
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hmsa.config.fields import Label, Pixels
from hmsa.config.text import parse
from hmsa.errors import DataError, said_of
from hmsa.inference.paddle_inference import Program, open_predictor, program_of
from hmsa.system.files import sha256

DEPLOY_FILE = "deploy.yaml"

Predictor = Callable[[np.ndarray], np.ndarray]
"""float32 [N, C, H, W], normalised -> classes int32 [N, H, W], or probabilities or logits float32 [N, K, H, W]."""

ANSWERS = {"argmax": ("label", "int32", "NHW"), "softmax": ("probabilities", "float32", "NCHW")}
"""output_op -> name, kind and layout of the first output; any other's are `LOGITS`."""

LOGITS = ("logits", "float32", "NCHW")

_MAX_BYTES = 1 << 16
_NAME = r"^[^/\\\x00]*[^/\\.\x00][^/\\\x00]*$"  # of a file beside it: no folder, and not dots alone
_FileName = Annotated[str, Field(pattern=_NAME)]
_Side = Annotated[Optional[Pixels], BeforeValidator(lambda side: None if side == -1 else side)]  # -1 is PaddleSeg's


class Output(BaseModel):
    """An output of the network."""

    model_config = ConfigDict(strict=True)

    name: str
    dtype: Literal["int32", "float32"]
    layout: Literal["NHW", "NCHW", "NSHW"]
    scales: list[float] = []  # of an attention [N, S, H, W], in the order of S


class FileEntry(BaseModel):
    """A format in which the network stands beside `deploy.yaml`."""

    model_config = ConfigDict(strict=True)

    format: str
    precision: str
    files: Annotated[list[_FileName], Field(min_length=1)]
    input_layout: Optional[str] = None  # where it is another than that of `Deployment`
    output_layouts: list[str] = []  # in the order of the outputs, where one is another than theirs
    engines: dict[str, str] = {}  # by which it was verified -> what was found


class Deployment(BaseModel):
    """Of what `deploy.yaml` says about the network beside it, what is needed to run it."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    model: _FileName
    params: _FileName
    paddle_version: Annotated[Version, BeforeValidator(Version)] = Version("0")  # that wrote it; 0 if not recorded
    sha256: dict[str, str] = {}  # of the files by name; empty if not recorded
    transforms: list[dict[str, Any]]  # {type, **arguments} of what prepares an image
    input_shape: Annotated[list[_Side], Field(min_length=4, max_length=4)]  # as in the layout; None is any size
    input_name: str = "x"
    input_dtype: Literal["float32", "uint8"] = "float32"
    input_layout: Literal["NCHW", "NHWC"] = "NCHW"
    channel_order: Literal["RGB", "as stored"] = "RGB"
    min_size: Optional[Pixels] = None  # side of the smallest image of which every scale leaves a pixel; if recorded
    output_op: Literal["argmax", "softmax", "none"]
    outputs: list[Output] = []  # in order
    formats: list[FileEntry] = []
    class_names: Annotated[list[str], Field(max_length=256)] = []  # empty if not recorded, as are the colours
    class_colors: Annotated[list[Annotated[list[Label], Field(min_length=3, max_length=3)]], Field(max_length=256)] = []
    ignore_index: int = 255

    def model_post_init(self, context: Any) -> None:
        """What an earlier export, or another program's, leaves out."""
        name, dtype, layout = ANSWERS.get(self.output_op, LOGITS)
        self.outputs = self.outputs or [Output.model_validate({"name": name, "dtype": dtype, "layout": layout})]
        self.formats = self.formats or [FileEntry(format="paddle", precision="fp32", files=[self.model, self.params])]

    def side(self, axis: str) -> Optional[int]:
        """How long an axis of the input ("N", "C", "H" or "W") has to be; None is any length."""
        return self.input_shape[self.input_layout.index(axis)]

    def check_images(self, shape: Sequence[int]) -> None:
        """DataError unless the network takes images of this shape: engines would give wrong answers, or end the
        process."""
        found = dict(zip(self.input_layout, shape))
        fixed = {axis: side for axis, side in zip(self.input_layout, self.input_shape) if side is not None}
        if len(shape) != 4 or any(found[axis] != side for axis, side in fixed.items()):
            wanted = " ".join(str(fixed.get(axis, axis)) for axis in self.input_layout)
            in_order = len(shape) == 4 and found["C"] == fixed.get("C", found["C"])
            remedy = "resize them, or export for any size" if in_order else "bring the axes into this order"
            raise DataError(
                f"expected images of the shape {wanted} ({self.input_layout}), found {' '.join(map(str, shape))}: "
                f"{remedy}"
            )
        if found["N"] < 1:
            raise DataError("expected an image, found none: give at least one")
        if min(found["H"], found["W"]) < (self.min_size or 1):
            raise DataError(
                f"expected images of at least {self.min_size or 1} pixels each way, of which every scale leaves a "
                f"pixel, found {found['W']}x{found['H']}: enlarge or remove them"
            )


def read_deployment(folder: str | Path) -> Deployment:
    """Read `deploy.yaml`, whatever became of the files that it names. DataError if it is missing or broken."""
    path = Path(folder) / DEPLOY_FILE
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_BYTES:
            raise yaml.YAMLError(f"it is no file, or one longer than {_MAX_BYTES} bytes")
        found = parse(path.read_text(encoding="utf-8"))
        return Deployment.model_validate(found["Deploy"] if isinstance(found, dict) and "Deploy" in found else {})
    except ValidationError as error:
        raise DataError(f"{path}: expected what export.py writes, but: {said_of(error)}; export again") from None
    except OSError as error:
        raise DataError(
            f"{path}: expected the description of an exported model, but: {error.strerror}; run export.py, or name "
            "the folder it wrote"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected what export.py writes, but: {error!s:.200}; export again") from None


def checked_file(path: Path, deployment: Deployment) -> Path:
    """The file of an export at `path`. DataError if it is not what was written: engines run on what is left of a file
    that ends too early, or crash."""
    written = deployment.paddle_version
    if path.suffix == ".json" and written.release[:2] > Version(PADDLE_VERSION).release[:2]:
        raise DataError(
            f"{path}: written by Paddle {written}, which Paddle {PADDLE_VERSION} cannot read; install Paddle "
            f"{written} or newer, or export again with {PADDLE_VERSION}"
        )

    if path.exists() and not path.is_file():
        raise DataError(f"{path}: expected a file, found a folder, a pipe or a device; export again")
    digest = sha256(path)
    if deployment.sha256.get(path.name, digest) != digest:
        raise DataError(f"{path}: expected the file that export.py wrote, found another or a damaged one; export again")
    return path


def load_predictor(folder: str | Path) -> Predictor:
    """Load an exported network into Paddle Inference, on the GPU if Paddle has one, else with oneDNN.

    The function that comes back keeps one set of buffers: call it from one thread at a time. It gives the first output
    alone (`hmsa.deploy.engines.open_export` gives all), and raises DataError for images that the network does not take.
    A model is a program: load only what you trust.

    Raises:
        DataError: the folder is incomplete or damaged, or was written by a newer Paddle than this one can read.
    """
    deployment = read_deployment(folder)
    model, params = (checked_file(Path(folder) / name, deployment) for name in (deployment.model, deployment.params))
    try:
        run: Program = program_of(open_predictor(model, params))
    # Paddle raises whatever comes first.
    except Exception as error:
        raise DataError(
            f"{model}: expected a model that Paddle {PADDLE_VERSION} can run, found one that is damaged or of another "
            "kind; export again"
        ) from error

    def predict(images: np.ndarray) -> np.ndarray:
        deployment.check_images(images.shape)
        return run(images)[0]

    return predict
