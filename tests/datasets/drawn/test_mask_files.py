# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from hmsa.datasets.classes import Classes
from hmsa.datasets.drawn.masks import (
    LeftOut,
    Notes,
    Task,
    image_size,
    images_below,
    inner_path,
    mask_name,
    report,
    write_masks,
)
from hmsa.errors import DataError

CLASSES = Classes(names=("a", "b"), colors=((0, 0, 0), (1, 2, 3)))
LABEL = np.array([[0, 1, 255]], np.uint8)


def tasks(count: int, label: np.ndarray = LABEL) -> list[Task]:
    return [Task(PurePath("sub", f"{i}.png"), f"{i}.json", lambda notes: label) for i in range(count)]


def run(jobs: list[Task], folder: Path, **options: bool):
    return write_masks(jobs, folder, CLASSES, num_workers=2, **options)


def test_masks_are_palette_images_in_the_classes_colors(tmp_path):
    result = run(tasks(1), tmp_path)
    assert (result.written, result.before, result.different, result.left_out) == (1, 0, [], [])
    image = Image.open(tmp_path / "sub/0.png")
    assert image.mode == "P" and np.asarray(image).tolist() == LABEL.tolist()
    palette = image.getpalette()
    assert palette[:6] == [0, 0, 0, 1, 2, 3] and palette[765:] == [224, 224, 192]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["0.png"]


def test_what_is_there_stays_unless_told(tmp_path):
    run(tasks(3), tmp_path)
    (tmp_path / "sub/1.png").write_bytes(b"damaged")
    Image.fromarray(LABEL * 0).save(tmp_path / "sub/2.png")
    before = (tmp_path / "sub/0.png").stat().st_mtime_ns
    result = run(tasks(4), tmp_path)
    assert (result.written, result.before) == (1, 1)
    assert [path.name for path in result.different] == ["1.png", "2.png"]
    assert (tmp_path / "sub/1.png").read_bytes() == b"damaged"
    result = run(tasks(4), tmp_path, overwrite=True)
    assert (result.written, result.before, result.different) == (2, 2, [])
    assert (tmp_path / "sub/0.png").stat().st_mtime_ns == before


def test_failures_and_notes_are_gathered(tmp_path):
    def fail(notes: Notes) -> np.ndarray:
        raise DataError("b.json should be something: correct it")

    def note(notes: Notes) -> None:
        notes.add("empty", "nothing there")

    jobs = [Task(PurePath("a.png"), "a.json", note), Task(PurePath("b.png"), "b.json", fail), *tasks(2)]
    result = run(jobs, tmp_path)
    assert result.written == 2 and not (tmp_path / "a.png").exists()
    assert result.left_out == [
        LeftOut("cannot be read", "b.json", "should be something: correct it"),
        LeftOut("empty", "a.json", "nothing there"),
    ]


def test_no_two_masks_have_one_name(tmp_path):
    first, second = tasks(1)[0], Task(PurePath("SUB", "0.PNG"), "other.json", lambda notes: LABEL)
    result = run([first, second], tmp_path)
    assert result.written == 1
    assert [(note.kind, note.file) for note in result.left_out] == [("name taken", "other.json")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_was_stopped_may_be_started_again(tmp_path, stop):
    started = []

    def slow(notes: Notes) -> np.ndarray:
        started.append(1)
        if len(started) == 5:
            raise stop
        threading.Event().wait(0.005)
        return LABEL

    jobs = [task._replace(draw=slow) for task in tasks(300)]
    with pytest.raises(stop):
        write_masks(jobs, tmp_path, CLASSES, num_workers=1)
    assert len(started) < 300
    written = len(list(tmp_path.rglob("*")))
    result = run(tasks(300), tmp_path)
    assert result.before == written - 1 and result.before + result.written == 300  # but for the folder


def test_the_size_of_an_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == ((3, 2), (2, 3))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("pipe.png", "b.png", "gone.png"):
        with pytest.raises(DataError, match=f"{name} should be a readable image"):
            image_size(tmp_path / name)


def test_names_of_masks():
    assert mask_name(PurePath("a/b.c.JPG")) == PurePath("a/b.c.png")
    assert mask_name(PurePath("a/frame.0001")) == PurePath("a/frame.0001.png")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b.png", "a/b.png"),
        (".\\a\\b ä.png", "a/b ä.png"),
        ("../a.png", None),
        ("a/../../b.png", None),
        ("/etc/passwd", None),
        ("C:\\a.png", None),
        ("\\\\server\\a.png", None),
        ("a\0.png", None),
        ("", None),
        (".", None),
    ],
)
def test_paths_of_annotations_stay_inside(text, path):
    assert inner_path(text) == (PurePath(path) if path else None)


def test_images_below_a_folder(tmp_path):
    for name in ("a.JPG", "sub/b.png", "out/c.png", "d.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = images_below(tmp_path, but=[tmp_path / "out"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "sub/b.png"]


def test_images_below_nothing(tmp_path):
    with pytest.raises(DataError, match="gone should be a folder of images, but there is none"):
        images_below(tmp_path / "gone")


def test_the_report_shows_the_first_of_each_kind():
    items = [LeftOut("empty", f"{i % 2}.json", f"shape {i}") for i in range(5)] + [
        LeftOut("no image", "x.json", "none")
    ]
    assert report(items).splitlines() == [
        "empty: 5 in 2 files",
        "    0.json: shape 0",
        "    1.json: shape 1",
        "    0.json: shape 2",
        "    and 2 more",
        "no image: 1 in 1 file",
        "    x.json: none",
    ]
    assert report([]) == ""
