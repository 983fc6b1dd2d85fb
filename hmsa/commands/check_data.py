# SPDX-License-Identifier: Apache-2.0
"""Look at every image and mask of a recipe before it is trained: what is wrong, and the lines that put it right."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from hmsa import cli
from hmsa.errors import DataError, printable

if TYPE_CHECKING:
    from hmsa.config.schema import Config
    from hmsa.datasets.findings import Finding
    from hmsa.datasets.survey import Survey

FACTS, SHEET = "data.json", "samples.png"
"""What lies in the folder of --output."""


def make_parser() -> cli.Parser:
    parser = cli.config_parser(__doc__ or "")
    add = parser.add_argument
    add("--output", type=Path, metavar="FOLDER", help=f"where to write {FACTS} (all numbers) and {SHEET} (to look at)")
    add("--num_workers", type=cli.count, default=os.cpu_count(), help="threads (default: %(default)s)")
    add("--max_images", type=cli.count, help="look at so many of each data set, spread evenly (default: all)")
    add("--statistics", action="store_true", help="print mean and std of the images to train on, as lines of YAML")
    return parser


def main(args: argparse.Namespace) -> None:
    config = cli.read_recipe(args)
    config.require("train_dataset")

    from hmsa.system.environment import prepare

    prepare()
    from hmsa.datasets.findings import all_findings
    from hmsa.report import data
    from hmsa.system.files import writable_folder, write_atomically

    if args.output:
        writable_folder(args.output)
    start = time.perf_counter()
    surveys, unusable = _look(args, config)
    limit = config.bad_sample_limit if config.on_bad_sample == "skip" else 0
    found = all_findings(
        surveys, crop_size=_crop_size(config), max_pixels=config.max_image_pixels, bad_sample_limit=limit
    )
    findings = [*unusable, *found]

    print(data.table(surveys, findings))
    if args.statistics and "train" in surveys:
        print("\n" + "\n".join(data.statistics_lines(surveys["train"])))
    if args.output:
        facts = data.to_json(surveys, findings, config=args.config, seconds=time.perf_counter() - start)
        write_atomically(args.output / FACTS, json.dumps(facts, indent=1).encode())
        sheet = data.sheet(surveys, config.max_image_pixels)
        if sheet:
            content = io.BytesIO()
            sheet.save(content, "PNG")
            write_atomically(args.output / SHEET, content.getvalue())
        print()
        print(printable(f"written to {args.output}: {FACTS}{f', {SHEET}' * (sheet is not None)}"))
    _end(findings, args.config)


def _look(args: argparse.Namespace, config: Config) -> tuple[dict[str, Survey], list[Finding]]:
    """The surveys of the data sets there are, and what keeps one from being read at all."""
    from hmsa import builder
    from hmsa.datasets.findings import Finding
    from hmsa.datasets.survey import survey

    surveys, unusable = {}, []
    for name in ("train", "val"):
        if getattr(config, f"{name}_dataset") is None:
            continue
        try:
            dataset = builder.build_dataset(config, name, missing_files=True)
        except DataError as error:
            sentence, *names = str(error).splitlines()
            unusable.append(Finding("unusable_dataset", name, sentence, 1 + len(names), tuple(names)))
            continue
        surveys[name] = survey(
            dataset, max_pairs=args.max_images, num_workers=args.num_workers, progress=f"{name}_dataset"
        )
    return surveys, unusable


def _crop_size(config: Config) -> Optional[list[int]]:
    """Width and height of what training cuts out of images in their own sizes; None if it does something else."""
    for spec in config.train_dataset.transforms if config.train_dataset else ():
        if spec.type == "RandomPaddingCrop":
            return list(spec.crop_size)
        if spec.type in ("Resize", "Padding") or ("Scal" in spec.type and spec.type != "ResizeStepScaling"):
            return None
    return None


def _end(findings: list[Finding], recipe: str) -> None:
    """DataError if a training would fail, or learn nothing."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        things = "1 thing" if len(errors) == 1 else f"{len(errors)} things"
        raise DataError(
            f"{recipe}: expected data to train on, found {things} with which training fails or learns nothing: put "
            "right what is called error above"
        )
