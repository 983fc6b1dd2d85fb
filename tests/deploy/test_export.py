# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import paddle
import pytest
import yaml
from awaken import awaken
from numpy.testing import assert_allclose, assert_array_equal
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy.export import check_parity, export, replace_sync_batch_norm
from hmsa.deploy.runtime import load_predictor
from hmsa.engine.inference import joint_logits
from hmsa.errors import DataError, UsageError
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.weight_files import sha256

NORMALIZE = {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.fixture(scope="module")
def model():
    backbone = BACKBONES["HRNet_W18_NV_Small_V1"]()
    sizes = {"ocr_mid_channels": 32, "ocr_key_channels": 16, "attention_mid_channels": 16}
    return awaken(MscaleOCRNet(num_classes=5, backbone=backbone, **sizes))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    measured = export(model, folder, output_op="softmax", transforms=[NORMALIZE], class_names="abcde")
    return folder, measured


class Small(paddle.nn.Layer):
    """A model that exports in no time."""

    def __init__(self, normalisation=paddle.nn.BatchNorm2D):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)
        self.bn = normalisation(4)

    def forward(self, image):
        return {"joint": self.bn(self.conv(image))}


def test_the_exported_network_answers_at_any_size(model, exported):
    folder, measured = exported
    assert measured.startswith("equal to the network at 1x3x128x192, 1x3x97x161, 2x3x72x104: probabilities differ by")
    image = np.random.default_rng(3).normal(size=(2, 3, 75, 129)).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(image))["joint"]
    expected = paddle.nn.functional.softmax(logits, axis=1).numpy()
    assert expected.max() - expected.min() > 0.5
    assert_allclose(load_predictor(folder)(image), expected, atol=1e-4)


def test_deploy_yaml_names_the_files_and_the_preprocessing(exported):
    folder, _ = exported
    entry = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    program = entry.pop("model")
    assert program == ("model.pdmodel" if PADDLE_VERSION.startswith("2") else "model.json")
    assert entry == {
        "params": "model.pdiparams",
        "transforms": [NORMALIZE],
        "input_shape": [None, 3, None, None],
        "output_op": "softmax",
        "output_dtype": "float32",
        "paddle_version": PADDLE_VERSION,
        "sha256": {name: sha256(folder / name) for name in (program, "model.pdiparams")},
        "class_names": list("abcde"),
    }
    written = {path.name for path in folder.iterdir()} - {"model.pdiparams.info"}
    assert written == {program, "model.pdiparams", "deploy.yaml"}


def test_parity_notices_another_weight_deep_inside(model, exported):
    weight = model.state_dict()["scale_attn.conv2.weight"]
    right = weight.numpy()
    weight.set_value(right * 1.5)
    with pytest.raises(DataError, match=r"does not answer as the network does, at 1x3x64x96"):
        check_parity(joint_logits(model), exported[0], "softmax", [(1, 3, 64, 96)])
    weight.set_value(right)


@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
def test_output_operations(tmp_path, output_op):
    network = awaken(Small())
    export(network, tmp_path / "model", output_op=output_op, transforms=[])
    image = np.random.default_rng(0).normal(size=(1, 3, 7, 9)).astype(np.float32)
    answer = load_predictor(tmp_path / "model")(image)
    logits = network(paddle.to_tensor(image))["joint"]
    expected = {
        "argmax": paddle.argmax(logits, axis=1),
        "softmax": paddle.nn.functional.softmax(logits, axis=1),
        "none": logits,
    }[output_op]
    assert_allclose(answer, expected.numpy(), atol=1e-5)
    assert answer.dtype == (np.int32 if output_op == "argmax" else np.float32)
    # Probabilities and classes of other weights are noticed.
    with pytest.raises(DataError, match="at 1x3x20x30"):
        check_parity(joint_logits(awaken(Small(), seed=1)), tmp_path / "model", output_op, [(1, 3, 20, 30)])


def test_nothing_is_left_of_an_export_that_answers_differently(tmp_path, monkeypatch):
    network = awaken(Small())
    save = paddle.jit.save

    def save_other(layer, path):
        weight = layer.model.conv.weight
        right = weight.numpy()
        weight.set_value(right[::-1].copy())
        save(layer, path)
        weight.set_value(right)

    monkeypatch.setattr(paddle.jit, "save", save_other)
    with pytest.raises(DataError, match="nothing was written"):
        export(network, tmp_path / "new", output_op="argmax", transforms=[])
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_not_a_number_is_not_equal(tmp_path):
    network = awaken(Small())
    export(network, tmp_path, output_op="argmax", transforms=[])
    with pytest.raises(DataError, match="does not answer"):
        check_parity(lambda image: network(image)["joint"] * np.nan, tmp_path, "argmax", [(1, 3, 8, 8)])


def test_a_new_export_replaces_the_old_and_nothing_else(tmp_path):
    (tmp_path / "notes.md").write_text("keep")
    (tmp_path / "model.pdmodel").write_text("of another Paddle version")
    export(awaken(Small()), tmp_path, output_op="none", transforms=[])
    export(awaken(Small(), seed=1), tmp_path, output_op="argmax", transforms=[])
    assert load_predictor(tmp_path)(np.zeros((1, 3, 4, 4), np.float32)).shape == (1, 4, 4)
    names = {path.name for path in tmp_path.iterdir()}
    assert "notes.md" in names
    assert len(names & {"model.json", "model.pdmodel"}) == 1
    assert not any(name.startswith(".") for name in names)


def test_a_fixed_shape_is_checked_at_that_shape(tmp_path):
    measured = export(awaken(Small()), tmp_path, output_op="argmax", transforms=[], input_shape=(1, 3, 30, 20))
    assert measured.startswith("equal to the network at 1x3x30x20: ")
    assert yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]["input_shape"] == [1, 3, 30, 20]


@pytest.mark.parametrize("shape", [(1, 4, 30, 20), (0, 3, 30, 20), (1, 3, -2, 20), (1, 3, 20)])
def test_shapes_that_cannot_be(tmp_path, shape):
    with pytest.raises(UsageError, match="should be N 3 H W"):
        export(Small(), tmp_path, output_op="argmax", transforms=[], input_shape=shape)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write to this folder"):
        export(Small(), tmp_path / "file", output_op="argmax", transforms=[])


def test_synchronised_networks_export(tmp_path):
    export(awaken(Small(paddle.nn.SyncBatchNorm)), tmp_path, output_op="softmax", transforms=[])
    assert load_predictor(tmp_path)(np.zeros((1, 3, 4, 4), np.float32)).shape == (1, 4, 4, 4)


def test_sync_batch_norm_becomes_batch_norm():
    class Nested(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.parts = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 1), paddle.nn.SyncBatchNorm(4, epsilon=0.01))

    nested = awaken(Nested())
    before = {name: tensor.numpy() for name, tensor in nested.state_dict().items()}
    replace_sync_batch_norm(nested)
    plain = nested.parts[1]
    assert type(plain) is paddle.nn.BatchNorm2D
    assert not plain.training
    after = nested.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert_array_equal(after[name].numpy(), value)
    x = paddle.rand([1, 4, 2, 2])
    scale = before["parts.1.weight"] / np.sqrt(before["parts.1._variance"] + 0.01)
    shift = before["parts.1.bias"] - before["parts.1._mean"] * scale
    assert_allclose(plain(x).numpy(), x.numpy() * scale[:, None, None] + shift[:, None, None], rtol=1e-4, atol=1e-5)
