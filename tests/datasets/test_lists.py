# SPDX-License-Identifier: Apache-2.0
"""Lists of pairs as people have them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from samples import LABEL, PICTURE, encoded

from hmsa.datasets.classes import Classes
from hmsa.datasets.lists import ListDataset
from hmsa.errors import DataError, UsageError

PAIRS = [(f"images/p{i}.jpg", f"labels/p{i}.png") for i in range(3)]
LINES = [" ".join(pair) for pair in PAIRS]


@pytest.fixture
def root(tmp_path) -> Path:
    for image, label in [*PAIRS, ("my images/p 0.jpg", "my images/p 0.png"), ("图 片/é.jpg", "图 片/é.png")]:
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / label).parent.mkdir(exist_ok=True)
        (tmp_path / image).write_bytes(encoded(PICTURE, "JPEG"))
        (tmp_path / label).write_bytes(encoded(LABEL, "PNG"))
    return tmp_path


def dataset(root: Path, content: bytes | str, mode: str = "train", **options) -> ListDataset:
    (root / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = {f"{name}_path": str(root / "list.txt") if name == mode else None for name in ("train", "val", "test")}
    given = {"classes": Classes.numbered(4), "separator": None, **paths, **options}
    return ListDataset(dataset_root=str(root), mode=mode, **given)  # type: ignore[arg-type]


def found(data: ListDataset) -> list[tuple[str, str | None]]:
    root = Path(data.pairs[0][0]).parents[1]
    return [(os.path.relpath(image, root), label and os.path.relpath(label, root)) for image, label in data.pairs]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\n".join(LINES) + "\n\n  \n",
        b"\xef\xbb\xbf" + "\r\n".join(LINES).encode() + b"\r\n",
        "# image label\n" + "\n#\n".join(LINES),
        "\n".join(LINES).replace(" ", "\t"),
        "\n".join(f"  {line}\t" for line in LINES).replace(".jpg ", ".jpg  \t "),
        "\n".join(LINES).replace("/", "\\"),
        f"{LINES[0]} # by night\n{LINES[1]}\t#\n{LINES[2]}",
    ],
)
def test_lists_as_people_write_them(root, content):
    data = dataset(root, content)
    assert found(data) == PAIRS
    assert (data[0]["label"] == LABEL).all()


@pytest.mark.parametrize("separator", ["|", ",", "\t", " ", ";;"])
def test_a_separator_is_taken_at_its_word(root, separator):
    text = f"my images/p 0.jpg{separator}my images/p 0.png\n"
    if separator == " ":
        with pytest.raises(DataError, match=r"line 1: expected an image and its label, divided by ' ', found 6 parts"):
            dataset(root, text, separator=separator)
        text = LINES[0]
    assert dataset(root, text, separator=separator)[0]["label"].shape == LABEL.shape
    loose = LINES[0].replace(" ", f" {separator} ") if separator.strip() else LINES[0].replace(" ", separator)
    assert found(dataset(root, loose, separator=separator)) == PAIRS[:1]


def test_names_with_blanks_are_told_apart_by_the_files_there_are(root):
    lines = "my images/p 0.jpg my images/p 0.png\n图 片/é.jpg 图 片/é.png\n" + LINES[1]
    assert found(dataset(root, lines)) == [
        ("my images/p 0.jpg", "my images/p 0.png"), ("图 片/é.jpg", "图 片/é.png"), PAIRS[1],
    ]  # fmt: skip
    for name in ("a", "a b", "b c", "c"):
        (root / name).touch()
    with pytest.raises(DataError, match="found 3 words and several ways to divide them into two files"):
        dataset(root, "a b c")


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).replace(" ", ","),
        "image,mask\n" + "\n".join(LINES).replace(" ", " , "),
        '\ufeff"image","mask","by"\r\n' + "\r\n".join(f'"{a}","{b}","Ann, Bob"' for a, b in PAIRS),
        "image;mask\n" + "\n".join(LINES).replace(" ", ";"),
        "# by Ann\n" + "\n".join(LINES).replace(" ", ","),
    ],
)
def test_csv_as_programs_write_it(root, content):
    (root / "list.csv").write_text(content, encoding="utf-8")
    assert found(dataset(root, "", train_path="list.csv")) == PAIRS
    if ";" not in content:
        assert found(dataset(root, content, separator=",")) == PAIRS


def test_a_csv_s_first_line_is_no_title_where_it_is_called_like_an_image(root):
    with pytest.raises(DataError, match=r"gone\.jpg, .*gone\.png; correct the list or dataset_root"):
        dataset(root, f"gone.jpg,gone.png\n{LINES[0].replace(' ', ',')}", separator=",")
    with pytest.raises(
        DataError, match=r"list\.txt, line 2: expected an image and its label, divided by ',', found one"
    ):
        dataset(root, "image,mask\nimages/p0.jpg\n", separator=",")


def test_names_with_commas_quotes_and_signs_of_comments(root):
    names = ["a, b.jpg", 'a "b".png', "a #1.jpg", "b #1.png"]
    for name in names:
        (root / name).write_bytes(encoded(PICTURE, "JPEG"))
    text = '"a, b.jpg","a ""b"".png"\n"a #1.jpg",b #1.png'
    assert [Path(name).name for pair in dataset(root, text, separator=",").pairs for name in pair if name] == names
    pairs = dataset(root, "a #1.jpg b #1.png # by night\na #1.jpg\tb #1.png").pairs
    assert [Path(name).name for pair in pairs for name in pair if name] == names[2:] * 2


def test_every_bad_line_is_named_at_once(root):
    text = "\n".join(
        [LINES[0], "images/p1.jpg", "# fine", "nowhere 1.jpg nowhere 1.png", "images/p1.jpg|labels/p1.png"]
    )
    with pytest.raises(DataError) as error:
        dataset(root, text)
    assert str(error.value).split("\n") == [
        f"{root}/list.txt, line 2: expected an image and its label, divided by blanks (or set separator), found one "
        "name, in 'images/p1.jpg'",
        f"{root}/list.txt, line 4: expected an image and its label, found 4 words and no way to divide them into two "
        "files (set separator, or rename the files), in 'nowhere 1.jpg nowhere 1.png'",
        f"{root}/list.txt, line 5: expected an image and its label, divided by blanks (or set separator), found one "
        "name, in 'images/p1.jpg|labels/p1.png'",
    ]


def test_of_many_bad_lines_twenty_are_shown(root):
    with pytest.raises(DataError) as error:
        dataset(root, "x\n" * 25)
    lines = str(error.value).split("\n")
    assert len(lines) == 21 and "line 20: " in lines[19] and lines[20].endswith("found 5 more lines like these")


def test_labels_may_be_missing_in_a_test_alone(root):
    text = f"images/p0.jpg\nmy images/p 0.jpg\n{LINES[2]}"
    data = dataset(root, text, mode="test")
    assert found(data) == [("images/p0.jpg", None), ("my images/p 0.jpg", None), PAIRS[2]]
    assert "label" not in data[1] and "label" in data[2]
    for mode in ("train", "val"):
        with pytest.raises(DataError, match="line 1: expected an image and its label"):
            dataset(root, text, mode=mode)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "gbk"])
def test_other_encodings_are_refused_in_a_sentence(root, encoding):
    text = "\ufeff" * (encoding == "utf-16-be") + "图 片/é.jpg\t图 片/é.png"
    with pytest.raises(DataError, match=r"list\.txt(, line 1:| should be a list in) .*UTF-8") as error:
        dataset(root, text.encode(encoding))
    assert str(error.value).isprintable()


def test_names_that_are_no_utf_8_are_taken_as_they_are(root):
    for name in (b"gr\xf6\xdfe.jpg", b"gr\xf6\xdfe.png"):
        (root / os.fsdecode(name)).write_bytes(encoded(LABEL, "PNG"))
    data = dataset(root, b"gr\xf6\xdfe.jpg gr\xf6\xdfe.png\n")
    assert (data[0]["label"] == LABEL).all()


def test_paths_may_be_absolute_and_the_list_in_the_data_set(root, monkeypatch, tmp_path_factory):
    data = dataset(root, f"{root}/images/p0.jpg {root}/labels/p0.png")
    assert found(data) == PAIRS[:1]
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert found(dataset(root, LINES[0], train_path="list.txt")) == PAIRS[:1]
    monkeypatch.chdir(root)
    assert found(dataset(root, LINES[1], train_path="list.txt")) == PAIRS[1:2]


def test_the_mode_chooses_the_list_and_what_is_done_to_labels(root):
    training, evaluating = dataset(root, LINES[0]), dataset(root, LINES[0], mode="val")
    assert training.training
    assert not evaluating.training
    with pytest.raises(UsageError, match="expected val_path to name a list, as mode is val, found nothing: add it"):
        dataset(root, LINES[0], mode="val", val_path=None)


def test_lists_and_folders_that_are_missing_or_empty(root):
    for content in ("", "\n\n", "# nothing\n"):
        with pytest.raises(
            DataError, match=r"list\.txt should name an image and its label on each line, but names none"
        ):
            dataset(root, content)
    with pytest.raises(DataError, match=r"nowhere\.txt should be a readable file, but: No such file"):
        dataset(root, "", train_path=str(root / "nowhere.txt"))
    with pytest.raises(DataError, match=r"nowhere should be the folder of the data set, but is none"):
        ListDataset(
            dataset_root=str(root / "nowhere"), mode="train", train_path="list.txt", val_path=None, test_path=None,
            separator=None, classes=Classes.numbered(4),
        )  # fmt: skip


def test_a_file_that_is_missing_is_a_bad_sample_not_a_bad_list(root):
    data = dataset(root, f"images/gone.jpg labels/gone.png\n{LINES[0]}", bad_sample_limit=1)
    assert all(np.isfinite(data[i]["img"]).all() for i in range(4)) and len(data.skipped) == 1


def test_files_that_are_missing_are_named_before_a_training_starts(root):
    lines = f"{LINES[0]}\nimages/gone.jpg labels/p1.png\n{LINES[2].replace('labels', 'nowhere')}"
    with pytest.raises(DataError, match=r"list\.txt should name files that are there, but 2 are not: ") as error:
        dataset(root, lines)
    assert f"{root}/images/gone.jpg, {root}/nowhere/p2.png; correct" in str(error.value)
    many = "\n".join(f"{i}.jpg {i}.png" for i in range(15))
    with pytest.raises(DataError, match=r"9\.png and 10 more; correct the list or dataset_root"):
        dataset(root, many, mode="val")
