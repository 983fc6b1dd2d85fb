#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""From a folder of images and masks to predictions, for five kinds of masks: commands, time and mean IoU.

    python benchmarks/own_data.py                          # the four drawn sets, the table goes into docs/own-data.md
    python benchmarks/own_data.py --only binary labelme    # some of them, the table is printed
    python benchmarks/own_data.py --street FOLDER          # and a data set in Cityscapes' folders, by its label ids

Every command is one that a user types; none edits a recipe between them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/own-data.md"
BEGIN, END = "<!-- begin: printed by benchmarks/own_data.py -->", "<!-- end -->"

NAMES = "background,disc,square,triangle"
INIT = "hmsa init --images data/images --masks data/masks --output mine.yml --classes "
REST = (
    "hmsa check-data --config mine.yml",
    "hmsa train --config mine.yml --save_dir run --do_eval --num_workers 2 --nproc_per_node 2 --batch_size 2",
    "hmsa val --config mine.yml --model_path run/best_model",
    "hmsa predict --config mine.yml --model_path run/best_model --image_path data/images --save_dir predicted",
)


class Kind(NamedTuple):
    """A data set: what its masks are, and the commands from files to predictions."""

    masks: str
    commands: tuple[str, ...]


DRAWN = {
    "values": Kind("grey values 0, 50, 100, 200", (INIT + NAMES, *REST)),
    "colors": Kind("RGB colours", (INIT + "background,triangle,disc,square", *REST)),
    "binary": Kind("0 and 255", (INIT + "background,thing", *REST)),
    "labelme": Kind(
        "polygons drawn in Labelme",
        (
            "hmsa convert labelme --annotations data/images --output data",
            INIT.removesuffix(" --classes "),
            *REST,
        ),
    ),
}


class Measured(NamedTuple):
    """What one data set took and gave."""

    minutes: float
    images: int
    mean_iou: float


def measure(commands: tuple[str, ...], folder: Path) -> Measured:
    """Run the commands in a folder that holds `data`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    for command in commands:
        print(f"$ {command}", flush=True)
        words = [sys.executable, "-m", *shlex.split(command)]
        subprocess.run(words, cwd=folder, env=environment, check=True)
    seconds = time.perf_counter() - start

    result = json.loads((folder / "output/evaluation.json").read_text(encoding="utf-8"))
    images = [path for path in (folder / "data/images").rglob("*") if path.suffix in (".jpg", ".png")]
    return Measured(seconds / 60, len(images), result["mean_iou"])


def draw(name: str, folder: Path) -> None:
    """The drawn images, with masks of the kind."""
    sys.path.insert(0, str(ROOT))
    from hmsa.toy.shapes import write_shapes

    write_shapes(folder / "data", masks=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DRAWN, metavar="KIND", help=f"of {', '.join(DRAWN)}")
    parser.add_argument("--street", type=Path, help="a data set in Cityscapes' folders, images and label ids")
    parser.add_argument("--iters", type=int, help="train so long, for a quick look: such a table is only printed")
    parser.add_argument("--output", type=Path, help="keep what the commands write below this folder")
    args = parser.parse_args()

    rows = ["| masks | images | commands | minutes | mean IoU |", "| --- | --- | --- | --- | --- |"]
    for name, kind in DRAWN.items():
        if args.only is None or name in args.only:
            rows.append(_row(name, kind, args, None))
    if args.street:
        rows.append(_row("street", STREET, args, args.street))

    print("\n".join(rows))
    if args.only is None and args.iters is None:
        where = (
            f"On {os.cpu_count()} cores ({platform.machine()}) with Paddle {version('paddlepaddle')} and Python "
            f"{platform.python_version()}:"
        )
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + "\n".join([BEGIN, where, "", *rows, END]) + after, encoding="utf-8")


def _row(name: str, kind: Kind, args: argparse.Namespace, given: Optional[Path]) -> str:
    """Make the data set in a folder of its own, measure it, and say what was found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output / name if args.output else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given is None:
            draw(name, folder)
        else:
            shutil.copytree(given / "leftImg8bit", folder / "data/images")
            shutil.copytree(given / "gtFine", folder / "data/masks")
        shorter = f" --iters {args.iters}" if args.iters else ""
        found = measure(tuple(c + shorter * c.startswith("hmsa train") for c in kind.commands), folder)
    return (
        f"| {kind.masks} | {found.images} | {len(kind.commands)} | {found.minutes:.1f} | {100 * found.mean_iou:.1f} % |"
    )


STREET = Kind(
    "streets, label ids of Cityscapes",
    (INIT.removesuffix(" --classes ") + " --group-by folder", *REST),
)


if __name__ == "__main__":
    main()
