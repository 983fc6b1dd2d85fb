#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What `val --report` costs: time beside the evaluation's own, and memory with few and with many images.

    python benchmarks/report.py --model_path output/demo/model/best_model --images 500

Images of 2048x1024 are ten drawn streets under many names. Each row is `hmsa val` in a process of its own: the
evaluation alone and with a report of --few images, then a report of all. The last line is the report's share.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from timing import row
from workplace import FOLDER, ROOT, toy_data

DRAWN = 10


@dataclass(frozen=True)
class Run:
    """What a command took: of a process, and of the evaluation in it."""

    wall: float  # seconds
    evaluation: float
    peak: int  # bytes


def many(count: int) -> Path:
    """A data set whose validation images are so many, as links to those that are drawn."""
    drawn = toy_data("report_drawn", size=(1024, 2048), val=DRAWN)
    folder = FOLDER / f"report_{count}"
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("leftImg8bit", "gtFine"):
        for source in sorted((drawn / kind / "val").rglob("*.png")):
            place = source.parent.relative_to(drawn)
            city, number, rest = source.name.split("_", 2)
            for copy in range(count // DRAWN):
                target = folder / place / f"{city}_{copy:03d}{number[3:]}_{rest}"
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)
    return folder


def val(data: Path, args: argparse.Namespace, *flags: str) -> Run:
    output = FOLDER / "report.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "val.py", "--config", args.config, "--model_path", args.model_path]
    command += ["--num_workers", "1", "--output", output, *flags, "--opts", f"val_dataset.dataset_root={data}"]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit("error: expected val.py to succeed, see above")
    found = json.loads(output.read_text(encoding="utf-8"))
    return Run(time.perf_counter() - start, found["seconds"], used.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=ROOT / "configs/mscale_ocr_toy.yml")
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--few", type=int, default=30)
    args = parser.parse_args()
    if args.images % DRAWN or args.few % DRAWN:
        sys.exit(f"error: expected numbers of images that are multiples of {DRAWN}: change --images or --few")

    row("images", "report", "seconds in all", "of the evaluation", "peak memory, GB", "page, MB")
    row(*["---"] * 6)
    page = FOLDER / "report_page"
    runs = []
    for count, flags in ((args.few, ()), (args.few, ("--report", page)), (args.images, ("--report", page))):
        shutil.rmtree(page, ignore_errors=True)
        run = val(many(count), args, *map(str, flags))
        size = f"{(page / 'index.html').stat().st_size / 1e6:.1f}" if flags else "-"
        seconds = f"{run.wall:.1f}", f"{run.evaluation:.1f}"
        row(str(count), "yes" if flags else "no", *seconds, f"{run.peak / 1e9:.2f}", size)
        runs.append(run)

    plain, _, large = runs
    alone = plain.wall + (args.images - args.few) * plain.evaluation / args.few
    print(f"the report takes {(large.wall - alone) / alone:.1%} of the time that the evaluation takes without it")


if __name__ == "__main__":
    main()
