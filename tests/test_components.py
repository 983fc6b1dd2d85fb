# SPDX-License-Identifier: Apache-2.0
"""One line for a component: what a table says is read, spelled, checked, suggested and built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from hmsa import builder, components
from hmsa.config.fields import Component, Count, Label, NonNegative
from hmsa.config.reading import load_config
from hmsa.errors import UsageError

# --- A new loss and a new transform: each a class, a Spec, and a line in its table. ---


class SquaredLoss:
    """factor * mean of logits squared."""

    def __init__(self, *, factor: float, ignore_index: int) -> None:
        self.factor = factor
        self.ignore_index = ignore_index

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        return self.factor * (logits * logits).mean()


class SquaredLossSpec(Component):
    factor: NonNegative = 2.0
    ignore_index: Label = 255


class Posterize:
    """Keep `levels` levels."""

    def __init__(self, *, levels: int) -> None:
        self.step = 256 // levels

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**sample, "img": sample["img"] // self.step * self.step}


class PosterizeSpec(Component):
    levels: Count


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(components.LOSSES, "SquaredLoss", (SquaredLossSpec, f"{__name__}:SquaredLoss"))
    monkeypatch.setitem(components.TRANSFORMS, "Posterize", (PosterizeSpec, f"{__name__}:Posterize"))


RECIPE = """
model: {type: MscaleOCRNet, num_classes: 19, backbone: {type: HRNet_W18_NV_Small_V1}}
val_dataset: {type: Dataset, transforms: [{type: Normalize}, {type: Posterize, levels: 4}]}
loss:
  types:
    - {type: SquaredLoss}
    - {type: MixedLoss, losses: [{type: DiceLoss}, {type: SquaredLoss, factor: 3}], coef: [1, 1]}
  coef: {joint: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A function from options to a config."""
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return lambda *options: load_config(path, options)


def refused(function: Any, *args: Any) -> str:
    with pytest.raises(UsageError) as info:
        function(*args)
    return str(info.value)


def test_they_are_read_with_their_defaults_and_come_back_from_a_dump(recipe: Any, tmp_path: Path) -> None:
    config = recipe()
    assert config.loss.types[0] == SquaredLossSpec(type="SquaredLoss", factor=2.0)
    assert config.loss.types[1].losses[1].factor == 3
    assert config.val_dataset.transforms[1] == PosterizeSpec(type="Posterize", levels=4)
    (tmp_path / "dump.yml").write_text(config.dump())
    assert load_config(tmp_path / "dump.yml") == config


def test_they_are_known_in_other_spellings(recipe: Any) -> None:
    spelled = recipe("loss.types.0={type: squared_loss, Factor: 5}").loss.types[0]
    assert (type(spelled), spelled.factor) == (SquaredLossSpec, 5)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("loss.types.0.factor=-1", "expected loss.types.0.factor to be greater than or equal to 0, found -1"),
        ("loss.types.0.facter=1", "found loss.types.0.facter: did you mean factor?"),
        ("loss.types.0.loss_th=1", "it is for the type BootstrappedCrossEntropyLoss, not for SquaredLoss"),
        ("loss.types.1.losses.0.factor=1", "it is for the type SquaredLoss, not for DiceLoss: remove it"),
        ("val_dataset.transforms.1={type: Posterize}", "expected val_dataset.transforms.1.levels to be given"),
        ("val_dataset.transforms.0.levels=4", "found val_dataset.transforms.0.levels: it is for the type Posterize"),
    ],
)
def test_their_arguments_are_checked_when_the_recipe_is_read(recipe: Any, option: str, sentence: str) -> None:
    assert sentence in refused(recipe, option)


def test_misspelt_names_are_near_misses(recipe: Any) -> None:
    message = refused(builder.build_loss, recipe("loss.types.0={type: SquardLoss}"))
    assert "found 'SquardLoss': did you mean SquaredLoss?" in message
    specs = recipe("val_dataset.transforms.1={type: Posterise, levels: 4}").val_dataset.transforms
    assert "found 'Posterise': did you mean Posterize?" in refused(builder.build_transforms, specs)


def test_they_are_built(recipe: Any) -> None:
    config = recipe()
    loss = builder.build_loss(config)
    logits, labels = paddle.ones([1, 19, 4, 4]), paddle.zeros([1, 4, 4], "int64")
    _, terms = loss({"joint": logits}, labels)
    assert float(terms["SquaredLoss/joint"]) == 2
    assert isinstance(loss.terms["MixedLoss"].losses[1], SquaredLoss)
    assert float(loss.terms["MixedLoss"].losses[1](logits, labels)) == 3

    _, posterize = builder.build_transforms(config.val_dataset.transforms)
    sample = posterize({"img": np.array([63, 64, 255])}, np.random.default_rng(0))
    assert sample["img"].tolist() == [0, 64, 192]


# --- The tables. ---


def test_a_name_is_in_one_table() -> None:
    names = [name for table in components.KINDS.values() for name in table]
    assert len(set(names)) == len(names)


def test_nothing_is_imported_before_it_is_named(tmp_path: Path) -> None:
    """Not Paddle by reading a recipe, and by the builder no component that the recipe does not name."""
    (tmp_path / "a.yml").write_text(RECIPE.replace("SquaredLoss", "CrossEntropyLoss").replace(", factor: 3", ""))
    program = (
        "import sys; from hmsa.config.reading import load_config\n"
        "config = load_config(sys.argv[1], ['val_dataset=', 'loss.types=[{type: CrossEntropyLoss}]'])\n"
        "print('paddle' in sys.modules)\n"
        "from hmsa import builder; builder.build_loss(config)\n"
        "print([f'hmsa.losses.{name}' in sys.modules for name in ('cross_entropy', 'dice')])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.yml")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["False", "[True, False]"]
