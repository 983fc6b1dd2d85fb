# SPDX-License-Identifier: Apache-2.0
"""`hmsa inspect-batch`, see hmsa.commands.inspect_batch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hmsa import cli
from hmsa.commands.inspect_batch import main, make_parser

if __name__ == "__main__":
    cli.run(main, make_parser())
