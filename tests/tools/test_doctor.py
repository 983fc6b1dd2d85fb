# SPDX-License-Identifier: Apache-2.0
"""The installation's check: green here, and what it says about installations that are broken."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hmsa.system import environment

SCRIPT = Path(__file__).parents[2] / "tools/doctor.py"


def run(*arguments, **variables):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)


@pytest.fixture
def doctor(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("doctor", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "doctor", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_everything_works_here(doctor):
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
    assert "cash: no such check; choose from packages, paddle, " in result.stderr


BROKEN = """
import os, signal, sys
if sys.argv[-1] == "export":
    os.kill(os.getpid(), signal.SIGSEGV)
print("talk\\n\\0fine\\nand more")
"""


def test_a_check_that_dies_leaves_the_others_alone(doctor, monkeypatch, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "broken.py"))
    assert doctor.main(["export", "disk"]) == 1
    _, export, advice, disk, more, last = capsys.readouterr().out.splitlines()
    assert export.split() == ["FAILED", "export", "ended", "by", "SIGSEGV"]
    assert advice.strip() == f"to do: {doctor.CHECKS['export'].advice}"
    assert disk.split() == ["ok", "disk", "fine"]
    assert more.strip() == "and more"
    assert last == "1 checks failed"
    assert doctor.main(["disk"]) == 0
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
def test_outcomes(doctor, program, status, said):
    assert doctor.outcome([sys.executable, "-c", program], 30) == (status, said)


def test_a_check_that_does_not_end_is_ended_with_its_processes(doctor, tmp_path):
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


def test_what_a_check_raises_becomes_its_last_line(doctor, capsys):
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


def test_missing_packages_are_named(doctor, monkeypatch):
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


def test_a_paddle_that_was_not_tested_fails(doctor, monkeypatch):
    monkeypatch.setattr(environment, "version", lambda name: "3.4.0")
    with pytest.raises(RuntimeError, match=r"^3\.4\.0; tested are 2\.6\.2, 3\.2\.2, 3\.3\.1$"):
        doctor.paddle()


def test_a_full_disk_fails(doctor, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**9))
    with pytest.raises(RuntimeError, match=r"1\.0 GB free in "):
        doctor.disk()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**10))
    assert "10.0 GB free in " in doctor.disk()


def test_a_picture_that_comes_back_different_fails(doctor, monkeypatch):
    from hmsa.datasets import images

    assert doctor.images() == "PNG and JPEG come back as they were written"
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path: read(path) + 1)
    with pytest.raises(RuntimeError, match="a png comes back different by 1 levels"):
        doctor.images()
