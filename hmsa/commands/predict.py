# SPDX-License-Identifier: Apache-2.0
"""Predict images: colour maps in SAVE_DIR/pseudo_color_prediction, overlays in SAVE_DIR/added_prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

from hmsa import cli


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--model_path", required=True, help="weights (.pdparams, .pth or .safetensors) or a checkpoint folder"
    )
    parser.add_argument("--image_path", required=True, help="an image, a folder, a list of images or a quoted glob")
    parser.add_argument("--save_dir", default="output/result", help="where the results go")
    parser.add_argument(
        "--label_ids",
        action="store_true",
        help="also write the values of the data set's own label files (of Cityscapes, the label ids)",
    )
    parser.add_argument(
        "--custom_color", nargs="+", action="extend", type=int, default=[], help="R G B of the first classes"
    )
    cli.add_inference_flags(parser, "--aug_pred")
    cli.add_processes_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    config = cli.read_recipe(args, cli.inference_options(args, args.aug_pred))
    cli.check_inference_flags(args, "--aug_pred", config.test_config)
    cli.start_processes(args, "predict", args.save_dir)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.datasets.find import LeftOut, find_images
    from hmsa.distributed import ranks
    from hmsa.engine.predict import Results, notices, predict
    from hmsa.errors import DataError, UsageError
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.system.files import writable_folder
    from hmsa.visualize import color_palette

    options = InferenceOptions.from_test_config(config.test_config)
    classes = builder.classes(config)
    colors = color_palette(args.custom_color, classes.colors if config.classes else ())
    if args.label_ids and classes.raw_values is None:
        raise UsageError(
            "expected --label_ids with a data set that has other numbers than its classes' in its label files, as "
            "Cityscapes has, found a recipe without one: leave it out"
        )
    left_out = LeftOut()
    images = find_images(args.image_path, left_out)
    writable_folder(args.save_dir)
    if ranks.is_main():
        print(*notices(images, left_out, args.save_dir), sep="\n", flush=True)
    ranks.init()
    transforms = builder.build_transforms(builder.inference_transforms(config))
    network, _ = builder.open_network(config, args.model_path, backend=args.engine, precision=args.precision)

    failed = predict(
        network,
        images,
        Results(Path(args.save_dir), colors, classes.raw_values if args.label_ids else None),
        transforms=transforms,
        options=options,
        max_image_pixels=config.max_image_pixels,
    )
    if ranks.is_main():
        done = f"found {len(images)}, written {len(images) - len(failed)} to {args.save_dir}, failed {len(failed)}"
        if failed:
            raise DataError(f"{done}: {', '.join(map(str, failed))}")
        print(done)
