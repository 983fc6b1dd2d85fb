# SPDX-License-Identifier: Apache-2.0
"""Evaluate weights on the validation set: a table of scores, and a JSON file with everything behind it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hmsa import cli


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--model_path", required=True, help="weights (.pdparams, .pth or .safetensors) or a checkpoint folder"
    )
    parser.add_argument("--num_workers", type=cli.count_or_none, default=0, help="threads that load images ahead")
    parser.add_argument(
        "--output", default="output/evaluation.json", help="where the JSON goes; an earlier one is kept, as NAME.1.json"
    )
    cli.add_inference_flags(parser, "--aug_eval")
    cli.add_processes_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    config = cli.read_recipe(args, cli.inference_options(args, args.aug_eval))
    cli.check_inference_flags(args, "--aug_eval", config.test_config)
    config.require("val_dataset")
    cli.start_processes(args, "val", Path(args.output).parent)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.distributed import ranks
    from hmsa.engine.evaluate import evaluate
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.system.files import output_file, write_atomically

    options = InferenceOptions.from_test_config(config.test_config)
    ranks.init()
    output = ranks.decided_by_main(lambda: output_file(args.output))
    dataset = builder.build_dataset(config, "val")
    network, weights_sha256 = builder.open_network(
        config, args.model_path, backend=args.engine, precision=args.precision
    )

    evaluation = evaluate(network, dataset, options, num_workers=args.num_workers)
    if ranks.is_main():
        result = evaluation.to_json(config=config.model_dump(mode="json"), weights_sha256=weights_sha256)
        try:
            print(evaluation.table(), flush=True)
        finally:  # a console that cannot show the table does not lose the file, nor the other way round
            kept = write_atomically(output, json.dumps(result, indent=1).encode(), keep_earlier=True)
        print(f"written to {output}" + (f"; the earlier one is kept as {kept}" if kept else ""))
        for remark in config.remarks():
            print(f"warning: {remark}", file=sys.stderr)
