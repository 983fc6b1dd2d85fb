# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a recipe, in sentences: where, what was expected and found, what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hmsa.components import IMAGENET, KINDS, RANDOM, ListDatasetSpec, NetworkSpec, SplitSpec, checked_specs
from hmsa.config import dialect
from hmsa.config.fields import MAX_CLASSES_WITH_VALUES, Section
from hmsa.config.schema import (
    ClassSpec,
    Config,
    EarlyStoppingSpec,
    EMASpec,
    IgnoreSpec,
    InferenceSpec,
    LossSpec,
    Origins,
    single_losses,
    takes_weights,
)
from hmsa.errors import dotted, shown, suggest

MAX_PROBLEMS = 20
"""That are told at once."""

SECTIONS: dict[str, type[Section]] = {
    "model": NetworkSpec,
    "classes": ClassSpec,
    "ignore": IgnoreSpec,
    "ema": EMASpec,
    "early_stopping": EarlyStoppingSpec,
    "loss": LossSpec,
    "test_config": InferenceSpec,
}
"""Sections that are the same whatever their type is; of lists, their parts."""

_KINDS_OF_SECTIONS = {"train_dataset": "dataset", "lr_scheduler": "scheduler", "optimizer": "optimizer"}


# --- One value that is wrong by itself. ---


def sentence(details: Any, tree: dict[str, Any], origins: Origins) -> str:
    """One of pydantic's error records as a sentence: where, what was expected and found, what to do."""
    location, kind, found = details["loc"], details["type"], details["input"]
    key, source = dotted(location), origins.of(location)
    if kind == "extra_forbidden":
        return f"{source}: expected only known keys, found {key}: {_suggest_key(location, tree)}"
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


def _suggest_key(location: Sequence[Any], tree: dict[str, Any]) -> str:
    """What to do about a key that its section does not have.

    It may be near one that the section has, stand in another component of this kind, or in another section.
    """
    *above, name = location
    section = _section_at(above, tree)
    if not difflib.get_close_matches(name.lower(), section.model_fields, cutoff=0.7):
        table = next((t for t in KINDS.values() if section in [spec for spec, _ in t.values()]), {})
        owners = [known for known, (spec, _) in table.items() if name in spec.model_fields]
        if owners:
            this = next(known for known, (spec, _) in table.items() if spec is section)
            return f"it is for the type {' or '.join(owners)}, not for {this}: remove it, or change type"
        if name in dialect.REMEDIES:
            return dialect.REMEDIES[name]

        places = [*SECTIONS, *_KINDS_OF_SECTIONS]
        elsewhere = [f"{place}.{name}" for place in places if name in _section_at([place], tree).model_fields]
        if name in Config.model_fields:
            elsewhere.append(f"{name} at the top level")
        if elsewhere and dotted(location) not in elsewhere:
            return f"did you mean {' or '.join(elsewhere)}?"
    return suggest(name, section.model_fields)


def _section_at(location: Sequence[Any], tree: Any) -> type[Section]:
    """What checks the mapping there; where a section does not say its type, our first component of its kind."""
    if not location:
        return Config
    if location[0] in SECTIONS and (len(location) == 1 or isinstance(location[1], int)):
        return SECTIONS[location[0]]
    if location[-1] == "split":
        return SplitSpec
    for part in location:
        tree = tree.get(part) if isinstance(tree, dict) else tree[part]
    name = tree.get("type") if isinstance(tree, dict) else None
    if isinstance(name, str):
        return checked_specs().get(name, Section)
    return next(iter(KINDS[_KINDS_OF_SECTIONS[location[0]]].values()))[0]


# --- Sections that are right by themselves, and wrong together. ---


def problems_between_sections(config: Config) -> Iterator[tuple[str, str]]:
    """What is wrong though every section is right by itself: the key at fault, and a sentence about it."""
    if config.classes is not None:
        yield from _problems_of_classes([spec.name for spec in config.classes], config.model.num_classes)
    yield from _problems_of_values(config)
    yield from _problems_of_channels(config)
    for name in ("train_dataset", "val_dataset"):
        if getattr(config, name):
            yield from _problems_of_dataset(config, name, getattr(config, name))
            yield from _problems_of_transforms(name, getattr(config, name).transforms, config.in_channels)
    yield from _problems_of_folders(config.train_dataset, config.val_dataset)
    if config.train_dataset:
        yield from _problems_with_labels(config, config.train_dataset)
    yield from _problems_of_weights(config)
    if config.lr_scheduler and config.lr_scheduler.warmup_iters >= config.iters:
        yield (
            "lr_scheduler.warmup_iters",
            f"to be less than iters ({config.iters}), found {config.lr_scheduler.warmup_iters}: make it "
            f"{config.iters // 16} or so, or iters larger",
        )


def _problems_of_classes(names: Sequence[str], num_classes: int) -> Iterator[tuple[str, str]]:
    """Another number of names than the network has classes, or a name given twice."""
    if len(names) != num_classes:
        yield (
            "classes",
            f"to name each of the {num_classes} classes (model.num_classes), found {len(names)}: name each, or set "
            "model.num_classes to their number",
        )
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            yield f"classes.{index}.name", f"to differ from classes.{first}.name, found {shown(name)} twice: rename"


def _problems_of_values(config: Config) -> Iterator[tuple[str, str]]:
    """Values of masks that mean two things or nothing."""
    given = [spec.values for spec in config.classes or ()]
    ignored = config.ignore.values if config.ignore else []
    if any(given) and not all(given):
        index = given.index(None)
        yield (
            f"classes.{index}.values",
            "to be given, as other classes have values, found nothing: say which numbers or colours of the masks mean "
            f"{config.classes[index].name if config.classes else ''}",
        )
        return
    if (any(given) or ignored) and config.model.num_classes > MAX_CLASSES_WITH_VALUES:
        yield (
            "classes",
            f"to be at most {MAX_CLASSES_WITH_VALUES} where masks hold other values than class numbers, found "
            f"{config.model.num_classes}: merge some, or convert the masks",
        )
    if not any(given):
        given = [[number] for number in range(config.model.num_classes)]

    places = [(f"classes.{number}.values", value) for number, values in enumerate(given) for value in values or ()]
    places += [("ignore.values", value) for value in ignored]
    first: dict[str, str] = {}
    for key, value in places:
        if isinstance(value, list) != isinstance(places[0][1], list):
            yield (
                key,
                f"to hold {'colours' if isinstance(places[0][1], list) else 'numbers'}, as {places[0][0]} does, found "
                f"{value}: masks hold either, write all alike (a colour is [[red, green, blue]])",
            )
        elif str(value) in first:
            also = first[str(value)]
            twice = "twice" if also == key else f"which {also} holds too"
            yield key, f"to hold values that mean nothing else, found {value} {twice}: leave it out of one"
        first.setdefault(str(value), key)


def _problems_of_channels(config: Config) -> Iterator[tuple[str, str]]:
    """PaddleSeg's keys for channels that are not the recipe's own, and transforms made for other images."""
    channels = config.in_channels
    sections = [(name, getattr(config, name)) for name in ("train_dataset", "val_dataset") if getattr(config, name)]
    stated = [("model.backbone.in_channels", getattr(config.model.backbone, "in_channels", None))]
    stated += [(f"{name}.img_channels", getattr(spec, "img_channels", None)) for name, spec in sections]
    for key, value in stated:
        if value not in (None, channels):
            yield (
                key,
                f"to be {channels}, which in_channels says for all of the recipe, found {shown(value)}: write "
                f"in_channels: {shown(value)} at the top of the recipe, or leave this out",
            )

    transforms = [(f"{n}.transforms.{i}", part) for n, spec in sections for i, part in enumerate(spec.transforms)]
    for where, part in transforms:
        for key in _BY_CHANNEL.get(part.type, ()):
            value = getattr(part, key)
            if isinstance(value, list) and len(value) != channels:
                yield (
                    f"{where}.{key}",
                    f"to be a number for each of the {channels} channels (in_channels), found {len(value)}: correct it",
                )
        if part.type == "RandomDistort" and channels < 3:
            yield (
                where,
                f"to suit images of {channels} channel{'s' * (channels > 1)} (in_channels), found RandomDistort, which "
                "needs red, green and blue: remove it",
            )


_BY_CHANNEL = {
    "Normalize": ("mean", "std"),
    "RandomPaddingCrop": ("im_padding_value",),
    "Padding": ("im_padding_value",),
}
"""Transforms and their arguments that may be a list of a number for each channel."""


def _problems_of_dataset(config: Config, name: str, spec: Any) -> Iterator[Any]:
    """Class counts and splits that this section cannot have."""
    classes = getattr(spec, "num_classes", None)
    if classes not in (None, config.model.num_classes):
        yield (
            "model.num_classes",
            f"to be the {shown(classes)} classes of {name}, found {config.model.num_classes}: set model.num_classes to "
            f"{shown(classes)}",
        )
    mode = str(getattr(spec, "mode", None)).lower()
    training = name == "train_dataset"
    right, use = ("train", "for evaluation") if training else ("val", "trained on")
    if mode in ("val", "test") if training else mode.startswith("train"):
        yield f"{name}.mode", f"to be {right}, found {shown(spec.mode)}, whose images are {use}: set it to {right}"
    if not training and getattr(spec, "add_val", False):
        yield f"{name}.add_val", "in train_dataset alone, found it where it has no effect: remove it"


def _problems_of_folders(train: Any, val: Any) -> Iterator[tuple[str, str]]:
    """Images that would be both trained on and evaluated on."""
    if not all(isinstance(spec, ListDatasetSpec) and spec.image_dir for spec in (train, val)):
        return
    roots = [Path(os.path.abspath(Path(spec.dataset_root) / spec.image_dir)) for spec in (train, val)]  # noqa: PTH100
    if roots[0] != roots[1] and roots[0] not in roots[1].parents and roots[1] not in roots[0].parents:
        return
    if roots[0] != roots[1]:
        yield (
            "val_dataset.image_dir",
            f"to lie beside train_dataset.image_dir, as all folders below are searched, found {shown(val.image_dir)} "
            f"and {shown(train.image_dir)}, one in the other: name the inner folders, or one with a split in both",
        )
    elif train.split is None and val.split is None:
        if _meet(train.image_pattern, val.image_pattern):
            yield (
                "val_dataset.split",
                "to say which images are evaluated on, as train_dataset has the same image_dir, found nothing: write "
                "split: {val: 0.2} into both",
            )
    elif (train.split, train.image_pattern) != (val.split, val.image_pattern):
        yield (
            "val_dataset.split",
            f"and image_pattern to be those of train_dataset, which has the same image_dir, found {_split(val)} and "
            f"{_split(train)}: write the same into both",
        )


def _split(spec: ListDatasetSpec) -> str:
    return f"{spec.split.model_dump() if spec.split else 'no split'} of {shown(spec.image_pattern)}"


def _meet(pattern: str, other: str) -> bool:
    """Whether a name may fit both patterns, each with one `*`."""
    (start, _, end), (other_start, _, other_end) = pattern.partition("*"), other.partition("*")
    return (start.startswith(other_start) or other_start.startswith(start)) and (
        end.endswith(other_end) or other_end.endswith(end)
    )


def _problems_of_transforms(name: str, transforms: Sequence[Any], channels: int) -> Iterator[Any]:
    """Images that the network would not know, or that no two evaluations would see alike."""
    for index, transform in enumerate(transforms if name == "val_dataset" else ()):
        if transform.type.startswith("Random") or transform.type in RANDOM:
            yield (
                f"{name}.transforms.{index}",
                f"to be the same for every run, found {transform.type}, which changes images at random (and not "
                "their labels): remove it",
            )
    normalizing = [index for index, transform in enumerate(transforms) if transform.type == "Normalize"]
    for index in normalizing[1:]:
        yield f"{name}.transforms.{index}", "to be no second Normalize, found one: remove it"
    if not normalizing:
        yield (
            f"{name}.transforms",
            "to normalise images, which all weights want, found no Normalize: add "
            + (
                f"{{type: Normalize, mean: {IMAGENET.mean}, std: {IMAGENET.std}}}"
                if channels == 3
                else f"one with the mean and std of the images, {channels} numbers each"
            ),
        )


def _problems_with_labels(config: Config, dataset: Any) -> Iterator[Any]:
    """Labels of a training image that a loss would take for a class that there is not."""
    ignored = getattr(dataset, "ignore_index", 255)
    losses = single_losses(config.loss.types if config.loss else (), "loss.types")
    transforms = [(f"train_dataset.transforms.{index}", part) for index, part in enumerate(dataset.transforms)]
    counting = [(key, part) for key, part in transforms if getattr(part, "category_max_ratio", 1) != 1]
    for key, part in (*losses, *counting):
        left_out = getattr(part, "ignore_index", ignored)  # Those of PaddleSeg may have none.
        if left_out != ignored:
            yield (
                f"{key}.ignore_index",
                f"to be {shown(ignored)}, which marks ignored pixels in train_dataset, found {shown(left_out)}: "
                f"set it to {shown(ignored)}",
            )
    for key, part in transforms:
        label = getattr(part, "label_padding_value", None)
        if isinstance(label, int) and label != ignored and not 0 <= label < config.model.num_classes:
            yield (
                f"{key}.label_padding_value",
                f"to be a class below {config.model.num_classes}, or {shown(ignored)} for ignored pixels, found "
                f"{label}: correct it",
            )


def _problems_of_weights(config: Config) -> Iterator[tuple[str, str]]:
    """Weights of another number of classes, or given in two places, or to losses that take none."""
    losses = list(single_losses(config.loss.types if config.loss else (), "loss.types"))
    weighted = [(f"{key}.weight", spec.weight) for key, spec in losses if takes_weights(spec) and spec.weight]
    given = config.class_weights
    for key, weights in [*weighted, *([("class_weights", given)] if isinstance(given, list) else [])]:
        if len(weights) != config.model.num_classes:
            yield (
                key,
                f"to be a number for each of the {config.model.num_classes} classes (model.num_classes), found "
                f"{len(weights)}: correct it",
            )
    if given and losses:
        twice = [key for key, spec in losses if getattr(spec, "weight", None)]
        if twice:
            yield (
                "class_weights",
                f"alone, as they are for all losses, found {twice[0]}.weight beside them: remove one of the two",
            )
        elif not any(takes_weights(spec) for _, spec in losses):
            yield (
                "class_weights",
                "together with a loss that takes them (DiceLoss, or one of this project's cross-entropies), found "
                f"{', '.join(spec.type for _, spec in losses)}: add one, or remove class_weights",
            )
