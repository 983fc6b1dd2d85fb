# SPDX-License-Identifier: Apache-2.0
"""The schema that a recipe is checked against. A validator's message completes "expected <key> to be ..."."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from hmsa.config import dialect
from hmsa.config.text import _Dumper
from hmsa.errors import UsageError, shown, suggest

MIN_SIDE = 64
"""Shortest side in pixels of a crop or tile: at scale 0.5 the network's coarsest branch (stride 32) has one pixel."""

MAX_SIDE = 16384
"""Longest side in pixels of a crop or tile."""

MAX_CLASSES = 255
"""Of a network: label maps have 8 bits, and one of their values, 255 if nothing else is said, marks ignored pixels."""

NORMALIZE = "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
"""What ImageNet's weights want, for messages."""

NORMALIZING = ("Normalize",)
"""Transforms, of this project and of PaddleSeg, that bring images to the range of numbers that weights want."""

RANDOM = ("ResizeStepScaling", "ResizeRangeScaling")
"""Transforms that change images at random, beside those whose names start with Random."""

NUM_CLASSES = {"CityscapesAutolabeling": 19}
"""Class counts of the data sets that have a fixed one."""
# Upper ends are far above what makes sense, and below what ends in an overflow or takes all memory.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
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
    if count > MAX_CLASSES:
        raise ValueError(f"at most {MAX_CLASSES}, the classes that a label map of 8 bits holds beside ignored pixels")
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
    """`test_config`: how evaluation and prediction go over an image; sizes are [width, height]."""

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

    batch_size: BatchSize = 1
    iters: Count = 65000
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    gradient_accumulation: BatchSize = 1
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
        if classes is not None and not _within(classes, 2, MAX_CLASSES):
            yield (
                f"{name}.num_classes",
                f"to be a whole number from 2 to {MAX_CLASSES} (the background is a class too), found "
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
