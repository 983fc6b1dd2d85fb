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
    color: Optional[Annotated[list[Label], Field(min_length=3, max_length=3)]] = None
    values: Optional[Values] = None  # in masks, if others than class numbers


class IgnoreSpec(Section):
    """Pixels that do not count."""

    values: Values  # in masks


def _values_alone(section: Any) -> Any:
    return {"values": section} if isinstance(section, list) else section


class LossSpec(Section):
    """Every loss of `types` on every output of `coef`."""

    types: Annotated[list[AnyLoss], Field(min_length=1)]
    coef: Annotated[dict[str, NonNegative], Field(min_length=1)]

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
    metric: Text = "mean_iou"


class EMASpec(Section):
    """An exponential moving average of the weights, which is evaluated and kept beside them."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998


class InferenceSpec(Section):
    """`test_config`: how evaluation and prediction go over an image; sizes are [width, height]."""

    aug_eval: bool = False
    scales: Annotated[list[Scale], Field(min_length=1)] = [1.0]  # noqa: RUF012 (pydantic copies it)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    is_slide: bool = False
    crop_size: Optional[CropSize] = None
    stride: Optional[Size] = None
    average: Literal["logits", "softmax"] = "logits"

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
    classes: Optional[list[ClassSpec]] = None
    ignore: Optional[Annotated[IgnoreSpec, BeforeValidator(_values_alone)]] = None
    train_dataset: Optional[AnyDataset] = None
    val_dataset: Optional[AnyDataset] = None
    optimizer: Optional[AnyOptimizer] = None
    lr_scheduler: Optional[AnyScheduler] = None
    ema: Optional[EMASpec] = None
    loss: Optional[LossSpec] = None
    class_weights: Optional[Union[Literal["auto"], Weights]] = None
    freeze: Optional[Annotated[list[Text], Field(min_length=1)]] = None
    lr_mult: Optional[Annotated[dict[str, Positive], Field(min_length=1)]] = None
    early_stopping: Optional[EarlyStoppingSpec] = None
    test_config: InferenceSpec = InferenceSpec()

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
