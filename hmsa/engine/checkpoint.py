# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: folders that are written whole or not at all, and from which a run goes on as if never stopped.

A checkpoint holds `model.pdparams` (PaddleSeg's format), `model.pdopt` (the optimizer's state by our tensor names) and
`state.json`. No random state is stored: batches, augmentation and dropout are functions of (seed, iteration, rank).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import paddle
from paddle import nn
from pydantic import TypeAdapter

from hmsa import distributed
from hmsa.errors import DataError
from hmsa.files import flush_to_disk, write_atomically
from hmsa.weight_files import read_pickle
from hmsa.weights import load_weights

BEST = "best_model"


@dataclass
class TrainingState:
    """Where a run stands."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 (no field)

    iteration: int = 0  # iterations done
    best_score: Optional[float] = None  # mean IoU over all classes, 0 to 1
    best_iteration: Optional[int] = None
    scaler: Optional[dict[str, Any]] = None  # loss scaling of fp16
    to_evaluate: bool = False  # whether this iteration's evaluation was still to be done
    optimizer: Optional[str] = None  # its type
    serial: int = 0  # counts a folder's checkpoints: the newest is known even where an earlier run got further


def _optimizer_state(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """The optimizer's state with every accumulator under `<our tensor name>|<Paddle's suffix>`: Paddle's own names of
    the parameters depend on what was built before.
    """
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    state = {}
    for key, value in optimizer.state_dict().items():
        owner = max((name for name in names if key.startswith(f"{name}_")), key=len, default=None)
        state[key if owner is None else f"{names[owner]}|{key[len(owner) :]}"] = value
    return state


def _restore_optimizer(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, path: Path) -> None:
    parameters = dict(model.named_parameters())
    saved = read_pickle(path)
    if not isinstance(saved, dict):
        raise DataError(f"{path}: expected the state of an optimizer, found none; resume from another checkpoint")
    state = {}
    for key, value in saved.items():
        ours, bar, suffix = str(key).partition("|")
        if not bar:
            state[key] = value
            continue
        parameter = parameters.get(ours)
        shape = list(getattr(value, "shape", ()))
        if parameter is None or shape not in (list(parameter.shape), [1], []):
            raise DataError(
                f"{path}: expected the state of an optimizer of this model, found {key} {shape}; resume with the "
                "config.yml beside it"
            )
        state[parameter.name + suffix] = value
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

    Sets `serial` and `optimizer` in `state`.

    Args:
        config: the resolved YAML, kept beside the weights.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with _writing(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            earlier = [read_state(path).serial for path in list_checkpoints(folder.parent)]
            state.optimizer = type(optimizer).__name__
            state.serial = max([state.serial, *earlier]) + 1
            paddle.save(model.state_dict(), str(partial / "model.pdparams"))
            paddle.save(_optimizer_state(model, optimizer), str(partial / "model.pdopt"))
            (partial / "state.json").write_text(_json(state), encoding="utf-8")
            (partial / "config.yml").write_text(config, encoding="utf-8")
            for path in [*partial.iterdir(), partial]:
                flush_to_disk(path)
            _move(partial, folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write the checkpoint ({error.strerror}); earlier ones are intact, make room and resume"
        ) from error


def _json(state: TrainingState) -> str:
    return json.dumps(asdict(state), indent=2, default=lambda array: array.tolist())  # of the loss scaling


def write_state(folder: Path, state: TrainingState) -> None:
    """Replace the state in a checkpoint whose evaluation is done."""
    write_atomically(folder / "state.json", _json(state).encode(), durable=True)


def _move(source: Path, target: Path) -> None:
    """Rename a folder, in place of an older one of that name if there is one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    flush_to_disk(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def keep_as_best(folder: Path) -> None:
    """Make `best_model` beside `folder` a copy of it; files are shared with the checkpoint where the disk can."""
    partial = folder.with_name(f".{BEST}.partial")
    with _writing(folder.with_name(BEST)):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial, copy_function=_link)
        flush_to_disk(partial)
        _move(partial, folder.with_name(BEST))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        flush_to_disk(Path(target))


def tidy(save_dir: Path) -> None:
    """Finish or undo what a killed process left: folders half written, half replaced or half deleted."""
    with _writing(save_dir):
        for old in save_dir.glob(".*.old"):
            name = old.with_name(old.name[1 : -len(".old")])
            if not name.exists():
                old.rename(name)
        for ending in ("partial", "old", "deleted"):
            for left in save_dir.glob(f".*.{ending}"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        # Killed between the checkpoint with the best score and its copy.
        for folder in list_checkpoints(save_dir)[-1:]:
            best, kept = save_dir / f"iter_{read_state(folder).best_iteration}", save_dir / BEST
            if _is_whole(best) and not (_is_whole(kept) and read_state(kept).serial == read_state(best).serial):
                keep_as_best(best)


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("model.pdparams", "model.pdopt", "state.json"))


def list_checkpoints(save_dir: Union[str, Path]) -> list[Path]:
    """Whole checkpoints below `save_dir`, oldest first."""
    found = [(read_state(path), path) for path in Path(save_dir).glob("iter_*") if _is_whole(path)]
    return [path for _, path in sorted(found, key=lambda item: (item[0].serial, item[0].iteration))]


def prune(save_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, none if it is 0; `best_model` stays."""
    for old in list_checkpoints(save_dir)[:-keep]:
        with _writing(old):
            deleted = old.with_name(f".{old.name}.deleted")  # under a name that nobody takes for a checkpoint
            old.rename(deleted)
            shutil.rmtree(deleted)


def read_state(folder: Path) -> TrainingState:
    """The state in a checkpoint.

    Raises:
        DataError: not a checkpoint.
    """
    try:
        return TypeAdapter(TrainingState).validate_json((folder / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: expected a checkpoint with model.pdparams, model.pdopt and state.json, found none that can be "
            "read; give a folder like output/iter_1000, output/best_model, or 'auto'"
        ) from error


def find(resume_model: str, save_dir: Union[str, Path]) -> Optional[Path]:
    """The checkpoint to go on from: a folder, or with 'auto' the newest in `save_dir` (None if there is none).

    All ranks must call this; the main one decides and puts in order what a killed run left.
    """
    folder: Optional[Path] = Path(resume_model)
    if resume_model == "auto":
        if distributed.is_main():
            tidy(Path(save_dir))
            folder = next(iter(reversed(list_checkpoints(save_dir))), None)
        folder = distributed.from_main(folder)
    return folder


def resume(folder: Path, *, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> TrainingState:
    """Load a checkpoint into a model and its optimizer, learning-rate schedule included.

    Raises:
        DataError: not a checkpoint, or one of another model.
    """
    state = read_state(folder)
    if state.optimizer not in (None, type(optimizer).__name__):
        raise DataError(
            f"{folder}: expected the state of the optimizer {type(optimizer).__name__}, found that of {state.optimizer}"
            "; resume with the config.yml in it, or start a new run with model.pretrained"
        )
    load_weights(model, folder)
    _restore_optimizer(model, optimizer, folder / "model.pdopt")
    return state
