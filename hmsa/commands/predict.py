# SPDX-License-Identifier: Apache-2.0
"""Predict images: colour maps in SAVE_DIR/pseudo_color_prediction, overlays in SAVE_DIR/added_prediction. Or a video:
overlays alone, as a video without sound. --save says what else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa import cli
from hmsa.errors import UsageError, shown, suggest

if TYPE_CHECKING:
    from hmsa.config.schema import Config
    from hmsa.engine.predict import Results


SAVED = ("color", "overlay", "id", "confidence", "attention", "decided", "scales", "sheet", "legend")
"""The words of --save, see `hmsa.engine.predict.FOLDERS`."""


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--model_path", required=True, help="weights (.pdparams, .pth or .safetensors) or a checkpoint folder"
    )
    parser.add_argument(
        "--image_path", required=True, help="an image, a folder, a list of images, a quoted glob, or a video"
    )
    parser.add_argument("--save_dir", default="output/result", help="where the results go")
    parser.add_argument(
        "--save",
        metavar="WORDS",
        help=f"what to write, divided by commas: {', '.join(SAVED)} (default: color,overlay; of a video overlay); "
        "attention is how much of each scale's answer is taken, decided what share of the whole answer that makes, "
        "scales what each scale says alone",
    )
    parser.add_argument(
        "--label_ids",
        action="store_true",
        help="also write what the data set's own label files hold, as grey PNGs: class numbers, or the values that "
        "stand for them (of Cityscapes, the label ids); as --save id",
    )
    parser.add_argument(
        "--custom_color", nargs="+", action="extend", type=int, default=[], help="R G B of the first classes"
    )
    parser.add_argument("--opacity", type=float, default=0.4, help="of the colours in overlays (default: %(default)s)")
    parser.add_argument(
        "--legend",
        action="store_true",
        help="also write names and colours, SAVE_DIR/legend/legend.png; as --save legend",
    )
    parser.add_argument(
        "--sheet",
        action="store_true",
        help="also write image, prediction, overlay, legend and whatever else of --save as one, SAVE_DIR/sheets; as "
        "--save sheet",
    )
    parser.add_argument(
        "--unknown_below", type=float, help='the confidence below which a pixel is of the class "unknown", e.g. 0.6'
    )
    cli.add_inference_flags(parser, "--aug_pred")
    cli.add_processes_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    saved = words_of(args.save) if args.save else None
    config = cli.read_recipe(args, cli.inference_options(args, args.aug_pred))
    cli.check_inference_flags(args, "--aug_pred", config.test_config)
    check_shares(args, config.model.num_classes)
    cli.start_processes(args, "predict", args.save_dir)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.datasets.bands import suffixes_of
    from hmsa.datasets.find import LeftOut, find_images
    from hmsa.distributed import ranks
    from hmsa.engine.predict import notices, predict
    from hmsa.engine.predict_video import predict_video, video_notices
    from hmsa.errors import DataError
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.inference.video import Video, is_video
    from hmsa.system.files import writable_folder
    from hmsa.system.signals import end_in_order

    end_in_order()
    usual = ["overlay"] if is_video(args.image_path) else ["color", "overlay"]
    results, told = make_results(args, config, saved or usual)
    if is_video(args.image_path):
        if config.in_channels != 3:
            raise UsageError(
                f"expected images of {config.in_channels} channels, as in_channels says, found a video, which has red, "
                "green and blue: give images"
            )
        if ranks.world_size() > 1:
            raise UsageError("expected a video on one process, found several: start one alone")
        images, video = [], Video.open(args.image_path, config.max_image_pixels)
        told = [*video_notices(video, results), *told]
    else:
        left_out = LeftOut()
        images, video = find_images(args.image_path, left_out, suffixes_of(config.in_channels)), None
        if len(images) > 1 and not any(image.path.is_file() for image in images):
            raise DataError(
                f"{args.image_path}: expected an image, or a list with an image's path on each line, found "
                f"{len(images)} lines of which none names a file, such as {images[0].path.name}: correct the path"
            )
        told = [*notices(images, left_out, args.save_dir, results.saved), *told]
    writable_folder(args.save_dir)
    if ranks.is_main():
        print(*told, sep="\n", flush=True)
    ranks.init()
    network, _ = builder.open_network(config, args.model_path, backend=args.engine, precision=args.precision)
    options = {
        "transforms": builder.build_transforms(builder.inference_transforms(config)),
        "options": InferenceOptions.from_test_config(config.test_config),
        "unknown_below": args.unknown_below,
    }

    if ranks.is_main():
        results.prepare(unknown=args.unknown_below is not None)
    if video is not None:
        print(f"written {predict_video(network, video, results, **options)} frames to {args.save_dir}")
        return
    limits = {"max_image_pixels": config.max_image_pixels, "in_channels": config.in_channels}
    failed = predict(network, images, results, **limits, **options)
    if ranks.is_main():
        done = f"found {len(images)}, written {len(images) - len(failed)} to {args.save_dir}, failed {len(failed)}"
        if failed:
            raise DataError(f"{done}: {', '.join(map(str, failed))}")
        print(done)


def words_of(save: str) -> list[str]:
    """What --save says. UsageError for a word that it does not know."""
    words = [word.strip() for word in save.split(",")]
    for word in words:
        if word not in SAVED:
            raise UsageError(
                f"expected --save to be words such as color,overlay, divided by commas, found {shown(word)}: "
                f"{suggest(word, SAVED)}"
            )
    return words


def check_shares(args: argparse.Namespace, num_classes: int) -> None:
    """UsageError unless the flags that are shares of 1 lie in their ranges."""
    if not 0 <= args.opacity <= 1:
        raise UsageError(f"expected --opacity from 0 to 1, found {args.opacity:g}: correct it")
    if args.unknown_below is not None and not 1 / num_classes < args.unknown_below <= 1:
        raise UsageError(
            f"expected --unknown_below above {1 / num_classes:.3g}, which the best of {num_classes} classes has at "
            f"least, and up to 1, found {args.unknown_below:g}: correct it"
        )


def make_results(args: argparse.Namespace, config: Config, words: Sequence[str]) -> tuple[Results, list[str]]:
    """What is to be written, `words` of --save and what other flags say, and what to tell of it."""
    from hmsa import builder
    from hmsa.engine.predict import UNKNOWN, Results, unknown_value
    from hmsa.visualize import color_palette, unused_color

    flags = {"id": args.label_ids, "sheet": args.sheet, "legend": args.legend}
    saved = {*words, *(word for word, given in flags.items() if given)}
    classes = builder.classes(config)
    raw_values = tuple(classes.raw_values or range(len(classes)))

    # Colour maps and overlays have PaddleSeg's colours, as they are compared with its own; what is new has others.
    colors = color_palette(args.custom_color, [spec.color for spec in config.classes or ()])
    own_colors = color_palette(args.custom_color, classes.colors)
    told = []
    if args.unknown_below is not None:
        count = 3 * len(classes)
        unknown = unused_color([*colors[:count], *own_colors[:count]], 2 * len(classes))
        for palette in (colors, own_colors):
            palette[3 * UNKNOWN : 3 * UNKNOWN + 3] = unknown
        numbers = f"{UNKNOWN} in colour maps" + f", {unknown_value(raw_values)} in label_ids" * ("id" in saved)
        told.append(
            f"pixels of a confidence below {args.unknown_below:g} are unknown: {numbers}, in the colour "
            f"{' '.join(map(str, unknown))}"
        )
    results = Results(
        Path(args.save_dir),
        colors,
        saved,
        raw_values=raw_values,
        opacity=args.opacity,
        names=classes.names,
        own_colors=own_colors,
        plain=classes.background,
    )
    return results, told
