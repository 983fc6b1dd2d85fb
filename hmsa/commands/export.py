# SPDX-License-Identifier: Apache-2.0
"""Export weights for Paddle Inference, ONNX, OpenVINO or TFLite, with any image size unless --input_shape fixes it,
and check what was written in every format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hmsa import cli
from hmsa.deploy import formats
from hmsa.errors import UsageError


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--model_path", required=True, help="weights (.pdparams, .pth or .safetensors) or a checkpoint folder"
    )
    parser.add_argument("--save_dir", default="output/inference_model", help="folder the model is written to")
    parser.add_argument("--output_op", choices=["argmax", "softmax", "none"], help="(default: argmax)")
    parser.add_argument(
        "--program",
        choices=["pdmodel", "json"],
        help="form of the program: pdmodel, which every reader of Paddle's models takes, or json, that of Paddle 3 "
        "(default: pdmodel, where this Paddle can write it)",
    )
    parser.add_argument("--without_argmax", action="store_true", help="deprecated: --output_op none")
    parser.add_argument("--with_softmax", action="store_true", help="deprecated: --output_op softmax")
    parser.add_argument("--input_shape", nargs=4, type=int, metavar=("N", "C", "H", "W"), help="-1 is any")
    parser.add_argument(
        "--format",
        type=_words,
        default=["paddle"],
        metavar="A,B",
        help=f"of {', '.join(formats.format_names())}; Paddle's program is always there (default: paddle)",
    )
    parser.add_argument(
        "--precision",
        type=_words,
        default=["fp32"],
        metavar="A,B",
        help=f"of {', '.join(formats.precision_names())}, for the formats that have them (default: fp32)",
    )
    parser.add_argument(
        "--with_confidence", action="store_true", help="also give the probability of each pixel's class"
    )
    parser.add_argument("--with_attention", action="store_true", help="also give the attention of each scale")
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="take uint8 images [N, H, W, 3], red green blue, and normalise them inside the program",
    )
    parser.add_argument(
        "--scales",
        type=_numbers,
        nargs="+",
        action="extend",
        metavar="A,B",
        help="outer scales, averaged inside the program, as val.py --aug_eval does",
    )
    parser.add_argument(
        "--flip_horizontal", "--flip", action="store_true", help="also run mirrored left to right, and average"
    )
    parser.add_argument("--flip_vertical", action="store_true", help="also run mirrored top to bottom, and average")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="images like those to come, for int8")
    parser.add_argument(
        "--tflite_python",
        type=Path,
        metavar="FILE",
        help="Python of an environment with TensorFlow and onnx2tf, for --format tflite (default: "
        f"{formats.TFLITE_PYTHON}, which make test-tflite makes)",
    )
    return parser


def _words(text: str) -> list[str]:
    """a,b -> its words; argparse's error for an empty one."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"expected words with commas between them, found {text!r}: correct it")
    return words


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers with commas between them, found {text!r}: correct it"
        ) from None


def averaging_options(args: argparse.Namespace) -> list[str]:
    """The flags of averaging as entries of `test_config`; none if none was given."""
    scales = [scale for part in args.scales or () for scale in part]
    if len(set(scales)) < len(scales):
        raise UsageError(f"expected each of --scales once, found {' '.join(map(str, scales))}: leave the others out")
    if scales == [1] and not (args.flip_horizontal or args.flip_vertical):
        raise UsageError("expected --scales to average over, found 1 alone, without effect: add others, or none")
    given = {"scales": scales, "flip_horizontal": args.flip_horizontal, "flip_vertical": args.flip_vertical}
    chosen = [f"test_config.{name}={value}" for name, value in given.items() if value]
    return [*chosen, "test_config.aug_eval=true"] if chosen else []


def chosen_output(args: argparse.Namespace) -> str:
    """--output_op, or what a deprecated flag stands for; UsageError if they disagree."""
    if not (args.with_softmax or args.without_argmax):
        return args.output_op or "argmax"
    flag, meant = ("--with_softmax", "softmax") if args.with_softmax else ("--without_argmax", "none")
    if args.output_op not in (None, meant):
        raise UsageError(
            f"expected one output, found {flag}, which is --output_op {meant}, and --output_op {args.output_op}: "
            "leave one out"
        )
    return meant


def main(args: argparse.Namespace) -> None:
    rows = formats.rows_of(args.format, args.precision)
    if all(row.precision != "int8" for row in rows):
        cli.refuse_idle(args, "calibration", without="--precision int8")
    if all(row.format != "tflite" for row in rows):
        cli.refuse_idle(args, "tflite_python", without="--format tflite")
    averaging = averaging_options(args)
    config = cli.read_recipe(args, averaging)
    output_op = chosen_output(args)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.config.fields import arguments
    from hmsa.deploy.export import ExportOptions, check_target, export
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.system.signals import end_in_order
    from hmsa.weights.loading import load_weights

    end_in_order()
    tflite_python = args.tflite_python or formats.TFLITE_PYTHON
    formats.check_installed(rows, tflite_python=tflite_python)
    shape = tuple(None if side == -1 else side for side in args.input_shape or (-1, config.in_channels, -1, -1))
    H, W = shape[2:]
    if H and W and H > W and shape[1] == config.in_channels:
        print(
            f"warning: --input_shape is N C H W, so this network takes upright images, {W} wide and {H} high; for "
            f"landscape images give {args.input_shape[0]} {args.input_shape[1]} {W} {H}",
            file=sys.stderr,
        )
    options = ExportOptions(
        output_op=output_op,
        transforms=[{"type": spec.type, **arguments(spec)} for spec in builder.inference_transforms(config)],
        classes=builder.classes(config),
        input_shape=shape,
        in_channels=config.in_channels,
        program=args.program,
        formats=rows,
        with_confidence=args.with_confidence,
        with_attention=args.with_attention,
        preprocess=args.preprocess,
        averaging=InferenceOptions.from_test_config(config.test_config) if averaging else InferenceOptions(),
        calibration=args.calibration,
        tflite_python=tflite_python,
    )
    check_target(args.save_dir)
    model = builder.build_model(config)
    load_weights(model, args.model_path)
    compared = export(model, args.save_dir, options)
    print(f"written to {args.save_dir}, {compared}")
