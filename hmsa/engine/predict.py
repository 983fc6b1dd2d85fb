# SPDX-License-Identifier: Apache-2.0
"""Label maps of any images, written as colour maps and overlays; no data set needed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.cityscapes import TRAIN_ID_TO_LABEL_ID
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.find import COLOR_MAPS, LABEL_IDS, OVERLAYS, LeftOut, Picture, search
from hmsa.datasets.find import find_pictures as find_pictures
from hmsa.datasets.images import read_image
from hmsa.datasets.transforms import Transform
from hmsa.distributed import ranks
from hmsa.errors import DataError, printable
from hmsa.inference.averaging import InferenceOptions, class_scores, restore
from hmsa.models.hierarchical import Network
from hmsa.system.device import as_tensor
from hmsa.system.files import write_atomically
from hmsa.visualize import overlay, pseudo_color


def notices(pictures: Sequence[Picture], left_out: LeftOut, save_dir: str | Path) -> Iterator[str]:
    """What to tell before predicting: what was left out, which results have other names, which replace earlier ones."""
    yield printable(f"found {_counted(len(pictures))}" + f"; {left_out}" * bool(str(left_out)))

    renamed = [p for p in pictures if p.label_name.name != p.path.with_suffix(".png").name]
    if renamed:
        names = ", ".join(f"{p.path.name} as {p.label_name.name}" for p in renamed[:5])
        yield printable(f"results of {_counted(len(renamed))} have longer names, as others have theirs: {names}")

    there = {path for path in search(Path(save_dir), f"{COLOR_MAPS}/**", LeftOut()) if path.is_file()}
    planned = {Path(save_dir, COLOR_MAPS, picture.label_name) for picture in pictures}
    if there:
        yield (
            f"{save_dir} holds results of an earlier run: those of {_counted(len(there & planned))} will be replaced, "
            f"those of {_counted(len(there - planned), 'other image')} stay"
        )


def _counted(number: int, what: str = "image") -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def predict(
    network: Network,
    pictures: Sequence[Picture],
    *,
    transforms: Sequence[Transform],
    options: InferenceOptions,
    save_dir: str | Path,
    colors: Sequence[int],
    label_ids: bool = False,
    max_image_pixels: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Predict pictures and write `added_prediction/` (overlays) and `pseudo_color_prediction/` below `save_dir`.

    Every rank takes the pictures rank, rank + world size, ...; all ranks must call this. A picture that fails is
    reported on stderr and does not stop the others.

    Args:
        network: pictures [N, 3, H, W] -> logits [N, K, H, W].
        transforms: what turns a picture, uint8 RGB, into the network's input.
        colors: 256 colours, see `hmsa.visualize`.
        label_ids: whether to write Cityscapes label ids to `label_ids/` as well.
        max_image_pixels: above which an image is refused; None is Pillow's limit.
        progress: whether rank 0 shows a bar.

    Returns:
        The pictures that failed on any rank.
    """
    # Only its way of loading a picture is used.
    loader = SegmentationDataset(
        pairs=[(str(picture.path), None) for picture in pictures],
        num_classes=256,
        shuffle=False,
        label_transforms=False,
        transforms=transforms,
        max_image_pixels=max_image_pixels,
    )
    mine = range(ranks.rank(), len(pictures), ranks.world_size())
    failed = np.zeros(len(pictures), np.int64)
    for index in tqdm(mine, unit="picture", disable=not (progress and ranks.is_main())):
        picture = pictures[index]
        try:
            sample = loader[index]
            logits = class_scores(network, as_tensor(sample["img"][np.newaxis]), options)
            label = restore(logits, sample["trans_info"])
            del logits
            image = read_image(picture.path, max_image_pixels)
            _write(picture, image, label, Path(save_dir), colors, label_ids)
        # Whatever is wrong with this picture (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(printable(f"failed: {picture.path}: {reason}"), file=sys.stderr)
    failed = ranks.all_reduce_sum(failed)
    return [picture.path for picture, count in zip(pictures, failed) if count]


def _write(
    picture: Picture, image: np.ndarray, label: np.ndarray, save_dir: Path, colors: Sequence[int], label_ids: bool
) -> None:
    if image.shape[:2] != label.shape:
        raise DataError(
            f"the prediction is {label.shape[1]}x{label.shape[0]}, the image {image.shape[1]}x{image.shape[0]}; "
            "the transforms of val_dataset may resize and pad, but not cut"
        )
    colored = _png(pseudo_color(label, colors))
    write_atomically(save_dir / COLOR_MAPS / picture.label_name, colored)
    if label_ids:
        ids = Image.fromarray(TRAIN_ID_TO_LABEL_ID[label])
        write_atomically(save_dir / LABEL_IDS / picture.label_name, _png(ids))
    # Last, as not every format takes every size.
    encoded = _encoded(overlay(image, label, colors), picture.overlay_name.suffix)
    write_atomically(save_dir / OVERLAYS / picture.overlay_name, encoded)


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """The file content of a picture, uint8 [H, W, 3] RGB, in the format that `suffix` stands for."""
    try:
        done, content = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"an overlay of {size} pixels cannot be written as {suffix}: make a PNG of the image")
    return content.tobytes()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
