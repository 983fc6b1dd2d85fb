# SPDX-License-Identifier: Apache-2.0
"""Print what a recipe may hold: a JSON schema for editors, or a page to read."""

from __future__ import annotations

import argparse
import json
import sys

from hmsa import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="the page, in place of the JSON schema")
    parser.add_argument(
        "--output", metavar="FILE", help="write it there, in place of an earlier one (default: print it)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from hmsa.config import reference

    text = reference.markdown() if args.markdown else json.dumps(reference.json_schema(), indent=1) + "\n"
    if args.output is None:
        sys.stdout.write(text)
        return

    from hmsa.system.files import output_file, write_atomically

    write_atomically(output_file(args.output), text.encode())
    print(f"written to {args.output}")
