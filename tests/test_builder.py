# SPDX-License-Identifier: Apache-2.0
"""From recipes to objects: what is built, what PaddleSeg adds, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa import builder, components
from hmsa.config.fields import Unchecked, arguments
from hmsa.config.reading import load_config
from hmsa.config.schema import Config
from hmsa.datasets.cityscapes import CLASSES
from hmsa.datasets.classes import Classes
from hmsa.errors import DataError, UsageError

RECIPE = """
iters: 100
model:
  type: MscaleOCRNet
  num_classes: 19
  backbone: {type: HRNet_W18_NV_Small_V1}
  ocr_mid_channels: 16
  ocr_key_channels: 8
  attention_mid_channels: 8
optimizer: {type: SGD, momentum: 0.9, weight_decay: 0.5}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.1, power: 2, end_lr: 0}
loss:
  types: [{type: DiceLoss}, {type: BootstrappedCrossEntropyLoss, min_K: 5, loss_th: 0.1}]
  coef: {joint: 1, low: 0.5}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A function from options to a config."""
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return lambda *options: load_config(path, options)


def refused(build: Any, *args: Any) -> str:
    with pytest.raises(UsageError) as info:
        build(*args)
    return str(info.value)


# --- The schema says what the constructors say. ---


CHECKED = [
    pytest.param(spec, components.imported(place), id=name)
    for table in components.KINDS.values()
    for name, (spec, place) in table.items()
    if not issubclass(spec, (Unchecked, components.RandomDistortSpec))
]


FROM_PYTHON = (components.NetworkSpec, components.CityscapesAutolabelingSpec)
"""Specs of what is made from Python, too: the constructor has their defaults."""


@pytest.mark.parametrize(("spec", "constructor"), CHECKED)
def test_schema_and_constructor_agree(spec: Any, constructor: Any) -> None:
    of_builder = {"transforms", "num_classes", "ignore_index"} if "transforms" in spec.model_fields else set()
    of_builder |= {
        "in_channels",
        "learning_rate",
        "parameters",
        "decay_steps",
        "pretrained",
        "warmup_iters",
        "warmup_start_lr",
    }
    of_paddle = {"last_epoch", "verbose", "cycle"} if "paddle" in constructor.__module__ else set()
    given = inspect.signature(constructor).parameters
    parameters = {name: p for name, p in given.items() if p.kind is not p.VAR_KEYWORD}  # those are handed on
    fields = {key: field for key, field in spec.model_fields.items() if not field.exclude and key != "type"}
    assert set(parameters) - of_builder - of_paddle == set(fields) - of_builder

    with_defaults = {key for key in set(fields) - of_builder if parameters[key].default is not inspect.Parameter.empty}
    if "paddle" in constructor.__module__ or issubclass(spec, FROM_PYTHON):
        for key in with_defaults:
            default = parameters[key].default
            assert fields[key].default == (list(default) if isinstance(default, tuple) else default)
    else:
        assert not with_defaults, "defaults stand in the Spec alone"


def test_the_distortion_takes_each_of_its_options() -> None:
    given = arguments(components.RandomDistortSpec(type="RandomDistort"))
    distortion = components.imported(components.TRANSFORMS["RandomDistort"][1])
    for key in given:
        with pytest.raises(KeyError, match=key):
            distortion(**{other: value for other, value in given.items() if other != key})


def test_every_component_is_where_its_table_says() -> None:
    for table in components.KINDS.values():
        for name, (_, place) in table.items():
            assert callable(components.imported(place)), name


# --- The network. ---


def test_options_of_the_network_reach_it(recipe: Any) -> None:
    model = builder.build_model(recipe("model.align_corners=true", "model.scales=[1, 2]", "model.recompute=true"))
    assert model.scales == (2.0, 1.0)
    assert (model.align_corners, model.recompute) == (True, True)
    assert (model.backbone.align_corners, model.backbone.recompute) == (True, True)
    assert model.scale_attn.conv0.weight.shape == [8, 16, 3, 3]


def test_the_seed_fixes_the_initial_weights(recipe: Any) -> None:
    first, again, other = (builder.build_model(recipe(f"seed={seed}")).ocr.cls_head.weight for seed in (1, 1, 2))
    assert bool((first == again).all())
    assert not bool((first == other).any())


def test_one_process_keeps_plain_batch_norm(recipe: Any) -> None:
    layers = builder.build_model(recipe()).sublayers()
    assert any(isinstance(layer, paddle.nn.BatchNorm2D) for layer in layers)
    assert not any(isinstance(layer, paddle.nn.SyncBatchNorm) for layer in layers)


def test_several_gpus_synchronise_batch_norm(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "world_size", lambda: 2)
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:1")
    layers = builder.build_model(recipe()).sublayers()
    assert not any(isinstance(layer, paddle.nn.BatchNorm2D) for layer in layers)
    assert any(isinstance(layer, paddle.nn.SyncBatchNorm) for layer in layers)


def test_a_backbone_of_paddleseg(recipe: Any) -> None:
    model = builder.build_model(recipe("model.backbone={type: STDC1}", "model.backbone_indices=[2]"))
    model.eval()
    assert model(paddle.zeros([1, 3, 64, 96]))["joint"].shape == [1, 19, 64, 96]


def test_layers_of_a_backbone_that_nothing_trains_are_told(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def optimizer_with(*indices: int) -> Any:
        config = recipe("model.backbone={type: STDC1}", f"model.backbone_indices={list(indices)}")
        model = builder.build_model(config)
        return builder.build_optimizer(config, builder.build_lr_scheduler(config), model)

    optimizer_with(2, 4)
    assert capfd.readouterr().err == ""
    optimizer_with(2)
    said = capfd.readouterr().err
    assert "expected model.backbone_indices to reach all of STDC1, found [2], which leave " in said
    assert said.endswith("choose 4, its last feature map, or others with it\n")

    monkeypatch.setattr(builder, "world_size", lambda: 2)
    monkeypatch.setattr(builder, "on_gpu", lambda: True)
    monkeypatch.setattr(builder.paddle.nn.SyncBatchNorm, "convert_sync_batchnorm", lambda network: network)
    assert "found [2], which leave " in refused(optimizer_with, 2)


@pytest.mark.parametrize(("name", "indices"), [("hrnet_w18_nv_small_v1", [0]), ("HRNET_W18_nv", [0]), ("stdc1", [2])])
def test_backbones_are_known_in_other_spellings(recipe: Any, name: str, indices: list) -> None:
    model = builder.build_model(recipe(f"model.backbone={{type: {name}}}", f"model.backbone_indices={indices}"))
    assert type(model.backbone).__name__.lower() in (name.replace("_", "").lower(), "hrnet", "stdcnet")


def test_other_spellings_of_other_components(recipe: Any, tmp_path: Path) -> None:
    assert steps(recipe("optimizer={type: momentum, momentum: 0.5}"), [1.0, 1.0]) == pytest.approx([0.9, 0.75])
    assert steps(recipe("optimizer={type: adam, beta1: 0.8}"), [1.0, 1.0]) == pytest.approx([0.9, 0.8], abs=1e-5)
    values = rates(recipe("lr_scheduler={type: stepdecay, learning_rate: 0.2, step_size: 50, gamma: 0.5}"))
    assert (values[49], values[50]) == pytest.approx((0.2, 0.1))
    sample = {"img": np.zeros((4, 4, 3), np.uint8), "trans_info": [], "gt_fields": []}
    specs = recipe("val_dataset={type: Dataset, transforms: [{type: padding, target_size: [8, 8]}, {type: normalize}]}")
    for transform in builder.build_transforms(specs.val_dataset.transforms):
        sample = transform(sample, np.random.default_rng(0))
    assert sample["img"].shape == (8, 8, 3)


def test_weights_of_a_backbone_are_left_to_who_trains(recipe: Any) -> None:
    config = recipe("model.backbone={type: STDC1, pretrained: nowhere.pdparams}", "model.backbone_indices=[2]")
    builder.build_model(config)
    assert config.model.backbone.pretrained == "nowhere.pdparams"


def test_problems_of_parts_name_their_file(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "upper.yml").write_text(
        "_base_: recipe.yml\nmodel: {backbone_indices: [1]}\noptimizer: {type: Adagradd}"
    )
    config = load_config(tmp_path / "upper.yml")
    assert refused(builder.build_model, config).startswith(f"{tmp_path}/upper.yml: expected model.backbone_indices")
    assert refused(steps, config, []).startswith(f"{tmp_path}/upper.yml: optimizer: expected type to name")
    (tmp_path / "recipe.yml").write_text(RECIPE.replace("Small_V1}", "Small_V1, x: 1}"))
    message = refused(builder.build_model, load_config(tmp_path / "upper.yml"))
    assert message.startswith(f"{tmp_path}/recipe.yml: model.backbone: expected only arguments")


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        ("{type: HRNet_W18_NV_Small_V}", "did you mean HRNet_W18_NV_Small_V"),
        ("{type: STCD1}", "found 'STCD1': did you mean STDC1?"),
        ("{type: Nothing_Like_It_Here}", "choose from HRNet_W18_NV_Small_V1, "),
        (
            "{type: HRNet_W18_NV, recompte: true}",
            "expected only arguments of HRNet_W18_NV, found recompte: did you mean reco",
        ),
        ("{type: STDC1, bas: 16}", "expected arguments that STDC1 accepts, but it says"),
    ],
)
def test_backbones_that_are_refused(recipe: Any, backbone: str, sentence: str) -> None:
    config = recipe(f"model.backbone={backbone}")
    message = refused(builder.build_model, config)
    assert message.startswith("opts: model.backbone: expected ")
    assert sentence in message


def mute(**options: Any) -> paddle.nn.Layer:
    return paddle.nn.Identity()


def test_backbones_must_tell_their_channels(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(components.BACKBONES, "Mute", (components.UncheckedBackboneSpec, f"{__name__}:mute"))
    message = refused(builder.build_model, recipe("model.backbone={type: Mute}"))
    assert "to be below 0, the number of feature maps of Mute, found [0]" in message


def test_backbone_indices_must_exist(recipe: Any) -> None:
    message = refused(builder.build_model, recipe("model.backbone_indices=[1]"))
    assert "expected model.backbone_indices to be below 1" in message
    assert "found [1]" in message


def test_what_a_constructor_says_is_shortened(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: Any) -> None:
        raise MemoryError("C++ Traceback\n...\n----\nError Message Summary:\n----\nno room\n" + "here " * 999)

    monkeypatch.setattr("hmsa.models.hierarchical.MscaleOCRNet", fail)
    message = refused(builder.build_model, recipe())
    assert ": model: expected arguments that MscaleOCRNet accepts, but it says: no room here here" in message
    assert len(message) < 700


# --- Losses. ---


def test_the_loss_weighs_outputs_by_name(recipe: Any) -> None:
    logits = paddle.randn([2, 19, 8, 8])
    labels = paddle.randint(0, 19, [2, 8, 8])
    outputs = dict.fromkeys(("joint", "joint_aux", "low", "high"), logits)
    total, terms = builder.build_loss(recipe())(outputs, labels)
    single, _ = builder.build_loss(recipe("loss.coef={joint: 1}"))(outputs, labels)
    assert float(total) == pytest.approx(1.5 * float(single), rel=1e-5)
    assert len(terms) == 4  # two losses on two outputs


def test_losses_of_paddleseg_nested_ones_too(recipe: Any) -> None:
    mixed = "{type: MixedLoss, coef: [1, 2], losses: [{type: LovaszSoftmaxLoss}, {type: DiceLoss}]}"
    loss = builder.build_loss(recipe(f"loss.types=[{mixed}]", "loss.coef={joint: 1}"))
    total, _ = loss({"joint": paddle.zeros([1, 19, 8, 8])}, paddle.zeros([1, 8, 8], "int64"))
    assert np.isfinite(float(total))


def test_losses_that_are_refused(recipe: Any) -> None:
    message = refused(builder.build_loss, recipe("loss.types.0.type=CrossEntropyLos"))
    assert "loss.types.0: expected type to name a loss" in message
    assert "did you mean CrossEntropyLoss?" in message
    message = refused(builder.build_loss, recipe("loss.types.0={type: LovaszSoftmaxLoss, clases: all}"))
    assert "expected only arguments of LovaszSoftmaxLoss, found clases: did you mean classes?" in message
    message = refused(builder.build_loss, recipe("loss.types.0={type: MultiClassFocalLoss}"))
    assert "expected arguments that MultiClassFocalLoss accepts, but it says: " in message and "'num_class'" in message
    mixed = "loss.types.0={type: MixedLoss, coef: [1, 1], losses: [{type: DiceLoss}, {type: KLLoss}]}"
    message = refused(builder.build_loss, recipe(mixed))
    assert "loss.types.0.losses.1: expected a loss on logits and labels" in message
    assert "found KLLoss, which fails in a trial (The shape of logit_1" in message


def test_a_mixture_is_made_of_our_losses(recipe: Any) -> None:
    parts = (
        "{type: DiceLoss}, {type: MixedLoss, losses: [{type: CrossEntropyLoss}], coef: [1]}, "
        "{type: OhemCrossEntropyLoss}, {type: BootstrappedCrossEntropyLoss, min_K: 5, loss_th: 0.1}"
    )
    loss = builder.build_loss(recipe(f"loss.types=[{{type: MixedLoss, coef: [1, 2, 3, 4], losses: [{parts}]}}]"))
    mixture = loss.terms["MixedLoss"]
    dice, inner, ohem, bootstrapped = mixture.losses
    assert [type(part) for part in (dice, *inner.losses, ohem, bootstrapped)] == [
        components.imported(components.LOSSES[name][1])
        for name in ("DiceLoss", "CrossEntropyLoss", "OhemCrossEntropyLoss", "BootstrappedCrossEntropyLoss")
    ]
    assert mixture.coef == [1, 2, 3, 4]


# --- Schedule and optimizer. ---


def rates(config: Config) -> list[float]:
    """The rate of every iteration."""
    scheduler = builder.build_lr_scheduler(config)
    values = []
    for _ in range(config.iters):
        values.append(scheduler.get_lr())
        scheduler.step()
    return values


@settings(deadline=None, max_examples=25)
@given(
    iters=st.integers(2, 60),
    power=st.floats(0.5, 3),
    end=st.floats(0, 0.05),
    warmup=st.integers(0, 20),
    start=st.floats(0, 0.05),
)
def test_polynomial_decay_with_warm_up(
    tmp_path_factory: Any, iters: int, power: float, end: float, warmup: int, start: float
) -> None:
    warmup = min(warmup, iters - 1)
    start = start if warmup else 0
    path = tmp_path_factory.getbasetemp() / "rates.yml"
    path.write_text(RECIPE)
    settings_ = {"power": power, "end_lr": end, "warmup_iters": warmup, "warmup_start_lr": start}
    config = load_config(path, [f"iters={iters}", *(f"lr_scheduler.{k}={v!r}" for k, v in settings_.items())])
    expected = [start + (0.1 - start) * i / warmup for i in range(warmup)]
    left = iters - warmup
    expected += [(0.1 - end) * (1 - i / left) ** power + end for i in range(left)]
    assert rates(config) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_reference_schedule(recipe: Any) -> None:
    assert rates(recipe()) == pytest.approx([0.1 * (1 - i / 100) ** 2 for i in range(100)])


def test_schedulers_of_paddle(recipe: Any) -> None:
    cosine = "lr_scheduler={type: CosineAnnealingDecay, learning_rate: 0.2, T_max: 90, warmup_iters: 10}"
    values = rates(recipe(cosine))
    assert (values[0], values[5]) == (0.0, pytest.approx(0.1))
    assert values[10] == pytest.approx(0.2)
    assert values[55] == pytest.approx(0.1)
    message = refused(rates, recipe("lr_scheduler={type: ReduceOnPlateau, learning_rate: 0.2}"))
    assert "expected type to name a scheduler" in message  # it would have to be told the score at every step
    message = refused(rates, recipe("lr_scheduler={type: CosineAnealingDecay, learning_rate: 0.2}"))
    assert "did you mean CosineAnnealingDecay?" in message
    message = refused(rates, recipe("lr_scheduler={type: CosineAnnealingDecay, learning_rate: 0.2}"))
    assert "lr_scheduler: expected arguments that CosineAnnealingDecay accepts, but it says: " in message
    assert "'T_max'" in message


def steps(config: Config, gradients: list[float]) -> list[float]:
    """A weight that starts at 1, after each of a few steps with the given gradients, at a rate of 0.1."""
    layer = paddle.nn.Linear(1, 1, bias_attr=False)
    layer.weight.set_value(paddle.ones([1, 1]))
    scheduler = paddle.optimizer.lr.LambdaDecay(0.1, lambda epoch: 1.0)
    optimizer = builder.build_optimizer(config, scheduler, layer)
    values = []
    for gradient in gradients:
        (layer.weight * gradient).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        values.append(float(layer.weight))
    return values


def test_sgd_is_momentum_with_coupled_decay(recipe: Any) -> None:
    # gradient 1 + decay 0.5 * weight 1 = 1.5; then velocity 0.9 * 1.5 + 1 + 0.5 * 0.85 = 2.775
    assert steps(recipe(), [1.0, 1.0]) == pytest.approx([1 - 0.15, 0.85 - 0.2775])


def test_sgd_without_momentum_and_decay(recipe: Any) -> None:
    config = recipe("optimizer={type: SGD, momentum: 0}")
    assert steps(config, [1.0, 2.0]) == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_gradients_are_clipped_by_their_norm(recipe: Any, momentum: float) -> None:
    config = recipe(f"optimizer={{type: SGD, momentum: {momentum}, clip_grad_norm: 0.5}}")
    assert steps(config, [4.0]) == pytest.approx([0.95])


def test_adamw(recipe: Any) -> None:
    # The first step of Adam is the rate itself; decoupled decay takes 0.1 * 0.2 of the weight before it.
    config = recipe("optimizer={type: AdamW, weight_decay: 0.2, clip_grad_norm: 100}")
    assert steps(config, [3.0]) == pytest.approx([1 - 0.02 - 0.1], abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("{type: Momentum, momentum: 0.5}", [0.9, 0.75]),  # PaddleSeg's
        ("{type: Adam, beta1: 0.8}", [0.9, 0.8]),  # PaddleSeg's
        ("{type: Adagrad}", [0.9, 0.9 - 0.1 / 2**0.5]),  # Paddle's
    ],
)
def test_optimizers_of_paddleseg_and_paddle(recipe: Any, optimizer: str, expected: list) -> None:
    assert steps(recipe(f"optimizer={optimizer}"), [1.0, 1.0]) == pytest.approx(expected, abs=1e-5)


def test_optimizers_that_are_refused(recipe: Any) -> None:
    assert "did you mean AdamW?" in refused(steps, recipe("optimizer={type: AdamWW}"), [])
    message = refused(steps, recipe("optimizer={type: Momentum, weight_decy: 1}"), [])
    assert "expected only arguments of Momentum, found weight_decy: did you mean weight_decay?" in message
    message = refused(steps, recipe("optimizer={type: Momentum, weight_decay: 1}"), [])
    assert "expected arguments that Momentum accepts, but it says: `weight_decay` must be a float" in message
    message = refused(steps, recipe("optimizer={type: Momentum, custom_cfg: [{lr_mult: 0.1}]}"), [])  # without a name
    assert "optimizer: expected arguments that Momentum accepts, but it says: 'name'" in message
    message = refused(steps, recipe("optimizer={type: Adagrad, learning_rate: 0.1}"), [])
    assert "expected learning_rate to be left to lr_scheduler and model, found it: remove it" in message
    # Its step would have to be given the loss as a function.
    assert "found 'LBFGS': " in refused(steps, recipe("optimizer={type: LBFGS}"), [])


# --- Data. ---


def write_cityscapes(root: Path, splits: dict[str, int]) -> None:
    """So many grey images of 96x64 in each split of the Cityscapes tree, all road but for one ignored corner."""
    label = np.zeros((64, 96), np.uint8)
    label[0, 0] = 255
    for split, count in splits.items():
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / split / "city").mkdir(parents=True)
        for i in range(count):
            image = root / "leftImg8bit" / split / "city" / f"city_{i}_leftImg8bit.png"
            cv2.imwrite(str(image), np.full((64, 96, 3), 100 + i, np.uint8))
            cv2.imwrite(str(root / "gtFine" / split / "city" / f"city_{i}_gtFine_labelTrainIds.png"), label)


def cityscapes(root: Path, split: str, transforms: str) -> str:
    fields = f"type: CityscapesAutolabeling, dataset_root: {root}, mode: {split}, coarse_multiple: 0"
    return f"{split}_dataset={{{fields}, transforms: {transforms}}}"


def test_datasets_of_the_recipe(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 3, "val": 2})
    crop = "[{type: RandomPaddingCrop, crop_size: [80, 64]}, {type: Normalize}]"
    config = recipe(cityscapes(tmp_path, "train", crop), cityscapes(tmp_path, "val", "[{type: Normalize}]"), "seed=11")
    train, val = builder.build_dataset(config, "train"), builder.build_dataset(config, "val")
    assert (len(train), len(val), len(train.classes), train.seed) == (3, 2, 19, 11)
    assert train[0]["img"].shape == (3, 64, 80)
    assert train[0]["label"].shape == (64, 80)
    assert val[1]["img"].shape == (3, 64, 96)
    assert val[1]["img"][0, 0, 0] == pytest.approx((101 / 255 - 0.5) / 0.5, abs=1e-6)
    assert builder.inference_transforms(config) == config.val_dataset.transforms


def test_only_training_leaves_bad_samples_out(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 2, "val": 2})
    stem = "train/city/city_0_"
    (tmp_path / "list.txt").write_text(f"leftImg8bit/{stem}leftImg8bit.png gtFine/{stem}gtFine_labelTrainIds.png")
    lists = (
        f"mode: train, dataset_root: {tmp_path}, train_path: {tmp_path / 'list.txt'}, transforms: [{{type: Normalize}}]"
    )
    theirs = f"train_dataset={{type: Dataset, num_classes: 19, {lists}}}"
    for train in (cityscapes(tmp_path, "train", "[{type: Normalize}]"), theirs):
        given = [train, cityscapes(tmp_path, "val", "[{type: Normalize}]"), "bad_sample_limit=7"]
        for chosen, limit in (("error", None), ("skip", 7)):
            config = recipe(*given, f"on_bad_sample={chosen}")
            assert builder.build_dataset(config, "train").bad_sample_limit == limit
            assert builder.build_dataset(config, "val").bad_sample_limit is None


def test_sections_that_are_missing(recipe: Any) -> None:
    assert "expected the section val_dataset" in refused(builder.build_dataset, recipe(), "val")
    assert "expected the section loss" in refused(builder.build_loss, recipe("loss="))
    assert "expected the section optimizer" in refused(steps, recipe("optimizer="), [])
    assert "expected the section lr_scheduler" in refused(rates, recipe("lr_scheduler="))


def test_prediction_prepares_pictures_as_imagenet_does_unless_told(recipe: Any) -> None:
    (normalize,) = builder.inference_transforms(recipe())
    assert (normalize.mean, normalize.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert len(builder.build_transforms([normalize])) == 1


def test_transforms_of_paddleseg_take_our_generator(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 1})
    noise = "[{type: RandomNoise, prob: 1.0}, {type: RandomVerticalFlip, prob: 1.0}, {type: Normalize}]"
    dataset = builder.build_dataset(recipe(cityscapes(tmp_path, "train", noise)), "train")
    first, again, other = dataset[0], dataset[0], dataset[1]
    assert np.array_equal(first["img"], again["img"])
    assert not np.array_equal(first["img"], other["img"])
    assert (first["label"][0, 0], first["label"][-1, 0]) == (0, 255)


def test_transforms_that_are_refused(recipe: Any) -> None:
    options = "{type: Dataset, num_classes: 19, transforms: [{type: Normalize}, %s]}"
    message = refused(builder.build_dataset, recipe("val_dataset=" + options % "{type: ResizeByLongg}"), "val")
    assert "val_dataset.transforms.1: expected type to name a transform" in message
    assert "did you mean ResizeByLong?" in message
    message = refused(
        builder.build_dataset, recipe("val_dataset=" + options % "{type: ResizeByLong, long_sze: 1}"), "val"
    )
    assert "expected only arguments of ResizeByLong, found long_sze: did you mean long_size?" in message
    missing, unknown = refused(recipe, "val_dataset=" + options % "{type: Padding, target_sze: 3}").splitlines()
    assert "expected val_dataset.transforms.1.target_size to be given, found nothing: add it" in missing
    assert "found val_dataset.transforms.1.target_sze: did you mean target_size?" in unknown
    message = refused(recipe, "val_dataset=" + options % "{type: Padding, target_size: [0, 9]}")
    assert "expected val_dataset.transforms.1.target_size.0 to be greater than or equal to 1, found 0" in message


def test_a_data_set_of_lists(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 2})
    stem = "train/city/city_{}_"
    lines = [f"leftImg8bit/{stem}leftImg8bit.png gtFine/{stem}gtFine_labelTrainIds.png".format(i, i) for i in range(2)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    fields = f"type: Dataset, num_classes: 19, mode: val, dataset_root: {tmp_path}, val_path: {tmp_path / 'list.txt'}"
    dataset = builder.build_dataset(recipe(f"val_dataset={{{fields}, transforms: [{{type: Normalize}}]}}"), "val")
    assert len(dataset) == 2
    assert dataset[1]["img"][0, 0, 0] == pytest.approx((101 / 255 - 0.5) / 0.5, abs=1e-6)
    assert dataset[1]["label"].dtype == np.int64

    normalize = "transforms: [{type: Normalize}]"
    short = f"{{type: Dataset, dataset_root: {tmp_path}, train_path: list.txt, val_path: list.txt, {normalize}}}"
    config = recipe(f"train_dataset={short}", f"val_dataset={short}", "max_image_pixels=100")
    training, evaluating = (builder.build_dataset(config, split) for split in ("train", "val"))
    assert (training.training, evaluating.training) == (True, False)
    assert len(training.classes) == len(evaluating.classes) == config.model.num_classes
    with pytest.raises(DataError, match=r"expected 1 to 100 pixels in all; .* raise max_image_pixels"):
        training[0]


def test_a_data_set_of_paddleseg(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"train": 1})
    stem = "train/city/city_0_"
    (tmp_path / "val_list.txt").write_text(f"leftImg8bit/{stem}leftImg8bit.png gtFine/{stem}gtFine_labelTrainIds.png")
    options = (
        f"val_dataset={{type: OpticDiscSeg, mode: val, dataset_root: {tmp_path}, transforms: [{{type: Normalize}}]}}"
    )
    config = recipe("model.num_classes=2", options, "max_image_pixels=100")
    data = builder.build_dataset(config, "val")
    assert (len(data), len(data.classes), data.max_image_pixels) == (1, 2, 100)


def test_classes_come_from_the_recipe_or_else_from_the_data_set(recipe: Any, tmp_path: Path) -> None:
    cities = cityscapes(tmp_path, "val", "[{type: Normalize}]")
    assert builder.classes(recipe(cities)) == CLASSES
    assert builder.classes(recipe()) == Classes.numbered(19)
    lists = "{type: Dataset, ignore_index: 254, val_path: list.txt, transforms: [{type: Normalize}]}"
    config = recipe(f"val_dataset={lists}", "train_dataset={type: Dataset, transforms: [{type: Normalize}]}")
    assert builder.classes(config) == Classes.numbered(19, ignore_index=254)
    assert builder.classes(config, config.train_dataset) == Classes.numbered(19, ignore_index=255)

    named = [{"name": f"no. {index}"} for index in range(19)]
    named[3]["color"] = [1, 2, 3]
    of_lists, of_cities = (
        builder.classes(recipe(given, f"classes={named}")) for given in (f"val_dataset={lists}", cities)
    )
    assert of_lists.names == of_cities.names == tuple(f"no. {index}" for index in range(19))
    assert (of_lists.colors[3], of_lists.colors[4]) == ((1, 2, 3), Classes.numbered(19).colors[4])
    assert (of_cities.colors[3], of_cities.colors[4]) == ((1, 2, 3), CLASSES.colors[4])
    assert (of_lists.raw_values, of_lists.ignore_index) == (None, 254)
    # Under other names they are the same classes.
    assert (of_cities.raw_values, of_cities.ignore_index) == (CLASSES.raw_values, 255)


def test_a_split_without_labels_is_refused(recipe: Any, tmp_path: Path) -> None:
    write_cityscapes(tmp_path, {"test": 1})
    config = recipe(cityscapes(tmp_path, "val", "[{type: Normalize}]"), "val_dataset.mode=test")
    message = refused(builder.build_dataset, config, "val")
    assert "val_dataset: expected images with labels, found some without (mode test): choose a mode" in message


def test_data_sets_that_are_refused(recipe: Any, tmp_path: Path) -> None:
    transforms = "transforms: [{type: Normalize}]"
    options = f"{{type: CityscapesAutolabelling, {transforms}}}"
    message = refused(builder.build_dataset, recipe(f"train_dataset={options}"), "train")
    assert "train_dataset: expected type to name a dataset" in message
    assert "did you mean CityscapesAutolabeling?" in message
    message = refused(
        builder.build_dataset, recipe(f"train_dataset={{type: Dataset, num_classes: 19, {transforms}}}"), "train"
    )
    assert "train_dataset: expected train_path to name a list, as mode is train, found nothing: add it" in message
    options = f"{{type: OpticDiscSeg, dataset_root: {tmp_path}, mode: val, {transforms}}}"
    (tmp_path / "val_list.txt").write_text("a.png b.png")
    (tmp_path / "train_list.txt").write_text("a.png b.png")
    (tmp_path / "test_list.txt").write_text("a.png b.png")
    message = refused(builder.build_dataset, recipe(f"val_dataset={options}"), "val")
    assert "expected model.num_classes to be the 2 classes of val_dataset, found 19" in message
