# SPDX-License-Identifier: Apache-2.0
"""What a training run tells of itself: means since the last report, and iterations that failed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any, Optional

import paddle
from paddle import Tensor

from hmsa.distributed import ranks
from hmsa.engine.log import SilentLog
from hmsa.engine.step import Outcome


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


def timed(micro_batches: Iterator[dict[str, Any]], meter: Meter) -> Iterator[dict[str, Any]]:
    """The same batches; the time spent waiting for them goes to the meter."""
    while True:
        start = time.perf_counter()
        batch = next(micro_batches, None)
        meter.data_seconds += time.perf_counter() - start
        if batch is None:
            return
        yield batch


class Failures:
    """Iterations in a row whose loss or gradient was not finite, and where the run stood before them."""

    def __init__(self) -> None:
        self.iterations_before = 0
        self.schedule_before: Any = {}
        self.files: list[list[str]] = []  # images an iteration, of the ranks on which it failed

    def __len__(self) -> int:
        return len(self.files)

    def add(self, outcome: Outcome, iteration: int, scheduler: paddle.optimizer.lr.LRScheduler, log: SilentLog) -> None:
        """Note iteration number `iteration`, counted from 0, before the schedule goes on. All ranks must call this."""
        if not self.files:
            self.iterations_before, self.schedule_before = iteration, copy.deepcopy(scheduler.state_dict())
        values = {name: float(outcome.terms[name]) for name in ("loss", "grad_norm")}
        failed = [rank for rank in ranks.all_gather((outcome.failed, values, outcome.files)) if rank[0]]
        self.files.append([path for *_, files in failed for path in files])
        _, values, _ = failed[0]
        log.line(
            f"[SKIP] iter {iteration + 1}, loss {values['loss']:g}, grad norm {values['grad_norm']:g}: nothing "
            f"changed; images {', '.join(self.files[-1])}"
        )
