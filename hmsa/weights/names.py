# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in the files of others, and the way between them and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Callable, NamedTuple

import numpy as np

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


def _classification_layers() -> list[tuple[str, str]]:
    """Our layers and PaddleClas'. There, a module's fusing convolutions are one list, counted row by row."""
    parts = [
        ("conv$1", "bn$1", "conv_layer1_$1"),
        ("layer1.$1.conv$2", "layer1.$1.bn$2", "layer1.$1.conv$2"),
        ("layer1.$1.downsample.0", "layer1.$1.downsample.1", "layer1.$1.conv_down"),
        ("transition1.0.0", "transition1.0.1", "tr1_1"),
        ("transition1.1.0.0", "transition1.1.0.1", "tr1_2"),
        ("transition2.2.0.0", "transition2.2.0.1", "tr2"),
        ("transition3.3.0.0", "transition3.3.0.1", "tr3"),
        (
            "stage$1.$2.branches.$3.$4.conv$5",
            "stage$1.$2.branches.$3.$4.bn$5",
            "st$1.stage_func_list.$2.basic_block_list.$3.$4.conv$5",
        ),
    ]
    for branches in (2, 3, 4):  # which is also the stage's number
        count = 0
        for to in range(branches):
            for source in range(branches):
                steps = [""] if source > to else [f".{step}" for step in range(to - source)]
                for step in steps:
                    ours = f"stage{branches}.$1.fuse_layers.{to}.{source}{step}"
                    theirs = f"st{branches}.stage_func_list.$1.fuse_func.residual_func_list.{count}"
                    parts.append((f"{ours}.0", f"{ours}.1", theirs))
                    count += 1
    return [
        *((f"backbone.{convolution}", f"{theirs}._conv") for convolution, _, theirs in parts),
        *((f"backbone.{normalisation}", f"{theirs}._batch_norm") for _, normalisation, theirs in parts),
    ]


def _renamer(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """A function from a tensor's name to the one `pairs` of layer names give it, '' if none does."""
    rules = [(re.compile(_pattern(source)), target) for source, target in pairs]

    @lru_cache(maxsize=4096)
    def renamed_layer(layer: str) -> str:
        for pattern, target in rules:
            if found := pattern.fullmatch(layer):
                return _filled(target, found.groupdict())
        return ""

    def rename(name: str) -> str:
        layer, _, tensor = name.rpartition(".")
        renamed = renamed_layer(layer) if tensor in _TENSORS else ""
        return f"{renamed}.{tensor}" if renamed else ""

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


def _torch_name(name: str) -> str:
    """Our tensor name -> the one in a PyTorch network with our layers."""
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


def original_name(name: str) -> str:
    """Our tensor name -> the one in the original's PyTorch checkpoints."""
    return f"module.{_torch_name(name)}"


class Scheme(NamedTuple):
    """How the tensors of a network are called. A name that has no counterpart becomes ''."""

    theirs: Callable[[str], str]  # from our name
    ours: Callable[[str], str]  # from their name


def _variant(scheme: Scheme, *prefixes: tuple[str, str]) -> Scheme:
    """A scheme in which names begin otherwise: pairs of a beginning in `scheme` and what it is here, the first wins."""

    def theirs(name: str) -> str:
        name = scheme.theirs(name)
        before, after = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        return after + name[len(before) :]

    def ours(name: str) -> str:
        candidates = (
            scheme.ours(before + name[len(after) :])
            for before, after in (*prefixes, ("", ""))
            if name.startswith(after)
        )
        return next((candidate for candidate in candidates if released_name(candidate)), "")

    return Scheme(theirs, ours)


_HMSA = Scheme(lambda name: name, lambda name: name)
_PYTORCH = Scheme(
    _torch_name, lambda name: name.replace(".running_mean", "._mean").replace(".running_var", "._variance")
)
_RELEASED = Scheme(released_name, _renamer((released, ours) for ours, released in _LAYERS))
_CLASSIFICATION = _classification_layers()

SCHEMES = {
    "hmsa": _HMSA,
    "hmsa backbone": _variant(_HMSA, ("backbone.", "")),
    "original PyTorch": _PYTORCH,
    "HRNet PyTorch": _variant(_PYTORCH, ("backbone.", "")),
    # Its head stands beside the backbone, and counts another way where it has BatchNorm without a Sequential around it.
    "HRNet-OCR PyTorch": _variant(
        _PYTORCH,
        ("ocr.conv3x3_ocr.1.0.", "conv3x3_ocr.1."),
        ("ocr.aux_head.1.0.", "aux_head.1."),
        ("ocr.aux_head.2.", "aux_head.3."),
        ("ocr.", ""),
        ("backbone.", ""),
    ),
    "released Paddle": _RELEASED,
    "PaddleSeg OCRNet": _variant(_RELEASED, ("ocrnet.", "")),
    "PaddleSeg HRNet": _variant(_RELEASED, ("ocrnet.backbone.", "")),
    "PaddleSeg MscaleOCRNet": _variant(
        _RELEASED,
        *(
            (f"{_RELEASED_OCR}.{part}.{index}.", f"ocr.ocr_distri_head.{part}.conv_bn_relu_{index + 1}.")
            for part in ("f_pixel", "f_object")
            for index in (0, 1)
        ),
        (f"{_RELEASED_OCR}.", "ocr.ocr_distri_head."),
        ("ocrnet.head.spatial_ocr.conv1x1.", "ocr.ocr_distri_head.conv_bn_dropout."),
        ("ocrnet.head.", "ocr."),
        ("ocrnet.", ""),
        ("scale_attn.atten_head.2.", "scale_attn.conv2."),
        ("scale_attn.atten_head.", "scale_attn.conv_bn_re"),
    ),
    "PaddleClas HRNet": Scheme(_renamer(_CLASSIFICATION), _renamer((theirs, ours) for ours, theirs in _CLASSIFICATION)),
}
"""Naming schemes by their name in messages, none with a wrapper's name before it."""

_WRAPPER = re.compile(r"(?:(?:module|model|network|net|student|ema|ema_model|model_ema|_orig_mod|_layers)\.){1,3}")


def _unwrapped(names: Iterable[str]) -> list[dict[str, str]]:
    """The names as they stand, and those under each wrapper without it: as mappings to the names that were given."""
    found: dict[str, dict[str, str]] = {"": {}}
    for name in names:
        found[""][name] = name
        if wrapper := _WRAPPER.match(name):
            found.setdefault(wrapper[0], {})[name[wrapper.end() :]] = name
    return list(found.values())


def recognised(names: Iterable[str]) -> list[str]:
    """Our names of what `names` stand for in a network with a backbone of ours, in the scheme that knows most."""
    readings = (
        [ours for name in group if released_name(ours := scheme.ours(name)) and scheme.theirs(ours) == name]
        for group in _unwrapped(names)
        for scheme in SCHEMES.values()
    )
    return max(readings, key=len)


def correspondence(given: Iterable[str], names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The scheme that knows most of `given` in a network with the tensors `names`; and given names -> our names."""
    names = list(names)
    tables = {
        key: {theirs: name for name in names if (theirs := scheme.theirs(name))} for key, scheme in SCHEMES.items()
    }
    readings = (
        (key, {original: table[name] for name, original in group.items() if name in table})
        for group in _unwrapped(given)
        for key, table in tables.items()
    )
    return max(readings, key=lambda reading: len(reading[1]))


def translate(arrays: dict[str, np.ndarray], names: Iterable[str]) -> tuple[str, dict[str, np.ndarray], list[str]]:
    """Bring `arrays` to our names, whichever scheme knows most of theirs.

    Returns the scheme, the arrays by our names, and the names in `arrays` that stand for nothing in `names`.
    """
    scheme, ours = correspondence(arrays, names)
    left = [name for name in arrays if name not in ours and not is_counter(name)]
    return scheme, {ours[name]: arrays[name] for name in ours}, left


def is_counter(name: str) -> bool:
    """Whether this is PyTorch's count of training steps, which no network needs."""
    return name.endswith("num_batches_tracked")
