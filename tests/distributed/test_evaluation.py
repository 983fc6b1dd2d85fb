# SPDX-License-Identifier: Apache-2.0
"""However many processes evaluate and predict, more than there are images too: the results of one process."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from launcher import launch, run


@pytest.fixture(scope="module")
def one_picture(tiny_recipe, tmp_path_factory):
    """A recipe whose validation set is one image, and a checkpoint of it that four processes evaluated."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(tiny_recipe.parent, folder / "data")
    pictures = sorted(path.name for path in (folder / "data/leftImg8bit/val").rglob("*.png"))
    others = [name[: -len("leftImg8bit.png")] for name in pictures[1:]]
    for path in [*(folder / "data").rglob("*.png")]:
        if path.name.startswith(tuple(others)):
            path.unlink()
    (folder / "recipe.yml").write_text(f"_base_: {tiny_recipe}\nval_dataset: {{dataset_root: {folder / 'data'}}}\n")
    arguments = ["--iters", 1, "--batch_size", 1, "--do_eval", "--engine", "eager", "--save_dir", "run"]
    console = launch(folder / "training", "train.py", "--config", folder / "recipe.yml", *arguments, processes=4)
    assert console.count("[EVAL]") == 1
    assert ", 1 images, " in console
    return folder / "recipe.yml", folder / "training/machine0/run/iter_1"


def evaluation(folder):
    return json.loads((folder / "found.json").read_text())


def scores(found):
    """All that an evaluation says of the network; JSON holds every bit of a float."""
    return {name: value for name, value in found.items() if name not in ("seconds", "peak_memory_bytes")}


@pytest.mark.slow
def test_four_processes_evaluate_one_picture(one_picture, tmp_path):
    recipe, weights = one_picture
    command = ["val.py", "--config", recipe, "--model_path", weights, "--engine", "eager", "--output", "found.json"]
    run(tmp_path / "one", *command)
    launch(tmp_path / "four", *command, processes=4)
    one, four = evaluation(tmp_path / "one"), evaluation(tmp_path / "four/machine0")
    assert scores(four) == scores(one)
    assert np.sum(four["confusion_matrix"]) > 0
    assert four["pictures"] == 1
    # What train.py itself found, in four processes as well.
    assert json.loads((weights / "state.json").read_text())["best_score"] == one["mean_iou"]


@pytest.mark.slow
def test_every_number_of_processes_finds_the_same_bits(one_picture, tiny_recipe, tmp_path):
    """Three images: in four processes one has none."""
    _, weights = one_picture
    command = ["val.py", "--config", tiny_recipe, "--model_path", weights, "--engine", "eager"]
    for processes in (1, 2, 4):
        launch(tmp_path / f"{processes}", *command, "--output", tmp_path / f"{processes}.json", processes=processes)
    one, two, four = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2, 4))
    assert scores(two) == scores(one)
    assert scores(four) == scores(one)
    assert 0 < one["ece"] < 1 and 0 < one["mean_boundary_iou"] < 1 and one["pictures"] == 3


@pytest.mark.slow
def test_processes_on_two_machines_evaluate_and_predict_every_picture_once(one_picture, tiny_recipe, tmp_path):
    """Three images, two machines, on storage that both have."""
    _, weights = one_picture
    common = ["--config", tiny_recipe, "--model_path", weights, "--engine", "eager"]
    val = ["val.py", *common, "--output", tmp_path / "found.json"]
    predict = ["predict.py", *common, "--image_path", tiny_recipe.parent / "leftImg8bit/val"]
    results = []
    for name in ("one", "two"):
        start = run if name == "one" else partial(launch, processes=1, machines=2)
        start(tmp_path / name / "val", *val)
        (tmp_path / name / "notes").mkdir()
        plan = {"record": str(tmp_path / name / "notes")}
        start(tmp_path / name / "predict", *predict, "--save_dir", tmp_path / name / "out", plan=plan)
        out = tmp_path / name / "out"
        files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        notes = [line for path in (tmp_path / name / "notes").iterdir() for line in path.read_text().splitlines()]
        assert sorted(notes) == sorted(str(out / path) for path in files), "each written once, and nothing else there"
        results.append((evaluation(tmp_path), files))
    (one, one_files), (two, two_files) = results
    assert scores(two) == scores(one)
    assert two["pictures"] == 3
    assert two_files == one_files
    assert len(one_files) == 6
