# SPDX-License-Identifier: Apache-2.0
"""Ranks: which process this is, and the few things processes do together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from hmsa.lifeline import Lifeline

if TYPE_CHECKING:
    from paddle import Tensor

_lifeline: Optional[Lifeline] = None


def rank() -> int:
    """Number of this process among all, over all machines; 0 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes there are; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def init() -> None:
    """Join the processes that `paddle.distributed.launch` started; does nothing for one process."""
    if world_size() > 1:
        import paddle.distributed as dist

        if not dist.is_initialized():
            dist.init_parallel_env()
        global _lifeline
        if _lifeline is None:
            host = os.environ["PADDLE_TRAINER_ENDPOINTS"].partition(":")[0]  # the main rank's comes first
            _lifeline = Lifeline(rank=rank(), world_size=world_size(), host=host, share=all_reduce_sum)


def done() -> None:
    """To be called last: from here on, the other ranks may be left to themselves."""
    if _lifeline is not None:
        _lifeline.done()


def fail(reason: str, *, certain: bool) -> None:
    """End all ranks with `reason`; `certain` if it is this rank's own, see `Lifeline.fail`."""
    if _lifeline is not None:
        _lifeline.fail(reason, certain=certain)


def all_reduce_sum(values: np.ndarray) -> np.ndarray:
    """Element-wise sum of int64 `values` over all processes; every process gets it."""
    if world_size() == 1:
        return values
    import paddle
    import paddle.distributed as dist

    total = paddle.to_tensor(values)
    dist.all_reduce(total)
    return total.numpy()


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any process; every process gets the answer."""
    return [bool(count) for count in all_reduce_sum(np.array(flags, np.int64))]


def gather(thing: Any) -> list[Any]:
    """What every process gives, in order of rank; every process gets it."""
    if world_size() == 1:
        return [thing]
    import paddle.distributed as dist

    things: list[Any] = []
    dist.all_gather_object(things, thing)
    return things


def from_main(thing: Any) -> Any:
    """The main process's `thing`."""
    return gather(thing)[0]


def broadcast_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, in place."""
    if world_size() > 1:
        import paddle.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import paddle.distributed as dist

        dist.barrier()
