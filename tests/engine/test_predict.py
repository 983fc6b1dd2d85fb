# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path, PurePath

import cv2
import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from hmsa import distributed
from hmsa.engine.inference import InferenceOptions
from hmsa.engine.predict import SUFFIXES, _named, find_pictures, predict
from hmsa.errors import DataError
from hmsa.visualize import color_palette, overlay

COLORS = color_palette()


def red_channel(image):
    """A network that says class r where the red channel is r, of 19 classes."""
    if min(image.shape[-2:]) < 2:
        raise ValueError("too small")
    return paddle.concat([-paddle.abs(image[:, :1] - k) for k in range(19)], axis=1)


def write_picture(path: Path, height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    """Write a lossless picture; returns it as RGB, its red channel holding classes."""
    image = np.random.default_rng(seed).integers(0, 19, (height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
    return image


def names(pictures, folder):
    return [picture.path.relative_to(folder).as_posix() for picture in pictures]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.jpeg", "sub/deep/d.png", "notes.md", ".hidden.png", ".cache/e.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def test_a_folder_is_searched_to_its_depths(folder):
    pictures = find_pictures(str(folder))
    assert names(pictures, folder) == ["a.JPG", "b.png", "sub/c.jpeg", "sub/deep/d.png"]
    assert [picture.overlay_name.as_posix() for picture in pictures] == names(pictures, folder)
    assert [picture.label_name.as_posix() for picture in pictures] == [
        "a.png", "b.png", "sub/c.png", "sub/deep/d.png",
    ]  # fmt: skip


def test_one_file(folder):
    (picture,) = find_pictures(str(folder / "sub" / "c.jpeg"))
    assert picture.overlay_name == PurePath("c.jpeg")


def test_globs(folder):
    pictures = find_pictures(str(folder / "**" / "*.png"))
    assert names(pictures, folder) == ["b.png", "sub/deep/d.png"]
    assert pictures[1].label_name == PurePath("sub/deep/d.png")
    (picture,) = find_pictures(str(folder / "sub" / "?.jpeg"))
    assert picture.label_name == PurePath("c.png")


def test_a_list_of_paths(folder, tmp_path, monkeypatch):
    outside = tmp_path / "out side" / "f.png"
    write_picture(outside)
    listing = folder / "list.txt"
    listing.write_text(f"b.png labels/b.png\n\nsub/c.jpeg\n{outside}\nmissing.png\nb.png x\n")
    pictures = find_pictures(str(listing))
    assert [picture.path for picture in pictures] == [
        folder / "b.png", folder / "sub/c.jpeg", outside, folder / "missing.png",
    ]  # fmt: skip
    assert [picture.label_name for picture in pictures] == [
        PurePath("b.png"), PurePath("sub/c.png"), outside.relative_to("/"), PurePath("missing.png"),
    ]  # fmt: skip


def test_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [str(picture.label_name) for picture in find_pictures("sub")] == ["c.png", "deep/d.png"]
    assert [str(picture.label_name) for picture in find_pictures("s*/*.jpeg")] == ["sub/c.png"]
    assert [str(picture.label_name) for picture in find_pictures("b.png")] == ["b.png"]


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.png", "notes*", ".cache/nothing"])
def test_nothing_found_is_an_error(folder, path):
    with pytest.raises(DataError, match="found no picture"):
        find_pictures(str(folder / path))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a.png", "b"]).flatmap(
    lambda stem: st.sampled_from([".png", ".jpg", ".ppm", ""]).map(lambda suffix: f"/in/{stem}{suffix}")
), unique=True))  # fmt: skip
def test_no_two_results_have_one_name(paths):
    pictures = _named([Path(path) for path in paths], Path("/in"))
    for result_names in zip(*((p.overlay_name, p.label_name) for p in pictures)):
        assert len(set(result_names)) == len(paths)
        assert all(not name.is_absolute() and ".." not in name.parts for name in result_names)


parts = st.sampled_from(
    ["..", ".", "/", "//", "a", "b.png", "c.jpg", "~", "\0", "\r", "\x85", "\u2028", " ", "x" * 300, "é"]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(parts, min_size=1, max_size=6).map("".join), min_size=1, max_size=8) | st.lists(st.text()))
def test_no_line_of_a_list_leads_out_of_the_results(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("list")
    (folder / "list.txt").write_bytes("\n".join(lines).encode(errors="ignore"))
    try:
        pictures = find_pictures(str(folder / "list.txt"))
    except DataError as error:
        assert "found no picture" in str(error) and not "".join(lines).strip()
        return
    results = folder / "results"
    for written in zip(*((results / p.overlay_name, results / p.label_name) for p in pictures)):
        assert len(set(written)) == len(pictures)
        assert all(results in Path(os.path.normpath(path)).parents for path in written)


def test_names_in_a_list_may_hold_any_character_but_the_end_of_a_line(tmp_path):
    names = ["a b.png", "c\x85d.png", "e\u2028f.png", "g\x1ch.png"]
    for name in names:
        write_picture(tmp_path / name)
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode("utf-8-sig"))
    assert [picture.path.name for picture in find_pictures(str(tmp_path / "list.txt"))] == names


@pytest.mark.parametrize("path", ["x" * 300, "a/**b/*.png", "\0.png"])
def test_impossible_paths(tmp_path, path):
    with pytest.raises(DataError, match=r"expected a path or a pattern|found no picture"):
        find_pictures(str(tmp_path / path))


def run(pictures, save_dir, **options):
    given = {"transforms": [], "options": InferenceOptions(), "colors": COLORS, "progress": False}
    return predict(red_channel, pictures, save_dir=save_dir, **given, **options)


def test_every_unusable_file_is_named_and_the_others_are_done(tmp_path, capsys):
    folder = tmp_path / "in"
    write_picture(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "line\nbreak.png").write_bytes(b"")
    (folder / "list.txt").write_text("pipe.png\ngood.png\nmissing.png\n.\n/\nnul\0.png\n" + "x" * 300)
    bad = ["dangling.png", "line\nbreak.png", "pipe.png"]
    assert run(find_pictures(str(folder)), tmp_path / "1") == [folder / name for name in bad]
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in errors] == [str(folder / name).replace("\n", " ") for name in bad]
    bad = ["pipe.png", "missing.png", ".", "/", "nul\0.png", "x" * 300]
    assert run(find_pictures(str(folder / "list.txt")), tmp_path / "2") == [folder / name for name in bad]
    for number in "12":
        results = [path for path in (tmp_path / number).rglob("*") if path.is_file()]
        assert {path.name for path in results} == {"good.png"} and len(results) == 2


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG", ".jpg.JPG", "", ".gif"])
def test_overlays_of_every_ending(tmp_path, suffix):
    image = write_picture(tmp_path / f"x{suffix}")
    assert run(find_pictures(str(tmp_path / f"x{suffix}")), tmp_path / "out") == []
    (written,) = (tmp_path / "out" / "added_prediction").iterdir()
    assert written.name == f"x{suffix}" + (".png" if suffix in ("", ".gif") else "")
    assert Image.open(written).size == image.shape[1::-1]


def test_an_overlay_too_large_for_its_format(tmp_path, capsys):
    write_picture(tmp_path / "wide.webp", 2, 16384)
    assert run(find_pictures(str(tmp_path / "wide.webp")), tmp_path / "out") == [tmp_path / "wide.webp"]
    assert "an overlay of 16384x2 pixels cannot be written as .webp" in capsys.readouterr().err
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == [PurePath("pseudo_color_prediction/wide.png")]


def test_results_are_written(tmp_path):
    image = write_picture(tmp_path / "in" / "city" / "x.png")
    save_dir = tmp_path / "result"
    failed = predict(
        red_channel,
        find_pictures(str(tmp_path / "in")),
        transforms=[],
        options=InferenceOptions(),
        save_dir=save_dir,
        colors=COLORS,
        label_ids=True,
        progress=False,
    )
    assert failed == []
    written = sorted(path.relative_to(save_dir).as_posix() for path in save_dir.rglob("*") if path.is_file())
    assert written == ["added_prediction/city/x.png", "label_ids/city/x.png", "pseudo_color_prediction/city/x.png"]
    label = image[:, :, 0]
    assert_array_equal(Image.open(save_dir / "pseudo_color_prediction/city/x.png"), label)
    assert_array_equal(Image.open(save_dir / "added_prediction/city/x.png"), overlay(image, label, COLORS))
    ids = np.asarray(Image.open(save_dir / "label_ids/city/x.png"))
    assert ids.dtype == np.uint8
    # Cityscapes: train id 0 is road, label id 7; train id 18 is bicycle, label id 33.
    assert set(ids[label == 0]) == {7}
    assert set(ids[label == 18]) == {33}


def test_a_bad_picture_does_not_stop_the_others(tmp_path, capsys):
    folder = tmp_path / "in"
    for index, name in enumerate(["a.png", "c.png"]):
        write_picture(folder / name, seed=index)
    write_picture(folder / "tiny.png", 1, 1)
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    failed = predict(
        red_channel,
        find_pictures(str(folder)),
        transforms=[],
        options=InferenceOptions(),
        save_dir=tmp_path,
        colors=COLORS,
        progress=False,
    )
    assert failed == [folder / "b.png", folder / "tiny.png"]
    assert {path.name for path in (tmp_path / "added_prediction").iterdir()} == {"a.png", "c.png"}
    errors = capsys.readouterr().err
    assert "b.png should be a readable picture" in errors
    assert "tiny.png: ValueError: too small" in errors


def test_ranks_share_the_pictures(tmp_path, monkeypatch):
    for index in range(5):
        write_picture(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "3.png").write_bytes(b"")
    pictures = find_pictures(str(tmp_path / "in"))
    flags = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda counts: flags.append(counts) or counts)
    written = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        save_dir = tmp_path / str(rank)
        predict(
            red_channel,
            pictures,
            transforms=[],
            options=InferenceOptions(),
            save_dir=save_dir,
            colors=COLORS,
            progress=False,
        )
        written.append(sorted(path.stem for path in (save_dir / "added_prediction").iterdir()))
    assert written == [["0", "2", "4"], ["1"]]
    assert_array_equal(sum(flags), [0, 0, 0, 1, 0])
