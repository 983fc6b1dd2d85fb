# SPDX-License-Identifier: Apache-2.0
"""What a training run tells of itself: means since the last report, and iterations that failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

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
        self._steps: list[dict[str, Tensor]] = []  # with values
        self.skipped = 0  # steps without values
        self.data_seconds = 0.0
        self._start = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the terms of one step."""
        self._steps.append({name: value.astype("float32") for name, value in values.items()})

    def report(self) -> tuple[dict[str, float], float, float]:
        """Mean of every term over the steps that had values, and mean seconds a step: for data, and in all."""
        names = self._steps[0] if self._steps else {}
        means = {name: float(sum(step[name] for step in self._steps)) / len(self._steps) for name in names}
        steps = len(self._steps) + self.skipped
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


class Failures(dict[int, list[str]]):
    """Iterations in a row, counted from 0, without a finite loss or gradient -> images of the ranks that failed."""

    def add(self, outcome: Outcome, iteration: int, log: SilentLog) -> None:
        """Note an iteration. All ranks must call this."""
        values = {name: float(outcome.terms[name]) for name in ("loss", "grad_norm")}
        failed = [rank for rank in ranks.all_gather((outcome.failed, values, outcome.files)) if rank[0]]
        self[iteration] = [path for *_, files in failed for path in files]
        _, values, _ = failed[0]
        log.line(
            f"[SKIP] iter {iteration + 1}, loss {values['loss']:g}, grad norm {values['grad_norm']:g}: nothing "
            f"changed; images {', '.join(self[iteration])}"
        )
