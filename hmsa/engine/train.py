# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Optional, cast

import numpy as np
import paddle
from paddle import nn

from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches, training_indices
from hmsa.distributed import ranks
from hmsa.engine import checkpoint
from hmsa.engine.checkpoint import TrainingState
from hmsa.engine.evaluate import evaluate
from hmsa.engine.log import SilentLog, duration
from hmsa.engine.progress import Failures, Meter, timed
from hmsa.engine.step import Step, check_precision, prepare_gpu, statistics, step_seeds
from hmsa.errors import DataError, Interrupted
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.network import NetworkInTraining
from hmsa.losses import WeightedLoss
from hmsa.system.device import on_gpu
from hmsa.system.memory import peak_memory_bytes, release_unused, reset_peak, total_memory_bytes
from hmsa.system.signals import StopRequest


@dataclass(frozen=True)
class TrainOptions:
    """How long, how much at a time, and where to. Counts are per process where nothing else is said."""

    iters: int
    batch_size: int
    save_dir: Path
    gradient_accumulation: int = 1
    precision: str = "fp32"
    deterministic: bool = False  # on a GPU
    engine: str = "eager"  # of evaluations
    seed: int = 0
    num_workers: int = 0
    log_iters: int = 10
    save_interval: int = 1000
    keep_checkpoint_max: int = 5
    nonfinite_limit: int = 10
    config: str = ""  # resolved YAML, kept in every checkpoint


def make_step(
    model: nn.Layer, loss: WeightedLoss, optimizer: paddle.optimizer.Optimizer, options: TrainOptions
) -> Step:
    """The step that `options` describe."""
    prepare_gpu(options.precision, options.deterministic)
    check_precision(options.precision)
    return Step(
        model=model,
        loss=loss,
        optimizer=optimizer,
        accumulation=options.gradient_accumulation,
        precision=options.precision,
        recompute=getattr(model, "recompute", False),
    )


def train(
    *,
    model: nn.Layer,
    loss: WeightedLoss,
    optimizer: paddle.optimizer.Optimizer,
    scheduler: paddle.optimizer.lr.LRScheduler,
    dataset: SegmentationDataset,
    options: TrainOptions,
    log: SilentLog,
    val_dataset: Optional[SegmentationDataset] = None,
    inference: Optional[InferenceOptions] = None,
    resume_from: Optional[Path] = None,
) -> TrainingState:
    """Train to `options.iters`, saving a checkpoint every `save_interval` iterations and at the end.

    With `val_dataset`, each checkpoint is evaluated and the best one by mean IoU is kept as `best_model`; one image
    is evaluated before the first iteration, so that an evaluation that does not fit into memory fails at once.

    An iteration whose loss or gradient is not finite changes nothing. SIGTERM and Ctrl-C, on any rank, end the run
    after the iteration, with a checkpoint.

    Raises:
        DataError: a sample cannot be used, the loss has not been finite for `nonfinite_limit` iterations in a row, or a
            checkpoint cannot be written.
        Interrupted: ended by a signal.
    """
    state = TrainingState()
    if resume_from is not None:
        state = checkpoint.resume(resume_from, model=model, optimizer=optimizer)
        log.line(f"resumed from {resume_from} at iteration {state.iteration}")
    step = make_step(model, loss, optimizer, options)
    if options.deterministic and not on_gpu():
        log.line("deterministic: changes nothing on a CPU, where the same run gives the same bits without it")
    if state.scaler is not None:
        step.scaler.load_state_dict(cast(Any, state.scaler))
    inference = inference or InferenceOptions()
    network = NetworkInTraining(model, options.engine)
    if val_dataset is not None and state.iteration < options.iters:
        with network() as now:
            evaluate(now, val_dataset, inference, max_images=1, progress=False)
    model.train()

    indices = training_indices(
        first_iteration=state.iteration,
        iterations=options.iters,
        batch_size=options.batch_size,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        accumulation=options.gradient_accumulation,
    )
    with StopRequest() as stop, contextlib.closing(batches(dataset, indices, options.num_workers)) as loaded:
        run = _Run(
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            dataset=dataset,
            val_dataset=val_dataset,
            inference=inference,
            network=network,
            step=step,
            options=options,
            log=log,
            state=state,
            stop=stop,
        )
        run.go_on(loaded)
    return state


@dataclass
class _Run:
    """The loop, and what it does now and then. The methods must be called by all ranks."""

    model: nn.Layer
    optimizer: paddle.optimizer.Optimizer
    scheduler: paddle.optimizer.lr.LRScheduler
    dataset: SegmentationDataset
    val_dataset: Optional[SegmentationDataset]
    inference: InferenceOptions
    network: NetworkInTraining  # the model, for evaluations
    step: Step
    options: TrainOptions
    log: SilentLog
    state: TrainingState
    stop: StopRequest

    def go_on(self, loaded: Iterator[dict[str, Any]]) -> None:
        """Train from where `state` stands to the end, on the micro-batches `loaded`."""
        options, state, step = self.options, self.state, self.step
        if self.val_dataset is not None and state.to_evaluate:
            self.score()
        meter, failures = Meter(), Failures()
        micro_batches = timed(loaded, meter)
        for iteration in range(state.iteration, options.iters):
            rate = self.optimizer.get_lr()
            outcome = step.backward(micro_batches, step_seeds(options.seed, iteration, options.gradient_accumulation))
            failed, unusable, stopping = ranks.any_rank(outcome.failed, not outcome.finite, bool(self.stop))
            if unusable:
                step.skip(overflow=not failed)
                meter.skipped += 1
            else:
                step.update()
                meter.add(outcome.terms)
                failures = Failures()
            if failed:
                failures.add(outcome, iteration, self.scheduler, self.log)
                if len(failures) == options.nonfinite_limit:
                    self.give_up(failures)
            self.scheduler.step()
            state.iteration = iteration + 1

            due = state.iteration % options.save_interval == 0 or state.iteration == options.iters
            if state.iteration % options.log_iters == 0 or due or stopping:
                self.report(meter, rate)
            if due or stopping:
                state.to_evaluate = due and self.val_dataset is not None
                self.save()
                if stopping:
                    raise self.interrupted()
                if state.to_evaluate:
                    self.score()
                meter.reset()

    def folder(self, iteration: int) -> Path:
        """Where the checkpoint of an iteration is."""
        return self.options.save_dir / f"iter_{iteration}"

    def report(self, meter: Meter, rate: float) -> None:
        """Print and record the means since the last report: losses over all ranks, the rest of this one."""
        options, iteration = self.options, self.state.iteration
        terms, data_seconds, seconds = meter.report()
        everywhere = ranks.all_gather(terms)
        terms = {name: float(np.mean([of_rank[name] for of_rank in everywhere])) for name in terms}
        skipped = f"skipped {meter.skipped}, " if meter.skipped else ""
        meter.reset()
        samples = iteration * options.batch_size * options.gradient_accumulation * ranks.world_size()
        memory = peak_memory_bytes()
        curves = {f"train/{name}": value for name, value in terms.items()}
        curves.update({"train/lr": rate, "train/data_seconds": data_seconds, "train/step_seconds": seconds})
        self.log.scalars(iteration, {**curves, "train/memory_bytes": memory})
        total, norm = terms.pop("loss", np.nan), terms.pop("grad_norm", np.nan)
        self.log.line(
            f"[TRAIN] epoch {samples / len(self.dataset):.2f}, iter {iteration}/{options.iters}, loss {total:.4f}, "
            f"grad norm {norm:.4f}, {skipped}lr {rate:.6f}, data {data_seconds:.3f} s, step {seconds:.3f} s, "
            f"memory {memory / 2**30:.2f} GiB, ETA {duration(seconds * (options.iters - iteration))} | "
            + " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        )
        if total == norm == 0:
            self.log.line(
                "warning: nothing was learnt, as the loss and its gradient are 0: check whether the labels hold more "
                "than ignored pixels, and the crops more than padding"
            )

    def save(self) -> None:
        """Write this iteration's checkpoint and delete the oldest ones."""
        ranks.broadcast(statistics(self.model))
        self.log.flush()
        self.state.scaler = cast(Any, self.step.scaler.state_dict()) or None
        skipped = {
            path: why for of_rank in ranks.all_gather(dict(self.dataset.skipped)) for path, why in of_rank.items()
        }
        if ranks.is_main():
            checkpoint.save(
                self.folder(self.state.iteration),
                model=self.model,
                optimizer=self.optimizer,
                state=self.state,
                config=self.options.config,
            )
            checkpoint.prune(self.options.save_dir, self.options.keep_checkpoint_max)
            if skipped:
                checkpoint.list_skipped(self.options.save_dir, skipped)
        ranks.barrier()

    def score(self) -> None:
        """Evaluate the checkpoint just saved, note the best mean IoU, and keep the checkpoint if it is the best.

        An evaluation that a signal ends stays noted as to be done.
        """
        assert self.val_dataset is not None
        state = self.state
        try:
            with self.network() as network:
                found = evaluate(
                    network,
                    self.val_dataset,
                    self.inference,
                    num_workers=self.options.num_workers,
                    stop=lambda: bool(self.stop),
                )
        except InterruptedError:
            raise self.interrupted() from None
        scores = found.scores
        if state.best_score is None or scores["mean_iou"] > state.best_score:
            state.best_score, state.best_iteration = scores["mean_iou"], state.iteration
        self.log.line(
            f"[EVAL] iter {state.iteration}, {found.images} images in {found.seconds:.1f} s, "
            f"mIoU {scores['mean_iou']:.4f}, over classes present {scores['mean_iou_present']:.4f}, "
            f"accuracy {scores['pixel_accuracy']:.4f}, best mIoU {state.best_score:.4f} at iter {state.best_iteration}"
        )
        self.log.scalars(state.iteration, found.curves)
        self.log.flush()
        state.to_evaluate = False
        if ranks.is_main():
            checkpoint.write_state(self.folder(state.iteration), state)
            if state.best_iteration == state.iteration:
                checkpoint.keep_as_best(self.folder(state.iteration))
        ranks.barrier()

    def interrupted(self) -> Interrupted:
        """The end of the run by a signal, which may have reached another rank only."""
        number = self.stop.number or signal.SIGTERM
        return Interrupted(
            f"ended by {signal.Signals(number).name} after iteration {self.state.iteration}, saved in "
            f"{self.folder(self.state.iteration)}; the same command with --resume_model auto goes on",
            number,
        )

    def give_up(self, failures: Failures) -> NoReturn:
        """Save the run as it stood before `failures`, and raise DataError."""
        iteration = failures.iterations_before
        if iteration:
            self.scheduler.set_state_dict(failures.schedule_before)
            self.state = replace(self.state, iteration=iteration, to_evaluate=False)
            self.save()
        files = [path for paths in failures.files for path in paths]
        more = f" and {len(files) - 8} more" if len(files) > 8 else ""
        again = f"resume from {self.folder(iteration)}, which is from before them," if iteration else "start again"
        raise DataError(
            f"expected a finite loss, found none in {len(failures)} iterations in a row from iteration {iteration + 1} "
            f"on, with the images {', '.join(files[:8])}{more}; look at them, and {again} with a lower "
            "--learning_rate or with optimizer.clip_grad_norm"
        )


def plan_memory(
    *,
    model: nn.Layer,
    loss: WeightedLoss,
    optimizer: paddle.optimizer.Optimizer,
    dataset: SegmentationDataset,
    options: TrainOptions,
    val_dataset: Optional[SegmentationDataset] = None,
    inference: Optional[InferenceOptions] = None,
) -> str:
    """Take two training steps (the second has the optimizer's state too) and evaluate one image; nothing is saved.

    Returns:
        A line each: the peak of this process, and what it is a peak of.
    """
    step = make_step(model, loss, optimizer, options)
    model.train()
    indices = training_indices(
        first_iteration=0, iterations=2, batch_size=options.batch_size, accumulation=options.gradient_accumulation
    )
    with contextlib.closing(batches(dataset, indices, options.num_workers)) as loaded:
        for iteration in range(2):
            step.backward(loaded, step_seeds(options.seed, iteration, options.gradient_accumulation))
            step.update()
    lines = [f"a training step with batch_size {options.batch_size}: {_share_of_memory()}"]
    if val_dataset is not None:
        release_unused()
        alone = reset_peak()
        with NetworkInTraining(model, options.engine)() as network:
            evaluate(network, val_dataset, inference or InferenceOptions(), max_images=1, progress=False)
        what = "evaluating one image between steps" if alone else "steps, and evaluating one image between them"
        lines.append(f"{what}: {_share_of_memory()}")
    return "\n".join(lines)


def _share_of_memory() -> str:
    peak, total = peak_memory_bytes() / 2**30, total_memory_bytes() / 2**30
    return f"{peak:.2f} GiB at most, of {total:.2f} GiB" if total else f"{peak:.2f} GiB at most"
