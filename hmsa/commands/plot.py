# SPDX-License-Identifier: Apache-2.0
"""Draw a run's curves as an image: loss and, where it was evaluated, mean IoU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hmsa import cli

FORMATS = (".jpg", ".pdf", ".png", ".svg")


def read_curve(reader: Any, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a curve; where a resumed run wrote a step again, the later value counts."""
    points = {record.id: record.value for record in reader.get_data("scalar", tag)}
    return sorted(points), [points[step] for step in sorted(points)]


def main(args: argparse.Namespace) -> None:
    from hmsa.engine.log import CURVES_FILE, import_visualdl
    from hmsa.errors import DataError, UsageError
    from hmsa.system.files import output_file, write_atomically

    output = output_file(args.output)
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output}: expected a name that ends in {', '.join(FORMATS)}: choose one")
    records = args.log_dir / CURVES_FILE
    if not records.is_file():
        raise DataError(f"{records}: expected the curves of a run, found none; train with --use_vdl")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    reader = import_visualdl("drawing curves").LogReader(file_path=str(records))
    evaluated = any(tag.endswith("eval%mIoU_present") for tag in reader.tags())
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axis.plot(*read_curve(reader, "train/loss"), color="tab:blue", label="training loss")
    axis.set(xlabel="iteration", ylabel="training loss")
    axis.grid(alpha=0.3)
    if evaluated:
        right = axis.twinx()
        right.plot(*read_curve(reader, "eval/mIoU_present"), color="tab:orange", marker="o", label="mIoU")
        right.set(ylabel="mean IoU over the classes present", ylim=(0, 1))
        figure.legend(loc="outside upper center", ncols=2)
    earlier = ", in place of an earlier file" if output.exists() else ""
    write_atomically(output, lambda file: figure.savefig(file, format=output.suffix[1:].lower(), dpi=110))
    print(f"written to {output}{earlier}")


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--log_dir", type=Path, required=True, help="--save_dir of a run trained with --use_vdl")
    parser.add_argument("--output", required=True, help="image to write, e.g. curves.png")
    return parser
