# SPDX-License-Identifier: Apache-2.0
"""How much memory this process has used, and giving back what it no longer uses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Optional

import hmsa.system.prepared  # noqa: F401

import paddle

from hmsa.system.device import on_gpu


def peak_memory_bytes() -> int:
    """The most memory this process has used since `reset_peak`: the device's on a GPU, else resident (0 if unknown)."""
    if on_gpu():
        return int(paddle.device.cuda.max_memory_allocated())
    with contextlib.suppress(OSError, StopIteration):
        return _status("VmHWM:")
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """The memory this process holds now: the device's on a GPU, else resident (0 if unknown)."""
    if on_gpu():
        return int(paddle.device.cuda.memory_allocated())
    with contextlib.suppress(OSError, StopIteration):
        return _status("VmRSS:")
    return 0


def _status(entry: str) -> int:
    """Bytes that Linux notes of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])


def reset_peak() -> bool:
    """Let `peak_memory_bytes` start anew; whether that could be done, as on GPUs from Paddle 3 on, and under Linux."""
    if on_gpu():
        reset = getattr(paddle.device.cuda, "reset_max_memory_allocated", None)
        if reset is not None:
            reset()
        return reset is not None
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def total_memory_bytes() -> int:
    """What there is: the device's memory on a GPU, else the machine's (0 if unknown)."""
    if on_gpu():
        return int(paddle.device.cuda.get_device_properties().total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def release_unused() -> None:
    """Give freed memory of the C library back to the system (Linux; elsewhere nothing happens).

    On a CPU, Paddle's tensors come from the C library, which keeps what lies between others for later: over forward and
    backward passes such holes add up. Getting pages back from the system costs time, so that
    nothing is done for less than a quarter of a gigabyte.
    """
    library = _c_library()
    if library is not None and not on_gpu() and library.mallinfo2().fordblks > 2**28:
        library.malloc_trim(0)


def use_one_heap() -> None:
    """Take large blocks from the C library's heap like all others, so that they fill the holes that are there (Linux).

    Otherwise each block above 32 MB is mapped on its own, beside holes that stay.
    """
    library = _c_library()
    if library is not None and not on_gpu():
        library.mallopt(_M_MMAP_MAX, 0)


_M_MMAP_MAX = -4  # from malloc.h


class _MallocInformation(ctypes.Structure):
    """glibc's `struct mallinfo2`; `fordblks` are the bytes in free blocks."""

    _fields_ = [
        ("arena_to_uordblks", ctypes.c_size_t * 8),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


@cache
def _c_library() -> Optional[Any]:
    """The C library, if it is a glibc of 2.33 or later."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallinfo2.restype = _MallocInformation
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):
        return None
    return library
