# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML files with `_base_`, `--opts key=value`, and the schema everything is checked against.

Reading a recipe takes milliseconds and does not import Paddle. Components of this project are checked down to their
arguments here; a `type` this module does not know is taken as it stands and looked up by `hmsa.builder`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import (
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

NUM_CLASSES = {"CityscapesAutolabeling": 19}
"""Class counts of the data sets that have a fixed one."""

PathLike = Union[str, "os.PathLike[str]"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


def _check_size(size: list[int]) -> list[int]:
    if min(size) < MIN_SIDE:
        raise ValueError(f"a width and a height of at least {MIN_SIDE} px, which the network needs at scale 0.5")
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


class NetworkSpec(Section):
    type: Literal["MscaleOCRNet"]
    num_classes: Count
    backbone: Component
    backbone_indices: Annotated[list[int], Field(min_length=1, max_length=2)] = [0]
    scales: Annotated[list[Positive], Field(min_length=1)] = [0.5, 1.0, 2.0]
    ocr_mid_channels: Count = 512
    ocr_key_channels: Count = 256
    attention_mid_channels: Count = 256
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


class ResizeStepScalingSpec(Section):
    type: Literal["ResizeStepScaling"]
    min_scale_factor: Positive = 0.75
    max_scale_factor: Positive = 1.25
    scale_step_size: NonNegative = 0.25


class RandomPaddingCropSpec(Section):
    type: Literal["RandomPaddingCrop"]
    crop_size: Annotated[list[int], Field(min_length=2, max_length=2)] = [512, 512]
    im_padding_value: float = 127.5
    label_padding_value: int = 255

    _size_fits = field_validator("crop_size")(_check_size)


class RandomHorizontalFlipSpec(Section):
    type: Literal["RandomHorizontalFlip"]
    prob: Probability = 0.5


class RandomDistortSpec(Section):
    type: Literal["RandomDistort"]
    brightness_range: NonNegative = 0.5
    brightness_prob: Probability = 0.5
    contrast_range: NonNegative = 0.5
    contrast_prob: Probability = 0.5
    saturation_range: NonNegative = 0.5
    saturation_prob: Probability = 0.5
    hue_range: NonNegative = 18.0
    hue_prob: Probability = 0.5


class NormalizeSpec(Section):
    type: Literal["Normalize"]
    mean: Triple = [0.5, 0.5, 0.5]
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [0.5, 0.5, 0.5]


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
    coarse_multiple: NonNegative = 1.0
    add_val: bool = False
    transforms: list[TransformSpec] = []


AnyDatasetSpec = Annotated[
    Union[
        Annotated[CityscapesAutolabelingSpec, Tag("type:CityscapesAutolabeling")],
        Annotated[DatasetSpec, Tag("type:")],
    ],
    _type_of("CityscapesAutolabeling"),
]


class SGDSpec(Section):
    type: Literal["SGD"]
    momentum: Fraction = 0.9
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
    end_lr: NonNegative = 0.0
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    warmup_start_lr: NonNegative = 0.0


class SchedulerSpec(Component):
    """A scheduler of `paddle.optimizer.lr`, by its name there."""

    learning_rate: Positive
    warmup_iters: Annotated[int, Field(ge=0)] = 0
    warmup_start_lr: NonNegative = 0.0


AnySchedulerSpec = Annotated[
    Union[Annotated[PolynomialDecaySpec, Tag("type:PolynomialDecay")], Annotated[SchedulerSpec, Tag("type:")]],
    _type_of("PolynomialDecay"),
]


class DiceLossSpec(Section):
    type: Literal["DiceLoss"]
    smooth: NonNegative = 1.0
    ignore_index: int = 255


class BootstrappedCrossEntropyLossSpec(Section):
    type: Literal["BootstrappedCrossEntropyLoss"]
    min_K: Count
    loss_th: NonNegative
    ignore_index: int = 255


LossTermSpec = Annotated[
    Union[
        Annotated[DiceLossSpec, Tag("type:DiceLoss")],
        Annotated[BootstrappedCrossEntropyLossSpec, Tag("type:BootstrappedCrossEntropyLoss")],
        Annotated[Component, Tag("type:")],
    ],
    _type_of("DiceLoss", "BootstrappedCrossEntropyLoss"),
]


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
        return types

    @field_validator("coef")
    @classmethod
    def _check_coef(cls, coef: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in coef if name not in dialect.OUTPUTS]
        if unknown:
            raise ValueError(f"weights of the network's outputs ({suggest(unknown[0], dialect.OUTPUTS)})")
        return coef


class InferenceSpec(Section):
    """`test_config`: how evaluation and prediction go over a picture; sizes are [width, height]."""

    aug_eval: bool = False
    scales: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    flip_horizontal: bool = False
    flip_vertical: bool = False
    is_slide: bool = False
    crop_size: Optional[Annotated[list[int], Field(min_length=2, max_length=2)]] = None
    stride: Optional[Annotated[list[Count], Field(min_length=2, max_length=2)]] = None

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


class Config(Section):
    """A checked recipe. Equal recipes compare equal wherever they were read from."""

    batch_size: Count = 1
    iters: Count = 65000
    seed: Annotated[int, Field(ge=0)] = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_accumulation: Count = 1
    model: NetworkSpec
    train_dataset: Optional[AnyDatasetSpec] = None
    val_dataset: Optional[AnyDatasetSpec] = None
    optimizer: Optional[OptimizerSpec] = None
    lr_scheduler: Optional[AnySchedulerSpec] = None
    loss: Optional[LossSpec] = None
    test_config: InferenceSpec = InferenceSpec()

    _path: str = PrivateAttr(default="")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @property
    def path(self) -> str:
        """The file this recipe was read from, for messages."""
        return self._path

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

    def problems_between_sections(self) -> list[str]:
        """What is wrong though every section is right by itself, one sentence each."""
        problems = []
        for name in ("train_dataset", "val_dataset"):
            spec = getattr(self, name)
            classes = spec and NUM_CLASSES.get(spec.type, (spec.model_extra or {}).get("num_classes"))
            if classes and classes != self.model.num_classes:
                problems.append(
                    f"expected model.num_classes to be the {classes} classes of {name}, found "
                    f"{self.model.num_classes}: set model.num_classes to {classes}"
                )
        rate = self.lr_scheduler
        if rate and rate.warmup_iters >= self.iters:
            problems.append(
                f"expected lr_scheduler.warmup_iters to be less than iters ({self.iters}), found "
                f"{rate.warmup_iters}: shorten the warm-up"
            )
        if rate and rate.warmup_iters and rate.warmup_start_lr >= rate.learning_rate:
            problems.append(
                f"expected lr_scheduler.warmup_start_lr to be less than learning_rate ({rate.learning_rate}), "
                f"found {rate.warmup_start_lr}: lower it"
            )
        return problems


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
    "ResizeStepScaling": ResizeStepScalingSpec,
    "RandomPaddingCrop": RandomPaddingCropSpec,
    "RandomHorizontalFlip": RandomHorizontalFlipSpec,
    "RandomDistort": RandomDistortSpec,
    "Normalize": NormalizeSpec,
    "DiceLoss": DiceLossSpec,
    "BootstrappedCrossEntropyLoss": BootstrappedCrossEntropyLossSpec,
    "SGD": SGDSpec,
    "AdamW": AdamWSpec,
    "PolynomialDecay": PolynomialDecaySpec,
}
"""Components whose arguments are checked when the file is read."""


# --- Reading. ---


def load_config(path: PathLike, opts: Iterable[str] = ()) -> Config:
    """Read a recipe, lay it over its bases, apply `opts` ("dotted.key=YAML value"), and check all of it.

    `_base_` names one file or several, relative to the file it stands in; of several the first that has a key wins,
    as in PaddleSeg. Mappings are merged, lists replaced; `_inherited_: false` in a mapping drops what it would inherit.

    Raises:
        UsageError: naming the file, and one line for every problem found.
    """
    path = os.fspath(path)
    tree = _without_flags(_read_with_bases(path, ()), path)
    keys = [_set_option(tree, option) for option in opts]
    tree = dialect.to_native(tree, path)
    try:
        config = Config.model_validate(tree)
        problems = [f"{path}: {problem}" for problem in config.problems_between_sections()]
    except ValidationError as error:
        problems = [_sentence(details, path, keys) for details in error.errors(include_url=False)]
    except RecursionError:
        problems = [f"{path}: expected at most a few levels of nesting, found too many to read: flatten it"]
    if problems:
        raise UsageError("\n".join(problems))
    config._path = path
    return config


def merge(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """`upper` laid over `lower`: mappings merge, anything else replaces; `_inherited_: false` replaces a mapping."""
    if upper.get("_inherited_") is False:
        return upper
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        merged[key] = merge(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML for recipes: `1e-4` is a number, a mapping's keys are texts and given once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # Makes an alias to a node inside itself an error.

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        assert isinstance(node, yaml.MappingNode)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be overridden
                continue
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} on line {line}, which is not a text: put it in quotes")
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} twice in one mapping, again on line {line}: remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse(text: str) -> Any:
    """YAML text -> plain values.

    Raises:
        yaml.YAMLError: with what was found in its text.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # `!!bool x`, a 31st of February
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from error
    except RecursionError as error:
        raise yaml.YAMLError("too many levels of nesting") from error


def _read(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = _parse(text)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: expected a YAML file, found none: check the path") from error
    except OSError as error:
        raise UsageError(f"{path}: expected a readable YAML file, found {error.strerror}: check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected YAML in UTF-8, found other bytes: check that it is a text file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: expected YAML, but found: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        found = "an empty file" if tree is None else repr(tree)[:80]
        raise UsageError(f"{path}: expected `key: value` lines such as `model: ...`, found {found}: check the file")
    return tree


def _read_with_bases(path: str, above: tuple[str, ...]) -> dict[str, Any]:
    """The native tree of `path` laid over its bases; `above` are the files that led here."""
    if any(os.path.realpath(path) == os.path.realpath(other) for other in above):
        chain = " -> ".join((*above, path))
        raise UsageError(f"{path}: expected _base_ to end at some file, found a circle ({chain}): remove one _base_")
    tree = _read(path)
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"{path}: expected _base_ to be a file name or a list of them, found {bases!r}: correct it")
    tree = dialect.to_native(tree, path)
    lower: dict[str, Any] = {}
    for base in reversed(bases):
        lower = merge(_read_with_bases(str(Path(path).parent / base), (*above, path)), lower)
    return merge(tree, lower)


def _without_flags(tree: Any, path: str) -> Any:
    """A copy of the tree without `_inherited_`."""
    if isinstance(tree, list):
        return [_without_flags(value, path) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if not isinstance(tree.get("_inherited_", True), bool):
        raise UsageError(f"{path}: expected _inherited_ to be true or false, found {tree['_inherited_']!r}: correct it")
    return {key: _without_flags(value, path) for key, value in tree.items() if key != "_inherited_"}


def _set_option(tree: dict[str, Any], option: str) -> str:
    """Apply one "key=value" to the tree, in place -> its native dotted key."""
    key, equals, text = option.partition("=")
    parts = dialect.native_key(key).split(".")
    if not equals or not all(parts):
        raise UsageError(f"--opts: expected key=value such as optimizer.momentum=0.95, found {option!r}: correct it")
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--opts: expected the value of {key} to be YAML, found {text!r}: {reason}") from error

    parent: Any = tree
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if not isinstance(parent, (dict, list)):
            raise UsageError(
                f"--opts: expected {above} to be a mapping, found {parent!r} on the way to {key}: correct the key"
            )
        if isinstance(parent, list) and not (part.isdecimal() and int(part) < len(parent)):
            raise UsageError(
                f"--opts: expected {above} to be followed by a position below {len(parent)}, found {part} in {key}: "
                "correct it"
            )
        place: Any = int(part) if isinstance(parent, list) else part
        if depth == len(parts) - 1:
            parent[place] = value
        elif isinstance(parent, dict) and parent.get(part) is None:
            parent[part] = {}
        parent = parent[place]
    return ".".join(parts)


# --- Saying what is wrong. ---


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The candidate nearest to a misspelt name, as a question; the first twenty of them if none is near."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(name.lower(), by_folded, n=1)
    if near:
        return f"did you mean {by_folded[near[0]]}?"
    names = list(by_folded.values())
    return f"choose from {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def _suggest_key(name: str, section: type[Section]) -> str:
    """What an unknown key of a section may have been meant to be: a key near it, or the same key of another section."""
    if not difflib.get_close_matches(name.lower(), section.model_fields):
        elsewhere = [f"{path}.{name}" for path, other in _SECTIONS.items() if name in other.model_fields]
        if name in Config.model_fields:
            elsewhere.append(f"{name} at the top level")
        if elsewhere:
            return f"did you mean {' or '.join(elsewhere)}?"
    return suggest(name, section.model_fields)


def _sentence(details: Any, path: str, option_keys: Sequence[str]) -> str:
    """One of pydantic's error records as a sentence: where, what was expected and found, what to do."""
    location = [part for part in details["loc"] if not str(part).startswith("type:")]
    key = ".".join(map(str, location))
    from_option = any(f"{a}.".startswith(f"{b}.") for option in option_keys for a, b in ((key, option), (option, key)))
    source = "--opts" if from_option else path
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        parent = str(details["loc"][-2]) if len(details["loc"]) > 1 else ""
        section = OUR_SPECS.get(parent.partition(":")[2]) or _SECTIONS.get(parent, Config)
        return f"{source}: expected only known keys, found {key}: {_suggest_key(str(location[-1]), section)}"
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
    if kind == "literal_error":
        remedy = suggest(str(found), re.findall(r"'([^']*)'", details["ctx"]["expected"]))
    shown = repr(found) if len(repr(found)) <= 80 else f"{repr(found)[:77]}..."
    return f"{source}: expected {key} to be {expected}, found {shown}: {remedy}"
