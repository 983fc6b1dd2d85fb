# SPDX-License-Identifier: Apache-2.0
"""Draw something to train on without downloading anything: a small street world in the tree of Cityscapes, or shapes as
somebody's own images and masks."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from hmsa import cli

FOLDERS = {"cityscapes": "data/toy_cityscapes", "shapes": "data/toy_shapes"}
"""Kind -> where it is drawn, if nothing else is said."""

STREETS = {"size": [256, 128], "train": 48, "coarse": 48, "val": 16, "test": 4}
SHAPES = {"masks": "values", "count": 40}
"""Flags of one kind alone, and their defaults."""


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--kind", choices=list(FOLDERS), default="cityscapes", help="what is drawn")
    places = f"{FOLDERS['cityscapes']}, or of shapes {FOLDERS['shapes']}"
    add("--output", help=f"folder to make, or of cityscapes to make again (default: {places})")
    add("--seed", type=cli.count_or_none, default=42, help="another seed draws others")

    streets = parser.add_argument_group("of cityscapes")
    add = streets.add_argument
    add("--size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="in pixels (default: 256 128)")
    add("--train", type=int, help="images with fine labels to train on (default: 48)")
    add("--coarse", type=int, help="images with auto-labels to train on (default: 48)")
    add("--val", type=int, help="images with fine labels to evaluate on (default: 16)")
    add("--test", type=int, help="images whose labels are withheld (default: 4)")
    add("--label_ids", action="store_true", help="leave the labels as Cityscapes has them, to be converted")

    shapes = parser.add_argument_group("of shapes")
    add = shapes.add_argument
    forms = ["values", "colors", "binary", "labelme"]
    add("--masks", choices=forms, help="masks of grey values (default), colours, 0 and 255, or polygons")
    add("--count", type=cli.count, help="images (default: 40)")
    return parser


def main(args: argparse.Namespace) -> None:
    others = {"cityscapes": [*SHAPES], "shapes": [*STREETS, "label_ids"]}[args.kind]
    cli.refuse_idle(args, *others, without=f"--kind {'shapes' if args.kind == 'cityscapes' else 'cityscapes'}")
    for name, default in {**STREETS, **SHAPES}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.output = args.output or FOLDERS[args.kind]
    print(draw_streets(args) if args.kind == "cityscapes" else draw_shapes(args))


def draw_streets(args: argparse.Namespace) -> str:
    """Draw the street world -> what was drawn, and what comes next."""
    from hmsa.toy.cityscapes import write_toy_cityscapes

    width, height = args.size
    counts = {name: getattr(args, name) for name in ("train", "coarse", "val", "test")}
    write_toy_cityscapes(args.output, size=(height, width), seed=args.seed, **counts)
    images = f"{args.train} train, {args.coarse} coarse, {args.val} val and {args.test} test images"
    drawn = f"{args.output}: {images}. Next: "
    if args.label_ids:
        return (
            f"{drawn}python tools/convert_cityscapes.py --cityscapes_path {args.output} && "
            f"python tools/convert_cityscapes_autolabeling.py --dataset_root {args.output}"
        )

    _convert(Path(args.output), fine=args.train + args.val + args.test > 0, coarse=args.coarse > 0)
    place = shlex.quote(args.output)
    same = Path(args.output) == Path(FOLDERS["cityscapes"])
    roots = "" if same else f" --opts train_dataset.dataset_root={place} val_dataset.dataset_root={place}"
    return f"{drawn}hmsa train --config mscale_ocr_toy --do_eval{roots}"


def _convert(root: Path, *, fine: bool, coarse: bool) -> None:
    """Write the labels' images of train ids, which training and evaluation read."""
    from hmsa.datasets.convert import coarse_jobs, fine_jobs, train_ids, write_label

    for job in [*(fine_jobs(root) if fine else ()), *(coarse_jobs(root) if coarse else ())]:
        write_label(job.target, train_ids(job.source), colored="refinement_final" in job.source.parts)


def draw_shapes(args: argparse.Namespace) -> str:
    """Draw shapes -> what was drawn, and what comes next."""
    from hmsa.toy.shapes import write_shapes

    write_shapes(args.output, masks=args.masks, count=args.count, seed=args.seed)
    images, masks, converted = (shlex.quote(str(Path(args.output, name))) for name in ("images", "masks", "drawn"))
    drawn = f"{args.output}: {args.count} images. Next: "
    if args.masks == "labelme":
        return f"{drawn}hmsa convert labelme --annotations {images} --output {converted}"
    return f"{drawn}hmsa init --images {images} --masks {masks}"
