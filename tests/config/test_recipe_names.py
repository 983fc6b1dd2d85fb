# SPDX-License-Identifier: Apache-2.0
"""Recipes that ship are named without a path; what is found in the current folder wins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hmsa.config import recipes
from hmsa.config.reading import load_config
from hmsa.errors import UsageError

TOY = recipes.FOLDER / "mscale_ocr_toy.yml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["mscale_ocr_toy", "mscale_ocr_toy.yml", "configs/mscale_ocr_toy.yml", str(TOY)])
def test_one_that_ships(name: str) -> None:
    assert load_config(name) == load_config(TOY)
    assert load_config(name).source("model") == str(recipes.FOLDER / "_base_/mscale_ocr_hrnet_w18_small.yml")


@pytest.mark.parametrize("name", ["mscale_ocr_toy", "mscale_ocr_toy.yml", "configs/mscale_ocr_toy.yml"])
def test_one_in_the_current_folder_wins(name: str, folder: Path) -> None:
    place = folder / f"{name.removesuffix('.yml')}.yml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(f"_base_: {TOY}\niters: 77\n")
    assert load_config(name).iters == 77


def test_a_folder_of_the_name_is_no_recipe(folder: Path) -> None:
    (folder / "mscale_ocr_toy").mkdir()
    assert load_config("mscale_ocr_toy") == load_config(TOY)


@pytest.mark.parametrize("base", ["mscale_ocr_toy", "mscale_ocr_toy.yml", "configs/mscale_ocr_toy.yml"])
def test_a_base_that_ships(base: str, folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep/mine.yml").write_text(f"_base_: {base}\niters: 77\n")
    config = load_config("deep/mine")
    assert (config.iters, config.batch_size) == (77, load_config(TOY).batch_size)


def test_a_base_beside_the_recipe_wins(folder: Path) -> None:
    shutil.copytree(recipes.FOLDER, folder / "deep")
    (folder / "deep/mscale_ocr_toy.yml").write_text(f"_base_: {TOY}\niters: 78\n")
    (folder / "deep/mine.yml").write_text("_base_: mscale_ocr_toy\n")
    assert load_config("deep/mine.yml").iters == 78


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mscale_ocr_ty", "mscale_ocr_ty: expected a YAML file, found none: did you mean mscale_ocr_toy, which ships?"),
        ("configs/mscale_ocr_toi.yml", "did you mean mscale_ocr_toy, which ships?"),
        ("adamw_warmup", "did you mean _base_/adamw_warmup, which ships?"),
        ("nowhere.yml", "check the path, or name one that ships (mscale_ocr_camvid, "),
        ("", "expected a YAML file, found none: check the path"),
        ("\0", "check the path"),
    ],
)
def test_what_is_not_there(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(name)
    assert said in str(caught.value) or not name


def test_one_that_lies_beside_is_near(folder: Path) -> None:
    (folder / "my_recipe.yml").touch()
    with pytest.raises(UsageError, match=r"my_recipes: .* found none: did you mean my_recipe\.yml\?"):
        load_config("my_recipes")


def test_every_recipe_has_a_name() -> None:
    names = recipes.names()
    assert "mscale_ocr_toy" in names and "_base_/cityscapes" in names
    assert all(Path(recipes.find(name)).is_file() for name in names)
