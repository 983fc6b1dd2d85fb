# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: flags, and how an error ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Callable, NoReturn

from hmsa import distributed
from hmsa.errors import HmsaError, Interrupted, show_anything


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> NoReturn:
    """Parse, call `main`, and leave: 0 done, 1 bad data, 2 bad command line or config, 128 + number of a signal."""
    status = 0
    show_anything()
    distributed.join()
    try:
        main(parser.parse_args())
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        status = interruption.status
    except HmsaError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        distributed.fail(str(error), certain=True)
        sys.exit(error.status)
    except SystemExit as end:  # of argparse: a wrong flag, on this machine perhaps alone
        if end.code:
            distributed.fail(f"ended with status {end.code}; its own log says why", certain=True)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        distributed.fail("interrupted", certain=True)
        sys.exit(130)
    except Exception as error:
        distributed.fail(f"{type(error).__name__}: {error}", certain=False)
        raise
    distributed.done()
    sys.exit(status)


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags every script takes: --config and --opts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="recipe, e.g. configs/mscale_ocr_toy.yml")
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="set anything in the YAML, e.g. --opts train_dataset.coarse_multiple=0 optimizer.momentum=0.95",
    )
    return parser


def add_engine_flag(parser: argparse.ArgumentParser, default: str) -> None:
    """What runs the network in evaluation and prediction; the names are those of `hmsa.deploy.engines`."""
    parser.add_argument(
        "--engine",
        choices=["auto", "eager", "inference", "openvino", "onnxruntime"],
        default=default,
        help="what runs the network in evaluation: auto is eager on a GPU, Paddle Inference on a CPU (default: "
        "%(default)s)",
    )


def add_inference_flags(parser: argparse.ArgumentParser, augment_flag: str) -> None:
    """Flags for the engine, and for flips, outer scales and tiles as PaddleSeg spells them (sizes are width height)."""
    add_engine_flag(parser, "auto")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 where the engine has it")
    parser.add_argument(augment_flag, action="store_true", help="average over --scales and the flips")
    parser.add_argument("--scales", nargs="+", type=float, help=f"outer scales, averaged (with {augment_flag})")
    parser.add_argument("--flip_horizontal", action="store_true", help="also run mirrored left to right")
    parser.add_argument("--flip_vertical", action="store_true", help="also run mirrored top to bottom")
    parser.add_argument("--is_slide", action="store_true", help="run in overlapping tiles of --crop_size")
    parser.add_argument("--crop_size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="size of a tile")
    parser.add_argument("--stride", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="step from tile to tile")


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def training_options(args: argparse.Namespace) -> list[str]:
    """Flags of `train.py` that stand for something in the YAML, as `--opts` entries; flags not given set nothing."""
    keys = {name: name for name in ("iters", "batch_size", "precision", "seed")}
    keys["learning_rate"] = "lr_scheduler.learning_rate"
    options = [f"{key}={getattr(args, flag)}" for flag, key in keys.items() if getattr(args, flag) is not None]
    return [*options, "deterministic=true"] if args.deterministic else options


def inference_options(args: argparse.Namespace, augment: bool) -> Sequence[str]:
    """The flags of `add_inference_flags` as `--opts` entries for `test_config`; flags not given set nothing."""
    options = []
    if augment:
        options.append("test_config.aug_eval=true")
    for name in ("flip_horizontal", "flip_vertical", "is_slide"):
        if getattr(args, name):
            options.append(f"test_config.{name}=true")
    for name in ("scales", "crop_size", "stride"):
        if getattr(args, name):
            options.append(f"test_config.{name}={list(getattr(args, name))}")
    return options
