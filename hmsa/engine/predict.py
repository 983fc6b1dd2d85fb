# SPDX-License-Identifier: Apache-2.0
"""Label maps of any pictures, written as colour pictures and overlays; no data set needed."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

import cv2
import numpy as np
import paddle
from PIL import Image
from tqdm import tqdm

from hmsa import distributed
from hmsa.datasets.dataset import SegmentationDataset, read_image
from hmsa.datasets.labels import TRAIN_ID_TO_LABEL_ID
from hmsa.engine.inference import InferenceOptions, Network, class_scores, restore
from hmsa.errors import DataError
from hmsa.files import write_atomically
from hmsa.transforms import Transform
from hmsa.visualize import overlay, pseudo_color

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture to predict, and the relative paths its results are written under."""

    path: Path
    overlay_name: PurePath  # keeps the picture's own format where OpenCV can write it
    label_name: PurePath  # always .png


def find_pictures(image_path: str) -> list[Picture]:
    """The pictures that a file, a folder (with all below it), a .txt list or a glob pattern stands for.

    A line of a list starts with a path, relative to the list's folder. Results are named by the path below the
    folder (of the picture, the list, the pattern's part without wildcards); no two results have the same name.

    Raises:
        DataError: nothing found.
    """
    given = Path(image_path)
    if given.is_dir():
        folder, paths = given, _pictures_of(given.rglob("*"), given)
    elif given.is_file() and given.suffix.lower() == ".txt":
        folder, paths = given.parent, _listed(given)
    elif given.is_file():
        folder, paths = given.parent, [given]
    else:
        fixed = list(takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
        folder = Path(*fixed)
        paths = _pictures_of(folder.glob(str(Path(*given.parts[len(fixed) :]))), folder)
    if not paths:
        raise DataError(
            f"{image_path}: expected a picture, a folder of pictures, a .txt list or a glob pattern, found no "
            f"picture ({', '.join(SUFFIXES)}); correct --image_path"
        )
    return _named(dict.fromkeys(paths), folder)


def predict(
    network: Network,
    pictures: Sequence[Picture],
    *,
    transforms: Sequence[Transform],
    options: InferenceOptions,
    save_dir: str | Path,
    colors: Sequence[int],
    label_ids: bool = False,
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
    )
    mine = range(distributed.rank(), len(pictures), distributed.world_size())
    failed = np.zeros(len(pictures), np.int64)
    for index in tqdm(mine, unit="picture", disable=not (progress and distributed.is_main())):
        picture = pictures[index]
        try:
            sample = loader[index]
            logits = class_scores(network, paddle.to_tensor(sample["img"][np.newaxis]), options)
            label = restore(logits, sample["trans_info"])
            del logits
            _write(picture, label, Path(save_dir), colors, label_ids)
        # Whatever is wrong with this picture (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(f"failed: {picture.path}: {reason}", file=sys.stderr)
    failed = distributed.all_reduce_sum(failed)
    return [picture.path for picture, count in zip(pictures, failed) if count]


def _write(picture: Picture, label: np.ndarray, save_dir: Path, colors: Sequence[int], label_ids: bool) -> None:
    image = read_image(picture.path)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"the prediction is {label.shape[1]}x{label.shape[0]}, the picture {image.shape[1]}x{image.shape[0]}; "
            "the transforms of val_dataset may resize and pad, but not cut"
        )
    mixed = cv2.cvtColor(overlay(image, label, colors), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(picture.overlay_name.suffix, mixed)[1].tobytes()
    write_atomically(save_dir / "added_prediction" / picture.overlay_name, encoded)
    colored = _png(pseudo_color(label, colors))
    write_atomically(save_dir / "pseudo_color_prediction" / picture.label_name, colored)
    if label_ids:
        ids = Image.fromarray(TRAIN_ID_TO_LABEL_ID[label])
        write_atomically(save_dir / "label_ids" / picture.label_name, _png(ids))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures_of(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those that are pictures by their suffix and not hidden, sorted."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _listed(text_file: Path) -> list[Path]:
    """The pictures of a list, one a line; a label after it, as in the list of a data set, is passed over."""
    folder = text_file.parent
    try:
        lines = [line.strip() for line in text_file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text_file}: expected the path of a picture on each line, but: {error}") from error
    return [folder / (line if (folder / line).is_file() else line.split()[0]) for line in lines if line]


def _named(paths: Iterable[Path], folder: Path) -> list[Picture]:
    """Name results by the path below `folder`; of pictures elsewhere, by their whole path."""
    root = _absolute(folder)
    overlays: set[PurePath] = set()
    labels: set[PurePath] = set()
    pictures = []
    for path in paths:
        absolute = _absolute(path)
        name = absolute.relative_to(root if root in absolute.parents else absolute.anchor)
        as_png = name if name.suffix.lower() in SUFFIXES else name.with_name(name.name + ".png")
        pictures.append(Picture(path, _free(as_png, overlays), _free(name.with_suffix(".png"), labels)))
    return pictures


def _absolute(path: Path) -> Path:
    """From the root and without "..", links left as they are."""
    return Path(os.path.normpath(path.absolute()))


def _free(name: PurePath, taken: set[PurePath]) -> PurePath:
    """`name`, or with .png added until it is new: the second of a.jpg and a.png becomes a.png.png."""
    while name in taken:
        name = name.with_name(name.name + ".png")
    taken.add(name)
    return name
