# SPDX-License-Identifier: Apache-2.0
"""Reading recipes: bases, options, the schema, and the sentence for everything that can be wrong."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmsa.config import Config, _Dumper, load_config, merge, suggest
from hmsa.errors import UsageError

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
    text = f"{MINIMAL}train_dataset: {{type: Dataset, transforms: [{crop}]}}"
    first, second = load_config(write(tmp_path, a=text)).train_dataset.transforms
    assert first.crop_size == second.crop_size == [96, 64]
    assert (first.label_padding_value, second.label_padding_value) == (255, 0)


def test_components_of_others_keep_their_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, a=MINIMAL.replace("HRNet_W48_NV", "STDC2, base: 64, extra: {deep: [1, x]}"))
    assert load_config(path).model.backbone.model_extra == {"base": 64, "extra": {"deep": [1, "x"]}}


def test_reading_is_quick_and_does_not_import_paddle(tmp_path: Path) -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "from hmsa.config import load_config; load_config(sys.argv[1])\n"
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


# PyYAML folds Unicode's rare line breaks, which no name or path holds.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
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
        ("model: {type: MscaleOCRnet}", r"expected model.type to be 'MscaleOCRNet', .*: did you mean MscaleOCRNet\?"),
        ("optimizer: SGD", r"expected optimizer to be a mapping .*, found 'SGD'"),
        ("optimizer: {momentum: 0.9}", r"expected optimizer.type to be given"),
        ("optimizer: {type: SGD, momentm: 0.9}", r"found optimizer.momentm: did you mean momentum\?"),
        ("optimizer: {type: SGD, clip_grad_norm: 0}", r"expected optimizer.clip_grad_norm to be greater than 0"),
        ("lr_scheduler: {type: PolynomialDecay, learning_rate: 0}", r"lr_scheduler.learning_rate to be greater than 0"),
        ("lr_scheduler: {type: PolynomialDecay, learning_rate: .inf}", r"lr_scheduler.learning_rate .* finite"),
        ("lr_scheduler: {type: PolynomialDecay}", r"expected lr_scheduler.learning_rate to be given"),
        ("loss: {types: [], coef: {joint: 1}}", r"expected loss.types to be at least 1 long"),
        ("loss: {types: [{type: DiceLoss}], coef: {}}", r"expected loss.coef to be at least 1 long"),
        ("loss: {types: [{type: DiceLoss}], coef: {lo: 1}}", r"expected loss.coef .*\(did you mean low\?\)"),
        ("loss: {types: [{type: DiceLoss}], coef: {low: -1}}", r"expected loss.coef.low to be greater than or equal"),
        ("loss: {types: [{type: DiceLoss}, {type: DiceLoss}], coef: {low: 1}}", r"loss.types .* each loss once"),
        ("loss: {types: [{type: BootstrappedCrossEntropyLoss}], coef: {low: 1}}", r"loss.types.0.min_K to be given"),
        ("loss: {types: [{type: DiceLoss, smoth: 1}], coef: {low: 1}}", r"loss.types.0.smoth: did you mean smooth\?"),
        ("test_config: {is_slide: true}", r"expected test_config to be given with a crop_size"),
        ("test_config: {crop_size: [64, 64], stride: [64, 65]}", r"test_config to be .* stride no larger than crop"),
        ("test_config: {crop_size: [64, 32]}", r"test_config.crop_size .* at least 64 px"),
        ("test_config: {crop_size: 64}", r"expected test_config.crop_size to be a list, found 64"),
        ("test_config: {scales: [0]}", r"expected test_config.scales.0 to be greater than 0"),
        ("train_dataset: {type: CityscapesAutolabeling, mode: train}", r"train_dataset.dataset_root to be given"),
        ("val_dataset: {type: CityscapesAutolabeling, dataset_root: d}", r"expected val_dataset.mode to be given"),
        ("val_dataset: {type: Dataset, transforms: [{type: RandomDistort, hue: 1}]}", r"val_dataset.transforms.0.hue"),
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
        ("scales: [0.5, 2]", r"expected model.scales to be a list of scales that contains 1.0, found \[0.5, 2\]"),
        ("scales: [1, 1.0]", r"expected model.scales to be a list of scales without duplicates"),
        ("scales: [1, -1]", r"expected model.scales.1 to be greater than 0, found -1"),
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


def test_a_crop_must_leave_the_network_a_pixel(tmp_path: Path) -> None:
    message = refused(write(tmp_path, a=FULL.replace("[256, 128]", "[256, 63]")))
    assert "train_dataset.transforms.0.crop_size" in message
    assert "at least 64 px" in message
    assert "[256, 63]" in message


def test_class_counts_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, a=FULL.replace("num_classes: 19", "num_classes: 20"))
    assert "found 20: set model.num_classes to 19" in refused(path)
    path = write(tmp_path, b=MINIMAL + "val_dataset: {type: Dataset, num_classes: 3}")
    assert "3 classes of val_dataset, found 19" in refused(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["lr_scheduler.warmup_iters=10", "iters=10"], "warmup_iters to be less than iters"),
        (["lr_scheduler.warmup_iters=1", "lr_scheduler.warmup_start_lr=0.01"], "warmup_start_lr to be less than"),
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
    assert any(line.startswith("--opts: ") and "model.dropuot: did you mean dropout?" in line for line in lines)
    assert any(line.startswith("--opts: expected seed") for line in lines)
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("iters", "--opts: expected key=value"),
        ("=5", "--opts: expected key=value"),
        ("model..scales=5", "--opts: expected key=value"),
        ("iters=[1", "--opts: expected the value of iters to be YAML, found '[1'"),
        ("iters=0", "--opts: expected iters to be greater than or equal to 1, found 0"),
        ("iter=5", "--opts: expected only known keys, found iter: did you mean iters?"),
        ("modl.scales=[1]", "--opts: expected only known keys, found modl: did you mean model?"),
        ("iters.x=5", "--opts: expected iters to be a mapping, found 65000 on the way to iters.x"),
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
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!bool maybe", "a value that cannot be read"),
        ("a: 2001-02-31", "a value that cannot be read"),
        ("a: &x [*x]", "recursive"),
        ("a: " + "[" * 3000, "too many levels of nesting"),
        ("_base_: 5", "expected _base_ to be a file name or a list of them, found 5"),
        ("_base_: missing.yml", "missing.yml: expected a YAML file, found none"),
        ("_base_: a.yml", "expected _base_ to end at some file, found a circle"),
        ("model: {_inherited_: 5}", "expected _inherited_ to be true or false, found 5"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    message = refused(write(tmp_path, a=text))
    assert str(tmp_path) in message
    assert sentence in message


def test_paths_that_are_no_recipe(tmp_path: Path) -> None:
    assert "expected a YAML file, found none" in refused(tmp_path / "missing.yml")
    assert "expected a readable YAML file, found Is a directory" in refused(tmp_path)
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    assert "expected YAML in UTF-8" in refused(tmp_path / "bytes.yml")


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


WORDS = "type scales n_scales transforms types coef learning_rate decay value backbone crop_size _base_ _inherited_ x"
KEYS = st.sampled_from([*Config.model_fields, *WORDS.split()])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.sampled_from(["SGD", "DiceLoss", "MscaleOCRNet", "CityscapesAutolabeling", "PolynomialDecay", "Normalize"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
    )
)
def test_any_tree_is_a_recipe_or_a_usage_error(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "any.yml"
    trees = [tree, {**yaml.safe_load(FULL), **tree}] if isinstance(tree, dict) else [tree]
    for candidate in trees:
        path.write_text(yaml.safe_dump(candidate, allow_unicode=True), encoding="utf-8")
        try:
            config = load_config(path)
        except UsageError as error:
            assert str(error)
        else:
            path.write_text(config.dump(), encoding="utf-8")
            assert load_config(path) == config


def test_suggestions() -> None:
    assert suggest("hrnet_w48_nv", ["HRNet_W48_NV", "DiceLoss"]) == "did you mean HRNet_W48_NV?"
    assert suggest("zzz", ["a", "b"]) == "choose from a, b"
    assert suggest("zzz", map(str, range(30))).endswith("18, 19, ...")
