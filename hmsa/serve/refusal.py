# SPDX-License-Identifier: Apache-2.0
"""What a client is told instead of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional


class Refusal(Exception):
    """A request that gets no answer, with the status of HTTP and the sentence that say why."""

    def __init__(self, status: int, sentence: str, headers: Optional[Mapping[str, str]] = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})
