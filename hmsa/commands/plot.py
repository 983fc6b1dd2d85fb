# SPDX-License-Identifier: Apache-2.0
"""Draw a sheet of a run: loss and its terms, rate, mean IoU, IoU of the classes, confusion; or compare several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hmsa import cli

if TYPE_CHECKING:
    from hmsa.report.records import Record

FORMATS = (".jpg", ".pdf", ".png", ".svg")


def records_of(folder: Path) -> list[Record]:
    """What a run has recorded, by VisualDL alone where it is from before `metrics.jsonl`.

    Raises:
        DataError: there are none.
    """
    from hmsa.engine.loggers import CURVES_FILE, read_visualdl
    from hmsa.errors import DataError
    from hmsa.report.records import RECORDS_FILE, read

    path, curves = folder / RECORDS_FILE, folder / CURVES_FILE
    records = read(path)
    left_out = len(path.read_bytes().splitlines()) - len(records) if path.is_file() else 0
    if left_out:
        print(f"{path}: {left_out} of {len(records) + left_out} lines are no records, and are left out")
    if not records and curves.is_file():
        records = read_visualdl(curves)
    if not records:
        raise DataError(f"{path}: expected the records of a run, found none; name its --save_dir")
    return records


def names_of(folders: list[Path]) -> list[str]:
    """What the runs are called: by their folders, with as much of the path as tells them apart."""
    for depth in range(1, max(len(folder.absolute().parts) for folder in folders) + 1):
        names = ["/".join(folder.absolute().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(folders):
            break
    return names


def main(args: argparse.Namespace) -> None:
    from hmsa.errors import UsageError
    from hmsa.report.curves import Run, draw
    from hmsa.system.files import output_file, write_atomically

    output = output_file(args.output)
    if output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output}: expected a name that ends in {', '.join(FORMATS)}: choose one")
    folders = list(dict.fromkeys(map(Path.absolute, args.log_dir)))
    if len(folders) < len(args.log_dir):
        raise UsageError("expected every run once in --log_dir, found one twice: leave it out")
    figure = draw([Run(name, records_of(folder)) for name, folder in zip(names_of(folders), folders)])
    earlier = ", in place of an earlier file" if output.exists() else ""
    write_atomically(output, lambda file: figure.savefig(file, format=output.suffix[1:].lower(), dpi=110))
    print(f"written to {output}{earlier}")


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    several = "--save_dir of a run, or of several"
    parser.add_argument("--log_dir", type=Path, nargs="+", action="extend", required=True, help=several)
    parser.add_argument("--output", required=True, help="image to write, e.g. curves.png")
    return parser
