# SPDX-License-Identifier: Apache-2.0
"""Which sets of outputs train the whole network, and that all others are refused."""

from itertools import combinations

import paddle
import pytest
from with_defaults import CrossEntropyLoss

from hmsa.config.reading import load_config
from hmsa.errors import UsageError
from hmsa.losses import WeightedLoss
from hmsa.models.hierarchical import OUTPUTS

SETS = [set(names) for count in range(1, 5) for names in combinations(OUTPUTS, count)]


@pytest.fixture(scope="module")
def untrained_by(make_small_network):
    """Names of the parameters without a gradient, by the only output that has a loss."""
    network = make_small_network()
    network.train()
    labels = paddle.randint(0, 5, [1, 64, 64])
    untrained = {}
    for output in OUTPUTS:
        for parameter in network.parameters():
            parameter.clear_gradient(False)  # back to None
        loss = WeightedLoss(terms={"cross-entropy": CrossEntropyLoss()}, weights={output: 1.0})
        loss(network(paddle.randn([1, 3, 64, 64])), labels)[0].backward()
        trainable = [item for item in network.named_parameters() if not item[1].stop_gradient]  # no statistics
        untrained[output] = {name for name, parameter in trainable if parameter.grad is None}
    return untrained


def refusal(tmp_path, coef):
    path = tmp_path / "a.yml"
    path.write_text("model: {type: MscaleOCRNet, num_classes: 5, backbone: {type: HRNet_W18_NV_Small_V1}}")
    try:
        load_config(path, [f"loss={{types: [{{type: CrossEntropyLoss}}], coef: {coef}}}"])
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("outputs", SETS, ids=lambda outputs: ",".join(sorted(outputs)))
def test_outputs_that_leave_parameters_without_gradient_are_refused(outputs, untrained_by, tmp_path):
    untrained = set.intersection(*(untrained_by[output] for output in outputs))
    for absent in ({}, dict.fromkeys(set(OUTPUTS) - outputs, 0)):  # a weight of 0 is no weight
        message = refusal(tmp_path, {**dict.fromkeys(outputs, 0.5), **absent})
        assert bool(message) == bool(untrained)
        if message:
            part = "scale attention" if any("scale_attn" in name for name in untrained) else "OCR head's last layer"
            assert "expected loss.coef to be given a weight above 0 for joint, without which nothing trains" in message
            assert f"the {part}, found" in message
            assert part == "scale attention" or all("cls_head" in name for name in untrained)


def test_weights_of_zero_alone_are_refused(tmp_path):
    assert "loss.coef to be given a weight above 0 for joint" in refusal(tmp_path, dict.fromkeys(OUTPUTS, 0))
