# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark in a process of its own and write the table to docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TEXT = """# Performance

Printed by `make bench`: medians of five runs of each side, alternating, in milliseconds, on {cores} cores of a
{machine} machine with Paddle {paddle} on the CPU. Nothing here was measured on a GPU.

{table}
"""


def main() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rows = ["| what | against | theirs, ms | ours, ms | faster |", "| --- | --- | --- | --- | --- |"]
    for script in ("losses.py", "loader.py", "labels.py"):
        run = subprocess.run(
            [sys.executable, HERE / script], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found = [line for line in run.stdout.splitlines() if line.startswith("| ")]
        print("\n".join(found), flush=True)
        rows += found
    text = TEXT.format(
        cores=os.cpu_count(), machine=platform.machine(), paddle=version("paddlepaddle"), table="\n".join(rows)
    )
    (ROOT / "docs/performance.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
