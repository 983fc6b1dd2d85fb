# SPDX-License-Identifier: Apache-2.0
"""Label maps of any images, written as colour maps and overlays; no data set needed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.classes import Classes
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.find import COLOR_MAPS, LABEL_IDS, OVERLAYS, ImageFile, LeftOut, search
from hmsa.datasets.find import find_images as find_images
from hmsa.datasets.images import read_image
from hmsa.datasets.transforms import Transform
from hmsa.distributed import ranks
from hmsa.errors import DataError, printable
from hmsa.former import names_of
from hmsa.inference.averaging import InferenceOptions, best_classes, class_scores, undo_transforms
from hmsa.models.hierarchical import Network
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import overlay, pseudo_color

__getattr__ = names_of(__name__)


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


def predict(
    network: Network,
    files: Sequence[ImageFile],
    *,
    transforms: Sequence[Transform],
    options: InferenceOptions,
    save_dir: str | Path,
    colors: Sequence[int],
    raw_values: Optional[Sequence[int]] = None,
    max_image_pixels: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Predict images and write `added_prediction/` (overlays) and `pseudo_color_prediction/` below `save_dir`.

    Every rank takes the images rank, rank + world size, ...; all ranks must call this. An image that fails is
    reported on stderr and does not stop the others.

    Args:
        network: images [N, 3, H, W] -> logits [N, K, H, W].
        transforms: what turns an image, uint8 RGB, into the network's input.
        colors: 256 colours, see `hmsa.visualize`.
        raw_values: for each class, what stands for it in label maps to write to `label_ids/` as well; None: none.
        max_image_pixels: above which an image is refused; None is Pillow's limit.
        progress: whether rank 0 shows a bar.

    Returns:
        The images that failed on any rank.
    """
    # Only its way of loading an image is used.
    loader = SegmentationDataset(
        pairs=[(str(file.path), None) for file in files],
        classes=Classes.numbered(256),
        training=False,
        transforms=transforms,
        max_image_pixels=max_image_pixels,
    )
    mine = range(ranks.rank(), len(files), ranks.world_size())
    failed = np.zeros(len(files), np.int64)
    for index in tqdm(mine, unit="image", disable=not (progress and ranks.is_main())):
        file = files[index]
        try:
            sample = loader[index]
            scores = class_scores(network, as_tensor(sample["img"][np.newaxis]), options)
            scores = undo_transforms(scores, sample["trans_info"])
            label = best_classes(scores)
            del scores
            image = read_image(file.path, max_image_pixels)
            _write(file, image, label, Path(save_dir), colors, raw_values)
        # Whatever is wrong with this image (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(printable(f"failed: {file.path}: {reason}"), file=sys.stderr)
    failed = ranks.all_reduce_sum(failed)
    return [file.path for file, count in zip(files, failed) if count]


def _write(
    file: ImageFile,
    image: np.ndarray,
    label: np.ndarray,
    save_dir: Path,
    colors: Sequence[int],
    raw_values: Optional[Sequence[int]],
) -> None:
    if image.shape[:2] != label.shape:
        raise DataError(
            f"the prediction is {label.shape[1]}x{label.shape[0]}, the image {image.shape[1]}x{image.shape[0]}; "
            "the transforms of val_dataset may resize and pad, but not cut"
        )
    colored = _png(pseudo_color(label, colors))
    write_atomically(save_dir / COLOR_MAPS / file.label_name, colored)
    if raw_values is not None:
        raw = Image.fromarray(np.array(raw_values, np.uint8)[label])
        write_atomically(save_dir / LABEL_IDS / file.label_name, _png(raw))
    # Last, as not every format takes every size.
    encoded = _encoded(overlay(image, label, colors), file.overlay_name.suffix)
    write_atomically(save_dir / OVERLAYS / file.overlay_name, encoded)


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


def _png(file: Image.Image) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer, "PNG")
    return buffer.getvalue()
