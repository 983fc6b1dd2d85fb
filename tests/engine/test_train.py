# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config import load_config
from hmsa.deploy.engines import network_in_training
from hmsa.engine import checkpoint
from hmsa.engine.evaluate import evaluate
from hmsa.engine.inference import InferenceOptions
from hmsa.engine.train import Meter, Step, TrainOptions, step_seeds, train
from hmsa.errors import DataError, UsageError
from hmsa.log import SilentLog


class Lines(SilentLog):
    def __init__(self):
        self.lines, self.curves = [], {}

    def line(self, text):
        self.lines.append(text)

    def scalars(self, step, values):
        for name, value in values.items():
            self.curves.setdefault(name, {})[step] = value


def run(recipe, save_dir, *opts, do_eval=False, resume_from=None, log=None, **options):
    config = load_config(recipe, opts)
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    optimizer = builder.build_optimizer(config, scheduler, model)
    settings = {"log_iters": 1, "save_interval": 3, **options}
    state = train(
        model=model,
        loss=builder.build_loss(config),
        optimizer=optimizer,
        scheduler=scheduler,
        dataset=builder.build_dataset(config, "train"),
        val_dataset=builder.build_dataset(config, "val") if do_eval else None,
        resume_from=resume_from,
        log=log or Lines(),
        options=TrainOptions(
            iters=config.iters,
            batch_size=config.batch_size,
            gradient_accumulation=config.gradient_accumulation,
            precision=config.precision,
            seed=config.seed,
            save_dir=save_dir,
            **settings,
        ),
    )
    return model, optimizer, state


def assert_same(ours, theirs):
    (model, _, state), (other_model, _, other_state) = ours, theirs
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other_model.state_dict()[name].numpy(), value.numpy(), err_msg=name)
    mine, others = (checkpoint._optimizer_state(m, o) for m, o in (ours[:2], theirs[:2]))
    assert set(mine) == set(others)
    compared = 0
    for name, value in mine.items():
        if isinstance(value, paddle.Tensor):
            np.testing.assert_array_equal(others[name].numpy(), value.numpy(), err_msg=name)
            compared += 1
    assert compared > 100
    assert mine["LR_Scheduler"] == others["LR_Scheduler"]
    assert state == other_state


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_recipe, tmp_path):
    """Stopped after 3 of 8 iterations and resumed with other workers; an epoch ends at iteration 6."""
    whole = run(tiny_recipe, tmp_path / "whole", "iters=8", do_eval=True, num_workers=0)
    resumed = run(
        tiny_recipe,
        tmp_path / "parts",
        "iters=8",
        do_eval=True,
        num_workers=2,
        resume_from=tmp_path / "whole/iter_3",
    )
    assert_same(whole, resumed)
    assert whole[2].best_score is not None
    assert checkpoint.read_state(tmp_path / "whole/best_model").iteration == whole[2].best_iteration


def test_the_best_score_is_not_forgotten(tiny_recipe, tmp_path):
    *_, state = run(tiny_recipe, tmp_path, "iters=3", do_eval=True)
    folder = tmp_path / "iter_3"
    good = checkpoint.read_state(folder)
    assert good.best_score == state.best_score
    text = (folder / "state.json").read_text().replace(str(good.best_score), "0.99")
    (folder / "state.json").write_text(text)
    *_, state = run(tiny_recipe, tmp_path, "iters=4", do_eval=True, resume_from=folder)
    assert (state.best_score, state.best_iteration) == (0.99, 3)
    assert checkpoint.read_state(tmp_path / "best_model").iteration == 3, "a worse model must not replace the best"


def test_progress_and_curves(tiny_recipe, tmp_path):
    log = Lines()
    run(tiny_recipe, tmp_path, "iters=3", do_eval=True, log=log)
    train_lines = [line for line in log.lines if "[TRAIN]" in line]
    assert len(train_lines) == 3
    for part in ("iter 1/3", "loss ", "lr 0.00", "data ", "step ", "memory ", "ETA ", "DiceLoss/joint_aux "):
        assert part in train_lines[0]
    assert sum("[EVAL]" in line for line in log.lines) == 1
    assert set(log.curves["train/loss"]) == {1, 2, 3}
    assert set(log.curves["eval/mIoU"]) == {3}
    expected = {f"train/{loss}/{output}" for loss in ("DiceLoss", "BootstrappedCrossEntropyLoss")
                for output in ("joint", "joint_aux", "low", "high")}  # fmt: skip
    assert expected <= set(log.curves)


def test_it_learns(tiny_recipe, tmp_path):
    log = Lines()
    run(tiny_recipe, tmp_path, "iters=25", "train_dataset.coarse_multiple=0", "train_dataset.transforms="
        "[{type: RandomPaddingCrop, crop_size: [96, 64]}, {type: Normalize, mean: [.5, .5, .5], std: [.5, .5, .5]}]",
        log=log, save_interval=100)  # fmt: skip
    losses = list(log.curves["train/loss"].values())
    assert np.mean(losses[-5:]) < 0.93 * losses[0]


def gradients(recipe, *opts):
    """Gradients of one step, taken from the velocity of an SGD with momentum: v = g after the first."""
    config = load_config(
        recipe, ["optimizer={type: SGD, weight_decay: 0.0}", "model.dropout=0", "train_dataset.transforms="
                 "[{type: Normalize, mean: [.5, .5, .5], std: [.5, .5, .5]}]", *opts]
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
    terms = step(batches(dataset, indices, 0), step_seeds(0, 0, config.gradient_accumulation))
    state = checkpoint._optimizer_state(model, optimizer)
    return float(terms["loss"]), {name: v.numpy() for name, v in state.items() if "velocity" in name}


def test_accumulation_is_a_larger_batch(tiny_recipe):
    loss, expected = gradients(tiny_recipe, "batch_size=4")
    accumulated_loss, found = gradients(tiny_recipe, "batch_size=2", "gradient_accumulation=2")
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    assert len(expected) > 100
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5 * max(1e-6, np.abs(value).max()) + 1e-9)


def test_bf16_trains(tiny_recipe, tmp_path):
    log = Lines()
    run(tiny_recipe, tmp_path, "iters=2", "precision=bf16", log=log)
    reference = Lines()
    run(tiny_recipe, tmp_path / "fp32", "iters=2", log=reference)
    assert log.curves["train/loss"][1] == pytest.approx(reference.curves["train/loss"][1], rel=0.02)


def test_fp16_needs_a_gpu(tiny_recipe, tmp_path):
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        run(tiny_recipe, tmp_path, "precision=fp16")


def test_recomputation_trains_the_same(tiny_recipe, tmp_path):
    plain, again = Lines(), Lines()
    run(tiny_recipe, tmp_path / "a", "iters=2", log=plain)
    run(tiny_recipe, tmp_path / "b", "iters=2", "model.recompute=true", log=again)
    for step in (1, 2):
        assert again.curves["train/loss"][step] == pytest.approx(plain.curves["train/loss"][step], rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(tiny_recipe, tmp_path):
    with pytest.raises(DataError, match="finite loss"):
        run(tiny_recipe, tmp_path, "iters=9", "optimizer={type: SGD}", "lr_scheduler.learning_rate=1e30")
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_evaluation_leaves_no_trace(tiny_recipe):
    config = load_config(tiny_recipe)
    model = builder.build_model(config)
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    with network_in_training(model) as network:
        assert not model.training
        evaluate(network, builder.build_dataset(config, "val"), InferenceOptions(), most=1, progress=False)
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
