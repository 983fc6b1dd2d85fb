# SPDX-License-Identifier: Apache-2.0
"""Python programs in processes of their own, for packages that end theirs, or stand in another environment."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_python(
    python: str | Path, program: str, *words: Any, folder: str, environment: Mapping[str, str]
) -> tuple[int, list[str]]:
    """Run the text of a program -> its status, negative for a signal, and the lines that it printed, none empty.

    Args:
        python: the interpreter.
        words: its arguments.
        folder: that it runs in.
    """
    done = subprocess.run(
        [python, "-c", program, *map(str, words)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    return done.returncode, [line.strip() for line in done.stdout.splitlines() if line.strip()]
