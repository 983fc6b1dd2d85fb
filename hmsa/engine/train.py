# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional, cast

import numpy as np
import paddle
from paddle import Tensor, nn

from hmsa import distributed
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.loader import batches, training_indices
from hmsa.deploy.engines import NetworkInTraining
from hmsa.engine import checkpoint
from hmsa.engine.checkpoint import TrainingState
from hmsa.engine.evaluate import evaluate
from hmsa.engine.inference import InferenceOptions
from hmsa.errors import DataError, Interrupted, UsageError
from hmsa.log import SilentLog, duration
from hmsa.losses import WeightedLoss
from hmsa.memory import (
    as_tensor,
    on_gpu,
    peak_memory_bytes,
    release_unused,
    reset_peak,
    total_memory_bytes,
    use_one_heap,
)
from hmsa.models.hierarchical import FLOAT32_OPS
from hmsa.signals import StopRequest

SMALLEST_LOSS_SCALE = 1.0
"""Of fp16: gradients that overflow at this scale would do so at any."""


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


class Outcome(NamedTuple):
    """What a forward and backward pass over an iteration's micro-batches gave on this rank."""

    terms: dict[str, Tensor]  # means of the total "loss", every term of it, and "grad_norm"
    finite: bool  # whether loss and gradient are numbers, so that the step can be taken
    failed: bool  # not finite, and loss scaling is no excuse
    files: list[str]  # pictures of the batch


class Step:
    """An optimizer step in two halves: micro-batches in, loss terms out (`backward`); parameters changed (`update`).

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
        use_one_heap()
        self.loss = loss
        self.optimizer = optimizer
        self.accumulation = accumulation
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16", init_loss_scaling=2.0**14)
        self._parameters = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
        self._statistics = statistics(model)
        self._autocast = autocast_options(precision)
        distributed.meet()  # DataParallel hands out the main rank's parameters
        self._network = paddle.DataParallel(model) if distributed.world_size() > 1 else model
        # Gradients are summed after the backward pass where DataParallel cannot do it during the pass: recomputed parts
        # hand theirs in one by one, which it does not expect, and on CPUs gloo gives up on a rank that is 30 s late.
        self._reduce_at_end = distributed.world_size() > 1 and (recompute or not on_gpu())

    def backward(self, micro_batches: Iterator[dict[str, Any]], seeds: Iterable[int]) -> Outcome:
        """Gradients of the next `accumulation` micro-batches, each with its seed for dropout."""
        self._statistics_before = [tensor.clone() for tensor in self._statistics]
        terms: dict[str, Tensor] = {}
        files: list[str] = []
        for last, seed in zip([False] * (self.accumulation - 1) + [True], seeds):
            batch = next(micro_batches)
            files += batch["image_path"]
            paddle.seed(seed)
            with contextlib.nullcontext() if last and not self._reduce_at_end else self._without_reduction():
                with paddle.amp.auto_cast(**self._autocast):
                    outputs = self._network(as_tensor(batch["img"]))
                release_unused()
                value, parts = self.loss(outputs, as_tensor(batch["label"]))
                del outputs
                release_unused()
                self.scaler.scale(value / self.accumulation).backward()
            for name, term in {"loss": value, **parts}.items():
                part = term.detach() / self.accumulation
                terms[name] = terms[name] + part if name in terms else part
        if self._reduce_at_end:
            from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

            distributed.meet()
            fused_allreduce_gradients(self._parameters, None)
        # The gradients are still scaled: the scaler unscales them in its `step`, whether that changes anything or not.
        terms["grad_norm"] = gradient_norm(self._parameters) / self.scaler.scale(paddle.ones([1])).squeeze()
        loss, norm = np.isfinite([float(terms["loss"]), float(terms["grad_norm"])])
        failed = not (loss and (norm or self._overflowed()))
        return Outcome(terms, finite=loss and norm, failed=failed, files=files)

    def update(self) -> None:
        """Change the parameters by the gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._end()

    def skip(self, *, overflow: bool) -> None:
        """Leave the model as it was before `backward`, which spoils running statistics when it meets infinity.

        Args:
            overflow: whether the gradients overflowed under loss scaling, on all ranks: the scale falls.
        """
        for tensor, before in zip(self._statistics, self._statistics_before):
            tensor.set_value(before)
        if overflow:
            self.scaler.step(self.optimizer)  # changes nothing where it meets infinity, and only so is that noted
            self.scaler.update()
        self._end()

    def _overflowed(self) -> bool:
        """Whether the gradients are not finite for the loss scaling's sake, so that a smaller scale may help."""
        scale = self.scaler.state_dict().get("scale", [SMALLEST_LOSS_SCALE])[0]
        if scale <= SMALLEST_LOSS_SCALE:
            return False
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return not all(bool(paddle.isfinite(gradient).all()) for gradient in gradients)

    def _end(self) -> None:
        self.optimizer.clear_grad(set_to_zero=False)  # freed, not kept as zeros through the next forward pass
        release_unused()

    def _without_reduction(self) -> Any:
        parallel = isinstance(self._network, paddle.DataParallel)
        return self._network.no_sync() if parallel else contextlib.nullcontext()


def gradient_norm(parameters: Iterable[Any]) -> Tensor:
    """Euclidean norm, over all tensors together, of the gradients; float32 []."""
    norms = [paddle.linalg.norm(p.grad.astype("float32")) for p in parameters if p.grad is not None]
    return paddle.linalg.norm(paddle.stack(norms))


class Meter:
    """Means since the last report. Values stay on the device until then."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._sum: Optional[Tensor] = None
        self._names: list[str] = []
        self._count = 0
        self.skipped = 0  # steps without values
        self.data_seconds = 0.0
        self._start = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the terms of one step."""
        stacked = paddle.stack([value.astype("float32").reshape([]) for value in values.values()])
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._names = list(values)
        self._count += 1

    def report(self) -> tuple[dict[str, float], float, float]:
        """Mean of every term over the steps that had values, and mean seconds a step: for data, and in all."""
        means = {} if self._sum is None else dict(zip(self._names, map(float, (self._sum / self._count).numpy())))
        steps = self._count + self.skipped
        return means, self.data_seconds / steps, (time.perf_counter() - self._start) / steps


def autocast_options(precision: str) -> dict[str, Any]:
    """Arguments of `paddle.amp.auto_cast` for "fp32" (off), "bf16" or "fp16"."""
    return {
        "enable": precision != "fp32",
        "level": "O1",
        "dtype": "float16" if precision == "fp16" else "bfloat16",
        "custom_black_list": set(FLOAT32_OPS),
    }


def check_precision(precision: str) -> None:
    """UsageError unless this device really computes in "bf16" or "fp16"; Paddle itself would go on in float32."""
    if precision == "fp32":
        return
    one = paddle.ones([1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it computes in float32, it warns
        with paddle.amp.auto_cast(**autocast_options(precision)):
            found = paddle.matmul(one, one).dtype
    if found == paddle.float32:
        raise UsageError(
            f"expected a device on which Paddle trains in {precision}, found {paddle.device.get_device()}, where it "
            "computes in float32 all the same: use precision fp32, or a GPU (bf16 from Ampere on, fp16 from Volta on)"
        )


def prepare_gpu(precision: str, deterministic: bool) -> None:
    """On a GPU: measure cuDNN's algorithms once for the crop's fixed size, and where convolutions run in half
    precision let Paddle keep their tensors channels last, as tensor cores want them.

    Args:
        deterministic: instead, take only algorithms of cuDNN's that give the same bits each time.
    """
    if on_gpu():
        paddle.set_flags({"FLAGS_cudnn_exhaustive_search": not deterministic})
        paddle.set_flags({"FLAGS_cudnn_deterministic": deterministic})
        paddle.incubate.autotune.set_config({"layout": {"enable": precision != "fp32"}})


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
            evaluate(now, val_dataset, inference, most=1, progress=False)
    model.train()

    indices = training_indices(
        first_iteration=state.iteration,
        iterations=options.iters,
        batch_size=options.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
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


class Failures:
    """Iterations in a row whose loss or gradient was not finite, and where the run stood before them."""

    def __init__(self) -> None:
        self.iterations_before = 0
        self.schedule_before: Any = {}
        self.files: list[list[str]] = []  # pictures an iteration, of the ranks on which it failed

    def __len__(self) -> int:
        return len(self.files)

    def add(self, outcome: Outcome, iteration: int, scheduler: paddle.optimizer.lr.LRScheduler, log: SilentLog) -> None:
        """Note iteration number `iteration`, counted from 0, before the schedule goes on. All ranks must call this."""
        if not self.files:
            self.iterations_before, self.schedule_before = iteration, copy.deepcopy(scheduler.state_dict())
        values = {name: float(outcome.terms[name]) for name in ("loss", "grad_norm")}
        failed = [rank for rank in distributed.gather((outcome.failed, values, outcome.files)) if rank[0]]
        self.files.append([path for *_, files in failed for path in files])
        _, values, _ = failed[0]
        log.line(
            f"[SKIP] iter {iteration + 1}, loss {values['loss']:g}, grad norm {values['grad_norm']:g}: nothing "
            f"changed; pictures {', '.join(self.files[-1])}"
        )


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
            failed, unusable, stopping = distributed.any_rank(outcome.failed, not outcome.finite, bool(self.stop))
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
        everywhere = distributed.gather(terms)
        terms = {name: float(np.mean([of_rank[name] for of_rank in everywhere])) for name in terms}
        skipped = f"skipped {meter.skipped}, " if meter.skipped else ""
        meter.reset()
        samples = iteration * options.batch_size * options.gradient_accumulation * distributed.world_size()
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

    def save(self) -> None:
        """Write this iteration's checkpoint and delete the oldest ones."""
        distributed.broadcast_from_main(statistics(self.model))
        self.log.flush()
        self.state.scaler = cast(Any, self.step.scaler.state_dict()) or None
        skipped = {
            path: why for of_rank in distributed.gather(dict(self.dataset.skipped)) for path, why in of_rank.items()
        }
        if distributed.is_main():
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
        distributed.meet()

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
        if state.best_score is None or scores.mean_iou > state.best_score:
            state.best_score, state.best_iteration = scores.mean_iou, state.iteration
        self.log.line(
            f"[EVAL] iter {state.iteration}, {found.pictures} pictures in {found.seconds:.1f} s, "
            f"mIoU {scores.mean_iou:.4f}, over classes present {scores.mean_iou_present:.4f}, "
            f"accuracy {scores.pixel_accuracy:.4f}, best mIoU {state.best_score:.4f} at iter {state.best_iteration}"
        )
        named = {"mIoU": scores.mean_iou, "mIoU_present": scores.mean_iou_present, "accuracy": scores.pixel_accuracy}
        self.log.scalars(state.iteration, {f"eval/{name}": value for name, value in named.items()})
        self.log.flush()
        state.to_evaluate = False
        if distributed.is_main():
            checkpoint.write_state(self.folder(state.iteration), state)
            if state.best_iteration == state.iteration:
                checkpoint.keep_as_best(self.folder(state.iteration))
        distributed.meet()

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
            f"on, with the pictures {', '.join(files[:8])}{more}; look at them, and {again} with a lower "
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
            step.backward(loaded, step_seeds(options.seed, iteration, options.gradient_accumulation))
            step.update()
    lines = [f"a training step with batch_size {options.batch_size}: {_share_of_memory()}"]
    if val_dataset is not None:
        release_unused()
        alone = reset_peak()
        with NetworkInTraining(model, options.engine)() as network:
            evaluate(network, val_dataset, inference or InferenceOptions(), most=1, progress=False)
        what = "evaluating one picture between steps" if alone else "steps, and evaluating one picture between them"
        lines.append(f"{what}: {_share_of_memory()}")
    return "\n".join(lines)


def _share_of_memory() -> str:
    peak, total = peak_memory_bytes() / 2**30, total_memory_bytes() / 2**30
    return f"{peak:.2f} GiB at most, of {total:.2f} GiB" if total else f"{peak:.2f} GiB at most"


def statistics(model: nn.Layer) -> list[Tensor]:
    """Running statistics of the normalisation layers, which every rank gathers for itself."""
    return [tensor for name, tensor in model.state_dict().items() if name.endswith(("._mean", "._variance"))]
