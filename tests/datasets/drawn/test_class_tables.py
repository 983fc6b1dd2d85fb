# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa.datasets.drawn.tables import Table, clean, given_table, names_text, number, read_table, recipe_text
from hmsa.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("text", "names", "colors"),
    [
        ("road\n\n# cars too\ncar park\n", ("road", "car park"), None),
        ("\ufeffroad\r\ncar\r\n", ("road", "car"), None),
        ("64 128 64\tAnimal\n192 0 128\t\tArchway\n", ("Animal", "Archway"), ((64, 128, 64), (192, 0, 128))),
        ("car park 1 2 3\nlane 2, 4, 5, 6\n", ("car park", "lane 2"), ((1, 2, 3), (4, 5, 6))),
        ("name, r, g, b\nroad, 1, 2, 3\n", ("road",), ((1, 2, 3),)),
        ("r;g;b;name\n1;2;3;road, wet\n", ("road, wet",), ((1, 2, 3),)),
        ("0 1\n2 3 4x\n", ("0 1", "2 3 4x"), None),
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\nBüro:1,2,3::\n", ("background", "Büro"), None),
    ],
)
def test_tables_as_people_write_them(tmp_path, text, names, colors):
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    table = read_table(tmp_path / "t.txt")
    assert table.names == names
    assert table.colors == (colors or (((0, 0, 0), (1, 2, 3)) if "Büro" in names else None))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "but names none"),
        ("B\udcfcro\n", "a text in UTF-8, but: .*; save it as UTF-8"),
        ("road\nroad\n", "line 2: expected the name of a class, found 'road' a second time"),
        ("1 2 3\n", "line 1: expected the name of a class, found no name"),
        ("road 1 2 300\n", r"line 1: expected a colour of 0 to 255, found \(1, 2, 300\)"),
        ("road 1 2 3\ncar\n", "a colour .* on every line or on none, but 'car' has none"),
    ],
)
def test_tables_that_are_none(tmp_path, text, reason):
    (tmp_path / "t.txt").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=reason):
        read_table(tmp_path / "t.txt")


def test_names_or_a_file(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\n")
    assert given_table([str(tmp_path / "t.txt")]).names == ("a", "b")
    assert given_table(["a", " b  c "]).names == ("a", "b c")
    assert given_table(["car"]).names == ("car",)
    with pytest.raises(DataError, match="but there is none"):
        given_table(["labels.txt"])
    with pytest.raises(UsageError, match="every class once, found 'a' twice"):
        given_table(["a", "b", "a"])


def test_a_background_comes_first_in_black():
    numbering = number(Table(("road", "car")), background=True, ignored=["dirt"])
    assert numbering.classes.names == ("background", "road", "car")
    assert numbering.classes.colors == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert numbering.unlabelled == 0
    expected = {"background": 0, "road": 1, "car": 2, "dirt": 255, "__ignore__": 255}
    assert {**numbering.numbers, **expected} == numbering.numbers


def test_a_background_where_the_table_has_one():
    """labelme's own list of labels."""
    numbering = number(Table(("__ignore__", "_background_", "road")), background=True)
    assert numbering.classes.names == ("_background_", "road") and numbering.unlabelled == 0
    last = number(Table(("road", "Background"), ((1, 1, 1), (2, 2, 2))), background=True)
    assert last.unlabelled == 1 and last.classes.colors == ((1, 1, 1), (2, 2, 2))


def test_without_a_background():
    numbering = number(Table(("road", "car")), background=False)
    assert numbering.classes.names == ("road", "car") and numbering.unlabelled == 255
    assert numbering.classes.colors == ((128, 0, 0), (0, 128, 0))  # PaddleSeg's


def test_how_many_classes():
    assert len(number(Table(tuple(map(str, range(255)))), background=False).classes) == 255
    with pytest.raises(UsageError, match="1 to 255 classes, found 256"):
        number(Table(tuple(map(str, range(255)))), background=True)
    with pytest.raises(UsageError, match="1 to 255 classes, found 0"):
        number(Table(()), background=False)


@given(st.lists(st.text(max_size=12).map(clean).filter(bool), min_size=1, max_size=6, unique=True))
@settings(max_examples=300, deadline=None)
def test_the_recipe_says_what_the_classes_are(names):
    numbering = number(Table(tuple(names)), background=False)
    lines = recipe_text(numbering.classes)
    classes = numbering.classes
    assert yaml.safe_load(lines)["classes"] == [
        {"name": name, "color": list(color)} for name, color in zip(classes.names, classes.colors)
    ]


@pytest.mark.parametrize("name", ["no", "1", "null", "a, b", "a: b", "a #b", "'x'", "ä", "{", "1e3", "2024-01-01", "="])
def test_names_that_yaml_would_take_for_something_else(name):
    classes = number(Table((name,)), background=False).classes
    assert yaml.safe_load(recipe_text(classes))["classes"][0]["name"] == name
    assert names_text(classes) == f"{name}\n"
