# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.datasets.convert import write_label
from hmsa.datasets.images import read_image
from hmsa.engine import checkpoint
from hmsa.engine.evaluate import evaluate
from hmsa.engine.log import SilentLog
from hmsa.engine.progress import Meter
from hmsa.engine.step import Step, gradient_norm, step_seeds
from hmsa.engine.train import Trainer
from hmsa.errors import DataError, UsageError
from hmsa.inference.averaging import InferenceOptions
from hmsa.inference.network import NetworkInTraining
from hmsa.report.console import Lines
from hmsa.report.records import curves
from hmsa.weights.files import read_weights
from hmsa.weights.loading import load_weights


class Kept(SilentLog):
    def __init__(self):
        self.lines, self.curves = [], {}
        self.console = Lines(iterations=99)
        self.console.line = self.lines.append

    def line(self, text):
        self.lines.append(text)

    def record(self, record):
        for name, value in curves(record).items():
            self.curves.setdefault(name, {})[record["iteration"]] = value
        self.console.show(record)


def make_trainer(recipe, save_dir, *opts, do_eval=False, log=None, **options):
    config = load_config(recipe, opts)
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    settings = {"log_iters": 1, "save_interval": 3, **options}
    return Trainer(
        model=model,
        loss=builder.build_loss(config),
        optimizer=builder.build_optimizer(config, scheduler, model),
        scheduler=scheduler,
        dataset=builder.build_dataset(config, "train"),
        val_dataset=builder.build_dataset(config, "val") if do_eval else None,
        log=log or Kept(),
        options=builder.train_options(config, save_dir=save_dir, **settings),
    )


def run(*arguments, resume_from=None, **options):
    trainer = make_trainer(*arguments, **options)
    if resume_from is not None:
        trainer.resume(resume_from)
    trainer.train()
    return trainer


def assert_same(ours, theirs):
    for name, value in ours.model.state_dict().items():
        np.testing.assert_array_equal(theirs.model.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    mine, others = (checkpoint._optimizer_state(run.model, run.optimizer) for run in (ours, theirs))
    assert set(mine) == set(others)
    compared = 0
    for name, value in mine.items():
        if isinstance(value, paddle.Tensor):
            np.testing.assert_array_equal(others[name].numpy(), value.numpy(), err_msg=name)
            compared += 1
    assert compared > 100
    assert mine["LR_Scheduler"] == others["LR_Scheduler"]
    assert (ours.ema is None) == (theirs.ema is None)
    if ours.ema:
        assert ours.ema.updates == theirs.ema.updates
        assert_equal_arrays(weights(theirs.ema.model), weights(ours.ema.model))
    states = [run.state.model_copy(update={"serial": 0}) for run in (ours, theirs)]  # it counts all in the folder
    assert states[0] == states[1]


@pytest.mark.parametrize("ema", ["null", "{decay: 0.25}"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_recipe, tmp_path, ema):
    """Stopped after 3 of 8 iterations and resumed with other workers; an epoch ends at iteration 6."""
    whole = run(tiny_recipe, tmp_path / "whole", "iters=8", f"ema={ema}", do_eval=True, num_workers=0)
    resumed = run(
        tiny_recipe,
        tmp_path / "parts",
        "iters=8",
        f"ema={ema}",
        do_eval=True,
        num_workers=2,
        resume_from=tmp_path / "whole/iter_3",
    )
    assert_same(whole, resumed)
    assert whole.state.best_score is not None
    assert checkpoint.read_state(tmp_path / "whole/best_model").iteration == whole.state.best_iteration


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_changed_schedule_counts_from_the_first_step_on(tiny_recipe, tmp_path, warmup, recwarn):
    """Not the rate that the checkpoint stopped at, which for the last one of a run is 0; and Paddle says nothing."""
    run(tiny_recipe, tmp_path / "first", "iters=3")
    options = ["iters=6", "lr_scheduler.learning_rate=0.1", f"lr_scheduler.warmup_iters={warmup}"]
    trainer = make_trainer(tiny_recipe, tmp_path / "second", *options)
    trainer.resume(tmp_path / "first/iter_3")
    schedule = builder.build_lr_scheduler(load_config(tiny_recipe, options))
    for _ in range(3):
        schedule.step()
    assert trainer.optimizer.get_lr() == schedule() > 0.02
    assert not [str(warning.message) for warning in recwarn if "unused values" in str(warning.message)]


def test_a_step_of_another_size_is_told(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "first", "iters=3")
    log = Kept()
    run(tiny_recipe, tmp_path / "second", "iters=4", "batch_size=4", log=log, resume_from=tmp_path / "first/iter_3")
    assert any(
        "an iteration takes 4 images, not 2, as " in line and "from epoch 0.50 to 1.00" in line for line in log.lines
    )


@pytest.mark.slow
def test_averaged_weights_are_evaluated_and_kept_beside_those_that_training_goes_on_from(tiny_recipe, tmp_path):
    log = Kept()
    trainer = run(
        tiny_recipe, tmp_path, "iters=3", "ema={decay: 0.9}", "gradient_accumulation=2", do_eval=True, log=log
    )
    assert trainer.ema.updates == 3
    raw, averaged = weights(trainer.model), weights(trainer.ema.model)
    assert any((averaged[name] != value).any() for name, value in raw.items())

    for folder in (tmp_path / "iter_3", tmp_path / "best_model"):
        assert_equal_arrays(read_weights(folder / "model.pdparams"), raw)
        assert_equal_arrays(read_weights(folder / "ema.pdparams"), averaged)
        other = builder.build_model(load_config(tiny_recipe))
        load_weights(other, folder)  # as val.py, predict.py and export.py do
        assert_equal_arrays(weights(other), averaged)

    with NetworkInTraining(other)() as network:
        found = evaluate(network, trainer.val_dataset, InferenceOptions(), progress=False)
    assert any(f"mIoU {found.scores['mean_iou']:.4f}, over" in line for line in log.lines)


def test_iterations_that_are_skipped_do_not_count_for_the_average(tiny_recipe, tmp_path, monkeypatch):
    build = builder.build_loss
    monkeypatch.setattr(builder, "build_loss", lambda config: BadLosses(build(config), {2, 3}))
    trainer = make_trainer(tiny_recipe, tmp_path, "iters=3", "ema={decay: 0.9}")
    start = weights(trainer.ema.model)
    trainer.train()
    assert trainer.ema.updates == 1
    for name, value in weights(trainer.model).items():  # the first update takes nine tenths of the weights
        np.testing.assert_allclose(
            weights(trainer.ema.model)[name], 0.1 * start[name] + 0.9 * value, rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_a_run_with_an_average_from_a_checkpoint_without_says_so_and_the_reverse(tiny_recipe, tmp_path):
    run(tiny_recipe, tmp_path / "without", "iters=1")
    run(tiny_recipe, tmp_path / "with", "iters=1", "ema={decay: 0.9}")
    plain, averaged = Kept(), Kept()
    trainer = make_trainer(tiny_recipe, tmp_path, "ema={decay: 0.9}", log=averaged)
    trainer.resume(tmp_path / "without/iter_1")
    assert_equal_arrays(weights(trainer.ema.model), weights(trainer.model))
    assert trainer.ema.updates == 0
    make_trainer(tiny_recipe, tmp_path, log=plain).resume(tmp_path / "with/iter_1")
    assert [line for line in averaged.lines if line.startswith("ema: ")] == [
        f"ema: {tmp_path / 'without/iter_1'} has no averaged weights, so that the average starts from its weights"
    ]
    assert [line for line in plain.lines if line.startswith("ema: ")] == [
        f"ema: the averaged weights in {tmp_path / 'with/iter_1'} are left behind, as the recipe has no ema"
    ]


def test_the_best_score_is_not_forgotten(tiny_recipe, tmp_path):
    state = run(tiny_recipe, tmp_path, "iters=3", do_eval=True).state
    folder = tmp_path / "iter_3"
    good = checkpoint.read_state(folder)
    assert good.best_score == state.best_score
    text = (folder / "state.json").read_text().replace(str(good.best_score), "0.99")
    (folder / "state.json").write_text(text)
    state = run(tiny_recipe, tmp_path, "iters=4", do_eval=True, resume_from=folder).state
    assert (state.best_score, state.best_iteration) == (0.99, 3)
    assert checkpoint.read_state(tmp_path / "best_model").iteration == 3, "a worse model must not replace the best"


def test_progress_and_curves(tiny_recipe, tmp_path):
    log = Kept()
    run(tiny_recipe, tmp_path, "iters=3", do_eval=True, log=log)
    train_lines = [line for line in log.lines if "[TRAIN]" in line]
    assert len(train_lines) == 3
    for part in ("iter 1/99", "loss ", "lr 0.00", "step ", "ETA "):
        assert part in train_lines[0]
    details = [line for line in log.lines if "[TERMS]" in line]
    for part, line in zip(("data ", "DiceLoss: joint ", "BootstrappedCrossEntropyLoss: joint "), details):
        assert part in line
    assert len(details) == 3, "below every tenth line only"
    assert sum("[EVAL]" in line for line in log.lines) == 1
    assert set(log.curves["train/loss"]) == {1, 2, 3}
    assert all(set(log.curves[f"eval/{name}"]) == {3} for name in ("mIoU", "accuracy", "mean_boundary_iou", "ece"))
    expected = {f"train/{loss}/{output}" for loss in ("DiceLoss", "BootstrappedCrossEntropyLoss")
                for output in ("joint", "joint_aux", "low", "high")}  # fmt: skip
    assert expected <= set(log.curves)


def test_it_learns(tiny_recipe, tmp_path):
    log = Kept()
    run(tiny_recipe, tmp_path, "iters=25", "train_dataset.coarse_multiple=0", "train_dataset.transforms="
        "[{type: RandomPaddingCrop, crop_size: [96, 64]}, {type: Normalize, mean: [.5, .5, .5], std: [.5, .5, .5]}]",
        log=log, save_interval=100)  # fmt: skip
    losses = list(log.curves["train/loss"].values())
    assert np.mean(losses[-5:]) < 0.93 * losses[0]


def gradients(recipe, *opts):
    """Gradients of one step, taken from the velocity of an SGD with momentum: v = g after the first."""
    config = load_config(
        recipe, ["optimizer={type: SGD, momentum: 0.9, weight_decay: 0.0}", "model.dropout=0",
                 "train_dataset.transforms=[{type: Normalize, mean: [.5, .5, .5], std: [.5, .5, .5]}]", *opts]
    )  # fmt: skip
    model = builder.build_model(config)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._use_global_stats = True
    optimizer = builder.build_optimizer(config, builder.build_lr_scheduler(config), model)
    step = Step(
        model=model,
        loss=builder.build_loss(config),
        optimizer=optimizer,
        accumulation=config.gradient_accumulation,
        precision="fp32",
        recompute=False,
    )
    model.train()
    dataset = builder.build_dataset(config, "train")
    from hmsa.datasets.loader import batches, training_indices

    indices = training_indices(
        first_iteration=0, iterations=1, batch_size=config.batch_size, accumulation=config.gradient_accumulation
    )
    terms = step.backward(batches(dataset, indices, 0), step_seeds(0, 0, config.gradient_accumulation)).terms
    step.update()
    state = checkpoint._optimizer_state(model, optimizer)
    return float(terms["loss"]), {name: v.numpy() for name, v in state.items() if "velocity" in name}


def test_accumulation_is_a_larger_batch(tiny_recipe):
    loss, expected = gradients(tiny_recipe, "batch_size=4")
    accumulated_loss, found = gradients(tiny_recipe, "batch_size=2", "gradient_accumulation=2")
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert len(expected) > 100
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5 * max(1e-6, np.abs(value).max()) + 1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_device_that_computes_in_float32_all_the_same_is_said(tiny_recipe, tmp_path, precision):
    with pytest.raises(UsageError, match=f"computes in {precision}, found cpu, where it stays in float32"):
        run(tiny_recipe, tmp_path, f"precision={precision}")
    assert list(tmp_path.iterdir()) == []


def test_determinism_is_said_to_change_nothing_here(tiny_recipe, tmp_path):
    log = Kept()
    run(tiny_recipe, tmp_path, "iters=1", "deterministic=true", log=log)
    assert [line for line in log.lines if line.startswith("deterministic: changes nothing on a CPU")]


@pytest.mark.slow
def test_recomputation_trains_the_same(tiny_recipe, tmp_path):
    plain, again = Kept(), Kept()
    run(tiny_recipe, tmp_path / "a", "iters=2", log=plain)
    run(tiny_recipe, tmp_path / "b", "iters=2", "model.recompute=true", log=again)
    for step in (1, 2):
        assert again.curves["train/loss"][step] == pytest.approx(plain.curves["train/loss"][step], rel=1e-3)


class BadLosses:
    """The recipe's loss, but in some iterations not a number, or one whose gradient is none."""

    def __init__(self, loss, iterations, factor=float("nan")):
        self.loss, self.iterations, self.factor, self.calls = loss, iterations, factor, 0

    def __call__(self, outputs, labels):
        self.calls += 1
        total, terms = self.loss(outputs, labels)
        return total * (self.factor if self.calls in self.iterations else 1), terms


def weights(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def snapshot(model, optimizer):
    state = {**model.state_dict(), **checkpoint._optimizer_state(model, optimizer)}
    return {name: value.numpy() for name, value in state.items() if isinstance(value, paddle.Tensor)}


def assert_equal_arrays(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38])
def test_a_step_that_is_not_finite_changes_nothing_but_the_schedule(tiny_recipe, tmp_path, monkeypatch, factor):
    config = load_config(tiny_recipe)
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    optimizer = builder.build_optimizer(config, scheduler, model)
    loss = BadLosses(builder.build_loss(config), {2}, factor)
    step = Step(model=model, loss=loss, optimizer=optimizer, accumulation=1, precision="fp32", recompute=False)
    model.train()
    dataset = builder.build_dataset(config, "train")
    from hmsa.datasets.loader import batches, training_indices

    loaded = batches(dataset, training_indices(first_iteration=0, iterations=3, batch_size=2), 0)
    assert step.backward(loaded, [0]).finite
    step.update()
    before = snapshot(model, optimizer)
    outcome = step.backward(loaded, [0])
    assert outcome.failed
    assert not outcome.finite
    assert len(outcome.files) == 2
    assert all(path.endswith(".png") for path in outcome.files)
    step.skip(overflow=False)
    assert_equal_arrays(snapshot(model, optimizer), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    outcome = step.backward(loaded, [0])
    assert outcome.finite
    step.update()
    assert any((value != before[name]).any() for name, value in snapshot(model, optimizer).items())


def test_a_run_goes_on_after_steps_that_are_not_finite(tiny_recipe, tmp_path, monkeypatch):
    build = builder.build_loss
    monkeypatch.setattr(builder, "build_loss", lambda config: BadLosses(build(config), {2, 4, 5}))
    log = Kept()
    model = run(tiny_recipe, tmp_path, "iters=6", "nonfinite_limit=3", log=log).model
    skipped = [line for line in log.lines if "[SKIP]" in line]
    assert [line.split(",")[0] for line in skipped] == ["[SKIP] iter 2", "[SKIP] iter 4", "[SKIP] iter 5"]
    assert "_leftImg8bit.png" in skipped[0]
    assert set(log.curves["train/loss"]) == {1, 3, 6}
    assert all(np.isfinite(value.numpy()).all() for value in model.state_dict().values())


@pytest.mark.slow
def test_failures_in_a_row_end_the_run_with_the_checkpoint_from_before(tiny_recipe, tmp_path, monkeypatch):
    build = builder.build_loss
    whole = run(tiny_recipe, tmp_path / "whole", "iters=7", save_interval=4)
    monkeypatch.setattr(builder, "build_loss", lambda config: BadLosses(build(config), {5, 6, 7}))
    with pytest.raises(
        DataError, match=r"found none in 3 iterations in a row from iteration 5 on.*_leftImg8bit\.png"
    ) as e:
        run(tiny_recipe, tmp_path / "bad", "iters=9", "nonfinite_limit=3", save_interval=2)
    assert str(tmp_path / "bad/iter_4") in str(e.value)
    # iter_6 lies among the failures; the newest is that from before them.
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "bad")] == ["iter_2", "iter_6", "iter_4"]
    # Training on from it is as if nothing had happened, also where an earlier run had left one of its name.
    run(tiny_recipe, tmp_path / "bad2", "iters=3", "seed=9", save_interval=3)
    monkeypatch.setattr(builder, "build_loss", lambda config: BadLosses(build(config), {4, 5, 6}))
    with pytest.raises(DataError, match="resume from"):
        run(tiny_recipe, tmp_path / "bad2", "iters=7", "nonfinite_limit=3", save_interval=100)
    monkeypatch.setattr(builder, "build_loss", build)
    again = run(tiny_recipe, tmp_path / "bad2", "iters=7", save_interval=4, resume_from=tmp_path / "bad2/iter_3")
    assert_same(whole, again)


def test_the_gradient_norm_is_that_of_all_gradients():
    weights = [paddle.to_tensor(np.zeros(n, np.float32), stop_gradient=False) for n in (2, 1, 1)]
    (3 * weights[0].sum() + 4 * weights[1].sum()).backward()  # the third has no gradient
    assert float(gradient_norm(weights)) == pytest.approx(np.sqrt(9 + 9 + 16))


@pytest.mark.slow
def test_evaluation_leaves_no_trace(tiny_recipe):
    config = load_config(tiny_recipe)
    model = builder.build_model(config)
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    with NetworkInTraining(model)() as network:
        assert not model.training
        evaluate(network, builder.build_dataset(config, "val"), InferenceOptions(), max_images=1, progress=False)
    assert model.training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_meter():
    meter = Meter()
    meter.add({"loss": paddle.to_tensor(1.0), "a": paddle.to_tensor(4.0)})
    meter.add({"loss": paddle.to_tensor(3.0), "a": paddle.to_tensor(0.0)})
    meter.data_seconds = 1.0
    means, data_seconds, seconds = meter.report()
    assert means == {"loss": 2.0, "a": 2.0}
    assert data_seconds == 0.5
    assert seconds > 0


def test_seeds_differ_by_everything():
    seeds = [seed for i in range(3) for seed in step_seeds(7, i, 2)] + step_seeds(8, 0, 2)
    assert len(set(seeds)) == 8
    assert step_seeds(7, 1, 2) == step_seeds(7, 1, 2)


def test_skipped_samples_of_any_name_are_listed(tiny_recipe, toy_root, tmp_path):
    """Names that are no UTF-8, in a data set and of the folder that is written to."""
    name = os.fsdecode(b"stra\xdfe.png")
    image, label = (sorted(toy_root.glob(f"{kind}/train/*/*{ending}"))[0] for kind, ending in (
        ("leftImg8bit", ".png"), ("gtFine", "_labelTrainIds.png")
    ))  # fmt: skip
    (tmp_path / name).symlink_to(image)
    (tmp_path / ("bad_" + name)).write_bytes(b"")
    lines = f"{name}\t{label}\nbad_{name}\t{label}\n"
    (tmp_path / "list.txt").write_bytes(os.fsencode(lines))
    crop = "{type: RandomPaddingCrop, crop_size: [96, 64]}, {type: Normalize}"
    dataset = f"{{type: Dataset, dataset_root: {tmp_path}, train_path: list.txt, transforms: [{crop}]}}"
    save_dir = tmp_path / os.fsdecode(b"sortie_\xe9")
    run(tiny_recipe, save_dir, f"train_dataset={dataset}", "iters=1", "on_bad_sample=skip", save_interval=1)
    (line,) = (save_dir / "skipped_samples.txt").read_text(encoding="utf-8").splitlines()
    assert line.startswith(f"{tmp_path}/bad_stra\\udcdfe.png: ") and "no image format is recognised" in line
    assert checkpoint.read_state(save_dir / "iter_1").iteration == 1


def test_images_of_ignored_pixels_alone_are_warned_of(tiny_recipe, toy_root, tmp_path):
    image = next(iter(sorted(toy_root.glob("leftImg8bit/train/*/*.png"))))
    size = read_image(image).shape[:2]
    write_label(tmp_path / "ignored.png", np.full(size, 255, np.uint8), colored=False)
    (tmp_path / "list.txt").write_text(f"{image}\tignored.png\n")
    crop = "{type: RandomPaddingCrop, crop_size: [96, 64]}, {type: Normalize}"
    dataset = f"{{type: Dataset, dataset_root: {tmp_path}, train_path: list.txt, transforms: [{crop}]}}"
    for option, warnings in ((f"train_dataset={dataset}", 2), ("seed=1", 0)):
        log = Kept()
        run(tiny_recipe, tmp_path / str(warnings), option, "iters=2", log=log)
        assert sum(line.startswith("warning: nothing was learnt, as the loss") for line in log.lines) == warnings
