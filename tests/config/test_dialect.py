# SPDX-License-Identifier: Apache-2.0
"""PaddleSeg's CityscapesSOTA dialect loads to the same recipe as ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hmsa.components import checked_specs
from hmsa.config import dialect
from hmsa.config.reading import load_config
from hmsa.errors import UsageError

CONFIGS = Path(__file__).parents[1].parent / "configs"
NORMALIZE = "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
REFERENCE = f"""
model:
  type: MscaleOCRNet
  backbone: {{type: HRNet_W48_NV}}
  backbone_indices: [0]
  num_classes: 19
  n_scales: [0.5, 1.0, 2.0]
  pretrained: pretrain/pretrained.pdparams
iters: 65000
batch_size: 1
learning_rate:
  decay: {{type: poly, end_lr: 0.0, power: 2}}
  value: 0.005
optimizer: {{type: sgd, weight_decay: 0.0001, momentum: 0.9}}
val_dataset:
  type: CityscapesAutolabeling
  mode: val
  dataset_root: data/cityscapes
  transforms: [{NORMALIZE}]
train_dataset:
  type: CityscapesAutolabeling
  mode: train
  dataset_root: data/cityscapes
  transforms:
  - {{type: ResizeStepScaling, scale_step_size: 0, min_scale_factor: 0.5, max_scale_factor: 2.0}}
  - {{type: RandomPaddingCrop, crop_size: [2048, 1024]}}
  - {{type: RandomHorizontalFlip}}
  - type: RandomDistort
    hue_range: 63
    hue_prob: 1
    saturation_range: 0.25
    saturation_prob: 1
    contrast_range: 0.25
    contrast_prob: 1
    brightness_range: 0.25
    brightness_prob: 1
  - {NORMALIZE}
"""
LOSS = {
    "types": [{"type": "dice_loss"}] * 4
    + [{"type": "BootstrappedCrossEntropyLoss", "min_K": 100000, "loss_th": 0.05}] * 4,
    "coef": [1, 0.4, 0.05, 0.05] * 2,
}


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.yml"
    path.write_text(REFERENCE + yaml.safe_dump({"loss": LOSS}))
    return path


def test_the_reference_recipe_is_ours(reference: Path) -> None:
    ours = load_config(CONFIGS / "mscale_ocr_cityscapes_autolabel_mapillary.yml")
    # In how flips are averaged PaddleSeg's newer versions, which read the same file, differ from the first.
    assert load_config(reference, ["test_config.average=softmax"]).dump() == ours.dump()


def test_the_reference_recipe_without_losses_loads_for_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "ms_val.yml"
    path.write_text(REFERENCE.replace("[0.5, 1.0, 2.0]", "[0.5, 1.0, 1.5, 2.0, 2.5]"))
    config = load_config(path)
    ours = load_config(CONFIGS / "mscale_ocr_cityscapes_autolabel_mapillary_ms_val.yml")
    assert (config.model, config.val_dataset, config.loss) == (ours.model, ours.val_dataset, None)


BODY, RATE, OPTIMIZER = (
    re.sub(r"(?s)(learning_rate:.*?)(?=optimizer:)|(optimizer:[^\n]*\n)", "", REFERENCE),
    "learning_rate: {decay: {type: poly, end_lr: 0.0, power: 2}, value: 0.005}\n",
    "optimizer: {type: sgd, weight_decay: 0.0001, momentum: 0.9}\n",
)
NEW_RATE = "lr_scheduler: {type: PolynomialDecay, learning_rate: 0.005, power: 2, end_lr: 0.0}\n"


def losses(dice: str, cross_entropy: str, min_k: str) -> str:
    types = [{"type": dice}] * 4 + [{"type": cross_entropy, min_k: 100000, "loss_th": 0.05}] * 4
    return yaml.safe_dump({"loss": {**LOSS, "types": types}})


CAPITALS = losses("DiceLoss", "BootstrappedCrossEntropyLoss", "min_K")
SMALL = losses("diceloss", "bootstrappedcrossentropyloss", "min_k")
VERSIONS = {
    "2.0 to 2.2": BODY + RATE + OPTIMIZER + CAPITALS,
    "2.3 to 2.8": BODY + NEW_RATE + OPTIMIZER + CAPITALS,
    "2.9 and later": BODY + NEW_RATE.replace("PolynomialDecay", "polynomialdecay") + OPTIMIZER + SMALL,
    "with words apart": BODY
    + NEW_RATE.replace("PolynomialDecay", "polynomial_decay")
    + OPTIMIZER
    + losses("dice_loss", "bootstrapped_cross_entropy_loss", "min_k"),
    "spelled in two ways": BODY + NEW_RATE + OPTIMIZER + SMALL.replace("diceloss", "DiceLoss", 2),
    "all in lower case": re.sub(r"type: (\w+)", lambda name: name[0].lower(), BODY + NEW_RATE + OPTIMIZER + SMALL),
    "without splits": re.sub(r" +mode: (train|val)\n", "", BODY) + NEW_RATE + OPTIMIZER + CAPITALS,
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_of_every_version_are_the_same_recipe(tmp_path: Path, version: str) -> None:
    path = tmp_path / "theirs.yml"
    path.write_text(VERSIONS[version])
    theirs = load_config(path, ["test_config.average=softmax"]).model_dump()
    ours = load_config(CONFIGS / "mscale_ocr_cityscapes_autolabel_mapillary.yml").model_dump()
    if version == "all in lower case":  # A backbone's name is put right where backbones are known, by the builder.
        ours["model"]["backbone"]["type"] = "hrnet_w48_nv"
    assert theirs == ours


def test_files_of_the_first_version_name_other_weights_and_no_losses(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yml"
    path.write_text(
        BODY.replace("pretrain/pretrained", "pretrain/other").replace("data/cityscapes", "data/cityscapes/")
    )
    config = load_config(path)
    assert (config.model.pretrained, config.loss, config.optimizer) == ("pretrain/other.pdparams", None, None)


@pytest.mark.parametrize("name", sorted(checked_specs()))
@pytest.mark.parametrize("spelling", [str.lower, str.upper, lambda name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()])
def test_every_name_of_ours_is_known_in_other_spellings(name: str, spelling: Any) -> None:
    assert dialect.spelled({"a": [{"type": spelling(name)}]}, checked_specs(), {}, "a.yml") == {"a": [{"type": name}]}


def test_keys_of_other_components_keep_their_spelling() -> None:
    tree = {"type": "TheirLoss", "min_k": 1, "inner": {"min_k": 2}, "losses": [{"type": "diceloss", "Smooth": 3}]}
    spelled = dialect.spelled({"Loss": tree}, ["DiceLoss"], {"min_k": "min_K", "smooth": "smooth", "loss": "loss"}, "a")
    assert spelled == {"loss": {**tree, "losses": [{"type": "DiceLoss", "smooth": 3}]}}


def test_options_and_files_may_differ_in_spelling(reference: Path) -> None:
    for option in ("loss.types.1.min_k=7", "loss.types.1.min_K=7"):
        assert load_config(reference, [option]).loss.types[1].min_K == 7
    upper = reference.with_name("upper.yml")
    upper.write_text(
        "_base_: reference.yml\ntrain_dataset: {Coarse_Multiple: 2}\noptimizer: {type: adam_w, momentum: 0}"
    )
    with pytest.raises(UsageError, match=r"found optimizer.momentum: it is for the type SGD"):
        load_config(upper)
    upper.write_text("_base_: reference.yml\ntrain_dataset: {Coarse_Multiple: 2}")
    assert load_config(upper).train_dataset.coarse_multiple == 2


@pytest.mark.parametrize(
    "option", ["learning_rate.value=0.25", "lr_scheduler.learning_rate=0.25", "lr_scheduler.learning_rate=2.5e-1"]
)
def test_options_may_be_of_either_dialect(reference: Path, option: str) -> None:
    assert load_config(reference, [option]).lr_scheduler.learning_rate == 0.25


def test_option_values_are_translated_too(reference: Path) -> None:
    options = ["optimizer={type: adamw}", "model.n_scales=[1.0]", "learning_rate.decay.power=3", "loss.coef=[1,2,3,4]"]
    config = load_config(reference, [*options, "loss.types=[{type: diceloss}]"])
    assert (config.optimizer.type, config.model.scales, config.lr_scheduler.power) == ("AdamW", [1.0], 3.0)
    assert config.loss.coef == {"joint": 1.0, "joint_aux": 2.0, "low": 3.0, "high": 4.0}
    assert [spec.type for spec in config.loss.types] == ["DiceLoss"]


def test_a_file_of_their_dialect_inherits_from_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yml"
    base = CONFIGS / "mscale_ocr_cityscapes_autolabel_mapillary.yml"
    path.write_text(f"_base_: {base}\nmodel: {{n_scales: [1.0]}}\nlearning_rate: {{decay: {{power: 1}}}}\n")
    config = load_config(path)
    assert (config.model.scales, config.lr_scheduler.power, config.lr_scheduler.learning_rate) == ([1.0], 1.0, 0.005)


def test_a_value_in_both_dialects_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a.yml: .*both model.n_scales .* and model.scales: remove one"):
        dialect.to_native({"model": {"n_scales": [1.0], "scales": [1.0]}}, "a.yml")


D, B, C = {"type": "DiceLoss"}, {"type": "BootstrappedCrossEntropyLoss", "min_K": 9}, {"type": "CrossEntropyLoss"}


@pytest.mark.parametrize(
    ("types", "coef"),
    [
        ([D, D, D, B, B, B, B, D], [1, 2, 3, 4] * 2),  # a group of different losses
        ([D] * 4 + [B] * 3 + [{**B, "min_K": 8}], [1, 2, 3, 4] * 2),  # a group of different arguments
        ([D] * 4 + [B] * 4, [1, 2, 3, 4, 1, 2, 3, 5]),  # weights that differ between the groups
        ([D] * 3, [1, 2, 3]),  # three of four outputs
        ([D, B], [1, 2, 3, 4]),  # two losses, one set of weights
        ([], []),
    ],
)
def test_positional_losses_without_a_named_form_are_refused(types: list, coef: list) -> None:
    with pytest.raises(UsageError, match=r"a.yml: expected loss.coef .*joint, joint_aux, low, high.* name the outputs"):
        dialect.to_native({"loss": {"types": types, "coef": coef}}, "a.yml")


def test_one_type_stands_for_all_four_outputs() -> None:
    native = dialect.to_native({"loss": {"types": [C], "coef": [4, 3, 2, 1]}}, "a.yml")
    assert native == {"loss": {"types": [C], "coef": {"joint": 4, "joint_aux": 3, "low": 2, "high": 1}}}


@settings(deadline=None)
@given(st.permutations([D, B, C]), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_positional_losses_are_named_and_named_ones_kept(losses: list, weights: list) -> None:
    positional = {"loss": {"types": [spec for spec in losses for _ in range(4)], "coef": weights * 3}}
    native = dialect.to_native(positional, "a.yml")
    assert native["loss"] == {"types": losses, "coef": dict(zip(("joint", "joint_aux", "low", "high"), weights))}
    assert dialect.to_native(native, "a.yml") == native


def test_translation_leaves_its_input_alone() -> None:
    tree = yaml.safe_load(REFERENCE)
    dialect.to_native(tree, "a.yml")
    assert tree == yaml.safe_load(REFERENCE)


def test_output_names_are_the_networks() -> None:
    from hmsa.models import OUTPUTS

    assert dialect.OUTPUTS == OUTPUTS
