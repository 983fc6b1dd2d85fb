# SPDX-License-Identifier: Apache-2.0
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from hmsa import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_the_peak_is_noticed_and_can_start_anew():
    before = memory.peak_memory_bytes()
    block = np.ones(2**27, np.uint8)  # 128 MiB
    assert memory.peak_memory_bytes() >= max(before, block.nbytes)
    high = memory.peak_memory_bytes()
    del block
    memory.reset_peak()
    assert memory.peak_memory_bytes() <= high - 2**26


@linux
def test_holes_are_given_back():
    if memory._c_library() is None:
        pytest.skip("not a recent glibc")
    memory.release_unused()
    # Small enough to come from the heap; the last one keeps it from shrinking by itself.
    blocks = [np.ones(2**16, np.uint8) for _ in range(2**13)]  # 512 MiB
    last = blocks.pop()
    full = _resident()
    blocks.clear()
    memory.release_unused()
    assert _resident() < full - 2**28
    assert last.all()


def test_there_is_more_memory_than_was_used():
    assert memory.total_memory_bytes() > memory.peak_memory_bytes() > 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
