# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML files with `_base_`, `--opts key=value`, and the schema everything is checked against.

Reading a recipe takes milliseconds and does not import Paddle. Components of this project are checked down to their
arguments here; a `type` this module does not know is taken as it stands and looked up by `hmsa.builder`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from hmsa import dialect
from hmsa.errors import UsageError

MIN_SIDE = 64
"""Shortest side in pixels of a crop or tile: at scale 0.5 the network's coarsest branch (stride 32) has one pixel."""

MAX_SIDE = 16384
"""Longest side in pixels of a crop or tile."""

MOST_CHARACTERS = 100_000
"""Of a recipe with its bases, also with every alias written out; real ones have some thousands."""

MOST_LEVELS = 32
"""Of mappings and lists in one another, and of files on one another."""

MOST_PROBLEMS = 20
"""That are told at once."""

MOST_CLASSES = 255
"""Of a network: label maps have 8 bits, and one of their values, 255 if nothing else is said, marks ignored pixels."""

NORMALIZE = "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
"""What ImageNet's weights want, for messages."""

NORMALIZING = ("Normalize",)
"""Transforms, of this project and of PaddleSeg, that bring images to the range of numbers that weights want."""

RANDOM = ("ResizeStepScaling", "ResizeRangeScaling")
"""Transforms that change images at random, beside those whose names start with Random."""

NUM_CLASSES = {"CityscapesAutolabeling": 19}
"""Class counts of the data sets that have a fixed one."""

PathLike = Union[str, "os.PathLike[str]"]
# Upper ends are far above what makes sense, and below what ends in an overflow or takes all memory.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Pictures = Annotated[int, Field(ge=1, le=65536)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Label = Annotated[int, Field(ge=0, le=255)]
Pixels = Annotated[int, Field(ge=1, le=2**30)]  # of an image; OpenCV decodes no more
Iterations = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Scale = Annotated[float, Field(ge=1 / 16, le=16)]
Level = Annotated[float, Field(ge=0, le=255)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]


def _check_classes(count: int) -> int:
    if count < 2:
        raise ValueError("at least 2 (the background is a class too: 0, beside the foreground's 1)")
    if count > MOST_CLASSES:
        raise ValueError(f"at most {MOST_CLASSES}, the classes that a label map of 8 bits holds beside ignored pixels")
    return count


def _check_size(size: list[int]) -> list[int]:
    if min(size) < MIN_SIDE:
        raise ValueError(f"a width and a height of at least {MIN_SIDE} px, which the network needs at scale 0.5")
    if max(size) > MAX_SIDE:
        raise ValueError(f"a width and a height of at most {MAX_SIDE} px")
    return size


# --- The schema. A validator's message completes "expected <key> to be ...". ---


class Section(BaseModel):
    """A mapping of the YAML; keys it does not name are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Component(Section):
    """`{type: Name, **arguments}` of a component that is not ours; the builder checks the arguments."""

    model_config = ConfigDict(extra="allow")

    type: str


def arguments(spec: Section) -> dict[str, Any]:
    """The arguments of a component: everything but its `type`, in plain Python values."""
    return spec.model_dump(exclude={"type"})


def _type_of(*names: str) -> Discriminator:
    """Choose the schema of a component by its `type`; any name but `names` is a `Component` of the builder's."""

    def tag(value: Any) -> str:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return f"type:{name}" if name in names else "type:"

    return Discriminator(tag)


class BackboneSpec(Component):
    """A backbone by its name; the builder checks the arguments."""

    pretrained: Optional[str] = None


class NetworkSpec(Section):
    type: Literal["MscaleOCRNet"]
    num_classes: Annotated[int, AfterValidator(_check_classes)]
    backbone: BackboneSpec
    backbone_indices: Annotated[list[int], Field(min_length=1, max_length=2)] = [0]
    scales: Annotated[list[Scale], Field(min_length=1)] = [0.5, 1.0, 2.0]
    ocr_mid_channels: Channels = 512
    ocr_key_channels: Channels = 256
    attention_mid_channels: Channels = 256
    dropout: Fraction = 0.05
    align_corners: bool = False
    recompute: bool = False
    pretrained: Optional[str] = None

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: list[float]) -> list[float]:
        if 1.0 not in scales:
            raise ValueError("a list of scales that contains 1.0")
        if len(set(scales)) < len(scales):
            raise ValueError("a list of scales without duplicates")
        return scales

    @model_validator(mode="after")
    def _check_pretrained(self) -> NetworkSpec:
        if self.pretrained and self.backbone.pretrained:
            raise ValueError("given with pretrained or with backbone.pretrained, as the first would replace the second")
        return self


class ResizeStepScalingSpec(Section):
    type: Literal["ResizeStepScaling"]
    min_scale_factor: Scale = 0.75
    max_scale_factor: Scale = 1.25
    scale_step_size: NonNegative = 0.25

    @model_validator(mode="after")
    def _check_range(self) -> ResizeStepScalingSpec:
        if self.min_scale_factor > self.max_scale_factor:
            raise ValueError("given with a min_scale_factor no larger than its max_scale_factor")
        if 0 < self.scale_step_size < 1e-3:
            raise ValueError("given with a scale_step_size of at least 0.001, or of 0 for any factor in between")
        return self


class RandomPaddingCropSpec(Section):
    type: Literal["RandomPaddingCrop"]
    crop_size: Annotated[list[int], Field(min_length=2, max_length=2)] = [512, 512]
    im_padding_value: Level = 127.5
    label_padding_value: Label = 255
    category_max_ratio: Positive = 1.0
    ignore_index: Label = 255
    loop_times: Count = 10

    _size_fits = field_validator("crop_size")(_check_size)


class RandomHorizontalFlipSpec(Section):
    type: Literal["RandomHorizontalFlip"]
    prob: Probability = 0.5


class RandomDistortSpec(Section):
    type: Literal["RandomDistort"]
    brightness_range: Level = 0.5
    brightness_prob: Probability = 0.5
    contrast_range: Level = 0.5
    contrast_prob: Probability = 0.5
    saturation_range: Level = 0.5
    saturation_prob: Probability = 0.5
    hue_range: Level = 18.0
    hue_prob: Probability = 0.5
    sharpness_range: Level = 0.5
    sharpness_prob: Probability = 0.0


class NormalizeSpec(Section):
    type: Literal["Normalize"]
    mean: Annotated[list[Mean], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]
    std: Annotated[list[Deviation], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]


TransformSpec = Annotated[
    Union[
        Annotated[ResizeStepScalingSpec, Tag("type:ResizeStepScaling")],
        Annotated[RandomPaddingCropSpec, Tag("type:RandomPaddingCrop")],
        Annotated[RandomHorizontalFlipSpec, Tag("type:RandomHorizontalFlip")],
        Annotated[RandomDistortSpec, Tag("type:RandomDistort")],
        Annotated[NormalizeSpec, Tag("type:Normalize")],
        Annotated[Component, Tag("type:")],
    ],
    _type_of("ResizeStepScaling", "RandomPaddingCrop", "RandomHorizontalFlip", "RandomDistort", "Normalize"),
]


class DatasetSpec(Component):
    """A data set that is not ours; its transforms may be ours or PaddleSeg's."""

    transforms: list[TransformSpec] = []


class CityscapesAutolabelingSpec(Section):
    type: Literal["CityscapesAutolabeling"]
    dataset_root: Annotated[str, Field(min_length=1)]
    mode: Literal["train", "val", "test"]
    coarse_multiple: Annotated[float, Field(ge=0, le=1000)] = 1.0
    add_val: bool = False
    transforms: list[TransformSpec] = []


class ListDatasetSpec(Section):
    """Images and labels named in lists, under PaddleSeg's name and keys; without `mode`, that of the section."""

    type: Literal["Dataset"]
    dataset_root: Annotated[str, Field(min_length=1)] = "."
    train_path: Optional[str] = None
    val_path: Optional[str] = None
    test_path: Optional[str] = None
    num_classes: Optional[int] = None
    mode: Optional[Literal["train", "val", "test"]] = None
    separator: Optional[Annotated[str, Field(min_length=1)]] = None
    ignore_index: Label = 255
    transforms: list[TransformSpec] = []
    # PaddleSeg has other values, which would change nothing here.
    img_channels: Literal[3] = Field(default=3, exclude=True)
    edge: Literal[False] = Field(default=False, exclude=True)


AnyDatasetSpec = Annotated[
    Union[
        Annotated[CityscapesAutolabelingSpec, Tag("type:CityscapesAutolabeling")],
        Annotated[ListDatasetSpec, Tag("type:Dataset")],
        Annotated[DatasetSpec, Tag("type:")],
    ],
    _type_of("CityscapesAutolabeling", "Dataset"),
]


class SGDSpec(Section):
    type: Literal["SGD"]
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    clip_grad_norm: Optional[Positive] = None


class AdamWSpec(Section):
    type: Literal["AdamW"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.01
    clip_grad_norm: Optional[Positive] = None


OptimizerSpec = Annotated[
    Union[
        Annotated[SGDSpec, Tag("type:SGD")], Annotated[AdamWSpec, Tag("type:AdamW")], Annotated[Component, Tag("type:")]
    ],
    _type_of("SGD", "AdamW"),
]


class PolynomialDecaySpec(Section):
    type: Literal["PolynomialDecay"]
    learning_rate: Positive
    power: Positive = 1.0
    end_lr: NonNegative = 1e-4
    warmup_iters: Iterations = 0
    warmup_start_lr: NonNegative = 0.0


class SchedulerSpec(Component):
    """A scheduler of `paddle.optimizer.lr`, by its name there."""

    learning_rate: Positive
    warmup_iters: Iterations = 0
    warmup_start_lr: NonNegative = 0.0


AnySchedulerSpec = Annotated[
    Union[Annotated[PolynomialDecaySpec, Tag("type:PolynomialDecay")], Annotated[SchedulerSpec, Tag("type:")]],
    _type_of("PolynomialDecay"),
]


def _check_weights(weights: list[float]) -> list[float]:
    if not any(weights):
        raise ValueError("a list with a number above 0, or there is nothing to train")
    return weights


Weights = Annotated[list[NonNegative], Field(min_length=1), AfterValidator(_check_weights)]


class DiceLossSpec(Section):
    type: Literal["DiceLoss"]
    weight: Optional[Weights] = None
    smooth: NonNegative = 1.0
    ignore_index: Label = 255


class BootstrappedCrossEntropyLossSpec(Section):
    type: Literal["BootstrappedCrossEntropyLoss"]
    min_K: Count
    loss_th: NonNegative
    weight: Optional[Weights] = None
    ignore_index: Label = 255


class CrossEntropyLossSpec(Section):
    type: Literal["CrossEntropyLoss"]
    weight: Optional[Weights] = None
    ignore_index: Label = 255
    top_k_percent_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    avg_non_ignore: bool = True


class OhemCrossEntropyLossSpec(Section):
    type: Literal["OhemCrossEntropyLoss"]
    thresh: Probability = 0.7
    min_kept: Annotated[int, Field(ge=0, le=2**31 - 1)] = 10000
    ignore_index: Label = 255


class MixedLossSpec(Section):
    type: Literal["MixedLoss"]
    losses: list[LossTermSpec]  # pydantic 2.5 takes no limit beside a type that is defined below
    coef: Weights

    @model_validator(mode="after")
    def _check_coef(self) -> MixedLossSpec:
        if len(self.coef) != len(self.losses):
            raise ValueError(f"given with as many numbers in coef as losses ({len(self.losses)})")
        return self


LossTermSpec = Annotated[
    Union[
        Annotated[DiceLossSpec, Tag("type:DiceLoss")],
        Annotated[BootstrappedCrossEntropyLossSpec, Tag("type:BootstrappedCrossEntropyLoss")],
        Annotated[CrossEntropyLossSpec, Tag("type:CrossEntropyLoss")],
        Annotated[OhemCrossEntropyLossSpec, Tag("type:OhemCrossEntropyLoss")],
        Annotated[MixedLossSpec, Tag("type:MixedLoss")],
        Annotated[Component, Tag("type:")],
    ],
    _type_of("DiceLoss", "BootstrappedCrossEntropyLoss", "CrossEntropyLoss", "OhemCrossEntropyLoss", "MixedLoss"),
]


def _single_losses(specs: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """Every loss with its key, those inside a MixedLoss in its place."""
    for index, spec in enumerate(specs):
        if isinstance(spec, MixedLossSpec):
            yield from _single_losses(spec.losses, f"{where}.{index}.losses")
        else:
            yield f"{where}.{index}", spec


class LossSpec(Section):
    """Every loss of `types` on every output of `coef`."""

    types: Annotated[list[LossTermSpec], Field(min_length=1)]
    coef: Annotated[dict[str, NonNegative], Field(min_length=1)]

    @field_validator("types")
    @classmethod
    def _check_types(cls, types: list[Any]) -> list[Any]:
        names = [spec.type for spec in types]
        if len(set(names)) < len(names):
            raise ValueError("a list that names each loss once, as every loss is put on every output")
        single = [spec for _, spec in _single_losses(types, "loss.types")]
        if len({spec.ignore_index for spec in single if not isinstance(spec, Component)}) > 1:
            raise ValueError("a list of losses with the same ignore_index")
        return types

    @field_validator("coef")
    @classmethod
    def _check_coef(cls, coef: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in coef if name not in dialect.OUTPUTS]
        if unknown:
            raise ValueError(f"weights of the network's outputs ({suggest(unknown[0], dialect.OUTPUTS)})")
        # Parameters without a gradient stay random, and training on several GPUs waits for theirs for ever. One of 0
        # keeps them as random.
        trained = {name for name, weight in coef.items() if weight > 0}
        if trained.isdisjoint({"joint", "joint_aux"}):
            raise ValueError("given a weight above 0 for joint, without which nothing trains the scale attention")
        if trained == {"joint_aux"}:
            raise ValueError("given a weight above 0 for joint, without which nothing trains the OCR head's last layer")
        return coef


class InferenceSpec(Section):
    """`test_config`: how evaluation and prediction go over a picture; sizes are [width, height]."""

    aug_eval: bool = False
    scales: Annotated[list[Scale], Field(min_length=1)] = [1.0]
    flip_horizontal: bool = False
    flip_vertical: bool = False
    is_slide: bool = False
    crop_size: Optional[Annotated[list[int], Field(min_length=2, max_length=2)]] = None
    stride: Optional[Annotated[list[Count], Field(min_length=2, max_length=2)]] = None
    average: Literal["logits", "softmax"] = "logits"

    @field_validator("scales", mode="before")
    @classmethod
    def _one_scale(cls, scales: Any) -> Any:
        return [scales] if isinstance(scales, (int, float)) and not isinstance(scales, bool) else scales

    @field_validator("crop_size")
    @classmethod
    def _size_fits(cls, size: Optional[list[int]]) -> Optional[list[int]]:
        return size and _check_size(size)

    @model_validator(mode="after")
    def _check_tiles(self) -> InferenceSpec:
        if self.is_slide and self.crop_size is None:
            raise ValueError("given with a crop_size, as is_slide is true")
        if self.crop_size and self.stride and any(s > c for s, c in zip(self.stride, self.crop_size)):
            raise ValueError("a stride no larger than crop_size, or pixels between tiles would have no answer")
        return self


class Origins:
    """Where a key of a recipe comes from: an option, or one of the files it was put together from."""

    def __init__(self) -> None:
        self.files: list[tuple[str, Any]] = []  # name and native tree, those that win first
        self.options: dict[str, Any] = {}  # by dotted key

    def of(self, key: Sequence[Any]) -> str:
        """ "--opts" or the file that has the key, else what is next above it; "" where there is no file."""
        plain = ".".join(map(str, key))
        if any(f"{a}.".startswith(f"{b}.") for o in self.options for a, b in ((plain, o), (o, plain))):
            return "--opts"
        above = (key[:depth] for depth in range(len(key), -1, -1))
        return next((name for part in above for name, tree in self.files if _has(tree, part)), "")


def _has(tree: Any, key: Sequence[Any]) -> bool:
    for part in key:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and str(part) in map(str, range(len(tree))):
            tree = tree[int(part)]
        else:
            return False
    return True


class Config(Section):
    """A checked recipe. Equal recipes compare equal wherever they were read from."""

    batch_size: Pictures = 1
    iters: Count = 65000
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    gradient_accumulation: Pictures = 1
    nonfinite_limit: Count = 10
    on_bad_sample: Literal["error", "skip"] = "error"
    bad_sample_limit: Count = 100
    max_image_pixels: Pixels = 89_478_485
    model: NetworkSpec
    train_dataset: Optional[AnyDatasetSpec] = None
    val_dataset: Optional[AnyDatasetSpec] = None
    optimizer: Optional[OptimizerSpec] = None
    lr_scheduler: Optional[AnySchedulerSpec] = None
    loss: Optional[LossSpec] = None
    test_config: InferenceSpec = InferenceSpec()

    _path: str = PrivateAttr(default="")
    _origins: Origins = PrivateAttr(default_factory=Origins)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @property
    def path(self) -> str:
        """The file this recipe was read from, for messages."""
        return self._path

    def source(self, key: str) -> str:
        """ "--opts" or the file that a dotted key stands in, for messages."""
        return self._origins.of(key.split(".")) or self._path

    def where(self, key: str) -> str:
        """A dotted key for messages, after its source."""
        return f"{self.source(key)}: {key}"

    def dump(self) -> str:
        """The whole recipe as YAML, bases, options and defaults resolved; `load_config` reads it to an equal one."""
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def require(self, *sections: str) -> None:
        """Raise UsageError unless every one of `sections` (top-level keys) is given."""
        missing = [name for name in sections if getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"{self.path}: expected the section {', '.join(missing)}, which this command needs, found none: "
                "write it, or inherit it from a file named in _base_"
            )

    def problems_between_sections(self) -> Iterator[tuple[str, str]]:
        """What is wrong though every section is right by itself: the key at fault, and a sentence about it."""
        for name in ("train_dataset", "val_dataset"):
            if getattr(self, name):
                yield from self._problems_of_dataset(name, getattr(self, name))
        if self.train_dataset:
            yield from self._problems_with_labels(self.train_dataset)
        for key, spec in _single_losses(self.loss.types if self.loss else (), "loss.types"):
            weight = None if isinstance(spec, Component) else getattr(spec, "weight", None)
            if weight and len(weight) != self.model.num_classes:
                yield (
                    f"{key}.weight",
                    f"to be a number for each of the {self.model.num_classes} classes (model.num_classes), found "
                    f"{len(weight)}: correct it",
                )
        if self.lr_scheduler:
            yield from self._problems_of_rate(self.lr_scheduler)

    def remarks(self) -> list[str]:
        """What a reader of this recipe's scores should know, one sentence each."""
        train, val = self.train_dataset, self.val_dataset
        if train is None or val is None or _root(train) != _root(val):
            return []
        if isinstance(train, CityscapesAutolabelingSpec) and isinstance(val, CityscapesAutolabelingSpec):
            seen = train.add_val and val.mode == "val"
            return ["the scores are of images that are trained on, as train_dataset.add_val is true"] * seen
        lists = [getattr(spec, f"{getattr(spec, 'mode', '')}_path", None) for spec in (train, val)]
        same = lists[0] is not None and lists[0] == lists[1]
        return [f"the scores are of images that are trained on, as both data sets read {lists[0]}"] * same

    def _problems_of_dataset(self, name: str, spec: Any) -> Iterator[Any]:
        """Class counts, marks of ignored pixels, splits and transforms that this section cannot have."""
        classes = NUM_CLASSES.get(spec.type, getattr(spec, "num_classes", None))
        ignored = getattr(spec, "ignore_index", 255)
        if classes is not None and not _within(classes, 2, MOST_CLASSES):
            yield (
                f"{name}.num_classes",
                f"to be a whole number from 2 to {MOST_CLASSES} (the background is a class too), found "
                f"{shown(classes)}: correct it",
            )
        elif classes is not None and classes != self.model.num_classes:
            yield (
                "model.num_classes",
                f"to be the {classes} classes of {name}, found {self.model.num_classes}: set model.num_classes to "
                f"{classes}",
            )
        if not _within(ignored, 0, 255):
            yield (
                f"{name}.ignore_index",
                f"to be a whole number from 0 to 255, which label maps of 8 bits can hold, found {shown(ignored)}: "
                "correct it",
            )

        for key, only, why in (
            ("img_channels", 3, "as images are read as RGB"),
            ("edge", False, "as nothing here uses it"),
        ):
            found = getattr(spec, key, only)
            if found != only:
                yield f"{name}.{key}", f"to be {only}, {why}, found {shown(found)}: correct it"

        mode = getattr(spec, "mode", None)
        training = name == "train_dataset"
        if isinstance(mode, str) and (mode.lower() in ("val", "test") if training else mode.lower()[:5] == "train"):
            yield (
                f"{name}.mode",
                f"to be {'train' if training else 'val'}, found {shown(mode)}, whose images "
                f"{'are for evaluation' if training else 'are trained on'}: set it to {'train' if training else 'val'}",
            )
        if not training and getattr(spec, "add_val", False):
            yield f"{name}.add_val", "in train_dataset alone, found it where it has no effect: remove it"
        for index, transform in enumerate(() if training else spec.transforms):
            if transform.type.startswith("Random") or transform.type in RANDOM:
                yield (
                    f"{name}.transforms.{index}",
                    f"to be the same for every run, found {transform.type}, which changes images at random (and not "
                    "their labels): remove it",
                )
        normalizing = [index for index, transform in enumerate(spec.transforms) if transform.type in NORMALIZING]
        for index in normalizing[1:]:
            yield f"{name}.transforms.{index}", "to be no second Normalize, found one: remove it"
        if not normalizing:
            yield (
                f"{name}.transforms",
                f"to normalise images, which all weights want, found no {' or '.join(NORMALIZING)}: add {NORMALIZE}",
            )

    def _problems_with_labels(self, dataset: Any) -> Iterator[Any]:
        """Labels of a training image that a loss would take for a class that there is not."""
        ignored = getattr(dataset, "ignore_index", 255)
        for key, spec in _single_losses(self.loss.types if self.loss else (), "loss.types"):
            left_out = getattr(spec, "ignore_index", ignored)  # Those of PaddleSeg may have none.
            if left_out != ignored:
                yield (
                    f"{key}.ignore_index",
                    f"to be {shown(ignored)}, which marks ignored pixels in train_dataset, found {shown(left_out)}: "
                    f"set it to {shown(ignored)}",
                )
        for index, transform in enumerate(getattr(dataset, "transforms", ())):
            key, label = f"train_dataset.transforms.{index}", getattr(transform, "label_padding_value", None)
            left_out = getattr(transform, "ignore_index", ignored)
            if getattr(transform, "category_max_ratio", 1) != 1 and left_out != ignored:
                yield (
                    f"{key}.ignore_index",
                    f"to be {shown(ignored)}, which marks ignored pixels in train_dataset, found {shown(left_out)}: "
                    f"set it to {shown(ignored)}",
                )
            if isinstance(label, int) and label != ignored and not 0 <= label < self.model.num_classes:
                yield (
                    f"{key}.label_padding_value",
                    f"to be a class below {self.model.num_classes}, or {shown(ignored)} for ignored pixels, found "
                    f"{label}: correct it",
                )

    def _problems_of_rate(self, rate: Union[PolynomialDecaySpec, SchedulerSpec]) -> Iterator[Any]:
        """A schedule that would not warm up, or not come down."""
        if rate.warmup_iters >= self.iters:
            yield (
                "lr_scheduler.warmup_iters",
                f"to be less than iters ({self.iters}), found {rate.warmup_iters}: shorten the warm-up",
            )
        if rate.warmup_iters and rate.warmup_start_lr >= rate.learning_rate:
            yield (
                "lr_scheduler.warmup_start_lr",
                f"to be less than learning_rate ({rate.learning_rate}), found {rate.warmup_start_lr}: lower it",
            )
        if rate.warmup_start_lr and not rate.warmup_iters:
            yield (
                "lr_scheduler.warmup_start_lr",
                f"together with warmup_iters, found {rate.warmup_start_lr} without effect: add the first, or remove it",
            )
        if isinstance(rate, PolynomialDecaySpec) and rate.end_lr > rate.learning_rate:
            yield (
                "lr_scheduler.end_lr",
                f"to be at most learning_rate ({rate.learning_rate}), found {rate.end_lr}: set end_lr to 0 or another "
                "rate to end at",
            )


def _within(value: Any, lowest: int, highest: int) -> bool:
    """Whether this is a whole number in that range."""
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _root(spec: Any) -> Any:
    """The folder of a data set, however it is written."""
    return os.path.normpath(str(getattr(spec, "dataset_root", "")))


_SECTIONS: dict[str, type[Section]] = {
    "model": NetworkSpec,
    "train_dataset": CityscapesAutolabelingSpec,
    "lr_scheduler": PolynomialDecaySpec,
    "optimizer": SGDSpec,
    "loss": LossSpec,
    "test_config": InferenceSpec,
}
OUR_SPECS: dict[str, type[Section]] = {
    "MscaleOCRNet": NetworkSpec,
    "CityscapesAutolabeling": CityscapesAutolabelingSpec,
    "Dataset": ListDatasetSpec,
    "ResizeStepScaling": ResizeStepScalingSpec,
    "RandomPaddingCrop": RandomPaddingCropSpec,
    "RandomHorizontalFlip": RandomHorizontalFlipSpec,
    "RandomDistort": RandomDistortSpec,
    "Normalize": NormalizeSpec,
    "DiceLoss": DiceLossSpec,
    "BootstrappedCrossEntropyLoss": BootstrappedCrossEntropyLossSpec,
    "CrossEntropyLoss": CrossEntropyLossSpec,
    "OhemCrossEntropyLoss": OhemCrossEntropyLossSpec,
    "MixedLoss": MixedLossSpec,
    "SGD": SGDSpec,
    "AdamW": AdamWSpec,
    "PolynomialDecay": PolynomialDecaySpec,
}
"""Components whose arguments are checked when the file is read."""

_KEYS = {key.lower(): key for spec in (*OUR_SPECS.values(), *_SECTIONS.values(), Config) for key in spec.model_fields}
"""Keys of all sections as they are spelled, by themselves in lower case."""


# --- Reading. ---


def load_config(path: PathLike, opts: Iterable[str] = ()) -> Config:
    """Read a recipe, lay it over its bases, apply `opts` ("dotted.key=YAML value"), and check all of it.

    `_base_` names one file or several, relative to the file it stands in; of several the first that has a key wins,
    as in PaddleSeg. Mappings are merged, lists replaced; `_inherited_: false` in a mapping drops what it would inherit.

    Raises:
        UsageError: naming the file, and one line for each problem found (at most 20).
    """
    path = os.fspath(path)
    origins = Origins()
    tree = _without_flags(_read_with_bases(path, (), [MOST_CHARACTERS], origins), path)
    for option in opts:
        key, value = _set_option(tree, option)
        if origins.options.setdefault(key, value) != value:
            raise UsageError(
                f"--opts: expected {dotted(key.split('.'))} once, by an option or by a flag of its own, found both "
                f"{shown(origins.options[key])} and {shown(value)}: leave one out"
            )
    tree = _native(tree, path)
    for section, mode in (("train_dataset", "train"), ("val_dataset", "val")):
        if isinstance(tree.get(section), dict):
            tree[section] = {"mode": mode, **tree[section]}
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_sentence(detail, tree, origins) for detail in details[:MOST_PROBLEMS]]
        if len(details) > MOST_PROBLEMS:
            problems.append(f"{path}: expected a recipe, found {len(details) - MOST_PROBLEMS} more problems like these")
        raise UsageError(*problems) from error
    problems = [
        f"{origins.of(key.split('.'))}: expected {key} {problem}" for key, problem in config.problems_between_sections()
    ]
    if problems:
        raise UsageError(*problems)
    config._path, config._origins = path, origins
    return config


def _native(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """A file's tree in our words: PaddleSeg's keys moved, names in our spelling; what is native stays as it is."""
    return dialect.to_native(dialect.spelled(tree, OUR_SPECS, _KEYS, source), source)


def merge(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """`upper` laid over `lower`: mappings merge, anything else replaces; `_inherited_: false` replaces a mapping."""
    if upper.get("_inherited_") is False:
        return upper
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        merged[key] = merge(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML for recipes: `1e-4` is a number, a date is a text, a mapping's keys are texts and given once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # Makes an alias to a node inside itself an error.
        self.room_to_merge = MOST_CHARACTERS

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:  # such as `!!bool x`
            raise yaml.YAMLError(f"a value that cannot be read on line {_line(node)} ({error})") from error

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"a !!map on line {_line(node)} that is none")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == _MERGE:  # `<<: *anchor`, whose keys may be overridden
                found = self.construct_object(value_node, deep=True)
                parts = found if isinstance(found, list) else [found]
                if not all(isinstance(part, dict) for part in parts):
                    raise yaml.YAMLError(f"<< on line {line} with something else than mappings to merge: correct it")
                self.room_to_merge -= sum(map(len, parts))
                if self.room_to_merge < 0:
                    raise yaml.YAMLError(f"more keys than a recipe can have, merged on line {line}: write less")
                for part in reversed(parts):
                    merged.update(part)
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {shown(key)} on line {line}, which is not a text: put it in quotes")
            if key in own:
                raise yaml.YAMLError(f"the key {shown(key)} twice in one mapping, again on line {line}: remove one")
            own[key] = self.construct_object(value_node, deep=True)
        return {**merged, **own}

    def construct_small_int(self, node: Any) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.YAMLError(f"a number of more than 63 bits on line {_line(node)}: correct it")
        return value

    def construct_number(self, node: Any) -> float:
        value = self.construct_yaml_float(node)
        if math.isnan(value):
            raise yaml.YAMLError(f"a value that is not a number, .nan, on line {_line(node)}: correct it")
        return value

    def refuse(self, node: Any) -> None:
        raise yaml.YAMLError(f"the tag {shown(node.tag)} on line {_line(node)}, which recipes do not use: remove it")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


_PLAIN_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")]
_Loader.yaml_constructors = {
    **{tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN_TAGS},
    "tag:yaml.org,2002:int": _Loader.construct_small_int,
    "tag:yaml.org,2002:float": _Loader.construct_number,
    _MERGE: yaml.SafeLoader.construct_yaml_str,  # where it is a value
    None: _Loader.refuse,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (*_PLAIN_TAGS, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse(text: str, level: int = 0) -> Any:
    """YAML text -> None, bool, int, float, str, lists and dicts of them; nothing is in two places.

    `level` is how many mappings and lists it will stand in.

    Raises:
        yaml.YAMLError: with what was found in its text.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"more than {MOST_CHARACTERS} characters: write less")
    try:
        return _written_out(yaml.load(text, Loader=_Loader), [MOST_CHARACTERS], level)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels of nesting: flatten it") from error


def _written_out(value: Any, room: list[int], level: int) -> Any:
    """A copy with every alias written out, as long as there is room: `room[0]` characters and values are left."""
    if level > MOST_LEVELS:
        raise yaml.YAMLError("too many levels of nesting: flatten it")
    room[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if room[0] < 0:
        raise yaml.YAMLError(f"more than {MOST_CHARACTERS} characters with every alias written out: write less")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise yaml.YAMLError(f"half a character in {shown(value)}: correct it")
    if isinstance(value, list):
        return [_written_out(part, room, level + 1) for part in value]
    if isinstance(value, dict):
        return {_written_out(key, room, level): _written_out(part, room, level + 1) for key, part in value.items()}
    return value


def _read(path: str, room: list[int]) -> dict[str, Any]:
    """One file's tree; `room[0]`, the bytes that may still be read, becomes smaller."""
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):  # Reading a pipe or a device might never end.
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UsageError(f"{path}: expected a readable YAML file, found {found}: check the path")
        # Some files under /proc look like any other, but wait for more to come.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0) as file:
            data = file.read(room[0] + 1) or b""
        room[0] -= len(data)
        if room[0] < 0:
            raise UsageError(
                f"{path}: expected a recipe of at most {MOST_CHARACTERS} bytes with its bases, found more: check that "
                "it is one"
            )
        tree = _parse(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected YAML in UTF-8, found other bytes: check that it is a text file") from error
    except (FileNotFoundError, ValueError) as error:  # the second: a zero byte in the path
        raise UsageError(f"{path}: expected a YAML file, found none: check the path") from error
    except OSError as error:
        raise UsageError(f"{path}: expected a readable YAML file, found {error.strerror}: check the path") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: expected YAML, but found: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        found = "an empty file" if tree is None else shown(tree)
        raise UsageError(f"{path}: expected `key: value` lines such as `model: ...`, found {found}: check the file")
    return tree


def _read_with_bases(path: str, above: tuple[str, ...], room: list[int], origins: Origins) -> dict[str, Any]:
    """The native tree of `path` laid over its bases; `above` are the files that led here, `room` see `_read`.

    All files are noted in `origins`.
    """
    if any(os.path.realpath(path) == os.path.realpath(other) for other in above):
        chain = " -> ".join((*above, path))
        raise UsageError(f"{path}: expected _base_ to end at some file, found a circle ({chain}): remove one _base_")
    if len(above) > MOST_LEVELS:
        raise UsageError(f"{path}: expected at most {MOST_LEVELS} files on one another, found more: remove some _base_")
    tree = _read(path, room)
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    # A text that cannot be printed, such as one with a line break or a zero byte, is no file's name.
    if not isinstance(bases, list) or not all(isinstance(base, str) and base.isprintable() for base in bases):
        raise UsageError(
            f"{path}: expected _base_ to be a file name or a list of them, found {shown(bases)}: correct it"
        )
    tree = _native(tree, path)
    origins.files.append((path, _without_flags(tree, path)))
    layers = [_read_with_bases(str(Path(path).parent / base), (*above, path), room, origins) for base in bases]
    lower: dict[str, Any] = {}
    for layer in reversed(layers):
        lower = merge(layer, lower)
    return merge(tree, lower)


def _without_flags(tree: Any, path: str) -> Any:
    """A copy of the tree without `_inherited_`."""
    if isinstance(tree, list):
        return [_without_flags(value, path) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if not isinstance(tree.get("_inherited_", True), bool):
        found = shown(tree["_inherited_"])
        raise UsageError(f"{path}: expected _inherited_ to be true or false, found {found}: correct it")
    return {key: _without_flags(value, path) for key, value in tree.items() if key != "_inherited_"}


def _set_option(tree: dict[str, Any], option: str) -> tuple[str, Any]:
    """Apply one "key=value" to the tree, in place -> its native dotted key, and the value."""
    key, equals, text = option.partition("=")
    parts = dialect.native_key(key).split(".")
    if not equals or not all(parts) or not key.isprintable() or len(parts) > MOST_LEVELS:
        raise UsageError(
            f"--opts: expected key=value such as optimizer.weight_decay=0.001, found {shown(option)}: correct it"
        )
    try:
        value = _parse(text, level=len(parts))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"--opts: expected the value of {dotted(parts)} to be YAML, found {shown(text)}: {reason}"
        ) from error

    parent: Any = tree
    for depth, part in enumerate(parts):
        above = dotted(parts[:depth])
        if not isinstance(parent, (dict, list)):
            raise UsageError(
                f"--opts: expected {above} to be a mapping, found {shown(parent)} on the way to {dotted(parts)}: "
                "correct the key"
            )
        if isinstance(parent, list) and part not in map(str, range(len(parent))):
            raise UsageError(
                f"--opts: expected {above} to be followed by a position below {len(parent)}, found {dotted([part])} "
                f"in {dotted(parts)}: correct it"
            )
        if isinstance(parent, dict) and part not in parent and _KEYS.get(part.lower()) in parent:
            part = parts[depth] = _KEYS[part.lower()]
        place: Any = int(part) if isinstance(parent, list) else part
        if depth == len(parts) - 1:
            parent[place] = value
        elif isinstance(parent, dict) and parent.get(part) is None:
            parent[part] = {}
        parent = parent[place]
    return ".".join(parts), value


# --- Saying what is wrong. ---


def shown(value: Any) -> str:
    """A value of a recipe for a message: as Python writes it, on one line, and shortened if it is long."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = 80
_SHORT.maxlevel = 3


def dotted(parts: Iterable[Any]) -> str:
    """Parts of a key as in `--opts`; what would not be read as a key there is shown as a value."""
    return ".".join(str(part) if re.fullmatch(r"[^\W.]{1,60}", str(part)) else shown(part) for part in parts)


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The candidate nearest to a misspelt name, as a question; the first twenty of them if none is near."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), by_folded, n=1)
    if near:
        return f"did you mean {by_folded[near[0]]}?"
    names = list(by_folded.values())
    return f"choose from {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def _suggest_key(name: str, at: str, section: type[Section], tree: dict[str, Any]) -> str:
    """What to do about a key, found at `at`, that its section does not have.

    It may be near one that the section has, stand in another component of this kind, or in another section.
    """
    if not difflib.get_close_matches(name.lower(), section.model_fields):
        owners = [_type_name(spec) for spec in _alternatives(section) if name in spec.model_fields]
        if owners:
            return f"it is for the type {' or '.join(owners)}, not for {_type_name(section)}: remove it, or change type"
        if name in dialect.REMEDIES:
            return dialect.REMEDIES[name]
        elsewhere = [f"{path}.{name}" for path in _SECTIONS if name in _section_in_force(path, tree).model_fields]
        if name in Config.model_fields:
            elsewhere.append(f"{name} at the top level")
        if elsewhere and at not in elsewhere:
            return f"did you mean {' or '.join(elsewhere)}?"
    return suggest(name, section.model_fields)


def _alternatives(section: type[Section]) -> list[type[Section]]:
    """All components of the kind of this one."""
    unions = (TransformSpec, AnyDatasetSpec, OptimizerSpec, AnySchedulerSpec, LossTermSpec)
    kinds = [[get_args(tagged)[0] for tagged in get_args(get_args(union)[0])] for union in unions]
    return next((kind for kind in kinds if section in kind), [])


def _type_name(section: type[Section]) -> str:
    return get_args(section.model_fields["type"].annotation)[0]


def _section_in_force(path: str, tree: dict[str, Any]) -> type[Section]:
    """What a section's type in the recipe says; our first component of the kind where it says nothing."""
    given = tree.get(path)
    name = given.get("type") if isinstance(given, dict) else None
    return OUR_SPECS.get(name, Section) if isinstance(name, str) else _SECTIONS[path]


def _sentence(details: Any, tree: dict[str, Any], origins: Origins) -> str:
    """One of pydantic's error records as a sentence: where, what was expected and found, what to do."""
    *parts, last = details["loc"]
    location = [part for part in parts if not str(part).startswith("type:")]
    if details["type"] == "extra_forbidden" or not str(last).startswith("type:"):
        location.append(last)
    key, source = dotted(location), origins.of(location)
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        parent = str(parts[-1]) if parts else ""
        section = OUR_SPECS.get(parent.partition(":")[2]) or _SECTIONS.get(parent, Config)
        return f"{source}: expected only known keys, found {key}: {_suggest_key(str(last), key, section, tree)}"
    if kind == "missing":
        return f"{source}: expected {key} to be given, found nothing: add it"

    expected = details["msg"].replace("Input should be ", "").replace("Value error, ", "")
    expected = {
        "model_type": "a mapping (`key: value` lines)",
        "dict_type": "a mapping (`key: value` lines)",
        "list_type": "a list",
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "bool_type": "true or false",
        "too_short": f"at least {details.get('ctx', {}).get('min_length')} long",
        "too_long": f"at most {details.get('ctx', {}).get('max_length')} long",
        "string_too_short": "a text that is not empty",
    }.get(kind, expected)
    remedy = "correct it"
    names = re.findall(r"'([^']*)'", details["ctx"]["expected"]) if kind == "literal_error" else ()
    if names:
        remedy = suggest(shown(found), names)
    return f"{source}: expected {key} to be {expected}, found {shown(found)}: {remedy}"
