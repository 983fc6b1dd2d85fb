# SPDX-License-Identifier: Apache-2.0
"""Making images of train ids, many at a time: what the conversion tools share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from hmsa.datasets.cityscapes import LABEL_ID_TO_TRAIN_ID, LABEL_IDS
from hmsa.datasets.find import search
from hmsa.datasets.images import check_size, read_bytes, read_label, strange_values
from hmsa.errors import DataError
from hmsa.system.files import write_atomically
from hmsa.visualize import palette, pseudo_color

_LABEL_IDS, _POLYGONS, _TRAIN_IDS = (
    f"_gtFine_{ending}" for ending in ("labelIds.png", "polygons.json", "labelTrainIds.png")
)
_FARTHEST = 10**6  # pixels


class Job(NamedTuple):
    """A label and the image of train ids to make of it."""

    source: Path
    target: Path


def fine_jobs(root: Path) -> list[Job]:
    """gtFine/<split>/<city>/X_gtFine_labelIds.png (without it, _polygons.json) -> labelTrainIds.png."""
    folder = root / "gtFine"
    sources = {}
    for ending in (_POLYGONS, _LABEL_IDS):  # the later replaces the earlier
        for source in search(folder, f"*/*/*{ending}") if folder.is_dir() else ():
            sources[source.with_name(source.name[: -len(ending)] + _TRAIN_IDS)] = source
    if not sources:
        raise DataError(
            f"{folder} should hold labels <split>/<city>/*{_LABEL_IDS} or *{_POLYGONS}, but it holds none: "
            "give the folder of the data set (data/README.md shows what goes where)"
        )
    return [Job(source, target) for target, source in sorted(sources.items())]


def coarse_jobs(root: Path) -> list[Job]:
    """refinement_final/train_extra/<city>/X -> convert_autolabelled/<city>/X, without folders named tmp."""
    folder = root / "refinement_final" / "train_extra"
    found = search(folder, "**/*_leftImg8bit.png") if folder.is_dir() else []
    names = (path.relative_to(folder) for path in found)
    jobs = [Job(folder / name, root / "convert_autolabelled" / name) for name in names if "tmp" not in name.parts]
    if not jobs:
        raise DataError(
            f"{folder} should hold auto-labels <city>/*_leftImg8bit.png, but it holds none: give the folder "
            "that refinement_final lies in (data/README.md shows what goes where)"
        )
    return sorted(jobs)


def train_ids(source: Path) -> np.ndarray:
    """uint8 [H, W] of train ids from an image of label ids or, ending in .json, from polygons."""
    if source.suffix == ".json":
        return _train_ids_of_polygons(source)
    label_ids = read_label(source)
    strange = strange_values(label_ids, LABEL_IDS)
    if strange:
        raise DataError(f"{source} should hold Cityscapes' label ids, but it holds {strange}: download it again")
    return cv2.LUT(label_ids.astype(np.uint8, copy=False), LABEL_ID_TO_TRAIN_ID)


def _train_ids_of_polygons(source: Path) -> np.ndarray:
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.helpers.labels import name2label
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    text = read_bytes(source)
    try:
        annotation = Annotation()
        annotation.fromJsonText(text.decode("utf-8-sig"))
        check_size(annotation.imgWidth, annotation.imgHeight)
        for thing in annotation.objects:
            if thing.deleted:
                continue
            if not {thing.label, thing.label.removesuffix("group")} & name2label.keys():
                raise ValueError(f"label {thing.label!r} is unknown")  # createLabelImage would end the program
            if not all(abs(side) <= _FARTHEST for corner in thing.polygon for side in corner):
                raise ValueError(f"a corner of label {thing.label!r} lies too far outside")  # drawn somewhere else
        return np.asarray(createLabelImage(annotation, "trainIds"))
    except MemoryError:
        raise
    except Exception as error:  # the package takes the shape of the file for granted
        raise DataError(
            f"{source} should hold Cityscapes' polygons, but they cannot be drawn ({error}): download it again"
        ) from error


def write_label(path: Path, label: np.ndarray, *, colored: bool) -> None:
    """Write a label uint8 [H, W] as PNG, whole or not at all: grey, or `colored` by PaddleSeg's palette."""
    image = pseudo_color(label, palette(256)) if colored else Image.fromarray(label)
    write_atomically(path, lambda file: image.save(file, "PNG", compress_level=3))


def convert_all(jobs: Iterable[Job], convert: Callable[[Job], None], *, num_workers: int) -> str:
    """Run `convert` over the jobs in threads, leaving out those done before; returns a summary.

    A job is done when its target exists and is not older than its source: targets are written whole, so an
    interrupted run may simply be started again. DataError names every job that failed, at the end.
    """
    jobs = list(jobs)
    open_jobs = [job for job in jobs if not _is_done(job)]
    failures = []
    executor = ThreadPoolExecutor(max(num_workers, 1))
    try:
        futures = [executor.submit(convert, job) for job in open_jobs]
        for future in tqdm(as_completed(futures), total=len(futures), unit="file", disable=not futures):
            error = future.exception()
            if isinstance(error, DataError):
                failures.append(str(error))
            elif error is not None:
                raise error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    summary = f"{len(open_jobs) - len(failures)} written, {len(jobs) - len(open_jobs)} there before"
    if failures:
        raise DataError(f"{summary}, {len(failures)} failed: " + "; ".join(sorted(failures)))
    return summary


def _is_done(job: Job) -> bool:
    try:
        return job.target.stat().st_mtime >= job.source.stat().st_mtime
    except OSError:  # one of them is missing or cannot be reached: converting says which
        return False
