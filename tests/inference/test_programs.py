# SPDX-License-Identifier: Apache-2.0
"""Programs are compared with the network that they were made from."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from numpy.testing import assert_array_equal

from hmsa.errors import DataError
from hmsa.inference.programs import check_programs, write_checked_programs


@pytest.fixture(scope="module")
def image():
    return paddle.to_tensor(np.random.default_rng(1).normal(size=(1, 3, 64, 96)).astype(np.float32))


@pytest.fixture(scope="module")
def right(make_tiny_network, image):
    """Logits and attention of the network itself."""
    with paddle.no_grad():
        return make_tiny_network().at_scale(image, True)


@pytest.mark.parametrize(("spoilt", "attention"), [("logits", True), ("attention", True), ("logits", False)])
def test_programs_that_answer_differently_are_refused(image, right, spoilt, attention):
    def programs(x, asked):
        logits, weight = right
        if asked == attention:
            logits, weight = (logits * 1.001, weight) if spoilt == "logits" else (logits, weight * 1.001)
        return logits, weight if asked else None

    check_programs(lambda x, asked: (right[0], right[1] if asked else None), [image], [right])
    with pytest.raises(DataError, match=r"differs by 0\.001 of the largest value: use the backend eager"):
        check_programs(programs, [image], [right])


def test_programs_that_answer_with_no_number_are_refused(image, right):
    with pytest.raises(DataError, match="differs by nan"):
        check_programs(lambda x, asked: (right[0] * np.nan, right[1]), [image], [right])


def test_a_gpu_does_not_make_the_check_fail(make_tiny_network, tmp_path, pretended_gpu, image):
    """GPUs round to TF32: programs are compared with the network on the CPU, and opened anew for the GPU."""
    network = make_tiny_network()
    before = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    programs = write_checked_programs(network, tmp_path, "inference")
    assert pretended_gpu == ["gpu:0", "cpu", "gpu:0"]
    with paddle.no_grad():
        rounded = network.at_scale(image, True)
        pretended_gpu.append("cpu")
        exact = network.at_scale(image, True)
        check_programs(programs, [image], [exact])
        with pytest.raises(DataError, match="should answer as the network does"):
            check_programs(programs, [image], [rounded])
    for name, tensor in network.state_dict().items():
        assert_array_equal(tensor.numpy(), before[name], err_msg=name)
