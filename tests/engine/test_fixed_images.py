# SPDX-License-Identifier: Apache-2.0
import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.engine.fixed_images import FixedImages
from hmsa.inference.network import NetworkInTraining


@pytest.fixture
def dataset(tiny_recipe):
    return builder.build_dataset(load_config(tiny_recipe), "val")


@pytest.mark.parametrize(("count", "numbers"), [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (64, [0, 1, 2])])
def test_images_are_spread_over_the_data_set(dataset, count, numbers):
    assert FixedImages(dataset, count).numbers == numbers


def test_shares_are_means_over_the_pixels_of_a_class(dataset, make_small_network):
    """By hand, from the network's own attention; where a class is in no label there is no mean."""
    network = make_small_network(scales=(0.5, 1.0))
    shown = {}
    with NetworkInTraining(network, "eager")() as opened, paddle.no_grad():
        found = FixedImages(dataset, 3).look(opened, lambda name, sheet: shown.setdefault(name, sheet))
        low, labels = [], []
        for index in range(3):
            sample = dataset[index]
            attention = network(paddle.to_tensor(sample["img"][None]), return_attention=True)["attention_0.5"]
            size = list(sample["label"].shape)
            low.append(paddle.nn.functional.interpolate(attention, size, mode="bilinear")[0, 0].numpy())
            labels.append(sample["label"])
    low, labels = np.stack(low), np.stack(labels)
    assert list(found) == ["0.5", "1"]
    for number, name in enumerate(dataset.classes.names):
        expected = low[labels == number].mean() if (labels == number).any() else np.nan
        np.testing.assert_allclose(found["0.5"][name], expected, rtol=1e-3)
        np.testing.assert_allclose(found["1"][name], 1 - expected, rtol=1e-3)

    assert len(shown) == 3
    for sheet in shown.values():
        assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
        assert sheet.shape[1] < 3 * 480 + 100


def test_a_network_without_scales_has_no_shares_but_a_prediction(dataset):
    shown = []

    def road(image):
        return paddle.concat([paddle.ones([1, 1, *image.shape[2:]]), paddle.zeros([1, 18, *image.shape[2:]])], axis=1)

    found = FixedImages(dataset, 2).look(road, lambda name, sheet: shown.append(name), first=True)
    assert found == {}
    assert len(shown) == 1
