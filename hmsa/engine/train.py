# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, cast

import numpy as np
import paddle
from paddle import Tensor, nn

from hmsa import distributed
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches, training_indices
from hmsa.deploy.engines import network_in_training
from hmsa.engine import checkpoint
from hmsa.engine.checkpoint import TrainingState
from hmsa.engine.evaluate import evaluate
from hmsa.engine.inference import InferenceOptions
from hmsa.errors import DataError, UsageError
from hmsa.log import SilentLog, duration
from hmsa.losses import WeightedLoss
from hmsa.memory import on_gpu, peak_memory_bytes, release_unused, reset_peak, total_memory_bytes, use_one_heap
from hmsa.models.hierarchical import FLOAT32_OPS


@dataclass(frozen=True)
class TrainOptions:
    """How long, how much at a time, and where to. Counts are per process where nothing else is said."""

    iters: int
    batch_size: int
    save_dir: Path
    gradient_accumulation: int = 1
    precision: str = "fp32"
    engine: str = "auto"  # of evaluations
    seed: int = 0
    num_workers: int = 0
    log_iters: int = 10
    save_interval: int = 1000
    keep_checkpoint_max: int = 5
    config: str = ""  # resolved YAML, kept in every checkpoint


class Step:
    """One optimizer step: micro-batches in, loss terms out, parameters changed.

    Gradients of the micro-batches are averaged, over the ranks as well.
    """

    def __init__(
        self,
        *,
        model: nn.Layer,
        loss: WeightedLoss,
        optimizer: paddle.optimizer.Optimizer,
        accumulation: int,
        precision: str,
        recompute: bool,
    ) -> None:
        if precision == "fp16" and not on_gpu():
            raise UsageError("--precision fp16 needs a GPU, found a CPU; use fp32 or bf16")
        use_one_heap()
        self.loss = loss
        self.optimizer = optimizer
        self.accumulation = accumulation
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=2.0**14)
        self._parameters = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
        self._autocast = {
            "enable": precision != "fp32",
            "level": "O1",
            "dtype": "float16" if precision == "fp16" else "bfloat16",
            "custom_black_list": set(FLOAT32_OPS),
        }
        self._network = paddle.DataParallel(model) if distributed.world_size() > 1 else model
        # Recomputed parts hand in their gradients one by one, which DataParallel does not expect: sum them ourselves.
        self._reduce_at_end = distributed.world_size() > 1 and recompute

    def __call__(self, micro_batches: Iterator[dict[str, Any]], seeds: Iterable[int]) -> dict[str, Tensor]:
        """Run `accumulation` micro-batches, each with its seed for dropout; returns the mean of every loss term."""
        total: dict[str, Tensor] = {}
        for last, seed in zip([False] * (self.accumulation - 1) + [True], seeds):
            batch = next(micro_batches)
            paddle.seed(seed)
            with contextlib.nullcontext() if last and not self._reduce_at_end else self._without_reduction():
                with paddle.amp.auto_cast(**self._autocast):
                    outputs = self._network(paddle.to_tensor(batch["img"]))
                release_unused()
                value, terms = self.loss(outputs, paddle.to_tensor(batch["label"]))
                del outputs
                release_unused()
                self.scaler.scale(value / self.accumulation).backward()
            for name, term in {"loss": value, **terms}.items():
                part = term.detach() / self.accumulation
                total[name] = total[name] + part if name in total else part
        if self._reduce_at_end:
            from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

            fused_allreduce_gradients(self._parameters, None)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad(set_to_zero=False)  # freed, not kept as zeros through the next forward pass
        release_unused()
        return total

    def _without_reduction(self) -> Any:
        parallel = isinstance(self._network, paddle.DataParallel)
        return self._network.no_sync() if parallel else contextlib.nullcontext()


class Meter:
    """Means since the last report. Values stay on the device until then."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._sum: Optional[Tensor] = None
        self._names: list[str] = []
        self._count = 0
        self.data_seconds = 0.0
        self._start = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the terms of one step."""
        stacked = paddle.stack([value.astype("float32").reshape([]) for value in values.values()])
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._names = list(values)
        self._count += 1

    def report(self) -> tuple[dict[str, float], float, float]:
        """Mean of every term, and mean seconds a step: for data, and in all."""
        assert self._sum is not None
        means = dict(zip(self._names, map(float, (self._sum / self._count).numpy())))
        return means, self.data_seconds / self._count, (time.perf_counter() - self._start) / self._count


def prepare_gpu(precision: str) -> None:
    """On a GPU: measure cuDNN's algorithms once for the crop's fixed size, and where convolutions run in half
    precision let Paddle keep their tensors channels last, as tensor cores want them."""
    if on_gpu():
        paddle.set_flags({"FLAGS_cudnn_exhaustive_search": True})
        paddle.incubate.autotune.set_config({"layout": {"enable": precision != "fp32"}})


def make_step(
    model: nn.Layer, loss: WeightedLoss, optimizer: paddle.optimizer.Optimizer, options: TrainOptions
) -> Step:
    """The step that `options` describe."""
    prepare_gpu(options.precision)
    return Step(
        model=model,
        loss=loss,
        optimizer=optimizer,
        accumulation=options.gradient_accumulation,
        precision=options.precision,
        recompute=getattr(model, "recompute", False),
    )


def step_seeds(seed: int, iteration: int, accumulation: int) -> list[int]:
    """Seeds of the random numbers inside the network, one a micro-batch, different on every rank."""
    keys = [(seed, iteration, micro, distributed.rank()) for micro in range(accumulation)]
    return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]


def timed(micro_batches: Iterator[dict[str, Any]], meter: Meter) -> Iterator[dict[str, Any]]:
    """The same batches; the time spent waiting for them goes to the meter."""
    while True:
        start = time.perf_counter()
        batch = next(micro_batches, None)
        meter.data_seconds += time.perf_counter() - start
        if batch is None:
            return
        yield batch


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

    With `val_dataset`, each checkpoint is evaluated and the best one by mean IoU is kept as `best_model`; one picture
    is evaluated before the first iteration, so that an evaluation that does not fit into memory fails at once.

    Raises:
        DataError: a sample cannot be used, the loss is no longer a number, or a checkpoint cannot be written.
    """
    state = TrainingState()
    if resume_from is not None:
        state = checkpoint.resume(resume_from, model=model, optimizer=optimizer)
        log.line(f"resumed from {resume_from} at iteration {state.iteration}")
    step = make_step(model, loss, optimizer, options)
    if state.scaler is not None:
        step.scaler.load_state_dict(cast(Any, state.scaler))
    if val_dataset is not None and state.iteration < options.iters:
        with network_in_training(model, options.engine) as network:
            evaluate(network, val_dataset, inference or InferenceOptions(), most=1, progress=False)
    model.train()

    indices = training_indices(
        first_iteration=state.iteration,
        iterations=options.iters,
        batch_size=options.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        accumulation=options.gradient_accumulation,
    )
    meter = Meter()
    with contextlib.closing(batches(dataset, indices, options.num_workers)) as loaded:
        micro_batches = timed(loaded, meter)
        for iteration in range(state.iteration, options.iters):
            rate = optimizer.get_lr()
            meter.add(step(micro_batches, step_seeds(options.seed, iteration, options.gradient_accumulation)))
            scheduler.step()
            state.iteration = iteration + 1

            saving = state.iteration % options.save_interval == 0 or state.iteration == options.iters
            if state.iteration % options.log_iters == 0 or saving:
                report(meter, state.iteration, rate, dataset=dataset, options=options, log=log)
            if saving:
                distributed.broadcast_from_main(buffers(model))
                if val_dataset is not None:
                    score(state, model, val_dataset, inference or InferenceOptions(), options=options, log=log)
                state.scaler = cast(Any, step.scaler.state_dict()) or None
                if distributed.is_main():
                    save(state, model, optimizer, options)
                distributed.barrier()
                meter.reset()
    return state


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
    """Take two training steps (the second has the optimizer's state too) and evaluate one picture; nothing is saved.

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
            step(loaded, step_seeds(options.seed, iteration, options.gradient_accumulation))
    lines = [f"a training step with batch_size {options.batch_size}: {_share_of_memory()}"]
    if val_dataset is not None:
        release_unused()
        reset_peak()
        with network_in_training(model, options.engine) as network:
            evaluate(network, val_dataset, inference or InferenceOptions(), most=1, progress=False)
        lines.append(f"evaluating one picture between steps: {_share_of_memory()}")
    return "\n".join(lines)


def _share_of_memory() -> str:
    peak, total = peak_memory_bytes() / 2**30, total_memory_bytes() / 2**30
    return f"{peak:.2f} GiB at most, of {total:.2f} GiB" if total else f"{peak:.2f} GiB at most"


def buffers(model: nn.Layer) -> list[Tensor]:
    """Running statistics of the normalisation layers, which every rank gathers for itself."""
    return [tensor for name, tensor in model.state_dict().items() if name.endswith(("._mean", "._variance"))]


def report(
    meter: Meter, iteration: int, rate: float, *, dataset: SegmentationDataset, options: TrainOptions, log: SilentLog
) -> None:
    """Print and record the means since the last report, and stop a run whose loss is no longer a number."""
    terms, data_seconds, seconds = meter.report()
    meter.reset()
    if not np.isfinite(terms["loss"]):
        raise DataError(
            f"expected a finite loss, found {terms['loss']} in the iterations up to {iteration}; resume from the last "
            "checkpoint with a lower --learning_rate, or with optimizer.clip_grad_norm"
        )
    samples = iteration * options.batch_size * options.gradient_accumulation * distributed.world_size()
    memory = peak_memory_bytes()
    log.line(
        f"[TRAIN] epoch {samples / len(dataset):.2f}, iter {iteration}/{options.iters}, loss {terms['loss']:.4f}, "
        f"lr {rate:.6f}, data {data_seconds:.3f} s, step {seconds:.3f} s, memory {memory / 2**30:.2f} GiB, "
        f"ETA {duration(seconds * (options.iters - iteration))} | "
        + " ".join(f"{name} {value:.4f}" for name, value in terms.items() if name != "loss")
    )
    curves = {f"train/{name}": value for name, value in terms.items()}
    curves.update({"train/lr": rate, "train/data_seconds": data_seconds, "train/step_seconds": seconds})
    log.scalars(iteration, {**curves, "train/memory_bytes": memory})


def score(
    state: TrainingState,
    model: nn.Layer,
    dataset: SegmentationDataset,
    inference: InferenceOptions,
    *,
    options: TrainOptions,
    log: SilentLog,
) -> None:
    """Evaluate and note the best mean IoU in `state`."""
    with network_in_training(model, options.engine) as network:
        found = evaluate(network, dataset, inference, num_workers=options.num_workers)
    scores = found.scores
    if state.best_score is None or scores.mean_iou > state.best_score:
        state.best_score, state.best_iteration = scores.mean_iou, state.iteration
    log.line(
        f"[EVAL] iter {state.iteration}, {found.pictures} pictures in {found.seconds:.1f} s, "
        f"mIoU {scores.mean_iou:.4f}, over classes present {scores.mean_iou_present:.4f}, "
        f"accuracy {scores.pixel_accuracy:.4f}, best mIoU {state.best_score:.4f} at iter {state.best_iteration}"
    )
    named = {"mIoU": scores.mean_iou, "mIoU_present": scores.mean_iou_present, "accuracy": scores.pixel_accuracy}
    log.scalars(state.iteration, {f"eval/{name}": value for name, value in named.items()})


def save(state: TrainingState, model: nn.Layer, optimizer: paddle.optimizer.Optimizer, options: TrainOptions) -> None:
    """Write this iteration's checkpoint, keep it as the best if it is, and delete the oldest ones."""
    folder = options.save_dir / f"iter_{state.iteration}"
    checkpoint.save(folder, model=model, optimizer=optimizer, state=state, config=options.config)
    if state.best_iteration == state.iteration:
        checkpoint.keep_as_best(folder)
    checkpoint.prune(options.save_dir, options.keep_checkpoint_max)
