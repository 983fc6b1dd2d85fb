# SPDX-License-Identifier: Apache-2.0
"""val.py, predict.py and export.py as a user starts them, on a tiny network with random weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from hmsa.errors import DataError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import val  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = [(64, 96), (70, 64), (96, 100)]
CONFIG = {
    "model": {
        "type": "MscaleOCRNet",
        "num_classes": 19,
        "backbone": {"type": "HRNet_W18_NV_Small_V1"},
        "scales": [0.5, 1.0],
        "ocr_mid_channels": 32,
        "ocr_key_channels": 16,
        "attention_mid_channels": 16,
    },
    "val_dataset": {
        "type": "CityscapesAutolabeling",
        "mode": "val",
        "transforms": [{"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}],
    },
}


def run(*command, folder) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with config.yml, model.pdparams and a Cityscapes tree of three images in data/."""
    import paddle

    from hmsa.builder import build_model
    from hmsa.config.reading import load_config

    folder = tmp_path_factory.mktemp("workplace")
    config = {**CONFIG, "val_dataset": {**CONFIG["val_dataset"], "dataset_root": str(folder / "data")}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(0)
    pictures, labels = (folder / "data" / kind / "val" / "ulm" for kind in ("leftImg8bit", "gtFine"))
    for index, size in enumerate(SIZES):
        pictures.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(pictures / f"{index}_leftImg8bit.png"), rng.integers(0, 256, (*size, 3)))
        cv2.imwrite(str(labels / f"{index}_gtFine_labelTrainIds.png"), rng.choice([0, 5, 18, 255], size))
    model = build_model(load_config(folder / "config.yml"))
    for tensor in model.state_dict().values():
        if tensor.ndim == 4:
            scale = 1 / np.sqrt(np.prod(tensor.shape[1:]))
            tensor.set_value(rng.normal(scale=scale, size=tensor.shape).astype(np.float32))
    paddle.save(model.state_dict(), str(folder / "model.pdparams"))
    return folder


def evaluation(workplace, *prefix, output, more=()):
    flags = ("--aug_eval", "--scales", 0.75, 1, "--flip_horizontal", "--num_workers", 1, *more)
    arguments = ("--config", "config.yml", "--model_path", "model.pdparams", "--output", output)
    result = run(*prefix, ROOT / "val.py", *arguments, *flags, folder=workplace)
    assert result.returncode == 0, result.stderr
    return result, json.loads((workplace / output).read_text())


@pytest.fixture(scope="module")
def one_process(workplace):
    return evaluation(workplace, output="results/one.json")


def test_val(workplace, one_process):
    result, written = one_process
    assert "road" in result.stdout
    assert "mean IoU, the 3 of 19 classes present" in result.stdout
    assert written["pictures"] == 3
    counted = sum(
        int((cv2.imread(str(path), cv2.IMREAD_UNCHANGED) != 255).sum())
        for path in (workplace / "data" / "gtFine").rglob("*.png")
    )
    assert np.sum(written["confusion_matrix"]) == counted
    weights = (workplace / "model.pdparams").read_bytes()
    assert written["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert written["config"]["test_config"]["scales"] == [0.75, 1.0]
    assert written["iou"]["road"] is not None


def test_a_second_evaluation_keeps_the_first_and_both_say_where(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    said = []
    for name in ("model.pdparams", "model.pdparams"):
        arguments = ["--config", "config.yml", "--model_path", name, "--engine", "eager"]
        val.main(val.make_parser().parse_args([*arguments, "--output", str(tmp_path / "new/found.json")]))
        said.append(capsys.readouterr().out.splitlines()[-1])
    new = tmp_path / "new"
    assert said[0] == f"written to {new / 'found.json'}"
    assert said[1] == f"written to {new / 'found.json'}; the earlier one is kept as {new / 'found.1.json'}"
    assert sorted(path.name for path in new.iterdir()) == ["found.1.json", "found.json"]
    assert all(json.loads(path.read_text())["pictures"] == 3 for path in new.iterdir())


def test_scores_are_printed_also_where_they_cannot_be_written(workplace, tmp_path, monkeypatch, capsys):
    """A disk that went away during the evaluation."""
    from hmsa.report.result import Evaluation

    to_json = Evaluation.to_json

    def lose_the_folder(*arguments, **options):
        (tmp_path / "new").rmdir()
        (tmp_path / "new").write_text("in the way")
        return to_json(*arguments, **options)

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(Evaluation, "to_json", lose_the_folder)
    arguments = ["--config", "config.yml", "--model_path", "model.pdparams", "--engine", "eager"]
    with pytest.raises(DataError, match="cannot be written"):
        val.main(val.make_parser().parse_args([*arguments, "--output", str(tmp_path / "new/found.json")]))
    assert "mean IoU, the 3 of 19 classes present" in capsys.readouterr().out


def test_val_in_two_processes_counts_the_same(workplace, one_process):
    launch = ("-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--log_dir", workplace / "log")
    _, written = evaluation(workplace, *launch, output="results/two.json")
    assert written["pictures"] == 3
    for name in ("confusion_matrix", "boundary_iou", "ece", "reliability"):
        assert written[name] == one_process[1][name]


def test_the_inference_engine_counts_as_eager_mode_does(workplace, one_process):
    _, written = evaluation(workplace, output="results/eager.json", more=("--engine", "eager"))
    eager, engine = (np.array(result["confusion_matrix"]) for result in (written, one_process[1]))
    assert np.sort(eager.sum(axis=0))[-2] > 1000  # more than one class is predicted
    assert np.abs(eager - engine).sum() / 2 <= 0.001 * eager.sum()


def test_predict(workplace):
    pictures = workplace / "data" / "leftImg8bit" / "val"
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    arguments = ("--config", "config.yml", "--model_path", "model.pdparams", "--image_path", pictures)
    result = run(ROOT / "predict.py", *arguments, "--save_dir", "result", "--label_ids", folder=workplace)
    (pictures / "broken.jpg").unlink()
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        f"error: found 4, written 3 to result, failed 1: {pictures / 'broken.jpg'}"
    )
    assert "Traceback" not in result.stderr
    for kind in ("added_prediction", "pseudo_color_prediction", "label_ids"):
        for index, size in enumerate(SIZES):
            image = cv2.imread(str(workplace / "result" / kind / "ulm" / f"{index}_leftImg8bit.png"))
            assert image.shape[:2] == size


RUN = "import sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def ended(workplace, script, *words, at):
    """End a script by SIGTERM, for which Paddle has an ending of its own, as it says `at`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / script), "--config", "config.yml", "--model_path", "model.pdparams", *words]
    running = subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = ""
    for line in running.stdout:
        said += line
        if at in line:
            running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1] == "ended by SIGTERM"
    assert "Traceback" not in said


def test_an_export_that_is_ended_leaves_nothing(workplace):
    ended(workplace, "export.py", "--save_dir", "ended", at="writing paddle fp32")
    assert not [path.name for path in workplace.iterdir() if path.name.startswith((".export-", "ended"))]


def test_a_limit_that_cuts_the_parameters_short_is_a_sentence(workplace):
    """Paddle's C++ writes as much as it can, and says nothing."""
    most = (workplace / "model.pdparams").stat().st_size * 2 // 3
    words = ("--config", "config.yml", "--model_path", "model.pdparams", "--save_dir", "cut")
    limited = ("-c", f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); {RUN}")
    result = run(*limited, ROOT / "export.py", *words, folder=workplace)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: cut: cannot be written (File too large); choose another place"
    assert not [path.name for path in workplace.iterdir() if path.name.startswith((".export-", "cut"))]


def test_a_prediction_that_is_ended_leaves_whole_images(workplace, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    first = next((workplace / "data/leftImg8bit/val/ulm").glob("*.png"))
    for number in range(500):
        (images / f"{number}.png").symlink_to(first)
    ended(workplace, "predict.py", "--image_path", str(images), "--save_dir", str(tmp_path / "ended"), at="found 500")
    written = [path for path in (tmp_path / "ended").rglob("*") if path.is_file()]
    assert len(written) < 1000 and all(cv2.imread(str(path)) is not None for path in written)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calibration", "data"], "expected --calibration together with --precision int8"),
        (["--tflite_python", "python"], "expected --tflite_python together with --format tflite"),
        (["--scales", "1"], "found 1 alone, without effect"),
        (["--scales", "0.5,1", "0.5"], "expected each of --scales once, found 0.5 1.0 0.5"),
        (["--input_shape", 1, 3, 100_000, 100_000], "expected images of at most 268435456 pixels"),
        (["--input_shape", 1, 64, 96, 3], "the input shape should be N 3 H W"),
    ],
)
def test_flags_of_export_that_cannot_be(workplace, words, said):
    given = ("--config", "config.yml", "--model_path", "model.pdparams", "--save_dir", "refused")
    result = run(ROOT / "export.py", *given, *words, folder=workplace)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert "upright" not in result.stderr
    assert not (workplace / "refused").exists()


def test_export(workplace):
    arguments = ("--config", "config.yml", "--model_path", "model.pdparams", "--save_dir", "exported")
    result = run(ROOT / "export.py", *arguments, "--input_shape", 1, 3, 96, 64, folder=workplace)
    assert result.returncode == 0, result.stderr
    assert "64 wide and 96 high; for landscape images give 1 3 64 96" in result.stderr
    assert "written to exported, compared with the network on drawn streets of 1x3x96x64:" in result.stdout
    entry = yaml.safe_load((workplace / "exported" / "deploy.yaml").read_text())["Deploy"]
    assert entry["transforms"] == CONFIG["val_dataset"]["transforms"]
    assert entry["class_names"][0] == "road"
    assert (workplace / "exported" / entry["model"]).is_file()


def test_pictures_are_normalised_also_without_a_data_set(tmp_path):
    from hmsa.builder import build_transforms, inference_transforms
    from hmsa.config.reading import load_config

    (tmp_path / "config.yml").write_text(yaml.safe_dump({"model": CONFIG["model"]}))
    (normalize,) = build_transforms(inference_transforms(load_config(tmp_path / "config.yml")))
    sample = normalize({"img": np.full((1, 1, 3), 255, np.uint8)}, np.random.default_rng())
    expected = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(sample["img"][0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("script", ["val.py", "predict.py", "export.py"])
def test_no_weights_is_an_error_of_the_command_line(workplace, script):
    result = run(ROOT / script, "--config", "config.yml", folder=workplace)
    assert result.returncode == 2
    assert "--model_path" in result.stderr


COMMANDS = [
    "train.py",
    "val.py",
    "predict.py",
    "export.py",
    *(f"tools/{path.name}" for path in ROOT.glob("tools/*.py")),
]


@pytest.mark.parametrize("script", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
def test_help_and_wrong_flags_do_not_wait_for_heavy_packages(script, flag, tmp_path):
    for package in ("paddle", "pydantic", "numpy", "cv2", "matplotlib"):
        (tmp_path / f"{package}.py").write_text(f"raise SystemExit('{package} was imported')")
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    command = [sys.executable, str(ROOT / script), flag]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == (0 if flag == "--help" else 2), result.stderr
    assert "usage: " in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "status", "said"),
    [
        ("train.py", ["--config", "nowhere.yml"], 2, "nowhere.yml"),
        ("train.py", ["--config", "config.yml"], 2, "train_dataset"),
        ("train.py", ["--config", "config.yml", "--log_iters", "0"], 2, "--log_iters"),
        ("val.py", ["--config", "config.yml", "--model_path", "nowhere.pdparams"], 1, "nowhere.pdparams"),
        ("val.py", ["--config", "config.yml", "--model_path", "x", "--opts", "model.scale=[1.0]"], 2, "scales"),
        # Before the weights are looked for.
        ("val.py", ["--config", "config.yml", "--model_path", "x", "--output", "data"], 2, "found a folder"),
        (
            "val.py",
            ["--config", "config.yml", "--model_path", "x", "--output", "config.yml/x"],
            1,
            "config.yml: expected a folder to write to, found a file",
        ),
        ("predict.py", ["--config", "config.yml", "--model_path", "x", "--image_path", "nowhere"], 1, "nowhere"),
    ],
)
def test_errors_are_one_sentence_without_a_traceback(workplace, script, arguments, status, said):
    result = run(ROOT / script, *arguments, folder=workplace)
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_planning_memory_prints_both_peaks_and_saves_nothing(tiny_recipe, tmp_path):
    import paddle

    from hmsa.builder import build_model
    from hmsa.config.reading import load_config

    # With weights of the backbone alone, under PaddleSeg's way to ask for them.
    state = build_model(load_config(tiny_recipe)).backbone.state_dict()
    paddle.save(state, str(tmp_path / "backbone.pdparams"))
    options = ("--opts", "model.backbone.pretrained=backbone.pdparams", "train_dataset.add_val=true")
    command = (ROOT / "train.py", "--config", tiny_recipe, "--plan-memory", "--save_dir", "out", *options)
    result = run(*command, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"backbone.pdparams: loaded {len(state)} of {len(state)} tensors\n" in result.stdout
    assert "warning: the scores are of images that are trained on" in result.stdout
    training, evaluating = result.stdout.splitlines()[-2:]
    assert re.fullmatch(r"a training step with batch_size \d+: \d+\.\d\d GiB at most, of \d+\.\d\d GiB", training)
    assert re.fullmatch(r"evaluating one image between steps: \d+\.\d\d GiB at most, of \d+\.\d\d GiB", evaluating)
    assert not (tmp_path / "out").exists()
