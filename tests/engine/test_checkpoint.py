# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa.config.reading import load_config
from hmsa.engine import checkpoint
from hmsa.engine.checkpoint import TrainingState
from hmsa.errors import DataError
from hmsa.optim import EMA


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


def save(folder, model, optimizer, ema=None, **state):
    state = TrainingState(**state)
    checkpoint.save(folder, model=model, optimizer=optimizer, ema=ema, state=state, config="iters: 1\n")


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
    assert checkpoint.newest(tmp_path) == tmp_path / "iter_10"
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
    assert checkpoint.newest(tmp_path) == tmp_path / "iter_20"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("at", range(1, 60))
def test_a_kill_between_any_two_changes_of_the_disk_loses_nothing(tmp_path, monkeypatch, at):
    """Saving over an older checkpoint, keeping it as the best and pruning, stopped before the at-th change."""
    model, optimizer = model_and_optimizer()
    ema = EMA(model, 0.5)
    for iteration in (1, 2):
        state = {"best_score": 0.5, "best_iteration": 1}
        save(tmp_path / f"iter_{iteration}", model, optimizer, ema, iteration=iteration, **state)
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
            checkpoint.save(tmp_path / "iter_2", model=model, optimizer=optimizer, ema=ema, state=state, config="new\n")
            checkpoint.prune(tmp_path, 1)
            state.best_score, state.best_iteration, state.to_evaluate = 0.6, 2, False
            checkpoint.write_state(tmp_path / "iter_2", state)
            checkpoint.keep_as_best(tmp_path / "iter_2")
            finished = True
        except Killed:
            finished = False
    monkeypatch.undo()
    assert finished == (changes < at)

    checkpoint.tidy(tmp_path)
    newest = checkpoint.newest(tmp_path)
    assert newest == tmp_path / "iter_2"
    state = checkpoint.resume(newest, model=model, optimizer=optimizer, ema=ema)
    config = (newest / "config.yml").read_text()
    assert contents(newest) == before["iter_2"] or config == "new\n"
    best = checkpoint.resume(tmp_path / "best_model", model=model, optimizer=optimizer, ema=ema)
    assert best.iteration == state.best_iteration, "best_model is the one that the newest checkpoint speaks of"
    assert set(contents(newest)) == set(checkpoint.FILES)
    assert {path.name for path in tmp_path.iterdir()} <= {"iter_1", "iter_2", "best_model"}


def test_a_partial_folder_is_no_checkpoint(tmp_path):
    (tmp_path / ".iter_5.partial").mkdir()
    (tmp_path / ".vdlrecords.hmsa.log.77.partial").touch()  # of a file that was being written
    (tmp_path / ".skipped_samples.txt.77.partial").touch()
    (tmp_path / "iter_6").mkdir()
    assert checkpoint.list_checkpoints(tmp_path) == []
    checkpoint.tidy(tmp_path)
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.contents(tmp_path) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["iter_6"]


def everything(folder):
    """Path -> content of all files and links, and None for folders."""
    found = {}
    for path in folder.rglob("*"):
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


def test_what_only_looks_like_ours_is_left_alone(tmp_path):
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration)
    for name in ("iter_best_backup", "iter_1_copy", "iter_", "iter_-1", "my.best_model"):
        shutil.copytree(tmp_path / "iter_1", tmp_path / name)
    for name in (".env.old", ".notes.partial", ".cache.deleted", ".curves.log.77.partial", ".state.json.77.partial",
                 ".iter_5.old", ".iter_6.partial", ".skipped_samples.txt.x.partial"):  # fmt: skip
        (tmp_path / name).write_text("mine")
    for name in (".venv.old", ".iter_x.old", ".iter_1.partial", ".iter_2.deleted", ".best_model.old", ".x.iter_1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / ".iter_1.deleted").symlink_to(tmp_path / "iter_1_copy")
    before = everything(tmp_path)
    checkpoint.tidy(tmp_path)
    assert everything(tmp_path) == before
    checkpoint.prune(tmp_path, 1)
    gone = {name for name in before if Path(name).parts[0] == "iter_1"}
    # A name that is needed is freed: what had it can be seen now.
    renamed = {".iter_1.deleted": "iter_1.1.deleted"}
    expected = {renamed.get(name, name): content for name, content in before.items() if name not in gone}
    assert everything(tmp_path) == expected


def test_a_users_files_in_our_folders_survive(tmp_path):
    """In a checkpoint that is replaced, one that is pruned, the best one, and one that a killed process left."""
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2, 3):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration)
    checkpoint.keep_as_best(tmp_path / "iter_2")
    (tmp_path / ".iter_4.partial").mkdir()
    kept = set()
    for name in ("iter_1", "iter_2", "best_model", ".iter_4.partial"):
        (tmp_path / name / "notes.txt").write_text(f"about {name}")
        kept.add(f"about {name}")
    save(tmp_path / "iter_2", model, optimizer, iteration=2)
    save(tmp_path / "iter_4", model, optimizer, EMA(model, 0.5), iteration=4)
    checkpoint.keep_as_best(tmp_path / "iter_4")
    checkpoint.prune(tmp_path, 1)
    checkpoint.tidy(tmp_path)
    assert {path.read_text() for path in tmp_path.rglob("notes.txt")} == kept
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()
    for name in ("iter_4", "best_model"):
        assert set(contents(tmp_path / name)) == set(checkpoint.FILES)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iter_4"]


def test_what_is_no_checkpoint_gets_another_name(tmp_path):
    """Weights that somebody put where the best ones go, and a checkpoint that is damaged."""
    model, optimizer = model_and_optimizer()
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model/model.pdparams").write_text("of somebody")
    save(tmp_path / "iter_1", model, optimizer, iteration=1, best_score=0.5, best_iteration=1)
    checkpoint.tidy(tmp_path)
    assert (tmp_path / "best_model/model.pdparams").read_text() == "of somebody"
    (tmp_path / "iter_1/state.json").write_text("{")
    checkpoint.keep_as_best(tmp_path / "iter_1")
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    assert (tmp_path / "best_model.1/model.pdparams").read_text() == "of somebody"
    assert (tmp_path / "iter_1.1/state.json").read_text() == "{"
    assert checkpoint.read_state(tmp_path / "iter_1").iteration == 1


def test_a_best_model_that_is_newer_than_all_checkpoints_stays(tmp_path):
    """As where somebody deleted the newest ones; it is the one to go on from."""
    model, optimizer = model_and_optimizer()
    for iteration, score in ((1, 0.2), (2, 0.8)):
        state = {"best_score": score, "best_iteration": iteration}
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration, **state)
        checkpoint.keep_as_best(tmp_path / f"iter_{iteration}")
    assert checkpoint.newest(tmp_path) == tmp_path / "iter_2"
    shutil.rmtree(tmp_path / "iter_2")
    checkpoint.tidy(tmp_path)
    assert checkpoint.read_state(tmp_path / "best_model").best_score == 0.8
    assert checkpoint.newest(tmp_path) == tmp_path / "best_model"
    assert checkpoint.contents(tmp_path) == "iter_1 and best_model (mIoU 0.8000)"


def test_a_better_best_model_of_another_run_is_not_replaced(tmp_path):
    model, optimizer = model_and_optimizer()
    for iteration, score in ((1, 0.8), (2, 0.2), (3, 0.3)):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration, best_score=score)
        checkpoint.keep_as_best(tmp_path / f"iter_{iteration}")
    assert checkpoint.read_state(tmp_path / "best_model").iteration == 3
    assert checkpoint.read_state(tmp_path / "best_model.1").iteration == 1
    assert not (tmp_path / "best_model.2").exists()


@pytest.mark.parametrize("left", ["iter_7/model.pdparams", "best_model/x", ".iter_7.old/model.pdparams", "iter_7"])
def test_half_a_run_is_one(tmp_path, left):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.contents(tmp_path) == left.split("/")[0]
    assert checkpoint.unreadable(tmp_path) == [tmp_path / left.split("/")[0]]


def change_state(folder, **keys):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_state_of_a_later_version_is_read_and_kept(tmp_path):
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration)
        change_state(tmp_path / f"iter_{iteration}", ema={"decay": 0.5}, epochs=[1, 2])
    save(tmp_path / "iter_3", model, optimizer, iteration=3)
    checkpoint.prune(tmp_path, 2)
    checkpoint.tidy(tmp_path)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["iter_2", "iter_3"]
    state = checkpoint.resume(tmp_path / "iter_2", model=model, optimizer=optimizer)
    assert (state.iteration, state.serial) == (2, 2)
    (note, *_) = checkpoint.notes(tmp_path / "iter_2", {})
    assert note.startswith(f"{tmp_path / 'iter_2'} was written by a later version: ema, epochs in its state.json")
    checkpoint.write_state(tmp_path / "iter_2", state)
    assert json.loads((tmp_path / "iter_2/state.json").read_text())["ema"] == {"decay": 0.5}


def test_a_state_that_means_something_else_is_refused_but_only_when_it_is_needed(tmp_path):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    change_state(tmp_path / "iter_1", best_score={"mIoU": 0.5}, best_iteration="../iter_1")
    checkpoint.tidy(tmp_path)
    save(tmp_path / "iter_2", model, optimizer, iteration=2)
    assert checkpoint.newest(tmp_path) == tmp_path / "iter_2"
    assert checkpoint.unreadable(tmp_path) == [tmp_path / "iter_1"]
    with pytest.raises(DataError, match=r"iter_1: expected a checkpoint.*state\.json: best_score"):
        checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"iteration": "1"}', "\xff"])
def test_a_damaged_state_does_not_end_a_run(tmp_path, content):
    model, optimizer = model_and_optimizer()
    for iteration in (1, 2):
        save(tmp_path / f"iter_{iteration}", model, optimizer, iteration=iteration)
    (tmp_path / "iter_2/state.json").write_text(content, encoding="latin-1")
    checkpoint.tidy(tmp_path)
    assert checkpoint.newest(tmp_path) == tmp_path / "iter_1"
    assert checkpoint.unreadable(tmp_path) == [tmp_path / "iter_2"]
    save(tmp_path / "iter_3", model, optimizer, iteration=3)
    checkpoint.prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_2", "iter_3"]


RECIPE = Path(__file__).parents[2] / "configs/mscale_ocr_toy.yml"


def checkpoint_of(folder, *opts):
    """A checkpoint of which only the recipe matters."""
    folder.mkdir()
    (folder / "state.json").write_text('{"iteration": 1}')
    (folder / "config.yml").write_text(load_config(RECIPE, opts).dump())
    return folder


def test_what_has_changed_in_the_recipe_is_said_key_by_key(tmp_path):
    before = checkpoint_of(tmp_path / "iter_1", "lr_scheduler.learning_rate=0.005", "model.scales=[0.5, 1.0]")
    options = [
        "lr_scheduler.learning_rate=0.01", "model.scales=[0.25, 1.0]", "seed=7", "batch_size=3",
        "train_dataset.transforms.0.max_scale_factor=1.75", "optimizer={type: SGD}",
    ]  # fmt: skip
    first, *changes = checkpoint.notes(before, load_config(RECIPE, options).model_dump())
    assert first == f"the recipe is not that of {before} ({len(changes)} keys):"
    for change in (
        "lr_scheduler.learning_rate: 0.005 -> 0.01",
        "model.scales: [0.5, 1.0] -> [0.25, 1.0]",
        "seed: 42 -> 7",
        "train_dataset.transforms.0.max_scale_factor: 1.5 -> 1.75",
        "optimizer.type: 'AdamW' -> 'SGD'",
        "optimizer.momentum: not given -> 0.0",
        "optimizer.beta1: 0.9 -> not given",
    ):
        assert f"  {change}" in changes


def test_nothing_is_said_of_an_equal_recipe(tmp_path):
    assert checkpoint.notes(checkpoint_of(tmp_path / "iter_1"), load_config(RECIPE).model_dump()) == []


def test_of_many_changes_the_first_are_told_and_those_of_data_last(tmp_path):
    many = "[{type: Normalize}, " + "{type: Resize}, " * 30 + "]"
    options = [f"train_dataset.transforms={many}", f"val_dataset.transforms={many}", "optimizer.beta2=0.5"]
    changes = checkpoint.notes(checkpoint_of(tmp_path / "iter_1"), load_config(RECIPE, options).model_dump())[1:]
    assert len(changes) == checkpoint.MAX_CHANGES + 1
    assert changes[0] == "  optimizer.beta2: 0.98 -> 0.5"
    assert re.fullmatch(r"  and \d+ more", changes[-1])


@pytest.mark.parametrize("content", [None, "model: [", "later_key: 1\n"])
def test_a_recipe_that_cannot_be_read_is_said(tmp_path, content):
    folder = checkpoint_of(tmp_path / "iter_1")
    (folder / "config.yml").unlink()
    if content:
        (folder / "config.yml").write_text(content)
    (line,) = checkpoint.notes(folder, load_config(RECIPE).model_dump())
    assert line.startswith(f"whether the recipe has changed is not known: {folder / 'config.yml'}: expected ")


def test_skipped_samples_of_a_resumed_run_stay_listed(tmp_path):
    checkpoint.list_skipped(tmp_path, {"b.png": "no image", "a.png": "no\nlabel"})
    checkpoint.list_skipped(tmp_path, {"b.png": "no image", "\udcff.png": "no image"})
    lines = (tmp_path / "skipped_samples.txt").read_text().splitlines()
    assert lines == ["a.png: no label", "b.png: no image", "\\udcff.png: no image"]


@pytest.mark.parametrize(
    "content",
    [None, "no json", "[]", '{"epoch": 1}', '{"iteration": "1/../../x"}', '{"iteration": 1, "best_iteration": [1]}'],
)
def test_what_is_no_checkpoint_is_said(tmp_path, content):
    model, optimizer = model_and_optimizer()
    save(tmp_path / "iter_1", model, optimizer, iteration=1)
    (tmp_path / "iter_1/state.json").unlink()
    if content is not None:
        (tmp_path / "iter_1/state.json").write_text(content)
    with pytest.raises(DataError, match="expected a checkpoint"):
        checkpoint.resume(tmp_path / "iter_1", model=model, optimizer=optimizer)


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
