# SPDX-License-Identifier: Apache-2.0
"""How everything here is measured: every side is a fresh process, the sides take turns, and medians count.

A script hands `measure` its sides, each a function that prepares and gives back what is to be timed. The script then
starts itself once for every side (`--side NAME`) and tells them in turn to run, so that they share the machine's good
and bad moments and a side's peak memory is its own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Callable, Optional

RUNS = 5

Run = Callable[[], object]


@dataclass
class Measured:
    """What was seen of one side: seconds of every run, and the most memory its process ever held."""

    seconds: list[float] = field(default_factory=list)
    peak_gb: float = 0.0  # 10^9 bytes

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(sides: dict[str, Callable[[], Run]], *, runs: int = RUNS, warm_up: int = 1) -> dict[str, Measured]:
    """Time the sides in turn, `runs` times each after `warm_up` runs; a memory row takes `runs=1, warm_up=0`.

    In a process started for one side this does not return: it runs when told to, and ends.
    """
    if "--side" in sys.argv:
        _serve(sides[sys.argv[sys.argv.index("--side") + 1]])
    started: dict[str, tuple[list[str], Optional[dict[str, str]]]]
    started = {name: ([sys.executable, *sys.argv, "--side", name], None) for name in sides}
    return take_turns(started, runs=runs, warm_up=warm_up)


def take_turns(
    sides: dict[str, tuple[list[str], Optional[dict[str, str]]]], *, runs: int = RUNS, warm_up: int = 1
) -> dict[str, Measured]:
    """`measure` for sides that are commands, each with its environment (None: this one), which call `measure`."""
    measured = {name: Measured() for name in sides}
    processes = {name: _start(command, environment) for name, (command, environment) in sides.items()}
    for turn in range(warm_up + runs):
        for name, process in processes.items():
            seconds = float(_ask(process, "run"))
            if turn >= warm_up:
                measured[name].seconds.append(seconds)
    for name, process in processes.items():
        measured[name].peak_gb = float(_ask(process, "end"))
        process.wait()
    return measured


def row(*cells: str) -> None:
    """Print one line of the table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def times(measured: dict[str, Measured]) -> tuple[str, str, str]:
    """Cells for a row about time: the other side's, ours, and how much faster or slower ours is."""
    ours, theirs = measured["ours"].median, measured["theirs"].median
    compared = f"{theirs / ours:.1f}x faster" if ours <= theirs else f"{ours / theirs:.1f}x slower"
    return _in_words(theirs), _in_words(ours), compared


def memory(measured: dict[str, Measured]) -> tuple[str, str, str]:
    """Cells for a row about memory: the other side's, ours, and ours as a share of it."""
    ours, theirs = measured["ours"].peak_gb, measured["theirs"].peak_gb
    return f"{theirs:.2f} GB", f"{ours:.2f} GB", f"{ours / theirs:.2f}x the memory"


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _start(command: list[str], environment: Optional[dict[str, str]]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _answer(process)  # "ready", once it has prepared
    return process


def _ask(process: subprocess.Popen[str], command: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> str:
    """The next line the side prints after a mark of its own; Paddle prints lines too."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("benchmark: "):
            return line.removeprefix("benchmark: ").strip()
    sys.exit(f"{process.args} ended early: see its error above")


def _serve(prepare: Callable[[], Run]) -> None:
    run = prepare()
    print("benchmark: ready", flush=True)
    for command in sys.stdin:
        if command.strip() == "end":
            break
        start = time.perf_counter()
        run()
        print(f"benchmark: {time.perf_counter() - start}", flush=True)
    print(f"benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}", flush=True)
    sys.exit(0)
