# SPDX-License-Identifier: Apache-2.0
"""What a person can put right. Scripts print the sentence and exit with the status, without a traceback."""

from __future__ import annotations

import difflib
import io
import re
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Optional


def printable(text: str) -> str:
    """`text` on one line, and what a terminal would obey or cannot show spelt out: names may come from a stranger."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def show_anything() -> None:
    """Let consoles that lack a character show its number instead: no result is lost over a name in a message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class HmsaError(Exception):
    """A sentence that says what was expected, what was found and what to do; a line for each if there are several.

    Args:
        settings: what a person can set otherwise, such as "backend"; `hmsa.cli` knows the flags for them.
    """

    status = 1

    def __init__(self, *sentences: str, settings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(map(printable, sentences)))
        self.settings = settings


class UsageError(HmsaError):
    """A wrong command line or configuration."""

    status = 2


class DataError(HmsaError):
    """An image, a label, a data set or a weight file that cannot be used."""


class UnfitError(ValueError):
    """What is wrong with a file that need not be damaged, and what to do about it; becomes a part of a DataError."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Interrupted(HmsaError):
    """Ended by a signal after everything was put in order; the status is what a shell gives such a process."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, settings=["resume"])
        self.status = 128 + signal_number


class Terminated(KeyboardInterrupt):
    """A signal that ends the process as Ctrl-C does, see `hmsa.system.signals.end_in_order`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class OversizedError(UnfitError):
    """An image of more pixels than are allowed."""


# --- Saying what is wrong. ---


def shown(value: Any) -> str:
    """A value of a recipe for a message: as Python writes it, on one line, and shortened if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlevel = 3


def said_of(error: Any) -> str:
    """Of what pydantic's ValidationError found, the first: the key, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (dotted(first["loc"]), first["msg"])))


def dotted(parts: Iterable[Any]) -> str:
    """Parts of a key as in an option; what would not be read as a key there is shown as a value."""
    return ".".join(str(part) if re.fullmatch(r"[^\W.]{1,60}", str(part)) else shown(part) for part in parts)


def nearest(name: str, candidates: Iterable[str]) -> Optional[str]:
    """The candidate nearest to a misspelt name, None if none is near."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The candidate nearest to a misspelt name, as a question; the first twenty of them if none is near."""
    names = list(candidates)
    near = nearest(name, names)
    if near:
        return f"did you mean {near}?"
    return f"choose from {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
