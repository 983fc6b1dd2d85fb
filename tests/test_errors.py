# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmsa.errors import DataError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("configs/größe/模型.yml: expected 'a  b'", "configs/größe/模型.yml: expected 'a  b'"),
        ("line 1\n  line 2\r\nline 3", "line 1   line 2 line 3"),
        ("\x1b[2Jgone\x07\t\x9b0m", r"\x1b[2Jgone\x07\t\x9b0m"),
        ("right\u202eleft\u200b\ud800\udcff", r"right\u202eleft\u200b\ud800\udcff"),
    ],
)
def test_a_message_is_one_line_that_a_terminal_only_shows(text, shown):
    assert printable(text) == shown
    assert str(DataError(text)) == shown


CONSOLES = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "utf-8:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C"},
]


@pytest.mark.parametrize("console", CONSOLES)
def test_a_console_shows_any_name(tmp_path, console):
    """A tool prints the folder it was given, whose name no console of these can show as it is."""
    root = Path(__file__).parents[1]
    arguments = ["--train", "0", "--coarse", "0", "--val", "0", "--test", "1", "--size", "64", "64", "--output"]
    name = "größe 图 ".encode() + b"\xff"
    result = subprocess.run(
        [sys.executable, str(root / "tools/make_toy_cityscapes.py"), *arguments, name],
        cwd=tmp_path, env={**os.environ, **console}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert b"0 train, 0 coarse, 0 val and 1 test" in result.stdout and result.stderr == b""
    assert len(list((tmp_path / os.fsdecode(name)).rglob("*.png"))) == 3
