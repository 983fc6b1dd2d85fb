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


@pytest.fixture
def no_threads_set(monkeypatch):
    """Eight cores, and nothing set by the user or a launcher; what `prepare` sets is undone."""
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "PADDLE_LOCAL_SIZE", "PADDLE_TRAINERS_NUM"):
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "_cores", lambda: 8)


@pytest.mark.usefixtures("no_threads_set")
@pytest.mark.parametrize(("processes", "share"), [(None, 8), ("1", 8), ("2", 4), ("3", 2), ("16", 1)])
def test_every_process_of_a_machine_gets_its_share_of_the_cores(monkeypatch, processes, share):
    if processes:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", processes)
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", "64")  # of all machines
    environment.prepare()
    assert os.environ["MKL_NUM_THREADS"] == str(share)
    assert "OMP_NUM_THREADS" not in os.environ
    assert environment.threads() == share


@pytest.mark.usefixtures("no_threads_set")
def test_without_the_local_number_all_processes_count(monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    environment.prepare()
    assert environment.threads() == 2


@pytest.mark.usefixtures("no_threads_set")
@pytest.mark.parametrize(
    ("name", "untouched"), [("MKL_NUM_THREADS", "OMP_NUM_THREADS"), ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
)
def test_the_users_number_of_threads_wins(monkeypatch, name, untouched):
    monkeypatch.setenv(name, "3")
    environment.prepare()
    assert os.environ[name] == "3"
    assert untouched not in os.environ
    assert environment.threads() == 3


@pytest.mark.usefixtures("no_threads_set")
def test_one_thread_unless_prepared():
    assert environment.threads() == 1


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert environment._cores() == 3
