# SPDX-License-Identifier: Apache-2.0
"""Ranks: which process this is, and the few things processes do together."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from hmsa.distributed.lifeline import START_SECONDS, Lifeline
from hmsa.errors import HmsaError

if TYPE_CHECKING:
    import numpy as np
    from paddle import Tensor

_lifeline: Optional[Lifeline] = None
Decided = TypeVar("Decided")


def rank() -> int:
    """Number of this process among all, over all machines; 0 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes there are; 1 without a launcher."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def join() -> None:
    """Connect to the other ranks, so that none waits for one that fails; to be called first of all. Loads no Paddle."""
    global _lifeline
    if world_size() > 1 and _lifeline is None:
        endpoints, master = os.environ["PADDLE_TRAINER_ENDPOINTS"], os.environ.get("PADDLE_MASTER", "")
        endpoint = endpoints.split(",")[0]  # the main rank's
        host, port = endpoint.rsplit(":", 1)
        # Paddle itself listens on PADDLE_MASTER alone, which is one of the endpoints if --ips gives them.
        port = int(port) + (endpoint == master)
        if os.environ.get("PADDLE_LOCAL_SIZE") == os.environ["PADDLE_TRAINERS_NUM"]:
            host = "127.0.0.1"  # all ranks are on this machine, and nobody else need reach them
        _lifeline = Lifeline(
            rank=rank(),
            world_size=world_size(),
            address=(host.strip("[]"), port),
            secret=" ".join([os.environ.get("HMSA_JOB_KEY", ""), endpoints, master]),
        )


def init() -> None:
    """Join the processes that `paddle.distributed.launch` started; does nothing for one process."""
    if world_size() > 1:
        import paddle
        import paddle.distributed as dist

        from hmsa.system.device import on_gpu

        join()
        assert _lifeline is not None
        if not paddle.device.is_compiled_with_cuda() and not paddle.device.is_compiled_with_xpu():
            # The launcher says so itself, unless CUDA_VISIBLE_DEVICES is set.
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        if not dist.is_initialized():
            barrier()  # the next call takes a moment, in which Paddle holds the lock of the interpreter: no thread runs
            # With GPUs, NCCL connects them all in it, which can take long on many machines.
            faulthandler.dump_traceback_later(600 if on_gpu() else START_SECONDS, exit=True)
            dist.init_parallel_env()
            faulthandler.cancel_dump_traceback_later()


def barrier() -> None:
    """Wait until every process is here, as long as need be.

    Comes before every collective operation: gloo, which does them on CPUs, gives up on a process that is 30 s late.
    """
    if _lifeline is not None:
        _lifeline.barrier()


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
    import paddle.distributed as dist

    from hmsa.system.device import as_tensor

    barrier()
    total = as_tensor(values)
    dist.all_reduce(total)
    return total.numpy()


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any process; every process gets the answer."""
    import numpy as np

    return [bool(count) for count in all_reduce_sum(np.array(flags, np.int64))]


def all_gather(thing: Any) -> list[Any]:
    """What every process gives, in order of rank; every process gets it."""
    if world_size() == 1:
        return [thing]
    import paddle.distributed as dist

    barrier()
    things: list[Any] = []
    dist.all_gather_object(things, thing)
    return things


def decided_by_main(decide: Callable[[], Decided]) -> Decided:
    """What `decide` returns on the main process, for every process; an HmsaError of its own ends all of them alike."""
    outcome: Any = None
    if is_main():
        try:
            outcome = decide()
        except HmsaError as error:
            outcome = error
    outcome = all_gather(outcome)[0]
    if isinstance(outcome, HmsaError):
        done()  # each ends by itself, with this error's status
        raise outcome
    return outcome


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's values, in place."""
    if world_size() > 1:
        import paddle.distributed as dist

        barrier()
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
