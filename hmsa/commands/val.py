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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hmsa import cli
from hmsa.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from hmsa.config.schema import Config
    from hmsa.datasets.dataset import SegmentationDataset
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.inference.network import FusedNetwork
    from hmsa.report.notes import Notes
    from hmsa.report.result import Evaluation


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
    parser.add_argument(
        "--report", metavar="DIR", help="also write DIR/index.html, a page of scores, images, mistakes and attention"
    )
    parser.add_argument(
        "--report_images",
        type=cli.count,
        metavar="N",
        help="how many of the best and of the worst images --report shows, and half as many others (default: 8)",
    )
    parser.add_argument(
        "--compare", metavar="JSON", help="an earlier --output, beside whose scores --report puts those found now"
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
    from hmsa.report import official
    from hmsa.report.result import plain
    from hmsa.system.files import output_file, writable_folder, write_atomically
    from hmsa.system.signals import end_in_order

    end_in_order()
    ranks.init()
    output = ranks.decided_by_main(lambda: output_file(args.output))
    earlier = read_earlier(args.compare) if args.compare else None
    if args.report:
        ranks.decided_by_main(lambda: writable_folder(args.report))
    dataset = builder.build_dataset(config, "val")
    of_ids = official.official_labels([label for _, label in dataset.pairs if label]) if args.official else []

    page, kept_page, differing = None, None, []
    with contextlib.ExitStack() as stack:
        scored = score_files(args, dataset) if args.predictions else score_network(args, config, dataset, stack)
        if not ranks.is_main():
            return
        digest = scored.weights_sha256
        result = scored.evaluation.to_json(config=config.model_dump(mode="json"), weights_sha256=digest)
        result |= {"predictions": args.predictions, "values": args.values} if args.predictions else {}
        tables = [scored.evaluation.table()]
        if args.official:
            theirs = official.official(scored.label_files, of_ids)
            differing = official.differences(scored.evaluation, theirs)
            result["official"] = plain(theirs)
            tables.append(official.table(theirs))
        if scored.notes is not None:
            result["decided_shares"] = scored.notes.shares()
            page, kept_page = write_report(args, config, dataset, scored, result, earlier)

    try:
        print(*tables, sep="\n\n", flush=True)
    finally:  # a console that cannot show the table does not lose the file, nor the other way round
        kept = write_atomically(output, json.dumps(result, indent=1).encode(), keep_earlier=True)
    print(f"written to {output}" + (f"; the earlier one is kept as {kept}" if kept else ""))
    for remark in config.remarks():
        print(f"warning: {remark}", file=sys.stderr)
    if args.official:
        say_whether_equal(differing)
    if kept_page is not None:
        print(printable(f"the earlier report is kept as {kept_page}"))
    if page is not None:
        print(printable(f"report: {page}"))


@dataclass(frozen=True)
class Scored:
    """An evaluation, and what is left of it for what comes after."""

    evaluation: Evaluation
    label_files: Sequence[Path] = ()  # PNGs of the data set's own values, one for each image, where they were written
    weights_sha256: Optional[str] = None  # these three of a network
    network: Optional[FusedNetwork] = None
    notes: Optional[Notes] = None  # for a report


def score_files(args: argparse.Namespace, dataset: SegmentationDataset) -> Scored:
    """Score the label PNGs of --predictions."""
    from hmsa.engine import files

    paths = files.find_predictions(Path(args.predictions), [image for image, _ in dataset.pairs])
    return Scored(files.score(dataset, paths, args.values), paths)


def score_network(
    args: argparse.Namespace, config: Config, dataset: SegmentationDataset, stack: contextlib.ExitStack
) -> Scored:
    """Evaluate the weights of --model_path.

    Args:
        stack: closes what the files of the answers lie in.
    """
    from hmsa import builder
    from hmsa.engine import files
    from hmsa.engine.evaluate import evaluate
    from hmsa.inference.averaging import InferenceOptions
    from hmsa.report.notes import Answer, Notes
    from hmsa.system.files import writable_folder

    network, digest = builder.open_network(config, args.model_path, backend=args.engine, precision=args.precision)
    write, paths, notes = None, [], None
    if args.save_predictions or args.official:
        folder = args.save_predictions or stack.enter_context(shared_folder())
        write = files.PredictionWriter(writable_folder(folder), dataset)
        paths = [write.paths[image] for image, _ in dataset.pairs]
    if args.report:
        notes = Notes(dataset.classes, len(dataset), network.scales, Path(stack.enter_context(shared_folder())))

    def seen(answer: Answer) -> None:
        if write is not None:
            write(answer.image_path, answer.prediction)
        if notes is not None:
            notes(answer)

    options = InferenceOptions.from_test_config(config.test_config)
    looked_into = notes.sample() if notes else ()
    evaluation = evaluate(network, dataset, options, num_workers=args.num_workers, seen=seen, looked_into=looked_into)
    if notes is not None:
        notes.add_up()
    return Scored(evaluation, paths, digest, network, notes)


def write_report(
    args: argparse.Namespace,
    config: Config,
    dataset: SegmentationDataset,
    scored: Scored,
    result: dict[str, Any],
    earlier: Optional[tuple[str, dict[str, Any]]],
) -> tuple[Path, Optional[Path]]:
    """Write the page of --report -> its path, and that of an earlier one, which is kept."""
    import yaml

    from hmsa.inference.averaging import InferenceOptions
    from hmsa.report.page import Page

    assert scored.network is not None and scored.notes is not None
    options = InferenceOptions.from_test_config(config.test_config)
    page = Page(
        network=scored.network,
        dataset=dataset,
        options=options,
        evaluation=scored.evaluation,
        notes=scored.notes,
        result=result,
        title=title_of(args, config),
        settings=settings_of(args, config, options, scored.weights_sha256, len(dataset)),
        recipe=yaml.safe_dump(result["config"], sort_keys=False, allow_unicode=True),
        images=args.report_images or 8,
        earlier=earlier,
    )
    return page.write(Path(args.report))


def check_what(args: argparse.Namespace) -> None:
    """UsageError unless it is clear what is to be evaluated, and every flag does something for it."""
    if (args.model_path is None) == (args.predictions is None):
        found = "neither" if args.model_path is None else "both"
        raise UsageError(
            f"expected --model_path, weights, or --predictions, a folder of label PNGs, found {found}: give one of them"
        )
    if not args.report:
        cli.refuse_idle(args, "report_images", "compare", without="--report")
    if not args.predictions:
        cli.refuse_idle(args, "values", without="--predictions")
        return
    network = ("save_predictions", "aug_eval", "is_slide", "report", "engine", "precision", "num_workers")
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


def read_earlier(path: str) -> tuple[str, dict[str, Any]]:
    """An evaluation's JSON, and its name. UsageError if it is none."""
    try:
        result = json.loads(Path(path).read_bytes())
        filled = all(isinstance(result[key], dict) and result[key] for key in ("iou", "config"))
        if not (filled and 0 <= result["mean_iou"] <= 1):
            raise ValueError("something is missing")
    except OSError as error:
        raise UsageError(
            f"{path}: expected the JSON of an evaluation to compare with, found no file that can be read "
            f"({error.strerror}); check the path"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: expected the JSON of an evaluation to compare with, found something else; give what --output "
            "wrote"
        ) from error
    return printable(path), result


def title_of(args: argparse.Namespace, config: Config) -> str:
    """What a report is called: the recipe's name, which of a checkpoint's says nothing, or the run's."""
    recipe = Path(args.config)
    parts = recipe.resolve().parent.parts[-2:] if recipe.name == "config.yml" else [recipe.stem]
    return printable(f"Evaluation of {'/'.join(parts)}")


def settings_of(
    args: argparse.Namespace, config: Config, options: InferenceOptions, digest: Optional[str], images: int
) -> list[tuple[str, str]]:
    """What made the scores, for a person to read."""
    from hmsa.inference import backends
    from hmsa.system.device import on_gpu

    dataset = config.val_dataset
    folders = [getattr(dataset, key, None) for key in ("image_dir", "dataset_root", "val_path")]
    folder = next((folder for folder in folders if folder), None)
    flips = [
        name
        for name, on in (("left to right", options.flip_horizontal), ("top to bottom", options.flip_vertical))
        if on
    ]
    averaged = f"scales {', '.join(f'{scale:g}' for scale in options.scales)}" if options.scales != (1.0,) else ""
    mirrored = f"mirrored {' and '.join(flips)}" if flips else ""
    tiles = ""
    if options.tile:
        (height, width), (down, right) = options.tile, options.stride or options.tile
        tiles = f"{width}x{height}, a step of {right}x{down}"
    found = {
        "weights": str(args.model_path),
        "data": f"{getattr(dataset, 'type', '')} in {folder}" if folder else str(getattr(dataset, "type", "")),
        "recipe": str(args.config),
        "changed by": " ".join(args.opts),
        "weights' SHA-256": digest or "",
        "images": f"{images}",
        "scales of the network": ", ".join(f"{scale:g}" for scale in sorted(config.model.scales)),
        "averaged over": ", ".join(filter(None, (averaged, mirrored))) or "nothing: one run an image",
        "tiles": tiles or "none: each image whole",
        "engine": f"{backends.choose(args.engine, args.precision)}, {args.precision}, {'GPU' if on_gpu() else 'CPU'}",
    }
    return [(name, printable(value)) for name, value in found.items() if value]


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    """A folder for all processes of this machine, which the main one deletes in the end."""
    from hmsa.distributed import ranks

    folder = ranks.decided_by_main(lambda: tempfile.mkdtemp(prefix="hmsa-"))
    try:
        if not all(ranks.all_gather(Path(folder).is_dir())):
            ranks.done()  # each ends by itself, with this error's status
            raise UsageError(
                "expected the processes of --report or --official on one machine, whose files all of them read, found "
                "several: run it on one, with --nproc_per_node"
            )
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
