# SPDX-License-Identifier: Apache-2.0
"""However many processes train together, on however many machines: the same data, the same weights, one writer."""

from collections import Counter

import numpy as np
import paddle
import pytest
import yaml
from launcher import launch, run

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.weights.files import read_weights

ITERATIONS, PICTURES = 20, 4  # a step, of all processes
TOLERANCE = 1e-5

WAYS = {
    # name: (machines, processes a machine, images a process and micro-batch, more options)
    "two": (1, 2, 2, []),
    "four on two machines": (2, 2, 1, []),
    "two, accumulating, recomputing": (1, 2, 1, ["gradient_accumulation=2", "model.recompute=true"]),
}


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    """Epochs of 11 images, no dropout, and weights from which training runs smoothly.

    Gradients of a network of ReLUs jump where a unit switches, and float32 sums in another order switch some: the
    smaller the steps, the less of that is left in the weights.
    """
    folder = tmp_path_factory.mktemp("recipe")
    tree = {
        "_base_": str(tiny_recipe),
        "iters": ITERATIONS,
        "model": {"dropout": 0, "pretrained": str(folder / "start.pdparams")},
        "train_dataset": {"coarse_multiple": 0.84},
        "optimizer": {"_inherited_": False, "type": "SGD", "momentum": 0.9, "weight_decay": 5e-4},
        "lr_scheduler": {"learning_rate": 1e-4},
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(tree))
    model = builder.build_model(load_config(folder / "recipe.yml"))
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            gain = 1.0 if tensor.shape[0] in (1, 19) else 1.1
            tensor.set_value((rng.normal(size=tensor.shape) * gain / np.sqrt(np.prod(tensor.shape[1:]))).astype("f4"))
        elif name.endswith(".bias"):
            tensor.set_value((rng.normal(size=tensor.shape) * 0.1).astype("f4"))
    paddle.save(model.state_dict(), str(folder / "start.pdparams"))
    return folder / "recipe.yml"


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """name of the way -> (weights, images in the order each rank loaded them, folder of the run)."""
    results = {}
    for name, (machines, processes, batch_size, more) in {"one": (1, 1, PICTURES, []), **WAYS}.items():
        folder = tmp_path_factory.mktemp("trained")
        (folder / "images").mkdir()
        plan = {"freeze": True, "record": str(folder / "images")}
        command = ["train.py", "--config", recipe, "--save_dir", "run", "--batch_size", batch_size, "--use_vdl"]
        command += ["--opts", *more] if more else []
        if name == "one":
            run(folder / "machine0", *command, plan=plan)
        else:
            launch(folder, *command, processes=processes, machines=machines, plan=plan)
        weights = read_weights(folder / f"machine0/run/iter_{ITERATIONS}/model.pdparams")
        pictures = [
            (folder / f"images/loaded_{rank}.txt").read_text().splitlines() for rank in range(machines * processes)
        ]
        results[name] = weights, pictures, folder
    return results


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_one_process(trained, recipe, way):
    expected, found = trained["one"][0], trained[way][0]
    start = read_weights(recipe.parent / "start.pdparams")
    assert set(found) == set(expected)
    moved = []
    for name, tensor in expected.items():
        largest = np.abs(tensor).max()
        assert np.abs(found[name] - tensor).max() <= TOLERANCE * largest, name
        if not name.endswith(("._mean", "._variance")):
            moved.append(np.abs(tensor - start[name]).max() / largest)
    # Half a gradient, or that of other images, would show in most tensors.
    assert np.median(moved) > 10 * TOLERANCE
    assert max(moved) > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_pictures_are_those_of_one_process(trained, recipe, way):
    """Every step's, and so every epoch's: 80 images are seven epochs of 11 and a part of the next."""
    one = trained["one"][1][0]
    ranks = [np.reshape(pictures, (ITERATIONS, -1)) for pictures in trained[way][1]]
    for step in range(ITERATIONS):
        expected = one[step * PICTURES : (step + 1) * PICTURES]
        assert Counter(path for pictures in ranks for path in pictures[step]) == Counter(expected)
    dataset = builder.build_dataset(load_config(recipe), "train")
    assert len(dataset) == 11
    for epoch in range(len(one) // 11):
        assert sorted(one[epoch * 11 : (epoch + 1) * 11]) == sorted(image for image, _ in dataset.epoch(epoch))


@pytest.mark.slow
def test_only_the_first_of_all_ranks_writes(trained):
    """The other machine's launcher keeps its logs there, and nothing else appears."""
    *_, folder = trained["four on two machines"]
    assert {path.name for path in (folder / "machine1").iterdir()} == {"console", "log"}
    logs = {path.name for path in (folder / "machine1/log").iterdir()}
    assert {"workerlog.0", "workerlog.1"} <= logs
    assert not any(path.is_dir() for path in (folder / "machine1/log").iterdir())
    written = sorted(path.name for path in (folder / "machine0/run").iterdir())
    assert written == [f"iter_{ITERATIONS}", "metrics.jsonl", "vdlrecords.hmsa.log"]
    workers = {path.name: path.read_text() for path in sorted((folder / "machine1/log").glob("workerlog.*"))}
    assert not any("[TRAIN]" in text for text in workers.values())
    assert "[TRAIN]" not in (folder / "machine0/log/workerlog.1").read_text()


@pytest.mark.slow
def test_frozen_parts_are_not_waited_for_and_classes_are_counted_once(recipe, tmp_path):
    options = ["freeze=backbone", "class_weights=auto", "model.recompute=true", "ema={decay: 0.5}"]
    start, found = read_weights(recipe.parent / "start.pdparams"), {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = ["train.py", "--config", recipe, "--save_dir", "run", "--iters", 3, "--do_eval"]
        command += ["--batch_size", PICTURES // processes, "--opts", *options]
        plan = {"freeze": True}
        if processes == 1:
            said = run(folder / "machine0", *command, plan=plan)
        else:
            said = launch(folder, *command, processes=processes, plan=plan)
        assert said.count("class weights (auto, from all 11 labels") == 1
        found[processes] = read_weights(folder / "machine0/run/iter_3/model.pdparams")
        averaged = read_weights(folder / "machine0/run/iter_3/ema.pdparams")
        for name, value in start.items():
            if name.startswith("backbone."):
                np.testing.assert_array_equal(found[processes][name], value, err_msg=name)
                np.testing.assert_array_equal(averaged[name], value, err_msg=name)

    moved = 0
    for name, value in found[1].items():
        assert np.abs(found[2][name] - value).max() <= TOLERANCE * np.abs(value).max(), name
        moved += (value != start[name]).any()
    assert moved > 10
