# SPDX-License-Identifier: Apache-2.0
"""Every YAML under configs/ loads and builds its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmsa.builder import build_loss, build_lr_scheduler, build_model, build_optimizer, build_transforms
from hmsa.config import Config, load_config

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(path: Path) -> None:
    config = load_config(path)
    config.require("train_dataset", "val_dataset", "loss", "optimizer", "lr_scheduler")
    model = build_model(config)
    assert model.num_classes == 19
    assert model.scales == tuple(sorted(config.model.scales, reverse=True))
    assert build_optimizer(config, build_lr_scheduler(config), model).get_lr() >= 0
    build_loss(config)
    for dataset in (config.train_dataset, config.val_dataset):
        assert len(build_transforms(dataset.transforms)) == len(dataset.transforms) > 0


def test_the_two_recipes_of_the_reference() -> None:
    name = "mscale_ocr_cityscapes_autolabel_mapillary"
    config = load_config(CONFIGS / f"{name}.yml")
    five_scales = load_config(CONFIGS / f"{name}_ms_val.yml")
    assert (config.iters, config.batch_size, config.model.scales) == (65000, 1, [0.5, 1.0, 2.0])
    assert five_scales.model.scales == [0.5, 1.0, 1.5, 2.0, 2.5]
    same = {"exclude": {"model": {"scales"}}}
    assert config.model_dump(**same) == five_scales.model_dump(**same)
    optimizer, rate = config.optimizer, config.lr_scheduler
    assert (optimizer.type, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.9, 1e-4)
    assert (rate.learning_rate, rate.power, rate.end_lr, rate.warmup_iters) == (0.005, 2.0, 0.0, 0)
    scaling, crop, flip, distort, normalize = config.train_dataset.transforms
    assert (scaling.min_scale_factor, scaling.max_scale_factor, scaling.scale_step_size) == (0.5, 2.0, 0.0)
    assert (crop.crop_size, flip.prob) == ([2048, 1024], 0.5)
    assert (distort.brightness_range, distort.contrast_range, distort.saturation_range) == (0.25, 0.25, 0.25)
    assert (distort.hue_range, distort.hue_prob, distort.brightness_prob) == (63, 1, 1)
    assert (distort.contrast_prob, distort.saturation_prob) == (1, 1)
    assert (normalize.mean, normalize.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert config.val_dataset.transforms == [normalize]
    assert (config.train_dataset.coarse_multiple, config.train_dataset.add_val) == (1.0, False)
    dice, cross_entropy = config.loss.types
    assert (dice.smooth, cross_entropy.min_K, cross_entropy.loss_th) == (1.0, 100000, 0.05)
    assert config.loss.coef == {"joint": 1.0, "joint_aux": 0.4, "low": 0.05, "high": 0.05}


def test_every_fragment_is_used() -> None:
    used = {name for path in CONFIGS.rglob("*.yml") for name in path.read_text().split() if name.endswith(".yml")}
    for fragment in (CONFIGS / "_base_").glob("*.yml"):
        assert {fragment.name, f"_base_/{fragment.name}"} & used, f"no recipe uses {fragment.name}"


def test_recipes_resolve_to_themselves(tmp_path: Path) -> None:
    for path in RECIPES:
        config = load_config(path)
        copy = tmp_path / path.name
        copy.write_text(config.dump())
        again: Config = load_config(copy)
        assert again == config
        assert again.path == str(copy)
