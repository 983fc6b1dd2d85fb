# SPDX-License-Identifier: Apache-2.0
"""`hmsa submission`, see hmsa.commands.submission."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa import cli
from hmsa.commands.submission import main, make_parser

if __name__ == "__main__":
    cli.run(main, make_parser())
