# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark in a process of its own and write the table into docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
SCRIPTS = (
    "evaluation.py",
    "evaluation_memory.py",
    "validation.py",
    "exported.py",
    "training_step.py",
    "recipe_step.py",
    "losses.py",
    "loader.py",
    "confusion.py",
    "autolabels.py",
)
BEGIN, END = "<!-- begin: printed by make bench -->", "<!-- end -->"


def main() -> None:
    page = ROOT / "docs/performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = ["| what | against | theirs | ours | |", "| --- | --- | --- | --- | --- |"]
    for script in SCRIPTS:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [sys.executable, HERE / script], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found = [line for line in run.stdout.splitlines() if line.startswith("| ")]
        print("\n".join(found), flush=True)
        rows += found
    where = (
        f"On {os.cpu_count()} cores ({platform.machine()}) with Paddle {version('paddlepaddle')} and Python "
        f"{platform.python_version()}, on the CPU:"
    )
    table = "\n".join([BEGIN, where, "", *rows, END])
    page.write_text(before + table + after, encoding="utf-8")


if __name__ == "__main__":
    main()
