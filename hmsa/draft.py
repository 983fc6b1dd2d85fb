# SPDX-License-Identifier: Apache-2.0
"""A recipe for somebody's own images: what there is, settings that suit it and the machine, and the text."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Optional

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from hmsa.components import IMAGENET
from hmsa.config import recipes
from hmsa.config.fields import MAX_CHANNELS
from hmsa.config.reading import load_config
from hmsa.config.text import one_line
from hmsa.datasets import tiff
from hmsa.datasets.bands import channels_in
from hmsa.datasets.classes import recipe_lines
from hmsa.datasets.dataset import Pair
from hmsa.datasets.find import search
from hmsa.datasets.folders import Split, folder_pairs, parts
from hmsa.datasets.images import IMAGE_FORMATS, IMAGE_SUFFIXES, check_size, read_bytes, read_image
from hmsa.datasets.kinds import Class, Found, Kind, look
from hmsa.datasets.lists import listed
from hmsa.datasets.statistics import ChannelSums, channel_statistics
from hmsa.datasets.survey import spread
from hmsa.errors import DataError
from hmsa.system.environment import threads
from hmsa.visualize import distinct_colors

MAX_MASKS = 500
"""Masks that are read; of more, a sample."""

MAX_MEASURED = 24
"""Images whose channels are measured, where they are not in colours."""

MIN_SIDE = 64
"""Pixels of a crop's shorter side at least, see `hmsa.config.fields`."""

_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Folders that people divide their images into themselves."""

_LIKELY = ("trainids", "labelids", "label", "mask", "seg", "gt", "annotation")
"""In the names of masks, what is rather meant first."""


# --- What there is ---


@dataclass
class Survey:
    """Somebody's images and masks."""

    image_dir: str
    label_dir: str
    patterns: tuple[str, str]
    pairs: dict[str, Pair]  # see `folder_pairs`
    sizes: list[tuple[int, int]]  # width and height of every image, as it is to be seen
    masks: Found
    sampled: bool  # whether `masks` are some of all
    in_channels: int = 3
    statistics: Optional[ChannelSums] = None  # of some images, where they are not in colours

    @property
    def own_parts(self) -> Optional[dict[str, str]]:
        """The folders of "train" and "val" where people have divided the images by folders."""
        tops = {name.split("/")[0] for name in self.pairs if "/" in name}
        found = {part: top for part, names in _PARTS.items() for top in sorted(tops) if top.lower() in names}
        known = {name for names in _PARTS.values() for name in names}
        everything = all(name.split("/")[0].lower() in known for name in self.pairs)
        return found if everything and len(found) == len(tops) and {"train", "val"} <= found.keys() else None


def survey(image_dir: str, label_dir: str, patterns: tuple[Optional[str], Optional[str]], seed: int) -> Survey:
    """Pair the files, read the images' headers and the masks, or `MAX_MASKS` of them drawn by the seed.

    Patterns that are None are guessed. DataError for whatever cannot be used.
    """
    folders = Path(image_dir), Path(label_dir)
    guessed = guess_patterns(*folders, patterns)
    pairs = folder_pairs(*folders, *guessed)
    sizes = [_size(image) for image, _ in tqdm(pairs.values(), unit="image", disable=None)]
    labels = [label for _, label in pairs.values() if label]
    _check_sizes(pairs.values(), sizes, list(map(_size, labels)))
    some = labels if len(labels) <= MAX_MASKS else sorted(random.Random(seed).sample(labels, MAX_MASKS))
    of_images = _look_at_images([image for image, _ in pairs.values()])
    return Survey(image_dir, label_dir, guessed, pairs, sizes, look(some), len(some) < len(labels), *of_images)


def _look_at_images(paths: Sequence[str]) -> tuple[int, Optional[ChannelSums]]:
    """How many channels they have, and what some hold, where that is not red, green and blue."""
    some = spread(paths, MAX_MEASURED)
    counts = {channels_in(path) for path in some}
    in_channels = counts.pop() if len(counts) == 1 else 3
    if in_channels == 3 and not all(map(_is_grey, spread(some, 4))):
        return 3, None
    return in_channels, channel_statistics(some, in_channels=in_channels, num_workers=threads())


def _is_grey(path: str) -> bool:
    """Whether red, green and blue are the same everywhere, or nearly, as JPEG saves them."""
    return bool(np.ptp(read_image(path), axis=2).max() <= 8)


def _size(path: str) -> tuple[int, int]:
    """Width and height as the image is to be seen; DataError if its header cannot be read."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            check_size(*image.size)
            return image.size[::-1] if _lies(image) else image.size
    except Exception as error:  # on damaged files Pillow raises almost anything
        size = _size_of_tiff(path)
        if all(size):
            return size
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} should be a readable image, but: {reason}; replace or remove it") from error


def _size_of_tiff(path: str) -> tuple[int, int]:
    """Width and height of a TIFF of many bands; 0 if it is none."""
    with suppress(DataError):
        data = read_bytes(path, bytes_per_pixel=8 * MAX_CHANNELS)
        return tiff.size_of(data) if data.startswith(tiff.STARTS) else (0, 0)
    return 0, 0


def _lies(image: Image.Image) -> bool:
    """Whether EXIF data turn an image by a quarter."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)


def _is_turned(path: str) -> bool:
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        return _lies(image)


def _check_sizes(pairs: Iterable[Pair], sizes: Sequence[Any], of_labels: Sequence[Any]) -> None:
    """DataError naming masks (at most 20) of another size than their image's."""
    wrong = [
        "{} is {}x{}, its image {}x{}".format(label, *found, *size)
        for (_, label), size, found in zip(pairs, sizes, of_labels)
        if found != size
    ]
    if not wrong:
        return
    lying = [image for (image, _), size, found in zip(pairs, sizes, of_labels) if found == size[::-1] != size]
    remedy = "pair them with the right images, or make them anew in their size"
    if len(lying) == len(wrong) and all(map(_is_turned, lying)):
        remedy = (
            "they lie on the images as they are stored, which EXIF turns: save the images upright and without the tag "
            "(mogrify -auto-orient), and turn the masks likewise"
        )
    raise DataError(
        f"every mask should be as large as its image (turned as its EXIF data say), but {len(wrong)} are not: "
        f"{listed(wrong)}; {remedy}"
    )


def labelme_files(folder: Path) -> list[Path]:
    """Files of polygons, as Labelme writes them beside images."""
    found = [path for path in search(folder, "**") if path.suffix.lower() == ".json"] if folder.is_dir() else []
    return [path for path in found if '"shapes"' in path.read_text(encoding="utf-8", errors="replace")]


def guess_patterns(
    image_dir: Path, label_dir: Path, given: tuple[Optional[str], Optional[str]] = (None, None)
) -> tuple[str, str]:
    """What stands around the common part of names, such as ("*", "*_mask"): what pairs the most files.

    Of several that pair as many, the first in `_LIKELY`. Patterns that are given stay.
    """
    images, labels = _stems(image_dir), _stems(label_dir)
    if None not in given or not images or not labels:
        return given[0] or "*", given[1] or "*"
    in_one = image_dir.samefile(label_dir)
    twice = sum(count == 2 for count in Counter(images).values())
    if in_one and 2 * twice > len(images) - 2 * twice:  # told apart by their suffixes
        return given[0] or "*", given[1] or "*"

    votes: Counter[tuple[str, str]] = Counter() if in_one else Counter({("*", "*"): 1})
    for folder, label in random.Random(0).sample(labels, min(len(labels), 30)):
        beside = [stem for there, stem in images if there == folder and not (in_one and stem == label)]
        votes.update({_around(stem, label) for stem in _nearest(label, beside)})
    candidates = {(given[0] or image, given[1] or label) for (image, label), _ in votes.most_common(12)}
    plain = given[0] or "*", given[1] or "*"
    best = max(sorted(candidates), key=lambda pair: (_paired(images, labels, pair), *_likely(pair[1])), default=plain)
    found = _paired(images, labels, best)
    return best if 2 * found >= min(len(images), len(labels)) / (1 + in_one) else plain


def images_below(folder: Path) -> list[Path]:
    """All images of a folder; none where there is no folder."""
    found = search(folder, "**") if folder.is_dir() else []
    return [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]


def masks_below(folder: Path) -> Optional[tuple[Path, Path]]:
    """The folders of images and of masks, where these two are all folders of a folder without images of its own."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and images_below(path))
    masks = [path for path in below if any(word in path.name.lower() for word in _LIKELY)]
    own = any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
    if own or len(below) != 2 or len(masks) != 1:
        return None
    return next(path for path in below if path not in masks), masks[0]


def _stems(folder: Path) -> list[tuple[PurePath, str]]:
    """Of all images below: the folder below this one, and the name without its suffix."""
    return [(path.relative_to(folder).parent, path.stem) for path in images_below(folder)]


def _nearest(name: str, others: Sequence[str]) -> list[str]:
    """The others that share the longest beginning or the longest end with a name."""
    ends = (lambda other: _common(name, other), lambda other: _common(name[::-1], other[::-1]))
    return [max(others, key=lambda other: (common(other), -len(other))) for common in ends if others]


def _around(image: str, label: str) -> tuple[str, str]:
    """The patterns that make two names one: of what they begin with in common, or of what they end with."""
    if image == label:
        return "*", "*"
    before, after = _common(image, label), _common(image[::-1], label[::-1])
    if after > before:
        after -= label[len(label) - after] in "_-. "  # which belongs to the word before
        return f"{image[: len(image) - after]}*", f"{label[: len(label) - after]}*"
    if before < min(len(image), len(label)):  # both go on: from the last sign that parts words
        before = max((place for place, letter in enumerate(label[:before]) if letter in "_-. "), default=before)
    return f"*{image[before:]}", f"*{label[before:]}"


def _common(one: str, other: str) -> int:
    """Letters that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _paired(images: Iterable[Any], labels: Iterable[Any], patterns: tuple[str, str]) -> int:
    """How many names both have."""
    names = []
    for stems, pattern in zip((images, labels), patterns):
        start, _, end = pattern.partition("*")
        names.append(
            {(f, s[len(start) : len(s) - len(end)]) for f, s in stems if s.startswith(start) and s.endswith(end)}
        )
    return len(names[0] & names[1])


def _likely(pattern: str) -> tuple[int, bool, int]:
    """More for a pattern of masks that is rather meant: by a word, by a sign that parts words, as it is short."""
    word = next((place for place, word in enumerate(_LIKELY) if word in pattern.lower()), len(_LIKELY))
    return -word, any(sign in pattern for sign in "_-. "), -len(pattern)


# --- Settings that suit it ---


class Machine(NamedTuple):
    """What will train."""

    gpu: bool
    memory: int  # bytes; 0 if unknown


class Network(NamedTuple):
    """The parts of a network, in the words of a recipe."""

    backbone: str
    ocr_mid_channels: int
    ocr_key_channels: int
    attention_mid_channels: int
    scales: tuple[float, ...]


SMALL = Network("HRNet_W18_NV_Small_V1", 64, 32, 32, (0.5, 1.0, 2.0))
LARGE = Network("HRNet_W48_NV", 512, 256, 256, (0.5, 1.0, 2.0))


def network_of(weights: str) -> Optional[Network]:
    """The network that weights belong to, where a checkpoint's recipe lies beside them."""
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    if not (folder / "config.yml").is_file():
        return None
    spec = load_config(folder / "config.yml").model
    channels = spec.ocr_mid_channels, spec.ocr_key_channels, spec.attention_mid_channels
    return Network(spec.backbone.type, *channels, tuple(spec.scales))


@dataclass
class Plan:
    """The numbers of a recipe."""

    train: int  # images
    val: int
    longest: Optional[int]  # side that images are made smaller to
    crop: tuple[int, int]  # width, height
    batch: int
    iters: int
    scaling: tuple[float, float]  # by which images become smaller and larger at random
    rate: float
    on_cpu: bool
    network: Network
    interval: int  # iterations between evaluations


def planned(survey: Survey, counts: tuple[int, int], machine: Machine, *, weights: Optional[str]) -> Plan:
    """What so many images of these sizes take; `counts` are those to train and to evaluate on."""
    pretrained = weights is not None
    width, height = (round(statistics.median(sides)) for sides in zip(*survey.sizes))
    limit = 2048 if machine.gpu else 1024
    longest = limit if max(width, height) > limit else None
    if longest:
        width, height = (side * longest // max(width, height) for side in (width, height))

    crop, batch = _crop_and_batch(width, height, machine)
    epochs, least, most = (60, 3000, 65000) if machine.gpu else (50, 400, 6000)
    iters = min(max(epochs * counts[0] // batch, least), most) // (2 if pretrained else 1)
    iters = max(iters // 50, 1) * 50
    small_rate = 0.006 if pretrained or iters > 1500 else 0.012
    large_rate = 0.005 if pretrained else 0.001
    # The scale 2.0 shows a network the borders in small images, if it is trained on enlarged ones; of large images it
    # takes long.
    is_small = max(width, height) < 400
    network = LARGE if machine.gpu else SMALL
    if not machine.gpu and max(width, height) > 640:
        network = network._replace(scales=(0.5, 1.0))
    return Plan(
        *counts,
        longest=longest,
        crop=crop,
        batch=batch,
        iters=iters,
        rate=large_rate if machine.gpu else small_rate,
        on_cpu=not machine.gpu,
        scaling=(0.75, 2.0) if is_small else (0.5, 2.0) if machine.gpu else (0.5, 1.5),
        network=(weights and network_of(weights)) or network,
        interval=max(iters // 4 // 50, 1) * 50,
    )


def _crop_and_batch(width: int, height: int, machine: Machine) -> tuple[tuple[int, int], int]:
    """As much of an image as a step has time for (CPU) or memory for (GPU), on the grid of 32 of the network."""
    if not machine.gpu:
        longest = 224 if max(width, height) < 400 else 256
        return (_on_grid(width, longest), _on_grid(height, longest)), 4
    memory = machine.memory or 16 * 2**30
    pixels = (0.6 * memory - 2 * 2**30) / 4000  # bytes of a pixel in HRNet-W48 with recompute, and those of the weights
    crop = (MIN_SIDE, MIN_SIDE)
    for longest in (1024, 768, 512, 384, 256):
        crop = _on_grid(width, longest), _on_grid(height, longest)
        if 4 * crop[0] * crop[1] <= pixels:
            break
    return crop, min(max(int(pixels // (crop[0] * crop[1])), 1), 8)


def _on_grid(side: int, longest: int) -> int:
    return max(min(side, longest) // 32 * 32, MIN_SIDE)


# --- The text ---


class Naming(NamedTuple):
    """The classes of a recipe, and what does not count."""

    classes: list[Class]
    ignored: list[Any]
    numbered: bool


def recipe(survey: Survey, kind: Kind, naming: Naming, plan: Plan, *, split: Split, weights: Optional[str]) -> str:
    """The recipe as YAML with the reasons beside it."""
    return "\n\n".join(
        [
            _head(survey, kind, plan),
            *([] if survey.in_channels == 3 else [f"in_channels: {survey.in_channels}  # read as they are stored"]),
            f"batch_size: {plan.batch}  # images a step, on each device\niters: {plan.iters}"
            f"  # {plan.iters * plan.batch / plan.train:.0f} times through the {plan.train} images to train on\n"
            f"seed: {split.seed}",
            _model(plan, len(naming.classes), weights),
            _classes(naming),
            _dataset("train", survey, split, _augmented(plan, survey)),
            _dataset("val", survey, split, [*_resized(plan), _normalized(survey)]),
            _optimizer(plan, weights),
            f"ema:  # the weights that are evaluated and kept: averages over about the last tenth of the iterations\n"
            f"  decay: {max(1 - 10 / plan.iters, 0.9):.4f}",
            _loss(plan),
            "# Two more for little data, without their # where needed:\n"
            "# class_weights: auto  # in the losses, rare classes weigh more\n"
            "# early_stopping: {patience: 5}  # end after so many evaluations without a better score",
            "test_config:  # of evaluation and prediction\n"
            "  aug_eval: false  # true averages over scales and flips: slower, and often a bit better\n"
            "  scales: [1.0]\n"
            "  flip_horizontal: false",
        ]
    )


def _head(survey: Survey, kind: Kind, plan: Plan) -> str:
    widths, heights = zip(*survey.sizes)
    sizes = f"{min(widths)}x{min(heights)}"
    if len(set(survey.sizes)) > 1:
        sizes += f" to {max(widths)}x{max(heights)}"
    read = f"{len(survey.masks.of_mask)} of {len(survey.pairs)} masks were read" if survey.sampled else "all were read"
    return (
        f"# yaml-language-server: $schema={recipes.SCHEMA}\n"
        f"# Written by hmsa init: {len(survey.pairs)} images of {sizes}, {plan.train} to train and {plan.val} to "
        f"evaluate on.\n# The masks hold {kind.words} ({read}).\n"
        "# Change what you like; any value can also be set on a command line: --opts iters=2000"
    )


def _model(plan: Plan, classes: int, weights: Optional[str]) -> str:
    network = plan.network
    lines = ["model:", "  type: MscaleOCRNet", f"  num_classes: {classes}"]
    if network.backbone == SMALL.backbone:
        lines += [
            "  # The smallest HRNet and a narrow head, for a CPU. HRNet_W48_NV with the sizes 512, 256",
            "  # and 256 is better, and wants a GPU.",
        ]
    lines += [f"  backbone: {{type: {network.backbone}}}"]
    sizes = ("ocr_mid_channels", "ocr_key_channels", "attention_mid_channels")
    lines += [f"  {key}: {getattr(network, key)}" for key in sizes]
    more = "" if 2.0 in network.scales else "; 2.0 beside them finds smaller things"
    lines.append(f"  scales: {list(network.scales)}  # that the network weighs against each other{more}")
    if not plan.on_cpu:
        lines.append("  recompute: true  # a third of the memory for a third more time")
    start = "weights to start from; what does not fit, such as other classes, starts at random"
    lines.append(
        f"  pretrained: {one_line(weights)}  # {start}" if weights else f"  pretrained: null  # a file of {start}"
    )
    return "\n".join(lines)


def _classes(naming: Naming) -> str:
    colors = [of.color or color for of, color in zip(naming.classes, distinct_colors(len(naming.classes)))]
    if naming.numbered:
        note = "a class's number is its place, from 0"
        entries = [{"name": of.name, "color": color} for of, color in zip(naming.classes, colors)]
        lines = recipe_lines(entries, note=note)
        lines[1:] = [f"{line}  # {number}" for number, line in enumerate(lines[1:])]
        if naming.ignored:
            lines.append("  # 255 in the masks marks pixels that do not count (ignore_index of the data sets)")
        return "\n".join(lines)
    note = "a class's number is its place, from 0; values: what means it in the masks, several are merged"
    entries = [of._replace(color=color)._asdict() for of, color in zip(naming.classes, colors)]
    lines = recipe_lines(entries, naming.ignored, note=note)
    if naming.ignored:
        lines[-1:] = ["", f"{lines[-1]}  # pixels of these values do not count"]
    return "\n".join(lines)


def _dataset(part: str, survey: Survey, split: Split, transforms: Sequence[str]) -> str:
    own = survey.own_parts
    folders = {"image_dir": survey.image_dir, "label_dir": survey.label_dir}
    if own:
        folders = {key: str(Path(folder) / own[part]) for key, folder in folders.items()}
    lines = [f"{part}_dataset:", "  type: Dataset", *(f"  {key}: {one_line(value)}" for key, value in folders.items())]
    patterns = zip(("image_pattern", "label_pattern"), survey.patterns)
    lines += [f"  {key}: {one_line(pattern)}" for key, pattern in patterns if pattern != "*"]
    if not own:
        values = {key: value for key, value in split._asdict().items() if value or key in ("val", "seed")}
        note = "  # the same in both data sets: where an image belongs is drawn from its name and the seed"
        lines.append(f"  split: {one_line(values)}{note * (part == 'train')}")
    return "\n".join([*lines, "  transforms:", *(f"    {line}" for line in transforms)])


def _augmented(plan: Plan, survey: Survey) -> list[str]:
    low, high = plan.scaling
    return [
        *_resized(plan),
        "- type: ResizeStepScaling  # things nearer and farther away",
        f"  min_scale_factor: {low}",
        f"  max_scale_factor: {high}",
        "  scale_step_size: 0  # any factor in between",
        "- type: RandomPaddingCrop",
        f"  crop_size: {list(plan.crop)}  # width, height: multiples of 32; smaller images are padded",
        "- type: RandomHorizontalFlip  # remove it where left and right differ in meaning",
        *(_DISTORTED if survey.in_channels == 3 else ()),
        _normalized(survey),
    ]


_DISTORTED = (
    "- type: RandomDistort  # other light and other cameras; less hue_range where colours tell classes apart",
    *("  brightness_range: 0.25", "  brightness_prob: 0.3", "  contrast_range: 0.25", "  contrast_prob: 0.3"),
    *("  saturation_range: 0.25", "  saturation_prob: 0.3", "  hue_range: 8", "  hue_prob: 0.3"),
)


def _resized(plan: Plan) -> list[str]:
    if not plan.longest:
        return []
    why = "the longer side; predictions get the image's own size again"
    return ["- type: Resize", f"  target_size: [{plan.longest}, {plan.longest}]  # {why}", "  keep_ratio: true"]


def _normalized(survey: Survey) -> str:
    found = survey.statistics
    if found is None:
        return f"- {{type: Normalize, mean: {IMAGENET.mean}, std: {IMAGENET.std}}}"
    mean, std = ([max(round(value, 4), low) for value in of] for of, low in ((found.mean, 0.0), (found.std, 1e-4)))
    return f"- {{type: Normalize, mean: {mean}, std: {std}}}  # measured, of {found.images} images"


def _optimizer(plan: Plan, weights: Optional[str]) -> str:
    if plan.on_cpu or not weights:
        optimizer = "optimizer:\n  type: AdamW  # learns from random weights in fewer iterations than SGD"
        if plan.iters < 1000:
            optimizer += "\n  beta2: 0.98  # so few iterations forget the first gradients sooner"
    else:
        optimizer = "optimizer:\n  type: SGD\n  momentum: 0.9\n  weight_decay: 1.0e-4"
    return (
        f"{optimizer}\n\nlr_scheduler:\n  type: PolynomialDecay\n"
        f"  learning_rate: {plan.rate}  # the highest; a third of it where the loss jumps or becomes nan\n"
        f"  power: {1.0 if plan.iters < 1500 else 2.0}\n  end_lr: 0.0\n"
        f"  warmup_iters: {min(max(plan.iters // 16, 25), 500)}  # in which the rate rises from 0"
    )


def _loss(plan: Plan) -> str:
    return (
        "loss:\n  types:\n"
        "    - type: DiceLoss  # counts every class alike, however few pixels it has\n"
        "    - type: BootstrappedCrossEntropyLoss  # the pixels that are most wrong\n"
        f"      min_K: {plan.crop[0] * plan.crop[1] // 8}  # at least so many of an image's crop\n"
        "      loss_th: 0.05\n"
        "  coef:  # weights of the network's four outputs in training\n"
        "    joint: 1.0  # all scales together, which is the answer\n"
        "    joint_aux: 0.4\n    low: 0.05  # single scales\n    high: 0.05"
    )


def counts(survey: Survey, split: Split) -> tuple[int, int]:
    """Images to train and to evaluate on."""
    return len(names_of("train", survey, split)), len(names_of("val", survey, split))


def names_of(part: str, survey: Survey, split: Split) -> list[str]:
    """The names, see `folder_pairs`, of a part."""
    own = survey.own_parts
    if own:
        return [name for name in survey.pairs if name.split("/")[0] == own[part]]
    return parts(survey.pairs, split)[part]
