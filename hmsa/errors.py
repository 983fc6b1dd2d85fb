# SPDX-License-Identifier: Apache-2.0
"""What a person can put right. Scripts print the sentence and exit with the status, without a traceback."""

from __future__ import annotations


class HmsaError(Exception):
    """One sentence that says what was expected, what was found and what to do."""

    status = 1


class UsageError(HmsaError):
    """A wrong command line or configuration."""

    status = 2


class DataError(HmsaError):
    """A picture, a label, a data set or a weight file that cannot be used."""
