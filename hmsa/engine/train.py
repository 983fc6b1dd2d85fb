# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
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
from hmsa.engine.fixed_images import FixedImages
from hmsa.engine.log import SilentLog
from hmsa.engine.progress import Failures, Meter, timed
from hmsa.engine.step import Step, prepare_gpu, statistics, step_seeds
from hmsa.engine.watch import SAME_ANSWERS, EarlyStopping, advice_on_one_answer, only_answer
from hmsa.errors import DataError, Interrupted
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.network import NetworkInTraining
from hmsa.losses import WeightedLoss
from hmsa.models.hierarchical import Network
from hmsa.optim import EMA
from hmsa.report import records
from hmsa.report.result import Evaluation, versions
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
    log_images: int = 0  # of `val_dataset`, looked at after each evaluation
    nonfinite_limit: int = 10
    ema_decay: Optional[float] = None  # of the averaged weights; None is without
    class_weights: Optional[list[float]] = None  # that the losses take, for the checkpoints
    config: str = ""  # resolved YAML, kept in every checkpoint


@dataclass(eq=False)
class Trainer:
    """A training run, made from its parts. Every rank makes one and calls the same methods.

    With `val_dataset`, each checkpoint is evaluated, and the best one by mean IoU is kept as `best_model`; with
    `early_stopping` too, an evaluation may be the last. With `options.ema_decay`, it is the averaged weights that are
    evaluated, and they are saved beside the others.

    Raises:
        UsageError: this device does not train in `options.precision`.
    """

    model: nn.Layer
    loss: WeightedLoss
    optimizer: paddle.optimizer.Optimizer
    scheduler: paddle.optimizer.lr.LRScheduler
    dataset: SegmentationDataset
    options: TrainOptions
    val_dataset: Optional[SegmentationDataset] = None
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    early_stopping: Optional[EarlyStopping] = None
    log: SilentLog = field(default_factory=SilentLog)

    def __post_init__(self) -> None:
        options = self.options
        prepare_gpu(options.precision, options.deterministic)
        self.step = Step(
            model=self.model,
            loss=self.loss,
            optimizer=self.optimizer,
            accumulation=options.gradient_accumulation,
            precision=options.precision,
            recompute=getattr(self.model, "recompute", False),
        )

        self.ema = EMA(self.model, options.ema_decay) if options.ema_decay else None
        self.evaluated = NetworkInTraining(self.ema.model if self.ema else self.model, options.engine)
        images = options.log_images if self.val_dataset is not None and ranks.is_main() else 0
        self.fixed = FixedImages(self.val_dataset, images, self.inference) if self.val_dataset and images else None
        self.state = TrainingState(images=self.images, class_weights=options.class_weights)
        self.stop = StopRequest()

    @property
    def images(self) -> int:
        """Images that an iteration takes, on all ranks together."""
        return self.options.batch_size * self.options.gradient_accumulation * ranks.world_size()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            DataError: not a checkpoint, or one of another model.
        """
        self.state = checkpoint.resume(folder, model=self.model, optimizer=self.optimizer, ema=self.ema)
        if self.state.scaler is not None:
            self.step.scaler.load_state_dict(cast(Any, self.state.scaler))
        self.log.line(f"resumed from {folder} at iteration {self.state.iteration}")

        before, now = self.state.images, self.images
        if before not in (0, now):
            epochs = (self.state.iteration * images / len(self.dataset) for images in (before, now))
            self.log.line(
                f"an iteration takes {now} images, not {before}, as batch size, accumulation or the number of processes"
                " has changed: the position in the data moves from epoch {:.2f} to {:.2f}".format(*epochs)
            )
        self.state.images = now
        self.state.class_weights = self.options.class_weights

        averaged = self.state.ema_updates is not None
        if averaged and not self.ema:
            self.log.line(f"ema: the averaged weights in {folder} are left behind, as the recipe has no ema")
        if self.ema and not averaged:
            self.log.line(f"ema: {folder} has no averaged weights, so that the average starts from its weights")

    def train(self) -> TrainingState:
        """Train to `options.iters`, saving a checkpoint every `save_interval` iterations and at the end.

        An iteration whose loss or gradient is not finite changes nothing. SIGTERM and Ctrl-C, on any rank, end the run
        after the iteration, with a checkpoint.

        Raises:
            DataError: a sample cannot be used, the loss has not been finite for `nonfinite_limit` iterations in a row,
                or a checkpoint cannot be written.
            Interrupted: ended by a signal.
        """
        options, state = self.options, self.state
        if options.deterministic and not on_gpu():
            self.log.line("deterministic: changes nothing on a CPU, where the same run gives the same bits without it")

        # One image before the first iteration: an evaluation that does not fit into memory fails at once.
        if self.val_dataset is not None and state.iteration < options.iters:
            with self.evaluated() as network:
                self._evaluate(network, max_images=1)
                if self.fixed:
                    self.fixed.look(network, first=True)

        self.log.texts({"recipe": options.config, "environment": json.dumps(versions(), indent=2)})
        self.model.train()
        with self.stop, self._batches(state.iteration, options.iters) as loaded:
            if self.val_dataset is not None and state.to_evaluate:
                self._score()
            if not self.why_ended:
                self._loop(loaded)
        return self.state

    @property
    def why_ended(self) -> str:
        """What early stopping says of the evaluations up to now; empty if the run goes on."""
        if self.early_stopping is None or self.val_dataset is None or self.state.to_evaluate:
            return ""
        return self.early_stopping.reason(self.state.watched)

    def _batches(self, first: int, end: int) -> AbstractContextManager[Iterator[dict[str, Any]]]:
        """This rank's micro-batches of the iterations from `first` to before `end`."""
        indices = training_indices(
            first_iteration=first,
            iterations=end,
            batch_size=self.options.batch_size,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            accumulation=self.options.gradient_accumulation,
        )
        return contextlib.closing(batches(self.dataset, indices, self.options.num_workers))

    def _seeds(self, iteration: int) -> list[int]:
        return step_seeds(self.options.seed, iteration, self.options.gradient_accumulation)

    def _loop(self, loaded: Iterator[dict[str, Any]]) -> None:
        options, state = self.options, self.state
        meter, failures = Meter(), Failures()
        micro_batches = timed(loaded, meter)
        for iteration in range(state.iteration, options.iters):
            # Rate: that of this iteration, for the log.
            rate = self.optimizer.get_lr()

            # Backward: losses, and gradients averaged over micro-batches and ranks.
            outcome = self.step.backward(micro_batches, self._seeds(iteration))

            # Agree: whatever happened on one rank, all do the same.
            failed, unusable, stopping = ranks.any_rank(outcome.failed, not outcome.finite, bool(self.stop))

            # Update, or skip: an iteration without a finite loss and gradient changes nothing but the schedule.
            if unusable:
                self.step.skip(overflow=not failed)
                meter.skipped += 1
            else:
                self._update()
                meter.add(outcome.terms)
                failures = Failures()
            if failed:
                failures.add(outcome, iteration, self.log)
                if len(failures) == options.nonfinite_limit:
                    self._give_up(failures)
            self.scheduler.step()
            state.iteration = iteration + 1
            self.log.iteration(state.iteration)

            # Log: means since the last line.
            due = state.iteration % options.save_interval == 0 or state.iteration == options.iters
            if state.iteration % options.log_iters == 0 or due or stopping:
                self._report(meter, rate)
            if not (due or stopping):
                continue

            # Save: before the evaluation, so that a run that ends in it resumes with it.
            state.to_evaluate = due and self.val_dataset is not None
            self._save()
            if stopping:
                raise self._interrupted()

            # Evaluate: the checkpoint just saved, and end where that has been long without a gain.
            if state.to_evaluate:
                self._score()
                if self.why_ended:
                    return
            meter.reset()

    def _update(self) -> None:
        self.step.update()
        if self.ema:
            self.ema.update()

    def _folder(self, iteration: int) -> Path:
        return self.options.save_dir / f"iter_{iteration}"

    def _report(self, meter: Meter, rate: float) -> None:
        """Record the means since the last report: losses over all ranks, the rest of this one."""
        terms, *times = meter.report()
        skipped = meter.skipped
        meter.reset()
        everywhere = ranks.all_gather(terms)
        terms = {name: float(np.mean([of_rank[name] for of_rank in everywhere])) for name in terms}

        iteration = self.state.iteration
        epoch = iteration * self.images / len(self.dataset)
        record = records.of_training(iteration, epoch, rate, terms, times, peak_memory_bytes())
        self.log.record({**record, "skipped": skipped} if skipped else record)
        if terms.get("loss") == terms.get("grad_norm") == 0:
            self.log.line(
                "warning: nothing was learnt, as the loss and its gradient are 0: check whether the labels hold more "
                "than ignored pixels, and the crops more than padding"
            )

    def _save(self) -> None:
        """Write this iteration's checkpoint and delete the oldest ones."""
        networks = [self.model, self.ema.model] if self.ema else [self.model]
        ranks.broadcast(tensor for network in networks for tensor in statistics(network))
        self.log.flush()
        self.state.scaler = cast(Any, self.step.scaler.state_dict()) or None
        skipped = {
            path: why for of_rank in ranks.all_gather(dict(self.dataset.skipped)) for path, why in of_rank.items()
        }

        if ranks.is_main():
            checkpoint.save(
                self._folder(self.state.iteration),
                model=self.model,
                optimizer=self.optimizer,
                ema=self.ema,
                state=self.state,
                config=self.options.config,
            )
            checkpoint.prune(self.options.save_dir, self.options.keep_checkpoint_max)
            if skipped:
                checkpoint.list_skipped(self.options.save_dir, skipped)
        ranks.barrier()

    def _evaluate(self, network: Network, **options: Any) -> Evaluation:
        """The scores of `network`, see `hmsa.engine.evaluate.evaluate`."""
        assert self.val_dataset is not None
        loss = self.loss.of_one
        return evaluate(network, self.val_dataset, self.inference, loss=loss, progress=False, **options)

    def _score(self) -> None:
        """Evaluate the checkpoint just saved, note the best mean IoU, and keep the checkpoint if it is the best.

        An evaluation that a signal ends stays noted as to be done.
        """
        state = self.state
        try:
            with self.evaluated() as network:
                found = self._evaluate(network, num_workers=self.options.num_workers, stop=self._counting())
                attention = self._look(network)
        except InterruptedError:
            raise self._interrupted() from None
        scores = found.scores
        if state.best_score is None or scores["mean_iou"] > state.best_score:
            state.best_score, state.best_iteration = scores["mean_iou"], state.iteration
        state.loss = None if np.isnan(scores["loss"]) else scores["loss"]
        if self.early_stopping:
            state.watched = self.early_stopping.watch(state.watched, scores, state.iteration)

        best = {"mean_iou": state.best_score, "iteration": state.best_iteration}
        self.log.record({**records.of_evaluation(state.iteration, found, attention), "best": best})
        self._look_at_answers(found)
        self.log.flush()

        state.to_evaluate = False
        if ranks.is_main():
            checkpoint.write_state(self._folder(state.iteration), state)
            if state.best_iteration == state.iteration:
                checkpoint.keep_as_best(self._folder(state.iteration))
        ranks.barrier()

    def _counting(self) -> Callable[[], bool]:
        """Whether to leave off, asked before each image of an evaluation, which the log counts."""
        assert self.val_dataset is not None
        another = self.log.counting(-(-len(self.val_dataset) // ranks.world_size()))

        def stop() -> bool:
            another()
            return bool(self.stop)

        return stop

    def _look(self, network: Network) -> dict[str, dict[str, float]]:
        """Look at the fixed images, and show them where there is somebody to look."""
        if not self.fixed:
            return {}
        show = partial(self.log.picture, self.state.iteration) if self.log.shows_pictures else None
        return self.fixed.look(network, show)

    def _look_at_answers(self, found: Evaluation) -> None:
        """Say so if every evaluation for some time has found one class everywhere."""
        confusion = found.scores["confusion_matrix"]
        answer = only_answer(confusion)
        self.state.same_answers = 0 if answer is None else self.state.same_answers + 1
        if answer is not None and self.state.same_answers % SAME_ANSWERS == 0:
            self.log.line(advice_on_one_answer(found.class_names[answer], confusion))

    def _interrupted(self) -> Interrupted:
        """The end of the run by a signal, which may have reached another rank only."""
        number = self.stop.number or signal.SIGTERM
        return Interrupted(
            f"ended by {signal.Signals(number).name} after iteration {self.state.iteration}, saved in "
            f"{self._folder(self.state.iteration)}; resume from there to go on",
            number,
        )

    def _give_up(self, failures: Failures) -> NoReturn:
        """Save the run as it stood before `failures`, and raise DataError."""
        iteration = min(failures)
        if iteration:
            self.scheduler.step(iteration)
            self.state = self.state.model_copy(update={"iteration": iteration, "to_evaluate": False})
            self._save()

        files = [path for paths in failures.values() for path in paths]
        more = f" and {len(files) - 8} more" if len(files) > 8 else ""
        again = f"resume from {self._folder(iteration)}, which is from before them," if iteration else "start again"
        raise DataError(
            f"expected a finite loss, found none in {len(failures)} iterations in a row from iteration {iteration + 1} "
            f"on, with the images {', '.join(files[:8])}{more}; look at them, and {again} with a lower "
            "lr_scheduler.learning_rate or with optimizer.clip_grad_norm"
        )

    def plan_memory(self) -> str:
        """Take two training steps (the second has the optimizer's state too) and evaluate one image; nothing is saved.

        Returns:
            A line each: the peak of this process, and what it is a peak of.
        """
        self.model.train()
        with self._batches(0, 2) as loaded:
            for iteration in range(2):
                self.step.backward(loaded, self._seeds(iteration))
                self._update()
        lines = [f"a training step with batch_size {self.options.batch_size}: {_share_of_memory()}"]

        if self.val_dataset is not None:
            release_unused()
            alone = reset_peak()
            with self.evaluated() as network:
                self._evaluate(network, max_images=1)
                if self.fixed:
                    self.fixed.look(network, first=True)
            what = "evaluating one image between steps" if alone else "steps, and evaluating one image between them"
            lines.append(f"{what}: {_share_of_memory()}")
        return "\n".join(lines)


def _share_of_memory() -> str:
    peak, total = peak_memory_bytes() / 2**30, total_memory_bytes() / 2**30
    return f"{peak:.2f} GiB at most, of {total:.2f} GiB" if total else f"{peak:.2f} GiB at most"
