# SPDX-License-Identifier: Apache-2.0
"""The components of this project by name; what a test does not give is their Spec's default, bounds are left alone."""

from functools import partial
from typing import Any

from hmsa.components import KINDS, imported


def __getattr__(name: str) -> Any:
    for table in KINDS.values():
        if name in table:
            spec, place = table[name]
            given = {key: field for key, field in spec.model_fields.items() if not field.is_required()}
            defaults = {key: field.get_default() for key, field in given.items() if not field.exclude}
            return partial(imported(place), **defaults)
    raise AttributeError(name)
