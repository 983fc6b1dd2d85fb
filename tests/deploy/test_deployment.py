# SPDX-License-Identifier: Apache-2.0
"""What docs/deployment.md promises to those who run an export without this project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddle.version import full_version as PADDLE_VERSION
from PIL import Image

from hmsa.datasets.transforms import Normalize
from hmsa.deploy.export import ExportOptions, export
from hmsa.inference.averaging import best_classes
from hmsa.inference.tracing import write_program

ROOT = Path(__file__).parents[2]
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def network(make_tiny_network):
    return make_tiny_network()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export(network, folder, ExportOptions(output_op="argmax", transforms=[{"type": "Normalize", **NORMALIZE}]))
    return folder


@pytest.fixture(scope="module")
def expected(network, photos):
    """path -> the classes of an image, as `predict.py` computes them."""

    def classes(path):
        sample = {"img": np.array(Image.open(path).convert("RGB"))}
        image = Normalize(**NORMALIZE)(sample, np.random.default_rng())["img"].transpose(2, 0, 1)
        with paddle.no_grad():
            return best_classes(network(paddle.to_tensor(np.ascontiguousarray(image[np.newaxis])))["joint"])

    labels = {path: classes(path) for path in sorted(photos.iterdir())}
    assert all(len(np.unique(label)) > 2 for label in labels.values())
    return labels


def program_of_the_document():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deployment.md").read_text(encoding="utf-8"), re.DOTALL)
    return code


def same(found, label):
    assert found.shape == label.shape
    return (found == label).mean() >= 0.999


def test_the_program_of_the_document_has_15_lines():
    assert len([line for line in program_of_the_document().splitlines() if line]) <= 15


def test_the_program_of_the_document_gives_the_labels_of_predictions(exported, expected, tmp_path, monkeypatch):
    for path, label in expected.items():
        monkeypatch.setattr(sys, "argv", ["program", str(exported), str(path), str(tmp_path / "labels.png")])
        exec(compile(program_of_the_document(), "docs/deployment.md", "exec"), {})
        assert same(np.array(Image.open(tmp_path / "labels.png")), label), path


class PaddleSegPredictor:
    """Opens and runs an export with the calls of PaddleSeg's `deploy/python/infer.py`, in its order.

    Its folder `deploy` is not in the package, but all that it calls is.
    """

    def __init__(self, config, onednn):
        import paddleseg.transforms as T
        from paddleseg.cvlibs import manager

        deploy = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.FullLoader)["Deploy"]
        self.transforms = T.Compose([manager.TRANSFORMS[t.pop("type")](**t) for t in deploy["transforms"]])
        options = paddle.inference.Config(*(str(config.parent / deploy[key]) for key in ("model", "params")))
        options.disable_glog_info()
        options.enable_memory_optim()
        options.switch_ir_optim(True)
        options.disable_gpu()
        if onednn:
            options.set_mkldnn_cache_capacity(10)
            options.enable_mkldnn()
        options.set_cpu_math_library_num_threads(10)
        self.predictor = paddle.inference.create_predictor(options)

    def __call__(self, image):
        """The path of an image -> the model's answer."""
        source = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        result = self.predictor.get_output_handle(self.predictor.get_output_names()[0])
        data = np.array([self.transforms({"img": str(image)})["img"]])
        source.reshape(data.shape)
        source.copy_from_cpu(data)
        self.predictor.run()
        return result.copy_to_cpu()[0]


@pytest.mark.parametrize("onednn", [False, True])
def test_the_calls_of_paddleseg_give_the_labels_of_predictions(exported, expected, onednn):
    predictor = PaddleSegPredictor(exported / "deploy.yaml", onednn)
    for path, label in expected.items():
        assert same(predictor(path), label), path


@pytest.mark.skipif(PADDLE_VERSION.startswith("2"), reason="Paddle 2 has one form")
def test_the_calls_of_paddleseg_do_not_open_json(network, expected, tmp_path):
    """As the document says; where a later Paddle opens it, the document and the default change."""
    export(
        network,
        tmp_path,
        ExportOptions(output_op="argmax", transforms=[{"type": "Normalize", **NORMALIZE}], program="json"),
    )
    with pytest.raises(Exception, match="memory_optimize_pass"):
        PaddleSegPredictor(tmp_path / "deploy.yaml", onednn=False)(next(iter(expected)))


def test_openvino_gives_the_labels_of_predictions(exported, expected):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(exported / "model.pdmodel", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for path, label in expected.items():
        sample = {"img": np.array(Image.open(path).convert("RGB"))}
        image = Normalize(**NORMALIZE)(sample, np.random.default_rng())["img"].transpose(2, 0, 1)[np.newaxis]
        (answer,) = compiled([np.ascontiguousarray(image)]).values()
        assert same(answer[0], label), path


def test_the_old_form_is_left_again(network, tmp_path):
    """What is written afterwards is in Paddle's own form."""
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 1), paddle.nn.Sigmoid())
    layer.eval()
    assert write_program(layer, tmp_path / "old", old_form=True).name == "old.pdmodel"
    own = "own.pdmodel" if PADDLE_VERSION.startswith("2") else "own.json"
    assert write_program(layer, tmp_path / "own").name == own


@pytest.mark.slow
def test_the_commands_and_the_document_give_the_same_labels(tiny_recipe, photos, tmp_path):
    from hmsa.builder import build_model
    from hmsa.config.reading import load_config

    config = load_config(tiny_recipe)
    model = build_model(config)
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    common = ["--config", str(tiny_recipe), "--model_path", "model.pdparams"]

    def run(*command):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run(ROOT / "export.py", *common, "--save_dir", "exported")
    assert said.startswith("written to exported, compared with the network on drawn streets of")
    run(ROOT / "predict.py", *common, "--image_path", photos, "--save_dir", "predicted")
    (tmp_path / "program.py").write_text(program_of_the_document())
    path = photos / "129x75.png"  # of odd sides; the others are held above, without a process for each
    run("program.py", "exported", path, "labels.png")
    predicted = np.array(Image.open(tmp_path / "predicted" / "pseudo_color_prediction" / path.name))
    assert same(np.array(Image.open(tmp_path / "labels.png")), predicted)


class Untraceable(paddle.nn.Layer):
    """Fails once Paddle has taken note of its weights."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 2, 1)

    def forward(self, x):
        self.conv(x)
        raise ValueError("not today")


@pytest.mark.parametrize("old_form", [True, False])
def test_a_network_that_cannot_be_traced_leaves_nothing_to_the_next(tmp_path, monkeypatch, old_form):
    """Paddle finds what it traced by the address of a program, which the next one may get: here every one does."""
    from paddle.jit.dy2static import program_translator

    for name in ("program_translator", "parameter_recorder"):
        for folder in ("dy2static", "pir_dy2static"):
            module = f"paddle.jit.{folder}.{name}"
            if hasattr(sys.modules.get(module), "_program_hash"):
                monkeypatch.setattr(f"{module}._program_hash", lambda program: 0)
    assert program_translator._program_hash(None) == 0

    with pytest.raises(ValueError, match="not today"):
        write_program(Untraceable(), tmp_path / "failed", old_form=old_form)
    layer = paddle.nn.Conv2D(3, 2, 1)
    layer.eval()
    assert write_program(layer, tmp_path / "next", old_form=old_form).is_file()
