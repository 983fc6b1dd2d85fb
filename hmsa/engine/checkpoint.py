# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: folders that are written whole or not at all, and from which a run goes on as if never stopped.

A checkpoint holds `model.pdparams` (PaddleSeg's format), `model.pdopt` (the optimizer's state by our tensor names) and
`state.json`. No random state is stored: batches, augmentation and dropout are functions of (seed, iteration, rank).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import paddle
from paddle import nn

from hmsa.errors import DataError
from hmsa.weight_files import read_pickle
from hmsa.weights import load_weights

BEST = "best_model"


@dataclass
class TrainingState:
    """Where a run stands."""

    iteration: int = 0  # iterations done
    best_score: Optional[float] = None  # mean IoU over all classes, 0 to 1
    best_iteration: Optional[int] = None
    scaler: Optional[dict[str, Any]] = None  # loss scaling of fp16


def _names(model: nn.Layer) -> dict[str, str]:
    """Paddle's own names of the parameters, which depend on what was built before -> ours."""
    return {parameter.name: name for name, parameter in model.named_parameters()}


def _optimizer_state(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """The optimizer's state with every accumulator under `<our tensor name>|<Paddle's suffix>`."""
    names = _names(model)
    state = {}
    for key, value in optimizer.state_dict().items():
        owner = max((name for name in names if key.startswith(f"{name}_")), key=len, default=None)
        state[key if owner is None else f"{names[owner]}|{key[len(owner) :]}"] = value
    return state


def _restore_optimizer(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, path: Path) -> None:
    names = {ours: theirs for theirs, ours in _names(model).items()}
    state = {}
    try:
        saved = read_pickle(path)
    except Exception as error:
        raise DataError(
            f"{path}: expected the state of an optimizer, found a file that cannot be read: {error}"
        ) from error
    for key, value in saved.items():
        ours, bar, suffix = key.partition("|")
        state[names[ours] + suffix if bar else key] = value
    optimizer.set_state_dict(state)


def save(
    folder: Path,
    *,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    state: TrainingState,
    config: str,
) -> None:
    """Write a checkpoint: beside its place first, flushed to the disk, then renamed.

    Args:
        config: the resolved YAML, kept beside the weights.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        paddle.save(model.state_dict(), str(partial / "model.pdparams"))
        paddle.save(_optimizer_state(model, optimizer), str(partial / "model.pdopt"))
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
        (partial / "config.yml").write_text(config, encoding="utf-8")
        for file in partial.iterdir():
            _flush(file)
        _move(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(
            f"{folder}: cannot write the checkpoint ({error.strerror}); earlier ones are intact, make room and resume"
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(source: Path, target: Path) -> None:
    """Rename a folder, in place of an older one of that name if there is one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def keep_as_best(folder: Path) -> None:
    """Make `best_model` beside `folder` a copy of it; files are shared with the checkpoint where the disk can."""
    partial = folder.with_name(f".{BEST}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder, partial, copy_function=_link)
    _move(partial, folder.with_name(BEST))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def list_checkpoints(save_dir: Union[str, Path]) -> list[Path]:
    """Whole checkpoints below `save_dir`, oldest first."""
    found = [path for path in Path(save_dir).glob("iter_*") if (path / "state.json").is_file()]
    return sorted(found, key=lambda path: read_state(path).iteration)


def prune(save_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; `best_model` stays."""
    for old in list_checkpoints(save_dir)[:-keep]:
        shutil.rmtree(old)


def read_state(folder: Path) -> TrainingState:
    """The state in a checkpoint.

    Raises:
        DataError: not a checkpoint.
    """
    try:
        return TrainingState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder}: expected a checkpoint with model.pdparams, model.pdopt and state.json, found none that can be "
            "read; give a folder like output/iter_1000, output/best_model, or 'auto'"
        ) from error


def find(resume_model: str, save_dir: Union[str, Path]) -> Optional[Path]:
    """The checkpoint to go on from: a folder, or with 'auto' the newest in `save_dir` (None if there is none)."""
    if resume_model == "auto":
        return next(iter(reversed(list_checkpoints(save_dir))), None)
    return Path(resume_model)


def resume(folder: Path, *, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> TrainingState:
    """Load a checkpoint into a model and its optimizer, learning-rate schedule included.

    Raises:
        DataError: not a checkpoint, or one of another model.
    """
    state = read_state(folder)
    load_weights(model, folder)
    _restore_optimizer(model, optimizer, folder / "model.pdopt")
    return state
