# SPDX-License-Identifier: Apache-2.0
"""What must be set before Paddle is loaded. Scripts call `prepare()` first; nothing here runs on import."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def is_amd_cpu() -> bool:
    """Whether the processor says it is made by AMD (Linux; elsewhere False)."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


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
    - Two warnings of Paddle's, about a compiler cache and about batch normalisation, say nothing to users of scripts.
    """
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")
    if is_amd_cpu():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    if "OMP_NUM_THREADS" not in os.environ:
        # OMP_NUM_THREADS would do the same, but with a warning of Paddle's.
        os.environ.setdefault("MKL_NUM_THREADS", str(max(1, _cores() // _processes_here())))
    os.environ.setdefault("GLOG_minloglevel", "2")
    import cv2

    cv2.setNumThreads(1)


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes_here() -> int:
    """Processes that `paddle.distributed.launch` started on this machine; 1 without it."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE") or os.environ.get("PADDLE_TRAINERS_NUM") or 1)
