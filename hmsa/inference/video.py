# SPDX-License-Identifier: Apache-2.0
"""Videos, by OpenCV: frames in and frames out. Sound is not kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Union

import cv2
import numpy as np

from hmsa.datasets.find import VIDEO_SUFFIXES
from hmsa.datasets.images import check_size
from hmsa.errors import DataError

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""Of those that are written: MPEG-4 and Motion JPEG, which every OpenCV has."""

_USUAL_RATE = 25.0

# What a file of these formats starts with, and where. FFmpeg would also take lists of other files and addresses.
_STARTS = {
    4: (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"),
    0: (b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3"),
}


def is_video(path: Union[str, Path]) -> bool:
    """Whether it is a file that is called a video."""
    path = Path(path)
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def result_name(path: Path) -> str:
    """What a video made from this one is called: .avi stays, all others become .mp4."""
    return path.name if path.suffix.lower() in CODECS else f"{path.name}.mp4"


@dataclass(frozen=True)
class Video:
    """What a file says of its video. DataError if it cannot be read."""

    path: Path
    size: tuple[int, int]  # (height, width) of the first frame, upright
    rate: float  # frames a second
    frames: int  # some formats tell only about how many; 0: not told

    @classmethod
    def open(cls, path: Union[str, Path], max_pixels: Optional[int] = None) -> Video:
        """Look at the first frame; `max_pixels` is the limit for one."""
        path = Path(path)
        with _capturing(path, max_pixels) as capture:
            done, frame = capture.read()
            if not done:
                raise DataError(f"{path} should be a video, but: not one frame can be read; replace or remove it")
            rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = np.isfinite(rate) and 0 < rate <= 1000
        height, width = frame.shape[:2]
        return cls(path, (height, width), float(rate) if known else _USUAL_RATE, max(int(count), 0))

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, uint8 [H, W, 3] RGB, upright.

        Raises:
            DataError: after the last that can be read, if more than a few are missing.
        """
        found = 0
        with _capturing(self.path, None) as capture:
            while True:
                done, frame = capture.read()
                if not done:
                    break
                if frame.shape[:2] != self.size:
                    raise DataError(
                        f"{self.path} should have frames of one size, but number {found} is "
                        f"{frame.shape[1]}x{frame.shape[0]}; cut it there"
                    )
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                found += 1
        # Where the number is only worked out from time and rate, it is off by one or two.
        if found < self.frames - max(2, self.frames // 100):
            raise DataError(
                f"{self.path} should have {self.frames} frames, as it says, but: {found} of them can be read; it is "
                "damaged or was cut off, copy it again"
            )


@contextlib.contextmanager
def _capturing(path: Path, max_pixels: Optional[int]) -> Iterator[cv2.VideoCapture]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path} should be a readable file, but: {error.strerror}; replace or remove it") from error
    if not any(start[place:].startswith(starts) for place, starts in _STARTS.items()):
        raise DataError(
            f"{path} should be a video ({', '.join(VIDEO_SUFFIXES)}), but does not start as one; replace it"
        )

    # With the whole path, as FFmpeg takes "name:..." for an address, and OpenCV's other readers "%d" for a series.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise DataError(
                f"{path} should be a video, but: it is damaged, cut off, or of a codec that OpenCV lacks; copy it "
                "again, or convert it to .mp4"
            )
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if max_pixels is not None:
            try:
                check_size(width, height, max_pixels)
            except ValueError as error:
                raise DataError(f"{path} should be a video that can be read, but: {error}; make it smaller") from error
        yield capture
    finally:
        capture.release()


class VideoWriter:
    """Writes a video that appears when it is whole; in a `with`. An error inside keeps nothing.

    Sides are made even, which the codecs want, by doubling the last row or column.

    Args:
        path: ends in .mp4 or .avi; an earlier file is replaced, parent folders are made.
        rate: frames a second.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Union[str, Path], rate: float) -> None:
        self.path = Path(path)
        assert self.path.suffix.lower() in CODECS, path
        self.rate = rate
        self.frames = 0
        # With its own ending, by which FFmpeg knows the format.
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.partial{self.path.suffix}")
        self._writer: Any = None  # OpenCV's

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 [H, W, 3] RGB, of the size of the first."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._writer = self._opened(frame.shape[1], frame.shape[0])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _opened(self, width: int, height: int) -> Any:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); choose another place") from error
        codec = cv2.VideoWriter_fourcc(*CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._partial.absolute()), cv2.CAP_FFMPEG, codec, self.rate, (width, height))
        if not writer.isOpened():
            raise DataError(
                f"{self.path}: a video of {width}x{height} pixels at {self.rate:g} frames a second cannot be written "
                f"as {self.path.suffix}: make the frames smaller"
            )
        return writer

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if self._writer is None:
                return
            self._writer.release()
            if kind is None:
                self._publish()
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def _publish(self) -> None:
        # OpenCV does not tell a disk that is full.
        try:
            there = Video.open(self._partial).frames
        except DataError:
            there = 0
        if there < self.frames:
            raise DataError(
                f"{self.path}: {there} of {self.frames} frames could be written; is the disk full? Make room, or "
                "choose another place"
            )
        try:
            self._partial.replace(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); choose another place") from error
