# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in the files of others, and the way between them and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Callable

import numpy as np

_MAX_BLOCKS = 4  # of HRNet: in a branch or its first stage; also modules in a stage
_OCR = "ocr.ocr_distri_head.object_context_block"
_RELEASED_OCR = "ocrnet.head.spatial_ocr.attention_block"


def _backbone_parts() -> Iterator[tuple[str, str, str, str]]:
    """Of HRNet: our convolution, our normalisation, and the layer that holds both, as released and as in PaddleClas."""
    for i in (1, 2):
        yield f"conv{i}", f"bn{i}", f"conv_layer1_{i}", f"conv_layer1_{i}"

    for block in range(_MAX_BLOCKS):
        ours, released = f"layer1.{block}", f"la1.bb_layer2_{block + 1}"
        yield f"{ours}.downsample.0", f"{ours}.downsample.1", f"{released}.conv_down", f"{ours}.conv_down"
        for i in (1, 2, 3):
            yield f"{ours}.conv{i}", f"{ours}.bn{i}", f"{released}.conv{i}", f"{ours}.conv{i}"

    yield "transition1.0.0", "transition1.0.1", "tr1.transition_tr1_layer_1", "tr1_1"
    for i, theirs in ((1, "tr1_2"), (2, "tr2"), (3, "tr3")):
        ours = f"transition{i}.{i}.0"
        yield f"{ours}.0", f"{ours}.1", f"tr{i}.transition_tr{i}_layer_{i + 1}", theirs

    for stage, module in product((2, 3, 4), range(_MAX_BLOCKS)):
        yield from _module_parts(stage, module)


def _module_parts(stage: int, module: int) -> Iterator[tuple[str, str, str, str]]:
    """Of one of HRNet's modules, which has as many branches as its stage's number says."""
    module_ours = f"stage{stage}.{module}"
    module_released = f"st{stage}.stage_st{stage}_{module + 1}"
    module_theirs = f"st{stage}.stage_func_list.{module}"

    for branch, block, i in product(range(stage), range(_MAX_BLOCKS), (1, 2)):
        ours = f"{module_ours}.branches.{branch}.{block}"
        released = f"branches_func.bb_st{stage}_{module + 1}_branch_layer_{branch + 1}_{block + 1}.conv{i}"
        theirs = f"{module_theirs}.basic_block_list.{branch}.{block}.conv{i}"
        yield f"{ours}.conv{i}", f"{ours}.bn{i}", f"{module_released}.{released}", theirs

    count = 0  # PaddleClas has the fusing convolutions in one list, row by row
    for target, source in product(range(stage), repeat=2):
        for step in [None] if source > target else range(target - source):
            ours = f"{module_ours}.fuse_layers.{target}.{source}"
            released = f"fuse_func.residual_st{stage}_{module + 1}_layer_{target + 1}_{source + 1}"
            if step is not None:
                ours, released = f"{ours}.{step}", f"{released}_{step + 1}"
            theirs = f"{module_theirs}.fuse_func.residual_func_list.{count}"
            yield f"{ours}.0", f"{ours}.1", f"{module_released}.{released}", theirs
            count += 1


_PARTS = [
    # Our convolution, our normalisation, and the released layer that holds both, as `_conv` and `_batch_norm`.
    *((f"backbone.{conv}", f"backbone.{norm}", f"ocrnet.backbone.{its}") for conv, norm, its, _ in _backbone_parts()),
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
_RELEASED = {
    "ocr.cls_head": "ocrnet.head.cls_head",
    "ocr.aux_head.2": "ocrnet.head.aux_head.1",
    "scale_attn.conv2": "scale_attn.atten_head.2",
    **{conv: f"{released}._conv" for conv, _, released in _PARTS},
    **{norm: f"{released}._batch_norm" for _, norm, released in _PARTS},
}
_CLASSIFICATION = {
    **{f"backbone.{conv}": f"{theirs}._conv" for conv, _, _, theirs in _backbone_parts()},
    **{f"backbone.{norm}": f"{theirs}._batch_norm" for _, norm, _, theirs in _backbone_parts()},
}
_TENSORS = ("weight", "bias", "_mean", "_variance")

Renaming = Callable[[str], str]
"""From our name of a tensor to another; '' if it has no counterpart."""


def _by_layer(layers: dict[str, str]) -> Renaming:
    def rename(name: str) -> str:
        layer, _, tensor = name.rpartition(".")
        return f"{layers[layer]}.{tensor}" if layer in layers and tensor in _TENSORS else ""

    return rename


released_name = _by_layer(_RELEASED)
"""Our tensor name -> the one in the Paddle weights released with PaddleSeg ('' if they have none)."""


def _torch_name(name: str) -> str:
    """Our tensor name -> the one in a PyTorch network with our layers."""
    return name.replace("._mean", ".running_mean").replace("._variance", ".running_var")


def original_name(name: str) -> str:
    """Our tensor name -> the one in the original's PyTorch checkpoints."""
    return f"module.{_torch_name(name)}"


def _variant(scheme: Renaming, *prefixes: tuple[str, str]) -> Renaming:
    """A scheme in which names begin otherwise: pairs of a beginning in `scheme` and what it is here, the first wins."""

    def rename(name: str) -> str:
        name = scheme(name)
        before, after = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
        return after + name[len(before) :]

    return rename


SCHEMES: dict[str, Renaming] = {
    "hmsa": str,
    "hmsa backbone": _variant(str, ("backbone.", "")),
    "original PyTorch": _torch_name,
    "HRNet PyTorch": _variant(_torch_name, ("backbone.", "")),
    # Its head stands beside the backbone, and counts another way where it has BatchNorm without a Sequential around it.
    "HRNet-OCR PyTorch": _variant(
        _torch_name,
        ("ocr.conv3x3_ocr.1.0.", "conv3x3_ocr.1."),
        ("ocr.aux_head.1.0.", "aux_head.1."),
        ("ocr.aux_head.2.", "aux_head.3."),
        ("ocr.", ""),
        ("backbone.", ""),
    ),
    "released Paddle": released_name,
    "PaddleSeg OCRNet": _variant(released_name, ("ocrnet.", "")),
    "PaddleSeg HRNet": _variant(released_name, ("ocrnet.backbone.", "")),
    "PaddleSeg MscaleOCRNet": _variant(
        released_name,
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
    "PaddleClas HRNet": _by_layer(_CLASSIFICATION),
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
    known = (f"{layer}.{tensor}" for layer, tensor in product(_RELEASED, _TENSORS))
    return list(correspondence(names, known)[1].values())


def correspondence(given: Iterable[str], names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The scheme that knows most of `given` in a network with the tensors `names`; and given names -> our names."""
    names = list(names)
    tables = {key: {theirs: name for name in names if (theirs := scheme(name))} for key, scheme in SCHEMES.items()}
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
