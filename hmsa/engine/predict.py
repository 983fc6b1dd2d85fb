# SPDX-License-Identifier: Apache-2.0
"""Label maps of any images, written as colour maps, overlays and what else there is to see; no data set needed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Optional, cast

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.find import (
    ATTENTIONS,
    COLOR_MAPS,
    CONFIDENCES,
    LABEL_IDS,
    LEGENDS,
    MARK,
    OVERLAYS,
    SCALES,
    SHARES,
    SHEETS,
    ImageFile,
    LeftOut,
    search,
)
from hmsa.datasets.transforms import Sample, Transform
from hmsa.distributed import ranks
from hmsa.errors import DataError, printable
from hmsa.former import names_of
from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, confidences, undo_transforms
from hmsa.inference.insight import look_into
from hmsa.inference.network import FusedNetwork
from hmsa.models.hierarchical import Network
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import (
    color_table,
    heat,
    heat_legend,
    highlight,
    legend,
    overlay,
    panel_size,
    pseudo_color,
    sheet,
    sheet_width,
)

__getattr__ = names_of(__name__)

UNKNOWN = 255
"""In label maps: of pixels whose class is not known well enough. No class has this number."""


def notices(files: Sequence[ImageFile], left_out: LeftOut, save_dir: str | Path) -> Iterator[str]:
    """What to tell before predicting: what was left out, which results have other names, which replace earlier ones."""
    yield printable(f"found {_counted(len(files))}" + f"; {left_out}" * bool(str(left_out)))

    renamed = [p for p in files if p.label_name.name != p.path.with_suffix(".png").name]
    if renamed:
        names = ", ".join(f"{p.path.name} as {p.label_name.name}" for p in renamed[:5])
        yield printable(f"results of {_counted(len(renamed))} have longer names, as others have theirs: {names}")

    there = {path for path in search(Path(save_dir), f"{COLOR_MAPS}/**", LeftOut()) if path.is_file()}
    planned = {Path(save_dir, COLOR_MAPS, file.label_name) for file in files}
    if there:
        yield (
            f"{save_dir} holds results of an earlier run: those of {_counted(len(there & planned))} will be replaced, "
            f"those of {_counted(len(there - planned), 'other image')} stay"
        )


def _counted(number: int, what: str = "image") -> str:
    return f"{number} {what}{'s' * (number != 1)}"


FOLDERS = {
    "color": COLOR_MAPS,
    "overlay": OVERLAYS,
    "id": LABEL_IDS,
    "confidence": CONFIDENCES,
    "attention": ATTENTIONS,
    "decided": SHARES,
    "scales": SCALES,
    "sheet": SHEETS,
    "legend": LEGENDS,
}
"""What can be written -> the folder it goes to."""

USUAL = ("color", "overlay")

_PICTURES = ("confidence", "attention", "decided", "scales", "sheet")

_MEANINGS = {
    "confidence": "probability of the class that is shown",
    "attention": "how much of a scale's answer is taken, the rest being the next larger scale's",
    "decided": "share of the answer that a scale decides; over the scales they sum to 1",
}
"""What is written as heat maps -> what its colours tell."""


@dataclass(frozen=True)
class Prediction:
    """What is known of an image of H x W pixels; what was not asked for is None or empty."""

    label: np.ndarray  # uint8 [H, W]: the class of every pixel, or `UNKNOWN`
    confidence: Optional[np.ndarray] = None  # float32 [H, W]
    attention: Mapping[float, np.ndarray] = field(default_factory=dict)  # these three as `Insight` has them
    decided: Mapping[float, np.ndarray] = field(default_factory=dict)
    scales: Mapping[float, np.ndarray] = field(default_factory=dict)

    def heat_maps(self, saved: Collection[str]) -> dict[str, dict[str, np.ndarray]]:
        """Those of `saved` that are shown as heat maps: word -> name -> float32 [H, W]."""
        found = {"confidence": {} if self.confidence is None else {"confidence": self.confidence}}
        for word in ("attention", "decided"):
            found[word] = {f"{word} {scale:g}": values for scale, values in getattr(self, word).items()}
        return {word: maps for word, maps in found.items() if word in saved and maps}


@dataclass(frozen=True)
class Results:
    """Where the results of a prediction go, and what is written there.

    Attributes:
        save_dir: gets a folder for each of `saved`, see `FOLDERS`.
        colors: of colour maps and overlays, 256, see `hmsa.visualize`.
        saved: what is written.
        raw_values: for each class, what stands for it in label maps, for "id".
        opacity: of the colours in overlays, 0 to 1.
        names: of the classes, for "sheet", "scales" and "legend".
        own_colors: those of the classes, for "sheet" and "scales", 256; without them `colors`.
        plain: classes that overlays in sheets leave alone.
    """

    save_dir: Path
    colors: Sequence[int]
    saved: Collection[str] = USUAL
    raw_values: Sequence[int] = ()
    opacity: float = 0.4
    names: Sequence[str] = ()
    own_colors: Sequence[int] = ()
    plain: Collection[int] = ()

    def prepare(self, *, unknown: bool) -> None:
        """Write what does not depend on the images: legends, and a mark where no folder tells what this is.

        Args:
            unknown: whether there may be unknown pixels.
        """
        if not {*USUAL} & {*self.saved}:
            write_atomically(self.save_dir / MARK, b"")
        legends = {word: heat_legend(f"{word}: {_MEANINGS[word]}") for word in _MEANINGS if word in self.saved}
        if "legend" in self.saved:
            shown = dict(enumerate(self.names)) | ({UNKNOWN: "unknown"} if unknown else {})
            legends["legend"] = legend(list(shown.values()), color_table(self.colors)[list(shown)].tolist())
        for name, picture in legends.items():
            _write_png(self.save_dir / LEGENDS / f"{name}.png", Image.fromarray(picture))

    def write(self, file: ImageFile, image: np.ndarray, found: Prediction) -> None:
        """Write what was predicted for an image, uint8 [H, W, 3] RGB."""
        maps = {COLOR_MAPS: pseudo_color(found.label, self.colors)} if "color" in self.saved else {}
        if "id" in self.saved:
            maps[LABEL_IDS] = self.raw(found.label)
        maps |= {folder: Image.fromarray(picture) for folder, picture in self.pictures(image, found).items()}
        for folder, made in maps.items():
            _write_png(self.save_dir / folder / file.label_name, made)

        # Last, as not every format takes every size.
        if "overlay" in self.saved:
            encoded = _encoded(self.overlay(image, found.label), file.overlay_name.suffix)
            write_atomically(self.save_dir / OVERLAYS / file.overlay_name, encoded)

    def raw(self, label: np.ndarray) -> Image.Image:
        """The label map with `raw_values` in the place of class numbers."""
        return Image.fromarray(raw_table(self.raw_values)[label])

    def overlay(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The image with the colours of its classes over it, uint8 [H, W, 3] RGB."""
        return overlay(image, label, self.colors, 1 - self.opacity)

    def pictures(
        self, image: np.ndarray, found: Prediction, numbers: Optional[Iterable[int]] = None
    ) -> dict[str, np.ndarray]:
        """Folder -> what goes there to be looked at, uint8 [h, w, 3] RGB.

        Args:
            numbers: classes that legends show; without them, those that are there.
        """
        if not {*_PICTURES} & {*self.saved}:
            return {}
        counts = [np.bincount(label.ravel(), minlength=256) for label in (found.label, *found.scales.values())]
        key = list(np.flatnonzero(np.sum(counts, axis=0)) if numbers is None else numbers)

        heats = found.heat_maps(self.saved)
        pictures = {}
        for word, maps in heats.items():
            for name, values in maps.items():
                scale = name.partition(" ")[2]
                pictures[f"{FOLDERS[word]}/scale_{scale}" if scale else FOLDERS[word]] = heat(values)

        size = panel_size(*found.label.shape)
        colors = self.own_colors or self.colors
        small = partial(cv2.resize, dsize=size, interpolation=cv2.INTER_NEAREST)

        def colored(label: np.ndarray) -> np.ndarray:
            return color_table(colors)[small(label)]

        scales = [(f"scale {scale:g}", colored(label)) for scale, label in found.scales.items()]
        if scales:
            row = [*scales, ("all together", colored(found.label))]
            pictures[SCALES] = sheet([row], [self._key(key, colors, sheet_width([row]))])
        if "sheet" in self.saved:
            little = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            over = highlight(little, small(found.label), colors, self.opacity, plain=self.plain)
            rows = [[("image", little), ("prediction", colored(found.label)), ("overlay", over)]]
            shrunk = partial(cv2.resize, dsize=size, interpolation=cv2.INTER_AREA)
            shown = {word: [(name, heat(shrunk(m))) for name, m in maps.items()] for word, maps in heats.items()}
            rows[0] += shown.pop("confidence", [])
            rows += [*shown.values(), *[scales] * bool(scales)]
            foot = [self._key(key, colors, sheet_width(rows)), *[heat_legend(", ".join(heats))] * bool(heats)]
            pictures[SHEETS] = sheet(rows, foot)
        return pictures

    def _key(self, numbers: Iterable[int], colors: Sequence[int], width: int) -> np.ndarray:
        names = dict(enumerate(self.names))
        key = {int(number): names.get(int(number), "unknown") for number in numbers}
        return legend([*key.values()], color_table(colors)[[*key]].tolist(), width)


def _write_png(path: Path, picture: Image.Image) -> None:
    write_atomically(path, partial(picture.save, format="PNG"))


def unknown_value(raw_values: Sequence[int]) -> int:
    """What stands for unknown pixels beside these values: 255, or the largest number that is free."""
    return next(value for value in range(255, -1, -1) if value not in raw_values)


def raw_table(raw_values: Sequence[int]) -> np.ndarray:
    """Class number -> what stands for it in label maps, uint8 [256]; all other numbers are unknown."""
    table = np.full(256, unknown_value(raw_values), np.uint8)
    table[: len(raw_values)] = raw_values
    return table


def predicted(
    network: Network,
    sample: Sample,
    size: Sequence[int],
    options: InferenceOptions,
    *,
    unknown_below: Optional[float] = None,
    wanted: Collection[str] = (),
) -> Prediction:
    """What a network says of an image of `size` (height, width), in one run.

    Args:
        sample: the image as the network takes it, see `SegmentationDataset`.
        unknown_below: the confidence below which a pixel is `UNKNOWN`.
        wanted: of `FOLDERS`, what the answer is for. For "attention", "decided" and "scales" it is a `FusedNetwork`.
    """
    image, insight = as_tensor(sample["img"][np.newaxis]), {}
    if {"attention", "decided", "scales"} & {*wanted}:
        found = look_into(
            cast(FusedNetwork, network),
            image,
            options,
            trans_info=sample["trans_info"],
            size=size,
            alone="scales" in wanted,
        )
        scores = found.scores
        insight = {"attention": found.attention, "decided": found.decided, "scales": found.scales}
    else:
        scores = undo_transforms(class_scores(network, image, options), sample["trans_info"], size)

    label = best_classes(scores)
    confidence = confidences(scores, options) if unknown_below is not None or "confidence" in wanted else None
    if confidence is not None and unknown_below is not None:
        label[confidence < unknown_below] = UNKNOWN
    return Prediction(label, confidence, **insight)


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """The file content of an image, uint8 [H, W, 3] RGB, in the format that `suffix` stands for."""
    try:
        done, content = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"an overlay of {size} pixels cannot be written as {suffix}: make a PNG of the image")
    return content.tobytes()


def predict(
    network: Network,
    files: Sequence[ImageFile],
    results: Results,
    *,
    transforms: Sequence[Transform],
    options: InferenceOptions,
    unknown_below: Optional[float] = None,
    max_image_pixels: int | None = None,
    in_channels: int = 3,
    progress: bool = True,
) -> list[Path]:
    """Predict images and write the results.

    Every rank takes the images rank, rank + world size, ...; all ranks must call this. An image that fails is
    reported on stderr and does not stop the others.

    Args:
        network: images [N, C, H, W] -> logits [N, K, H, W].
        transforms: what turns an image, uint8 RGB, into the network's input.
        unknown_below: the confidence below which a pixel is `UNKNOWN`.
        max_image_pixels: above which an image is refused; None is Pillow's limit.
        in_channels: of the images, see `hmsa.datasets.bands`.
        progress: whether rank 0 shows a bar.

    Returns:
        The images that failed on any rank.
    """
    mine = range(ranks.rank(), len(files), ranks.world_size())
    failed = np.zeros(len(files), np.int64)
    for index in tqdm(mine, unit="image", disable=not (progress and ranks.is_main())):
        file = files[index]
        try:
            image, _ = read_bands(file.path, in_channels, max_image_pixels)
            sample = transformed_image(image, transforms, str(file.path))
            asked = {"unknown_below": unknown_below, "wanted": results.saved}
            found = predicted(network, sample, image.shape[:2], options, **asked)
            results.write(file, displayed(image), found)
        # Whatever is wrong with this image (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(printable(f"failed: {file.path}: {reason}"), file=sys.stderr)
    failed = ranks.all_reduce_sum(failed)
    return [file.path for file, count in zip(files, failed) if count]
