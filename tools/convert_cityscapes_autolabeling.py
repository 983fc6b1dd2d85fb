# SPDX-License-Identifier: Apache-2.0
"""Make images of train ids of the auto-labels of Cityscapes' coarse images."""

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
    from hmsa.datasets.convert import Job, coarse_jobs, convert_all, train_ids, write_label

    def convert(job: Job) -> None:
        write_label(job.target, train_ids(job.source), colored=True)

    print(convert_all(coarse_jobs(args.dataset_root), convert, num_workers=args.num_workers))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        description="Convert refinement_final/train_extra/<city>/X_leftImg8bit.png (label ids) to "
        "convert_autolabelled/<city>/X_leftImg8bit.png (train ids with a palette). "
        "Files that are there already are kept, folders named tmp left out."
    )
    parser.add_argument("--dataset_root", type=Path, required=True, help="folder that refinement_final lies in")
    parser.add_argument("--num_workers", type=cli.count, default=os.cpu_count(), help="threads (default: %(default)s)")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
