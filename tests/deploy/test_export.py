# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import dataclasses
import re

import numpy as np
import paddle
import pytest
import yaml
from awaken import awaken
from numpy.testing import assert_allclose, assert_array_equal
from paddle.version import full_version as PADDLE_VERSION

from hmsa.datasets.classes import Classes
from hmsa.deploy.engines import is_installed
from hmsa.deploy.export import ExportOptions, export
from hmsa.deploy.formats import FORMATS
from hmsa.deploy.network import Answer
from hmsa.deploy.parity import Case, compare, make_cases
from hmsa.deploy.runtime import load_predictor
from hmsa.errors import DataError, UsageError
from hmsa.inference import tracing
from hmsa.inference.fold import replace_sync_batch_norm
from hmsa.inference.paddle_inference import open_predictor
from hmsa.system.files import LOCK_FILE, FolderLock, sha256
from hmsa.visualize import DISTINCT_COLORS

COLORS = [(i, 2 * i, 255 - i) for i in range(5)]
NORMALIZE = {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
ANY = ExportOptions(output_op="argmax", transforms=[])
NAMES = {"argmax": "label", "softmax": "probabilities", "none": "logits"}
FORMS = ["pdmodel"] if PADDLE_VERSION.startswith("2") else ["pdmodel", "json"]


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.slow)])
def model(request, make_tiny_network, make_small_network):
    return make_tiny_network() if request.param == "tiny" else make_small_network()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    classes = Classes(names=tuple("abcde"), colors=tuple(COLORS))
    measured = export(model, folder, ExportOptions(output_op="softmax", transforms=[NORMALIZE], classes=classes))
    return folder, measured


def check(network, predictor, output_op, shape):
    """Compare what a predictor answers with what a network does."""
    name = NAMES[output_op]
    cases = make_cases(network, Answer(output_op=output_op), [shape])
    return compare(cases, lambda images: {name: predictor(images)}, reader="it")


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
    first, _, row, *_ = measured.splitlines()
    assert first == "compared with the network on drawn streets of 1x3x128x192, 1x3x97x161, 2x3x72x104:"
    assert re.fullmatch(r"paddle +fp32 +paddle +100\.0000 % +\d\.\de-0\d \(probabilities\) +\d+\.\d", row)
    image = np.random.default_rng(3).normal(size=(2, 3, 75, 129)).astype(np.float32)
    with paddle.no_grad():
        logits = model(paddle.to_tensor(image))["joint"]
    expected = paddle.nn.functional.softmax(logits, axis=1).numpy()
    assert expected.max() - expected.min() > 0.4
    assert_allclose(load_predictor(folder)(image), expected, atol=1e-4)


def test_deploy_yaml_names_the_files_and_the_preprocessing(exported):
    folder, _ = exported
    entry = yaml.safe_load((folder / "deploy.yaml").read_text())["Deploy"]
    output_name = entry.pop("output_name")
    engines = [name for name in ("paddle", "openvino") if is_installed(name)]
    assert entry == {
        "model": "model.pdmodel",
        "params": "model.pdiparams",
        "transforms": [NORMALIZE],
        "input_shape": [None, 3, None, None],
        "output_op": "softmax",
        "output_dtype": "float32",
        "input_name": "x",
        "input_dtype": "float32",
        "input_layout": "NCHW",
        "channel_order": "RGB",
        "pixel_divisor": 255,
        "output_layout": "NCHW",
        "min_size": 2,
        "outputs": [{"name": "probabilities", "dtype": "float32", "layout": "NCHW"}],
        "formats": [
            {
                "format": "paddle",
                "precision": "fp32",
                "files": ["model.pdmodel", "model.pdiparams"],
                "engines": {name: entry["formats"][0]["engines"][name] for name in engines},
            }
        ],
        "class_names": list("abcde"),
        "class_colors": [list(color) for color in COLORS],
        "ignore_index": 255,
        "paddle_version": PADDLE_VERSION,
        "sha256": {name: sha256(folder / name) for name in ("model.pdmodel", "model.pdiparams")},
    }
    predictor = open_predictor(folder / "model.pdmodel", folder / "model.pdiparams")
    assert predictor.get_input_names() == ["x"]
    assert predictor.get_output_names() == [output_name]
    assert {path.name for path in folder.iterdir()} == {"model.pdmodel", "model.pdiparams", "deploy.yaml"}


def test_classes_without_names_are_numbered_and_have_colours_that_differ(make_tiny_network, tmp_path):
    export(make_tiny_network(), tmp_path, ExportOptions(output_op="argmax", transforms=[]))
    entry = yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]
    assert entry["class_names"] == ["class 0", "class 1", "class 2", "class 3", "class 4"]
    assert [tuple(color) for color in entry["class_colors"]] == [*DISTINCT_COLORS[:5]]
    assert (entry["output_dtype"], entry["output_layout"], entry["ignore_index"]) == ("int32", "NHW", 255)


def test_what_is_written_is_folded_and_holds_the_weights_once(model, exported):
    folder, _ = exported
    assert b"batch_norm" not in (folder / "model.pdmodel").read_bytes()
    weights = sum(tensor.numpy().nbytes for tensor in model.state_dict().values())
    assert (folder / "model.pdiparams").stat().st_size < 1.05 * weights


def test_what_is_written_is_opened_in_seconds(model, exported):
    """Paddle Inference, opening a program, tries every convolution with every other where an addition has one on its
    left, and does not fuse a bias that is reshaped: it took minutes for HRNet-W48."""
    folder, _ = exported
    paddle.enable_static()
    try:
        with contextlib.nullcontext() if PADDLE_VERSION.startswith("2") else paddle.pir_utils.OldIrGuard():
            content = (folder / "model.pdmodel").read_bytes()
            block = paddle.base.framework.Program.parse_from_string(content).global_block()
    finally:
        paddle.disable_static()
    maker = {name: op for op in block.ops for name in op.output_arg_names}
    terms = [(*op.input("X"), *op.input("Y"), op.attr("axis")) for op in block.ops if op.type == "elementwise_add"]
    biases = [term for term in terms if block.var(term[1]).persistable]
    assert len(biases) > sum(isinstance(layer, paddle.nn.Conv2D) for layer in model.sublayers())  # at several scales
    assert all(maker[left].type == "conv2d" and axis == 1 for left, _, axis in biases)
    sums = [term for term in terms if term not in biases]
    convolved = {
        name
        for name, op in maker.items()
        if op.type == "conv2d" or (op.type == "elementwise_add" and block.var(op.input("Y")[0]).persistable)
    }
    assert len(sums) >= 2
    assert not [left for left, _, _ in sums if left in convolved]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(make_tiny_network, tmp_path, training):
    network = make_tiny_network()
    network.backbone.layers = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(network.backbone.layers)
    network.train() if training else network.eval()
    kinds = [type(layer) for layer in network.sublayers()]
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    export(network, tmp_path, ANY)
    assert [type(layer) for layer in network.sublayers()] == kinds
    assert all(layer.training == training for layer in network.sublayers(include_self=True))
    after = network.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert_array_equal(after[name].numpy(), value, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_labels_of_the_network(make_tiny_network, tmp_path, form):
    network, image = make_tiny_network(), np.random.default_rng(1).normal(size=(2, 3, 75, 129)).astype(np.float32)
    with paddle.no_grad():
        expected = network(paddle.to_tensor(image))["joint"].numpy().argmax(axis=1)
    export(network, tmp_path, ExportOptions(output_op="argmax", transforms=[], program=form))
    assert yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]["model"] == f"model.{form}"
    assert len(np.unique(expected)) > 2
    assert (load_predictor(tmp_path)(image) == expected).mean() >= 0.9999
    with paddle.no_grad():  # Paddle computes and writes as before.
        assert_array_equal(network(paddle.to_tensor(image))["joint"].numpy().argmax(axis=1), expected)


@pytest.mark.skipif(PADDLE_VERSION.startswith("2"), reason="Paddle 2 has one form")
def test_a_network_that_cannot_be_written_for_every_reader_is_written_as_json(
    make_tiny_network, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tracing, "OLD_OPERATORS", {})  # as if Paddle had more functions like these
    with pytest.raises(DataError, match=r"Paddle \S+ cannot write this network as pdmodel \(.+\); try another form"):
        export(
            make_tiny_network(), tmp_path / "model", ExportOptions(output_op="argmax", transforms=[], program="pdmodel")
        )
    assert list(tmp_path.iterdir()) == []
    export(make_tiny_network(), tmp_path / "model", ANY)
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
    assert "cannot write this network as pdmodel" in said and "it is written as json" in said
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "model.pdiparams", "deploy.yaml"}


@pytest.mark.skipif(not PADDLE_VERSION.startswith("2"), reason="Paddle 3 has it")
def test_a_form_that_this_paddle_does_not_have(make_tiny_network, tmp_path):
    with pytest.raises(UsageError, match="json needs Paddle 3, but this is 2"):
        export(make_tiny_network(), tmp_path, ExportOptions(output_op="argmax", transforms=[], program="json"))


def test_parity_notices_another_weight_deep_inside(model, exported):
    weight = model.state_dict()["scale_attn.conv2.weight"]
    right = weight.numpy()
    weight.set_value(right * 1.5)
    with pytest.raises(DataError, match=r"does not answer as the network does, at 1x3x64x96"):
        check(model, load_predictor(exported[0]), "softmax", (1, 3, 64, 96))
    weight.set_value(right)


@pytest.mark.parametrize("output_op", ["argmax", "softmax", "none"])
def test_output_operations(tmp_path, output_op):
    network = awaken(Small())
    export(network, tmp_path / "model", ExportOptions(output_op=output_op, transforms=[]))
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
        check(awaken(Small(), seed=1), load_predictor(tmp_path / "model"), output_op, (1, 3, 20, 30))


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
        export(network, tmp_path / "new", ANY)
    assert list(tmp_path.iterdir()) == []


def answers(logits, output_op):
    """What a program answers that computes these logits [N, K, H, W]."""
    if output_op == "argmax":
        return logits.argmax(axis=1).astype(np.int32)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True) if output_op == "softmax" else logits


def compare_answers(logits, answer, output_op):
    """What a program answers, with what it should: that of these logits."""
    N, _, H, W = logits.shape
    name = NAMES[output_op]
    case = Case(np.zeros((N, 3, H, W)), logits, {name: answers(logits.astype(np.float64), output_op)})
    return compare([case], lambda images: {name: answer}, reader="it")


def some_logits(spread, around=0.0):
    rng = np.random.default_rng(0)
    return (around + spread * rng.normal(size=(1, 5, 20, 30))).astype(np.float32)


OPERATIONS = ["argmax", "softmax", "none"]


@pytest.mark.parametrize("output_op", OPERATIONS)
@pytest.mark.parametrize(
    "logits", [some_logits(3), some_logits(1e-6), some_logits(1e-15), some_logits(1e-6, 8)], ids=range(4)
)
def test_what_float32_cannot_tell_apart_is_no_difference(logits, output_op):
    noise = np.random.default_rng(1).normal(size=logits.shape) * np.abs(logits).max() * 3e-7
    compare_answers(logits, answers(logits + noise.astype(np.float32), output_op), output_op)


def test_few_labels_may_differ_where_two_classes_are_nearly_equal():
    """Near enough for a single pixel, which `MAX_DIFFERENCE` allows, but not for a third of them."""
    logits = some_logits(3)
    logits[:, 0] = logits.max(axis=1) + 1
    logits[:, 1] = logits[:, 0] - 1e-4 * np.ptp(logits)
    swapped = np.where(np.arange(30) % 3 == 0, logits[:, [1, 0, 2, 3, 4]], logits)
    with pytest.raises(DataError, match=r"66\.6667 % of labels equal"):
        compare_answers(logits, answers(swapped, "argmax"), "argmax")


WRONG = {
    "channels swapped": lambda logits: logits[:, [1, 0, 2, 3, 4]],
    "one class lost": lambda logits: np.where(np.arange(5)[:, None, None] == 2, logits.min(), logits),
    "a few pixels": lambda logits: np.where(np.arange(30) == 7, -logits, logits),
    "a shift by a pixel": lambda logits: np.roll(logits, 1, axis=3),
    "one class a tenth too high": lambda logits: logits + 0.1 * np.ptp(logits) * (np.arange(5)[:, None, None] == 3),
}


@pytest.mark.parametrize("output_op", OPERATIONS)
@pytest.mark.parametrize("spread", [3, 1e-3])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_answers_are_noticed_also_where_all_classes_are_nearly_equal(change, spread, output_op):
    logits = some_logits(spread)
    with pytest.raises(DataError, match="does not answer as the network does, at 1x3x20x30"):
        compare_answers(logits, answers(change(logits), output_op), output_op)


@pytest.mark.parametrize(
    ("output_op", "change"),
    [
        ("argmax", lambda label: (label + 1) % 5),
        ("argmax", lambda label: label + 5),
        ("argmax", lambda label: label - 5),
        ("softmax", lambda probabilities: probabilities + 0.01),
        ("none", lambda logits: logits + 0.1),
    ],
)
def test_a_constant_added_to_the_answer_is_noticed(output_op, change):
    logits = some_logits(3)
    with pytest.raises(DataError, match="does not answer as the network does, at 1x3x20x30"):
        compare_answers(logits, change(answers(logits, output_op)), output_op)


@pytest.mark.parametrize("output_op", ["argmax", *(pytest.param(op, marks=pytest.mark.slow) for op in OPERATIONS[1:])])
def test_a_network_without_training_is_exported(make_tiny_network, tmp_path, output_op):
    export(make_tiny_network(seed=None), tmp_path, ExportOptions(output_op=output_op, transforms=[]))


@pytest.mark.parametrize("output_op", OPERATIONS)
def test_no_number_is_not_equal(output_op):
    logits = some_logits(3)
    with pytest.raises(DataError, match="does not answer"):
        compare_answers(logits * np.nan, answers(logits, output_op), output_op)
    if output_op != "argmax":  # Classes are always numbers.
        with pytest.raises(DataError, match="does not answer"):
            compare_answers(logits, answers(logits, output_op) * np.nan, output_op)


class Products(paddle.nn.Layer):
    """A model whose products Paddle Inference mangles, unless it is told not to: of a matrix that is reshaped, then
    transposed."""

    def __init__(self):
        super().__init__()
        self.pixels, self.logits = (paddle.nn.Conv2D(3, channels, 1) for channels in (8, 5))

    def forward(self, image):
        logits = self.logits(image)
        pixels = self.pixels(image).reshape([0, 8, -1]).transpose([0, 2, 1])  # [N, HW, 8]
        regions = paddle.matmul(paddle.nn.functional.softmax(logits.flatten(2), axis=2), pixels)  # [N, 5, 8]
        answer = paddle.matmul(regions, self.pixels(image).flatten(2))  # [N, 5, HW]
        return {"joint": answer.reshape([0, 5, paddle.shape(image)[2], paddle.shape(image)[3]])}


@pytest.mark.skipif(PADDLE_VERSION.startswith("2"), reason="Paddle 2 mangles other products")
def test_a_pass_that_mangles_products_is_noticed(tmp_path, monkeypatch):
    """Paddle's own search for what can be fused gives wrong numbers here, and no warning."""
    network, options = awaken(Products()), ExportOptions(output_op="softmax", transforms=[], program="json")
    export(network, tmp_path, options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    delete_pass = paddle.inference.Config.delete_pass

    def leave_in(config, name):
        if "reshape_transpose_matmul" not in name:
            delete_pass(config, name)

    monkeypatch.setattr(paddle.inference.Config, "delete_pass", leave_in)
    with pytest.raises(
        DataError, match=r"probabilities of \d+ of \d+ pixels are wrong, .* as paddle .* cannot run this"
    ):
        export(network, tmp_path, options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_gpu_does_not_make_the_check_fail(make_tiny_network, tmp_path, pretended_gpu):
    """GPUs round to TF32: both sides are compared on the CPU."""
    network = make_tiny_network()
    measured = export(network, tmp_path, ExportOptions(output_op="softmax", transforms=[]))
    assert pretended_gpu == ["gpu:0", "cpu", "gpu:0"]
    assert float(re.search(r"(\S+) \((probabilities|logits)\)", measured)[1]) < 1e-5
    with paddle.no_grad():
        image = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32))
        rounded = network(image)["joint"].numpy()
        pretended_gpu.append("cpu")
        exact = network(image)["joint"].numpy()
    assert np.abs(rounded - exact).max() > 1e-4 * np.abs(exact).max()


def test_a_new_export_replaces_the_old_and_nothing_else_and_says_so(tmp_path):
    (tmp_path / "notes.md").write_text("keep")
    first = export(awaken(Small()), tmp_path, ExportOptions(output_op="none", transforms=[], program=FORMS[-1]))
    assert "replaced" not in first
    (tmp_path / "model.pdiparams.info").write_text("of another program")
    second = export(awaken(Small(), seed=1), tmp_path, ANY)
    time = r" of \d{4}-\d\d-\d\d \d\d:\d\d"
    earlier, where = f"model.{FORMS[-1]}", re.escape(str(tmp_path))
    kept = ["deploy.yaml", *[earlier] * (earlier == "model.pdmodel"), "model.pdiparams"]
    said = rf"\nreplaced in {where}: " + ", ".join(re.escape(name) + time for name in kept)
    if earlier not in kept:
        said += rf"\nremoved, being of the earlier export, from {where}: {re.escape(earlier)}{time}"
    assert re.search(said + r"\Z", second)
    assert load_predictor(tmp_path)(np.zeros((1, 3, 4, 4), np.float32)).shape == (1, 4, 4)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.md", "model.pdiparams.info", "deploy.yaml", "model.pdmodel", "model.pdiparams"}


@pytest.mark.parametrize("name", ["model.json", "model.pdmodel", "model.pdiparams", "deploy.yaml"])
def test_a_file_that_no_export_wrote_is_refused_before_the_work_starts(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=rf"{name}: expected a file of an earlier export or nothing, found one that"):
        export(paddle.nn.Layer(), tmp_path, ANY)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_file_beside_an_export_that_is_not_of_it_is_refused(tmp_path):
    export(awaken(Small()), tmp_path, ANY)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(DataError, match=r"model\.json: .* found one that no deploy\.yaml there describes") as error:
        export(awaken(Small()), tmp_path, ANY)
    assert error.value.settings == ["save_dir"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {**before, "model.json": b"mine"}


@pytest.mark.parametrize("state", ["without hashes", "damaged", "incomplete"])
def test_an_earlier_export_is_replaced_whatever_became_of_it(tmp_path, state):
    export(awaken(Small()), tmp_path, ANY)
    if state == "without hashes":
        text = (tmp_path / "deploy.yaml").read_text()
        (tmp_path / "deploy.yaml").write_text(text[: text.index("  sha256")])
    elif state == "damaged":
        (tmp_path / "model.pdiparams").write_bytes(b"")
    else:
        (tmp_path / "model.pdmodel").unlink()
    assert "replaced in" in export(awaken(Small()), tmp_path, ANY)
    load_predictor(tmp_path)


def test_a_fixed_shape_is_checked_at_that_shape(tmp_path):
    measured = export(
        awaken(Small()), tmp_path, ExportOptions(output_op="argmax", transforms=[], input_shape=(1, 3, 30, 20))
    )
    assert measured.startswith("compared with the network on drawn streets of 1x3x30x20:")
    assert yaml.safe_load((tmp_path / "deploy.yaml").read_text())["Deploy"]["input_shape"] == [1, 3, 30, 20]


@pytest.mark.parametrize("shape", [(1, 4, 30, 20), (0, 3, 30, 20), (1, 3, -2, 20), (1, 3, 20)])
def test_shapes_that_cannot_be(tmp_path, shape):
    with pytest.raises(UsageError, match="should be N 3 H W"):
        export(Small(), tmp_path, ExportOptions(output_op="argmax", transforms=[], input_shape=shape))


@pytest.mark.parametrize("target", ["file", "file/model", "link", "taken"])
def test_a_folder_that_cannot_be_written(tmp_path, target):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "taken" / "model.pdmodel").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"found a (file|link)|cannot write to this folder|found a folder; move it away"
    ):
        export(Small(), tmp_path / target, ANY)
    assert (tmp_path / "taken" / "model.pdmodel").is_dir()


def test_a_disk_that_is_full_is_a_sentence(tmp_path, monkeypatch):
    def save(layer, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paddle.jit, "save", save)
    with pytest.raises(DataError, match=r"model: cannot be written \(No space left on device\)"):
        export(awaken(Small()), tmp_path / "model", ANY)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_deleted_by_the_next(tmp_path, capfd):
    killed, running, own = (tmp_path / f".export-{name}" for name in ("killed", "running", "own"))
    for folder in (killed, running, own):
        (folder / "export").mkdir(parents=True)
    (killed / LOCK_FILE).touch()
    with FolderLock(running) as lock:
        assert lock.take()
        export(awaken(Small()), tmp_path / "model", ANY)
    assert {path.name for path in tmp_path.iterdir()} == {running.name, own.name, "model"}
    assert f"deleting {killed}, which an export that was killed left" in capfd.readouterr().err


def test_a_disk_that_a_converter_finds_full_is_the_same_sentence(tmp_path, monkeypatch):
    def check(path):
        assert path.name == "model.pdmodel"
        raise OSError(28, "No space left on device")

    def convert(work):
        monkeypatch.setattr("hmsa.deploy.export.check_whole", check)
        raise DataError("basic_ios::clear: iostream error")

    row = dataclasses.replace(FORMATS[0], write=convert)
    with pytest.raises(DataError, match=r"model: cannot be written \(No space left on device\)"):
        export(awaken(Small()), tmp_path / "model", dataclasses.replace(ANY, formats=(row,)))
    assert list(tmp_path.iterdir()) == []


def test_synchronised_networks_export(tmp_path):
    export(awaken(Small(paddle.nn.SyncBatchNorm)), tmp_path, ExportOptions(output_op="softmax", transforms=[]))
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
