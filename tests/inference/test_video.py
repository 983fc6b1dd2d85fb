# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from hmsa.datasets.find import VIDEO_SUFFIXES
from hmsa.errors import DataError
from hmsa.inference.video import CODECS, Video, VideoWriter, is_video, result_name


def frames(count, height=64, width=96):
    """A red image over which a green edge moves by 4 columns a frame."""
    for number in range(count):
        frame = np.full((height, width, 3), (250, 10, 20), np.uint8)
        frame[:, : 4 * number] = (0, 200, 0)
        yield frame


def write(path, count=12, rate=25.0, **size):
    with VideoWriter(path, rate) as writer:
        for frame in frames(count, **size):
            writer.write(frame)
    return path


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize(("height", "width", "rate"), [(64, 96, 25), (75, 129, 29.97), (128, 72, 0.5), (64, 64, 240)])
def test_frames_come_back(tmp_path, suffix, height, width, rate):
    path = write(tmp_path / "new ü" / f"video %03d{suffix}", rate=rate, height=height, width=width)
    assert [found.name for found in path.parent.iterdir()] == [path.name]

    video = Video.open(path)
    assert video.size == (height + height % 2, width + width % 2)
    assert video.rate == pytest.approx(rate, rel=1e-3)
    assert video.frames == 12
    found = list(video)
    assert len(found) == 12
    for ours, right in zip(found, frames(12, height, width)):
        assert ours.dtype == np.uint8
        assert np.abs(ours[:height, :width].astype(int) - right).mean() < 8


def test_names(tmp_path):
    for suffix in (*VIDEO_SUFFIXES, ".MP4"):
        (tmp_path / f"a{suffix}").touch()
        assert is_video(str(tmp_path / f"a{suffix}"))
    assert not is_video(tmp_path / "missing.mp4") and not is_video(__file__)
    assert [result_name(tmp_path / name) for name in ("a.mp4", "a.AVI", "a.mov")] == ["a.mp4", "a.AVI", "a.mov.mp4"]


@pytest.mark.parametrize("content", [b"", b"#EXTM3U\n#EXTINF:1\nhttp://nowhere/x\n", b"ffconcat version 1.0\n"])
def test_what_is_no_video(tmp_path, content):
    """A playlist would have FFmpeg read other files and addresses."""
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mp4 should be a video .* does not start as one"):
        Video.open(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="should be a readable file, but: No such file"):
        Video.open(tmp_path / "missing.mp4")


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_damaged_video(tmp_path, suffix, share):
    path = write(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match="should be a video, but: "):
        Video.open(path)


def test_a_video_that_was_cut_off_gives_what_it_has(tmp_path):
    path = write(tmp_path / "a.avi", count=60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    data = bytearray(data[: len(data) * 2 // 3])
    path.write_bytes(data)
    found = []
    with pytest.raises(DataError, match=r"a\.avi should have 60 frames, as it says, but: (\d+) of them can be read"):
        for frame in Video.open(path):
            found.append(frame)
    assert 20 < len(found) < 58


def test_large_frames_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"its size is 96x64 pixels, expected 1 to 1000 pixels in all; make it smaller"):
        Video.open(path, max_pixels=1000)


def test_nothing_is_left_of_a_video_that_is_not_whole(tmp_path):
    earlier = write(tmp_path / "a.mp4").read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 25) as writer:
        for frame in frames(3):
            writer.write(frame)
        raise KeyboardInterrupt
    assert (tmp_path / "a.mp4").read_bytes() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with VideoWriter(tmp_path / "b.mp4", 25):
        pass
    assert not (tmp_path / "b.mp4").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(.*\); choose another place"):
        write(tmp_path / "file" / "a.mp4")


def test_a_full_disk_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Video, "open", classmethod(lambda *_: Video(tmp_path, (1, 1), 25, 7)))
    with pytest.raises(DataError, match="7 of 12 frames could be written; is the disk full"):
        write(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []
