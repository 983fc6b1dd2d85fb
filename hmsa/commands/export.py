# SPDX-License-Identifier: Apache-2.0
"""Export weights for Paddle Inference, with any image size unless --input_shape fixes it, and check the result."""

from __future__ import annotations

import argparse
import sys

from hmsa import cli
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
    return parser


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
    config = cli.read_recipe(args)
    output_op = chosen_output(args)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.config.fields import arguments
    from hmsa.deploy.export import ExportOptions, check_target, export
    from hmsa.weights.loading import load_weights

    shape = tuple(None if side == -1 else side for side in args.input_shape or (-1, config.in_channels, -1, -1))
    H, W = shape[2:]
    if H and W and H > W:
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
    )
    check_target(args.save_dir)
    model = builder.build_model(config)
    load_weights(model, args.model_path)
    measured = export(model, args.save_dir, options)
    print(f"written to {args.save_dir}; {measured}")
