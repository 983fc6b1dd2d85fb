# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import PICTURE, encoded
from with_defaults import CityscapesAutolabeling

from hmsa.datasets.convert import coarse_jobs, fine_jobs
from hmsa.datasets.find import LeftOut, _named, find_images, search
from hmsa.datasets.images import IMAGE_FORMATS, IMAGE_SUFFIXES, read_image
from hmsa.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(PICTURE, "PNG"))


def below(folder: Path, paths) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


# Searching


@pytest.fixture
def tree(tmp_path):
    """Two cities on another disk, one of them as a link, with what file systems and people leave there."""
    touch(tmp_path / "disk", "c/c1.png", "c/c2.png", "c/deep/c3.png")
    touch(
        tmp_path / "data", "a/a1.png", "a/._a1.png", "a/a2.PNG", "a/.DS_Store", "a/Thumbs.db", ".trash/x.png", "x.png"
    )
    (tmp_path / "data/c").symlink_to(tmp_path / "disk/c")
    return tmp_path / "data"


def test_links_are_followed_and_hidden_files_passed_over(tree):
    assert below(tree, search(tree, "*/*.png")) == ["a/a1.png", "c/c1.png", "c/c2.png"]
    assert below(tree, search(tree, "**/*.png")) == ["a/a1.png", "c/c1.png", "c/c2.png", "c/deep/c3.png", "x.png"]
    assert below(tree, search(tree, "**")) == below(tree, search(tree, "**/*"))
    assert below(tree, search(tree, "**/deep/*")) == ["c/deep/c3.png"]
    assert below(tree, search(tree, "?")) == ["a", "c"]


def test_what_the_pattern_names_is_not_passed_over(tree):
    assert below(tree, search(tree, ".trash/*")) == [".trash/x.png"]
    assert below(tree, search(tree, "*/._*")) == ["a/._a1.png"]
    touch(tree, "a/added_prediction/p.png")
    assert below(tree, search(tree, "*/added_prediction/*")) == ["a/added_prediction/p.png"]


def test_loops_of_links_end(tree):
    (tree / "a/home").symlink_to(tree)
    (tree / "a/up").symlink_to(tree.parent)
    (tree / "a/itself").symlink_to("itself")
    (tree / "a/to_c").symlink_to(tree / "c")
    (tree.parent / "disk/c/to_a").symlink_to(tree / "a")
    left_out = LeftOut()
    assert below(tree, search(tree, "**/*.png", left_out)) == [
        "a/a1.png",
        "c/c1.png",
        "c/c2.png",
        "c/deep/c3.png",
        "x.png",
    ]
    assert left_out.again == 4
    assert left_out.unreadable == [f"{tree / 'a/itself'}: a link that leads nowhere"]


def test_many_links_to_one_another_take_no_time(tmp_path):
    for i in range(12):
        touch(tmp_path, f"{i}/{i}.png")
        for other in range(12):
            (tmp_path / f"{i}/to{other}").symlink_to(tmp_path / str(other))
    assert len(search(tmp_path, "**/*.png")) == 12


def test_two_names_of_a_folder_are_two_folders_where_the_pattern_says_how_deep(tree):
    (tree / "b").symlink_to("a")
    assert below(tree, search(tree, "*/a1.png")) == ["a/a1.png", "b/a1.png"]


def test_folders_that_cannot_be_searched_are_named(tree, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (tree / "gone").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"data should be readable .*gone: a link that .*c/deep: Permission denied"):
        search(tree, "**/*.png")
    left_out = LeftOut()
    assert below(tree, search(tree, "*/*.png", left_out)) == ["a/a1.png", "c/c1.png", "c/c2.png"]
    assert len(left_out.unreadable) == 1
    assert len(find_images(str(tree), left_out)) == 5  # others are predicted
    assert "2 folders that cannot be searched" not in str(left_out) and "c/deep: Permission denied" in str(left_out)


def test_one_search_for_every_command(tree):
    """Cities that are links, with macOS's files beside every file, in the data set and both conversions."""
    names = {
        "leftImg8bit/train": "{}_leftImg8bit.png",
        "gtFine/train": "{}_gtFine_labelTrainIds.png",
        "leftImg8bit_trainextra/leftImg8bit/train_extra": "{}_leftImg8bit.png",
        "convert_autolabelled": "{}_leftImg8bit.png",
        "refinement_final/train_extra": "{}_leftImg8bit.png",
    }
    root = tree.parent / "cityscapes"
    for folder, name in names.items():
        for city, place in (("ulm", root / folder), ("bonn", tree.parent / "disk" / folder)):
            touch(place / city, name.format(f"{city}_0"), "._" + name.format(f"{city}_0"))
        (root / folder / "bonn").symlink_to(tree.parent / "disk" / folder / "bonn")
    touch(tree.parent / "disk/gtFine/train/bonn", "bonn_0_gtFine_labelIds.png", "._bonn_0_gtFine_labelIds.png")
    data = CityscapesAutolabeling(dataset_root=root, mode="train")
    assert [len(data.pairs), len(data.coarse_pairs)] == [2, 2]
    assert [job.source.name for job in coarse_jobs(root)] == ["bonn_0_leftImg8bit.png", "ulm_0_leftImg8bit.png"]
    assert [job.source.name for job in fine_jobs(root)] == ["bonn_0_gtFine_labelIds.png"]

    (root / "leftImg8bit/train/ulm").rename(tree.parent / "elsewhere")
    (root / "leftImg8bit/train/ulm").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"leftImg8bit/train should be readable .*train/ulm: a link that leads nowhere"):
        CityscapesAutolabeling(dataset_root=root, mode="train")


# Images to predict


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
    pictures = find_images(str(folder))
    assert names(pictures, folder) == ["a.JPG", "b.png", "sub/c.jpeg", "sub/deep/d.png"]
    assert [picture.overlay_name.as_posix() for picture in pictures] == names(pictures, folder)
    assert [picture.label_name.as_posix() for picture in pictures] == [
        "a.png", "b.png", "sub/c.png", "sub/deep/d.png",
    ]  # fmt: skip


def test_one_file(folder):
    (picture,) = find_images(str(folder / "sub" / "c.jpeg"))
    assert picture.overlay_name == PurePath("c.jpeg")


def test_globs(folder):
    pictures = find_images(str(folder / "**" / "*.png"))
    assert names(pictures, folder) == ["b.png", "sub/deep/d.png"]
    assert pictures[1].label_name == PurePath("sub/deep/d.png")
    (picture,) = find_images(str(folder / "sub" / "?.jpeg"))
    assert picture.label_name == PurePath("c.png")


def test_a_list_of_paths(folder, tmp_path, monkeypatch):
    outside = tmp_path / "out side" / "f.png"
    write(outside)
    listing = folder / "list.txt"
    listing.write_text(f"b.png labels/b.png\n\nsub/c.jpeg\n{outside}\nmissing.png\nb.png x\n")
    pictures = find_images(str(listing))
    assert [picture.path for picture in pictures] == [
        folder / "b.png", folder / "sub/c.jpeg", outside, folder / "missing.png",
    ]  # fmt: skip
    assert [picture.label_name for picture in pictures] == [
        PurePath("b.png"), PurePath("sub/c.png"), outside.relative_to("/"), PurePath("missing.png"),
    ]  # fmt: skip


def test_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [str(picture.label_name) for picture in find_images("sub")] == ["c.png", "deep/d.png"]
    assert [str(picture.label_name) for picture in find_images("s*/*.jpeg")] == ["sub/c.png"]
    assert [str(picture.label_name) for picture in find_images("b.png")] == ["b.png"]


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.png", "notes*", ".cache/nothing"])
def test_nothing_found_is_an_error(folder, path):
    with pytest.raises(DataError, match=r"found (no image|nothing of this name)"):
        find_images(str(folder / path))


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
        pictures = find_images(str(folder / "list.txt"))
    except DataError as error:
        text = "\n".join(lines).encode(errors="ignore").decode().lstrip("\ufeff")
        assert "found no image" in str(error)
        assert all(not line.strip() or line.strip().startswith("#") for line in text.split("\n"))
        return
    results = folder / "results"
    for written in zip(*((results / p.overlay_name, results / p.label_name) for p in pictures)):
        assert len(set(written)) == len(pictures)
        assert all(results in Path(os.path.normpath(path)).parents for path in written)


def test_names_in_a_list_may_hold_any_character_but_the_end_of_a_line(tmp_path):
    names = ["a b.png", "c\x85d.png", "e\u2028f.png", "g\x1ch.png"]
    for name in names:
        write(tmp_path / name)
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode("utf-8-sig"))
    assert [picture.path.name for picture in find_images(str(tmp_path / "list.txt"))] == names


@pytest.mark.parametrize("path", ["x" * 300, "a/**b/*.png", "\0.png"])
def test_impossible_paths(tmp_path, path):
    with pytest.raises(DataError, match=r"expected a path or a pattern|found no image|found nothing"):
        find_images(str(tmp_path / path))


@pytest.mark.parametrize("suffix", [".gif", ".ppm", ".pgm", ".pnm", ".jfif", ".jpe", ".mpo", ".webp", ".TIF", ".JpEg"])
def test_every_format_that_is_read_is_found_in_folders(tmp_path, suffix):
    touch(tmp_path, f"x{suffix}", "x.txt", "x.jp2")
    (picture,) = find_images(str(tmp_path))
    assert picture.path.name == f"x{suffix}"


def test_suffixes_and_formats_agree(tmp_path):
    for suffix, form in Image.registered_extensions().items():
        if form in IMAGE_FORMATS and suffix not in (".pfm", ".apng"):
            (tmp_path / f"x{suffix}").write_bytes(encoded(PICTURE, form))
            assert suffix in IMAGE_SUFFIXES and read_image(tmp_path / f"x{suffix}").shape == PICTURE.shape


def test_what_is_left_out_is_counted(folder):
    touch(folder, "Thumbs.db", "sub/README", "sub/._c.jpeg", ".DS_Store", "x.jpg/inside.png")
    for kind in ("added_prediction", "pseudo_color_prediction", "label_ids"):
        touch(folder, f"sub/result/{kind}/b.png", f"sub/result/{kind}/sub/c.png")
    touch(folder, "label_ids/own.png")  # a name like any other where no results are beside it
    left_out = LeftOut()
    found = ["a.JPG", "b.png", "label_ids/own.png", "sub/c.jpeg", "sub/deep/d.png", "x.jpg/inside.png"]
    assert names(find_images(str(folder), left_out), folder) == found
    assert str(left_out) == (
        "left out 3 other files (.db, .md), 2 hidden files or folders, 6 results of an earlier prediction"
    )
    assert names(find_images(str(folder / "**/*")), folder) == found
    with pytest.raises(DataError, match=r"found no image .*; left out 6 results of an earlier prediction"):
        find_images(str(folder / "sub/result"))
    assert len(find_images(str(folder / "sub/result/label_ids"))) == 2  # asked for


def test_videos_in_a_folder_are_told_of(folder):
    touch(folder, "one.mp4", "sub/Two.MOV")
    left_out = LeftOut()
    find_images(str(folder), left_out)
    assert "2 videos, to be given one by one (one.mp4, Two.MOV)" in str(left_out)


def test_patterns_with_links_and_folders(tree):
    left_out = LeftOut()
    assert names(find_images(str(tree / "*"), left_out), tree) == ["x.png"]
    assert str(left_out) == "left out 2 folders, 1 hidden file or folder"
    assert len(find_images(str(tree / "**"))) == len(find_images(str(tree / "**/*"))) == 6
    assert names(find_images(str(tree / "c/../c/*1.png")), tree)[0].endswith("c1.png")
    assert names(find_images(str(tree / "*/../a/*1.png")), tree) == ["a/a1.png"]


def test_names_that_are_hard_to_write(tmp_path):
    hard = ["-x.png", " x.png", "a\nb.png", "[x].png", "*.png", "größe.png", "图.png", "back\\slash.png"]
    touch(tmp_path / "in", *hard, "x.png ")
    left_out = LeftOut()
    assert sorted(p.path.name for p in find_images(str(tmp_path / "in"), left_out)) == sorted(hard)
    assert str(left_out) == "left out 1 other file (.png )"
    (picture,) = find_images(str(tmp_path / "in/[x].png"))
    assert picture.path.name == "[x].png"


def labels(pictures) -> dict[str, str]:
    return {picture.path.name: picture.label_name.as_posix() for picture in pictures}


def test_results_of_images_that_differ_in_their_suffix(tmp_path):
    touch(tmp_path / "in", "a.jpg", "a.png", "b.bmp", "b.jpg", "c.jpg", "D.JPG", "d.png", "e.jpg", "e.png/f.png")
    assert labels(find_images(str(tmp_path / "in"))) == {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png",
        "b.bmp": "b.bmp.png",
        "b.jpg": "b.jpg.png",
        "c.jpg": "c.png",
        "D.JPG": "D.JPG.png",  # which some file systems take for the other
        "d.png": "d.png",
        "e.jpg": "e.png.png",  # as there is a folder of results e.png
        "f.png": "e.png/f.png",
    }


# Lists of images


@pytest.mark.parametrize("name", ["list.txt", "list.lst", "list", "train.csv", "BM.list"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbfb.png\r\nsub/c.jpeg\r\n\r\n", ["b.png", "sub/c.jpeg"]),
        (b"# images\nb.png\tlabels/b.png\n   \n", ["b.png"]),
        (b"sub\\c.jpeg labels\\c.png", ["sub/c.jpeg"]),
        (b"BM 1.png labels/BM 1.png\nb.png", ["BM 1.png", "b.png"]),
        (b"P6.png x\n#1.png\n#no file", ["P6.png", "#1.png"]),
    ],
)
def test_any_file_that_is_no_image_is_a_list(folder, name, content, found):
    touch(folder, "BM 1.png", "P6.png", "#1.png")
    (folder / name).write_bytes(content)
    assert names(find_images(str(folder / name)), folder) == found


def test_a_file_that_starts_as_an_image_is_one(folder):
    for form in IMAGE_FORMATS:
        (folder / "image.0001").write_bytes(encoded(PICTURE, form))
        assert [p.label_name.name for p in find_images(str(folder / "image.0001"))] == ["image.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("b.png\n".encode("utf-16"), r"list\.txt should be a list in UTF-8, but it is in UTF-16"),
        ("b.png\ngröße.png".encode("latin-1"), r"list\.txt, line 2: expected the path of an image in UTF-8"),
        (b"\0\0\0\x18ftypheic\xff\xfe", r"in UTF-8, found other bytes: .* or give an image \(PNG, JPEG"),
    ],
)
def test_lists_in_other_encodings(folder, content, reason):
    (folder / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        find_images(str(folder / "list.txt"))


def test_names_that_are_no_utf_8(tmp_path):
    """As Linux allows them: found in folders, and in lists that hold the same bytes."""
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    write(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"gr\xf6\xdfe.png label.png\n")
    assert [p.path.name for p in find_images(str(tmp_path))] == [name]
    assert [p.path.name for p in find_images(str(tmp_path / "list.txt"))] == [name]
