# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: gradients of micro-batches, loss scaling, the update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from hmsa.distributed import ranks
from hmsa.losses import WeightedLoss
from hmsa.models import layers
from hmsa.models.hierarchical import FLOAT32_OPS
from hmsa.system.device import as_tensor, check_precision, on_gpu
from hmsa.system.memory import release_unused, use_one_heap

SMALLEST_LOSS_SCALE = 1.0
"""Of fp16: gradients that overflow at this scale would do so at any."""


class Outcome(NamedTuple):
    """What a forward and backward pass over an iteration's micro-batches gave on this rank."""

    terms: dict[str, Tensor]  # means of the total "loss", every term of it, and "grad_norm"
    finite: bool  # whether loss and gradient are numbers, so that the step can be taken
    failed: bool  # not finite, and loss scaling is no excuse
    files: list[str]  # images of the batch


@dataclass(eq=False)
class Step:
    """An optimizer step in two halves: micro-batches in, loss terms out (`backward`); parameters changed (`update`).

    Gradients of the micro-batches are averaged, over the ranks as well.
    """

    model: nn.Layer
    loss: WeightedLoss
    optimizer: paddle.optimizer.Optimizer
    accumulation: int
    precision: str
    recompute: bool

    def __post_init__(self) -> None:
        check_precision(self.precision)
        use_one_heap()
        layers.between_parts = release_unused
        self.scaler = paddle.amp.GradScaler(enable=self.precision == "fp16", init_loss_scaling=2.0**14)
        self._parameters = [parameter for parameter in self.model.parameters() if not parameter.stop_gradient]
        self._statistics = statistics(self.model)
        self._autocast = {
            "enable": self.precision != "fp32",
            "dtype": "float16" if self.precision == "fp16" else "bfloat16",
            "custom_black_list": set(FLOAT32_OPS),
        }
        ranks.barrier()  # DataParallel hands out the main rank's parameters
        self._network = paddle.DataParallel(self.model) if ranks.world_size() > 1 else self.model
        # Gradients are summed after the backward pass where DataParallel cannot do it during the pass: recomputed parts
        # hand theirs in one by one, which it does not expect, and on CPUs gloo gives up on a rank that is 30 s late.
        self._reduce_at_end = ranks.world_size() > 1 and (self.recompute or not on_gpu())

    def backward(self, micro_batches: Iterator[dict[str, Any]], seeds: Iterable[int]) -> Outcome:
        """Gradients of the next `accumulation` micro-batches, each with its seed for dropout."""
        self._statistics_before = [tensor.clone() for tensor in self._statistics]
        terms: dict[str, Tensor] = {}
        files: list[str] = []
        for last, seed in zip([False] * (self.accumulation - 1) + [True], seeds):
            batch = next(micro_batches)
            files += batch["image_path"]
            paddle.seed(seed)
            waits = isinstance(self._network, paddle.DataParallel) and (self._reduce_at_end or not last)
            with self._network.no_sync() if waits else contextlib.nullcontext():
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

            ranks.barrier()
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


def gradient_norm(parameters: Iterable[Any]) -> Tensor:
    """Euclidean norm, over all tensors together, of the gradients; float32 []."""
    norms = [paddle.linalg.norm(p.grad.astype("float32")) for p in parameters if p.grad is not None]
    return paddle.linalg.norm(paddle.stack(norms))


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


def step_seeds(seed: int, iteration: int, accumulation: int) -> list[int]:
    """Seeds of the random numbers inside the network, one a micro-batch, different on every rank."""
    keys = [(seed, iteration, micro, ranks.rank()) for micro in range(accumulation)]
    return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]


def statistics(model: nn.Layer) -> list[Tensor]:
    """Running statistics of the normalisation layers, which every rank gathers for itself."""
    return [tensor for name, tensor in model.state_dict().items() if name.endswith(("._mean", "._variance"))]
