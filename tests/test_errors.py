# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

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
