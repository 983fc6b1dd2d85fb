# SPDX-License-Identifier: Apache-2.0
"""Weights under any of the names they go by: loading and translating them.

Three families of names are in use: this project's, which are those of HRNet's authors and of the original HMSA
repository; those of the Paddle weights released with PaddleSeg; and PaddleClas'. Each naming scheme is a function from
our name to theirs and one back, and those of a part alone (a backbone, an OCRNet) follow from that of the whole. What
a program puts before all names of a network (`module.`, `model.`) is taken off first. Paddle itself is only needed
where a network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from hmsa.errors import DataError, printable
from hmsa.system.files import sha256
from hmsa.weights.downloads import downloaded, web_address
from hmsa.weights.files import read_weights
from hmsa.weights.names import translate

if TYPE_CHECKING:
    from paddle import nn


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32, which all weights are.

    Raises:
        ValueError: with what is in it instead of finite floating-point numbers that float32 can hold.
    """
    if array.dtype == np.uint16:  # bfloat16, which is the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} numbers")
    with np.errstate(all="ignore"):
        converted = array.astype(np.float32, copy=False)
        # A sum is not finite if a part of it is not.
        if not np.isfinite(converted.sum(dtype=np.float64)):
            raise ValueError("numbers that are not finite in float32")
    return converted


def listed(names: Sequence[str]) -> str:
    """The first four names of a list, short enough for a message."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    shown = (name if len(name) <= 120 else f"{name[:117]}..." for name in names[:4])
    return printable(", ".join(shown)) + more


WEIGHTS, AVERAGED_WEIGHTS = "model.pdparams", "ema.pdparams"
"""In a checkpoint folder: those that training goes on from, and in some their moving average, which is evaluated."""


def weight_file(path: Union[str, Path]) -> Path:
    """The file to read: `path` itself, that in a checkpoint folder, or what a web address leads to.

    In a folder it is `ema.pdparams`, the averaged weights, or `model.pdparams` where there are none. What an address
    leads to is downloaded once, see `hmsa.weights.downloads`.

    Raises:
        UsageError, DataError: it is an address, and cannot be downloaded.
        DataError: it is a folder without weights.
    """
    if (address := web_address(path)) is not None:
        return downloaded(address)
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (AVERAGED_WEIGHTS, WEIGHTS):
        if (path / name).is_file():
            return path / name
    inside = sorted(file.parent.name for file in path.glob(f"*/{WEIGHTS}") if not file.parent.name.startswith("."))
    advice = f"give a checkpoint in it ({listed(inside)})" if inside else "check the path"
    raise DataError(f"{path}: expected weights or the folder of a checkpoint, found one without {WEIGHTS}; {advice}")


def named_file(path: Union[str, Path]) -> tuple[Path, str]:
    """The file to read, see `weight_file`, and what it is called in messages."""
    file = weight_file(path)
    return file, web_address(path) or str(file)


def _match(model: nn.Layer, path: Path, title: str) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """Arrays that fit the model, as float32; what is missing, what is left over, what does not fit and why."""
    state = model.state_dict()
    # A backbone alone is called as it is in a network, where all schemes know it.
    part = "" if any(name.startswith("backbone.") for name in state) else "backbone."
    _, arrays, left = translate(read_weights(path, title), [part + name for name in state])
    arrays = {name[len(part) :]: array for name, array in arrays.items()}
    fits, wrong = {}, []
    for name, array in arrays.items():
        try:
            if list(array.shape) != list(state[name].shape):
                raise ValueError(f"{list(array.shape)} instead of {list(state[name].shape)}")
            fits[name] = as_float32(array)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    return fits, [name for name in state if name not in arrays], left, wrong


def load_weights(model: nn.Layer, path: Union[str, Path]) -> str:
    """Load all of a model's weights, from a file under any naming scheme, a checkpoint folder or a web address.

    Nothing is loaded unless everything fits.

    Returns:
        The file's SHA-256.

    Raises:
        UsageError: an address that cannot be one of a weight file.
        DataError: no such file, not weights, or tensors missing, left over, of another shape or not finite numbers.
    """
    file, title = named_file(path)
    fits, missing, left, wrong = _match(model, file, title)
    problems = [
        f"{len(names)} {what} ({listed(names)})"
        for names, what in ((missing, "missing"), (left, "unknown"), (wrong, "that do not fit"))
        if names
    ]
    if problems:
        raise DataError(
            f"{title}: expected the {len(missing) + len(fits) + len(wrong)} tensors of this model, found tensors "
            f"{', '.join(problems)}; give the weights that belong to the config, or set its backbone, channels and "
            "num_classes to theirs"
        )
    model.set_state_dict(cast(Any, fits))
    return sha256(file)


def load_pretrained(model: nn.Layer, path: Union[str, Path]) -> str:
    """Start training from weights of a part of the model, or of one with other classes: load what fits.

    Returns:
        A sentence that says what was loaded and what was not.

    Raises:
        UsageError: an address that cannot be one of a weight file.
        DataError: no such file, not weights, or nothing in it fits.
    """
    file, title = named_file(path)
    fits, missing, left, wrong = _match(model, file, title)
    if not fits:
        raise DataError(
            f"{title}: expected weights for this model or its backbone, found none that fit "
            f"({listed(wrong or left)}); give weights of the backbone named in the config"
        )
    model.set_state_dict(cast(Any, {**model.state_dict(), **fits}))
    report = f"{title}: loaded {len(fits)} of {len(fits) + len(missing) + len(wrong)} tensors"
    for names, what in ((wrong, "not fitting"), (missing, "not in the file"), (left, "in the file only")):
        if names:
            report += f"; {what}: {listed(names)}"
    return f"{report}; what is not loaded starts anew" if wrong or missing else report
