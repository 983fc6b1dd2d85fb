#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What an export scores and takes on a recipe's validation set, in every engine and precision that it has.

    python export.py --config RECIPE --model_path WEIGHTS --save_dir FOLDER --format onnx,openvino \
        --precision fp32,fp16,int8 --calibration IMAGES
    python benchmarks/int8.py --config RECIPE --export FOLDER

The scores are those of val.py, by the same code; the milliseconds are of the network alone, without reading images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import hmsa.system.prepared  # noqa: F401

import numpy as np
import paddle

from hmsa import builder, cli
from hmsa.deploy.benchmark import has_bf16, machine, written
from hmsa.deploy.engines import ENGINES, Session, is_installed, open_export, precisions_of
from hmsa.deploy.runtime import read_deployment
from hmsa.engine.evaluate import evaluate
from hmsa.inference.averaging import InferenceOptions
from hmsa.system.environment import threads


class Timed:
    """An export as a network, images -> logits, which counts its seconds. Of labels alone, the logits are 0 and 1."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.seconds: list[float] = []

    def __call__(self, image: paddle.Tensor) -> paddle.Tensor:
        given = image.numpy()
        start = time.perf_counter()
        answer = next(iter(self.session(given).values()))
        self.seconds.append(time.perf_counter() - start)

        if answer.ndim == 3:
            numbers = np.arange(len(self.session.deployment.class_names))[:, np.newaxis, np.newaxis]
            answer = (answer[:, np.newaxis] == numbers).astype(np.float32)
        return paddle.to_tensor(answer)


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--export", required=True, help="folder that export.py wrote, without --preprocess")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="only these")
    parser.add_argument("--max_images", type=cli.count, help="the first ones of the validation set")
    return parser


def main(args: argparse.Namespace) -> None:
    dataset = builder.build_dataset(cli.read_recipe(args), "val")
    deployment = read_deployment(args.export)
    print("| engine | format | precision | mIoU | pixel accuracy | median ms |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for engine in filter(is_installed, args.engines):
        for precision, form in precisions_of(engine, deployment).items():
            if precision == "bf16" and not has_bf16():
                continue
            network = Timed(open_export(args.export, engine, precision))
            options: dict[str, Any] = {"max_images": args.max_images, "progress": sys.stderr.isatty()}
            scores = evaluate(network, dataset, InferenceOptions(), **options).scores
            percent = [f"{100 * scores[name]:.2f} %" for name in ("mean_iou", "pixel_accuracy")]
            milliseconds = f"{1000 * statistics.median(network.seconds):.1f}"
            print(f"| {' | '.join([engine, form, precision, *percent, milliseconds])} |", flush=True)
    print(f"\n{written(machine(threads()))}")


if __name__ == "__main__":
    cli.run(main, make_parser())
