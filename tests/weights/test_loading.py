# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import paddle
import pytest
from fuzz_weights import mutate

import hmsa
from hmsa.errors import DataError
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.weights.files import read_weights, write_weights
from hmsa.weights.loading import as_float32, load_pretrained, weight_file
from hmsa.weights.names import SCHEMES, original_name, recognised, released_name, translate


def network(num_classes=4, width="HRNet_W18_NV_Small_V1", seed=0):
    paddle.seed(seed)
    return MscaleOCRNet(
        num_classes=num_classes,
        backbone=BACKBONES[width](),
        ocr_mid_channels=16,
        ocr_key_channels=8,
        attention_mid_channels=8,
    )


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def save(state, path):
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))
    return path


def assert_equal(model, expected):
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


WHOLE = [name for name in SCHEMES if name != "PaddleClas HRNet"]


@pytest.mark.parametrize(
    ("scheme", "wrapper"),
    [*((scheme, "") for scheme in WHOLE), *zip(WHOLE, ("module.", "model.", "module.model.") * len(WHOLE))],
)
def test_every_scheme_loads_also_under_a_wrapper(tmp_path, scheme, wrapper):
    expected = arrays(network(seed=1))
    state = {f"{wrapper}{SCHEMES[scheme](name)}": value for name, value in expected.items()}
    state["num_batches_tracked"] = np.zeros((), np.int64)
    path = save(state, tmp_path / "w.pdparams")
    model = network(seed=2)
    assert hmsa.load_weights(model, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_equal(model, expected)


@pytest.mark.parametrize("width", ["HRNet_W18_NV_Small_V1", "HRNet_W48_NV"])
def test_translation_both_ways(width):
    names = list(lazily(width).state_dict())
    for rename in (released_name, original_name):
        theirs = [rename(name) for name in names]
        assert len(set(theirs)) == len(names)
        assert "" not in theirs
        _, back, left = translate({name: np.array(i) for i, name in enumerate(theirs)}, names)
        assert left == []
        assert [int(back[name]) for name in names] == list(range(len(names)))


def lazily(width):
    """A network for its names only: its tensors take no memory."""
    with paddle.LazyGuard():
        return network(width=width)


@pytest.mark.parametrize("width", ["HRNet_W18_NV_Small_V1", "HRNet_W48_NV"])
def test_names_are_recognised_without_the_network(width):
    names = list(lazily(width).state_dict())
    for title, scheme in SCHEMES.items():
        ours = [name for name in names if scheme(name)]
        theirs = [scheme(name) for name in ours]
        for wrapper in ("", "model.module."):
            given = [wrapper + name for name in theirs]
            found, arrays, left = translate(dict.fromkeys(given, np.zeros(1)), recognised(given))
            assert (found, list(arrays), left) == (title, ours, [])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "backbone.conv1",
        "backbone.conv1.weights",
        "backbone.conv10.weight",
        "backbone.stage2.x.branches.0.0.conv1.weight",
        "backbone.conv\u0661.weight",
        "ocrnet.backbone.st2.stage_st2_0.branches_func.bb_st2_0_branch_layer_1_1.conv1._conv.weight",
        "ocrnet.backbone.st2.stage_st3_1.branches_func.bb_st2_1_branch_layer_1_1.conv1._conv.weight",
        "somebody.backbone.conv1.weight",
        "module.module.module.module.backbone.conv1.weight",
        "st2.stage_func_list.0.fuse_func.residual_func_list.2._conv.weight",
    ],
)
def test_other_names_are_not_recognised(name):
    assert recognised([name]) == []


@pytest.fixture(scope="module")
def paddleseg_networks():
    """PaddleSeg's own networks of this backbone; their tensors take no memory."""
    from paddleseg.models import MscaleOCRNet, OCRNet
    from paddleseg.models.backbones import HRNet_W18_Small_V1

    with paddle.LazyGuard():
        backbone = HRNet_W18_Small_V1()
        return {
            "PaddleSeg HRNet": backbone,
            "PaddleSeg OCRNet": OCRNet(4, backbone, backbone_indices=[0]),
            "PaddleSeg MscaleOCRNet": MscaleOCRNet(4, backbone),
        }


@pytest.mark.parametrize(
    ("title", "part", "extra"),
    [
        ("PaddleSeg HRNet", "backbone.", []),
        # Its convolutions have a bias in front of normalisation, which ours leave out.
        (
            "PaddleSeg OCRNet",
            ("backbone.", "ocr."),
            [
                *(f"head.spatial_ocr.attention_block.f_{name}._conv.bias" for name in ("pixel.0", "pixel.1")),
                *(f"head.spatial_ocr.attention_block.f_{name}._conv.bias" for name in ("object.0", "object.1")),
                *(f"head.spatial_ocr.attention_block.f_{name}._conv.bias" for name in ("down", "up")),
                "head.spatial_ocr.conv1x1.0._conv.bias",
            ],
        ),
        ("PaddleSeg MscaleOCRNet", "", []),
    ],
)
def test_the_networks_of_paddleseg(paddleseg_networks, title, part, extra):
    """All of the tensors are known, each stands for one of ours of the same shape, and no other is missing."""
    with paddle.LazyGuard():
        ours = MscaleOCRNet(num_classes=4, backbone=BACKBONES["HRNet_W18_NV_Small_V1"]()).state_dict()
    theirs = paddleseg_networks[title].state_dict()
    found, translated, left = translate({name: np.array(i) for i, name in enumerate(theirs)}, ours)
    assert (found, left) == (title, extra)
    assert sorted(translated) == sorted(name for name in ours if name.startswith(part))
    shapes = [value.shape for value in theirs.values()]
    for name, index in translated.items():
        assert shapes[index] == ours[name].shape, name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # PaddleClas; three branches' convolutions: up, up; down, up; down twice, down.
        ("conv_layer1_2._batch_norm._mean", "bn2._mean"),
        ("layer1.3.conv3._conv.weight", "layer1.3.conv3.weight"),
        ("layer1.0.conv_down._batch_norm.bias", "layer1.0.downsample.1.bias"),
        ("tr1_1._conv.weight", "transition1.0.0.weight"),
        ("tr1_2._batch_norm.weight", "transition1.1.0.1.weight"),
        ("tr3._conv.weight", "transition3.3.0.0.weight"),
        ("st4.stage_func_list.2.basic_block_list.3.1.conv2._conv.weight", "stage4.2.branches.3.1.conv2.weight"),
        ("st3.stage_func_list.1.fuse_func.residual_func_list.1._conv.weight", "stage3.1.fuse_layers.0.2.0.weight"),
        ("st3.stage_func_list.1.fuse_func.residual_func_list.2._conv.weight", "stage3.1.fuse_layers.1.0.0.0.weight"),
        ("st3.stage_func_list.1.fuse_func.residual_func_list.5._batch_norm.bias", "stage3.1.fuse_layers.2.0.1.1.bias"),
        ("st4.stage_func_list.0.fuse_func.residual_func_list.15._conv.weight", "stage4.0.fuse_layers.3.2.0.0.weight"),
        # HRNet-Semantic-Segmentation, as it is trained; and mmsegmentation.
        ("model.bn1.running_var", "bn1._variance"),
        ("model.conv3x3_ocr.1.running_mean", "ocr.conv3x3_ocr.1.0._mean"),
        ("model.aux_head.3.bias", "ocr.aux_head.2.bias"),
        ("model.ocr_distri_head.object_context_block.f_up.1.0.weight",) * 2,
        ("model.cls_head.weight", "ocr.cls_head.weight"),
        ("backbone.stage2.0.branches.0.0.conv1.weight",) * 2,
    ],
)
def test_names_as_others_write_them(theirs, ours):
    ours = ours.replace("model.ocr_", "ocr.ocr_")
    expected = ours if ours.startswith(("ocr.", "backbone.")) else f"backbone.{ours}"
    assert recognised([theirs]) == [expected]
    assert list(translate({theirs: np.zeros(1)}, list(lazily("HRNet_W48_NV").state_dict()))[1]) == [expected]


def test_an_average_beside_the_weights_is_left_out(tmp_path):
    expected = arrays(network(seed=1))
    state = {f"model.{name}": value for name, value in expected.items()}
    state |= {f"ema.{name}": value + 1 for name, value in expected.items()}
    model = network(seed=2)
    report = load_pretrained(model, save(state, tmp_path / "w.pdparams"))
    assert_equal(model, expected)
    assert f"loaded {len(expected)} of {len(expected)} tensors; in the file only: ema.backbone.conv1.weight," in report


@pytest.mark.parametrize("scheme", ["hmsa", "PaddleSeg HRNet", "released Paddle", "HRNet PyTorch", "PaddleClas HRNet"])
def test_a_backbone_by_itself(tmp_path, scheme):
    """Weights of a whole network, or of a backbone, for a backbone that stands alone."""
    state = {SCHEMES[scheme](name): value for name, value in arrays(network(seed=1)).items()}
    state.pop("", None)
    backbone = network(seed=2).backbone
    report = load_pretrained(backbone, save(state, tmp_path / "w.pdparams"))
    assert "loaded 355 of 355 tensors" in report
    assert_equal(backbone, arrays(network(seed=1).backbone))


def test_checkpoint_folder(tmp_path):
    expected = arrays(network(seed=1))
    save(expected, tmp_path / "model.pdparams")
    model = network()
    hmsa.load_weights(model, tmp_path)
    assert_equal(model, expected)

    averaged = arrays(network(seed=2))
    save(averaged, tmp_path / "ema.pdparams")
    hmsa.load_weights(model, tmp_path)
    assert_equal(model, averaged)
    hmsa.load_weights(model, tmp_path / "model.pdparams")
    assert_equal(model, expected)


def test_safetensors_and_pytorch_dtypes(tmp_path):
    """Weights in float64, float16 and bfloat16 (spelt as uint16) are what they were, as far as these can hold it."""
    expected = {name: np.round(value * 4) / 4 for name, value in arrays(network(seed=1)).items()}
    state = dict(expected)
    kinds = (np.float64, np.float16, lambda value: (value.view(np.uint32) >> 16).astype(np.uint16))
    for index, (name, value) in enumerate(expected.items()):
        kind = kinds[index % 3]
        state[name] = kind(value) if index % 3 == 2 else value.astype(kind)
    write_weights(tmp_path / "w.safetensors", state)
    model = network(seed=2)
    hmsa.load_weights(model, tmp_path / "w.safetensors")
    assert_equal(model, expected)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_what_does_not_fit_is_an_error_and_loads_nothing(tmp_path, change):
    state = arrays(network(seed=1))
    if change == "missing":
        del state["ocr.cls_head.weight"]
    elif change == "unknown":
        state["ocr.extra"] = np.zeros(1, np.float32)
    else:
        state["ocr.cls_head.weight"] = np.zeros((7, 16, 1, 1), np.float32)
    path = save(state, tmp_path / "w.pdparams")
    model = network(seed=2)
    before = arrays(model)
    with pytest.raises(DataError, match=r"w\.pdparams.*ocr\.(cls_head\.weight|extra)"):
        hmsa.load_weights(model, path)
    assert_equal(model, before)


def test_pretrained_loads_what_fits_and_says_what_not(tmp_path):
    path = save(arrays(network(num_classes=9, seed=1)), tmp_path / "w.pdparams")
    model = network(seed=2)
    report = load_pretrained(model, path)
    assert "not fitting: ocr.cls_head.weight: [9, 16, 1, 1] instead of [4, 16, 1, 1]" in report
    for name, seed in (("backbone.conv1.weight", 1), ("ocr.cls_head.weight", 2)):
        np.testing.assert_array_equal(arrays(model)[name], arrays(network(seed=seed))[name])


def test_pretrained_backbone_alone(tmp_path):
    backbone = network(seed=1).backbone
    state = {
        name.replace("._mean", ".running_mean").replace("._variance", ".running_var"): value.numpy()
        for name, value in backbone.state_dict().items()
    }
    model = network(seed=2)
    report = load_pretrained(model, save(state, tmp_path / "w.pdparams"))
    assert f"loaded {len(state)} of" in report
    np.testing.assert_array_equal(model.backbone.conv1.weight.numpy(), backbone.conv1.weight.numpy())


def test_pretrained_that_fits_nowhere(tmp_path):
    path = save({"somebody.elses": np.zeros(3, np.float32)}, tmp_path / "w.pdparams")
    with pytest.raises(DataError, match="none that fit"):
        load_pretrained(network(), path)


BROKEN = {
    "int64 numbers": lambda a: a.astype(np.int64),
    "bool numbers": lambda a: a > 0,
    "numbers that are not finite in float32": lambda a: a.astype(np.float64) + 1e300,
    "[] instead of [4]": lambda a: np.float32(1).reshape(()),
    "[1, 4] instead of [4]": lambda a: a[np.newaxis],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_numbers_that_are_no_weights(tmp_path, reason):
    state = arrays(network(seed=1))
    state["ocr.cls_head.bias"] = BROKEN[reason](state["ocr.cls_head.bias"])
    write_weights(tmp_path / "w.safetensors", state)
    model = network(seed=2)
    before = arrays(model)
    with pytest.raises(DataError) as caught:
        hmsa.load_weights(model, tmp_path / "w.safetensors")
    assert f"1 that do not fit (ocr.cls_head.bias: {reason})" in str(caught.value)
    assert_equal(model, before)
    report = load_pretrained(model, tmp_path / "w.safetensors")
    assert f"not fitting: ocr.cls_head.bias: {reason}" in report
    expected = {**state, "ocr.cls_head.bias": before["ocr.cls_head.bias"]}
    assert_equal(model, expected)


def test_one_infinite_number_among_many():
    for value in (np.inf, -np.inf, np.nan):
        array = np.ones(1000, np.float32)
        array[500] = value
        with pytest.raises(ValueError, match="not finite"):
            as_float32(array)
    array[499:501] = np.finfo(np.float32).max  # whose sum float32 cannot hold
    assert as_float32(array) is array


def test_names_made_for_terminals_and_logs(tmp_path):
    state = {f"\x1b[31m{i}\n\u202e\ud800{'x' * 500}": np.zeros(1, np.float32) for i in range(1000)}
    write_weights(tmp_path / "w.safetensors", state)
    model = network()
    with pytest.raises(DataError) as caught:
        hmsa.load_weights(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 2000
    assert "1000 unknown (\\x1b[31m0 \\u202e\\ud800xxx" in message and "and 996 more" in message


@pytest.mark.slow
def test_damaged_weights_load_as_they_are_or_not_at_all(tmp_path):
    """What a flipped bit or a lost piece makes of a file: an error that names it, or tensors as they stand in it."""
    states = {}
    for name in ("w.pdparams", "w.safetensors"):
        states[name] = arrays(network(seed=1))
        write_weights(tmp_path / name, states[name])
    model = network(seed=2)
    loaded = 0
    for index in range(30):
        name = ("w.pdparams", "w.safetensors")[index % 2]
        path = tmp_path / f"damaged_{name}"
        rng = np.random.default_rng(index)
        path.write_bytes(mutate((tmp_path / name).read_bytes(), rng))
        before = arrays(model)
        try:
            hmsa.load_weights(model, path)
        except DataError as error:
            assert str(error).startswith(f"{path}: expected ") and str(error).isprintable()
            assert_equal(model, before)
        else:
            loaded += 1
            assert_equal(model, read_weights(path))
    assert 3 < loaded < 27


def test_the_folder_of_a_run_is_no_checkpoint_but_names_its_own(tmp_path):
    for name in ("best_model", "iter_4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pdparams").touch()
    with pytest.raises(DataError, match=r"without model\.pdparams; give a checkpoint in it \(best_model, iter_4\)"):
        weight_file(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found one without model\.pdparams; check the path"):
        weight_file(tmp_path / "empty")
