# SPDX-License-Identifier: Apache-2.0
"""Label maps of any images, written as colour maps and overlays; no data set needed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.bands import displayed, read_bands
from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.find import COLOR_MAPS, LABEL_IDS, LEGENDS, OVERLAYS, SHEETS, ImageFile, LeftOut, search
from hmsa.datasets.transforms import Sample, Transform
from hmsa.distributed import ranks
from hmsa.errors import DataError, printable
from hmsa.former import names_of
from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, confidences, undo_transforms
from hmsa.models.hierarchical import Network
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import legend, overlay, pseudo_color, sheet

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


@dataclass(frozen=True)
class Results:
    """Where the results of a prediction go, and what is written there.

    Attributes:
        save_dir: gets `added_prediction/` (overlays) and `pseudo_color_prediction/`.
        colors: 256 colours, see `hmsa.visualize`.
        raw_values: for each class, what stands for it in label maps to write to `label_ids/` as well; None: none.
        opacity: of the colours in overlays, 0 to 1.
        names: of the classes, for sheets to write to `sheets/` as well; None: none.
    """

    save_dir: Path
    colors: Sequence[int]
    raw_values: Optional[Sequence[int]] = None
    opacity: float = 0.4
    names: Optional[Sequence[str]] = None

    def write(self, file: ImageFile, image: np.ndarray, label: np.ndarray) -> None:
        """Write what was predicted for an image, uint8 [H, W, 3] RGB: the class of every pixel, uint8 [H, W]."""
        maps = {COLOR_MAPS: pseudo_color(label, self.colors)}
        if self.raw_values is not None:
            maps[LABEL_IDS] = self.raw(label)
        if self.names is not None:
            maps[SHEETS] = Image.fromarray(self.sheet(image, label, np.unique(label)))
        for folder, made in maps.items():
            write_atomically(self.save_dir / folder / file.label_name, partial(made.save, format="PNG"))

        # Last, as not every format takes every size.
        encoded = _encoded(self.overlay(image, label), file.overlay_name.suffix)
        write_atomically(self.save_dir / OVERLAYS / file.overlay_name, encoded)

    def raw(self, label: np.ndarray) -> Image.Image:
        """The label map with `raw_values` in the place of class numbers."""
        assert self.raw_values is not None
        table = np.full(256, unknown_value(self.raw_values), np.uint8)
        table[: len(self.raw_values)] = self.raw_values
        return Image.fromarray(table[label])

    def write_legend(self, names: Sequence[str], *, unknown: bool) -> None:
        """Write names and colours of the classes, and of unknown pixels if there are any, to `legend/legend.png`."""
        shown = dict(enumerate(names)) | ({UNKNOWN: "unknown"} if unknown else {})
        colors = [self.colors[3 * number : 3 * number + 3] for number in shown]
        picture = Image.fromarray(legend(list(shown.values()), colors))
        write_atomically(self.save_dir / LEGENDS / "legend.png", partial(picture.save, format="PNG"))

    def overlay(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The image with the colours of its classes over it, uint8 [H, W, 3] RGB."""
        return overlay(image, label, self.colors, 1 - self.opacity)

    def sheet(self, image: np.ndarray, label: np.ndarray, numbers: Iterable[int]) -> np.ndarray:
        """Image, prediction and overlay above a legend of the classes `numbers`, uint8 [h, w, 3] RGB."""
        assert self.names is not None
        names = dict(enumerate(self.names))
        key = [(int(number), names.get(int(number), "unknown")) for number in numbers]
        return sheet(image, label, self.colors, key, self.opacity)


def unknown_value(raw_values: Sequence[int]) -> int:
    """What stands for unknown pixels beside these values: 255, or the largest number that is free."""
    return next(value for value in range(255, -1, -1) if value not in raw_values)


def predicted(
    network: Network, sample: Sample, size: Sequence[int], options: InferenceOptions, unknown_below: Optional[float]
) -> np.ndarray:
    """The class of every pixel of an image of `size` (height, width), uint8 [H, W].

    Args:
        sample: the image as the network takes it, see `SegmentationDataset`.
        unknown_below: the confidence below which a pixel is `UNKNOWN`.
    """
    scores = class_scores(network, as_tensor(sample["img"][np.newaxis]), options)
    scores = undo_transforms(scores, sample["trans_info"], size)
    label = best_classes(scores)
    if unknown_below is not None:
        label[confidences(scores, options) < unknown_below] = UNKNOWN
    return label


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
            results.write(file, displayed(image), predicted(network, sample, image.shape[:2], options, unknown_below))
        # Whatever is wrong with this image (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(printable(f"failed: {file.path}: {reason}"), file=sys.stderr)
    failed = ranks.all_reduce_sum(failed)
    return [file.path for file, count in zip(files, failed) if count]
