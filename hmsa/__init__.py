# SPDX-License-Identifier: Apache-2.0
"""Hierarchical multi-scale attention for semantic segmentation, on PaddlePaddle.

`import hmsa` changes nothing. The first use of what it offers, and every module that needs Paddle,
prepare the process as the scripts do, see `hmsa.system.environment.prepare`: import them before Paddle, as it
cannot all be made up for later.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hmsa import former
from hmsa.system.version import VERSION as __version__

if TYPE_CHECKING:
    from hmsa.builder import build_model as build_model
    from hmsa.config.reading import load_config as load_config
    from hmsa.segmenter import Segmenter as Segmenter
    from hmsa.weights.loading import load_weights as load_weights

__all__ = ["Segmenter", "__version__", "build_model", "load_config", "load_weights"]

_HOMES = {
    "load_config": "hmsa.config.reading",
    "build_model": "hmsa.builder",
    "load_weights": "hmsa.weights.loading",
    "Segmenter": "hmsa.segmenter",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for: `import hmsa` alone does not load Paddle."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hmsa' has no attribute {name!r}")
    from contextlib import suppress
    from importlib import import_module

    from hmsa.errors import UsageError
    from hmsa.system.environment import prepare

    with suppress(UsageError):  # Recipes can be read without Paddle; what needs it says so.
        prepare()
    return getattr(import_module(_HOMES[name]), name)


sys.meta_path.append(former.Finder())
