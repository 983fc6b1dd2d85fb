# SPDX-License-Identifier: Apache-2.0
"""`hmsa toy`, see hmsa.commands.toy, but that the labels are left to the tools that convert Cityscapes'."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa import cli
from hmsa.commands import toy
from hmsa.commands.toy import make_parser


def main(args: argparse.Namespace) -> None:
    args.label_ids = args.kind == "cityscapes"
    toy.main(args)


if __name__ == "__main__":
    cli.run(main, make_parser())
