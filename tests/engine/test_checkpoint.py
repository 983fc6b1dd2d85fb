# SPDX-License-Identifier: Apache-2.0
import errno
import json
import pickle

import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa.engine import checkpoint
from hmsa.engine.checkpoint import TrainingState
from hmsa.errors import DataError


def model_and_optimizer(seed=0):
    paddle.seed(seed)
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 2, 1))
    scheduler = paddle.optimizer.lr.PolynomialDecay(0.1, decay_steps=20, power=2.0)
    return model, paddle.optimizer.AdamW(scheduler, parameters=model.parameters())


def step(model, optimizer, seed):
    x = paddle.to_tensor(np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32))
    (model(x) ** 2).mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    optimizer._learning_rate.step()


def save(folder, model, optimizer, **state):
    checkpoint.save(folder, model=model, optimizer=optimizer, state=TrainingState(**state), config="iters: 1\n")


def test_resumed_steps_equal_uninterrupted_ones(tmp_path):
    model, optimizer = model_and_optimizer()
    for seed in range(3):
        step(model, optimizer, seed)
    save(tmp_path / "iter_3", model, optimizer, iteration=3, best_score=0.5, best_iteration=2)
    for seed in range(3, 6):
        step(model, optimizer, seed)

    resumed, its_optimizer = model_and_optimizer(seed=9)  # Paddle gives its parameters other names here
    state = checkpoint.resume(tmp_path / "iter_3", model=resumed, optimizer=its_optimizer)
    assert state == TrainingState(iteration=3, best_score=0.5, best_iteration=2)
    for seed in range(3, 6):
        step(resumed, its_optimizer, seed)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    ours, theirs = (checkpoint._optimizer_state(m, o) for m, o in ((model, optimizer), (resumed, its_optimizer)))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        if isinstance(value, paddle.Tensor):
            np.testing.assert_array_equal(theirs[name].numpy(), value.numpy(), err_msg=name)
    assert optimizer.get_lr() == its_optimizer.get_lr()


def test_nothing_half_written(tmp_path, monkeypatch):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full_disk)
    with pytest.raises(DataError, match=r"iter_2.*No space left on device"):
        save(tmp_path / "iter_2", model, optimizer, iteration=2)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_1"]
    checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)


def test_best_survives_pruning_and_can_be_resumed(tmp_path):
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2, 10, 9):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration, best_score=0.25, best_iteration=1)
        if iteration == 1:
            checkpoint.keep_as_best(tmp_path / "iter_1")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iter_1", "iter_2", "iter_9", "iter_10"]
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model", "iter_10", "iter_9"]
    assert checkpoint.find("auto", tmp_path) == tmp_path / "iter_10"
    assert checkpoint.resume(tmp_path / "best_model", model=model, optimizer=optimizer).iteration == 1
    checkpoint.keep_as_best(tmp_path / "iter_9")
    assert checkpoint.read_state(tmp_path / "best_model").iteration == 9


def test_auto_without_checkpoints(tmp_path):
    assert checkpoint.find("auto", tmp_path) is None


def test_a_partial_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".iter_5.partial").mkdir()
    (tmp_path / "iter_6").mkdir()
    assert checkpoint.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"epoch": 1}'])
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    model, optimizer = model_and_optimizer()
    with pytest.raises(DataError, match="expected a checkpoint"):
        checkpoint.resume(tmp_path, model=model, optimizer=optimizer)


def test_an_optimizer_file_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    (tmp_path / "iter_1/model.pdopt").write_bytes(pickle.dumps({"x": Payload()}))
    with pytest.raises(DataError, match=r"model\.pdopt"):
        checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)
    assert not (tmp_path / "ran").exists()


def test_state_is_readable_json(tmp_path):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    assert json.loads((tmp_path / "iter_1/state.json").read_text())["iteration"] == 1
    assert (tmp_path / "iter_1/config.yml").read_text() == "iters: 1\n"
