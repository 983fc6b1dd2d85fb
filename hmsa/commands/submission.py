# SPDX-License-Identifier: Apache-2.0
"""Write the archive that Cityscapes' test server takes, of predictions of all images of the test split; one that is
incomplete or wrong is refused. `hmsa predict --save id` writes such predictions, to SAVE_DIR/label_ids."""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--predictions", required=True, type=Path, metavar="DIR", help="folder of label-id PNGs, also by any other tool"
    )
    add("--dataset_root", default="data/cityscapes", type=Path, help="folder of Cityscapes, for the images' names")
    add("--output", default="output/submission.zip", help="the archive")
    return parser


def main(args: argparse.Namespace) -> None:
    from hmsa.system.environment import prepare

    prepare()
    from hmsa.datasets import submission
    from hmsa.engine.files import find_predictions
    from hmsa.system.files import output_file

    output = output_file(args.output)
    images = submission.test_images(args.dataset_root)
    submission.write_archive(output, images, find_predictions(args.predictions, images))
    print(f"written to {output}: {len(images)} predictions, {output.stat().st_size / 2**20:.0f} MiB")
