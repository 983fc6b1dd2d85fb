# SPDX-License-Identifier: Apache-2.0
"""Make the images of train ids that training and evaluation on Cityscapes read."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hmsa import cli
from hmsa.system import environment


def main(args: argparse.Namespace) -> None:
    environment.prepare()
    from hmsa.datasets.convert import Job, convert_all, fine_jobs, train_ids, write_label

    def convert(job: Job) -> None:
        write_label(job.target, train_ids(job.source), colored=False)

    print(convert_all(fine_jobs(args.cityscapes_path), convert, num_workers=args.num_workers))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        description="Write gtFine/<split>/<city>/X_gtFine_labelTrainIds.png for every X: from "
        "X_gtFine_labelIds.png, or where that is missing from X_gtFine_polygons.json. "
        "Files that are there already are kept."
    )
    parser.add_argument("--cityscapes_path", type=Path, required=True, help="folder that gtFine lies in")
    parser.add_argument("--num_workers", type=cli.count, default=os.cpu_count(), help="threads (default: %(default)s)")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
