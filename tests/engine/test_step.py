# SPDX-License-Identifier: Apache-2.0
"""fp16's loss scaling with Paddle's own GradScaler, whose bookkeeping and kernels are the same on a CPU.

Its constructor refuses a CPU: it is told otherwise, and nothing else is replaced. Convolutions stay in float32 here;
what fp16 does to gradients (above 65504 there is only infinity) is done to them by a hook.
"""

import types
from dataclasses import replace

import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.datasets.loader import batches, training_indices
from hmsa.engine import checkpoint
from hmsa.engine.step import SMALLEST_LOSS_SCALE, Step
from hmsa.engine.train import Trainer
from hmsa.errors import DataError

LARGEST = 65504.0


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    place = types.SimpleNamespace(is_gpu_place=lambda: True)
    monkeypatch.setattr("paddle.amp.grad_scaler._dygraph_tracer", lambda: types.SimpleNamespace(_expected_place=place))
    monkeypatch.setattr("hmsa.engine.step.check_precision", lambda precision: None)


def parts_of(recipe, *opts, precision="fp16"):
    config = load_config(recipe, [f"precision={precision}", "model.dropout=0", *opts])
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    parts = {
        "model": model,
        "loss": builder.build_loss(config),
        "optimizer": builder.build_optimizer(config, scheduler, model),
    }
    return config, scheduler, parts


class Run:
    """A model whose classifier's gradients are `strength` times as large, and end at fp16's largest number."""

    def __init__(self, recipe, *opts, strength=1.0, precision="fp16"):
        config, _, parts = parts_of(recipe, *opts, precision=precision)
        accumulation = config.gradient_accumulation
        self.model, self.optimizer = parts["model"], parts["optimizer"]
        self.step = Step(**parts, accumulation=accumulation, precision=config.precision, recompute=False)
        self.model.train()
        self.strength = strength
        self.model.ocr.cls_head.weight.register_hook(self.in_fp16)
        indices = training_indices(first_iteration=0, iterations=100, batch_size=2, accumulation=accumulation)
        self.loaded = batches(builder.build_dataset(config, "train"), indices, 0)
        self.seeds = [0] * accumulation

    def in_fp16(self, gradient):
        gradient = gradient * self.strength
        return paddle.where(gradient.abs() > LARGEST, paddle.full_like(gradient, float("inf")), gradient)

    @property
    def scale(self):
        return float(self.step.scaler.state_dict()["scale"][0])

    def once(self):
        outcome = self.step.backward(self.loaded, self.seeds)
        if outcome.finite:
            self.step.update()
        else:
            self.step.skip(overflow=not outcome.failed)
        return outcome

    def snapshot(self):
        return {name: value.numpy() for name, value in self.model.state_dict().items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_scale_falls_at_every_overflow_until_the_gradients_fit(tiny_recipe, accumulation):
    run = Run(tiny_recipe, f"gradient_accumulation={accumulation}", strength=1e3)
    assert run.scale == 2.0**14
    before = run.snapshot()
    overflows = 0
    while not (outcome := run.once()).finite:
        overflows += 1
        assert not outcome.failed
        assert run.scale == 2.0 ** (14 - overflows)
        for name, value in run.snapshot().items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert overflows > 2
    assert any((value != before[name]).any() for name, value in run.snapshot().items())
    assert run.scale == 2.0 ** (14 - overflows)


def test_the_scale_rises_after_good_steps(tiny_recipe):
    run = Run(tiny_recipe)
    run.step.scaler.set_incr_every_n_steps(2)
    scales = []
    for _ in range(4):
        assert run.once().finite
        scales.append(run.scale)
    assert scales == [2.0**14, 2.0**15, 2.0**15, 2.0**16]
    run.strength = float("inf")
    assert not run.once().finite
    assert run.scale == 2.0**15
    run.strength = 1.0
    assert run.once().finite
    assert run.scale == 2.0**15, "an overflow starts the count of good steps anew"


def test_a_scaled_step_is_the_plain_one(tiny_recipe):
    """The scale is a power of two: with it, and the norm that is reported, every number keeps its bits."""
    scaled, plain = Run(tiny_recipe), Run(tiny_recipe, precision="fp32")
    assert scaled.step.scaler.is_enable()
    assert not plain.step.scaler.is_enable()
    norms = [float(run.once().terms["grad_norm"]) for run in (scaled, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    expected = plain.snapshot()
    for name, value in scaled.snapshot().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_a_loss_that_is_no_number_is_not_the_scales_fault(tiny_recipe):
    run = Run(tiny_recipe)
    run.step.loss = lambda outputs, labels: (outputs["joint"].sum() * float("nan"), {})
    outcome = run.once()
    assert outcome.failed
    assert run.scale == 2.0**14


@pytest.mark.slow
def test_an_overflow_at_the_smallest_scale_ends_the_run_in_the_end(tiny_recipe, tmp_path):
    config, scheduler, parts = parts_of(tiny_recipe, "iters=30", "nonfinite_limit=3")
    parts["model"].ocr.cls_head.weight.register_hook(lambda gradient: paddle.full_like(gradient, float("inf")))
    options = builder.train_options(config, save_dir=tmp_path, save_interval=100)
    dataset = builder.build_dataset(config, "train")
    with pytest.raises(DataError, match="found none in 3 iterations in a row from iteration 15 on"):
        Trainer(**parts, scheduler=scheduler, dataset=dataset, options=options).train()
    assert SMALLEST_LOSS_SCALE == 1.0
    assert checkpoint.read_state(tmp_path / "iter_14").scaler["scale"] == [1.0]


def test_the_scale_survives_a_resume(tiny_recipe, tmp_path):
    """Saved right after an overflow; the uninterrupted run and the resumed one end with the same scaler."""

    def run(folder, iters, resume_from=None):
        config, scheduler, parts = parts_of(tiny_recipe, "iters=5")
        calls = []

        def overflow_once(gradient):
            calls.append(1)
            first = len(calls) == 1 and resume_from is None
            return paddle.full_like(gradient, float("inf")) if first else gradient

        parts["model"].ocr.cls_head.weight.register_hook(overflow_once)
        options = replace(builder.train_options(config, save_dir=folder, save_interval=1), iters=iters)
        dataset = builder.build_dataset(config, "train")
        trainer = Trainer(**parts, scheduler=scheduler, dataset=dataset, options=options)
        if resume_from:
            trainer.resume(resume_from)
        trainer.train()
        return checkpoint.read_state(folder / f"iter_{iters}").scaler, parts["model"]

    whole, model = run(tmp_path / "whole", 3)
    first, _ = run(tmp_path / "parts", 1)
    assert first["scale"] == [2.0**13]
    resumed, again = run(tmp_path / "parts", 3, tmp_path / "parts/iter_1")
    assert resumed == whole
    assert resumed["incr_count"] == 2
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy(), err_msg=name)


def test_memory_is_given_back_between_the_parts_of_the_network(tiny_recipe, monkeypatch):
    """Around the backbone's features and the OCR head's pixels, at two scales, forwards and backwards; and of the step
    itself before the loss, before the gradients, and at the end."""
    calls = []
    monkeypatch.setattr("hmsa.engine.step.release_unused", lambda: calls.append(1))
    run = Run(tiny_recipe, precision="fp32")
    run.once()
    features = 2  # the first guess and the pixels are made from the same map, each with its own way back
    assert len(calls) == 2 * 2 * (features + 1) + 3
