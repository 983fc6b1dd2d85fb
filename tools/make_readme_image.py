# SPDX-License-Identifier: Apache-2.0
"""Draw README's first image: images, what the network makes of them, and how much each of its scales decides."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hmsa import cli
from hmsa.system import environment


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--model_path", default="output/demo/model/best_model", help="a checkpoint with its recipe")
    parser.add_argument("--image_path", default="data/toy_cityscapes/leftImg8bit/test", help="as of predict.py")
    parser.add_argument("--count", type=cli.count, default=3, help="images, the first ones")
    parser.add_argument("--output", default="docs/images/scales.jpg", help="the picture, a JPEG")
    return parser


def main(args: argparse.Namespace) -> None:
    environment.prepare()
    import numpy as np
    from PIL import Image

    from hmsa.datasets.find import find_images
    from hmsa.segmenter import Segmenter
    from hmsa.system.files import output_file, write_atomically
    from hmsa.visualize import heat, heat_legend, sheet

    output = output_file(args.output)
    segmenter = Segmenter(args.model_path)
    rows = []
    for result in segmenter([file.path for file in find_images(args.image_path)][: args.count]):
        shares = [(f"decided by scale {scale:g}", heat(share)) for scale, share in (result.decided or {}).items()]
        rows.append([("image", result.image), ("prediction", np.asarray(result.overlay(0.6))), *shares])
    picture = sheet(rows, [heat_legend("share of the answer that a scale decides; over the scales they sum to 1")])
    write_atomically(output, lambda file: Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0))
    print(f"written to {output}")


if __name__ == "__main__":
    cli.run(main, make_parser())
