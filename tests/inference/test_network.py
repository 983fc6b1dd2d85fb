# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import re
import shutil
import traceback
from pathlib import Path

import numpy as np
import paddle
import pytest
from awaken import awaken
from numpy.testing import assert_array_equal

from hmsa.errors import DataError, UsageError
from hmsa.inference import network as network_module
from hmsa.inference import programs
from hmsa.inference.backends import BACKENDS, choose
from hmsa.inference.network import NetworkInTraining, code_hash, open_network

SERIES = (0.5, 1.0, 2.0)
ON_EVERY = [
    pytest.param(name, marks=pytest.mark.slow) if row.packages else name for name, row in BACKENDS.items() if row.forms
]


def need(backend, precision="fp32"):
    """Skip where the backend's packages are missing, or do not go with this Paddle."""
    try:
        choose(backend, precision)
    except UsageError as error:
        pytest.skip(str(error))


def picture(*shape, seed=1):
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.fixture(scope="module")
def model(make_tiny_network):
    return make_tiny_network()


@pytest.fixture(scope="module")
def eager(model):
    """scales, shape -> the network's own logits for an image of that shape; each computed once."""
    known = {}

    def logits(scales, shape):
        if (scales, shape) not in known:
            with paddle.no_grad():
                network = open_network(lambda: model, identity=0, scales=scales, align_corners=False, backend="eager")
                known[scales, shape] = network(picture(*shape)).numpy()
        return known[scales, shape]

    return logits


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_agrees(found, expected, difference=1e-4, same=0.9999):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= difference * np.abs(expected).max()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= same


def test_the_pictures_have_several_classes(eager):
    _, counts = np.unique(eager(SERIES, (1, 3, 128, 192)).argmax(axis=1), return_counts=True)
    assert np.sum(counts > 300) >= 4


@pytest.mark.parametrize(
    ("scales", "shape"),
    [
        (SERIES, (1, 3, 128, 192)),
        (SERIES, (1, 3, 97, 161)),
        (SERIES, (2, 3, 64, 96)),
        ((0.5, 1.0, 1.5, 2.0), (1, 3, 97, 161)),
        ((1.0,), (1, 3, 65, 64)),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ON_EVERY)
def test_backends_answer_as_the_network_does(backend, scales, shape, eager, make_tiny_network):
    need(backend)
    network = open_network(make_tiny_network, identity="tiny", scales=scales, align_corners=False, backend=backend)
    assert_agrees(network(picture(*shape)).numpy(), eager(scales, shape))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ON_EVERY)
def test_a_large_picture_of_a_real_network(backend, make_small_network):
    need(backend)
    network, image = make_small_network(), picture(1, 3, 512, 1024)
    options = {"scales": SERIES, "align_corners": False}
    with paddle.no_grad():
        expected = open_network(lambda: network, identity="small", backend="eager", **options)(image).numpy()
    found = open_network(lambda: network, identity="small", backend=backend, **options)(image).numpy()
    assert_agrees(found, expected)


def test_one_opened_network_takes_pictures_of_any_size_in_turn(eager, make_tiny_network):
    network = open_network(make_tiny_network, identity="tiny", scales=SERIES, align_corners=False, backend="inference")
    for shape in ((1, 3, 128, 192), (1, 3, 97, 161), (2, 3, 64, 96), (1, 3, 128, 192)):
        assert_agrees(network(picture(*shape)).numpy(), eager(SERIES, shape))


def test_eager_mode_is_the_network_itself(model, eager):
    with paddle.no_grad():
        expected = model(picture(1, 3, 97, 161))["joint"].numpy()
    assert_array_equal(eager(SERIES, (1, 3, 97, 161)), expected)


def test_aligned_corners_reach_the_backend(make_tiny_network):
    aligned = make_tiny_network(align_corners=True)
    image = picture(1, 3, 64, 96)
    with paddle.no_grad():
        expected = aligned(image)["joint"].numpy()
    network = open_network(lambda: aligned, identity="aligned", scales=SERIES, align_corners=True, backend="inference")
    assert_agrees(network(image).numpy(), expected)


def test_the_network_is_built_only_when_its_programs_are_not_kept(own_cache, make_tiny_network):
    built = []

    def build():
        built.append(1)
        return make_tiny_network()

    def open_again(identity, scales=(1.0,)):
        options = {"scales": scales, "align_corners": False, "backend": "inference"}
        open_network(build, identity=identity, **options)(picture(1, 3, 64, 64))
        return len(built)

    assert open_again({"weights": "a"}) == 1
    assert open_again({"weights": "a"}) == 1
    assert open_again({"weights": "a"}, scales=(0.5, 1.0)) == 1
    assert open_again({"weights": "b"}) == 2
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize("changed", ["inference/tracing.py", "inference/fold.py", "models/ocr.py"])
def test_other_code_makes_other_programs(tmp_path, changed):
    package = Path(network_module.__file__).parents[1]
    for folder in ("inference", "models"):
        shutil.copytree(package / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hash(tmp_path)
    assert before == code_hash()
    with (tmp_path / changed).open("a") as file:
        file.write("# another line")
    assert code_hash(tmp_path) != before


@pytest.fixture
def other_programs(monkeypatch, own_cache):
    """Programs are written from weights other than the network's."""
    write = programs.write_programs

    def write_other(model, folder, form):
        weight = model.ocr.cls_head.weight
        weight.set_value(weight * 1.5)
        write(model, folder, form)

    monkeypatch.setattr(programs, "write_programs", write_other)
    return own_cache


def test_a_network_that_the_backend_gets_wrong_is_refused(other_programs, make_tiny_network):
    options = {"scales": (1.0,), "align_corners": False}
    with pytest.raises(DataError, match="should answer as the network does, but at"):
        open_network(make_tiny_network, identity=0, backend="inference", **options)
    assert list(other_programs.iterdir()) == []


def test_auto_goes_on_eagerly_where_the_backend_gets_the_network_wrong(
    other_programs, make_tiny_network, eager, capsys, monkeypatch
):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "cpu")
    network = open_network(make_tiny_network, identity=0, backend="auto", scales=SERIES, align_corners=False)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("warning: the backend should answer as the network does")
    assert said.endswith("; the network runs eagerly instead")
    with paddle.no_grad():
        assert_array_equal(network(picture(1, 3, 97, 161)).numpy(), eager(SERIES, (1, 3, 97, 161)))


def test_auto_goes_on_eagerly_where_nothing_can_be_kept(tmp_path, monkeypatch, make_tiny_network, eager, capsys):
    monkeypatch.setenv("HMSA_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    options = {"identity": "tiny", "scales": SERIES, "align_corners": False}
    with pytest.raises(DataError, match="expected room for inference programs"):
        open_network(make_tiny_network, backend="inference", **options)
    network = open_network(make_tiny_network, backend="auto", **options)
    assert "set HMSA_CACHE" in capsys.readouterr().err
    with paddle.no_grad():
        assert_array_equal(network(picture(1, 3, 97, 161)).numpy(), eager(SERIES, (1, 3, 97, 161)))


def test_weights_that_do_not_fit_are_an_error_and_no_warning(own_cache, capsys):
    def build():
        raise DataError("these weights are of another network")

    with pytest.raises(DataError, match="of another network"):
        open_network(build, identity=0, backend="auto", scales=(1.0,), align_corners=False)
    assert "warning" not in capsys.readouterr().err
    assert list(own_cache.iterdir()) == []


def test_bf16_says_once_how_far_it_agrees(make_tiny_network, eager, capsys):
    need("openvino", "bf16")
    options = {"scales": SERIES, "align_corners": False, "backend": "openvino", "precision": "bf16"}
    network = open_network(make_tiny_network, identity="tiny", **options)
    capsys.readouterr()
    shape = (1, 3, 128, 192)
    found = network(picture(*shape)).numpy()
    said = capsys.readouterr().out
    network(picture(*shape))
    assert capsys.readouterr().out == ""
    sentence = r"bf16: (\d+\.\d\d) % of the pixels of the first image get the class they get in fp32\n"
    share = re.fullmatch(sentence, said)[1]
    same = (found.argmax(axis=1) == eager(SERIES, shape).argmax(axis=1)).mean()
    assert float(share) == pytest.approx(100 * same, abs=0.05)
    assert_agrees(found, eager(SERIES, shape), difference=0.1, same=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "training"), [("auto", True), ("eager", True), ("inference", True), ("inference", False)]
)
def test_a_network_in_training_is_evaluated_and_left_as_it_was(engine, training, make_small_network):
    need(engine)
    network, image = make_small_network(), picture(1, 3, 97, 161)
    with paddle.no_grad():
        expected = network(image)["joint"].numpy()
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    if training:
        network.train()
    with paddle.no_grad(), NetworkInTraining(network, engine)() as run:
        assert_agrees(run(image).numpy(), expected)
    assert all(layer.training == training for layer in network.sublayers(include_self=True))
    after = network.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert_array_equal(after[name].numpy(), value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ON_EVERY)
def test_in_training_programs_answer_with_the_weights_of_the_moment(engine, make_small_network):
    need(engine)
    network, image = make_small_network(), picture(1, 3, 97, 161)
    in_training = NetworkInTraining(network, engine)
    for seed in (3, 4):
        awaken(network, seed)
        network.eval()
        with paddle.no_grad(), in_training() as run:
            assert_agrees(run(image).numpy(), network(image)["joint"].numpy())


@pytest.mark.slow
def test_programs_in_training_leave_no_call_stacks_behind(make_small_network):
    """Paddle keeps one for every operator that it traces: thousands of frames, 10 MiB, an evaluation."""

    def frames():
        return sum(type(thing) is traceback.FrameSummary for thing in gc.get_objects())

    in_training = NetworkInTraining(make_small_network(), "inference")
    before = frames()
    with in_training():
        pass
    gc.collect()
    assert frames() - before < 1000


@pytest.mark.slow
def test_the_network_trains_on_after_an_evaluation_that_failed(make_small_network):
    network = make_small_network()
    network.train()
    with pytest.raises(DataError, match="broken"), NetworkInTraining(network)():
        raise DataError("a broken image")
    assert network.training


def test_a_network_of_another_kind_is_evaluated_eagerly():
    class Other(paddle.nn.Layer):
        def forward(self, image):
            return {"joint": image * (2 if self.training else 3)}

    with NetworkInTraining(Other(), "inference")() as run:
        assert_array_equal(run(paddle.ones([1, 3, 2, 2])).numpy(), np.full((1, 3, 2, 2), 3, np.float32))
