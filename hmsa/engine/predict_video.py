# SPDX-License-Identifier: Apache-2.0
"""Predictions of a video, frame by frame, as a video of overlays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Optional, Union

import numpy as np
from tqdm import tqdm

from hmsa.datasets.dataset import transformed_image
from hmsa.datasets.find import LABEL_IDS, OVERLAYS, SHEETS
from hmsa.datasets.transforms import Transform, fused
from hmsa.engine.predict import UNKNOWN, Results, predicted
from hmsa.errors import DataError, printable
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.video import Video, VideoWriter, result_name
from hmsa.models.hierarchical import Network
from hmsa.system.files import write_atomically


def video_notices(video: Video, save_dir: Union[str, Path]) -> Iterator[str]:
    """What to tell before predicting: what was found, what gets lost, what is replaced."""
    frames = f"{video.frames} frames" if video.frames else "an unknown number of frames"
    yield f"found a video of {frames} of {video.size[1]}x{video.size[0]}, {video.rate:g} a second; sound is not kept"
    earlier = Path(save_dir, OVERLAYS, result_name(video.path))
    if earlier.exists():
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
    """Predict every frame and write the overlays as a video; where `results` have them, also the sheets as a video, and
    the label map of every frame (`label_ids/NAME/000000.png`, ...). Colour maps are not: compression changes colours.

    Args:
        network: images [N, 3, H, W] -> logits [N, K, H, W].
        transforms, unknown_below, progress: see `hmsa.engine.predict`.

    Returns:
        How many frames there were.

    Raises:
        DataError: the video is damaged; what could be read of it is written.
    """
    name = result_name(video.path)
    numbers = [*range(len(results.names or ())), *[UNKNOWN] * (unknown_below is not None)]
    transforms = fused(transforms)
    damages: list[DataError] = []
    count = 0

    with contextlib.ExitStack() as stack:
        overlays = stack.enter_context(VideoWriter(results.save_dir / OVERLAYS / name, video.rate))
        sheets = None
        if results.names is not None:
            sheets = stack.enter_context(VideoWriter(results.save_dir / SHEETS / name, video.rate))

        frames = tqdm(_readable(video, damages), total=video.frames or None, unit="frame", disable=not progress)
        for count, frame in enumerate(frames, start=1):
            place = f"{video.path}, frame {count - 1}"
            sample = transformed_image(frame, transforms, place)
            label = predicted(network, sample, frame.shape[:2], options, unknown_below)

            overlays.write(results.overlay(frame, label))
            if sheets is not None:
                sheets.write(results.sheet(frame, label, numbers))
            if results.raw_values is not None:
                path = results.save_dir / LABEL_IDS / name / f"{count - 1:06}.png"
                write_atomically(path, partial(results.raw(label).save, format="PNG"))

    if damages:
        raise DataError(f"{damages[0]}; the results of these {count} are in {results.save_dir}")
    return count


def _readable(video: Video, damages: list[DataError]) -> Iterator[np.ndarray]:
    """The frames before the first damage, which is noted."""
    try:
        yield from video
    except DataError as error:
        damages.append(error)
