# SPDX-License-Identifier: Apache-2.0
"""The programs of deploy/, built for tests."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE, WEB = ROOT / "deploy/cpp", ROOT / "deploy/web"
HEADERS = ROOT / "build/onnxruntime/include"


def build(folder, *settings, environment=None):
    """Build deploy/cpp -> the arguments -> what the program did; `engines` are those that are built in, `path` and
    `environment` what else runs it."""
    command = ["cmake", "-S", SOURCE, "-B", folder, "-DCMAKE_BUILD_TYPE=Debug", *settings]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode and "could not find" in (made.stderr + made.stdout).lower():
        pytest.skip("deploy/cpp needs libraries of the system: make system-packages")
    assert made.returncode == 0, made.stderr
    compiled = subprocess.run(["cmake", "--build", folder, "--parallel", "2"], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stdout

    def run(*arguments):
        command = [folder / "hmsa_infer", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    run.path, run.environment = folder / "hmsa_infer", environment or {}
    run.engines = [line.split()[2].strip(":") for line in made.stdout.splitlines() if line.startswith("-- Engine ")]
    return run


def onnxruntime_archive(folder):
    """A folder like ONNX Runtime's release archive: headers of `make system-packages`, the Python package's library."""
    found = find_spec("onnxruntime")
    if found is not None and found.origin is not None and (HEADERS / "onnxruntime_cxx_api.h").is_file():
        (folder / "lib").mkdir(parents=True)
        (folder / "include").symlink_to(HEADERS)
        for library in (Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"):
            for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
                (folder / "lib" / name).symlink_to(library)
    return folder


def build_site(folder):
    """Build deploy/web from its lock file, with its `dist` in it."""
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist", "model"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True, text=True)
    return folder
