# SPDX-License-Identifier: Apache-2.0
"""Make the images of train ids that training and evaluation on Cityscapes read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hmsa import cli
from hmsa.commands.convert import CITYSCAPES, add_cityscapes_flags, cityscapes, main


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=CITYSCAPES)
    add_cityscapes_flags(parser)
    parser.set_defaults(run=cityscapes)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
