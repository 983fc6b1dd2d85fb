# SPDX-License-Identifier: Apache-2.0
"""Every component a recipe can name, kind by kind: its Spec (arguments, defaults, bounds), and where it is.

To add one, write its class (keyword-only, without defaults), its Spec here and a line in the table of its kind. Nothing
here imports what it names, so that a recipe is read without Paddle; `imported` does it for the builder.
"""

# ruff: noqa: RUF012 (pydantic copies defaults)
from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Optional

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core.core_schema import no_info_after_validator_function

from hmsa.config.fields import (
    Bands,
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
    Padding,
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


@dataclass(frozen=True)
class of_kind:
    """Makes a field hold a component of this kind, checked by the Spec that its name has in the table, else `other`."""

    kind: str
    other: type[Component] = Unchecked

    def check(self, value: Any) -> Component:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        spec, _ = KINDS[self.kind].get(name if isinstance(name, str) else "", (self.other, ""))
        return spec.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"kind": self.kind}  # see hmsa.config.reference


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
    """A backbone by its name, whose other arguments the builder checks."""

    pretrained: Optional[str] = None
    """Weights of the backbone to start from: a file or an address."""
    in_channels: Optional[Bands] = Field(default=None, exclude=True)
    """PaddleSeg's place for the recipe's in_channels, with which it agrees."""


HRNETS = (
    *("HRNet_W18_NV_Small_V1", "HRNet_W18_NV_Small_V2", "HRNet_W18_NV", "HRNet_W30_NV", "HRNet_W32_NV"),
    *("HRNet_W40_NV", "HRNet_W44_NV", "HRNet_W48_NV", "HRNet_W60_NV", "HRNet_W64_NV"),
)
BACKBONES: Table = {name: (UncheckedBackboneSpec, f"hmsa.models.hrnet:BACKBONES.{name}") for name in HRNETS}


# --- The network. ---


class NetworkSpec(Component):
    type: Literal["MscaleOCRNet"]
    """Name of the network."""
    num_classes: ClassCount
    """How many classes there are, the background among them."""
    backbone: Annotated[Any, of_kind("backbone", UncheckedBackboneSpec)]
    """What computes features from the image."""
    backbone_indices: Annotated[list[int], Field(min_length=1, max_length=2)] = [0]
    """Which maps of features are used: one for everything, or two (first guess, pixels)."""
    scales: Annotated[list[Scale], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Scales of the image that the network is trained on and fused over; 1.0 is among them."""
    ocr_mid_channels: Channels = 512
    """Channels of the pixels' features in the OCR head."""
    ocr_key_channels: Channels = 256
    """Channels in which the OCR head compares pixels and regions."""
    attention_mid_channels: Channels = 256
    """Channels of the scale attention's head."""
    dropout: Fraction = 0.05
    """Share of the OCR head's features that are dropped in training."""
    align_corners: bool = False
    """Whether resizing aligns the corners' pixels, as PaddleSeg's option of this name does."""
    recompute: bool = False
    """Compute the heads again for the gradient, which takes time and saves memory."""
    pretrained: Optional[str] = None
    """Weights of the whole network to start from: a file or an address."""

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
    """Smallest factor."""
    max_scale_factor: Scale = 1.25
    """Largest factor."""
    scale_step_size: NonNegative = 0.25
    """Step between the factors that are drawn from; 0 draws any in between."""

    @model_validator(mode="after")
    def _check_range(self) -> ResizeStepScalingSpec:
        if self.min_scale_factor > self.max_scale_factor:
            raise ValueError("given with a min_scale_factor no larger than its max_scale_factor")
        if 0 < self.scale_step_size < 1e-3:
            raise ValueError("given with a scale_step_size of at least 0.001, or of 0 for any factor in between")
        return self


class RandomPaddingCropSpec(Component):
    crop_size: CropSize = [512, 512]
    """[width, height] of the window, in pixels."""
    im_padding_value: Padding = 127.5
    """Value of the image's channels, one for all or a list of one each, where the window is larger than the image."""
    label_padding_value: Label = 255
    """Number in the label where the window is larger than the image."""
    category_max_ratio: Positive = 1.0
    """Share of one class in a window from which on another one is drawn; 1 takes the first."""
    ignore_index: Label = 255
    """Number of ignored pixels, which do not count in that share."""
    loop_times: Count = 10
    """How many windows are drawn at most."""


class RandomHorizontalFlipSpec(Component):
    prob: Probability = 0.5
    """Probability of a flip."""


class RandomDistortSpec(Component):
    brightness_range: Level = 0.5
    """Brightness is multiplied by a factor between 1 - range and 1 + range."""
    brightness_prob: Probability = 0.5
    """Probability that brightness is changed."""
    contrast_range: Level = 0.5
    """Contrast is multiplied by a factor between 1 - range and 1 + range."""
    contrast_prob: Probability = 0.5
    """Probability that contrast is changed."""
    saturation_range: Level = 0.5
    """Saturation is multiplied by a factor between 1 - range and 1 + range."""
    saturation_prob: Probability = 0.5
    """Probability that saturation is changed."""
    hue_range: Level = 18.0
    """The hue is turned by up to this in either direction; 255 is the whole circle."""
    hue_prob: Probability = 0.5
    """Probability that the hue is turned."""
    sharpness_range: Level = 0.5
    """Sharpness is multiplied by a factor between 1 - range and 1 + range."""
    sharpness_prob: Probability = 0.0
    """Probability that sharpness is changed."""


class NormalizeSpec(Component):
    mean: Annotated[list[Mean], Field(min_length=1)] = [0.5, 0.5, 0.5]
    """Subtracted from each channel, whose values are between 0 and 1."""
    std: Annotated[list[Deviation], Field(min_length=1)] = [0.5, 0.5, 0.5]
    """What each channel is divided by then."""


class PaddingSpec(Component):
    target_size: Size
    """[width, height] of the result, in pixels, to which every image is padded; none is larger."""
    im_padding_value: Padding = 127.5
    """Value of the image's channels, one for all or a list of one each, in what is added."""
    label_padding_value: Label = 255
    """Number in the label in what is added."""


class ResizeSpec(Component):
    target_size: Size = [512, 512]
    """[width, height] of the result, in pixels."""
    keep_ratio: bool = False
    """Keep width to height, so that the image fits into target_size."""
    size_divisor: Optional[Count] = None
    """Round both sides up to multiples of this."""


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
    """What is done to every image, in this order."""


class CityscapesAutolabelingSpec(Component):
    num_classes: ClassVar[int] = 19

    dataset_root: Text
    """Folder of the data set, relative to where the command runs."""
    mode: Split
    """Which part is read; without it, that of the section."""
    coarse_multiple: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Auto-labelled coarse images in an epoch for every fine one; 0 needs none."""
    add_val: bool = False
    """Train on the validation images too."""
    transforms: list[AnyTransform] = []
    """What is done to every image, in this order."""


def _check_pattern(pattern: str) -> str:
    if pattern.count("*") != 1 or set(pattern) & set("/\\?[]"):
        raise ValueError('a file\'s name with one * in it and no folder, such as "*_mask.png"')
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]


class SplitSpec(Section):
    """Which share of the images of a folder is for evaluation and for a test, drawn by a seed."""

    val: Fraction = 0.2
    """Share of the images to evaluate on."""
    test: Fraction = 0.0
    """Share of the images that neither training nor evaluation sees."""
    seed: Natural = 0
    """Draws which they are; another seed draws others."""
    group_by: Optional[Text] = None
    """What keeps images on one side: folder, or a regular expression with one group that is alike in their names."""

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
    """Folder that names in lists and folders start in, relative to where the command runs."""
    train_path: Optional[str] = None
    """List of the images to train on: an image and its label on each line."""
    val_path: Optional[str] = None
    """List of the images to evaluate on."""
    test_path: Optional[str] = None
    """List of images, which need no labels."""
    image_dir: Optional[Text] = None
    """Folder of images, in place of lists, with all folders below; from dataset_root, or absolute."""
    label_dir: Optional[Text] = None
    """Folder of the labels, with the same folders below."""
    image_pattern: Pattern = "*"
    """What images are called; the * stands for what an image and its label share."""
    label_pattern: Pattern = "*"
    """What labels are called, such as "*_mask.png"."""
    split: Optional[SplitSpec] = None
    """Which images of the folder are trained on; a section reads those of its mode, and without this all."""
    num_classes: Optional[ClassCount] = None
    """How many classes there are, which must be model.num_classes."""
    mode: Split
    """Which list is read; without it, that of the section."""
    separator: Optional[Text] = None
    """What stands between image and label on a line; blanks or tabs if none is given."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""
    transforms: list[AnyTransform] = []
    """What is done to every image, in this order."""
    img_channels: Optional[Bands] = Field(default=None, exclude=True)
    """PaddleSeg's place for the recipe's in_channels, with which it agrees."""
    # PaddleSeg has another value, which would change nothing here.
    edge: Literal[False] = Field(default=False, exclude=True)
    """PaddleSeg's key for networks that take edges, which this is not."""

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
    """A number for each class, by which its loss is multiplied."""
    smooth: NonNegative = 1.0
    """Added above and below the fraction; pulls the loss of small classes towards 0."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""


class TverskyLossSpec(Component):
    weight: Optional[Weights] = None
    """A number for each class, by which its loss is multiplied."""
    alpha: NonNegative = 0.3
    """Price of a pixel that is taken for the class and is not of it."""
    beta: NonNegative = 0.7
    """Price of a pixel of the class that is missed."""
    smooth: NonNegative = 1.0
    """Added above and below the fraction; pulls the loss of small classes towards 0."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""


class BootstrappedCrossEntropyLossSpec(Component):
    min_K: Count
    """Pixels of an image that count at least: those with the largest losses."""
    loss_th: NonNegative
    """Loss from which on a pixel counts in any case."""
    weight: Optional[Weights] = None
    """A number for each class, by which its pixels' losses are multiplied."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""


class CrossEntropyLossSpec(Component):
    weight: Optional[Weights] = None
    """A number for each class, by which its pixels' losses are multiplied."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""
    top_k_percent_pixels: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the pixels that count: those with the largest losses."""
    avg_non_ignore: bool = True
    """Take the mean over valid pixels alone."""


class OhemCrossEntropyLossSpec(Component):
    thresh: Probability = 0.7
    """Probability of its own class below which a pixel counts."""
    min_kept: Natural = 10000
    """Pixels of a batch that count at least: the hardest."""
    weight: Optional[Weights] = None
    """A number for each class, by which its pixels' losses are multiplied."""
    ignore_index: Label = 255
    """Number of pixels that do not count."""


class MixedLossSpec(Component):
    losses: list[AnyLoss]
    """Losses that are added up."""
    coef: Weights
    """A weight for each of them."""

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
    """Share of the last step in the next one."""
    weight_decay: NonNegative = 0.0
    """Added to the gradient, times the parameter."""
    clip_grad_norm: Optional[Positive] = None
    """Largest norm of all gradients together; larger ones are scaled down."""


class AdamWSpec(Component):
    beta1: Fraction = 0.9
    """Decay of the gradients' moving average."""
    beta2: Fraction = 0.999
    """Decay of their squares' moving average."""
    weight_decay: NonNegative = 0.01
    """Share of the parameter, times the learning rate, that is taken off in a step."""
    clip_grad_norm: Optional[Positive] = None
    """Largest norm of all gradients together; larger ones are scaled down."""


OPTIMIZERS: Table = {
    "SGD": (SGDSpec, "hmsa.optim:sgd"),
    "AdamW": (AdamWSpec, "hmsa.optim:adamw"),
}


# --- Schedulers. The builder warms up before them, and adds decay_steps, the iterations that are left. ---


class SchedulerSpec(Component):
    learning_rate: Positive
    """Highest learning rate, from which the decay starts."""
    warmup_iters: Natural = 0
    """Iterations in which the rate rises to it first."""
    warmup_start_lr: NonNegative = 0.0
    """Rate that the warm-up starts from."""

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
    """The rate falls by a polynomial, over all iterations after the warm-up."""

    power: Positive = 1.0
    """Power of the polynomial; 1 is a straight line."""
    end_lr: NonNegative = 1e-4
    """Rate after the last iteration."""

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
