# SPDX-License-Identifier: Apache-2.0
"""The installation's check: green here, and what it says about installations that are broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hmsa.commands import doctor
from hmsa.system import environment
from hmsa.system.version import PADDLE

SCRIPT = Path(__file__).parents[2] / "tools/doctor.py"


def run(*arguments, **variables):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_everything_works_here():
    result = run()
    assert result.returncode == 0, result.stdout
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    outcomes = dict(reversed(line.split()[:2]) for line in lines[1:-1])
    assert list(outcomes) == list(doctor.CHECKS)
    assert {name for name, status in outcomes.items() if status == "skipped"} <= {"openvino", "onnxruntime"}
    assert set(outcomes.values()) <= {"ok", "skipped"}
    assert environment.paddle_version() in result.stdout


def test_a_cache_that_cannot_be_written_to_fails_alone(tmp_path):
    (tmp_path / "file").touch()
    result = run("cache", "packages", HMSA_CACHE=str(tmp_path / "file/cache"))
    assert result.returncode == 1
    _, cache, advice, packages, *_, last = result.stdout.splitlines()
    assert cache.startswith("FAILED   cache ")
    assert str(tmp_path / "file/cache") in cache
    assert advice.strip() == "to do: set HMSA_CACHE to a folder that can be written to"
    assert packages.startswith("ok       packages ")
    assert last == "1 checks failed"


def test_an_unknown_check_is_an_error_of_the_command_line():
    result = run("cash")
    assert result.returncode == 2
    assert result.stderr == "error: expected the name of a check, found cash: did you mean cache?\n"


BROKEN = """
import os, signal, sys
if sys.argv[-1] == "export":
    os.kill(os.getpid(), signal.SIGSEGV)
print("talk\\n\\0fine\\nand more")
"""


def test_a_check_that_dies_leaves_the_others_alone(monkeypatch, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setattr(doctor.cli, "command", lambda *words: [sys.executable, str(tmp_path / "broken.py"), *words])
    assert doctor.run_checks(["export", "disk"]) == 1
    _, export, advice, disk, more, last = capsys.readouterr().out.splitlines()
    assert export.split() == ["FAILED", "export", "ended", "by", "SIGSEGV"]
    assert advice.strip() == f"to do: {doctor.CHECKS['export'].advice}"
    assert disk.split() == ["ok", "disk", "fine"]
    assert more.strip() == "and more"
    assert last == "1 checks failed"
    assert doctor.run_checks(["disk"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "everything works"


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("print('noise'); print('\\0two\\nlines')", 0, "two\nlines"),
        ("import sys; print('x'); print('noise\\nreason', file=sys.stderr); sys.exit(1)", 1, "reason"),
        ("import sys; sys.exit(1)", 1, "ended without a word"),
        ("import sys; print('not here', file=sys.stderr); sys.exit(2)", 2, "not here"),
        ("import sys; sys.exit(77)", 1, "ended with the status 77"),
        ("import os; os.abort()", 1, "ended by SIGABRT"),
    ],
)
def test_outcomes(program, status, said):
    assert doctor.outcome([sys.executable, "-c", program], 30) == (status, said)


def test_a_check_that_does_not_end_is_ended_with_its_processes(tmp_path):
    started = tmp_path / "started"
    program = f"import subprocess; subprocess.run(['sh', '-c', 'echo $$ > {started}; sleep 300'])"
    assert doctor.outcome([sys.executable, "-c", program], 2) == (doctor.FAILED, "no end after 2 s")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(int(started.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")


def test_what_a_check_raises_becomes_its_last_line(capsys):
    def fail(error):
        def run():
            raise error

        return run

    for error, status, line in [
        (doctor.SkippedError("one GPU"), doctor.SKIPPED, "one GPU"),
        (RuntimeError("wrong"), doctor.FAILED, "wrong"),
        (ImportError("no\nmodule"), doctor.FAILED, "ImportError: no module"),
        (OSError("C++\nError Message Summary:\n" + "x" * 999), doctor.FAILED, "OSError: " + "x" * 400),
        (RuntimeError(), doctor.FAILED, "RuntimeError: "),
    ]:
        assert doctor.check_here(fail(error)) == status
        assert capsys.readouterr().err == line + "\n"


def test_missing_packages_are_named(monkeypatch):
    def version(name):
        if name in ("tqdm", "openvino", "opencv-python"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    with pytest.raises(RuntimeError, match=r"^missing: tqdm$"):
        doctor.packages()
    monkeypatch.setattr(doctor, "REQUIRED", "numpy opencv-python")  # its headless form will do
    assert doctor.packages().splitlines()[:2] == [
        "numpy 1.0, opencv-python 1.0",
        "extra [openvino]: openvino missing, paddle2onnx 1.0, onnx 1.0, polygraphy 1.0",
    ]


def test_a_paddle_that_was_not_tested_fails(monkeypatch):
    monkeypatch.setattr(environment, "version", lambda name: "3.4.0")
    with pytest.raises(RuntimeError, match=r"^3\.4\.0; tested are 2\.6\.2, 3\.2\.2, 3\.3\.1$"):
        doctor.paddle()


def test_a_full_disk_fails(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**9))
    with pytest.raises(RuntimeError, match=r"1\.0 GB free in "):
        doctor.disk()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**10))
    assert "10.0 GB free in " in doctor.disk()


def test_a_picture_that_comes_back_different_fails(monkeypatch):
    from hmsa.datasets import images

    assert doctor.images() == "PNG and JPEG come back as they were written"
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path: read(path) + 1)
    with pytest.raises(RuntimeError, match="a png comes back different by 1 levels"):
        doctor.images()


HIDE = """
import importlib.metadata, importlib.util
found, spec = importlib.metadata.version, importlib.util.find_spec

def version(name):
    if name in {hidden}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.version = version
importlib.util.find_spec = lambda name, *rest: None if name in {hidden} else spec(name, *rest)
"""


def hidden(tmp_path, *packages):
    """The checks and what they come to, where these packages are not installed; then what is to be done."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=packages))
    for package in packages:
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}')")
    paths = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    result = run(PYTHONPATH=paths)
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()[1:-1]
    outcomes = {line.split()[1]: line.split()[0] for line in lines if not line.startswith(" ")}
    return outcomes, [line.strip() for line in lines if "to do: " in line], result.stdout


def test_without_paddle_the_remedy_is_paddle_alone(tmp_path):
    outcomes, advice, said = hidden(tmp_path, "paddle", "paddlepaddle", "paddlepaddle-gpu")
    assert (outcomes.pop("packages"), outcomes.pop("paddle")) == ("ok", "FAILED")
    assert set(outcomes.values()) == {"skipped"}
    (only,) = advice
    assert only.startswith('to do: install a tested Paddle: on a CPU pip install "paddlepaddle>=')
    assert "FAILED   paddle       none is installed" in said
    assert "skipped  images       needs Paddle, which is missing\n" in said


def test_without_any_package_it_still_says_what_to_do(tmp_path):
    names = ("packaging", "pydantic", "pyyaml", "yaml", "numpy", "opencv-python", "cv2", "filelock", "requests")
    outcomes, advice, said = hidden(tmp_path, *names, "paddle", "paddlepaddle", "paddlepaddle-gpu")
    assert (outcomes.pop("packages"), outcomes.pop("paddle")) == ("FAILED", "FAILED")
    assert set(outcomes.values()) == {"skipped"}
    assert len(advice) == 2
    assert "missing: numpy, " in said
    assert "skipped  training     needs numpy and 7 more that are missing\n" in said


def test_the_paddle_that_is_asked_for_is_that_of_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'cpu = ["{PADDLE}"]' in text


def test_a_single_check_says_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "has_paddle", lambda: False)
    monkeypatch.setattr(doctor, "outcome", lambda command, seconds: (doctor.FAILED, command[-1]))
    assert doctor.run_checks(["training"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[1:-1] if not line.startswith(" ")] == [
        ["FAILED", "packages"],
        ["FAILED", "paddle"],
        ["skipped", "training"],
    ]
