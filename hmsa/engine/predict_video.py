# SPDX-License-Identifier: Apache-2.0
"""Predictions of a video, frame by frame, as videos of overlays and what else there is to see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Optional

import numpy as np

from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.find import COLOR_MAPS, LABEL_IDS, OVERLAYS
from hmsa.datasets.transforms import Transform, fused
from hmsa.engine.predict import FOLDERS, UNKNOWN, Prediction, Results, predicted
from hmsa.errors import DataError, printable
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.video import Video, VideoWriter, result_name
from hmsa.models.hierarchical import Network
from hmsa.report.console import watched
from hmsa.system.files import write_atomically
from hmsa.visualize import color_table


def video_notices(video: Video, results: Results) -> Iterator[str]:
    """What to tell before predicting: what was found, what gets lost, what is replaced."""
    frames = f"{video.frames} frames" if video.frames else "an unknown number of frames"
    yield f"found a video of {frames} of {video.size[1]}x{video.size[0]}, {video.rate:g} a second; sound is not kept"
    for word in FOLDERS:
        earlier = results.save_dir / FOLDERS[word] / result_name(video.path)
        if word in results.saved and earlier.is_file():
            yield printable(f"{earlier} of an earlier run will be replaced")


def predict_video(
    network: Network,
    video: Video,
    results: Results,
    *,
    transforms: Sequence[Transform],
    options: InferenceOptions,
    unknown_below: Optional[float] = None,
    progress: bool = True,
) -> int:
    """Predict every frame, and write a video of each of `results.saved`; but of "id" the label map of every frame
    (`label_ids/NAME/000000.png`, ...), as compression changes numbers.

    Args:
        network: images [N, 3, H, W] -> logits [N, K, H, W].
        transforms, unknown_below, progress: see `hmsa.engine.predict`.

    Returns:
        How many frames there were.

    Raises:
        DataError: the video is damaged; what could be read of it is written.
    """
    name = result_name(video.path)
    numbers = [*range(len(results.names)), *[UNKNOWN] * (unknown_below is not None)]
    asked = {"unknown_below": unknown_below, "wanted": results.saved}
    transforms = fused(transforms)
    damages: list[DataError] = []
    count = 0

    with contextlib.ExitStack() as stack:
        writers: dict[str, VideoWriter] = {}  # by folder
        frames = watched(_readable(video, damages), "frame", video.frames or None, shown=progress)
        for count, frame in enumerate(frames, start=1):
            place = f"{video.path}, frame {count - 1}"
            sample = transformed_image(frame, transforms, place)
            found = predicted(network, sample, frame.shape[:2], options, **asked)

            for folder, picture in _pictures(results, frame, found, numbers).items():
                if folder not in writers:
                    writers[folder] = stack.enter_context(VideoWriter(results.save_dir / folder / name, video.rate))
                writers[folder].write(picture)
            if "id" in results.saved:
                path = results.save_dir / LABEL_IDS / name / f"{count - 1:06}.png"
                write_atomically(path, partial(results.raw(found.label).save, format="PNG"))

    if damages:
        raise DataError(f"{damages[0]}; the results of these {count} are in {results.save_dir}")
    return count


def _pictures(results: Results, frame: np.ndarray, found: Prediction, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Folder -> what a frame gives to its video, uint8 [h, w, 3] RGB."""
    pictures = results.pictures(frame, found, numbers)
    if "overlay" in results.saved:
        pictures[OVERLAYS] = results.overlay(frame, found.label)
    if "color" in results.saved:
        pictures[COLOR_MAPS] = color_table(results.colors)[found.label]
    return pictures


def _readable(video: Video, damages: list[DataError]) -> Iterator[np.ndarray]:
    """The frames before the first damage, which is noted."""
    try:
        yield from video
    except DataError as error:
        damages.append(error)
