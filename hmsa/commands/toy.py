# SPDX-License-Identifier: Apache-2.0
"""Draw a small street world in the tree of Cityscapes: something to train on without downloading anything."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


from hmsa import cli


def main(args: argparse.Namespace) -> None:
    from hmsa.toy.cityscapes import write_toy_cityscapes

    width, height = args.size
    write_toy_cityscapes(
        args.output,
        size=(height, width),
        train=args.train,
        coarse=args.coarse,
        val=args.val,
        test=args.test,
        seed=args.seed,
    )
    counts = f"{args.train} train, {args.coarse} coarse, {args.val} val and {args.test} test images"
    print(
        f"{args.output}: {counts}. Next: python tools/convert_cityscapes.py --cityscapes_path {args.output} && "
        f"python tools/convert_cityscapes_autolabeling.py --dataset_root {args.output}"
    )


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", default="data/toy_cityscapes", help="folder to make or to make again")
    parser.add_argument("--size", nargs=2, type=int, default=[256, 128], metavar=("WIDTH", "HEIGHT"), help="in pixels")
    parser.add_argument("--train", type=int, default=48, help="images with fine labels to train on")
    parser.add_argument("--coarse", type=int, default=48, help="images with auto-labels to train on")
    parser.add_argument("--val", type=int, default=16, help="images with fine labels to evaluate on")
    parser.add_argument("--test", type=int, default=4, help="images whose labels are withheld")
    parser.add_argument("--seed", type=int, default=42, help="another seed draws other streets")
    return parser
