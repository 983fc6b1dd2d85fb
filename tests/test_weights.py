# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import paddle
import pytest

import hmsa
from hmsa.errors import DataError
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.weights import SCHEMES, load_pretrained, original_name, released_name, translate


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


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "HRNet backbone"])
def test_every_scheme_loads(tmp_path, scheme):
    expected = arrays(network(seed=1))
    state = {SCHEMES[scheme](name): value for name, value in expected.items()}
    state["num_batches_tracked"] = np.zeros((), np.int64)
    path = save(state, tmp_path / "w.pdparams")
    model = network(seed=2)
    assert hmsa.load_weights(model, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_equal(model, expected)


def test_translation_both_ways():
    names = list(network().state_dict())
    for rename in (released_name, original_name):
        theirs = [rename(name) for name in names]
        assert len(set(theirs)) == len(names)
        assert "" not in theirs
        _, back, left = translate({name: np.array(i) for i, name in enumerate(theirs)}, names)
        assert left == []
        assert [int(back[name]) for name in names] == list(range(len(names)))


def test_checkpoint_folder(tmp_path):
    expected = arrays(network(seed=1))
    save(expected, tmp_path / "model.pdparams")
    model = network()
    hmsa.load_weights(model, tmp_path)
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
    assert "another shape: ocr.cls_head.weight [9, 16, 1, 1]" in report
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
