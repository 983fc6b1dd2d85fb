# SPDX-License-Identifier: Apache-2.0
"""How everything here is measured: both sides alternating in one process, medians, after one run to warm up."""

from __future__ import annotations

import statistics
import time
from typing import Callable

RUNS = 5


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(what: str, *, ours: Callable[[], object], theirs: Callable[[], object], their_name: str) -> None:
    """Print one row of the table: what was measured, both medians in milliseconds, and their ratio."""
    ours(), theirs()
    measured = [(seconds(theirs), seconds(ours)) for _ in range(RUNS)]
    slow, fast = (statistics.median(times) for times in zip(*measured))
    print(f"| {what} | {their_name} | {1000 * slow:.1f} | {1000 * fast:.1f} | {slow / fast:.1f}x |", flush=True)
