# SPDX-License-Identifier: Apache-2.0
"""What a person can put right. Scripts print the sentence and exit with the status, without a traceback."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, and what a terminal would obey or cannot show spelt out: names may come from a stranger."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class HmsaError(Exception):
    """A sentence that says what was expected, what was found and what to do; a line for each if there are several."""

    status = 1

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(printable, sentences)))


class UsageError(HmsaError):
    """A wrong command line or configuration."""

    status = 2


class DataError(HmsaError):
    """A picture, a label, a data set or a weight file that cannot be used."""


class Interrupted(HmsaError):
    """Ended by a signal after everything was put in order; the status is what a shell gives such a process."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number
