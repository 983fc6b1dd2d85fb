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
from PIL import Image
from tqdm import tqdm

from hmsa import distributed
from hmsa.datasets.dataset import SegmentationDataset
from hmsa.datasets.labels import TRAIN_ID_TO_LABEL_ID
from hmsa.datasets.pictures import read_image
from hmsa.engine.inference import InferenceOptions, Network, class_scores, restore
from hmsa.errors import DataError, printable
from hmsa.files import write_atomically
from hmsa.memory import as_tensor
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
    try:
        folder, paths = _found(given)
    except (OSError, ValueError) as error:  # ValueError: no pattern, as "**a" is none
        raise DataError(f"{image_path}: expected a path or a pattern, but: {error}; correct --image_path") from error
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
            logits = class_scores(network, as_tensor(sample["img"][np.newaxis]), options)
            label = restore(logits, sample["trans_info"])
            del logits
            _write(picture, label, Path(save_dir), colors, label_ids)
        # Whatever is wrong with this picture (too small, too large for the memory), the others can still be done.
        except Exception as error:
            failed[index] = 1
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            tqdm.write(printable(f"failed: {picture.path}: {reason}"), file=sys.stderr)
    failed = distributed.all_reduce_sum(failed)
    return [picture.path for picture, count in zip(pictures, failed) if count]


def _write(picture: Picture, label: np.ndarray, save_dir: Path, colors: Sequence[int], label_ids: bool) -> None:
    image = read_image(picture.path)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"the prediction is {label.shape[1]}x{label.shape[0]}, the picture {image.shape[1]}x{image.shape[0]}; "
            "the transforms of val_dataset may resize and pad, but not cut"
        )
    colored = _png(pseudo_color(label, colors))
    write_atomically(save_dir / "pseudo_color_prediction" / picture.label_name, colored)
    if label_ids:
        ids = Image.fromarray(TRAIN_ID_TO_LABEL_ID[label])
        write_atomically(save_dir / "label_ids" / picture.label_name, _png(ids))
    # Last, as not every format takes every size.
    encoded = _encoded(overlay(image, label, colors), picture.overlay_name.suffix)
    write_atomically(save_dir / "added_prediction" / picture.overlay_name, encoded)


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """The file content of a picture, uint8 [H, W, 3] RGB, in the format that `suffix` stands for."""
    try:
        done, content = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"an overlay of {size} pixels cannot be written as {suffix}: make a PNG of the picture")
    return content.tobytes()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _found(given: Path) -> tuple[Path, list[Path]]:
    """The folder that results are named from, and the pictures."""
    if given.is_dir():
        return given, _pictures_of(given.rglob("*"), given)
    if given.is_file():
        return given.parent, _listed(given) if given.suffix.lower() == ".txt" else [given]
    fixed = list(takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
    folder = Path(*fixed)
    return folder, _pictures_of(folder.glob(str(Path(*given.parts[len(fixed) :]))), folder)


def _pictures_of(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those that are pictures by their suffix and not hidden, sorted; what cannot be read is found out later."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )


def _listed(text_file: Path) -> list[Path]:
    """The pictures of a list, one a line; a label after it, as in the list of a data set, is passed over."""
    folder = text_file.parent
    try:
        lines = [line.strip() for line in text_file.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text_file}: expected the path of a picture on each line, but: {error}") from error
    return [folder / (line if _is_file(folder / line) else line.split()[0]) for line in lines if line]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a folder that may not be entered
        return False


def _named(paths: Iterable[Path], folder: Path) -> list[Picture]:
    """Name results by the path below `folder`; of pictures elsewhere, by their whole path."""
    root = _absolute(folder)
    overlays: set[PurePath] = set()
    labels: set[PurePath] = set()
    pictures = []
    for path in paths:
        absolute = _absolute(path)
        name = absolute.relative_to(root if root in absolute.parents else absolute.anchor)
        if not name.name:  # a list may hold "/"
            name = PurePath("root")
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
