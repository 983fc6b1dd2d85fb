# SPDX-License-Identifier: Apache-2.0
"""Names of modules and of what is in them from before modules had rooms: they still import, with a warning.

Only names that exist nowhere else are looked up here, and nothing is loaded before it is asked for.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

_PLACES = {
    "config": "config.reading config.schema config.fields config.problems config.text components errors",
    "dialect": "config.dialect",
    "transforms": "datasets.transforms",
    "datasets.pictures": "datasets.images",
    "datasets.labels": "datasets.cityscapes visualize",
    "datasets.toy": "toy.street toy.cityscapes",
    "datasets.toy_drawing": "toy.drawing",
    "datasets.toy_painting": "toy.painting",
    "lifeline": "distributed.lifeline",
    "distributed": "distributed.ranks",
    "log": "engine.log",
    "deploy.engines": "inference.network inference.programs inference.backends",
    "deploy.programs": "inference.tracing inference.fold inference.programs",
    "deploy.cache": "inference.cache system.files",
    "deploy.fold": "inference.fold",
    "engine.inference": "inference.averaging models.hierarchical former",
    "engine.predict": "datasets.find",
    "metrics": "metrics.confusion",
    "environment": "system.environment",
    "memory": "system.memory system.device",
    "files": "system.files",
    "signals": "system.signals",
    "weights": "weights.loading weights.names",
    "weight_files": "weights.files system.files",
    "pickles": "weights.pickles",
    "downloads": "weights.downloads",
}
"""Module -> modules in which its names are now, below `hmsa`."""

_RENAMED = {"find_pictures": "find_images", "Picture": "ImageFile", "choose_engine": "choose"}


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module, for names that it had."""

    def look_up(name: str) -> Any:
        file = Path(vars(sys.modules[module]).get("__file__") or "")
        is_submodule = file.name == "__init__.py" and file.with_name(f"{name}.py").exists()
        if not name.startswith("__") and not is_submodule:
            for place in _PLACES[module.partition(".")[2]].split():
                found = getattr(import_module(f"hmsa.{place}"), _RENAMED.get(name, name), None)
                if found is not None:
                    message = f"{module}.{name} is hmsa.{place}.{_RENAMED.get(name, name)} now"
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    return found
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return look_up


def restore(logits: Any, trans_info: Any) -> Any:
    """The label map at the image's own size, which takes two functions now."""
    averaging = import_module("hmsa.inference.averaging")
    return averaging.best_classes(averaging.undo_transforms(logits, trans_info))


class Finder(MetaPathFinder, Loader):
    """Finds modules of before that nothing else finds."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Optional[ModuleSpec]:
        package, _, module = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "hmsa" and module in _PLACES else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = names_of(module.__name__)
