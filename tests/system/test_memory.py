# SPDX-License-Identifier: Apache-2.0
import os
import re
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from hmsa import builder
from hmsa.config.reading import load_config
from hmsa.engine import train
from hmsa.system import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_the_peak_is_noticed_and_can_start_anew():
    before = memory.peak_memory_bytes()
    block = np.ones(2**27, np.uint8)  # 128 MiB
    assert memory.peak_memory_bytes() >= max(before, block.nbytes)
    high = memory.peak_memory_bytes()
    del block
    assert memory.reset_peak()
    assert memory.peak_memory_bytes() <= high - 2**26


def test_a_gpu_whose_peak_cannot_start_anew_is_no_error(monkeypatch):
    """Paddle 2.6 has no such call."""
    monkeypatch.setattr(memory, "on_gpu", lambda: True)
    monkeypatch.delattr(paddle.device.cuda, "reset_max_memory_allocated", raising=False)
    assert not memory.reset_peak()


def test_a_peak_that_could_not_start_anew_is_said_to_be_of_both(monkeypatch, tiny_recipe):
    monkeypatch.setattr(train, "reset_peak", lambda: False)
    config = load_config(tiny_recipe)
    model = builder.build_model(config)
    scheduler = builder.build_lr_scheduler(config)
    trainer = train.Trainer(
        model=model,
        loss=builder.build_loss(config),
        optimizer=builder.build_optimizer(config, scheduler, model),
        scheduler=scheduler,
        dataset=builder.build_dataset(config, "train"),
        val_dataset=builder.build_dataset(config, "val"),
        options=builder.train_options(config, save_dir=None),
    )
    said = trainer.plan_memory()
    assert re.search("^steps, and evaluating one image between them: .* GiB at most", said, re.MULTILINE)


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
