#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Evaluation, training step and loader of an earlier checkout beside this one's, taking turns.

    git worktree add /tmp/earlier v1 && python benchmarks/earlier.py /tmp/earlier

Both sides are `ours` of their own checkout's scripts, with the Python that runs this.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from timing import memory, row, take_turns, times

HERE = Path(__file__).resolve().parent
ROWS = (
    ("evaluation forward, HRNet-W48, scales 0.5 1 2, 256x512", "evaluation.py", "ours"),
    ("training step, HRNet-W48, 256x512, batch 1", "training_step.py", "ours"),
    ("training step, HRNet-W48, 256x512, batch 1, `recompute: true`", "training_step.py", "recompute"),
    ("loading ten 2048x1024 pairs with the recipe's transforms, one core", "loader.py", "ours"),
)
"""What is measured: the script, and its side."""


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "benchmarks/timing.py").is_file():
        sys.exit("error: expected the folder of an earlier checkout, which has benchmarks/timing.py: give its path")
    checkouts = {"theirs": Path(sys.argv[1]).resolve(), "ours": HERE.parent}

    row("what", "of", "earlier", "now", "")
    row(*["---"] * 5)
    for what, script, side in ROWS:
        measured = take_turns(
            {
                name: (
                    [sys.executable, str(root / "benchmarks" / script), "--side", side],
                    {**os.environ, "PYTHONPATH": str(root)},
                )
                for name, root in checkouts.items()
            }
        )
        row(what, "time", *times(measured))
        row(what, "memory", *memory(measured))


if __name__ == "__main__":
    main()
