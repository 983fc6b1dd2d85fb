# SPDX-License-Identifier: Apache-2.0
"""A training run in a few lines: what it is at its beginning, what came of it at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hmsa.system.prepared  # noqa: F401

import paddle
from paddle.version import full_version as PADDLE_VERSION

from hmsa.distributed.ranks import world_size
from hmsa.system.device import on_gpu
from hmsa.system.environment import threads
from hmsa.system.memory import peak_memory_bytes, total_memory_bytes
from hmsa.weights.loading import listed

if TYPE_CHECKING:
    from hmsa.engine.train import Trainer


def beginning(trainer: Trainer) -> list[str]:
    """Six lines: device, images, classes, parameters, memory, folder."""
    options, dataset, val_dataset = trainer.options, trainer.dataset, trainer.val_dataset
    every = f"every {options.save_interval} iterations"
    evaluated = f"; {len(val_dataset)} to evaluate {every}" if val_dataset else "; none to evaluate"
    classes = dataset.classes

    statistics = ("._mean", "._variance")  # which Paddle counts among the parameters
    parameters = [p for name, p in trainer.model.named_parameters() if not name.endswith(statistics)]
    count, trained = (
        sum(p.size for p in some) for some in (parameters, [p for p in parameters if not p.stop_gradient])
    )
    frozen = "" if trained == count else f", {trained / 1e6:.2f} million of them trained, the others frozen"

    return [
        f"device: {_device()}, {options.precision}, Paddle {PADDLE_VERSION}",
        f"images: {len(dataset)} an epoch, {trainer.images} an iteration, {options.iters} iterations "
        f"({options.iters * trainer.images / len(dataset):.1f} epochs){evaluated}",
        f"classes: {len(classes)} ({listed(classes.names)})",
        f"parameters: {count / 1e6:.2f} million{frozen}",
        f"memory: {_gigabytes(peak_memory_bytes())} in use before the first iteration{_of_all()}",
        f"folder: {options.save_dir}, a checkpoint {every}",
    ]


def ending(trainer: Trainer, duration: str, commands: Sequence[str]) -> list[str]:
    """At most six lines: how far and how long, the best score and where, memory, what to run next.

    Args:
        duration: of the run, or of this part of it.
        commands: to run next, with {folder} where that of the best weights stands.
    """
    state, options = trainer.state, trainer.options
    early = f", ended early as {trainer.why_ended}" if trainer.why_ended else ""
    lines = [f"done: iteration {state.iteration} of {options.iters} in {duration}{early}"]

    folder = best_folder(trainer)
    if state.best_score is not None:
        lines.append(f"best: mIoU {state.best_score:.4f} at iteration {state.best_iteration}, in {folder}")
    else:
        lines.append(f"weights: not evaluated, in {folder}")
    lines.append(f"memory: {_gigabytes(peak_memory_bytes())} at most{_of_all()}")
    return [*lines, *(f"next: {command.format(folder=folder)}" for command in commands)]


def best_folder(trainer: Trainer) -> Path:
    """The checkpoint with the best score, where one of this run is in its folder; else the last one."""
    best = trainer.options.save_dir / "best_model"
    evaluated = trainer.state.best_score is not None and best.is_dir()
    return best if evaluated else trainer.options.save_dir / f"iter_{trainer.state.iteration}"


def _device() -> str:
    count = world_size()
    processes = f"{count} processes, each on " if count > 1 else ""
    if on_gpu():
        return f"{processes}{paddle.device.get_device()} ({paddle.device.cuda.get_device_properties().name})"
    return f"{processes}cpu ({threads()} thread{'s' * (threads() > 1)})"


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _of_all() -> str:
    total = total_memory_bytes()
    return f", of {_gigabytes(total)}" if total else ""
