# SPDX-License-Identifier: Apache-2.0
"""Reading recipes: bases, options, the schema, and the sentence for everything that can be wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmsa.components import checked_specs
from hmsa.config.reading import load_config, merge
from hmsa.config.schema import Config
from hmsa.config.text import MAX_CHARACTERS, MAX_LEVELS, _Dumper
from hmsa.errors import UsageError, suggest

MINIMAL = """
model:
  type: MscaleOCRNet
  num_classes: 19
  backbone: {type: HRNet_W48_NV}
"""
FULL = f"""{MINIMAL}
train_dataset:
  type: CityscapesAutolabeling
  dataset_root: data
  mode: train
  transforms:
    - {{type: RandomPaddingCrop, crop_size: [256, 128]}}
    - {{type: Normalize}}
optimizer: {{type: SGD}}
lr_scheduler: {{type: PolynomialDecay, learning_rate: 0.01}}
loss:
  types: [{{type: DiceLoss}}]
  coef: {{joint: 1}}
"""


def write(folder: Path, **files: str) -> Path:
    """Write <name>.yml for every keyword; the path of the last."""
    path = folder
    for name, text in files.items():
        path = folder / f"{name}.yml"
        path.write_text(textwrap.dedent(text))
    return path


def refused(path: Path, *opts: str) -> str:
    """The message with which a recipe is refused."""
    with pytest.raises(UsageError) as info:
        load_config(path, opts)
    return str(info.value)


# --- What is read. ---


def test_defaults_of_the_smallest_recipe(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, a=MINIMAL))
    assert (config.batch_size, config.seed, config.precision, config.gradient_accumulation) == (1, 42, "fp32", 1)
    assert (config.model.scales, config.model.dropout, config.model.align_corners) == ([0.5, 1.0, 2.0], 0.05, False)
    assert config.test_config.scales == [1.0]
    assert config.train_dataset is config.loss is config.optimizer is None


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    text = FULL.replace("{type: SGD}", "{type: SGD, weight_decay: 1e-4}").replace("0.01", "+2E-3")
    config = load_config(write(tmp_path, a=text))
    assert (config.optimizer.weight_decay, config.lr_scheduler.learning_rate) == (1e-4, 2e-3)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    crop = "&crop {type: RandomPaddingCrop, crop_size: [96, 64]}, {<<: *crop, label_padding_value: 0}"
    text = f"{MINIMAL}train_dataset: {{type: Dataset, transforms: [{crop}, {{type: Normalize}}]}}"
    first, second, _ = load_config(write(tmp_path, a=text)).train_dataset.transforms
    assert first.crop_size == second.crop_size == [96, 64]
    assert (first.label_padding_value, second.label_padding_value) == (255, 0)


def test_of_several_merged_mappings_the_first_wins(tmp_path: Path) -> None:
    parts = "a: &a {x: 1}, b: &b {x: 2, y: 2}, c: {z: 3, <<: [*a, *b], y: 4}"
    path = write(tmp_path, a=MINIMAL.replace("HRNet_W48_NV", f"STDC2, {parts}"))
    assert load_config(path).model.backbone.model_extra["c"] == {"x": 1, "y": 4, "z": 3}


def test_what_is_no_number_or_truth_is_a_text(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL.replace("HRNet_W48_NV", "STDC2, when: 2001-02-31, what: =, how: <<"))
    assert load_config(path).model.backbone.model_extra == {"when": "2001-02-31", "what": "=", "how": "<<"}


def test_a_byte_order_mark_is_no_part_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(MINIMAL, encoding="utf-8-sig")
    assert load_config(tmp_path / "a.yml").model.num_classes == 19


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL.replace("HRNet_W48_NV", "STDC2, one: &a {x: [1]}, two: *a"))
    extra = load_config(path, ["model.backbone.one.x.0=2"]).model.backbone.model_extra
    assert extra == {"one": {"x": [2]}, "two": {"x": [1]}}


def test_components_of_others_keep_their_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL.replace("HRNet_W48_NV", "STDC2, base: 64, extra: {deep: [1, x]}"))
    assert load_config(path).model.backbone.model_extra == {"base": 64, "extra": {"deep": [1, "x"]}}


def test_reading_is_quick_and_does_not_import_paddle(tmp_path: Path) -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from hmsa.config.reading import load_config; load_config(sys.argv[1])\n"
        "print(time.perf_counter() - start, 'paddle' in sys.modules, 'cv2' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(write(tmp_path, a=FULL))]
    seconds, paddle, cv2 = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (paddle, cv2) == ("False", "False")
    assert float(seconds) < 2  # 0.15 s when nothing else runs


# --- Bases. ---


def test_bases_nest_and_merge_by_key(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", bottom="iters: 1\nbatch_size: 2\ntest_config: {scales: [1, 2], aug_eval: true}")
    write(tmp_path, middle="_base_: deep/bottom.yml\nbatch_size: 3")
    path = write(tmp_path, top=f"_base_: [middle.yml]\ntest_config: {{scales: [0.5]}}\n{MINIMAL}")
    config = load_config(path)
    assert (config.iters, config.batch_size) == (1, 3)
    assert (config.test_config.scales, config.test_config.aug_eval) == ([0.5], True)


def test_of_several_bases_the_first_wins(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one="iters: 1\nseed: 1",
        two="iters: 2\nseed: 2\nbatch_size: 2",
        top="_base_: [one.yml, two.yml]\nseed: 3" + MINIMAL,
    )
    config = load_config(path)
    assert (config.iters, config.seed, config.batch_size) == (1, 3, 2)


def test_inherited_false_drops_what_all_bases_say(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one=MINIMAL + "test_config: {aug_eval: true}",
        two="test_config: {flip_vertical: true}",
        top="_base_: [one.yml, two.yml]\ntest_config: {_inherited_: false, flip_horizontal: true}",
    )
    tests = load_config(path).test_config
    assert (tests.aug_eval, tests.flip_vertical, tests.flip_horizontal) == (False, False, True)


def test_inherited_true_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL + "  _inherited_: true", b="_base_: a.yml\nmodel: {_inherited_: true, dropout: 0}")
    assert load_config(path).model.num_classes == 19


def layers(depth: int) -> st.SearchStrategy[dict]:
    """Trees in which a key is always a value or always a mapping, as keys of recipes are."""
    keys: dict[str, Any] = {"a": st.integers(), "b": st.lists(st.integers(), max_size=2)}
    if depth:
        keys.update(x=layers(depth - 1), y=layers(depth - 1))
    return st.fixed_dictionaries({}, optional=keys)


@settings(deadline=None)
@given(layers(2), layers(2), layers(2))
def test_merging_is_associative_and_keeps_what_is_on_top(a: dict, b: dict, c: dict) -> None:
    assert merge(a, merge(b, c)) == merge(merge(a, b), c)
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a
    for key, value in a.items():
        assert isinstance(value, dict) or merge(a, b)[key] == value


def test_a_flag_of_the_file_above_decides_about_all_below(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        bottom="test_config: {aug_eval: true}" + MINIMAL,
        middle="_base_: bottom.yml\ntest_config: {_inherited_: false, flip_vertical: true}",
        top="_base_: middle.yml\ntest_config: {_inherited_: true, flip_horizontal: true}",
    )
    tests = load_config(path).test_config
    assert (tests.aug_eval, tests.flip_vertical, tests.flip_horizontal) == (False, True, True)


def test_a_problem_names_the_file_it_stands_in(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases", bottom="iters: 0\nseed: -1\nmodel: {dropuot: 1}\noptimizer: {weight_decay: x}")
    write(tmp_path / "bases", middle="_base_: bottom.yml\nseed: -2\nprecision: fp61")
    write(tmp_path, other="optimizer: {type: SGD, momentum: 2}\nbatch_size: 0")
    path = write(tmp_path, top="_base_: [bases/middle.yml, other.yml]\nval_dataset: {}" + MINIMAL)
    sources = {
        line.split("expected ")[1].partition(" to be")[0]: line.split(":")[0] for line in refused(path).split("\n")
    }
    assert sources.pop("only known keys, found model.dropuot: did you mean dropout?") == f"{tmp_path}/bases/bottom.yml"
    names = {"iters": "bottom", "seed": "middle", "precision": "middle", "optimizer.weight_decay": "bottom"}
    assert {key: Path(source).stem for key, source in sources.items()} == {
        **names,
        "optimizer.momentum": "other",
        "batch_size": "other",
        "val_dataset.type": "top",
    }
    assert "opts: expected seed to be" in refused(path, "seed=-3")


def test_problems_between_sections_name_their_file_too(tmp_path: Path) -> None:
    write(tmp_path, base=FULL)
    path = write(tmp_path, a="_base_: base.yml\niters: 5\nlr_scheduler: {warmup_iters: 9}\nmodel: {num_classes: 4}")
    first, second = refused(path).splitlines()
    assert first.startswith(f"{path}: expected model.num_classes to be the 19 classes of train_dataset")
    assert second.startswith(f"{path}: expected lr_scheduler.warmup_iters to be less than")
    path = write(tmp_path, base=FULL.replace("{type: Normalize}", "{type: RandomHorizontalFlip}"), a="_base_: base.yml")
    assert refused(path).startswith(f"{tmp_path}/base.yml: expected train_dataset.transforms to normalise")
    assert load_config(write(tmp_path, c=FULL), ["seed=1"]).where("seed") == "opts: seed"


def test_an_inherited_flag_that_is_wrong_names_its_file(tmp_path: Path) -> None:
    write(tmp_path, base="model: {_inherited_: 5}")
    assert refused(write(tmp_path, a="_base_: base.yml" + MINIMAL)).startswith(f"{tmp_path}/base.yml: expected _inher")


def test_a_value_in_between_hides_the_mapping_below(tmp_path: Path) -> None:
    one, two = "test_config: null", "test_config: {aug_eval: true}"
    top = "_base_: [one.yml, two.yml]\ntest_config: {flip_vertical: true}" + MINIMAL
    assert load_config(write(tmp_path, one=one, two=two, top=top)).test_config.aug_eval is False


# --- Options. ---


def test_options_set_values_lists_and_missing_sections(tmp_path: Path) -> None:
    options = [
        "iters=7",
        "optimizer.momentum=0.95",
        "train_dataset.transforms.0.crop_size=[64, 96]",
        "test_config.is_slide=true",
        "test_config.crop_size=[64,64]",
        "model.pretrained=a=b.pdparams",
        "model.backbone.has_se=true",
        "optimizer.clip_grad_norm=",
    ]
    config = load_config(write(tmp_path, a=FULL), options)
    assert (config.iters, config.optimizer.momentum, config.optimizer.clip_grad_norm) == (7, 0.95, None)
    assert config.train_dataset.transforms[0].crop_size == [64, 96]
    assert (config.test_config.is_slide, config.test_config.crop_size) == (True, [64, 64])
    assert config.model.pretrained == "a=b.pdparams"
    assert config.model.backbone.model_extra == {"has_se": True}


def test_a_section_may_be_made_by_options_alone(tmp_path: Path) -> None:
    options = ["lr_scheduler.type=PolynomialDecay", "lr_scheduler.learning_rate=0.5"]
    assert load_config(write(tmp_path, a=MINIMAL), options).lr_scheduler.learning_rate == 0.5


def test_an_option_twice_is_no_riddle(tmp_path: Path) -> None:
    path = write(tmp_path, a=FULL)
    assert load_config(path, ["seed=3", "iters=5", "seed=3"]).seed == 3
    message = refused(path, "learning_rate.value=0.1", "iters=5", "lr_scheduler.learning_rate=0.2")
    assert message.startswith("opts: expected lr_scheduler.learning_rate once, by an option or by a flag")
    assert "found both 0.1 and 0.2: leave one out" in message


# PyYAML folds Unicode's rare line breaks, which no name or path holds.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False) | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=5,
    )
)
def test_option_values_and_dumps_come_back_equal(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, a=MINIMAL)
    options = [f"model.backbone.argument={yaml.dump(value, Dumper=_Dumper, default_flow_style=True)}"]
    config = load_config(path, options)
    (tmp_path / "dump.yml").write_text(config.dump(), encoding="utf-8")
    again = load_config(tmp_path / "dump.yml")
    assert again == config
    assert again.model.backbone == config.model.backbone


def test_a_text_that_looks_like_a_number_stays_one_in_the_dump(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, a=MINIMAL), ["model.pretrained='1e-4'"])
    path = write(tmp_path, b=config.dump())
    assert load_config(path).model.pretrained == "1e-4"
    assert load_config(path) == config != load_config(path, ["seed=1"])


# --- What is refused, and in which words. ---


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch_sze: 2", r"a.yml: .*found batch_sze: did you mean batch_size\?"),
        ("learning_rate: 0.1", r"a.yml: .*found learning_rate: did you mean lr_scheduler.learning_rate\?"),
        ("scales: [1]", r"found scales: did you mean model.scales or test_config.scales\?"),
        ("iters: 0", r"expected iters to be greater than or equal to 1, found 0"),
        ("iters: true", r"expected iters to be a whole number, found True"),
        ("iters: '5'", r"expected iters to be a whole number, found '5'"),
        ("batch_size: 1.5", r"expected batch_size to be a whole number, found 1.5"),
        ("gradient_accumulation: 0", r"expected gradient_accumulation to be greater than or equal to 1"),
        ("precision: fp61", r"expected precision to be 'fp32', 'bf16' or 'fp16', found 'fp61': did you mean fp16"),
        ("model: [1]", r"expected model to be a mapping .*, found \[1\]"),
        ("model: {type: MscaleOCR}", r"expected model.type to be 'MscaleOCRNet', .*: did you mean MscaleOCRNet\?"),
        ("optimizer: SGD", r"expected optimizer to be a mapping .*, found 'SGD'"),
        ("optimizer: {momentum: 0.9}", r"expected optimizer.type to be given"),
        ("optimizer: {type: SGD, momentm: 0.9}", r"found optimizer.momentm: did you mean momentum\?"),
        ("optimizer: {type: SGD, clip_grad_norm: 0}", r"expected optimizer.clip_grad_norm to be greater than 0"),
        ("lr_scheduler: {type: PolynomialDecay, learning_rate: 0}", r"lr_scheduler.learning_rate to be greater than 0"),
        ("lr_scheduler: {type: PolynomialDecay, learning_rate: .inf}", r"lr_scheduler.learning_rate .* finite"),
        ("ema: {decay: 1}", r"expected ema.decay to be less than 1, found 1: correct it"),
        ("ema: {decay: 0.0}", r"expected ema.decay to be greater than 0, found 0.0"),
        ("ema: 0.9998", r"expected ema to be a mapping"),
        ("ema: {decays: 0.9}", r"found ema.decays: did you mean decay\?"),
        ("lr_scheduler: {type: PolynomialDecay}", r"expected lr_scheduler.learning_rate to be given"),
        ("loss: {types: [], coef: {joint: 1}}", r"expected loss.types to be at least 1 long"),
        ("loss: {types: [{type: DiceLoss}], coef: {}}", r"expected loss.coef to be at least 1 long"),
        ("loss: {types: [{type: DiceLoss}], coef: {lo: 1}}", r"expected loss.coef .*\(did you mean low\?\)"),
        ("loss: {types: [{type: DiceLoss}], coef: {low: -1}}", r"expected loss.coef.low to be greater than or equal"),
        ("loss: {types: [{type: DiceLoss}, {type: DiceLoss}], coef: {low: 1}}", r"loss.types .* each loss once"),
        ("loss: {types: [{type: BootstrappedCrossEntropyLoss}], coef: {low: 1}}", r"loss.types.0.min_K to be given"),
        (
            "loss: {types: [{type: BootstrappedCrossEntropyLoss, min_K: 0, loss_th: 0}], coef: {low: 1}}",
            r"expected loss.types.0.min_K to be greater than or equal to 1, found 0",
        ),
        (
            "train_dataset: {type: CityscapesAutolabeling, dataset_root: d, coarse_multiple: -1}",
            r"expected train_dataset.coarse_multiple to be greater than or equal to 0, found -1",
        ),
        (
            "val_dataset: {type: CityscapesAutolabeling, dataset_root: d, mode: trian}",
            r"expected val_dataset.mode to be 'train', 'val' or 'test', found 'trian': did you mean train\?",
        ),
        (
            "val_dataset: {type: Dataset, transforms: [{type: Normalize, std: [1, 1, 0]}]}",
            r"expected val_dataset.transforms.0.std.2 to be greater than or equal to 0.000001, found 0",
        ),
        (
            "val_dataset: {type: Dataset, transforms: [{type: Resize, target_size: [512]}]}",
            r"expected val_dataset.transforms.0.target_size to be at least 2 long",
        ),
        ("loss: {types: [{type: DiceLoss, smoth: 1}], coef: {low: 1}}", r"loss.types.0.smoth: did you mean smooth\?"),
        (
            "loss: {types: [{type: CrossEntropyLoss, wieght: [1]}], coef: {joint: 1}}",
            r"found loss.types.0.wieght: did you mean weight\?",
        ),
        (
            "loss: {types: [{type: CrossEntropyLoss, data_format: NHWC}], coef: {joint: 1}}",
            r"expected only known keys, found loss.types.0.data_format",
        ),
        (
            "loss: {types: [{type: CrossEntropyLoss, top_k_percent_pixels: 20}], coef: {joint: 1}}",
            r"expected loss.types.0.top_k_percent_pixels to be less than or equal to 1, found 20",
        ),
        (
            "loss: {types: [{type: OhemCrossEntropyLoss, min_kept: -1}], coef: {joint: 1}}",
            r"expected loss.types.0.min_kept to be greater than or equal to 0",
        ),
        (
            "loss: {types: [{type: DiceLoss, weight: [0, 0.0]}], coef: {joint: 1}}",
            r"expected loss.types.0.weight to be a list with a number above 0, .* found \[0, 0.0\]",
        ),
        (
            "loss: {types: [{type: MixedLoss, losses: [{type: DiceLoss, smoth: 1}], coef: [1]}], coef: {joint: 1}}",
            r"found loss.types.0.losses.0.smoth: did you mean smooth\?",
        ),
        (
            "loss: {types: [{type: MixedLoss, losses: [{type: DiceLoss}], coef: [1, 2]}], coef: {joint: 1}}",
            r"expected loss.types.0 to be given with as many numbers in coef as losses \(1\)",
        ),
        ("test_config: {is_slide: true}", r"expected test_config to be given with a crop_size"),
        ("test_config: {crop_size: [64, 64], stride: [64, 65]}", r"test_config to be .* stride no larger than crop"),
        ("test_config: {crop_size: [64, 32]}", r"test_config.crop_size.1 to be greater than or equal to 64, found 32"),
        ("test_config: {crop_size: 64}", r"expected test_config.crop_size to be a list, found 64"),
        ("test_config: {scales: [0]}", r"expected test_config.scales.0 to be greater than or equal to 0.0625, found 0"),
        ("test_config: {scales: [99]}", r"expected test_config.scales.0 to be less than or equal to 16, found 99"),
        (
            "test_config: {crop_size: [64, 99999]}",
            r"test_config.crop_size.1 to be less than or equal to 16384, found 99999",
        ),
        ("test_config: null", r"expected test_config to be a mapping .*, found None"),
        ("lr_scheduler: []\nlearning_rate: {decay: {type: poly}}", r"expected learning_rate.decay and lr_scheduler to"),
        ("seed: 4294967296", r"expected seed to be less than or equal to 4294967295"),
        ("'a b': 1", r"expected only known keys, found 'a b': choose from"),
        ("'': 1", r"expected only known keys, found '': choose from"),
        (
            "model: {num_classes: 1}",
            r"model.num_classes to be at least 2 \(the background is a class too: 0, .*, found 1",
        ),
        ("model: {num_classes: 0}", r"model.num_classes to be at least 2"),
        ("model: {num_classes: 256}", r"model.num_classes to be at most 255, the classes that a label map of 8 bits"),
        (
            "loss: {types: [{type: DiceLoss, ignore_index: 256}], coef: {joint: 1}}",
            r"loss.types.0.ignore_index to be less than or equal to 255, found 256",
        ),
        (
            "loss: {types: [{type: DiceLoss, ignore_index: -100}], coef: {joint: 1}}",
            r"loss.types.0.ignore_index to be greater than or equal to 0, found -100",
        ),
        ("model: {backbone: {type: STDC1, pretrained: 5}}", r"model.backbone.pretrained to be a text, found 5"),
        (
            "model: {pretrained: a.pdparams, backbone: {type: STDC1, pretrained: b.pdparams}}",
            r"expected model to be given with pretrained or with backbone.pretrained",
        ),
        ("test_config: {average: probabilities}", r"expected test_config.average to be 'logits' or 'softmax'"),
        ("test_config: {scales: true}", r"expected test_config.scales to be a list, found True"),
        (
            "optimizer: {type: AdamW, momentum: 0.9}",
            r"optimizer.momentum: it is for the type SGD, not for AdamW: remove",
        ),
        ("optimizer: {type: SGD, beta2: 0.9}", r"found optimizer.beta2: it is for the type AdamW, not for SGD"),
        (
            "optimizer: {type: SGD, custom_cfg: []}",
            r"found optimizer.custom_cfg: take PaddleSeg's type Momentum or Adam",
        ),
        ("export: {transforms: []}", r"found export: an export takes the transforms of val_dataset, .*: remove it"),
        ("Iters: 5\niters: 6", r"expected one value, found both Iters and iters: remove one"),
        ("'type:x': 1", r"expected only known keys, found 'type:x': choose from"),
        ("train_dataset: {type: CityscapesAutolabeling, mode: train}", r"train_dataset.dataset_root to be given"),
        ("val_dataset: {type: Dataset, transforms: [{type: RandomDistort, hue: 1}]}", r"val_dataset.transforms.0.hue"),
        ("val_dataset: {type: Dataset, val_pth: x}", r"found val_dataset.val_pth: did you mean val_path\?"),
        ("val_dataset: {type: Dataset, edge: true}", r"expected val_dataset.edge to be False"),
        ("max_image_pixels: 0", r"expected max_image_pixels to be greater than or equal to 1, found 0"),
        ("max_image_pixels: 2000000000", r"expected max_image_pixels to be less than or equal to 1073741824"),
    ],
)
def test_one_problem_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, minimal=MINIMAL, a="_base_: minimal.yml\n" + text)
    message = refused(path)
    assert message.startswith(f"{path}: expected ")
    with pytest.raises(UsageError, match=sentence):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "scales: [0.5, 2]",
            r"expected model.scales to be a list of scales that contains 1.0, and none twice, found \[0.5, 2\]",
        ),
        ("scales: [1, 1.0]", r"expected model.scales to be a list of scales that contains 1.0, and none twice"),
        ("scales: [1, -1]", r"expected model.scales.1 to be greater than or equal to 0.0625, found -1"),
        ("scales: []", r"expected model.scales to be at least 1 long"),
        ("scale: [1]", r"found model.scale: did you mean scales\?"),
        ("dropout: 1", r"expected model.dropout to be less than 1"),
        ("align_corners: 1", r"expected model.align_corners to be true or false, found 1"),
        ("pretrained: 5", r"expected model.pretrained to be a text, found 5"),
    ],
)
def test_problems_of_the_network(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_config(write(tmp_path, a=f"{MINIMAL}  {text}"))


DATASET = "{type: ADE20K, transforms: [{type: Normalize}], "
LISTS = DATASET.replace("ADE20K", "Dataset")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"train_dataset: {LISTS}num_classes: 1}}", "train_dataset.num_classes to be at least 2 (the background is"),
        (f"val_dataset: {LISTS}num_classes: '19'}}", "val_dataset.num_classes to be a whole number, found '19'"),
        (f"val_dataset: {LISTS}num_classes: 300}}", "val_dataset.num_classes to be at most 255"),
        (f"val_dataset: {DATASET}num_classes: 300}}", "model.num_classes to be the 300 classes of val_dataset"),
        (f"train_dataset: {LISTS}ignore_index: 300}}", "train_dataset.ignore_index to be less than or equal to 255"),
        (f"val_dataset: {LISTS}ignore_index: -1}}", "val_dataset.ignore_index to be greater than or equal to 0"),
        (
            f"train_dataset: {DATASET}mode: val}}",
            "train_dataset.mode to be train, found 'val', whose images are for ev",
        ),
        (f"train_dataset: {DATASET}mode: Test}}", "train_dataset.mode to be train, found 'Test'"),
        (f"val_dataset: {DATASET}mode: train}}", "val_dataset.mode to be val, found 'train', whose images are trained"),
        (f"val_dataset: {DATASET}mode: trainval}}", "val_dataset.mode to be val, found 'trainval'"),
        (f"val_dataset: {DATASET}mode: TRAIN}}", "val_dataset.mode to be val"),
        (
            "val_dataset: {type: CityscapesAutolabeling, dataset_root: d, mode: train, "
            "transforms: [{type: Normalize}]}",
            "val_dataset.mode to be val",
        ),
        (
            "train_dataset: {type: CityscapesAutolabeling, dataset_root: d, mode: test, "
            "transforms: [{type: Normalize}]}",
            "train_dataset.mode to be train",
        ),
        (
            "val_dataset: {type: CityscapesAutolabeling, dataset_root: d, add_val: true, "
            "transforms: [{type: Normalize}]}",
            "expected val_dataset.add_val in train_dataset alone, found it where it has no effect: remove it",
        ),
        (
            "val_dataset: {type: Dataset}",
            "expected val_dataset.transforms to normalise images, which all weights want, found no Normalize: add "
            "{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
        ),
        (f"train_dataset: {LISTS}img_channels: 1}}", "train_dataset.img_channels to be 3, found 1"),
        ("val_dataset: {type: Dataset, transforms: []}", "expected val_dataset.transforms to normalise images"),
        (
            "val_dataset: {type: Dataset, transforms: [{type: Normalize}, {type: RandomHorizontalFlip}]}",
            "expected val_dataset.transforms.1 to be the same for every run, found RandomHorizontalFlip, which changes",
        ),
        (
            "val_dataset: {type: ADE20K, transforms: [{type: RandomRotation}, {type: Normalize}]}",
            "expected val_dataset.transforms.0 to be the same for every run, found RandomRotation",
        ),
        (
            "val_dataset: {type: Dataset, transforms: [{type: ResizeStepScaling}, {type: Normalize}]}",
            "expected val_dataset.transforms.0 to be the same for every run, found ResizeStepScaling",
        ),
        (
            "train_dataset: {type: Dataset, transforms: [{type: Normalize}, {type: Normalize}]}",
            "expected train_dataset.transforms.1 to be no second Normalize, found one: remove it",
        ),
        (
            "train_dataset: {type: Dataset, transforms: [{type: RandomBlur}]}",
            "expected train_dataset.transforms to norm",
        ),
        (
            "lr_scheduler: {type: PolynomialDecay, learning_rate: 6e-5}",
            "expected lr_scheduler to be given with an end_lr, which is 0.0001, of at most its learning_rate",
        ),
        (
            "lr_scheduler: {type: PolynomialDecay, learning_rate: 0.1, warmup_start_lr: 0.01}",
            "expected lr_scheduler to be given with warmup_iters, without which warmup_start_lr has no effect",
        ),
        (
            f"train_dataset: {DATASET}mode: train}}\n"
            "loss: {types: [{type: LovaszSoftmaxLoss, ignore_index: 0}], coef: {joint: 1}}",
            "expected loss.types.0.ignore_index to be 255, which marks ignored pixels in train_dataset, found 0",
        ),
        (
            "train_dataset: {type: Dataset, ignore_index: 9, transforms: [{type: Normalize}, {type: RandomPaddingCrop, "
            "category_max_ratio: 0.5, label_padding_value: 9}]}",
            "expected train_dataset.transforms.1.ignore_index to be 9, .*, found 255: set it to 9",
        ),
    ],
)
def test_problems_between_sections(tmp_path: Path, text: str, sentence: str) -> None:
    (line,) = refused(write(tmp_path, a=MINIMAL + text)).splitlines()
    assert re.search(re.escape(sentence).replace(r"\.\*", ".*"), line), line


@pytest.mark.parametrize("mode", ["trainval", "trainaug", "context", "train"])
def test_other_splits_of_training_images_are_fine(tmp_path: Path, mode: str) -> None:
    assert load_config(write(tmp_path, a=f"{MINIMAL}train_dataset: {DATASET}mode: {mode}}}")).train_dataset.mode == mode


def test_a_split_that_is_not_given_is_that_of_the_section(tmp_path: Path) -> None:
    ours = "{type: CityscapesAutolabeling, dataset_root: d, transforms: [{type: Normalize}]}"
    for dataset in (ours, DATASET + "}"):
        config = load_config(write(tmp_path, a=f"{MINIMAL}train_dataset: {dataset}\nval_dataset: {dataset}"))
        assert (config.train_dataset.mode, config.val_dataset.mode) == ("train", "val")
        copy = write(tmp_path, copy=config.dump())
        assert load_config(copy) == config


def test_scores_on_images_that_are_trained_on_are_said_to_be(tmp_path: Path) -> None:
    ours = "{type: CityscapesAutolabeling, transforms: [{type: Normalize}], dataset_root: "
    path = write(tmp_path, a=f"{MINIMAL}train_dataset: {ours}d}}\nval_dataset: {ours}d/}}")
    assert load_config(path).remarks() == []
    (remark,) = load_config(path, ["train_dataset.add_val=true"]).remarks()
    assert remark == "the scores are of images that are trained on, as train_dataset.add_val is true"
    assert load_config(path, ["train_dataset.add_val=true", "val_dataset.dataset_root=e"]).remarks() == []
    lists = f"{MINIMAL}train_dataset: {DATASET}train_path: a.txt}}\nval_dataset: {DATASET}val_path: a.txt}}"
    path = write(tmp_path, a=lists)
    assert load_config(path).remarks()[0].endswith("as both data sets read a.txt")
    assert load_config(path, ["val_dataset.val_path=b.txt"]).remarks() == []


def test_defaults_are_those_of_paddleseg_2_8(tmp_path: Path) -> None:
    import inspect

    from paddle.optimizer import lr

    theirs = {name: parameter.default for name, parameter in inspect.signature(lr.PolynomialDecay).parameters.items()}
    config = load_config(write(tmp_path, a=FULL))
    assert (config.lr_scheduler.end_lr, config.lr_scheduler.power) == (theirs["end_lr"], theirs["power"])
    assert config.optimizer.momentum == 0  # their SGD has momentum only where it is given
    assert (config.optimizer.weight_decay, config.test_config.average) == (0, "logits")


def test_a_single_scale_may_be_a_number(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, a=MINIMAL + "test_config: {scales: 0.75}")).test_config.scales == [0.75]


def all_keys() -> set[str]:
    specs = (*checked_specs().values(), Config)
    return {"scale", "momentm", "export", *(key for spec in specs for key in spec.model_fields)}


@pytest.mark.parametrize("name", sorted(checked_specs()))
def test_no_suggestion_is_the_key_itself(tmp_path: Path, name: str) -> None:
    section, given = {
        "SGD": ("optimizer", "{type: SGD}"),
        "AdamW": ("optimizer", "{type: AdamW}"),
        "PolynomialDecay": ("lr_scheduler", "{type: PolynomialDecay, learning_rate: 1}"),
        "CityscapesAutolabeling": ("val_dataset", "{type: CityscapesAutolabeling, dataset_root: d}"),
        "Dataset": ("val_dataset", "{type: Dataset}"),
        "MscaleOCRNet": ("model", "{type: MscaleOCRNet, num_classes: 19, backbone: {type: STDC1}}"),
    }.get(name, ("val_dataset.transforms.0", f"{{type: {name}}}"))
    if "Loss" in name:
        section = "loss.types.0"
    base = "val_dataset: {type: Dataset, transforms: [0]}\nloss: {types: [0], coef: {joint: 1}}\n"
    path = write(tmp_path, a=MINIMAL + base)
    for key in sorted(all_keys() - set(checked_specs()[name].model_fields)):
        found = f"found {section}.{key}: "
        lines = refused(path, f"{section}={given}", f"{section}.{key}=1").split("\n")
        (advice,) = (line.split(found)[1] for line in lines if found in line)
        assert f"{section}.{key}" not in advice
        assert not re.search(rf"(mean|or) {key}\b", advice) or key in Config.model_fields


def test_a_stray_key_is_sent_where_it_would_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL + "optimizer: {type: AdamW}")
    assert "did you mean optimizer.beta1?" in refused(path, "beta1=0.8")
    assert "optimizer.momentum" not in refused(path, "momentum=0.9")
    assert "did you mean optimizer.momentum?" in refused(path, "optimizer.type=SGD", "momentum=0.9")


def test_a_crop_must_leave_the_network_a_pixel(tmp_path: Path) -> None:
    message = refused(write(tmp_path, a=FULL.replace("[256, 128]", "[256, 63]")))
    assert "train_dataset.transforms.0.crop_size.1 to be greater than or equal to 64, found 63" in message


def classes(*changes: str) -> str:
    """MINIMAL with three classes of its own; `changes` stand for the last of them."""
    last = changes or ("name: sky",)
    return (
        MINIMAL.replace("19", "3")
        + "classes: [{name: road, color: [128, 64, 128]}, {name: tree}"
        + "".join(f", {{{change}}}" for change in last)
        + "]\n"
    )


def test_classes_have_names_and_may_have_colours(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, a=classes()))
    assert [(spec.name, spec.color) for spec in config.classes or ()] == [
        ("road", [128, 64, 128]),
        ("tree", None),
        ("sky", None),
    ]
    assert load_config(write(tmp_path, b=config.dump())) == config
    assert load_config(write(tmp_path, a=MINIMAL)).classes is None


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (["name: sky", "name: sea"], "classes to name each of the 3 classes (model.num_classes), found 4: name each"),
        (["name: road"], "classes.2.name to differ from classes.0.name, found 'road' twice: rename"),
        (['name: "a\\nb"'], "classes.2.name to be a text that can be printed, found 'a\\nb': correct it"),
        (['name: " "'], "classes.2.name to be a text that can be printed, found ' ': correct it"),
        (["name: 5"], "classes.2.name to be a text, found 5: correct it"),
        (["color: [1, 2, 3]"], "classes.2.name to be given, found nothing: add it"),
        (["name: sky, color: [1, 2]"], "classes.2.color to be at least 3 long, found [1, 2]: correct it"),
        (["name: sky, color: [1, 2, 256]"], "classes.2.color.2 to be less than or equal to 255, found 256: correct it"),
        (["name: sky, colour: [1, 2, 3]"], "only known keys, found classes.2.colour: did you mean color?"),
    ],
)
def test_problems_of_classes(tmp_path: Path, last: list[str], sentence: str) -> None:
    assert f"expected {sentence}" in refused(write(tmp_path, a=classes(*last)))


def test_class_counts_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, a=FULL.replace("num_classes: 19", "num_classes: 20"))
    assert "found 20: set model.num_classes to 19" in refused(path)
    path = write(tmp_path, b=MINIMAL + "val_dataset: {type: Dataset, num_classes: 3, transforms: [{type: Normalize}]}")
    assert "3 classes of val_dataset, found 19" in refused(path)


@pytest.mark.parametrize(
    ("scaling", "sentence"),
    [
        ("min_scale_factor: 2, max_scale_factor: 1", "a min_scale_factor no larger than its max_scale_factor"),
        ("scale_step_size: 1e-9", "a scale_step_size of at least 0.001"),
    ],
)
def test_scalings_that_make_no_sense(tmp_path: Path, scaling: str, sentence: str) -> None:
    text = FULL.replace("- {type: Normalize}", f"- {{type: ResizeStepScaling, {scaling}}}")
    message = refused(write(tmp_path, a=text))
    assert "a.yml: expected train_dataset.transforms.1 to be given with" in message
    assert sentence in message


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("loss.types.0.ignore_index=254", "expected loss.types.0.ignore_index to be 255, .* found 254: set it to 255"),
        (
            "train_dataset.transforms.0.label_padding_value=19",
            "transforms.0.label_padding_value .* a class below 19, or 2",
        ),
        (
            "train_dataset.transforms.1={type: Padding, target_size: [9, 9], label_padding_value: 200}",
            "transforms.1.label_padding_value",
        ),
    ],
)
def test_labels_that_are_no_class_are_ignored_by_all(tmp_path: Path, option: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_config(write(tmp_path, a=FULL), [option])


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "DiceLoss", "BootstrappedCrossEntropyLoss"])
def test_class_weights_are_one_a_class(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, a=FULL)
    more = "min_K: 5, loss_th: 0.1, " if name.startswith("Boot") else ""
    spec = f"type: {name}, {more}weight: {{}}"
    fitting = load_config(path, [f"loss.types=[{{{spec.format([2] * 19)}}}]"])
    assert fitting.loss.types[0].weight == [2] * 19
    sentence = "weight to be a number for each of the 19 classes (model.num_classes), found 4: correct it"
    assert f"expected loss.types.0.{sentence}" in refused(path, f"loss.types=[{{{spec.format([1] * 4)}}}]")
    mixed = f"loss.types=[{{type: MixedLoss, coef: [1], losses: [{{{spec.format([1] * 4)}}}]}}]"
    assert f"expected loss.types.0.losses.0.{sentence}" in refused(path, mixed)


@pytest.mark.parametrize("name", ["LovaszSoftmaxLoss", "OhemCrossEntropyLoss"])
def test_what_a_loss_ignores_is_what_the_data_ignores(tmp_path: Path, name: str) -> None:
    loss = f"loss.types=[{{type: MixedLoss, coef: [1], losses: [{{type: {name}, ignore_index: 254}}]}}]"
    message = refused(write(tmp_path, a=FULL), loss)
    assert "expected loss.types.0.losses.0.ignore_index to be 255, which marks ignored pixels in train" in message


def test_a_data_set_of_lists_says_what_it_ignores(tmp_path: Path) -> None:
    path = write(tmp_path, a=FULL)
    dataset = (
        "train_dataset={type: Dataset, ignore_index: 250, transforms: [{type: RandomPaddingCrop}, {type: Normalize}]}"
    )
    fitting = ["loss.types.0.ignore_index=250", "train_dataset.transforms.0.label_padding_value=250"]
    assert load_config(path, [dataset, *fitting]).loss.types[0].ignore_index == 250
    lines = refused(path, dataset).splitlines()
    assert ["ignore_index to be 250" in line for line in lines] == [True, False]
    assert "label_padding_value to be a class below 19, or 250 for ignored pixels, found 255" in lines[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["lr_scheduler.warmup_iters=10", "iters=10"], "warmup_iters to be less than iters"),
        (["lr_scheduler.warmup_iters=1", "lr_scheduler.warmup_start_lr=0.01"], "a warmup_start_lr below its"),
    ],
)
def test_the_warm_up_must_rise_and_end(tmp_path: Path, options: list, sentence: str) -> None:
    assert sentence in refused(write(tmp_path, a=FULL), *options)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, a="iters: x\nbatch_sze: 1\noptimizer: {type: SGD, momentum: 2}")
    lines = refused(path, "model.dropuot=1", "seed=-1").splitlines()
    assert all("expected" in line and "found" in line for line in lines)
    for key in ("iters", "batch_sze", "optimizer.momentum", "model.num_classes", "model.type", "model.backbone"):
        assert any(line.startswith(f"{path}: ") and key in line for line in lines), key
    assert any(line.startswith("opts: ") and "model.dropuot: did you mean dropout?" in line for line in lines)
    assert any(line.startswith("opts: expected seed") for line in lines)
    assert len(lines) == 8


def test_of_very_many_problems_the_first_are_reported(tmp_path: Path) -> None:
    lines = refused(write(tmp_path, a=MINIMAL + "".join(f"k{i}: 1\n" for i in range(5000)))).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("found 4980 more problems like these")


def test_long_values_are_shortened(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL)
    for option in (f"iters={'x' * 9999}", f"iters=[{'[1, 2, 3, 4], ' * 999}]", f"{'k' * 9999}=1", "k" * 9999):
        assert len(refused(path, option)) < 500


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("iters", "opts: expected key=value"),
        ("", "opts: expected key=value"),
        ("a\nb=1", "opts: expected key=value"),
        (".".join("a" * 99) + "=1", "opts: expected key=value"),
        ("iters=\udcff", "unacceptable character"),
        ("_base_=a.yml", "opts: expected only known keys, found _base_"),
        ("train_dataset.transforms.00=1", "found 00 in train_dataset.transforms.00"),
        ("train_dataset.transforms.\u0663=1", "to be followed by a position below 2"),
        (f"train_dataset.transforms.{'9' * 5000}=1", "to be followed by a position below 2"),
        ("=5", "opts: expected key=value"),
        ("model..scales=5", "opts: expected key=value"),
        ("iters=[1", "opts: expected the value of iters to be YAML, found '[1'"),
        ("iters=0", "opts: expected iters to be greater than or equal to 1, found 0"),
        ("iter=5", "opts: expected only known keys, found iter: did you mean iters?"),
        ("modl.scales=[1]", "opts: expected only known keys, found modl: did you mean model?"),
        ("iters.x=5", "opts: expected iters to be a mapping, found 65000 on the way to iters.x"),
        ("train_dataset.transforms.2.prob=1", "expected train_dataset.transforms to be followed by a position below 2"),
        ("train_dataset.transforms.x=1", "found x in train_dataset.transforms.x"),
    ],
)
def test_problems_of_options(tmp_path: Path, option: str, sentence: str) -> None:
    assert sentence in refused(write(tmp_path, a=FULL + "iters: 65000"), option)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "found an empty file"),
        ("- a", "found ['a']: check the file"),
        ("5", "lines such as `model: ...`, found 5"),
        ("a: [1", "expected YAML, but found: while parsing a flow sequence"),
        ("a: 1\nb: 2\n\na: 3", "the key 'a' twice in one mapping, again on line 4: remove one"),
        ("a:\n  b: {c: 1, c: 2}", "the key 'c' twice in one mapping, again on line 2"),
        ("1: 2", "the key 1 on line 1, which is not a text"),
        ("[1]: 2", "the key [1] on line 1, which is not a text"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.system' on line 1",
        ),
        ("a:\n- !mine 5", "the tag '!mine' on line 2, which recipes do not use: remove it"),
        ("a: !!set {b}", "tag:yaml.org,2002:set"),
        ("a: !!binary YQ==", "tag:yaml.org,2002:binary"),
        ("a: !!map x", "the tag 'tag:yaml.org,2002:map' on line 1"),
        ("a: !!bool maybe", "a value that cannot be read ("),
        ("a:\n  !!int ''", "a value that cannot be read ("),
        ("a: 1" + ":59" * 200 + ".5", "a value that cannot be read ("),
        ("a: 9223372036854775808", "one of more than 63 bits, on line 1"),
        (f"a: 0x{'f' * 9999}", "one of more than 63 bits, on line 1"),
        ("a: .nan", "no number, or one of more than 63 bits, on line 1"),
        ('a: "\\ud800"', "surrogates not allowed"),
        ("a: &x [*x]", "too many levels of nesting"),
        ("a: &x {<<: *x}", "too many levels of nesting"),
        ("a: {<<: 5}", "'int' object is not a mapping"),
        ("a: {<<: [5]}", "'int' object is not a mapping"),
        ("a: " + "[" * 10000, "too many levels of nesting"),
        ("a: " + "[" * (MAX_LEVELS + 1) + "]" * (MAX_LEVELS + 1), "too many levels of nesting"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a:\n\t- 1", "found character '\\t'"),
        ("_base_: 5", "expected _base_ to be a file name or a list of them, found 5"),
        ("_base_: [a.yml, null]", "expected _base_ to be a file name or a list of them, found ['a.yml', None]"),
        ('_base_: "a\\0b"', "expected _base_ to be a file name or a list of them, found ['a\\x00b']"),
        ("_base_: missing.yml", "missing.yml: expected a YAML file, found none"),
        ("_base_: .", "expected a readable YAML file, found Is a directory"),
        ("_base_: " + "x" * 5000, "expected a readable YAML file, found File name too long"),
        ("_base_: a.yml", "expected _base_ to end at some file, found a circle"),
        ("model: {_inherited_: 5}", "expected _inherited_ to be true or false, found 5"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    message = refused(write(tmp_path, a=text))
    assert str(tmp_path) in message
    assert sentence in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [MINIMAL.encode("utf-16"), "# \u00fc".encode("latin-1"), b"\xff\xfe\x00"],
    ids=["utf-16", "latin-1", "bytes"],
)
def test_other_encodings_than_utf_8(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.yml").write_bytes(data)
    assert f"{tmp_path}/a.yml: expected YAML in UTF-8" in refused(tmp_path / "a.yml")


def test_paths_that_are_no_recipe(tmp_path: Path) -> None:
    assert "expected a YAML file, found none" in refused(tmp_path / "missing.yml")
    assert "expected a readable YAML file, found Is a directory" in refused(tmp_path)
    assert "a\\x00b.yml: expected a YAML file, found none" in refused(tmp_path / "a\0b.yml")
    (tmp_path / "loop.yml").symlink_to("loop.yml")
    assert "Too many levels of symbolic links" in refused(tmp_path / "loop.yml")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no endless files")
def test_nothing_endless_is_read(tmp_path: Path) -> None:
    assert "/dev/zero: expected a recipe of at most" in refused(write(tmp_path, a="_base_: /dev/zero"))
    with (tmp_path / "large.yml").open("wb") as file:
        file.truncate(2**40)
    assert "expected a recipe of at most 100000 bytes with its bases, found more" in refused(tmp_path / "large.yml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_recipe_may_come_from_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yml")
    writer = threading.Thread(target=(tmp_path / "pipe.yml").write_text, args=[MINIMAL], daemon=True)
    writer.start()
    assert load_config(tmp_path / "pipe.yml").model.num_classes == 19


MERGED_OFTEN = f"a: &a {{{', '.join(f'k{i}: 1' for i in range(4000))}}}\n" + "".join(
    f"m{i}: {{<<: *a}}\n" for i in range(3000)
)
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
BOMBS = {
    "lists": (LAUGHS, "characters with every alias written out"),
    "mappings": (LAUGHS.replace("[", "{x: [").replace("]", "]}"), "characters with every alias written out"),
    "texts": (f"a: &a {'x' * 50000}\nb: [{'*a, ' * 9999}]", "characters with every alias written out"),
    "merged often": (MERGED_OFTEN, "characters with every alias written out"),
    "merged twice as often each time": (
        LAUGHS.replace("[ha]", "{ha: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n"),
        "characters with every alias written out",
    ),
    "length": (f"# {'x' * MAX_CHARACTERS}", "at most 100000 bytes"),
    "keys": ("".join(f"k{i}: 1\n" for i in range(9000)), "more problems like these"),
    "wrong values": (f"{MINIMAL}  scales: [{'x, ' * 30000}]", "more problems like these"),
    "a number": (f"iters: {'9' * 90000}", "a value that cannot be read ("),
}


LIMITED = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from hmsa.config.reading import load_config
from hmsa.errors import UsageError
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        load_config(path)
    except UsageError as error:
        assert time.process_time() - start < 10, path  # 1 s, when nothing else runs
        print(str(error).splitlines()[-1])
"""


def test_bombs_take_neither_time_nor_memory(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="this system cannot limit memory")
    paths = [write(tmp_path, **{name: text}) for name, (text, _) in BOMBS.items()]
    run = subprocess.run([sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for line, (_, sentence) in zip(run.stdout.splitlines(), BOMBS.values()):
        assert sentence in line


def test_bases_that_call_each_other_very_often(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path, **{f"b{i}": f"_base_: [b{i + 1}.yml, b{i + 1}.yml]\nseed: {i}"})
    write(tmp_path, b30=MINIMAL)
    assert "at most 100000 bytes with its bases" in refused(tmp_path / "b0.yml")


def test_a_circle_of_bases_is_shown(tmp_path: Path) -> None:
    message = refused(write(tmp_path, c="_base_: a.yml", b="_base_: c.yml", a="_base_: b.yml"))
    assert " -> ".join(str(tmp_path / f"{name}.yml") for name in "abca") in message


def test_two_ways_to_the_same_base_are_no_circle(tmp_path: Path) -> None:
    path = write(tmp_path, d=MINIMAL, b="_base_: d.yml", c="_base_: d.yml", a="_base_: [b.yml, c.yml]")
    assert load_config(path).model.num_classes == 19


def test_sections_a_command_needs(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL + "optimizer: {type: AdamW}")
    config = load_config(path)
    config.require("model", "optimizer")
    with pytest.raises(UsageError, match=f"{path}: expected the section loss, train_dataset"):
        config.require("optimizer", "loss", "train_dataset")


# --- Anything at all. ---


def recipe_or_sentences(path: Path, *opts: str) -> None:
    """Whatever is in the file and the options: a config that comes back from its dump, or a sentence a problem."""
    try:
        config = load_config(path, opts)
    except UsageError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 21
        for line in lines:
            assert line.isprintable()
            assert line.startswith("opts: ") or f"{path.parent}" in line
            assert ": expected " in line
            assert "found" in line
            assert len(line) < 1000
        return
    copy = path.with_name("dump.yml")
    copy.write_text(config.dump(), encoding="utf-8")
    assert load_config(copy) == config


fuzzed = pytest.mark.filterwarnings("error")
ANYTHING = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}
WORDS = "type scales n_scales transforms types coef learning_rate decay value backbone crop_size _base_ _inherited_ x"
KEYS = st.sampled_from([*Config.model_fields, *WORDS.split()])
TYPES = ["SGD", "DiceLoss", "MscaleOCRNet", "CityscapesAutolabeling", "PolynomialDecay", "Normalize", "sgd", "Adam"]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.binary(max_size=3),
    st.sets(st.integers(), max_size=2),
    st.sampled_from([*TYPES, 0, 1, 10**30, -1.0, float("inf"), "minimal.yml", "any.yml", ".", "x" * 300]),
)


def trees(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=20
    )


@fuzzed
@settings(max_examples=200, **ANYTHING)
@given(trees(KEYS | st.text(max_size=3) | st.integers(0, 2)))
def test_any_tree_is_a_recipe_or_a_usage_error(tmp_path: Path, tree: Any) -> None:
    path = write(tmp_path, minimal=MINIMAL, any="")
    for candidate in [tree, {**yaml.safe_load(FULL), **tree}] if isinstance(tree, dict) else [tree]:
        path.write_text(yaml.safe_dump(candidate, allow_unicode=True), encoding="utf-8")
        recipe_or_sentences(path)


TOKENS = [
    *":-{}[],?|>'\"#&*!%@`\\\t\n ",
    *["\n  ", "\n    ", "---", "..."],
    *["a", "1", "1e5", ".inf", ".nan", "0x1f", "1:30", "2001-01-01", "true", "~", "=", "<<: ", ": ", ", ", "- ", " "],
    *["&a ", "*a", "!!set ", "!!int ", "!!map ", "!!str ", "!!python/name:os.system ", "!x ", "%YAML 1.1\n---\n"],
    *["model", "type: ", "loss: ", "_base_: ", "iters: ", "\ufeff", "\x00", "\x85", "\u2028", "\u00e9", '"\\ud800"'],
]


@fuzzed
@settings(max_examples=300, **ANYTHING)
@given(text=st.lists(st.sampled_from(TOKENS), max_size=25).map("".join) | st.text(max_size=40), above=st.booleans())
def test_any_text_is_a_recipe_or_a_usage_error(tmp_path: Path, text: str, above: bool) -> None:
    path = tmp_path / "any.yml"
    path.write_bytes((MINIMAL * above + text).encode("utf-8", "surrogatepass"))
    recipe_or_sentences(path)


@fuzzed
@settings(max_examples=100, **ANYTHING)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", MINIMAL.encode()]))
def test_any_bytes_are_a_recipe_or_a_usage_error(tmp_path: Path, data: bytes, before: bytes) -> None:
    path = tmp_path / "any.yml"
    path.write_bytes(before + data)
    recipe_or_sentences(path)


DOTTED_KEYS = st.lists(KEYS | st.sampled_from(["0", "1", "99", "-1", "", "*"]) | st.text(max_size=3), max_size=5)
OPTIONS = st.one_of(
    st.text(max_size=20),
    st.builds("{}={}".format, DOTTED_KEYS.map(".".join), st.lists(st.sampled_from(TOKENS), max_size=8).map("".join)),
    st.builds("{}={}".format, DOTTED_KEYS.map(".".join), LEAVES),
)


@fuzzed
@settings(max_examples=300, **ANYTHING)
@given(st.lists(OPTIONS, max_size=4))
def test_any_options_give_a_recipe_or_a_usage_error(tmp_path: Path, options: list[str]) -> None:
    recipe_or_sentences(write(tmp_path, a=FULL), *options)


def test_suggestions() -> None:
    assert suggest("hrnet_w48_nv", ["HRNet_W48_NV", "DiceLoss"]) == "did you mean HRNet_W48_NV?"
    assert suggest("zzz", ["a", "b"]) == "choose from a, b"
    assert suggest("zzz", map(str, range(30))).endswith("18, 19, ...")
