# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmsa.datasets.convert import Job, coarse_jobs, convert_all, fine_jobs, train_ids, write_label
from hmsa.errors import DataError
from hmsa.visualize import palette

SQUARE = [[1, 1], [5, 1], [5, 4], [1, 4]]


def write_polygons(path: Path, *things: dict, size: tuple[int, int] = (6, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": list(things)}))
    return path


def touch(path: Path, when: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if when is not None:
        os.utime(path, (when, when))
    return path


# One file


def test_label_ids_become_train_ids(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[7, 8, 26], [0, 3, 255]], np.uint8)).save(path)
    assert train_ids(path).tolist() == [[0, 1, 13], [255, 255, 255]]


def test_polygons_become_train_ids(tmp_path):
    path = write_polygons(
        tmp_path / "a_polygons.json",
        {"label": "road", "polygon": [[0, 0], [7, 0], [7, 5], [0, 5]]},
        {"label": "cargroup", "polygon": SQUARE},
        {"label": "license plate", "polygon": SQUARE},
        {"label": "sky", "polygon": SQUARE, "deleted": 1},
        {"label": "dynamic", "polygon": [[2, 2], [3, 2], [3, 3], [2, 3]]},
    )
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:6] = 13
    expected[2:4, 2:4] = 255
    assert train_ids(path).tolist() == expected.tolist()


points = st.lists(st.tuples(st.integers(-4, 40), st.integers(-4, 30)), min_size=3, max_size=9)
labels = st.sampled_from(["road", "car", "persongroup", "license plate", "ego vehicle", "train", "unlabeled", "pole"])


@given(st.lists(st.tuples(labels, points), max_size=8))
@settings(max_examples=60, deadline=None)
def test_both_routes_agree(tmp_path_factory, things):
    """The label-id image that cityscapesscripts draws, looked up, equals the polygons drawn with train ids."""
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    folder = tmp_path_factory.mktemp("routes")
    objects = [{"label": label, "polygon": polygon} for label, polygon in things]
    polygons = write_polygons(folder / "a_polygons.json", *objects, size=(27, 36))
    json2labelImg(str(polygons), str(folder / "a_labelIds.png"), "ids")
    assert (train_ids(polygons) == train_ids(folder / "a_labelIds.png")).all()


def test_values_that_are_no_label_ids(tmp_path):
    Image.fromarray(np.array([[7, 77]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png should hold Cityscapes' label ids, but it holds 77:"):
        train_ids(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be drawn"),
        ("[]", "cannot be drawn"),
        ('{"imgHeight": 2, "imgWidth": 2}', "'objects'"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "cow", "polygon": []}]}', "label 'cow' is unknown"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "car", "polygon": [[1, 1]]}]}', "cannot be drawn"),
        ('{"imgHeight": 99999, "imgWidth": 99999, "objects": []}', "its size is 99999x99999 pixels, expected 1 to"),
        ('{"imgHeight": -2, "imgWidth": 2, "objects": []}', "its size is 2x-2 pixels"),
        ('{"imgHeight": Infinity, "imgWidth": 2, "objects": []}', "cannot be drawn"),
        ("[" * 100000, "cannot be drawn"),
        (
            '{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "car", "polygon": [[0, 0], [1e12, 0], [1, 1]]}]}',
            "a corner of label 'car' lies too far outside",
        ),
        ("\udcff", "cannot be drawn"),
    ],
)
def test_polygons_that_cannot_be_drawn(tmp_path, content, reason):
    path = tmp_path / "a_polygons.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=rf"a_polygons\.json .*{reason}"):
        train_ids(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | labels,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "polygon"]), inner),
    max_leaves=12,
)
things = st.fixed_dictionaries(
    {"label": labels | anything, "polygon": st.lists(st.lists(anything, max_size=3)) | anything}
)


@given(
    height=st.integers(-2, 40) | anything,
    width=st.integers(-2, 40) | anything,
    objects=st.lists(things | anything, max_size=4) | anything,
)
@settings(max_examples=300, deadline=None)
def test_any_json_is_drawn_or_named(tmp_path_factory, height, width, objects):
    path = tmp_path_factory.mktemp("json") / "a_polygons.json"
    path.write_text(json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects}), encoding="utf-8")
    try:
        label = train_ids(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert label.shape == (int(height), int(width)) and set(np.unique(label)) <= {*range(19), 255}


@pytest.mark.parametrize("ending", ["labelIds.png", "polygons.json"])
def test_files_that_cannot_be_read(tmp_path, ending):
    folder = tmp_path / "gtFine" / "train" / "ulm"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(folder / "good_gtFine_labelIds.png")
    os.mkfifo(folder / f"pipe_gtFine_{ending}")
    (folder / f"dangling_gtFine_{ending}").symlink_to("nowhere")
    (folder / f"folder_gtFine_{ending}").mkdir()
    (folder / f"empty_gtFine_{ending}").touch()
    (folder / f"looping_gtFine_{ending}").symlink_to(f"looping_gtFine_{ending}")
    Image.fromarray(np.full((2, 2), 2**31 - 1, np.int32)).save(folder / f"deep_gtFine_{ending}", "TIFF")

    def convert(job: Job) -> None:
        write_label(job.target, train_ids(job.source), colored=False)

    with pytest.raises(DataError, match=r"^1 written, 0 there before, 6 failed: ") as found:
        convert_all(fine_jobs(tmp_path), convert, num_workers=2)
    for name in ("pipe", "dangling", "folder", "empty", "looping", "deep"):
        assert str(found.value).count(str(folder / name)) == 1
    assert [path.name for path in folder.glob("*TrainIds.png")] == ["good_gtFine_labelTrainIds.png"]


@pytest.mark.parametrize(("colored", "mode"), [(False, "L"), (True, "P")])
def test_a_label_is_written_as_indices(tmp_path, colored, mode):
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_label(tmp_path / "sub" / "a.png", label, colored=colored)
    picture = Image.open(tmp_path / "sub" / "a.png")
    assert picture.mode == mode
    assert (np.asarray(picture) == label).all()
    assert not colored or picture.getpalette() == palette(256)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


# Which files


def test_fine_jobs_prefer_label_ids(tmp_path):
    folder = tmp_path / "gtFine" / "train" / "ulm"
    for name in ("a_gtFine_labelIds.png", "a_gtFine_polygons.json", "b_gtFine_polygons.json", "b_gtFine_color.png"):
        touch(folder / name)
    assert fine_jobs(tmp_path) == [
        Job(folder / "a_gtFine_labelIds.png", folder / "a_gtFine_labelTrainIds.png"),
        Job(folder / "b_gtFine_polygons.json", folder / "b_gtFine_labelTrainIds.png"),
    ]


def test_coarse_jobs_leave_out_folders_named_tmp(tmp_path):
    root = tmp_path / "tmp"  # only below the data set does the name mean anything
    folder = root / "refinement_final" / "train_extra"
    kept = touch(folder / "ulm" / "a_leftImg8bit.png")
    for name in ("tmp/a_leftImg8bit.png", "ulm/tmp/b_leftImg8bit.png", "tmp/ulm/c_leftImg8bit.png", "ulm/notes.txt"):
        touch(folder / name)
    assert coarse_jobs(root) == [Job(kept, root / "convert_autolabelled" / "ulm" / "a_leftImg8bit.png")]


@pytest.mark.parametrize("jobs", [fine_jobs, coarse_jobs])
def test_nothing_to_convert(tmp_path, jobs):
    with pytest.raises(DataError, match="but it holds none: give the folder"):
        jobs(tmp_path)


# Many files


def jobs_in(folder: Path, count: int) -> list[Job]:
    return [Job(touch(folder / f"{i}.in", when=1000), folder / f"{i}.out") for i in range(count)]


def test_what_is_done_is_left_out(tmp_path):
    jobs = jobs_in(tmp_path, 5)
    touch(jobs[1].target, when=1000)  # as old as its source: done
    touch(jobs[3].target, when=999)  # its source has changed since
    seen: list[Job] = []
    assert convert_all(jobs, seen.append, num_workers=2) == "4 written, 1 there before"
    assert sorted(seen) == [jobs[0], *jobs[2:]]


def test_failures_are_named_after_the_others_are_done(tmp_path):
    jobs = jobs_in(tmp_path, 6)

    def convert(job: Job) -> None:
        if job.source.name in ("1.in", "4.in"):
            raise DataError(f"{job.source.name} is damaged")
        touch(job.target)

    with pytest.raises(DataError, match=r"4 written, 0 there before, 2 failed: 1\.in is damaged; 4\.in is damaged"):
        convert_all(jobs, convert, num_workers=2)
    assert sum(job.target.exists() for job in jobs) == 4
    with pytest.raises(DataError, match="0 written, 4 there before, 2 failed"):
        convert_all(jobs, convert, num_workers=2)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_stops_the_rest(tmp_path, stop):
    started = []

    def convert(job: Job) -> None:
        started.append(job)
        if len(started) == 3:
            raise stop
        threading.Event().wait(0.005)

    with pytest.raises(stop):
        convert_all(jobs_in(tmp_path, 500), convert, num_workers=1)
    assert len(started) < 500
