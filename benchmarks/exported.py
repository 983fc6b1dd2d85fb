# SPDX-License-Identifier: Apache-2.0
"""An exported HRNet-W48 beside `--engine` of the same engine, on one 256x512 image at scales 0.5, 1 and 2: seconds of a
run, and how long the export takes to open (`open_export`; for Paddle that is `load_predictor`, too)."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable

import workplace
from timing import Run, measure, row, take_turns, times

SHAPE = (1, 3, 256, 512)
ENGINES = {"paddle": "inference", "onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Engine of an export -> the one of `--engine` that is the same."""

FOLDER = workplace.FOLDER / "w48_export"
LIMIT = 3.0  # seconds, to open it


def exported(engine: str) -> Run:
    import numpy as np

    from hmsa.deploy.engines import open_export

    session = open_export(FOLDER, engine)
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return lambda: session(image)


def by_engine(engine: str) -> Run:
    import hmsa.system.prepared  # noqa: F401

    import paddle

    network = workplace.network(ENGINES[engine])
    image = paddle.randn(SHAPE)
    return lambda: network(image)


def opening(engine: str) -> Run:
    import hmsa.deploy.runtime  # noqa: F401 (loads Paddle, which is no part of it)
    from hmsa.deploy.engines import open_export

    return lambda: open_export(FOLDER, engine)


SIDES: dict[str, Callable[[], Run]] = {
    f"{what.__name__} {engine}": functools.partial(what, engine)
    for engine in ENGINES
    for what in (exported, by_engine, opening)
}


def main() -> None:
    if "--side" in sys.argv:
        measure(SIDES)  # does not return
    if not (FOLDER / "deploy.yaml").is_file():
        command = [sys.executable, workplace.ROOT / "export.py", "--config", workplace.RECIPE]
        command += ["--model_path", workplace.weights(), "--save_dir", FOLDER, "--format", "paddle,onnx,openvino"]
        subprocess.run([*command, "--opts", workplace.WITHOUT_PRETRAINED], check=True, stdout=sys.stderr)

    for engine, same in ENGINES.items():
        measured = take_turns({name: _started(f"{side} {engine}") for name, side in TURNS.items()})
        what = f"exported HRNet-W48, scales 0.5 1 2, 256x512, {engine}"
        row(f"{what}: time", f"--engine {same}", *times(measured))

        # Each time in a new process, as what an engine keeps would make the second opening quicker.
        seconds = [take_turns({"ours": _started(f"opening {engine}")}, runs=1, warm_up=0)["ours"].median for _ in "123"]
        middle = sorted(seconds)[1]
        row(f"{what}: opening", "the limit", f"{LIMIT:.2f} s", f"{middle:.2f} s", "met" if middle < LIMIT else "MISSED")


TURNS = {"theirs": "by_engine", "ours": "exported"}


def _started(side: str) -> tuple[list[str], None]:
    return [sys.executable, *sys.argv, "--side", side], None


if __name__ == "__main__":
    main()
