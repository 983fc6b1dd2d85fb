#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Build a TensorRT engine from the ONNX file of an exported folder.

    python deploy/tensorrt/build.py output/export --precision fp16 --opt 1x512x1024
    python deploy/tensorrt/build.py output/export --precision int8 --opt 1x512x1024 --trtexec

TensorRT 11 knows strongly typed networks alone: the precision is that of the file. model_fp16.onnx (export.py
--precision fp16) has the types of every tensor in it, model_int8.onnx (--precision int8) pairs of QuantizeLinear and
DequantizeLinear, signed and symmetric. TensorRT 10 builds them too. In fp32, TF32 is switched off, which TensorRT takes
by itself. This program needs the package tensorrt and PyYAML, nothing of this project.

Unrun here: no GPU. Its calls are those of TensorRT 11's documentation. An engine runs on the kind of GPU and with the
TensorRT that built it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}

Sides = tuple[int, int, int]
"""N, H, W of an input."""

RANGES: dict[str, Sides] = {"min": (1, 256, 512), "opt": (1, 512, 1024), "max": (4, 1024, 2048)}
"""Of the inputs that an engine takes, where nobody says otherwise."""


def main() -> None:
    args = make_parser().parse_args()
    deploy = read_deployment(args.folder)
    model = args.folder / FILES[args.precision]
    if not model.is_file():
        sys.exit(
            f"error: {model}: expected the network in ONNX, found none: export.py --format onnx --precision "
            f"{args.precision} writes it"
        )

    options = {
        "name": deploy["input_name"],
        "ranges": input_shapes(args, deploy),
        "workspace": args.workspace,
        "cache": args.timing_cache,
        "tf32": args.precision != "fp32",
    }
    target = args.output or model.with_suffix(".plan")
    if args.trtexec:
        print(shlex.join(trtexec_command(model, target, **options)))
        return
    target.write_bytes(build(model, **options))
    print(f"written to {target}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an export with --format onnx")
    parser.add_argument("--precision", choices=list(FILES), default="fp16", help="(default: fp16)")
    for name, which in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
        default = "x".join(map(str, RANGES[name]))
        parser.add_argument(
            f"--{name}",
            type=sides,
            metavar="NxHxW",
            help=f"the {which} input (default: {default}, or the sides that the export has)",
        )
    parser.add_argument(
        "--workspace", type=int, default=4096, metavar="MIB", help="memory a layer may take (default: 4096)"
    )
    parser.add_argument(
        "--timing_cache", type=Path, metavar="FILE", help="what was measured of layers, read and written: builds faster"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: model_PRECISION.plan in the folder)")
    parser.add_argument(
        "--trtexec", action="store_true", help="only print the command of trtexec, TensorRT's own program, that does it"
    )
    return parser


def sides(text: str) -> Sides:
    """Batch, height and width of an input, for argparse."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"expected batch, height and width such as 1x512x1024, found {text!r}")
    N, H, W = map(int, numbers)
    return N, H, W


def read_deployment(folder: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load((folder / "deploy.yaml").read_text(encoding="utf-8"))["Deploy"]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        sys.exit(f"error: {folder}: expected a folder that export.py wrote, but: {error!r:.200}")


def input_shapes(args: argparse.Namespace, deploy: dict[str, Any]) -> list[tuple[int, ...]]:
    """The smallest, the usual and the largest input, in the layout of `deploy.yaml`, NCHW or NHWC."""
    fixed = dict(zip(deploy["input_layout"], deploy["input_shape"]))
    shapes = []
    for name, usual in RANGES.items():
        given: Sides | None = getattr(args, name)
        sizes = dict(zip("NHW", given or usual))
        for axis, size in sizes.items():
            if given and fixed[axis] not in (None, size):
                sys.exit(f"error: --{name}: this export takes {axis} = {fixed[axis]} alone, found {size}: correct it")
        shapes.append(tuple(fixed[axis] or sizes[axis] for axis in deploy["input_layout"]))

    if not all(low <= usual <= high for low, usual, high in zip(*shapes)):
        words = ", ".join("x".join(map(str, shape)) for shape in shapes)
        sys.exit(f"error: expected --min, --opt and --max to grow in each dimension, found {words}: correct them")
    return shapes


def build(
    model: Path,
    *,
    name: str,
    ranges: Sequence[tuple[int, ...]],
    workspace: int,
    cache: Path | None,
    tf32: bool,
) -> bytes:
    """The engine, serialised.

    Args:
        name: of the input.
        ranges: its smallest, usual and largest shape.
        workspace: MiB.
        cache: a file of timings, which may not exist yet.
        tf32: whether float32 may be multiplied with 10 bits behind the point, as TensorRT does unless told not to.
    """
    try:
        import tensorrt as trt
    except ImportError:
        sys.exit("error: expected the package tensorrt, found none: pip install tensorrt, or use --trtexec")

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 10 takes types from the file alone where it is told to; 11 always does, and knows the flag still.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        sys.exit(f"error: {model}: TensorRT {trt.__version__} cannot read it: {reasons}")

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *ranges)
    config.add_optimization_profile(profile)
    if cache is not None:
        known = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit(f"error: {model}: TensorRT {trt.__version__} cannot build it: its messages above say why")
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def trtexec_command(
    model: Path,
    target: Path,
    *,
    name: str,
    ranges: Sequence[tuple[int, ...]],
    workspace: int,
    cache: Path | None,
    tf32: bool,
) -> list[str]:
    """The words that build the same with TensorRT's own program."""
    shapes = [f"{name}:{'x'.join(map(str, shape))}" for shape in ranges]
    return [
        "trtexec",
        f"--onnx={model}",
        f"--saveEngine={target}",
        *(f"--{flag}Shapes={shape}" for flag, shape in zip(("min", "opt", "max"), shapes)),
        f"--memPoolSize=workspace:{workspace}",
        *([f"--timingCacheFile={cache}"] if cache is not None else []),
        *(["--noTF32"] if not tf32 else []),
        "--stronglyTyped",
        "--skipInference",
    ]


if __name__ == "__main__":
    main()
