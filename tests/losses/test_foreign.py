# SPDX-License-Identifier: Apache-2.0
"""Losses that are not ours: those of PaddleSeg train or are refused, and a trial says what a loss cannot do."""

import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.errors import UsageError
from hmsa.losses.foreign import ForeignLoss

RECIPE = """
model: {type: MscaleOCRNet, num_classes: 4, backbone: {type: HRNet_W18_NV_Small_V1}}
loss: {types: [{type: DiceLoss}], coef: {joint: 1}}
"""
ARGUMENTS = {
    "BootstrappedCrossEntropyLoss": "min_K: 100, loss_th: 0.05",
    "MixedLoss": "losses: [{type: LovaszSoftmaxLoss}, {type: CrossEntropyLoss}], coef: [0.2, 0.8]",
    "MultiClassFocalLoss": "num_class: CLASSES",
    "RMILoss": "num_classes: CLASSES",
    "MaskFormerLoss": "num_classes: CLASSES",
}
ALWAYS = {
    *("CrossEntropyLoss", "OhemCrossEntropyLoss", "BootstrappedCrossEntropyLoss", "DiceLoss", "MixedLoss"),
    *("BCELoss", "LovaszSoftmaxLoss", "MultiClassFocalLoss"),
}
OF_TWO_CLASSES = {"FocalLoss", "LovaszHingeLoss"}


def names():
    import paddleseg  # noqa: F401 (fills the registries)
    from paddleseg.cvlibs import manager

    return sorted(manager.LOSSES.components_dict)


def crop(classes, ignored):
    rng = np.random.default_rng(1)
    logits = paddle.to_tensor(rng.standard_normal((2, classes, 128, 160)).astype(np.float32), stop_gradient=False)
    labels = np.repeat(np.repeat(rng.integers(0, classes, (2, 8, 10)), 16, axis=1), 16, axis=2)
    labels[:, :ignored] = 255
    return logits, labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", names())
def test_each_loss_of_paddleseg_trains_or_is_refused(tmp_path, name, classes):
    path = tmp_path / "a.yml"
    path.write_text(RECIPE)
    arguments = ARGUMENTS.get(name, "").replace("CLASSES", str(classes))
    config = load_config(path, [f"model.num_classes={classes}", f"loss.types=[{{type: {name}, {arguments}}}]"])
    try:
        loss = builder.build_loss(config)
    except UsageError as error:
        assert name not in ALWAYS
        assert name not in OF_TWO_CLASSES or classes != 2
        expected = (
            f"opts: loss.types.0: expected a loss on logits and labels that Paddle {paddle.__version__} can train"
        )
        assert f"{expected} with, found {name}, which fails in a trial (" in str(error)
        assert str(error).endswith("BootstrappedCrossEntropyLoss, DiceLoss or another one")
        assert len(str(error)) < 900
        return

    for ignored in (16, 128):  # rows: some, and all
        logits, labels = crop(classes, ignored)
        given = paddle.to_tensor(labels)
        value, _ = loss({"joint": logits}, given)
        value.backward()
        gradient = logits.grad.numpy()
        assert np.isfinite(float(value))
        assert np.isfinite(gradient).all()
        assert (gradient[:, :, :ignored] == 0).all()
        assert gradient[:, :, ignored:].any() == (ignored < 128)
        np.testing.assert_array_equal(given.numpy(), labels)


def scalar(z, y):
    return (z * z).mean()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda z, y: z * z, r"returns \[2, 3, 64, 96\] in place of one number"),
        (lambda z, y: 1.0, "returns float in place"),
        (lambda z, y: paddle.log(-scalar(z, y)), "not finite"),
        (lambda z, y: paddle.sqrt(z - z.detach()).mean(), "not finite"),  # the gradient
        (lambda z, y: paddle.to_tensor(1.0, stop_gradient=False), "no gradient"),
        (lambda z, y: scalar(z[:, :2], y), "no gradient"),
    ],
)
def test_what_a_trial_finds(loss, reason):
    with pytest.raises(ValueError, match=reason):
        ForeignLoss(loss).try_out(3)


def test_a_trial_shows_what_training_will(monkeypatch):
    seen = []

    def loss(z, y):
        seen.append((z.dtype, y.dtype, set(y.numpy().flatten().tolist())))
        return [scalar(z, y), scalar(z, y)]

    ForeignLoss(loss, ignore_index=7).try_out(6)
    assert seen == [(paddle.float32, paddle.int64, {0, 1, 2, 3, 4, 5, 7})]


def test_a_batch_of_ignored_pixels_alone_gives_nothing():
    logits = paddle.ones([1, 2, 4, 4])
    logits.stop_gradient = False
    loss = ForeignLoss(lambda z, y: pytest.fail("called"), ignore_index=3)
    value = loss(logits, paddle.full([1, 4, 4], 3, "int64"))
    value.backward()
    assert float(value) == 0
    assert (logits.grad.numpy() == 0).all()
