# SPDX-License-Identifier: Apache-2.0
import paddle
import pytest

from hmsa.errors import UsageError
from hmsa.system.device import check_precision


def test_the_check_sees_the_type_that_products_come_out_in(monkeypatch):
    """No CPU has a product in bfloat16, so the type of its result is changed: the check goes by that alone."""
    with pytest.raises(UsageError):
        check_precision("bf16")
    matmul = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda a, b: matmul(a, b).astype("bfloat16"))
    check_precision("bf16")
