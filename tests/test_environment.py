# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from hmsa import environment


@pytest.mark.parametrize("amd", [False, True])
def test_the_matrix_path_is_chosen_on_amd_only(monkeypatch, amd):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(environment, "is_amd_cpu", lambda: amd)
    environment.prepare()
    assert os.environ.pop("MKL_DEBUG_CPU_TYPE", None) == ("5" if amd else None)


def test_the_users_setting_wins(monkeypatch):
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    monkeypatch.setattr(environment, "is_amd_cpu", lambda: True)
    environment.prepare()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "4"
