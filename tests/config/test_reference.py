# SPDX-License-Identifier: Apache-2.0
"""What editors and readers are told about recipes: a sentence for every key, up to date, and true of every recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hmsa.config import reference
from hmsa.config.reading import load_config

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "configs/schema.json"
FILES = sorted((ROOT / "configs").rglob("*.yml"))
RENEW = "run hmsa schema --output configs/schema.json && hmsa schema --markdown --output docs/configuration.md"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = reference.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


KEYS = [(spec, key) for spec in reference.specs() for key in spec.model_fields]


@pytest.mark.parametrize(("spec", "key"), KEYS, ids=[f"{spec.__name__}.{key}" for spec, key in KEYS])
def test_every_key_has_a_sentence(spec: Any, key: str) -> None:
    text = reference.sentence(spec, key)
    place = f"{spec.__module__}.{spec.__name__}.{key}"
    assert text, f'{place}: write what it is below it, as """A sentence.""", for editors and docs/configuration.md'
    assert text[0].isupper() or text[0] in "[-" or text.startswith(("false", "true")), f"{place}: {text}"
    assert text.endswith(".") and "\n\n" not in text, f"{place}: {text}"


def test_the_schema_that_ships_is_that_of_the_specs() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == reference.json_schema(), RENEW


def test_the_page_is_that_of_the_specs() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference.markdown(), RENEW


def test_the_page_names_every_key_and_its_links_lead_somewhere() -> None:
    page = reference.markdown()
    assert [key for _, key in KEYS if key != "type" and f"| `{key}` |" not in page] == []
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\(#([a-z-]+)\)", page)) <= headings
    assert "None" not in page and "anything" not in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_and_fits_it(path: Path, validator: Any) -> None:
    text = path.read_text(encoding="utf-8")
    (named,) = re.findall(r"\A# yaml-language-server: \$schema=(.+)\n", text)
    assert (path.parent / named).resolve() == SCHEMA
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "configs"], ids=lambda path: path.stem)
def test_a_whole_recipe_fits_too(path: Path, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(load_config(path).dump()))] == []


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {beta2: 0.98}",  # of a type that is inherited
        "optimizer: {type: Adam, epsilon: 1.0e-8}",  # Paddle's
        "optimizer: {_inherited_: false, type: SGD}",
        "_base_: [mscale_ocr_toy, other.yml]",
        "ema: null",
        "ignore: [255, [0, 0, 0]]",
        "ignore: {values: [255]}",
        "classes: [{name: road, values: [50, 100]}, {name: car, values: [[255, 0, 0]]}]",
        "test_config: {scales: 0.5}",
        # PaddleSeg's words.
        "model: {n_scales: [0.5, 1.0]}",
        "learning_rate: {value: 0.1, decay: {type: poly, power: 2}}",
        "loss: {types: [{type: DiceLoss}], coef: [1, 0.4, 0.05, 0.05]}",
        "loss: {types: [{type: BootstrappedCrossEntropyLoss, min_k: 3, loss_th: 0.1}]}",
        "loss: {types: [{type: dice_loss}]}",
        "val_dataset: {transforms: [{type: ResizeByLong, long_size: 5}]}",
    ],
)
def test_the_schema_takes_what_recipes_may_say(text: str, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "iter: 3",
        "iters: 0",
        "iters: 5.5",
        "precision: fp8",
        "optimizer: {beta3: 0.98}",
        "optimizer: {type: SGD, beta2: 0.98}",
        "model: {num_classes: 1}",
        "model: {backbone: {type: 5}}",
        "classes: [{color: [0, 0, 0]}]",
        "classes: [{name: road, values: [[0, 0, 256]]}]",
        "loss: {types: [{smooth: 1}]}",
        "loss: {types: [{type: DiceLoss, smoth: 1}]}",
        "loss: {types: [{type: MixedLoss, losses: [{type: DiceLoss, smoth: 1}], coef: [1]}]}",
        "loss: {coef: {jont: 1.0}}",
        "train_dataset: {dataset_root: 5}",
        "train_dataset: {transforms: [{type: Normalize, men: [0, 0, 0]}]}",
        "test_config: {average: mean}",
    ],
)
def test_the_schema_refuses_mistakes(text: str, validator: Any) -> None:
    assert list(validator.iter_errors(yaml.safe_load(text)))
