# SPDX-License-Identifier: Apache-2.0
"""`val.py` as a whole, from start to result: the 16 images (256x128) of the toy validation set, HRNet-W48."""

from __future__ import annotations

import subprocess
import sys

import workplace
from timing import Run, measure, row, times


def val(engine: str) -> Run:
    data, weights = workplace.toy_data(), workplace.weights()
    command = [
        *(sys.executable, workplace.ROOT / "val.py", "--config", workplace.RECIPE, "--model_path", weights),
        *("--engine", engine, "--output", workplace.FOLDER / f"{engine}.json", "--num_workers", "1"),
        *("--opts", f"val_dataset.dataset_root={data}"),
    ]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def eager() -> Run:
    return val("eager")


def inference() -> Run:
    return val("inference")


def main() -> None:
    measured = measure({"theirs": eager, "ours": inference})
    row("val.py, toy validation set, HRNet-W48", "its own eager engine", *times(measured))


if __name__ == "__main__":
    main()
