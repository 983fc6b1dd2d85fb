# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: folders that are written whole or not at all, and from which a run goes on as if never stopped.

A checkpoint holds `model.pdparams` (PaddleSeg's format), `model.pdopt` (the optimizer's state by our tensor names),
`state.json`, and where the recipe has `ema` the averaged weights as `ema.pdparams`: a run goes on from the first, and
whoever reads the weights of the folder gets the average (`hmsa.weights.loading.weight_file`). No random state is
stored: batches, augmentation and dropout are functions of (seed, iteration, rank).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, Optional, Union, cast

import paddle
from paddle import nn
from pydantic import BaseModel, ConfigDict, ValidationError

from hmsa.config.reading import load_config
from hmsa.engine.loggers import CURVES_FILE, RUN_FILE
from hmsa.engine.watch import Watched
from hmsa.errors import DataError, UsageError, printable, said_of, shown
from hmsa.optim import EMA
from hmsa.report.records import RECORDS_FILE
from hmsa.system.files import disk_errors, flush_to_disk, free_name, write_atomically
from hmsa.weights.files import read_pickle
from hmsa.weights.loading import AVERAGED_WEIGHTS, WEIGHTS, load_weights

BEST = "best_model"
SKIPPED_FILE = "skipped_samples.txt"
FILES = (WEIGHTS, AVERAGED_WEIGHTS, "model.pdopt", "state.json", "config.yml")
"""Of a checkpoint, the second not of each; what else lies in its folder is a user's own."""

MAX_CHANGES = 20
"""Of a recipe that are told."""

_ADVICE = "earlier checkpoints are intact, make room and resume"

# What is ours in a save folder. Names that only look like these are a user's own.
_ITERATION = re.compile("iter_[0-9]+")
_CHECKPOINT = re.compile(f"{_ITERATION.pattern}|{BEST}")
_HIDDEN = re.compile(rf"\.({_CHECKPOINT.pattern})\.(partial|old|deleted)")
_FILES_OF_A_RUN = "|".join(map(re.escape, (SKIPPED_FILE, CURVES_FILE, RUN_FILE, RECORDS_FILE)))
_PARTIAL_FILE = re.compile(rf"\.({_FILES_OF_A_RUN})\.[0-9]+\.partial")
_PARTIAL_STATE = re.compile(r"\.state\.json\.[0-9]+\.partial")


class TrainingState(BaseModel):
    """Where a run stands. Keys of later versions are passed over; `notes` tells them."""

    model_config = ConfigDict(extra="ignore", strict=True)

    iteration: int = 0  # iterations done
    best_score: Optional[float] = None  # mean IoU over all classes, 0 to 1
    best_iteration: Optional[int] = None
    scaler: Optional[dict[str, Any]] = None  # loss scaling of fp16
    ema_updates: Optional[int] = None  # that the averaged weights have seen, if there are any
    to_evaluate: bool = False  # whether this iteration's evaluation was still to be done
    optimizer: Optional[str] = None  # its type
    images: int = 0  # that an iteration took, on all ranks together; 0 if unknown
    class_weights: Optional[list[float]] = None  # of the losses
    loss: Optional[float] = None  # of the last evaluation
    watched: Optional[Watched] = None  # by early stopping
    same_answers: int = 0  # evaluations in a row, up to the last, with one class everywhere
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


def _restore_optimizer(model: nn.Layer, optimizer: Any, path: Path) -> None:
    parameters, content = dict(model.named_parameters()), read_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected the state of an optimizer, found {shown(content)}; resume from another")
    state = {}
    for key, value in content.items():
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

    # The schedule is the recipe's of today, which may have been changed; `resume` brings it to its iteration.
    state["LR_Scheduler"] = optimizer._learning_rate.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle warns of the state that its own warm-up writes
        optimizer.set_state_dict(state)


def save(
    folder: Path,
    *,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    state: TrainingState,
    config: str,
    ema: Optional[EMA] = None,
) -> None:
    """Write a checkpoint: beside its place first, flushed to the disk, then renamed.

    Sets `serial`, `optimizer` and `ema_updates` in `state`.

    Args:
        config: the resolved YAML, kept beside the weights.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder, _ADVICE):
        try:
            _clear(partial)
            partial.mkdir(parents=True)
            earlier = [read_state(path).serial for path in list_checkpoints(folder.parent)]
            state.optimizer = type(optimizer).__name__
            state.serial = max([state.serial, *earlier]) + 1
            state.ema_updates = ema.updates if ema else None
            paddle.save(model.state_dict(), str(partial / WEIGHTS))
            if ema:
                paddle.save(ema.model.state_dict(), str(partial / AVERAGED_WEIGHTS))
            paddle.save(_optimizer_state(model, optimizer), str(partial / "model.pdopt"))
            (partial / "state.json").write_text(_json(state.model_dump()), encoding="utf-8")
            (partial / "config.yml").write_text(config, encoding="utf-8")
            for path in [*partial.iterdir(), partial]:
                flush_to_disk(path)
            _move(partial, folder)
        except OSError:
            with contextlib.suppress(OSError):
                _clear(partial)
            raise


def _json(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=2, default=lambda array: array.tolist())  # of the loss scaling


def write_state(folder: Path, state: TrainingState) -> None:
    """Replace the state in a checkpoint whose evaluation is done; what a later version wrote into it stays."""
    content = _json({**_raw_state(folder), **state.model_dump()})
    write_atomically(folder / "state.json", content.encode(), durable=True)


def _move(source: Path, target: Path) -> None:
    """Rename a folder, in place of an older checkpoint if there is one; what is none gets another name."""
    old = target.with_name(f".{target.name}.old")
    _clear(old)
    if os.path.lexists(target):
        target.rename(free_name(target) if _holds_something(target) and order_of(target) is None else old)
    source.rename(target)
    flush_to_disk(target.parent)
    with contextlib.suppress(OSError):
        _clear(old)


def _clear(hidden: Path) -> None:
    """Make one of our hidden names free: our files are deleted, what else is there gets a name that can be seen."""
    if hidden.is_dir() and not hidden.is_symlink():
        for path in list(hidden.iterdir()):
            if _is_our_file(path):
                path.unlink()
        with contextlib.suppress(OSError):
            hidden.rmdir()
    if os.path.lexists(hidden):
        hidden.rename(free_name(hidden.with_name(hidden.name[1:])))


def _is_our_file(path: Path) -> bool:
    return path.name in FILES or bool(_PARTIAL_STATE.fullmatch(path.name))


def _holds_something(path: Path) -> bool:
    """Whether there is anything but an empty folder."""
    return os.path.lexists(path) and (not path.is_dir() or any(path.glob("*")))


def keep_as_best(folder: Path) -> None:
    """Make `best_model` beside `folder` a copy of it; files are shared with the checkpoint where the disk can.

    A better one, which only another run can have left there, gets another name.
    """
    best, partial = folder.with_name(BEST), folder.with_name(f".{BEST}.partial")
    with disk_errors(best, _ADVICE):
        _clear(partial)
        partial.mkdir()
        for name in FILES:
            if (folder / name).exists():
                _link(folder / name, partial / name)
        flush_to_disk(partial)
        if _score(best) > _score(folder):
            best.rename(free_name(best))
        _move(partial, best)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        flush_to_disk(target)


def tidy(save_dir: Path) -> None:
    """Finish or undo what a killed process left: folders half written, half replaced or half deleted.

    Anything that this project did not make stays as it is.
    """
    with disk_errors(save_dir, _ADVICE):
        for left in list(save_dir.iterdir()):
            hidden = _HIDDEN.fullmatch(left.name)
            if hidden and hidden[2] == "old" and not os.path.lexists(save_dir / hidden[1]):
                if _is_whole(left):
                    left.rename(save_dir / hidden[1])
            elif hidden and left.is_dir() and not left.is_symlink() and all(map(_is_our_file, left.iterdir())):
                _clear(left)
            elif _PARTIAL_FILE.fullmatch(left.name) and left.is_file():
                left.unlink()
        _finish_best(save_dir)


def _finish_best(save_dir: Path) -> None:
    """Copy the best checkpoint, where a process was killed between its scores and that."""
    for folder in list_checkpoints(save_dir)[-1:]:
        best, kept = save_dir / f"iter_{read_state(folder).best_iteration}", save_dir / BEST
        written, before = order_of(best), order_of(kept)
        if written and (before < written if before else not _holds_something(kept)):
            keep_as_best(best)


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (WEIGHTS, "model.pdopt", "state.json"))


def _raw_state(folder: Path) -> dict[str, Any]:
    """What `state.json` holds, whichever version wrote it; nothing where it cannot be read."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _score(folder: Path) -> float:
    """The best mean IoU that a checkpoint speaks of; 0 if it speaks of none, or is none."""
    return (read_state(folder).best_score or 0.0) if order_of(folder) else 0.0


def order_of(folder: Path) -> Optional[tuple[int, int]]:
    """What tells which of two checkpoints was written later; None if it is none that can be read."""
    with contextlib.suppress(DataError):
        state = read_state(folder)
        return state.serial, state.iteration


def list_checkpoints(save_dir: Union[str, Path]) -> list[Path]:
    """Whole checkpoints `iter_<number>` below `save_dir`, oldest first."""
    found = [(order_of(path), path) for path in Path(save_dir).glob("iter_*") if _ITERATION.fullmatch(path.name)]
    return [path for _, path in sorted((written, path) for written, path in found if written)]


def unreadable(save_dir: Path) -> list[Path]:
    """What is called like a checkpoint below `save_dir`, but is none that can be read."""
    return sorted(path for path in _left(save_dir) if order_of(path) is None)


def newest(save_dir: Path) -> Optional[Path]:
    """The checkpoint below `save_dir` that was written last: `best_model` where that of which it is a copy is gone."""
    candidates = filter(order_of, [*list_checkpoints(save_dir), save_dir / BEST])
    return max(candidates, key=lambda folder: order_of(folder) or (0, 0), default=None)


def _left(save_dir: Path) -> list[Path]:
    """What runs have left below `save_dir`, or what is called as if they had."""
    names = re.compile(rf"{_CHECKPOINT.pattern}|\.({_CHECKPOINT.pattern})\.old")
    return [path for path in save_dir.glob("*") if names.fullmatch(path.name) and _holds_something(path)]


def contents(save_dir: Path) -> str:
    """What a run has left below `save_dir`, for a sentence: its newest checkpoint, and `best_model` with its score."""
    left = sorted(path.name for path in _left(save_dir))
    found = [path.name for path in list_checkpoints(save_dir)[-1:]] or [name for name in left if name != BEST]
    if BEST in left:
        score = _score(save_dir / BEST)
        found.append(f"{BEST} (mIoU {score:.4f})" if score else BEST)
    return " and ".join(found)


def is_in(folder: Path, save_dir: Path) -> bool:
    """Whether a checkpoint lies directly below `save_dir`."""
    return folder.resolve() in {path.resolve() for path in save_dir.glob("*")}


def prune(save_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, none if it is 0; `best_model` stays."""
    for old in list_checkpoints(save_dir)[:-keep]:
        with disk_errors(old, _ADVICE):
            deleted = old.with_name(f".{old.name}.deleted")  # under a name that nobody takes for a checkpoint
            _clear(deleted)
            old.rename(deleted)
            _clear(deleted)


def list_skipped(save_dir: Path, skipped: dict[str, str]) -> None:
    """Write down the samples that were left out, path -> why; those from before the run was resumed stay listed."""
    path = save_dir / SKIPPED_FILE
    with disk_errors(path, _ADVICE):
        earlier = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    lines = [printable(f"{sample}: {why}") for sample, why in sorted(skipped.items())]
    content = "".join(f"{line}\n" for line in dict.fromkeys([*earlier, *lines]))
    write_atomically(path, content.encode())


def read_state(folder: Path) -> TrainingState:
    """The state in a checkpoint.

    Raises:
        DataError: not a checkpoint.
    """
    reason = ""
    try:
        if "iteration" in _raw_state(folder) and _is_whole(folder):
            return TrainingState.model_validate_json((folder / "state.json").read_bytes())
    except ValidationError as error:
        reason = f" (state.json: {said_of(error)})"
    raise DataError(
        f"{folder}: expected a checkpoint with model.pdparams, model.pdopt and state.json, found none that can be "
        f"read{reason}; give a folder like output/iter_1000, output/best_model, or 'auto'"
    )


def notes(folder: Path, recipe: dict[str, Any]) -> list[str]:
    """What to know before a run goes on from a checkpoint, a line each: what of it is not understood, and where its
    recipe is not `recipe`. None where there is nothing.
    """
    lines = []
    unknown = sorted(set(_raw_state(folder)) - set(TrainingState.model_fields))
    if unknown:
        lines.append(
            f"{folder} was written by a later version: {', '.join(unknown)} in its state.json is not understood, and "
            "not restored"
        )
    try:
        before, now = _values(load_config(folder / "config.yml").model_dump()), _values(recipe)
    except UsageError as error:
        return [*lines, f"whether the recipe has changed is not known: {str(error).splitlines()[0]}"]
    # Data sets and evaluation last, as they have the most keys.
    keys = sorted({**now, **before}, key=lambda key: key.startswith(("train_dataset", "val_dataset", "test_config")))
    told = {key: [shown(values[key]) if key in values else "not given" for values in (before, now)] for key in keys}
    changed = (key for key in keys if key not in before or key not in now or before[key] != now[key])
    changes = [f"  {key}: {' -> '.join(told[key])}" for key in changed]
    if changes:
        lines.append(f"the recipe is not that of {folder} ({len(changes)} {'keys' if len(changes) > 1 else 'key'}):")
    if len(changes) > MAX_CHANGES:
        changes[MAX_CHANGES:] = [f"  and {len(changes) - MAX_CHANGES} more"]
    return lines + changes


def _values(tree: Any, key: str = "") -> dict[str, Any]:
    """The values of a recipe by their dotted keys; a list without mappings is one value."""
    if isinstance(tree, list) and any(isinstance(part, dict) for part in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    parts = [_values(value, f"{key}.{name}" if key else str(name)) for name, value in tree.items()]
    return {name: value for part in parts for name, value in part.items()}


def resume(
    folder: Path, *, model: nn.Layer, optimizer: paddle.optimizer.Optimizer, ema: Optional[EMA] = None
) -> TrainingState:
    """Load a checkpoint into a model, its optimizer, and its averaged weights.

    The learning-rate schedule, which must be at its beginning, goes on to the checkpoint's iteration. Where the
    checkpoint has no averaged weights, the average starts from its weights.

    Raises:
        DataError: not a checkpoint, or one of another model.
    """
    state = read_state(folder)
    if state.optimizer not in (None, type(optimizer).__name__):
        raise DataError(
            f"{folder}: expected the state of the optimizer {type(optimizer).__name__}, found that of {state.optimizer}"
            "; resume with the config.yml in it, or start a new run with model.pretrained"
        )
    load_weights(model, folder / WEIGHTS)
    _restore_optimizer(model, optimizer, folder / "model.pdopt")
    schedule = cast(Any, optimizer)._learning_rate
    for _ in range(state.iteration):
        schedule.step()
    if ema:
        averaged = state.ema_updates is not None
        load_weights(ema.model, folder / (AVERAGED_WEIGHTS if averaged else WEIGHTS))
        ema.updates = state.ema_updates or 0
    return state
