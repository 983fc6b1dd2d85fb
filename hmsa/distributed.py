# SPDX-License-Identifier: Apache-2.0
"""Ranks: which process this is, and the few things processes do together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from paddle import Tensor


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


def all_reduce_sum(values: np.ndarray) -> np.ndarray:
    """Element-wise sum of int64 `values` over all processes; every process gets it."""
    if world_size() == 1:
        return values
    import paddle
    import paddle.distributed as dist

    total = paddle.to_tensor(values)
    dist.all_reduce(total)
    return total.numpy()


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
