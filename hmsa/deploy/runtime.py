# SPDX-License-Identifier: Apache-2.0
"""Running an exported network with Paddle Inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hmsa.system.prepared  # noqa: F401

import numpy as np
import yaml
from packaging.version import InvalidVersion, Version
from paddle.version import full_version as PADDLE_VERSION

from hmsa.errors import DataError
from hmsa.inference.paddle_inference import open_program
from hmsa.system.files import sha256

DEPLOY_FILE = "deploy.yaml"

Predictor = Callable[[np.ndarray], np.ndarray]
"""float32 [N, 3, H, W], normalised -> classes int32 [N, H, W], or probabilities or logits float32 [N, K, H, W]."""


@dataclass(frozen=True)
class Deployment:
    """What `deploy.yaml` says about the network beside it."""

    model: Path
    params: Path
    transforms: list[dict[str, Any]]  # {type, **arguments} of what prepares an image
    input_shape: tuple[int | None, ...]  # N, C, H, W; None is any size
    output_op: str  # argmax, softmax or none
    paddle_version: str | None  # that wrote the model; None if not recorded
    class_names: tuple[str, ...]  # empty if not recorded
    class_colors: tuple[tuple[int, int, int], ...]  # empty if not recorded
    ignore_index: int  # 255 if not recorded
    sha256: dict[str, str]  # of the files by name; empty if not recorded


class _Loader(yaml.SafeLoader):
    """Without `<<`, by which a few lines become any number of keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def read_deployment(folder: str | Path) -> Deployment:
    """Read `deploy.yaml` of an export folder. DataError if it is missing or broken, or a file it names is missing."""
    deployment = read_description(folder)
    for file in (deployment.model, deployment.params):
        if not file.is_file():
            raise DataError(
                f"{file}: expected this file, which {file.with_name(DEPLOY_FILE)} names, but it is missing; export "
                "again"
            )
    return deployment


def read_description(folder: str | Path) -> Deployment:
    """Read `deploy.yaml` alone, whatever became of the files that it names. DataError if it is missing or broken."""
    path = Path(folder) / DEPLOY_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
        entry = yaml.load(text, _Loader)["Deploy"]
        return Deployment(
            model=_beside(path, entry["model"]),
            params=_beside(path, entry["params"]),
            transforms=[_is(dict, transform) for transform in _is(list, entry["transforms"])],
            input_shape=tuple(side if side is None else _is(int, side) for side in _is(list, entry["input_shape"])),
            output_op=_is(str, entry["output_op"]),
            paddle_version=_is(str, entry["paddle_version"]) if "paddle_version" in entry else None,
            class_names=tuple(_is(str, name) for name in _is(list, entry.get("class_names", []))),
            class_colors=tuple(_color(color) for color in _is(list, entry.get("class_colors", []))),
            ignore_index=_is(int, entry.get("ignore_index", 255)),
            sha256=_is(dict, entry.get("sha256", {})),
        )
    except OSError as error:
        raise DataError(
            f"{path}: expected the description of an exported model, but: {error.strerror}; run export.py, or name "
            "the folder it wrote"
        ) from error
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected what export.py writes, but: {error!r:.200}; export again") from error


_MAX_BYTES = 1 << 16
_Kind = TypeVar("_Kind")


def _is(kind: type[_Kind], value: Any) -> _Kind:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _color(value: Any) -> tuple[int, int, int]:
    red, green, blue = (_is(int, level) for level in _is(list, value))
    if not all(0 <= level <= 255 for level in (red, green, blue)):
        raise ValueError(f"{value!r} where a colour should be")
    return red, green, blue


def _beside(path: Path, name: Any) -> Path:
    """A file in the same folder; a name that leads out of it is an error."""
    if Path(_is(str, name)).name != name or name == "..":
        raise ValueError(f"{name!r} where the name of a file beside it should be")
    return path.with_name(name)


def load_predictor(folder: str | Path) -> Predictor:
    """Load an exported network into Paddle Inference, on the GPU if Paddle has one, else with oneDNN.

    The function that comes back keeps one set of buffers: call it from one thread at a time. A model is a program: load
    only what you trust.

    Raises:
        DataError: the folder is incomplete or damaged, or was written by a newer Paddle than this one can read.
    """
    deployment = read_deployment(folder)
    _check_readable(deployment)
    for file in (deployment.model, deployment.params):
        # Paddle runs what is left of a file that ends too early.
        if deployment.sha256.get(file.name) not in (None, sha256(file)):
            raise DataError(
                f"{file}: expected the file that export.py wrote, found another or a damaged one; export again"
            )
    try:
        run = open_program(deployment.model, deployment.params)
    # Paddle raises whatever comes first.
    except Exception as error:
        raise DataError(
            f"{deployment.model}: expected a model that Paddle {PADDLE_VERSION} can run, found one that is damaged or "
            "of another kind; export again"
        ) from error
    return lambda image: run(image)[0]


def _check_readable(deployment: Deployment) -> None:
    """Refuse a .json of a newer Paddle, which would end in an internal error or a crash."""
    written, ours = deployment.paddle_version, PADDLE_VERSION
    if written is None or deployment.model.suffix != ".json":
        return
    try:
        newer = Version(written).release[:2] > Version(ours).release[:2]
    except InvalidVersion:
        return
    if newer:
        raise DataError(
            f"{deployment.model}: written by Paddle {written}, which Paddle {ours} cannot read; install Paddle "
            f"{written} or newer, or export again with {ours}"
        )
