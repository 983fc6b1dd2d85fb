# SPDX-License-Identifier: Apache-2.0
"""How fast an export is on this machine: every engine in every precision, each measured in a process of its own."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import numpy as np

from hmsa.deploy.engines import ENGINES, open_export, readable
from hmsa.deploy.runtime import Deployment, read_deployment
from hmsa.system.environment import cores, processor
from hmsa.system.memory import peak_memory_bytes, resident_bytes
from hmsa.system.version import VERSION

WARM_UP = 2
"""Runs that do not count: in the first an engine takes its memory, and chooses among its ways to compute."""

LEAST = 3
"""Runs that are measured in any case, however long they take."""

FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)
"""Of processors, on which the speed of a precision depends."""

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "onnxruntime", "openvino", "ai-edge-litert")


@dataclass(frozen=True)
class Case:
    """What is measured at once."""

    engine: str
    format: str  # that the engine reads
    precision: str
    width: int
    height: int
    batch: int

    def __str__(self) -> str:
        return f"{self.engine}, {self.format} {self.precision}, {self.batch} x {self.width}x{self.height}"


@dataclass(frozen=True)
class Measured:
    """What was measured of a case."""

    opening: float  # seconds, from the files to an open session
    runs: tuple[float, ...]  # seconds of each
    memory_bytes: int  # the most that the process held
    memory_before_bytes: int  # that it held before it opened anything, with Paddle and the engine's library loaded

    @property
    def row(self) -> dict[str, float]:
        """What a table shows of it: seconds, images a second without the batch, bytes."""
        p50, p99 = np.percentile(self.runs, (50, 99))
        return {
            "runs_a_second": len(self.runs) / sum(self.runs),
            "p50": float(p50),
            "p99": float(p99),
            "memory": float(max(0, self.memory_bytes - self.memory_before_bytes)),
            "opening": self.opening,
        }


@dataclass(frozen=True)
class Result:
    """A case, and either what was measured of it or why nothing was."""

    case: Case
    measured: Optional[Measured] = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = asdict(self.case)
        if self.measured is None:
            return {**entry, "reason": self.reason}
        row = self.measured.row
        return {
            **entry,
            "images_a_second": self.case.batch * row["runs_a_second"],
            "p50_ms": 1000 * row["p50"],
            "p99_ms": 1000 * row["p99"],
            "runs": len(self.measured.runs),
            "opening_s": self.measured.opening,
            "memory_bytes": self.measured.memory_bytes,
            "memory_before_bytes": self.measured.memory_before_bytes,
        }


def cases(
    folder: str | Path, sizes: Sequence[tuple[int, int]], batch: int, engines: Sequence[str] = tuple(ENGINES)
) -> list[Case]:
    """All that an export's folder has for these engines, at each of the sizes, (width, height).

    Raises:
        DataError: the folder holds no export.
    """
    deployment = read_deployment(folder)
    return [
        Case(engine, form, precision, width, height, batch)
        for width, height in sizes
        for engine in engines
        for form, precision in _readings(engine, deployment)
        if precision != "bf16" or has_bf16()
    ]


def _readings(engine: str, deployment: Deployment) -> list[tuple[str, str]]:
    """Every format and precision in which an engine runs an export."""
    found = [(entry.format, entry.precision) for entry in readable(engine, deployment)]
    lower = [(form, name) for name in ENGINES[engine].lower for form, precision in found if precision == "fp32"]
    return [*found, *lower[:1]]  # computed with the files of the best format


def measure(folder: str | Path, case: Case, *, repeat: int, seconds: float, threads: Optional[int]) -> Measured:
    """Open an export and run it on noise, in this process, which should have opened nothing before.

    Args:
        repeat: runs to measure.
        seconds: after which no further one is begun.

    Raises:
        HmsaError: see `open_export` and `Session`.
    """
    for package in ENGINES[case.engine].packages:
        import_module(package)
    before = resident_bytes()
    start = time.perf_counter()
    session = open_export(folder, case.engine, case.precision, threads, format=case.format)
    opening = time.perf_counter() - start

    images = _noise(session.deployment, case)
    for _ in range(WARM_UP):
        session(images)

    runs: list[float] = []
    first = time.perf_counter()
    while len(runs) < min(LEAST, repeat) or (len(runs) < repeat and time.perf_counter() - first < seconds):
        start = time.perf_counter()
        session(images)
        runs.append(time.perf_counter() - start)
    return Measured(opening, tuple(runs), peak_memory_bytes(), before)


def _noise(deployment: Deployment, case: Case) -> np.ndarray:
    """Images of a case, of the kind and in the layout that the export takes."""
    sides = {"N": case.batch, "C": deployment.side("C") or 3, "H": case.height, "W": case.width}
    shape = [sides[axis] for axis in deployment.input_layout]
    rng = np.random.default_rng(0)
    if deployment.input_dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(size=shape).astype(np.float32)


def has_bf16() -> bool:
    """Whether this processor computes in bf16; on others OpenVINO goes on in fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(processor()[1])


# --- Saying it. ---


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the export."""
    name, flags = processor()
    versions = {"hmsa": VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "cores": cores(),
        "threads": threads,
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": platform.platform(),
        "versions": versions,
    }


def table(results: Sequence[Result], found: dict[str, Any]) -> str:
    """Markdown: a row for each result, a line about the machine, and why what was not run was not."""
    head = "engine | format | precision | size | batch | images/s | p50 ms | p99 ms | runs | memory | opening"
    lines = [f"| {head} |", "| --- | --- | --- | --- | ---: " + "| ---: " * 6 + "|"]
    lines += [f"| {' | '.join(_cells(result))} |" for result in results]
    reasons = [f"{result.case} was not run: {result.reason}" for result in results if result.measured is None]
    return "\n".join([*lines, "", written(found), *reasons])


def written(found: dict[str, Any]) -> str:
    """A machine in a line."""
    flags = ", ".join(found["flags"]) or "no flags known to matter"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['processor']}, {found['cores']} cores, {found['threads']} threads ({flags}); {versions}."


def _cells(result: Result) -> list[str]:
    case = result.case
    cells = [case.engine, case.format, case.precision, f"{case.width}x{case.height}", str(case.batch)]
    if result.measured is None:
        return [*cells, "not run", *5 * ["-"]]
    row = result.measured.row
    return [
        *cells,
        f"{case.batch * row['runs_a_second']:.3g}",
        f"{1000 * row['p50']:.1f}",
        f"{1000 * row['p99']:.1f}",
        str(len(result.measured.runs)),
        f"{row['memory'] / 1e6:.0f} MB",
        f"{row['opening']:.2f} s",
    ]


def is_busy() -> bool:
    """Whether other programs have so much to do here that times say little; False where that is not known."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.3 * cores()
