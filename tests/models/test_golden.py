# SPDX-License-Identifier: Apache-2.0
"""The network, its weights' names and its losses against vectors recorded from the reference implementation."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from golden.reference_weights import GAIN, reference_image, reference_state

import hmsa
from hmsa.models import BACKBONES, MscaleOCRNet
from hmsa.weights.names import original_name, released_name

GOLDEN = Path(__file__).parents[1] / "golden"
SCALES = {"s1": [1.0], "s3": [0.5, 1.0, 2.0], "s5": [0.5, 1.0, 1.5, 2.0, 2.5]}


def keys(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def network(backbone):
    return MscaleOCRNet(num_classes=19, backbone=BACKBONES[backbone]())


@functools.cache
def shapes(backbone):
    """Of all tensors of a network, by name."""
    return {name: list(value.shape) for name, value in network(backbone).state_dict().items()}


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


WIDTHS = [("w18_small_v1", "HRNet_W18_NV_Small_V1"), pytest.param("w48", "HRNet_W48_NV", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("tag", "backbone"), WIDTHS)
def test_forward_agrees_with_released_weights(tag, backbone, tmp_path):
    state = reference_state(keys(f"released_keys_{tag}"), GAIN[tag])
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(tmp_path / "w.pdparams"))
    model = network(backbone)
    hmsa.load_weights(model, tmp_path / "w.pdparams")
    model.eval()

    golden = np.load(GOLDEN / f"golden_{tag}.npz")
    checked = 0
    for name in golden.files:
        if not name.startswith("eval_"):
            continue
        _, scales, size = name.split("_")
        height, width = map(int, size.split("x"))
        model.scales = tuple(sorted(SCALES[scales], reverse=True))
        with paddle.no_grad():
            outputs = model(paddle.to_tensor(reference_image(1, height, width)), return_attention=True)
        assert relative_error(outputs["joint"].numpy(), golden[name]) <= 1e-5, name
        assert set(outputs) == {"joint", *(f"attention_{scale:g}" for scale in SCALES[scales])}
        if name == "eval_s1_64x128":
            assert relative_error(outputs["attention_1"].numpy(), golden["attention_s1_64x128"]) <= 1e-5
        checked += 1
    assert checked >= 3


def test_training_agrees():
    environment = {**os.environ, "MKL_DEBUG_CPU_TYPE": "0"}
    run = subprocess.run(
        [sys.executable, GOLDEN / "training.py"], capture_output=True, text=True, env=environment, check=True
    )
    errors = json.loads(run.stdout.splitlines()[-1])
    assert errors.pop("label_written") == 0
    for name, error in errors.items():
        assert error <= (1e-3 if name.startswith(("grad:", "statistics:")) else 1e-5), name
    assert sum(name.startswith("train_") for name in errors) == 4
    assert sum(name.startswith("loss_") for name in errors) == 9
    assert sum(name.startswith("grad:") for name in errors) == 5
    assert sum(name.startswith("statistics:") for name in errors) == 164


@pytest.mark.parametrize(
    ("backbone", "listed", "rename", "left_out"),
    [
        ("HRNet_W48_NV", "released_keys_w48", released_name, ""),
        ("HRNet_W18_NV_Small_V1", "released_keys_w18_small_v1", released_name, ""),
        ("HRNet_W48_NV", "nvidia_keys_w48", original_name, "num_batches_tracked"),
    ],
)
def test_every_tensor_has_its_counterpart(backbone, listed, rename, left_out):
    expected = {name: shape for name, shape in keys(listed).items() if not (left_out and name.endswith(left_out))}
    assert {rename(name): shape for name, shape in shapes(backbone).items()} == expected
