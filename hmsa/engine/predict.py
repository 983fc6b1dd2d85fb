# SPDX-License-Identifier: Apache-2.0
"""Label maps of any images, written as colour maps, overlays and what else there is to see; no data set needed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
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
from hmsa.report.console import watched
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

_BY_SCALE = ("attention", "decided")
"""In whose folders are folders for the scales."""

Rows = list[list[tuple[str, np.ndarray]]]
"""Panels of a sheet, see `hmsa.visualize.sheet`."""

_MEANINGS = {
    "confidence": "probability of the class that is shown",
    "attention": "how much of a scale's answer is taken, the rest being the next larger scale's",
    "decided": "share of the answer that a scale decides; over the scales they sum to 1",
}
"""What is written as heat maps -> what its colours tell."""


def notices(
    files: Sequence[ImageFile], left_out: LeftOut, save_dir: str | Path, saved: Collection[str] = USUAL
) -> Iterator[str]:
    """What to tell before predicting: what was left out, which results have other names, which replace earlier ones."""
    yield printable(f"found {_counted(len(files))}" + f"; {left_out}" * bool(str(left_out)))

    renamed = [p for p in files if p.label_name.name != p.path.with_suffix(".png").name]
    if renamed:
        names = ", ".join(f"{p.path.name} as {p.label_name.name}" for p in renamed[:5])
        yield printable(f"results of {_counted(len(renamed))} have longer names, as others have theirs: {names}")

    word = next((word for word in FOLDERS if word in saved and word not in ("overlay", "legend")), "overlay")
    found = search(Path(save_dir), f"{FOLDERS[word]}/**", LeftOut())
    above = 1 + (word in _BY_SCALE)  # folders
    there = {PurePath(*path.relative_to(save_dir).parts[above:]) for path in found if path.is_file()}
    planned = {PurePath(file.overlay_name if word == "overlay" else file.label_name) for file in files}
    if there:
        yield (
            f"{save_dir} holds results of an earlier run: those of {_counted(len(there & planned))} will be replaced, "
            f"those of {_counted(len(there - planned), 'other image')} stay"
        )


def _counted(number: int, what: str = "image") -> str:
    return f"{number} {what}{'s' * (number != 1)}"


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
        found = {
            "confidence": {} if self.confidence is None else {"confidence": self.confidence},
            "attention": by_scale(self.attention),
            "decided": by_scale(self.decided),
        }
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
        pictures = {}
        for word, maps in found.heat_maps(self.saved).items():
            for name, values in maps.items():
                pictures[f"{FOLDERS[word]}/{name}" if word in _BY_SCALE else FOLDERS[word]] = heat(values)
        if "scales" in self.saved:
            rows = self._scales(found)
            pictures[SCALES] = sheet(rows, [self._key(found, numbers, sheet_width(rows))])
        if "sheet" in self.saved:
            rows, words = self._panels(image, found), ", ".join(found.heat_maps(self.saved))
            foot = [self._key(found, numbers, sheet_width(rows)), *[heat_legend(words)] * bool(words)]
            pictures[SHEETS] = sheet(rows, foot)
        return pictures

    def _scales(self, found: Prediction) -> Rows:
        """What each scale says alone, beside all together."""
        scales = [(name.replace("_", " "), self._colored(label)) for name, label in by_scale(found.scales).items()]
        return [[*scales, ("all together", self._colored(found.label))]]

    def _panels(self, image: np.ndarray, found: Prediction) -> Rows:
        """Image, prediction, overlay and confidence; below them whatever else there is of every scale."""
        shrunk = partial(cv2.resize, dsize=panel_size(*found.label.shape), interpolation=cv2.INTER_AREA)
        over = highlight(shrunk(image), _panel(found.label), self._colors, self.opacity, plain=self.plain)
        first = [("image", shrunk(image)), ("prediction", self._colored(found.label)), ("overlay", over)]
        rows = {
            word: [
                (name.replace("scale_", f"{word} "), heat(shrunk(np.asarray(values, np.float32))))
                for name, values in maps.items()
            ]
            for word, maps in found.heat_maps(self.saved).items()
        }
        first += rows.pop("confidence", [])
        return [first, *rows.values(), *[self._scales(found)[0][:-1]] * bool(found.scales)]

    @property
    def _colors(self) -> Sequence[int]:
        return self.own_colors or self.colors

    def _colored(self, label: np.ndarray) -> np.ndarray:
        return color_table(self._colors)[_panel(label)]

    def _key(self, found: Prediction, numbers: Optional[Iterable[int]], width: int) -> np.ndarray:
        """The legend of these classes, or of those that are there."""
        if numbers is None:
            labels = (found.label, *found.scales.values())
            numbers = np.flatnonzero(np.sum([np.bincount(label.ravel(), minlength=256) for label in labels], axis=0))
        names = dict(enumerate(self.names)) | dict.fromkeys(range(len(self.names), 256), "unknown")
        shown = [int(number) for number in numbers]
        return legend([names[number] for number in shown], color_table(self._colors)[shown].tolist(), width)


def by_scale(maps: Mapping[float, np.ndarray]) -> dict[str, np.ndarray]:
    """The same by names: scale_0.5, ..."""
    return {f"scale_{scale:g}": values for scale, values in maps.items()}


def _panel(label: np.ndarray) -> np.ndarray:
    """A label map at the size of its panels."""
    return cv2.resize(label, panel_size(*label.shape), interpolation=cv2.INTER_NEAREST)


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
    for index in watched(mine, "image", len(mine), shown=progress and ranks.is_main()):
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
