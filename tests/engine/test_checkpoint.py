# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import pickle
from pathlib import Path

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
    assert state == TrainingState(iteration=3, best_score=0.5, best_iteration=2, serial=1, optimizer="AdamW")
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

    monkeypatch.setattr(checkpoint, "flush_to_disk", full_disk)
    with pytest.raises(DataError, match=r"iter_2.*No space left on device"):
        save(tmp_path / "iter_2", model, optimizer, iteration=2)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_1"]
    checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)


def test_best_survives_pruning_and_can_be_resumed(tmp_path):
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2, 9, 10):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration, best_score=0.25, best_iteration=1)
        if iteration == 1:
            checkpoint.keep_as_best(tmp_path / "iter_1")
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iter_1", "iter_2", "iter_9", "iter_10"]
    checkpoint.prune(tmp_path, 0)  # all are kept
    assert len(checkpoint.list_checkpoints(tmp_path)) == 4
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model", "iter_10", "iter_9"]
    assert checkpoint.find("auto", tmp_path) == tmp_path / "iter_10"
    assert checkpoint.find("elsewhere/iter_3", tmp_path) == Path("elsewhere/iter_3")
    assert checkpoint.resume(tmp_path / "best_model", model=model, optimizer=optimizer).iteration == 1
    checkpoint.keep_as_best(tmp_path / "iter_9")
    assert checkpoint.read_state(tmp_path / "best_model").iteration == 9


def test_a_new_run_in_an_old_folder(tmp_path):
    """Its checkpoints are the newest, though those of the earlier run got further."""
    model, optimizer = model_and_optimizer()
    for iteration in (50, 60, 10, 20):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration)
        checkpoint.prune(tmp_path, 3)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iter_60", "iter_10", "iter_20"]
    assert checkpoint.find("auto", tmp_path) == tmp_path / "iter_20"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("at", range(1, 56))
def test_a_kill_between_any_two_changes_of_the_disk_loses_nothing(tmp_path, monkeypatch, at):
    """Saving over an older checkpoint, keeping it as the best and pruning, stopped before the at-th change."""
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration, best_score=0.5, best_iteration=1)
        if iteration == 1:
            checkpoint.keep_as_best(tmp_path / "iter_1")
    before = {path.name: contents(path) for path in tmp_path.iterdir()}

    class Killed(BaseException):
        pass

    changes = 0

    def counted(change):
        def wrapper(*args, **kwargs):
            nonlocal changes
            changes += 1
            if changes == at:
                raise Killed
            return change(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for module, names in (
            (os, ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "open")),
            (paddle, ("save",)),
            (Path, ("rename", "replace", "mkdir", "write_text", "write_bytes")),
        ):
            for name in names:
                patch.setattr(module, name, counted(getattr(module, name)))
        try:
            state = TrainingState(iteration=2, best_score=0.5, best_iteration=1, to_evaluate=True)
            checkpoint.save(tmp_path / "iter_2", model=model, optimizer=optimizer, state=state, config="new\n")
            checkpoint.prune(tmp_path, 1)
            state.best_score, state.best_iteration, state.to_evaluate = 0.6, 2, False
            checkpoint.write_state(tmp_path / "iter_2", state)
            checkpoint.keep_as_best(tmp_path / "iter_2")
            finished = True
        except Killed:
            finished = False
    monkeypatch.undo()
    assert finished == (changes < at)

    newest = checkpoint.find("auto", tmp_path)
    assert newest == tmp_path / "iter_2"
    state = checkpoint.resume(newest, model=model, optimizer=optimizer)
    config = (newest / "config.yml").read_text()
    assert contents(newest) == before["iter_2"] or config == "new\n"
    best = checkpoint.resume(tmp_path / "best_model", model=model, optimizer=optimizer)
    assert best.iteration == state.best_iteration, "best_model is the one that the newest checkpoint speaks of"
    assert set(contents(newest)) == {"model.pdparams", "model.pdopt", "state.json", "config.yml"} or not finished
    assert {path.name for path in tmp_path.iterdir()} <= {"iter_1", "iter_2", "best_model"}


def test_auto_without_checkpoints(tmp_path):
    assert checkpoint.find("auto", tmp_path) is None


def test_a_partial_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".iter_5.partial").mkdir()
    (tmp_path / ".curves.log.77.partial").touch()  # of a file that was being written
    (tmp_path / "iter_6").mkdir()
    assert checkpoint.list_checkpoints(tmp_path) == []
    assert checkpoint.find("auto", tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["iter_6"]


@pytest.mark.parametrize(
    "content", [None, "no json", "[]", '{"epoch": 1}', '{"iteration": "1/../../x"}', '{"best_iteration": [1]}']
)
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


def edit_optimizer_file(folder, change):
    saved = paddle.load(str(folder / "model.pdopt"))
    change(saved)
    paddle.save(saved, str(folder / "model.pdopt"))


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.update({"elsewhere.weight|_moment1_0": paddle.zeros([4])}),
        lambda saved: saved.update({"0.weight|_moment1_0": paddle.zeros([7, 7])}),
    ],
)
def test_the_state_of_another_model_is_said(tmp_path, change):
    model, optimizer = model_and_optimizer()
    step(model, optimizer, 0)
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    edit_optimizer_file(tmp_path / "iter_1", change)
    with pytest.raises(DataError, match=r"model\.pdopt: expected the state of"):
        checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)


def test_the_state_of_another_optimizer_is_said(tmp_path):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    other = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
    with pytest.raises(DataError, match="expected the state of the optimizer Momentum, found that of AdamW"):
        checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=other)


def test_loss_scaling_is_resumed(tmp_path):
    """Paddle's scaler, which without a GPU is off unless one insists."""
    scalers = [paddle.amp.GradScaler(enable=False) for _ in range(2)]
    for scaler in scalers:
        scaler._enable = True
    scalers[0]._scale = paddle.to_tensor([512.0])
    scalers[0]._incr_ratio, scalers[0]._decr_ratio, scalers[0]._incr_count, scalers[0]._decr_count = 2.0, 0.5, 7, 1
    scalers[0]._incr_every_n_steps, scalers[0]._decr_every_n_nan_or_inf = 2000, 2
    scalers[0]._use_dynamic_loss_scaling = True
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1, scaler=scalers[0].state_dict())
    state = checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)
    scalers[1].load_state_dict(state.scaler)
    assert float(scalers[1]._scale) == 512.0
    assert scalers[1]._incr_count == 7


def test_state_is_readable_json(tmp_path):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    assert json.loads((tmp_path / "iter_1/state.json").read_text())["iteration"] == 1
    assert (tmp_path / "iter_1/config.yml").read_text() == "iters: 1\n"
