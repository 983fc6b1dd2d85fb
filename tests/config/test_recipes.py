# SPDX-License-Identifier: Apache-2.0
"""Every YAML under configs/ loads and builds its parts; one with mistakes builds too, or is refused in a sentence."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmsa.builder import build_loss, build_lr_scheduler, build_model, build_optimizer, build_transforms
from hmsa.config.reading import load_config
from hmsa.config.schema import Config
from hmsa.errors import UsageError
from hmsa.models import BACKBONES

CONFIGS = Path(__file__).parents[1].parent / "configs"
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
    assert config.test_config.average == "softmax"
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


# --- Recipes with mistakes. ---


class SmallBackbone(paddle.nn.Layer):
    feat_channels = (8,)

    def __init__(self, *, align_corners: bool, recompute: bool) -> None:
        super().__init__()


class SmallNetwork(paddle.nn.Linear):
    def __init__(self, *, backbone: Any, **options: Any) -> None:
        super().__init__(1, 1)
        self.backbone = backbone


Path_ = tuple  # of keys and positions, from the root of a tree


def paths(tree: Any, above: Path_ = ()) -> Iterator[Path_]:
    """Where every node of a tree is, but the root."""
    if isinstance(tree, dict):
        children: Any = tree.items()
    else:
        children = enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*above, key)
        yield from paths(child, (*above, key))


TREES = {path: yaml.safe_load(path.read_text()) for path in CONFIGS.rglob("*.yml")}
KEYS = sorted({str(key) for tree in TREES.values() for path in paths(tree) for key in path if isinstance(key, str)})
# Components that stand in a recipe, and some of PaddleSeg's and Paddle's, which refuse arguments in their own ways.
TYPES = [
    *["MscaleOCRNet", "HRNet_W18_NV", "STDC1", "CityscapesAutolabeling", "Dataset", "SGD", "AdamW", "Adam", "Momentum"],
    *["LBFGS", "PolynomialDecay", "CosineAnnealingDecay", "ReduceOnPlateau", "StepDecay", "LinearWarmup", "DiceLoss"],
    *["BootstrappedCrossEntropyLoss", "CrossEntropyLoss", "MixedLoss", "Normalize", "RandomPaddingCrop", "Padding"],
    *["Resize", "ResizeStepScaling", "RandomBlur"],
]
VALUES: list[Any] = [
    *[None, True, 0, 1, -1, 2, 255, 10**6, 2**31, 2**63 - 1, 10**30, 0.0, 0.5, 1e-9, -0.1, 1e300, float("inf")],
    *["", "0.1", "x" * 200, [], [0], [1.0], [64, 64], [1] * 8, ["a"], {}, {"type": "Nothing"}, {"type": 5}],
    *[{"joint": 1}, [{"type": "DiceLoss"}], ["_base_/cityscapes.yml"], "_base_/cityscapes.yml", {"_inherited_": False}],
]


def retyped(value: Any) -> list[Any]:
    """The same in other types, as somebody may write it by mistake."""
    number = [float(value), -value] if isinstance(value, (int, float)) else []
    return [str(value), [value], {"type": value}, {"value": value}, *number]


def files(path: Path) -> list[Path]:
    """A recipe and all its bases."""
    bases = TREES[path].get("_base_", [])
    return [path, *(f for base in ([bases] if isinstance(bases, str) else bases) for f in files(path.parent / base))]


@st.composite
def mistakes(draw: Any) -> tuple[str, str, Any]:
    """A recipe, a file it uses, and that file's tree with one to three nodes replaced, deleted, doubled or retyped."""
    recipe = draw(st.sampled_from(RECIPES))
    file = draw(st.sampled_from(files(recipe)))
    tree = copy.deepcopy(TREES[file])
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths(tree))
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        parent = tree
        for key in above:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "name", "retype", "delete", "double"]))
        if what == "delete":
            del parent[last]
        elif what == "double" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        elif what == "double":
            parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(parent[last])
        else:
            choices = {"replace": VALUES, "name": TYPES, "retype": retyped(parent[last])}[what]
            parent[last] = copy.deepcopy(draw(st.sampled_from(choices)))
    return recipe.name, str(file.relative_to(CONFIGS)), tree


@pytest.fixture
def some_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of configs/ whose networks take no time to build."""
    monkeypatch.setattr("hmsa.models.hrnet.BACKBONES", dict.fromkeys(BACKBONES, SmallBackbone))
    monkeypatch.setattr("hmsa.models.hierarchical.MscaleOCRNet", SmallNetwork)
    return Path(shutil.copytree(CONFIGS, tmp_path / "configs"))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mistakes())
def test_a_recipe_with_mistakes_builds_or_is_refused(some_configs: Path, mistake: tuple[str, str, Any]) -> None:
    recipe, file, tree = mistake
    (some_configs / file).write_text(yaml.safe_dump(tree))
    try:
        build_all(some_configs / recipe)
    finally:
        shutil.copy(CONFIGS / file, some_configs / file)


def build_all(path: Path) -> None:
    """Build every part of a recipe; whatever is refused, is refused with sentences that name the recipe."""

    def refused(build: Any, *arguments: Any) -> Any:
        try:
            return build(*arguments)
        except UsageError as error:
            for line in str(error).split("\n"):
                assert line.isprintable()
                assert line.startswith(str(path.parent))
                assert len(line) < 1500
            return None

    config = refused(load_config, path)
    if config is None:
        return
    model = refused(build_model, config)
    refused(build_loss, config)
    scheduler = refused(build_lr_scheduler, config)
    if model and scheduler:
        refused(build_optimizer, config, scheduler, model)
    for section in (config.train_dataset, config.val_dataset):
        if section:
            refused(lambda specs=section.transforms: build_transforms(specs, where=f"{path}: transforms"))
