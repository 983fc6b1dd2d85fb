# SPDX-License-Identifier: Apache-2.0
"""What is frozen stays as it is to the bit, whoever trains; what has a factor learns at it."""

import inspect

import numpy as np
import paddle
import pytest
from paddle import nn

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.datasets.loader import batches, training_indices
from hmsa.engine.parts import freeze, scale_rates
from hmsa.engine.step import Step
from hmsa.errors import UsageError
from hmsa.optim import EMA


def values(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def steps(recipe, *opts, count=2, build_model=builder.build_model, ema=False):
    """The network of a recipe before and after some steps, its average, and the norm of the last gradients."""
    config = load_config(recipe, opts)
    model = build_model(config)
    before = values(model)
    optimizer = builder.build_optimizer(config, builder.build_lr_scheduler(config), model)
    average = EMA(model, 0.9) if ema else None
    options = {"accumulation": 1, "precision": "fp32", "recompute": config.model.recompute}
    step = Step(model=model, loss=builder.build_loss(config), optimizer=optimizer, **options)
    model.train()
    dataset = builder.build_dataset(config, "train")
    loaded = batches(dataset, training_indices(first_iteration=0, iterations=count, batch_size=2), 0)
    for _ in range(count):
        norm = float(step.backward(loaded, [0]).terms["grad_norm"])
        step.update()
        if average:
            average.update()
    return before, values(model), average, norm


OPTIMIZERS = {
    "AdamW": "optimizer={type: AdamW, weight_decay: 0.5}",
    "SGD": "optimizer={type: SGD, momentum: 0.9, weight_decay: 0.5}",
    "Paddle's": "optimizer={type: Adam, weight_decay: 0.5}",
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_frozen_part_stays_as_it_is_under_decay_and_in_the_average(tiny_recipe, optimizer):
    before, after, average, _ = steps(tiny_recipe, "freeze=backbone", optimizer, ema=True)
    changed = {name for name in before if (after[name] != before[name]).any()}
    assert {name for name in before if not name.startswith("backbone.")} == changed
    for name, value in values(average.model).items():
        if name.startswith("backbone."):
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_part_of_a_part_can_be_frozen(tiny_recipe):
    before, after, *_ = steps(tiny_recipe, "freeze=[backbone.layer1, ocr.aux_head]", count=1)
    frozen = {name for name in before if name.startswith(("backbone.layer1.", "ocr.aux_head."))}
    assert {name for name in before if (after[name] == before[name]).all()} == frozen


@pytest.mark.parametrize("parts", ["backbone", "[backbone, ocr]", "backbone.layer1", "ocr"])
def test_recomputation_reaches_what_is_trained_behind_a_frozen_part(tiny_recipe, parts):
    """Paddle computes a part again only if an input needs a gradient: with nothing trained before it, none would."""
    plain = steps(tiny_recipe, f"freeze={parts}", "model.dropout=0", count=1)
    again = steps(tiny_recipe, f"freeze={parts}", "model.dropout=0", "model.recompute=true", count=1)
    assert again[3] == pytest.approx(plain[3], rel=1e-3)
    assert again[3] > 0
    moved = [{name for name in run[0] if (run[1][name] != run[0][name]).any()} for run in (plain, again)]
    assert moved[0] == moved[1]


def test_what_is_synchronised_over_ranks_is_frozen_as_plain_normalisation(tiny_recipe):
    """SyncBatchNorm has no kernel on a CPU: these steps would fail in it."""

    def synchronised(config):
        return nn.SyncBatchNorm.convert_sync_batchnorm(builder.build_model(config))

    everything_normalised = "freeze=[backbone, ocr.conv3x3_ocr, ocr.ocr_distri_head, ocr.aux_head, scale_attn]"
    before, after, *_ = steps(tiny_recipe, everything_normalised, build_model=synchronised)
    changed = {name for name in before if (after[name] != before[name]).any()}
    assert changed == {"ocr.cls_head.weight", "ocr.cls_head.bias"}


def test_what_paddle_does_on_gpus_in_several_processes():
    """As its sources have it, which no test here runs."""
    sources = {
        "frozen parameters are not waited for": (paddle.DataParallel.init_reducer, "if param.trainable"),
        "synchronised statistics cannot be frozen": (nn.SyncBatchNorm.forward, "use_global_stats only support False"),
        "plain ones can": (nn.layer.norm._BatchNormBase.forward, "use_global_stats=self._use_global_stats"),
        "a rate of a parameter's own": (paddle.optimizer.Optimizer._create_param_lr, "optimize_attr['learning_rate']"),
    }
    assert [what for what, (code, text) in sources.items() if text not in inspect.getsource(code)] == []
    for optimizer in (paddle.optimizer.AdamW, paddle.optimizer.Momentum, paddle.optimizer.SGD):
        assert "self._create_param_lr(" in inspect.getsource(optimizer._append_optimize_op)


def test_a_factor_is_one_of_the_rate(tiny_recipe):
    """Without momentum, a step is the rate times the gradient."""
    plain = "optimizer={type: SGD}"
    before, whole, *_ = steps(tiny_recipe, plain, count=1)
    _, part, *_ = steps(tiny_recipe, plain, "lr_mult={backbone: 0.25, backbone.stage4: 2}", count=1)
    for name in ("backbone.conv1.weight", "backbone.stage4.0.branches.0.0.conv1.weight", "ocr.cls_head.weight"):
        factor = 2 if "stage4" in name else 0.25 if name.startswith("backbone") else 1
        np.testing.assert_allclose(
            part[name] - before[name], factor * (whole[name] - before[name]), rtol=2e-2, atol=2e-7, err_msg=name
        )


def small():
    parts = [("backbone", nn.Conv2D(3, 4, 1)), ("head", nn.Conv2D(4, 2, 1)), ("empty", nn.ReLU())]
    return nn.Sequential(*parts)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("backbon", "did you mean backbone?"),
        ("attention", "choose from backbone, head"),
        ("head.conv", "did you mean head?"),
        ("empty", "choose from backbone, head"),
        ("", "choose from backbone, head"),
    ],
)
def test_an_unknown_part_is_refused(name, advice):
    for function in (freeze, lambda model, names: scale_rates(model, dict.fromkeys(names, 0.5))):
        with pytest.raises(UsageError) as e:
            function(small(), [name])
        assert str(e.value) == f"expected a part of the network, found {name!r}: {advice}"


def test_something_must_be_left_to_train():
    with pytest.raises(UsageError, match="expected a part that is trained, found none: leave one out"):
        freeze(small(), ["backbone", "head"])


def test_the_recipe_tells_where_a_part_stands(tiny_recipe):
    for opts, message in (
        (["freeze=backbon"], "opts: freeze: expected a part of the network, found 'backbon': did you mean backbone?"),
        (
            ["lr_mult={backbone.stage: 0.1}"],
            "opts: lr_mult: expected a part of the network, found 'backbone.stage': did you mean backbone.stage4?",
        ),
        (
            ["freeze=backbone", "lr_mult={backbone.stage4: 0.1}"],
            "opts: lr_mult: expected parts that are trained, found backbone.stage4, which is in freeze: remove it from "
            "one",
        ),
    ):
        config = load_config(tiny_recipe, opts)
        with pytest.raises(UsageError) as e:
            builder.build_optimizer(config, builder.build_lr_scheduler(config), builder.build_model(config))
        assert str(e.value) == message
