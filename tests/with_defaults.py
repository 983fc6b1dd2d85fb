# SPDX-License-Identifier: Apache-2.0
"""The components of this project by name; what a test does not give is their Spec's default, bounds are left alone."""

from functools import partial
from typing import Any

from hmsa.components import KINDS, imported
from hmsa.config.fields import defaults


def __getattr__(name: str) -> Any:
    for table in KINDS.values():
        if name in table:
            spec, place = table[name]
            return partial(imported(place), **defaults(spec))
    raise AttributeError(name)
