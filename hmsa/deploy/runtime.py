# SPDX-License-Identifier: Apache-2.0
"""Running an exported network with Paddle Inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np
import yaml
from packaging.version import Version
from paddle.version import full_version as PADDLE_VERSION
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hmsa.config.fields import Label
from hmsa.errors import DataError
from hmsa.inference.paddle_inference import open_predictor, program_of
from hmsa.system.files import sha256

DEPLOY_FILE = "deploy.yaml"

Predictor = Callable[[np.ndarray], np.ndarray]
"""float32 [N, 3, H, W], normalised -> classes int32 [N, H, W], or probabilities or logits float32 [N, K, H, W]."""


_MAX_BYTES = 1 << 16
_NAME = r"^[^/\\]*[^/\\.][^/\\]*$"  # of a file beside it: no folder, and not dots alone


class Deployment(BaseModel):
    """Of what `deploy.yaml` says about the network beside it, what is needed to run it."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    model: Annotated[str, Field(pattern=_NAME)]
    params: Annotated[str, Field(pattern=_NAME)]
    paddle_version: Annotated[Version, BeforeValidator(Version)] = Version("0")  # that wrote it; 0 if not recorded
    sha256: dict[str, str] = {}  # of the files by name; empty if not recorded
    transforms: list[dict[str, Any]]  # {type, **arguments} of what prepares an image
    input_shape: Annotated[list[Optional[int]], Field(min_length=4, max_length=4)]  # N, C, H, W; None is any size
    output_op: str  # argmax, softmax or none
    class_names: list[str] = []  # empty if not recorded, as are the colours: red, green, blue
    class_colors: list[Annotated[list[Label], Field(min_length=3, max_length=3)]] = []
    ignore_index: int = 255


def read_deployment(folder: str | Path) -> Deployment:
    """Read `deploy.yaml`, whatever became of the files that it names. DataError if it is missing or broken."""
    path = Path(folder) / DEPLOY_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
        return Deployment.model_validate(yaml.safe_load(path.read_bytes())["Deploy"])
    except OSError as error:
        raise DataError(
            f"{path}: expected the description of an exported model, but: {error.strerror}; run export.py, or name "
            "the folder it wrote"
        ) from error
    except (yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected what export.py writes, but: {error!r:.200}; export again") from error


def load_predictor(folder: str | Path) -> Predictor:
    """Load an exported network into Paddle Inference, on the GPU if Paddle has one, else with oneDNN.

    The function that comes back keeps one set of buffers: call it from one thread at a time. A model is a program: load
    only what you trust.

    Raises:
        DataError: the folder is incomplete or damaged, or was written by a newer Paddle than this one can read.
    """
    deployment = read_deployment(folder)
    model, params = (Path(folder) / name for name in (deployment.model, deployment.params))

    # It would end in an internal error or a crash.
    written = deployment.paddle_version
    if model.suffix == ".json" and written.release[:2] > Version(PADDLE_VERSION).release[:2]:
        raise DataError(
            f"{model}: written by Paddle {written}, which Paddle {PADDLE_VERSION} cannot read; install Paddle "
            f"{written} or newer, or export again with {PADDLE_VERSION}"
        )

    # Paddle runs what is left of a file that ends too early.
    for file in (model, params):
        digest = sha256(file)
        if deployment.sha256.get(file.name, digest) != digest:
            raise DataError(
                f"{file}: expected the file that export.py wrote, found another or a damaged one; export again"
            )

    try:
        run = program_of(open_predictor(model, params))
    # Paddle raises whatever comes first.
    except Exception as error:
        raise DataError(
            f"{model}: expected a model that Paddle {PADDLE_VERSION} can run, found one that is damaged or of another "
            "kind; export again"
        ) from error
    return lambda image: run(image)[0]
