# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path, PurePath

import cv2
import numpy as np
import paddle
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from hmsa.commands import predict as command
from hmsa.commands.predict import SAVED
from hmsa.datasets.find import OVERLAY_SUFFIXES, LeftOut, find_images
from hmsa.datasets.images import IMAGE_SUFFIXES
from hmsa.distributed import ranks
from hmsa.engine.predict import FOLDERS, Results, notices, predict
from hmsa.errors import DataError
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.network import FusedNetwork
from hmsa.visualize import color_palette, heat, overlay

COLORS = color_palette()


def red_channel(image):
    """A network that says class r where the red channel is r, of 19 classes."""
    if min(image.shape[-2:]) < 2:
        raise ValueError("too small")
    return paddle.concat([-paddle.abs(image[:, :1] - k) for k in range(19)], axis=1)


def write_picture(path: Path, height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    """Write a lossless image; returns it as RGB, its red channel holding classes."""
    image = np.random.default_rng(seed).integers(0, 19, (height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
    return image


def run(pictures, save_dir, **options):
    given = {"transforms": [], "options": InferenceOptions(), "progress": False}
    return predict(red_channel, pictures, Results(save_dir, COLORS), **given, **options)


def test_every_unusable_file_is_named_and_the_others_are_done(tmp_path, capsys):
    folder = tmp_path / "in"
    write_picture(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "line\nbreak.png").write_bytes(b"")
    (folder / "list.txt").write_text("pipe.png\ngood.png\nmissing.png\n.\n/\nnul\0.png\n" + "x" * 300)
    bad = ["dangling.png", "line\nbreak.png", "pipe.png"]
    assert run(find_images(str(folder)), tmp_path / "1") == [folder / name for name in bad]
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in errors] == [str(folder / name).replace("\n", " ") for name in bad]
    bad = ["pipe.png", "missing.png", ".", "/", "nul\0.png", "x" * 300]
    assert run(find_images(str(folder / "list.txt")), tmp_path / "2") == [folder / name for name in bad]
    for number in "12":
        results = [path for path in (tmp_path / number).rglob("*") if path.is_file()]
        assert {path.name for path in results} == {"good.png"} and len(results) == 2


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".PNG", ".jpg.JPG", ""])
def test_overlays_of_every_ending(tmp_path, suffix):
    image = write_picture(tmp_path / f"x{suffix}")
    assert run(find_images(str(tmp_path / f"x{suffix}")), tmp_path / "out") == []
    (written,) = (tmp_path / "out" / "added_prediction").iterdir()
    assert written.name == f"x{suffix}" + ".png" * (Path(f"x{suffix}").suffix.lower() not in OVERLAY_SUFFIXES)
    assert Image.open(written).size == image.shape[1::-1]


def test_an_overlay_too_large_for_its_format(tmp_path, capsys):
    write_picture(tmp_path / "wide.webp", 2, 16384)
    assert run(find_images(str(tmp_path / "wide.webp")), tmp_path / "out") == [tmp_path / "wide.webp"]
    assert "an overlay of 16384x2 pixels cannot be written as .webp" in capsys.readouterr().err
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == [PurePath("pseudo_color_prediction/wide.png")]


def test_results_are_written(tmp_path):
    image = write_picture(tmp_path / "in" / "city" / "x.png")
    save_dir = tmp_path / "result"
    failed = predict(
        red_channel,
        find_images(str(tmp_path / "in")),
        Results(save_dir, COLORS, ["color", "overlay", "id"], raw_values=range(100, 119)),
        transforms=[],
        options=InferenceOptions(),
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
    assert_array_equal(ids, label + 100)


def red_at_scale(image, attention):
    """A network at one scale that says the class of the red channel, and takes a quarter of each scale's answer."""
    return red_channel(image), paddle.full_like(image[:, :1], 0.25) if attention else None


def test_everything_there_is_to_see(tmp_path):
    image = write_picture(tmp_path / "in" / "city" / "x.png", 8, 12)
    network = FusedNetwork(red_at_scale, scales=[0.5, 1.0, 2.0], align_corners=False)
    results = Results(
        tmp_path / "out", COLORS, list(FOLDERS), raw_values=range(19), names=[f"no. {k}" for k in range(19)]
    )
    results.prepare(unknown=False)
    files = find_images(str(tmp_path / "in"))
    given = {"transforms": [], "options": InferenceOptions(), "progress": False}
    assert predict(network, files, results, **given) == []
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    maps = {f"{word}/scale_{scale}" for word in ("attention", "decided") for scale in ("0.5", "1", "2")}
    pictures = {f"{folder}/city/x.png" for folder in {*FOLDERS.values(), *maps} - {"attention", "decided", "legend"}}
    legends = {f"legend/{name}.png" for name in ("legend", "confidence", "attention", "decided")}
    assert written == pictures | legends

    for folder, value in {
        "attention/scale_0.5": 0.25,
        "attention/scale_2": 0.25,
        "decided/scale_1": 0.75 * 0.25,
    }.items():
        shown = np.asarray(Image.open(tmp_path / "out" / folder / "city/x.png"))
        assert_array_equal(shown, heat(np.full(image.shape[:2], value)))
    wide = np.asarray(Image.open(tmp_path / "out/scales/city/x.png"))
    assert_array_equal(wide[22:30, 20:32], np.reshape(COLORS, (256, 3))[image[..., 0]])  # the middle one of three
    sheet = np.asarray(Image.open(tmp_path / "out/sheets/city/x.png"))
    assert len(sheet) > 4 * 22 + 4 * 8
    assert_array_equal(sheet[22:30, :12], image)


def test_a_folder_of_other_results_is_none_of_images(tmp_path):
    write_picture(tmp_path / "x.png")
    for saved in (["confidence"], ["id", "sheet"]):
        results = Results(tmp_path / "_".join(saved), COLORS, saved, raw_values=range(19))
        results.prepare(unknown=False)
        given = {"transforms": [], "options": InferenceOptions(), "progress": False}
        assert predict(red_channel, find_images(str(tmp_path)), results, **given) == []
    left_out = LeftOut()
    assert [file.path.name for file in find_images(str(tmp_path), left_out)] == ["x.png"]
    assert str(left_out) == "left out 4 results of an earlier prediction"


def test_the_command_knows_what_can_be_saved():
    assert (*FOLDERS,) == SAVED


def test_a_bad_picture_does_not_stop_the_others(tmp_path, capsys):
    folder = tmp_path / "in"
    for index, name in enumerate(["a.png", "c.png"]):
        write_picture(folder / name, seed=index)
    write_picture(folder / "tiny.png", 1, 1)
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    failed = run(find_images(str(folder)), tmp_path)
    assert failed == [folder / "b.png", folder / "tiny.png"]
    assert {path.name for path in (tmp_path / "added_prediction").iterdir()} == {"a.png", "c.png"}
    errors = capsys.readouterr().err
    assert "b.png should be a readable image" in errors
    assert "tiny.png: ValueError: too small" in errors


def test_ranks_share_the_pictures(tmp_path, monkeypatch):
    for index in range(5):
        write_picture(tmp_path / "in" / f"{index}.png")
    (tmp_path / "in" / "3.png").write_bytes(b"")
    pictures = find_images(str(tmp_path / "in"))
    flags = []
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "all_reduce_sum", lambda counts: flags.append(counts) or counts)
    written = []
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        save_dir = tmp_path / str(rank)
        run(pictures, save_dir)
        written.append(sorted(path.stem for path in (save_dir / "added_prediction").iterdir()))
    assert written == [["0", "2", "4"], ["1"]]
    assert_array_equal(sum(flags), [0, 0, 0, 1, 0])


def test_a_second_run_into_a_folder_says_what_becomes_of_the_first(tmp_path):
    """The results lie in the folder of the images, and are neither predicted nor replaced without a word."""
    folder, result = tmp_path / "in", tmp_path / "in" / "result"
    for name in ("a.png", "b.png", "sub/c.png"):
        write_picture(folder / name)

    def predicted() -> list[str]:
        left_out = LeftOut()
        pictures = find_images(str(folder), left_out)
        lines = list(notices(pictures, left_out, result))
        assert run(pictures, result) == []
        assert {p.path.name for p in pictures} == {
            path.name for path in (result / "added_prediction").rglob("*.png")
        } - gone
        return lines

    gone: set[str] = set()
    assert predicted() == ["found 3 images"]
    earlier = f"{result} holds results of an earlier run: those of"
    assert predicted() == [
        "found 3 images; left out 6 results of an earlier prediction",
        f"{earlier} 3 images will be replaced, those of 0 other images stay",
    ]
    (folder / "b.png").unlink()
    gone.add("b.png")
    assert predicted()[1] == f"{earlier} 2 images will be replaced, those of 1 other image stay"


@pytest.mark.parametrize("saved", [["overlay"], ["attention", "overlay"], ["confidence"], ["sheet", "legend"]])
def test_earlier_results_are_told_whatever_was_saved(tmp_path, saved):
    write_picture(tmp_path / "in" / "a.png", 8, 12)
    network = FusedNetwork(red_at_scale, scales=[0.5, 1.0], align_corners=False)
    results = Results(tmp_path / "out", COLORS, saved, names=[f"no. {k}" for k in range(19)])
    for told in ([], [f"{tmp_path / 'out'} holds results of an earlier run: those of 1 image will be replaced, "]):
        files, left_out = find_images(str(tmp_path / "in")), LeftOut()
        found = list(notices(files, left_out, tmp_path / "out", saved))[1:]
        assert [line[: len(start)] for line, start in zip(found, told)] == told and len(found) == len(told)
        predict(network, files, results, transforms=[], options=InferenceOptions(), progress=False)


def test_results_with_other_names_are_told(tmp_path):
    for name in ("a.png", "a.jpg", "c.gif"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.md").touch()
    left_out = LeftOut()
    assert list(notices(find_images(str(tmp_path), left_out), left_out, tmp_path / "result")) == [
        "found 3 images; left out 1 other file (.md)",
        "results of 1 image have longer names, as others have theirs: a.jpg as a.jpg.png",
    ]


def test_names_that_are_no_utf_8(tmp_path, capsys):
    good, bad = (os.fsdecode(name) for name in (b"gr\xf6\xdfe.png", b"kaputt\xff.png"))
    write_picture(tmp_path / "in" / good)
    (tmp_path / "in" / bad).write_bytes(b"")
    save_dir = tmp_path / os.fsdecode(b"r\xe9sultat")
    assert run(find_images(str(tmp_path / "in")), save_dir) == [tmp_path / "in" / bad]
    assert r"kaputt\udcff.png" in capsys.readouterr().err
    for kind in ("added_prediction", "pseudo_color_prediction"):
        assert [path.name for path in (save_dir / kind).iterdir()] == [good]


def test_the_limit_of_pixels_can_be_raised(tmp_path, monkeypatch, capsys):
    write_picture(tmp_path / "in" / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pictures = find_images(str(tmp_path / "in"))
    assert run(pictures, tmp_path / "out") == [tmp_path / "in" / "x.png"]
    assert "raise max_image_pixels" in capsys.readouterr().err
    assert run(pictures, tmp_path / "out", max_image_pixels=100) == []


def test_a_text_that_names_no_image_is_no_list(tmp_path):
    (tmp_path / "recipe.yml").write_text("iters: 9\nmodel:\n  type: x\n")
    flags = ["--config", "mscale_ocr_toy", "--model_path", "none", "--save_dir", tmp_path / "out"]
    args = command.make_parser().parse_args([*map(str, flags), "--image_path", str(tmp_path / "recipe.yml")])
    with pytest.raises(DataError, match="found 3 lines of which none names a file, such as iters:: correct the path"):
        command.main(args)
    assert not (tmp_path / "out").exists()
