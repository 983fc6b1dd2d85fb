# SPDX-License-Identifier: Apache-2.0
"""The schema that a recipe is checked against: its sections, and the recipe as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from hmsa.components import AnyDataset, AnyLoss, AnyOptimizer, AnyScheduler, MixedLossSpec, NetworkSpec
from hmsa.config import dialect
from hmsa.config.fields import (
    Bands,
    BatchSize,
    Count,
    CropSize,
    Label,
    NonNegative,
    Pixels,
    Positive,
    Scale,
    Section,
    Size,
    Text,
    Values,
    Weights,
)
from hmsa.config.text import _Dumper
from hmsa.errors import UsageError, suggest


def single_losses(specs: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """Every loss with its key, those inside a MixedLoss in its place."""
    for index, spec in enumerate(specs):
        if isinstance(spec, MixedLossSpec):
            yield from single_losses(spec.losses, f"{where}.{index}.losses")
        else:
            yield f"{where}.{index}", spec


def takes_weights(loss: Any) -> bool:
    """Whether a loss has a number a class, and is ours."""
    return "weight" in type(loss).model_fields


def _check_class_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("a text that can be printed")
    return name


class ClassSpec(Section):
    """A class; its number is its place in the list."""

    name: Annotated[str, Field(max_length=100), AfterValidator(_check_class_name)]
    """Name of the class, in tables and files."""
    color: Optional[Annotated[list[Label], Field(min_length=3, max_length=3)]] = None
    """[red, green, blue] in images of predictions; without it, one that is easy to tell from the others."""
    values: Optional[Values] = None
    """Numbers or colours [red, green, blue] in the masks that mean this class, if others than class numbers."""


class IgnoreSpec(Section):
    """Pixels that do not count."""

    values: Values
    """Numbers or colours [red, green, blue] in the masks that do not count."""


def _values_alone(section: Any) -> Any:
    return {"values": section} if isinstance(section, list) else section


class LossSpec(Section):
    """Every loss of `types` on every output of `coef`."""

    types: Annotated[list[AnyLoss], Field(min_length=1)]
    """Losses, each of which is put on every output in coef."""
    coef: Annotated[dict[str, NonNegative], Field(min_length=1)]
    """Outputs of the network and the weight of the losses on each."""

    @field_validator("types")
    @classmethod
    def _check_types(cls, types: list[Any]) -> list[Any]:
        names = [spec.type for spec in types]
        if len(set(names)) < len(names):
            raise ValueError("a list that names each loss once, as every loss is put on every output")
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


class EarlyStoppingSpec(Section):
    """Ends a training after `patience` evaluations in a row that did not better the metric."""

    patience: Count
    """Evaluations in a row without a better score that end the training."""
    metric: Text = "mean_iou"
    """Score that is watched."""


class EMASpec(Section):
    """An exponential moving average of the weights, which is evaluated and kept beside them."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    """Share of the average that is kept in an iteration."""


class InferenceSpec(Section):
    """`test_config`: how evaluation and prediction go over an image; sizes are [width, height]."""

    aug_eval: bool = False
    """Average over scales and flips."""
    scales: Annotated[list[Scale], Field(min_length=1)] = [1.0]  # noqa: RUF012 (pydantic copies it)
    """Scales of the image that are averaged over, with aug_eval."""
    flip_horizontal: bool = False
    """Average over the image and its mirror image left to right, with aug_eval."""
    flip_vertical: bool = False
    """Average over the image and its mirror image top to bottom, with aug_eval."""
    is_slide: bool = False
    """Go over the image in overlapping tiles."""
    crop_size: Optional[CropSize] = None
    """[width, height] of a tile, in pixels."""
    stride: Optional[Size] = None
    """[width, height] from one tile to the next, in pixels; without it, that of crop_size."""
    average: Literal["logits", "softmax"] = "logits"
    """What is averaged: logits, as in PaddleSeg 2.8, or probabilities."""

    @field_validator("scales", mode="before")
    @classmethod
    def _one_scale(cls, scales: Any) -> Any:
        return [scales] if isinstance(scales, (int, float)) and not isinstance(scales, bool) else scales

    @model_validator(mode="after")
    def _check_tiles(self) -> InferenceSpec:
        if self.is_slide and self.crop_size is None:
            raise ValueError("given with a crop_size, as is_slide is true")
        if self.crop_size and self.stride and any(s > c for s, c in zip(self.stride, self.crop_size)):
            raise ValueError("a stride no larger than crop_size, or pixels between tiles would have no answer")
        return self


@dataclass
class Origins:
    """Where a key of a recipe comes from: an option, or one of the files it was put together from."""

    opts_name: str = "opts"  # of all options, for messages
    files: list[tuple[str, Any]] = field(default_factory=list)  # name and native tree, those that win first
    options: dict[str, Any] = field(default_factory=dict)  # by dotted key

    def of(self, key: Sequence[Any]) -> str:
        """The options' name or the file that has the key, else what is next above it; "" where there is no file."""
        plain = ".".join(map(str, key))
        if any(f"{a}.".startswith(f"{b}.") for o in self.options for a, b in ((plain, o), (o, plain))):
            return self.opts_name
        above = (key[:depth] for depth in range(len(key), -1, -1))
        return next((name for part in above for name, tree in self.files if _has(tree, part)), "")


def _has(tree: Any, key: Sequence[Any]) -> bool:
    with suppress(LookupError, TypeError, ValueError):
        for part in key:
            tree = tree[int(part) if isinstance(tree, list) else part]
        return True
    return False


class Config(Section):
    """A checked recipe. Equal recipes compare equal wherever they were read from."""

    batch_size: BatchSize = 1
    """Images that a process takes in a step."""
    iters: Count = 65000
    """Iterations to train."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Of weights, order of images, augmentation and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What training computes in."""
    deterministic: bool = False
    """On a GPU, prefer the same bits every time to speed."""
    gradient_accumulation: BatchSize = 1
    """Batches whose gradients are averaged for one iteration."""
    nonfinite_limit: Count = 10
    """Iterations in a row without a finite loss that end the run."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """What an image that cannot be used does in training: end the run, or be passed over."""
    bad_sample_limit: Count = 100
    """Images passed over, in one process, after which the run ends all the same."""
    max_image_pixels: Pixels = 89_478_485
    """Most pixels of an image; larger ones are refused."""
    in_channels: Bands = 3
    """Channels of the images, 1 to 16: red, green and blue, or others."""
    model: NetworkSpec
    """The network."""
    classes: Optional[list[ClassSpec]] = None
    """Names of the classes, in the order of their numbers."""
    ignore: Optional[Annotated[IgnoreSpec, BeforeValidator(_values_alone)]] = None
    """What in the masks does not count; a list of values is taken too."""
    train_dataset: Optional[AnyDataset] = None
    """Images to train on."""
    val_dataset: Optional[AnyDataset] = None
    """Images to evaluate on."""
    optimizer: Optional[AnyOptimizer] = None
    """How weights are changed by their gradients."""
    lr_scheduler: Optional[AnyScheduler] = None
    """Learning rate over the iterations."""
    ema: Optional[EMASpec] = None
    """Moving average of the weights, which is evaluated and kept beside them."""
    loss: Optional[LossSpec] = None
    """What training makes small."""
    class_weights: Optional[Union[Literal["auto"], Weights]] = None
    """A number for each class, by which losses weigh it; auto counts the labels and weighs rare classes more."""
    freeze: Optional[Annotated[list[Text], Field(min_length=1)]] = None
    """Parts of the network that are not trained, such as backbone; their running statistics stay too."""
    lr_mult: Optional[Annotated[dict[str, Positive], Field(min_length=1)]] = None
    """Parts of the network and what the learning rate is multiplied by in each."""
    early_stopping: Optional[EarlyStoppingSpec] = None
    """When training ends before all iterations."""
    test_config: InferenceSpec = InferenceSpec()
    """How evaluation and prediction go over an image."""
    loggers: list[Literal["visualdl", "tensorboard", "mlflow"]] = []  # noqa: RUF012 (pydantic copies it)
    """What shows a training beside the console and metrics.jsonl."""
    log_images: Annotated[int, Field(ge=0, le=64)] = 4
    """Images of val_dataset whose prediction and attention are looked at after each evaluation."""

    @field_validator("loggers")
    @classmethod
    def _check_loggers(cls, loggers: list[str]) -> list[str]:
        if len(set(loggers)) < len(loggers):
            raise ValueError("a list that names each once")
        return loggers

    @field_validator("class_weights", mode="wrap")
    @classmethod
    def _check_class_weights(cls, weights: Any, check: Any) -> Any:
        try:
            return check(weights)
        except ValueError:
            raise ValueError("auto, or a list with a number of at least 0 for each class, not all 0") from None

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_part(cls, parts: Any) -> Any:
        return [parts] if isinstance(parts, str) else parts

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    def source(self, key: str) -> str:
        """The options' name or the file that a dotted key stands in, for messages."""
        return self._origins.of(key.split("."))

    def where(self, key: str) -> str:
        """A dotted key for messages, after its source."""
        return f"{self.source(key)}: {key}"

    def dump(self) -> str:
        """The whole recipe as YAML, bases, options and defaults resolved; `load_config` reads it to an equal one."""
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def require(self, *sections: str) -> list[Any]:
        """These sections (top-level keys); a UsageError unless every one is given."""
        missing = [name for name in sections if getattr(self, name) is None]
        if missing:
            raise UsageError(
                f"{self._origins.of(())}: expected the section {', '.join(missing)}, which this command needs, found "
                "none: write it, or inherit it from a file named in _base_"
            )
        return [getattr(self, name) for name in sections]

    def remarks(self) -> list[str]:
        """What a reader of this recipe's scores should know, one sentence each."""
        train, val = specs = self.train_dataset, self.val_dataset
        roots = {os.path.normpath(str(getattr(spec, "dataset_root", ""))) for spec in specs}
        if None in specs or len(roots) > 1:
            return []
        if getattr(train, "add_val", False) and getattr(val, "mode", "") == "val":
            return ["the scores are of images that are trained on, as train_dataset.add_val is true"]
        lists = [getattr(spec, f"{getattr(spec, 'mode', '')}_path", None) for spec in specs]
        same = lists[0] is not None and lists[0] == lists[1]
        return [f"the scores are of images that are trained on, as both data sets read {lists[0]}"] * same
