# SPDX-License-Identifier: Apache-2.0
"""Every component a recipe can name, kind by kind: its Spec (arguments, defaults, bounds), and where it is.

To add one, write its class (keyword-only, without defaults), its Spec here and a line in the table of its kind. Nothing
here imports what it names, so that a recipe is read without Paddle; `imported` does it for the builder.
"""

# ruff: noqa: RUF012 (pydantic copies defaults)
from __future__ import annotations

import re
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Optional

from pydantic import AfterValidator, Field, field_validator, model_validator

from hmsa.config.fields import (
    Channels,
    ClassCount,
    Component,
    Count,
    CropSize,
    Deviation,
    Fraction,
    Label,
    Level,
    Mean,
    Natural,
    NonNegative,
    Positive,
    Probability,
    Scale,
    Section,
    Size,
    Split,
    Text,
    Unchecked,
    Weights,
)

Table = dict[str, tuple[type[Component], str]]
"""Type name -> (its Spec, "module:attribute" of what takes the Spec's fields)."""


def of_kind(kind: str, other: type[Component] = Unchecked) -> AfterValidator:
    """Makes a field hold a component of this kind, checked by the Spec that its name has in the table, else `other`."""

    def check(value: Any) -> Component:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        spec, _ = KINDS[kind].get(name if isinstance(name, str) else "", (other, ""))
        return spec.model_validate(value)

    return AfterValidator(check)


def checked_specs() -> dict[str, type[Component]]:
    """The Specs of all components, of every kind, whose arguments are checked when the recipe is read."""
    every = {name: spec for table in KINDS.values() for name, (spec, _) in table.items()}
    return {name: spec for name, spec in every.items() if not issubclass(spec, Unchecked)}


def imported(place: str) -> Any:
    """What stands at "module:attribute", or at "module:table.key" in a table."""
    module, _, attributes = place.partition(":")
    found: Any = import_module(module)
    for name in attributes.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


# --- Backbones. ---


class UncheckedBackboneSpec(Unchecked):
    """A backbone by its name; the builder checks the arguments."""

    pretrained: Optional[str] = None


HRNETS = (
    *("HRNet_W18_NV_Small_V1", "HRNet_W18_NV_Small_V2", "HRNet_W18_NV", "HRNet_W30_NV", "HRNet_W32_NV"),
    *("HRNet_W40_NV", "HRNet_W44_NV", "HRNet_W48_NV", "HRNet_W60_NV", "HRNet_W64_NV"),
)
BACKBONES: Table = {name: (UncheckedBackboneSpec, f"hmsa.models.hrnet:BACKBONES.{name}") for name in HRNETS}


# --- The network. ---


class NetworkSpec(Component):
    type: Literal["MscaleOCRNet"]
    num_classes: ClassCount
    backbone: Annotated[Any, of_kind("backbone", UncheckedBackboneSpec)]
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
        if 1.0 not in scales or len(set(scales)) < len(scales):
            raise ValueError("a list of scales that contains 1.0, and none twice")
        return scales

    @model_validator(mode="after")
    def _check_pretrained(self) -> NetworkSpec:
        if self.pretrained and self.backbone.pretrained:
            raise ValueError("given with pretrained or with backbone.pretrained, as the first would replace the second")
        return self


MODELS: Table = {"MscaleOCRNet": (NetworkSpec, "hmsa.models.hierarchical:MscaleOCRNet")}


# --- Transforms. ---


AnyTransform = Annotated[Any, of_kind("transform")]


class ResizeStepScalingSpec(Component):
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


class RandomPaddingCropSpec(Component):
    crop_size: CropSize = [512, 512]
    im_padding_value: Level = 127.5
    label_padding_value: Label = 255
    category_max_ratio: Positive = 1.0
    ignore_index: Label = 255
    loop_times: Count = 10


class RandomHorizontalFlipSpec(Component):
    prob: Probability = 0.5


class RandomDistortSpec(Component):
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


class NormalizeSpec(Component):
    mean: Annotated[list[Mean], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]
    std: Annotated[list[Deviation], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]


class PaddingSpec(Component):
    target_size: Size
    im_padding_value: Level = 127.5
    label_padding_value: Label = 255


class ResizeSpec(Component):
    target_size: Size = [512, 512]
    keep_ratio: bool = False
    size_divisor: Optional[Count] = None


TRANSFORMS: Table = {
    "ResizeStepScaling": (ResizeStepScalingSpec, "hmsa.datasets.transforms:ResizeStepScaling"),
    "RandomPaddingCrop": (RandomPaddingCropSpec, "hmsa.datasets.transforms:RandomPaddingCrop"),
    "RandomHorizontalFlip": (RandomHorizontalFlipSpec, "hmsa.datasets.transforms:RandomHorizontalFlip"),
    "RandomDistort": (RandomDistortSpec, "hmsa.datasets.transforms:RandomDistort"),
    "Normalize": (NormalizeSpec, "hmsa.datasets.transforms:Normalize"),
    "Padding": (PaddingSpec, "hmsa.datasets.transforms:Padding"),
    "Resize": (ResizeSpec, "hmsa.datasets.transforms:Resize"),
}

RANDOM = ("ResizeStepScaling", "ResizeRangeScaling")
"""Those that change images at random, beside those whose names start with Random."""

IMAGENET = NormalizeSpec(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
"""What ImageNet's weights want."""


# --- Data sets. The builder adds transforms, seed and limits. ---


class UncheckedDatasetSpec(Unchecked):
    """A data set that is not ours; its transforms may be ours or PaddleSeg's."""

    transforms: list[AnyTransform] = []


class CityscapesAutolabelingSpec(Component):
    num_classes: ClassVar[int] = 19

    dataset_root: Text
    mode: Split
    coarse_multiple: Annotated[float, Field(ge=0, le=1000)] = 1.0
    add_val: bool = False
    transforms: list[AnyTransform] = []


def _check_pattern(pattern: str) -> str:
    if pattern.count("*") != 1 or set(pattern) & set("/\\?[]"):
        raise ValueError('a file\'s name with one * in it and no folder, such as "*_mask.png"')
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]


class SplitSpec(Section):
    """Which share of the images of a folder is for evaluation and for a test, drawn by a seed."""

    val: Fraction = 0.2
    test: Fraction = 0.0
    seed: Natural = 0
    group_by: Optional[Text] = None  # "folder", or a regular expression with one group

    @field_validator("group_by")
    @classmethod
    def _check_group(cls, group_by: Optional[str]) -> Optional[str]:
        try:
            groups = 1 if group_by in (None, "folder") else re.compile(group_by).groups
        except re.error:
            groups = 0
        if groups != 1:
            raise ValueError('folder, null, or a regular expression with one (group), such as "^([^_]+)_"')
        return group_by

    @model_validator(mode="after")
    def _check_shares(self) -> SplitSpec:
        if self.val + self.test >= 1:
            raise ValueError("given with val and test that leave a share to train on (val + test below 1)")
        return self


class ListDatasetSpec(Component):
    """Images and labels named in lists, under PaddleSeg's name and keys, or in folders; reading adds the `mode` of
    the section."""

    dataset_root: Text = "."
    train_path: Optional[str] = None
    val_path: Optional[str] = None
    test_path: Optional[str] = None
    image_dir: Optional[Text] = None
    label_dir: Optional[Text] = None
    image_pattern: Pattern = "*"
    label_pattern: Pattern = "*"
    split: Optional[SplitSpec] = None
    num_classes: Optional[ClassCount] = None
    mode: Split
    separator: Optional[Text] = None
    ignore_index: Label = 255
    transforms: list[AnyTransform] = []
    # PaddleSeg has other values, which would change nothing here.
    img_channels: Literal[3] = Field(default=3, exclude=True)
    edge: Literal[False] = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _check_folders(self) -> ListDatasetSpec:
        if (self.image_dir is None) != (self.label_dir is None):
            raise ValueError("given with both image_dir and label_dir")
        lists = (self.train_path, self.val_path, self.test_path, self.separator)
        if self.image_dir and lists != (None,) * 4:
            raise ValueError("given with lists (train_path, ...) or with folders (image_dir, ...), not with both")
        if not self.image_dir and (self.split or self.image_pattern != "*" or self.label_pattern != "*"):
            raise ValueError("given with image_dir and label_dir, without which split and patterns have no effect")
        if self.split and self.mode in ("val", "test") and not getattr(self.split, self.mode):
            raise ValueError(f"given with a split.{self.mode} above 0, as mode is {self.mode}")
        return self


AnyDataset = Annotated[Any, of_kind("dataset", UncheckedDatasetSpec)]

DATASETS: Table = {
    "CityscapesAutolabeling": (CityscapesAutolabelingSpec, "hmsa.datasets.cityscapes:CityscapesAutolabeling"),
    "Dataset": (ListDatasetSpec, "hmsa.datasets.folders:own_dataset"),
}


# --- Losses. ---


AnyLoss = Annotated[Any, of_kind("loss")]


class DiceLossSpec(Component):
    weight: Optional[Weights] = None
    smooth: NonNegative = 1.0
    ignore_index: Label = 255


class TverskyLossSpec(Component):
    weight: Optional[Weights] = None
    alpha: NonNegative = 0.3
    beta: NonNegative = 0.7
    smooth: NonNegative = 1.0
    ignore_index: Label = 255


class BootstrappedCrossEntropyLossSpec(Component):
    min_K: Count
    loss_th: NonNegative
    weight: Optional[Weights] = None
    ignore_index: Label = 255


class CrossEntropyLossSpec(Component):
    weight: Optional[Weights] = None
    ignore_index: Label = 255
    top_k_percent_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    avg_non_ignore: bool = True


class OhemCrossEntropyLossSpec(Component):
    thresh: Probability = 0.7
    min_kept: Natural = 10000
    weight: Optional[Weights] = None
    ignore_index: Label = 255


class MixedLossSpec(Component):
    losses: list[AnyLoss]
    coef: Weights

    @model_validator(mode="after")
    def _check_coef(self) -> MixedLossSpec:
        if len(self.coef) != len(self.losses):
            raise ValueError(f"given with as many numbers in coef as losses ({len(self.losses)})")
        return self


LOSSES: Table = {
    "DiceLoss": (DiceLossSpec, "hmsa.losses.dice:DiceLoss"),
    "TverskyLoss": (TverskyLossSpec, "hmsa.losses.tversky:TverskyLoss"),
    "BootstrappedCrossEntropyLoss": (
        BootstrappedCrossEntropyLossSpec,
        "hmsa.losses.bootstrapped_cross_entropy:BootstrappedCrossEntropyLoss",
    ),
    "CrossEntropyLoss": (CrossEntropyLossSpec, "hmsa.losses.cross_entropy:CrossEntropyLoss"),
    "OhemCrossEntropyLoss": (OhemCrossEntropyLossSpec, "hmsa.losses.cross_entropy:OhemCrossEntropyLoss"),
    "MixedLoss": (MixedLossSpec, "hmsa.losses.weighted:MixedLoss"),
}


# --- Optimizers. The builder adds learning_rate, the scheduler, and parameters. ---


AnyOptimizer = Annotated[Any, of_kind("optimizer")]


class SGDSpec(Component):
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    clip_grad_norm: Optional[Positive] = None


class AdamWSpec(Component):
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 0.01
    clip_grad_norm: Optional[Positive] = None


OPTIMIZERS: Table = {
    "SGD": (SGDSpec, "hmsa.optim:sgd"),
    "AdamW": (AdamWSpec, "hmsa.optim:adamw"),
}


# --- Schedulers. The builder warms up before them, and adds decay_steps, the iterations that are left. ---


class SchedulerSpec(Component):
    learning_rate: Positive
    warmup_iters: Natural = 0
    warmup_start_lr: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_warmup(self) -> SchedulerSpec:
        if self.warmup_start_lr and not self.warmup_iters:
            raise ValueError("given with warmup_iters, without which warmup_start_lr has no effect")
        if self.warmup_iters and self.warmup_start_lr >= self.learning_rate:
            raise ValueError("given with a warmup_start_lr below its learning_rate")
        return self


class UncheckedSchedulerSpec(SchedulerSpec, Unchecked):
    """A scheduler of `paddle.optimizer.lr`, by its name there."""


class PolynomialDecaySpec(SchedulerSpec):
    power: Positive = 1.0
    end_lr: NonNegative = 1e-4

    @model_validator(mode="after")
    def _check_end(self) -> PolynomialDecaySpec:
        if self.end_lr > self.learning_rate:
            raise ValueError(f"given with an end_lr, which is {self.end_lr}, of at most its learning_rate")
        return self


AnyScheduler = Annotated[Any, of_kind("scheduler", UncheckedSchedulerSpec)]

SCHEDULERS: Table = {"PolynomialDecay": (PolynomialDecaySpec, "paddle.optimizer.lr:PolynomialDecay")}


# --- Metrics. A recipe does not name them: every evaluation measures them all. ---


METRICS = {
    "confusion": "hmsa.metrics.confusion:Confusion",
    "boundary": "hmsa.metrics.boundary:BoundaryIoU",
    "image_iou": "hmsa.metrics.image_iou:ImageIoU",
    "calibration": "hmsa.metrics.calibration:Calibration",
}
MEAN_LOSS = "hmsa.metrics.loss:MeanLoss"
"""What evaluations in a training measure too."""


KINDS: dict[str, Table] = {
    "model": MODELS,
    "backbone": BACKBONES,
    "dataset": DATASETS,
    "transform": TRANSFORMS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}
"""All tables, by what messages call the kind."""
