# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import yaml

from hmsa.deploy.runtime import load_predictor, read_deployment
from hmsa.errors import DataError

ENTRY = {
    "model": "model.json",
    "params": "model.pdiparams",
    "transforms": [{"type": "Normalize"}],
    "input_shape": [None, 3, None, None],
    "output_op": "argmax",
    "output_dtype": "int32",
}


@pytest.fixture
def folder(tmp_path):
    for name in ("model.json", "model.pdiparams"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def describe(folder, **changes):
    (folder / "deploy.yaml").write_text(yaml.safe_dump({"Deploy": {**ENTRY, **changes}}))


def test_a_description_of_paddleseg_is_read(folder):
    describe(folder)
    deployment = read_deployment(folder)
    assert deployment.model == folder / "model.json"
    assert deployment.input_shape == (None, 3, None, None)
    assert deployment.paddle_version is None
    assert deployment.class_names == ()


def test_a_model_of_a_newer_paddle_is_refused(folder):
    describe(folder, paddle_version="99.1.0")
    with pytest.raises(DataError, match=r"model\.json: written by Paddle 99\.1\.0, which Paddle .* cannot read"):
        load_predictor(folder)


def test_a_folder_without_description(tmp_path):
    with pytest.raises(DataError, match=r"deploy\.yaml: expected the description.*run export\.py"):
        load_predictor(tmp_path)


@pytest.mark.parametrize("text", ["", "Deploy: 3", "Deploy: {model: model.json}", "Deploy: [", "[1]"])
def test_a_broken_description(folder, text):
    (folder / "deploy.yaml").write_text(text)
    with pytest.raises(DataError, match="export again"):
        read_deployment(folder)


def test_a_missing_file_is_named(folder):
    describe(folder)
    (folder / "model.pdiparams").unlink()
    with pytest.raises(DataError, match=r"model\.pdiparams: expected this file"):
        read_deployment(folder)
