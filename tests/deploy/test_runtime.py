# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re

import pytest
import yaml
from paddle.version import full_version as PADDLE_VERSION

from hmsa.deploy.runtime import load_predictor, read_deployment
from hmsa.errors import DataError
from hmsa.system.files import sha256

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
    assert deployment.model == "model.json"
    assert deployment.params == "model.pdiparams"
    assert deployment.sha256 == {}


def test_a_model_of_a_newer_paddle_is_refused(folder):
    describe(folder, paddle_version="99.1.0")
    with pytest.raises(DataError, match=r"model\.json: written by Paddle 99\.1\.0, which Paddle .* cannot read"):
        load_predictor(folder)


def test_a_folder_without_description(tmp_path):
    with pytest.raises(DataError, match=r"deploy\.yaml: expected the description.*run export\.py"):
        load_predictor(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Deploy: 3",
        "Deploy: {model: model.json}",
        "Deploy: [",
        "[1]",
        "Deploy: !!python/object/apply:os.system [touch ran]",
        "\xff\xfe\0",
        "[" * 30_000,
        "Deploy: " + "1:" * 30_000 + "1",
        "Deploy: " + "x" * 100_000,
    ],
    ids=range(10),
)
def test_a_broken_description(folder, text):
    (folder / "deploy.yaml").write_text(text)
    with pytest.raises(DataError, match="export again"):
        read_deployment(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_layout": "NCHH"}, "input_layout: Input should be 'NCHW' or 'NHWC'"),
        ({"input_dtype": "int99"}, "input_dtype: Input should be"),
        ({"input_shape": [None, 3, None]}, "input_shape: List should have at least 4 items"),
        ({"input_shape": [0, 3, None, None]}, "input_shape.0: Input should be greater than or equal to 1"),
        ({"channel_order": "BGR"}, "channel_order: Input should be 'RGB' or 'as stored'"),
        ({"min_size": -5}, "min_size: Input should be greater than or equal to 1"),
        ({"output_op": "max"}, "output_op: Input should be"),
        ({"outputs": [{"name": "label", "dtype": "zzz", "layout": "NHW"}]}, "outputs.0.dtype: Input should be"),
        ({"class_colors": [[1, 2, 300]]}, "class_colors.0.2: Input should be less than or equal to 255"),
        ({"formats": [{"format": "onnx", "precision": "fp32", "files": ["a\0b"]}]}, "formats.0.files.0: "),
        ({"sha256": None}, "sha256: Input should be a valid dictionary"),
        ({"transforms": None}, "transforms: Input should be a valid list"),
    ],
)
def test_a_wrong_value_is_named(folder, changes, said):
    describe(folder, **changes)
    with pytest.raises(DataError, match=re.escape(said)):
        read_deployment(folder)


def test_sides_of_any_length_may_be_written_as_paddleseg_does(folder):
    describe(folder, input_shape=[-1, 3, -1, -1])
    assert read_deployment(folder).input_shape == [None, 3, None, None]


def test_aliases_of_aliases_take_no_memory(folder):
    """Written out, they would be a billion texts."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi")]
    (folder / "deploy.yaml").write_text("\n".join([*lines, "Deploy: *i"]))
    with pytest.raises(DataError, match="with every alias written out"):
        read_deployment(folder)


@pytest.mark.parametrize("name", ["deploy.yaml", "model.json"])
def test_a_pipe_is_not_waited_for(folder, name):
    describe(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match="export again"):
        load_predictor(folder)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3, 0, 4), "at least 2 pixels each way"),
        ((0, 3, 4, 4), "expected an image, found none"),
        ((1, 4, 4, 3), "found 1 4 4 3: bring the axes into this order"),
        ((3, 4, 4), "found 3 4 4: bring the axes into this order"),
    ],
)
def test_images_that_a_network_does_not_take(folder, shape, said):
    describe(folder, min_size=2)
    with pytest.raises(DataError, match=said):
        read_deployment(folder).check_images(shape)


def test_a_missing_file_is_named(folder):
    describe(folder)
    (folder / "model.pdiparams").unlink()
    with pytest.raises(DataError, match=r"model\.pdiparams: cannot be read \(No such file or directory\)"):
        load_predictor(folder)


@pytest.mark.parametrize(
    "name", ["../model.json", "/etc/passwd", "folder/model.json", "..", ".", "", "C:/x/..", 3, None, ["a"]]
)
@pytest.mark.parametrize("key", ["model", "params"])
def test_names_do_not_lead_out_of_the_folder(folder, key, name):
    (folder / "inner").mkdir()
    describe(folder / "inner", **{"model": "model.json", "params": "model.json", key: name})
    (folder / "inner" / "model.json").write_bytes(b"")
    with pytest.raises(DataError, match=r"deploy\.yaml: expected what export\.py writes.*export again"):
        read_deployment(folder / "inner")


@pytest.mark.parametrize(
    "change",
    [
        {"paddle_version": 3.0},
        {"paddle_version": "newest"},
        {"sha256": ["a"]},
        {"sha256": {"model.json": 1}},
    ],
    ids=str,
)
def test_values_of_another_kind(folder, change):
    describe(folder, **change)
    with pytest.raises(DataError, match=r"deploy\.yaml: expected what export\.py writes, but: .*; export again"):
        read_deployment(folder)


def test_a_file_that_is_not_what_was_exported(folder):
    """Paddle itself runs on half of the parameters and says nothing."""
    describe(folder, sha256={"model.json": sha256(folder / "model.json"), "model.pdiparams": "0" * 64})
    with pytest.raises(DataError, match=r"model\.pdiparams: expected the file that export\.py wrote, found another"):
        load_predictor(folder)


@pytest.mark.skipif(PADDLE_VERSION.startswith("2"), reason="Paddle 2 itself dies of it")
def test_a_model_that_paddle_cannot_load(folder):
    describe(folder)
    (folder / "model.json").write_text("not a model")
    with pytest.raises(
        DataError, match=r"model\.json: expected a model that Paddle .* can run, found one that is damaged"
    ):
        load_predictor(folder)
