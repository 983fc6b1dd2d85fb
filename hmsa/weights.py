# SPDX-License-Identifier: Apache-2.0
"""Loading weights under any of the names they go by.

Three naming schemes are in use: this project's (the original HMSA repository's, without its prefix), the original's
PyTorch checkpoints, and the Paddle weights released with PaddleSeg. Each scheme is one function from our name to
theirs; applied to a network's own tensors it gives the table to translate by, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Union, cast

import numpy as np
from paddle import nn

from hmsa.errors import DataError
from hmsa.weight_files import read_weights, sha256

_OCR = "ocrnet.head.spatial_ocr.attention_block"
_RELEASED = [
    # Our layers are <prefix><convolution> and <prefix><normalisation>; released, one layer holds both, as `_conv` and
    # `_batch_norm`. In the released name, $1 is the first number of ours and $1+ the same counted from 1.
    (r"backbone\.", r"conv(\d)", r"bn(\d)", "ocrnet.backbone.conv_layer1_$1"),
    (r"backbone\.layer1\.(\d)\.", r"conv(\d)", r"bn(\d)", "ocrnet.backbone.la1.bb_layer2_$1+.conv$2"),
    (r"backbone\.layer1\.(\d)\.downsample\.", "0", "1", "ocrnet.backbone.la1.bb_layer2_$1+.conv_down"),
    (r"backbone\.transition(\d)\.(\d)\.(?:0\.)?", "0", "1", "ocrnet.backbone.tr$1.transition_tr$1_layer_$2+"),
    (
        r"backbone\.stage(\d)\.(\d)\.branches\.(\d)\.(\d)\.",
        r"conv(\d)",
        r"bn(\d)",
        "ocrnet.backbone.st$1.stage_st$1_$2+.branches_func.bb_st$1_$2+_branch_layer_$3+_$4+.conv$5",
    ),
    (
        r"backbone\.stage(\d)\.(\d)\.fuse_layers\.(\d)\.(\d)\.",
        "0",
        "1",
        "ocrnet.backbone.st$1.stage_st$1_$2+.fuse_func.residual_st$1_$2+_layer_$3+_$4+",
    ),
    (
        r"backbone\.stage(\d)\.(\d)\.fuse_layers\.(\d)\.(\d)\.(\d)\.",
        "0",
        "1",
        "ocrnet.backbone.st$1.stage_st$1_$2+.fuse_func.residual_st$1_$2+_layer_$3+_$4+_$5+",
    ),
    (r"ocr\.conv3x3_ocr\.", "0", r"1\.0", "ocrnet.head.conv3x3_ocr"),
    (r"ocr\.aux_head\.", "0", r"1\.0", "ocrnet.head.aux_head.0"),
    (r"ocr\.ocr_distri_head\.object_context_block\.(f_pixel|f_object)\.", "0", r"1\.0", f"{_OCR}.$1.0"),
    (r"ocr\.ocr_distri_head\.object_context_block\.(f_pixel|f_object)\.", "2", r"3\.0", f"{_OCR}.$1.1"),
    (r"ocr\.ocr_distri_head\.object_context_block\.(f_down|f_up)\.", "0", r"1\.0", f"{_OCR}.$1"),
    (r"ocr\.ocr_distri_head\.conv_bn_dropout\.", "0", r"1\.0", "ocrnet.head.spatial_ocr.conv1x1.0"),
    (r"scale_attn\.", "conv([01])", "bn([01])", "scale_attn.atten_head.$1"),
]
_RELEASED_CLASSIFIERS = {
    "ocr.cls_head": "ocrnet.head.cls_head",
    "ocr.aux_head.2": "ocrnet.head.aux_head.1",
    "scale_attn.conv2": "scale_attn.atten_head.2",
}


def released_name(name: str) -> str:
    """Our tensor name -> the one in the Paddle weights released with PaddleSeg ('' if they have none)."""
    layer, tensor = name.rsplit(".", 1)
    if layer in _RELEASED_CLASSIFIERS:
        return f"{_RELEASED_CLASSIFIERS[layer]}.{tensor}"
    for prefix, convolution, normalisation, released in _RELEASED:
        for suffix, kind in ((convolution, "_conv"), (normalisation, "_batch_norm")):
            ours = re.fullmatch(prefix + suffix, layer)
            if ours:
                filled = re.sub(
                    r"\$(\d)(\+?)", lambda m, g=ours: str(int(g[int(m[1])]) + 1) if m[2] else g[int(m[1])], released
                )
                return f"{filled}.{kind}.{tensor}"
    return ""


def original_name(name: str) -> str:
    """Our tensor name -> the one in the original's PyTorch checkpoints."""
    return "module." + name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


SCHEMES: dict[str, Callable[[str], str]] = {
    "hmsa": lambda name: name,
    "released Paddle": released_name,
    "original PyTorch": original_name,
    "original PyTorch, unwrapped": lambda name: original_name(name)[len("module.") :],
    "HRNet backbone": lambda name: (
        original_name(name)[len("module.backbone.") :] if name.startswith("backbone.") else ""
    ),
}
"""Naming schemes by their name in messages: our tensor name -> theirs."""


def translate(arrays: dict[str, np.ndarray], names: Iterable[str]) -> tuple[str, dict[str, np.ndarray], list[str]]:
    """Bring `arrays` to our names, whichever scheme knows most of theirs.

    Returns the scheme, the arrays by our names, and the names in `arrays` that stand for nothing in `names`.
    """
    tables = {scheme: {rename(name): name for name in names} for scheme, rename in SCHEMES.items()}
    scheme = max(tables, key=lambda s: sum(name in tables[s] for name in arrays))
    table = tables[scheme]
    left = [name for name in arrays if name not in table and not name.endswith("num_batches_tracked")]
    return scheme, {table[name]: array for name, array in arrays.items() if name in table}, left


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def weight_file(path: Union[str, Path]) -> Path:
    """The file to read: `path` itself, or `model.pdparams` in a checkpoint folder."""
    path = Path(path)
    return path / "model.pdparams" if path.is_dir() else path


def _match(model: nn.Layer, path: Path) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """Arrays that fit the model by name and shape; what is missing, what is left over, what has another shape."""
    state = model.state_dict()
    _, arrays, left = translate(read_weights(path), state)
    wrong = [
        f"{name} {list(array.shape)} (the model has {list(state[name].shape)})"
        for name, array in arrays.items()
        if list(array.shape) != list(state[name].shape)
    ]
    missing = [name for name in state if name not in arrays]
    fits = {name: array for name, array in arrays.items() if list(array.shape) == list(state[name].shape)}
    return fits, missing, left, wrong


def load_weights(model: nn.Layer, path: Union[str, Path]) -> str:
    """Load all of a model's weights, from a file under any naming scheme or from a checkpoint folder.

    Nothing is loaded unless everything fits.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: no such file, not weights, or tensors missing, left over or of another shape.
    """
    path = weight_file(path)
    fits, missing, left, wrong = _match(model, path)
    problems = [
        f"{len(names)} {what} ({_listed(names)})"
        for names, what in ((missing, "missing"), (left, "unknown"), (wrong, "of another shape"))
        if names
    ]
    if problems:
        raise DataError(
            f"{path}: expected the {len(missing) + len(fits) + len(wrong)} tensors of this model, found tensors "
            f"{', '.join(problems)}; give the weights that belong to the config, or set its backbone, channels and "
            "num_classes to theirs"
        )
    model.set_state_dict(cast(Any, fits))
    return sha256(path)


def load_pretrained(model: nn.Layer, path: Union[str, Path]) -> str:
    """Start training from weights of a part of the model, or of one with other classes: load what fits.

    Returns:
        A sentence that says what was loaded and what was not.

    Raises:
        DataError: no such file, not weights, or nothing in it fits.
    """
    path = weight_file(path)
    fits, missing, left, wrong = _match(model, path)
    if not fits:
        raise DataError(
            f"{path}: expected weights for this model or its backbone, found none that fit "
            f"({_listed(wrong or left)}); give weights of the backbone named in the config"
        )
    model.set_state_dict(cast(Any, {**model.state_dict(), **fits}))
    report = f"{path}: loaded {len(fits)} of {len(fits) + len(missing) + len(wrong)} tensors"
    for names, what in ((wrong, "another shape"), (missing, "not in the file"), (left, "in the file only")):
        if names:
            report += f"; {what}: {_listed(names)}"
    return report
