# SPDX-License-Identifier: Apache-2.0
"""Weights under any of the names they go by: loading and translating them.

Three naming schemes are in use: this project's (the original HMSA repository's, without its prefix), the original's
PyTorch checkpoints, and the Paddle weights released with PaddleSeg. Each scheme is a function from our name to theirs
and one back. Paddle itself is only needed where a network is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union, cast

import numpy as np

from hmsa.errors import DataError, printable
from hmsa.weight_files import read_weights, sha256

if TYPE_CHECKING:
    from paddle import nn

_OCR = "ocr.ocr_distri_head.object_context_block"
_RELEASED_OCR = "ocrnet.head.spatial_ocr.attention_block"
_PARTS: list[tuple[str, str, str]] = [
    # Our convolution, our normalisation, and the released layer that holds both, as `_conv` and `_batch_norm`. $1 is a
    # digit; $1+ is the same digit counted from 1.
    ("backbone.conv$1", "backbone.bn$1", "ocrnet.backbone.conv_layer1_$1"),
    ("backbone.layer1.$1.conv$2", "backbone.layer1.$1.bn$2", "ocrnet.backbone.la1.bb_layer2_$1+.conv$2"),
    (
        "backbone.layer1.$1.downsample.0",
        "backbone.layer1.$1.downsample.1",
        "ocrnet.backbone.la1.bb_layer2_$1+.conv_down",
    ),
    ("backbone.transition1.0.0", "backbone.transition1.0.1", "ocrnet.backbone.tr1.transition_tr1_layer_1"),
    (
        "backbone.transition$1.$2.0.0",
        "backbone.transition$1.$2.0.1",
        "ocrnet.backbone.tr$1.transition_tr$1_layer_$2+",
    ),
    (
        "backbone.stage$1.$2.branches.$3.$4.conv$5",
        "backbone.stage$1.$2.branches.$3.$4.bn$5",
        "ocrnet.backbone.st$1.stage_st$1_$2+.branches_func.bb_st$1_$2+_branch_layer_$3+_$4+.conv$5",
    ),
    (
        "backbone.stage$1.$2.fuse_layers.$3.$4.0",
        "backbone.stage$1.$2.fuse_layers.$3.$4.1",
        "ocrnet.backbone.st$1.stage_st$1_$2+.fuse_func.residual_st$1_$2+_layer_$3+_$4+",
    ),
    (
        "backbone.stage$1.$2.fuse_layers.$3.$4.$5.0",
        "backbone.stage$1.$2.fuse_layers.$3.$4.$5.1",
        "ocrnet.backbone.st$1.stage_st$1_$2+.fuse_func.residual_st$1_$2+_layer_$3+_$4+_$5+",
    ),
    ("ocr.conv3x3_ocr.0", "ocr.conv3x3_ocr.1.0", "ocrnet.head.conv3x3_ocr"),
    ("ocr.aux_head.0", "ocr.aux_head.1.0", "ocrnet.head.aux_head.0"),
    (f"{_OCR}.f_pixel.0", f"{_OCR}.f_pixel.1.0", f"{_RELEASED_OCR}.f_pixel.0"),
    (f"{_OCR}.f_pixel.2", f"{_OCR}.f_pixel.3.0", f"{_RELEASED_OCR}.f_pixel.1"),
    (f"{_OCR}.f_object.0", f"{_OCR}.f_object.1.0", f"{_RELEASED_OCR}.f_object.0"),
    (f"{_OCR}.f_object.2", f"{_OCR}.f_object.3.0", f"{_RELEASED_OCR}.f_object.1"),
    (f"{_OCR}.f_down.0", f"{_OCR}.f_down.1.0", f"{_RELEASED_OCR}.f_down"),
    (f"{_OCR}.f_up.0", f"{_OCR}.f_up.1.0", f"{_RELEASED_OCR}.f_up"),
    (
        "ocr.ocr_distri_head.conv_bn_dropout.0",
        "ocr.ocr_distri_head.conv_bn_dropout.1.0",
        "ocrnet.head.spatial_ocr.conv1x1.0",
    ),
    ("scale_attn.conv0", "scale_attn.bn0", "scale_attn.atten_head.0"),
    ("scale_attn.conv1", "scale_attn.bn1", "scale_attn.atten_head.1"),
]
_LAYERS = [
    ("ocr.cls_head", "ocrnet.head.cls_head"),
    ("ocr.aux_head.2", "ocrnet.head.aux_head.1"),
    ("scale_attn.conv2", "scale_attn.atten_head.2"),
    *((convolution, f"{released}._conv") for convolution, _, released in _PARTS),
    *((normalisation, f"{released}._batch_norm") for _, normalisation, released in _PARTS),
]
_TENSORS = ("weight", "bias", "_mean", "_variance")
_DIGIT = re.compile(r"\$(\d)(\+?)")


def _renamer(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """A function from a tensor's name to the one `pairs` of layer names give it, '' if none does."""
    rules = [(re.compile(_pattern(source)), target) for source, target in pairs]

    def rename(name: str) -> str:
        layer, _, tensor = name.rpartition(".")
        for pattern, target in rules:
            found = pattern.fullmatch(layer)
            if found and tensor in _TENSORS:
                return f"{_filled(target, found.groupdict())}.{tensor}"
        return ""

    return rename


def _pattern(template: str) -> str:
    """A regular expression with a group `from0_1` for $1 and `from1_1` for $1+."""
    seen = set()

    def group(digit: re.Match[str]) -> str:
        name = f"from{len(digit[2])}_{digit[1]}"
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[0-9])"

    return _DIGIT.sub(group, template.replace(".", r"\."))


def _filled(template: str, digits: dict[str, str]) -> str:
    values = {name[-1]: int(digit) - int(name[4]) for name, digit in digits.items()}
    return _DIGIT.sub(lambda digit: str(values[digit[1]] + len(digit[2])), template)


released_name = _renamer(_LAYERS)
"""Our tensor name -> the one in the Paddle weights released with PaddleSeg ('' if they have none)."""

_from_released = _renamer((released, ours) for ours, released in _LAYERS)


def original_name(name: str) -> str:
    """Our tensor name -> the one in the original's PyTorch checkpoints."""
    return "module." + name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


def _from_original(name: str, prefix: str = "module.") -> str:
    """'' if the name does not start with `prefix`."""
    ours = name.replace(".running_mean", "._mean").replace(".running_var", "._variance")
    return ours[len(prefix) :] if name.startswith(prefix) else ""


class Scheme(NamedTuple):
    """How the tensors of a network are called. A name that has no counterpart becomes ''."""

    theirs: Callable[[str], str]  # from our name
    ours: Callable[[str], str]  # from their name


SCHEMES = {
    "hmsa": Scheme(lambda name: name, lambda name: name),
    "released Paddle": Scheme(released_name, _from_released),
    "original PyTorch": Scheme(original_name, _from_original),
    "original PyTorch, unwrapped": Scheme(
        lambda name: original_name(name)[len("module.") :], lambda name: _from_original(name, prefix="")
    ),
    "HRNet backbone": Scheme(
        lambda name: original_name(name)[len("module.backbone.") :] if name.startswith("backbone.") else "",
        lambda name: "backbone." + _from_original(name, prefix=""),
    ),
}
"""Naming schemes by their name in messages."""


def recognised(names: Iterable[str]) -> list[str]:
    """Our names of all that `names` can stand for in a network with a backbone of ours, in any scheme."""
    found = dict.fromkeys(scheme.ours(name) for scheme in SCHEMES.values() for name in names)
    return [name for name in found if released_name(name)]


def translate(arrays: dict[str, np.ndarray], names: Iterable[str]) -> tuple[str, dict[str, np.ndarray], list[str]]:
    """Bring `arrays` to our names, whichever scheme knows most of theirs.

    Returns the scheme, the arrays by our names, and the names in `arrays` that stand for nothing in `names`.
    """
    tables = {key: {scheme.theirs(name): name for name in names} for key, scheme in SCHEMES.items()}
    scheme = max(tables, key=lambda s: sum(name in tables[s] for name in arrays))
    table = tables[scheme]
    left = [name for name in arrays if name not in table and not is_counter(name)]
    return scheme, {table[name]: array for name, array in arrays.items() if name in table}, left


def is_counter(name: str) -> bool:
    """Whether this is PyTorch's count of training steps, which no network needs."""
    return name.endswith("num_batches_tracked")


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


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list, short enough for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = (name if len(name) <= 120 else f"{name[:117]}..." for name in names[:most])
    return printable(", ".join(shown)) + more


def weight_file(path: Union[str, Path]) -> Path:
    """The file to read: `path` itself, or `model.pdparams` in a checkpoint folder."""
    path = Path(path)
    return path / "model.pdparams" if path.is_dir() else path


def _match(model: nn.Layer, path: Path) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """Arrays that fit the model, as float32; what is missing, what is left over, what does not fit and why."""
    state = model.state_dict()
    _, arrays, left = translate(read_weights(path), state)
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
    """Load all of a model's weights, from a file under any naming scheme or from a checkpoint folder.

    Nothing is loaded unless everything fits.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: no such file, not weights, or tensors missing, left over, of another shape or not finite numbers.
    """
    path = weight_file(path)
    fits, missing, left, wrong = _match(model, path)
    problems = [
        f"{len(names)} {what} ({listed(names)})"
        for names, what in ((missing, "missing"), (left, "unknown"), (wrong, "that do not fit"))
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
            f"({listed(wrong or left)}); give weights of the backbone named in the config"
        )
    model.set_state_dict(cast(Any, {**model.state_dict(), **fits}))
    report = f"{path}: loaded {len(fits)} of {len(fits) + len(missing) + len(wrong)} tensors"
    for names, what in ((wrong, "not fitting"), (missing, "not in the file"), (left, "in the file only")):
        if names:
            report += f"; {what}: {listed(names)}"
    return report
