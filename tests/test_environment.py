# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hmsa import environment

ROOT = Path(__file__).parents[1]


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


@pytest.fixture
def installed(monkeypatch):
    """A function that says which packages are installed: versions by name."""
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)

    def install(**versions):
        def version(package):
            if package.replace("-", "_") not in versions:
                raise PackageNotFoundError(package)
            return versions[package.replace("-", "_")]

        monkeypatch.setattr(environment, "version", version)

    return install


@pytest.mark.parametrize("package", ["paddlepaddle", "paddlepaddle_gpu"])
@pytest.mark.parametrize("version", ["2.6.1", "3.3.2", "3.4.0", "0.0.0", "4.0.0.dev20260101", "unheard of"])
def test_a_paddle_that_was_not_tested_gets_one_warning_that_names_it(installed, capsys, package, version):
    installed(**{package: version})
    environment.prepare()
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("warning: expected Paddle 2.6.2 to 3.3.1 (tested with 2.6.2, 3.2.2, 3.3.1), found ")
    assert f"found {version}: " in line


@pytest.mark.parametrize("version", [*environment.TESTED_PADDLES, "2.6.2.post120", "3.0.0", "3.3.0rc1", "3.3.1.post1"])
def test_a_paddle_in_the_tested_range_gets_none(installed, capsys, version):
    installed(paddlepaddle_gpu=version)
    environment.prepare()
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_warns(installed, capsys, monkeypatch):
    installed(paddlepaddle="1.0")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    environment.prepare()
    assert capsys.readouterr().err == ""


def test_a_paddle_that_was_built_from_source_has_an_unknown_version(installed, capsys, monkeypatch):
    installed()
    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    environment.prepare()
    assert "found one of unknown version: " in capsys.readouterr().err


HIDE_PADDLE = """
import importlib.metadata, sys
sys.modules["paddle"] = None
version = importlib.metadata.version
def without_paddle(name):
    if name.startswith("paddlepaddle"):
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without_paddle
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--save_dir", "out"]),
        ("val.py", ["--model_path", "x"]),
        ("predict.py", ["--model_path", "x", "--image_path", "y"]),
        ("export.py", ["--model_path", "x"]),
    ],
)
def test_without_paddle_every_script_says_what_to_install(tmp_path, script, arguments):
    (tmp_path / "sitecustomize.py").write_text(HIDE_PADDLE)
    command = [sys.executable, ROOT / script, "--config", ROOT / "configs/mscale_ocr_toy.yml", *arguments]
    paths = {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: expected PaddlePaddle to be installed, found none: run pip install .[cpu], or ")
