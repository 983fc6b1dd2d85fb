# SPDX-License-Identifier: Apache-2.0
"""Training goes as it went: the losses of 20 iterations that are kept in `tests/golden/`."""

import json

import numpy as np
import pytest
from golden.loss_curve import CURVES, ITERATIONS, losses

from hmsa.errors import UsageError
from hmsa.system.device import check_precision

TOLERANCES = [1e-5] * 2 + [3e-3] * 6 + [1.5e-2] * (ITERATIONS - 8)
"""Relative, by iteration: about four times what lay between three paths of MKL (MKL_DEBUG_CPU_TYPE 4, 5 and 7) and
between Paddle 2.6.2, 3.2.2 and 3.3.1. Rounding grows from step to step."""


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_losses_are_those_that_were_recorded(tiny_recipe, tmp_path, precision):
    try:
        check_precision(precision)
    except UsageError as error:
        pytest.skip(str(error))
    recorded = json.loads(CURVES.read_text())
    if precision not in recorded:
        pytest.skip("not recorded yet: run tests/golden/loss_curve.py on this device")
    found, expected = np.array(losses(tiny_recipe, precision, tmp_path)), np.array(recorded[precision])
    assert (np.abs(found / expected - 1) <= TOLERANCES).all(), np.abs(found / expected - 1)
