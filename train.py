#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""`hmsa train`, see hmsa.commands.train."""

from hmsa import cli
from hmsa.commands.train import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    cli.run(main, make_parser())
