# SPDX-License-Identifier: Apache-2.0
"""The tool as it is called, where neither PyTorch nor Paddle can be imported unless --config is given."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa.weights.files import read_weights, write_weights
from hmsa.weights.names import original_name, recognised, released_name

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
NAMES = {"hmsa": lambda name: name, "released": released_name, "original": original_name}


def run(tmp_path, *arguments, paddle=False):
    for module in ("torch", *(() if paddle else ("paddle",))):
        (tmp_path / "hidden").mkdir(exist_ok=True)
        (tmp_path / "hidden" / f"{module}.py").write_text("raise ImportError('not to be imported')")
    paths = [str(tmp_path / "hidden"), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, str(ROOT / "tools/convert_weights.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


@pytest.fixture(scope="module")
def weights():
    """Small tensors under all names of the small network, by our names."""
    released = json.loads((GOLDEN / "released_keys_w18_small_v1.json").read_text())
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=3).astype(np.float32) for name in recognised(released)}


@pytest.mark.parametrize(
    ("before", "after"), [("released", "hmsa"), ("original", "released"), ("hmsa", "original"), ("original", "hmsa")]
)
def test_names_and_formats(tmp_path, weights, before, after):
    source, target = tmp_path / "in.safetensors", tmp_path / "out" / "w.pdparams"
    given = {NAMES[before](name): value for name, value in weights.items()}
    given[f"{next(iter(given)).rpartition('.')[0]}.num_batches_tracked"] = np.array(7)
    write_weights(source, given)
    result = run(tmp_path, "--input", source, "--output", target, "--names", after)
    assert (result.returncode, result.stderr) == (0, "")
    found = read_weights(target)
    assert list(found) == [NAMES[after](name) for name in weights]
    for name, value in weights.items():
        np.testing.assert_array_equal(found[NAMES[after](name)], value)
    lines = result.stdout.splitlines()
    name = list(weights)[5]
    assert f"{NAMES[before](name)} -> {NAMES[after](name)} [3]" in lines
    assert lines[-2].endswith("num_batches_tracked dropped")
    assert lines[-1].endswith(f"names) written to {target}, 1 counter dropped")
    assert lines[-1].startswith("417 tensors (")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pytorch_checkpoint(tmp_path, form):
    result = run(tmp_path, "--input", GOLDEN / f"torch_backbone_{form}.pth", "--output", tmp_path / "w.pdparams")
    assert result.stdout.splitlines() == [
        "module.backbone.conv1.weight -> backbone.conv1.weight [4, 3, 3, 3]",
        "module.backbone.bn1.weight -> backbone.bn1.weight [4]",
        "module.backbone.bn1.bias -> backbone.bn1.bias [4]",
        "module.backbone.bn1.running_mean -> backbone.bn1._mean [4]",
        "module.backbone.bn1.running_var -> backbone.bn1._variance [4]",
        "module.backbone.bn1.num_batches_tracked dropped",
        f"5 tensors (original PyTorch names) written to {tmp_path / 'w.pdparams'}, 1 counter dropped",
    ]
    assert (result.returncode, result.stderr) == (0, "")
    expected = np.load(GOLDEN / "torch_expected.npz")
    for name, value in read_weights(tmp_path / "w.pdparams").items():
        np.testing.assert_array_equal(value, expected[original_name(name)])


@pytest.mark.slow
def test_checked_against_a_recipe(tmp_path, tiny_recipe):
    from hmsa.builder import build_model
    from hmsa.config.reading import load_config

    model = build_model(load_config(tiny_recipe))
    given = {released_name(name): value.numpy() for name, value in model.state_dict().items()}
    source, target = tmp_path / "in.pdparams", tmp_path / "w.safetensors"
    write_weights(source, given)
    result = run(tmp_path, "--input", source, "--output", target, "--config", tiny_recipe, paddle=True)
    assert result.returncode == 0, result.stderr
    assert set(read_weights(target)) == set(model.state_dict())
    target.unlink()
    del given["ocrnet.head.cls_head.bias"]
    write_weights(source, given)
    result = run(tmp_path, "--input", source, "--output", target, "--config", tiny_recipe, paddle=True)
    assert_refused(
        result, 1, "in.pdparams: expected the 417 tensors of this model, found tensors 1 missing (ocr.cls_head"
    )
    assert not target.exists()


def test_no_file_is_lost_that_was_there(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    given = {released_name(name): value for name, value in weights.items()}
    write_weights(path, given)
    result = run(tmp_path, "--input", path, "--output", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"; the earlier file is kept as {tmp_path}/w.1.safetensors\n")
    assert set(read_weights(tmp_path / "w.1.safetensors")) == set(given)
    assert set(read_weights(path)) == set(weights)


def assert_refused(result, status, sentence):
    assert result.returncode == status
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: ") and sentence in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("error: ") == 1


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran",)


BAD = {
    "damaged": (lambda: (GOLDEN / "torch_zip.pth").read_bytes()[:-100], "it is damaged or of another kind"),
    "a call": (
        lambda: pickle.dumps({"backbone.conv1.weight": Payload()}),
        "it asks for posix.system, which no weights",
    ),
    "unknown": (
        lambda: (GOLDEN / "torch_zip.pth").read_bytes(),
        "found 14 others (shared.whole, shared.again, shared.part, shared.transposed and 10 more)",
    ),
    "integers": (
        lambda: pickle.dumps({"backbone.conv1.weight": np.ones(3, int)}),
        "found int64 numbers in backbone.conv1",
    ),
    "nan": (
        lambda: pickle.dumps({"backbone.conv1.weight": np.full(3, np.nan)}),
        "found numbers that are not finite in float32 in",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_a_sentence_and_nothing_is_written(tmp_path, what, monkeypatch):
    make, sentence = BAD[what]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.pth").write_bytes(make())
    result = run(tmp_path, "--input", "in.pth", "--output", tmp_path / "out" / "w.pdparams")
    assert_refused(result, 1, "in.pth: expected ")
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "ran").exists()


def test_bad_output(tmp_path):
    given = ("--input", GOLDEN / "torch_backbone_zip.pth", "--output")
    assert_refused(run(tmp_path, *given, tmp_path / "w.pth"), 2, "written as .pdparams or .safetensors, not as .pth")
    (tmp_path / "file").write_bytes(b"")
    assert_refused(run(tmp_path, *given, tmp_path / "file" / "w.pdparams"), 1, "cannot be written (")
