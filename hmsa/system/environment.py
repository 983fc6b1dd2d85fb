# SPDX-License-Identifier: Apache-2.0
"""What must be set before Paddle is loaded.

Scripts call `prepare()` first, and `hmsa.system.prepared` does for the library.

Nothing here runs on import.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from packaging.version import InvalidVersion, Version

from hmsa.errors import UsageError
from hmsa.system.version import PADDLE

TESTED_PADDLES = ("2.6.2", "3.2.2", "3.3.1")
"""What `make test-matrix` runs the tests on; what lies between the first and the last is taken to work."""


def amd_matrix_path() -> Optional[str]:
    """MKL_DEBUG_CPU_TYPE that makes the matrix library inside Paddle fast on this processor: "7" (AVX-512) or "5"
    (AVX2) on one that says it is made by AMD (Linux), None elsewhere, where the library chooses well by itself."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    if "AuthenticAMD" not in processor:
        return None
    flags = set(re.findall(r"\bavx512\w+", processor))
    return "7" if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags else "5"


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name, and the flags by which Linux says what it can (none elsewhere)."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = told.get("model name", name)
        flags = told.get("flags") or told.get("Features") or ""
    return name, frozenset(flags.split())


def threads() -> int:
    """Threads that this process may use for computing on a CPU: MKL_NUM_THREADS, which `prepare()` sets, else 1."""
    setting = os.environ.get("MKL_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or "1"
    first = setting.partition(",")[0]  # OpenMP's is a list, one number a level
    return int(first) if first.isdecimal() else 1


def prepare() -> None:
    """Choose the fast code paths of the libraries below, never over a setting of the user's own.

    - On AMD processors the matrix library inside Paddle takes a path several times too slow unless told otherwise.
    - Paddle computes on one thread unless told otherwise: every process of this machine gets its share of the cores.
    - OpenCV must be loaded before Paddle: Paddle 2.6 exports zlib symbols that break PNG decoding otherwise.
    - OpenCV's own threads compete with the loader's: one each.
    - Warnings of Paddle's about a compiler cache, batch normalisation and differences from PyTorch say nothing to
      users of scripts; nor do Pillow's about a damaged image, as it is then refused or read all the same.

    Where Paddle is loaded already, path and threads still count if nothing was computed. What cannot be made up for:
    a Paddle 2.6 that was loaded before OpenCV, which gets a warning, and what Paddle has said by then.

    Calling it again does nothing new. A Paddle that was not tested gets a warning, from the first rank.

    Raises:
        UsageError: Paddle is not installed; all the rest is done.
    """
    for message in (
        "No ccache found",
        "When training, we now always track global mean",
        r"\s*Non compatible API",
    ):
        # Behind the user's own filters, which win.
        warnings.filterwarnings("ignore", message=message, append=True)
    warnings.filterwarnings("ignore", module="PIL", append=True)
    path = amd_matrix_path()
    if path is not None:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", path)
    if not _has_omp_setting():
        # OMP_NUM_THREADS would do the same, but with a warning of Paddle's.
        os.environ.setdefault("MKL_NUM_THREADS", str(max(1, cores() // _processes_here())))
    os.environ.setdefault("GLOG_minloglevel", "2")

    import cv2

    if cv2.getNumThreads() == cv2.getNumberOfCPUs():  # as it comes
        cv2.setNumThreads(1)
    if _is_opencv_late() and (paddle_version() or "").startswith("2."):
        _warn("expected hmsa or cv2 to be imported before Paddle 2, found Paddle loaded: reading PNG files can crash")
    _check_paddle()


def _is_opencv_late() -> bool:
    """Whether parts of Paddle were loaded before OpenCV, which is loaded."""
    loaded = list(sys.modules)  # in order; a package comes behind its parts
    return any(name.startswith("paddle.") for name in loaded[: loaded.index("cv2")])


def _has_omp_setting() -> bool:
    """Whether the user set OMP_NUM_THREADS. Paddle sets it to 1 when it is loaded, here or in its launcher, if not."""
    setting = os.environ.get("OMP_NUM_THREADS")
    is_launched = "PADDLE_LOCAL_SIZE" in os.environ
    if setting != "1" or not (is_launched or "paddle" in sys.modules):
        return setting is not None
    process = os.getppid() if is_launched else "self"
    try:
        return b"OMP_NUM_THREADS=" in Path(f"/proc/{process}/environ").read_bytes()  # with which it was started
    except OSError:
        return True


def paddle_version() -> Optional[str]:
    """Of the Paddle that is installed, which is not imported; None if it does not say.

    Raises:
        UsageError: there is none.
    """
    for package in ("paddlepaddle-gpu", "paddlepaddle"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    if find_spec("paddle") is None:
        raise UsageError(
            f'expected PaddlePaddle to be installed, found none: run pip install "{PADDLE}", or install the '
            "paddlepaddle-gpu for your CUDA version as https://www.paddlepaddle.org.cn/en/install/quick says"
        )
    return None


def _check_paddle() -> None:
    found = paddle_version()
    if is_tested(found) or os.environ.get("PADDLE_TRAINER_ID", "0") != "0":
        return
    _warn(
        f"expected Paddle {TESTED_PADDLES[0]} to {TESTED_PADDLES[-1]} (tested with {', '.join(TESTED_PADDLES)}), found "
        f"{found or 'one of unknown version'}: run tools/doctor.py to see what works, or install one of these"
    )


@cache
def _warn(message: str) -> None:
    """Once."""
    print(f"warning: {message}", file=sys.stderr)


def is_tested(found: Optional[str]) -> bool:
    """Whether a version of Paddle, None for an unknown one, is in the tested range."""
    try:
        release = Version(found or "").release
    except InvalidVersion:
        return False
    return Version(TESTED_PADDLES[0]).release <= release <= Version(TESTED_PADDLES[-1]).release


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes_here() -> int:
    """Processes that `paddle.distributed.launch` started on this machine; 1 without it."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE") or os.environ.get("PADDLE_TRAINERS_NUM") or 1)
