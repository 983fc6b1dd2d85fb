# SPDX-License-Identifier: Apache-2.0
"""Evaluate weights, or predictions that are files, on the validation set: a table of scores, and a JSON file with
everything behind it."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hmsa import cli
from hmsa.errors import DataError, UsageError


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--model_path", help="weights (.pdparams, .pth or .safetensors) or a checkpoint folder")
    parser.add_argument(
        "--predictions",
        metavar="DIR",
        help="in place of weights: a folder of label PNGs that any tool wrote, called by the stems of their images",
    )
    parser.add_argument(
        "--values",
        choices=["ids", "train_ids"],
        help="what --predictions hold: what the data set's own label files do (of Cityscapes, label ids), or class "
        "numbers",
    )
    parser.add_argument("--save_predictions", metavar="DIR", help="also write every prediction, as PNGs of ids")
    parser.add_argument(
        "--official",
        action="store_true",
        help="of Cityscapes: also run cityscapesscripts' own evaluation, and compare the scores to the last digit",
    )
    parser.add_argument("--num_workers", type=cli.count_or_none, default=0, help="threads that load images ahead")
    parser.add_argument(
        "--output", default="output/evaluation.json", help="where the JSON goes; an earlier one is kept, as NAME.1.json"
    )
    cli.add_inference_flags(parser, "--aug_eval")
    cli.add_processes_flag(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    check_what(args)
    config = cli.read_recipe(args, cli.inference_options(args, args.aug_eval))
    cli.check_inference_flags(args, "--aug_eval", config.test_config)
    config.require("val_dataset")
    cli.start_processes(args, "val", Path(args.output).parent)

    from hmsa.system.environment import prepare

    prepare()
    from hmsa import builder
    from hmsa.distributed import ranks
    from hmsa.engine import files
    from hmsa.engine.evaluate import evaluate
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.report import official
    from hmsa.report.result import plain
    from hmsa.system.files import output_file, writable_folder, write_atomically

    options = InferenceOptions.from_test_config(config.test_config)
    ranks.init()
    output = ranks.decided_by_main(lambda: output_file(args.output))
    dataset = builder.build_dataset(config, "val")
    images, labels = zip(*dataset.pairs)
    of_ids = official.official_labels(labels) if args.official else []

    with contextlib.ExitStack() as stack:
        if args.predictions:
            paths, weights_sha256 = files.find_predictions(Path(args.predictions), images), None
            evaluation = files.score(dataset, paths, args.values)
        else:
            network, weights_sha256 = builder.open_network(
                config, args.model_path, backend=args.engine, precision=args.precision
            )
            write, paths = None, []
            if args.save_predictions or args.official:
                folder = args.save_predictions or stack.enter_context(shared_folder())
                write = files.PredictionWriter(writable_folder(folder), dataset)
                paths = [write.paths[image] for image in images]
            evaluation = evaluate(network, dataset, options, num_workers=args.num_workers, seen=write)

        if not ranks.is_main():
            return
        result = evaluation.to_json(config=config.model_dump(mode="json"), weights_sha256=weights_sha256)
        result |= {"predictions": args.predictions, "values": args.values} if args.predictions else {}
        tables, differing = [evaluation.table()], []
        if args.official:
            theirs = official.official(paths, of_ids)
            differing = official.differences(evaluation, theirs)
            result["official"] = plain(theirs)
            tables.append(official.table(theirs))

    try:
        print(*tables, sep="\n\n", flush=True)
    finally:  # a console that cannot show the table does not lose the file, nor the other way round
        kept = write_atomically(output, json.dumps(result, indent=1).encode(), keep_earlier=True)
    print(f"written to {output}" + (f"; the earlier one is kept as {kept}" if kept else ""))
    for remark in config.remarks():
        print(f"warning: {remark}", file=sys.stderr)
    if args.official:
        say_whether_equal(differing)


def check_what(args: argparse.Namespace) -> None:
    """UsageError unless it is clear what is to be evaluated, and every flag does something for it."""
    if (args.model_path is None) == (args.predictions is None):
        found = "neither" if args.model_path is None else "both"
        raise UsageError(
            f"expected --model_path, weights, or --predictions, a folder of label PNGs, found {found}: give one of them"
        )
    if not args.predictions:
        cli.refuse_idle(args, "values", without="--predictions")
        return
    network = ("save_predictions", "aug_eval", "is_slide")
    cli.refuse_idle(args, *network, without="--model_path")
    if args.values is None:
        raise UsageError(
            "expected --values ids or train_ids, as --predictions may hold either, found neither: say what they hold"
        )
    if args.official and args.values != "ids":
        raise UsageError(
            "expected --values ids with --official, as cityscapesscripts reads label ids, found train_ids: write the "
            "predictions as label ids, or leave --official out"
        )


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    """A folder for all processes of this machine, which the main one deletes in the end."""
    from hmsa.distributed import ranks

    folder = ranks.decided_by_main(lambda: tempfile.mkdtemp(prefix="hmsa-"))
    try:
        yield folder
    finally:
        if ranks.is_main():
            shutil.rmtree(folder, ignore_errors=True)


def say_whether_equal(differing: Sequence[str]) -> None:
    """DataError if the two evaluations are not equal."""
    if differing:
        raise DataError(
            f"expected cityscapesscripts to find the IoUs that are found here, found others: {'; '.join(differing)}: "
            "are the images of train ids those of the label ids? tools/convert_cityscapes.py makes them"
        )
    print("cityscapesscripts finds the same IoU for every class and category, to the last digit")
